"""Names: their order, listing, copying, renaming and deleting."""

from __future__ import annotations

import errno
import io
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import castore
from castore.errors import InvalidName, NameExists, NameNotFound
from castore.testing.contents import mixed, noise
from castore.testing.kind import Kind

NAMES = [
    "a",
    "a/b",
    "a/b/c",
    "a0",
    "a b",
    "b",
    "B",
    "~",
    "é",
    "z",
    "漢字",
    "\U0001f600",
    "\uffee",
    "a//b",
    "a/",
    "...",
    "a/..b",
    "\x01",
    "\x7f",
    "x" * 480,
    "é" * 240,
]


def level(names: list[str], folder: str) -> list[tuple[str, bool]]:
    """What `scandir` finds among these names, as it is defined: names, and whether it is a folder.
    `folder` is "", or ends with no "/"."""
    prefix = folder + "/" if folder else ""
    found = set()
    for name in names:
        if name.startswith(prefix):
            inner, slash, _ = name[len(prefix) :].partition("/")
            found.add((prefix + inner, bool(slash)))
    return sorted(found, key=lambda each: (each[0] + "/" * each[1]).encode())


class Names(Kind):
    def test_old_versions_of_a_place_that_keeps_none(self, store: castore.Store) -> None:
        for data in (b"1", b"2"):
            store.puts("a/b", data)
        assert store.remove_old_versions("a/b") == 0
        assert store.remove_old_versions("a/", below=True) == 0
        assert store.gets("a/b") == b"2"
        with pytest.raises(castore.errors.InvalidName):
            store.remove_old_versions("a/../b")

    def test_if_absent(self, store: castore.Store, tmp_path: Path) -> None:
        (tmp_path / "source").write_bytes(b"new")
        assert store.puts("name", b"first", if_absent=True).size == 5
        for attempt in (
            lambda: store.puts("name", b"new", if_absent=True),
            lambda: store.puts("name", noise(9000), if_absent=True),
            lambda: store.put("name", tmp_path / "source", if_absent=True),
            lambda: store.put("name", io.BytesIO(b"new"), if_absent=True),
            lambda: store.copy("other", "name", if_absent=True),
            lambda: store.rename("other", "name", if_absent=True),
            lambda: store.copy("name", "name", if_absent=True),
            lambda: store.open("name", "xb"),
        ):
            store.puts("other", b"other")
            with pytest.raises(NameExists, match="an object is already named 'name'") as caught:
                attempt()
            assert isinstance(caught.value, FileExistsError)
            assert caught.value.name == "name"
            assert store.gets("name") == b"first"
            assert store.gets("other") == b"other"

    def test_if_absent_is_decided_by_the_commit(self, store: castore.Store, tmp_path: Path) -> None:
        (tmp_path / "late").write_bytes(b"late")
        puts: dict[str, Callable[[castore.Transaction, str], object]] = {
            "bytes": lambda t, name: t.puts(name, b"late", if_absent=True),
            "large": lambda t, name: t.puts(name, noise(100_000), if_absent=True),
            "many": lambda t, name: t.puts_many({name: b"late"}, if_absent=True),
            "path": lambda t, name: t.put(name, tmp_path / "late", if_absent=True),
            "stream": lambda t, name: t.put(name, io.BytesIO(b"late"), if_absent=True),
            "file": lambda t, name: t.open(name, "xb").close(),
        }
        for name, put in puts.items():
            with pytest.raises(NameExists, match=name), store.transaction() as transaction:  # noqa: PT012
                put(transaction, name)
                transaction.puts("another", b"late")
                store.puts(name, b"first")
            assert store.gets(name) == b"first"
            assert not store.exists("another")
            with store.transaction() as transaction, pytest.raises(NameExists, match=name):
                put(transaction, name)
        file = store.open("raced", "xb")
        file.write(b"late")
        store.puts("raced", b"first")
        with pytest.raises(NameExists):
            file.close()
        assert file.closed
        assert store.gets("raced") == b"first"

    def test_what_is_put_may_be_of_another_time_and_mode(
        self, store: castore.Store, tmp_path: Path
    ) -> None:
        (tmp_path / "file").write_bytes(b"1")
        (tmp_path / "file").chmod(0o640)
        with store.transaction() as transaction:
            for source in (tmp_path / "file", io.BytesIO(b"1")):
                name = type(source).__name__
                told = transaction.put(name, source, mtime_ns=5_000_000_007, mode=0o751)
                assert (told.mtime_ns, told.mode) == (5_000_000_007, 0o751)
        infos = list(store.list())
        assert [(info.mtime_ns, info.mode) for info in infos] == [(5_000_000_007, 0o751)] * 2

    def test_names_are_sorted_by_their_bytes(self, store: castore.Store) -> None:
        rng = random.Random(1)
        for name in rng.sample(NAMES, len(NAMES)):
            store.puts(name, name.encode())
        expected = sorted(NAMES, key=str.encode)
        assert list(store.names()) == expected
        assert [info.name for info in store.list()] == expected
        assert [store.gets(name) for name in expected] == [name.encode() for name in expected]
        assert list(store.list()) == [store.info(name) for name in expected]
        for prefix in [
            "",
            "a",
            "a/",
            "a/b",
            "é",
            "x",
            "x" * 480,
            "x" * 481,
            "y" * 2000,
            "/",
            "..",
        ]:
            assert list(store.names(prefix)) == [n for n in expected if n.startswith(prefix)]

    def test_names_are_told_apart(self, store: castore.Store) -> None:
        store.puts("a/b", b"x")
        assert store.exists("a/b")
        for name in ("a", "a/", "a/b/", "A/b", "a/b\u0301"):
            assert not store.exists(name)
            with pytest.raises(NameNotFound):
                store.info(name)

    @pytest.mark.parametrize("count", [999, 1000, 1001, 2500])
    def test_lists_of_many_pages(self, store: castore.Store, count: int) -> None:
        with store.transaction() as transaction:
            for i in range(count):
                transaction.puts(f"n/{i:05}", b"")
            transaction.puts("m", b"")
            transaction.puts("o", b"")
        expected = [f"n/{i:05}" for i in range(count)]
        assert list(store.names("n/")) == expected
        assert list(store.names()) == ["m", *expected, "o"]
        assert store.delete_prefix("n/") == count
        assert list(store.names()) == ["m", "o"]

    def test_a_list_goes_on_while_the_names_change(self, store: castore.Store) -> None:
        with store.transaction() as transaction:
            for i in range(2000):
                transaction.puts(f"{i:04}", b"")
        names = store.names()
        first = [next(names) for _ in range(1000)]
        store.delete("0500")
        store.delete("1500")
        store.puts("0999x", b"")
        store.puts("1600x", b"")
        rest = list(names)
        assert first == [f"{i:04}" for i in range(1000)]
        assert "1500" not in rest
        assert "1600x" in rest
        assert rest[0] == "0999x", "the page ended just before it"
        assert rest == sorted(set(rest))
        assert set(rest) >= {f"{i:04}" for i in range(1000, 2000)} - {"1500"}

    def test_what_is_right_in_a_folder(self, store: castore.Store) -> None:
        names = [*NAMES, "a/c/d", "a-b", "a.txt", "b//c", "b/", "c/d", "é/ü", "z/" + "y" * 300]
        for name in names:
            store.puts(name, name.encode())
        for folder in ["", "a", "a/", "a/b", "a/c", "b", "b/", "c", "é", "z", "nothing", "a-b"]:
            with_details = list(store.scandir(folder))
            found = [(entry.name, entry.is_folder) for entry in with_details]
            assert found == level(names, folder.rstrip("/")), folder
            without = list(store.scandir(folder, details=False))
            assert [(entry.name, entry.is_folder) for entry in without] == found
            assert all(entry.info is None for entry in without)
            for entry in with_details:
                assert (entry.info is None) == entry.is_folder
                assert entry.info is None or entry.info == store.info(entry.name)
        assert list(store.scandir("a/../b")) == [], "no name begins like that"

    def test_a_folder_of_many_pages(self, store: castore.Store) -> None:
        names = [f"{i // 999}/{i}" for i in range(3500)] + [f"n{i:04}" for i in range(1500)]
        store.puts_many(dict.fromkeys(names, b""))
        found = [(entry.name, entry.is_folder) for entry in store.scandir()]
        assert found == level(names, "")
        assert [entry.name for entry in store.scandir("3")] == sorted(names[2997:3500])

    def test_objects_and_folders_are_told_apart(self, store: castore.Store) -> None:
        for name in ["a", "a/b", "a/c/d", "a0", "c/d", "e/"]:
            store.puts(name, b"")
        assert store.kind("a") == (True, True)
        assert store.kind("a/b") == (True, False)
        assert store.kind("a/c") == (False, True)
        assert store.kind("c") == (False, True)
        assert store.kind("a0") == (True, False)
        assert store.kind("e") == (False, True)
        assert store.kind("nothing") == (False, False)
        with pytest.raises(InvalidName):
            store.kind("")

    def test_size_and_info_and_exists(self, store: castore.Store) -> None:
        store.puts("name", b"12345")
        assert store.size("name") == 5
        assert store.exists("name")
        assert store.info("name").size == 5
        for verb in (store.size, store.info, store.gets, store.delete, store.open):
            with pytest.raises(NameNotFound, match="no object is named 'missing'") as caught:
                verb("missing")
            assert isinstance(caught.value, FileNotFoundError)
            assert caught.value.name == "missing"
            assert caught.value.errno == errno.ENOENT

    def test_copy(self, store: castore.Store) -> None:
        for data in (b"inline", mixed(100_000)):
            source = store.puts("source", data, mode=0o600)
            before = store.stats()
            store.copy("source", "target")
            copied = store.info("target")
            assert store.gets("target") == store.gets("source") == data
            assert (copied.etag, copied.mode, copied.size) == (source.etag, 0o600, len(data))
            assert copied.mtime >= source.mtime
            after = store.stats()
            assert after.pack_bytes == before.pack_bytes
            assert after.chunks == before.chunks
            store.puts("source", b"changed")
            assert store.gets("target") == data
            store.copy("source", "target")
            assert store.gets("target") == b"changed"
            store.copy("source", "source")
            assert store.gets("source") == b"changed"
            store.delete_prefix("", unbounded=True)
        with pytest.raises(NameNotFound, match="'missing'"):
            store.copy("missing", "target")
        assert not store.exists("target")

    def test_rename(self, store: castore.Store) -> None:
        for data in (b"inline", mixed(100_000)):
            info = store.puts("source", data)
            store.puts("target", b"overwritten")
            store.rename("source", "target")
            assert not store.exists("source")
            assert store.gets("target") == data
            assert store.info("target").mtime == info.mtime
            store.rename("target", "target")
            assert store.gets("target") == data
        with pytest.raises(NameNotFound, match="'missing'"):
            store.rename("missing", "target")
        with pytest.raises(NameNotFound, match="'missing'"):
            store.rename("missing", "missing")
        assert store.gets("target") == data

    def test_mode_and_time_of_an_object_that_is_there(self, store: castore.Store) -> None:
        for name, data in (("small", b"1"), ("large", noise(300_000))):
            before = store.puts(name, data, mode=0o600)
            store.set_attributes(name, mode=0o755)
            assert store.info(name) == before._replace(mode=0o755)
            store.set_attributes(name, mtime_ns=1_000_000_007)
            assert store.info(name) == before._replace(mode=0o755, mtime_ns=1_000_000_007)
            assert store.gets(name) == data
        with pytest.raises(NameNotFound, match="absent"):
            store.set_attributes("absent", mode=0o600)
        with pytest.raises(ValueError, match="mode is permission bits"):
            store.set_attributes("small", mode=0o10000)
        with pytest.raises(ValueError, match="years 1678 to 2261"):
            store.set_attributes("small", mtime_ns=1 << 63)
        wrong: Any = 1.5e18  # as time.time() * 1e9 is
        with pytest.raises(TypeError, match="float"):
            store.set_attributes("small", mtime_ns=wrong)
        wrong = 420.0
        with pytest.raises(TypeError, match="float"):
            store.set_attributes("small", mode=wrong)
        with pytest.raises(TypeError, match="float"):
            store.puts("small", b"", mode=wrong)

    def test_mode_and_time_together_with_what_is_put(self, store: castore.Store) -> None:
        store.puts("old", b"1", mode=0o644)
        with store.transaction() as t:
            t.put("new", io.BytesIO(b"2"), mode=0o640, mtime_ns=5)
            t.set_attributes("new", mtime_ns=6)
            t.set_attributes("old", mode=0o400)
        assert (store.info("new").mode, store.info("new").mtime_ns) == (0o640, 6)
        assert store.info("old").mode == 0o400
        t = store.transaction()
        t.set_attributes("new", mode=0o777)
        t.set_attributes("absent", mode=0o777)
        with pytest.raises(NameNotFound):
            t.commit()
        assert store.info("new").mode == 0o640

    def test_delete(self, store: castore.Store) -> None:
        store.puts("a", mixed(50_000))
        store.puts("ab", b"x")
        store.delete("a")
        assert list(store.names()) == ["ab"]
        with pytest.raises(NameNotFound):
            store.delete("a")
        store.puts("a", b"back")
        assert store.gets("a") == b"back"

    def test_delete_prefix(self, store: castore.Store) -> None:
        for name in ("a", "a/1", "a/2", "ab", "b"):
            store.puts(name, b"x")
        assert store.delete_prefix("a/") == 2
        assert list(store.names()) == ["a", "ab", "b"]
        store.puts("a/3", b"x")
        assert store.delete_prefix("a") == 1  # the folder, not what starts so
        assert list(store.names()) == ["a", "ab", "b"]
        with pytest.raises(InvalidName, match="say unbounded=True for every name of the store"):
            store.delete_prefix("")
        assert store.delete_prefix("a", unbounded=True) == 2
        assert store.delete_prefix("a", unbounded=True) == 0
        assert store.delete_prefix("b" * 1000, unbounded=True) == 0
        assert store.delete_prefix("", unbounded=True) == 1
        assert list(store.names()) == []
