"""fsspec's `use_listings_cache`: what listings showed is not asked for again, for a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fsspec")

import castore
from castore.fs import CastoreFileSystem
from castore.system.clock import boot_clock


@pytest.fixture
def fs(tmp_path: Path) -> Iterator[CastoreFileSystem]:
    fs = CastoreFileSystem(
        tmp_path / "store",
        skip_instance_cache=True,
        use_listings_cache=True,
        listings_expiry_time=60,
        max_paths=5,
    )
    fs.pipe({"a": b"1", "d/b": b"22"})
    yield fs
    fs.store.close()


@pytest.fixture
def other(fs: CastoreFileSystem) -> castore.Store:
    """What somebody else changes the store by."""
    return fs.store


LISTS: dict[str, Callable[[CastoreFileSystem], Any]] = {
    "ls": lambda fs: fs.ls(""),
    "find": lambda fs: fs.find("", detail=True),
    "one level": lambda fs: fs.find("", maxdepth=1, detail=True),
    "du": lambda fs: fs.du(""),
    "walk": lambda fs: list(fs.walk("", detail=True)),
    "walk by names": lambda fs: list(fs.walk("")),
    "glob by names": lambda fs: fs.glob("**"),
    "pattern": lambda fs: fs.expand_path("*"),
}


@pytest.mark.parametrize("by", LISTS)
def test_what_a_list_showed_counts_until_it_expires(
    fs: CastoreFileSystem, other: castore.Store, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    LISTS[by](fs)
    other.puts("a", b"333")
    other.puts("new", b"")
    assert fs.info("a")["size"] == fs.size("a") == 1
    assert fs.exists("new")  # that something is not there is asked for each time
    with fs.open("a") as file:  # the bytes that were shown are gone
        assert file.read() == b"333"
    LISTS[by](fs)
    other.delete("a")
    assert fs.exists("a")
    assert fs.isfile("a")
    assert not fs.isdir("a")
    now = boot_clock() + 60  # time.monotonic would not have moved while the machine slept
    monkeypatch.setattr("castore.fs.shown.boot_clock", lambda: now)
    assert not fs.exists("a")
    with pytest.raises(FileNotFoundError):
        fs.open("a")


def test_without_it_each_is_asked_for(tmp_path: Path, fs: CastoreFileSystem) -> None:
    for options in ({}, {"use_listings_cache": False}, {"listings_expiry_time": 60}):
        plain = CastoreFileSystem(tmp_path / "store", skip_instance_cache=True, **options)
        plain.find("", detail=True)
        fs.store.puts("a", b"22")
        assert plain.size("a") == 2
        fs.store.puts("a", b"1")
        assert plain.size("a") == 1


def write(fs: CastoreFileSystem) -> None:
    with fs.open("a", "wb") as file:
        file.write(b"333")


def in_transaction(fs: CastoreFileSystem) -> None:
    with fs.transaction:
        fs.pipe_file("a", b"333")
        fs.ls("")


def append(fs: CastoreFileSystem) -> None:
    with fs.open("a", "ab") as file:
        fs.ls("")
        file.write(b"22")


CHANGES: dict[str, Callable[[CastoreFileSystem], Any]] = {
    "pipe": lambda fs: fs.pipe({"a": b"333", "c": b""}),
    "pipe_file": lambda fs: fs.pipe_file("a", b"333"),
    "write": write,
    "append": append,
    "transaction": in_transaction,
    "cp": lambda fs: (fs.pipe_file("c", b"333"), fs.ls(""), fs.cp("c", "a")),
    "mv": lambda fs: (fs.pipe_file("c", b"333"), fs.ls(""), fs.mv("c", "a")),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_it_changed_itself_it_asks_for(fs: CastoreFileSystem, change: str) -> None:
    fs.ls("")
    CHANGES[change](fs)
    assert fs.size("a") == 3
    fs.ls("")
    fs.rm("a")
    assert not fs.exists("a")


def test_so_many_names_are_kept(fs: CastoreFileSystem, other: castore.Store) -> None:
    fs.pipe({f"n/{i}": b"1" for i in range(8)})
    fs.ls("n")
    for i in range(8):
        other.puts(f"n/{i}", b"22")
    assert [fs.size(f"n/{i}") for i in range(8)] == [2, 2, 2, 1, 1, 1, 1, 1]
