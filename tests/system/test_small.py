"""Small objects go through look-up, encoding and placing many at a time, and come out the same."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
from stores import packs_of

import castore
from castore.errors import StoreIOError
from castore.local.catalog import LocalCatalog
from castore.local.session import LocalSession
from castore.stream import small

SIZES = (0, 1, 4096, 4097, 16_384, 40_000, small.SMALL_BYTES_MAX, small.SMALL_BYTES_MAX + 1)


def make_files(top: Path) -> dict[str, bytes]:
    """Of each size: bytes that no other has, bytes that repeat, and a copy in another folder."""
    made = {f"a/{size}": os.urandom(size) for size in SIZES}
    made |= {f"a/text {size}": (b"%d " % size * size)[:size] for size in SIZES}
    made |= {name.replace("a/", "b/"): raw for name, raw in made.items()}
    for name, raw in made.items():
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_bytes(raw)
    time.sleep(0.05)  # else they are too young for one reading to tell
    return made


@pytest.mark.parametrize("guard", [None, "sha256"])
@pytest.mark.parametrize("group_bytes", [1, 50_000, 4 << 20])
def test_many_at_once_are_as_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, guard: str | None, group_bytes: int
) -> None:
    monkeypatch.setattr("castore.stream.fileputs.GROUP_BYTES", group_bytes)
    monkeypatch.setattr("castore.stream.small.TASK_BYTES", 30_000)
    made = make_files(tmp_path / "in")
    with castore.open(tmp_path / "store", collision_guard=guard, delta=False) as store:
        assert store.import_folder(tmp_path / "in").files == len(made)
        for name, raw in made.items():
            with open(tmp_path / "in" / name, "rb") as file:
                alone = store.put("alone", file)  # by an ObjectWriter: all its chunks are known
            info = store.info(name)
            assert store.gets(name) == raw
            assert (info.size, info.etag, info.chunks) == (alone.size, alone.etag, alone.chunks)
            assert info.stored_bytes == alone.stored_bytes
        chunks = {raw for raw in made.values() if len(raw) > 4096}
        assert len(chunks) <= store.stats().chunks < 2 * len(chunks)  # each is stored once


def test_a_group_that_fails_leaves_no_drafts(
    store: castore.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What goes on with the transaction does not publish what is left of them."""
    raw = os.urandom(10_000)

    whole = LocalSession.add_segment

    def add_and_fail(*arguments: Any) -> None:
        whole(*arguments)
        raise StoreIOError("failed")

    with store.transaction() as transaction:
        transaction.puts("kept", os.urandom(10_000))
        monkeypatch.setattr(LocalSession, "add_segment", add_and_fail)
        with pytest.raises(StoreIOError):
            transaction.puts("failed", raw)
        monkeypatch.undo()
    assert list(store.names()) == ["kept"]
    assert store.gc().manifests_removed == 0


def test_a_symlink_into_an_open_store_is_left_out(store: castore.Store, tmp_path: Path) -> None:
    store.puts("x", os.urandom(10_000))
    [pack] = packs_of(store)
    top = tmp_path / "in"
    (top / "below").mkdir(parents=True)
    (top / "below" / "file").write_bytes(b"x" * 5000)
    (top / "link").symlink_to(pack)
    (top / "other").symlink_to(top / "below" / "file")
    report = store.import_folder(top)
    assert report.files == 2
    [(path, why)] = report.left_out
    assert path == str(top / "link")
    assert f"lies inside the open store {os.path.realpath(store.path)}" in why


@pytest.mark.plain("what is asked for deltas is what it is about")
def test_of_many_that_resemble_nothing_few_are_compared(
    store: castore.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And all again after one that does."""
    older, asked = LocalCatalog.older, list[bytes]()

    def count(catalog: LocalCatalog, name: bytes, like: bytes | None, *, beside: bool) -> Any:
        asked.append(name)
        return older(catalog, name, like, beside=beside)

    text = b" ".join(b"%d" % (n * n) for n in range(1500))
    store.puts("z/1", text)
    monkeypatch.setattr(LocalCatalog, "older", count)
    with store.transaction() as transaction:
        for n in range(500):
            transaction.puts(f"a/{n}", os.urandom(5000))
        assert asked[:8] == [b"a/%d" % n for n in range(8)]
        assert len(asked) < 50
        asked.clear()
        for n in range(64):
            transaction.puts("z/2", text + b"%d" % n)
            if asked:
                break
        for n in range(8):
            transaction.puts("z/3", b"%d" % n + text)
        assert asked == [b"z/2"] + [b"z/3"] * 8
    assert store.info("z/3").deltas == 1
