"""LMDB's file, read without LMDB: what LMDB reads of it, or an IndexCorrupt, and never anything
else, whatever the file holds."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lmdb
import pytest

from castore.errors import IndexCorrupt, StoreFull
from castore.system.lmdb_pages import TABLE
from castore.system.lmdb_unlocked import UnlockedEnvironment

TABLES = (b"empty", b"few", b"many", b"large")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Tables of every kind that an index has: none, one page, three levels, values on pages of
    their own; changed often, so that pages are free and used again."""
    draw = random.Random(7)
    with lmdb.open(os.fspath(tmp_path), map_size=1 << 28, max_dbs=4, lib_version=0) as env:
        tables = {name: env.open_db(name) for name in TABLES}
        for turn in range(6):
            with env.begin(write=True) as txn:
                for i in range(5):
                    txn.put(b"%d" % i, b"v%d" % turn, db=tables[b"few"])
                for _ in range(3000):
                    key = draw.randbytes(draw.randint(1, 40))
                    txn.put(key, draw.randbytes(draw.randint(0, 90)), db=tables[b"many"])
                for _ in range(40):
                    value = draw.randbytes(draw.choice((100, 2100, 5000, 70_000)))
                    txn.put(b"%d" % draw.randrange(90), value, db=tables[b"large"])
                some = [key for key, _ in txn.cursor(tables[b"many"])]
                for key in draw.sample(some, 1000):
                    txn.delete(key, db=tables[b"many"])
    return tmp_path


@pytest.fixture
def both(folder: Path) -> Iterator[tuple[Any, Any, dict[bytes, Any]]]:
    """A transaction of LMDB's and one of ours on the same commit, and LMDB's tables."""
    unlocked = UnlockedEnvironment(os.fspath(folder))
    with lmdb.open(os.fspath(folder), max_dbs=4, lock=False, readonly=True, lib_version=0) as env:
        tables = {name: env.open_db(name, create=False) for name in TABLES}
        with env.begin() as txn:
            yield txn, unlocked.begin(), tables
    unlocked.close()


def test_all_rows(both: Any) -> None:
    theirs, ours, tables = both
    assert ours.id() == theirs.id()
    for name, table in tables.items():
        rows = list(theirs.cursor(table))
        assert list(ours.cursor(name)) == rows
        assert list(ours.cursor(name).iternext(values=False)) == [key for key, _ in rows]
        assert ours.stat(name)["entries"] == len(rows)
        assert all(ours.get(key, None, name) == value for key, value in rows)
        assert ours.cursor(name).getmulti([*dict(rows), b"none"]) == rows


def test_every_move_of_a_cursor(both: Any) -> None:
    theirs, ours, tables = both
    draw = random.Random(1)
    for name, table in tables.items():
        keys = [key for key, _ in theirs.cursor(table)] + [b"", b"\xff" * 50]
        with theirs.cursor(table) as one, ours.cursor(name) as other:
            for _ in range(4000):
                moves = ("first", "last", "set_range", "set_key", "next", "prev", "next", "prev")
                move = draw.choice(moves)
                if move in ("set_range", "set_key"):
                    key = draw.choice(keys)[: draw.randint(1, 40)] or b"\0"
                    found = (getattr(one, move)(key), getattr(other, move)(key))
                elif not one.key() and move in ("next", "prev"):
                    continue  # LMDB goes to an end then, and nobody asks for it
                else:
                    found = (getattr(one, move)(), getattr(other, move)())
                assert found[0] == found[1], (name, move)
                if found[0]:
                    assert (one.key(), one.value()) == (other.key(), other.value())
                else:
                    one.set_range(b"\xff" * 60)
                    other.set_range(b"\xff" * 60)
                assert one.key() == other.key()


def test_views(folder: Path) -> None:
    env = UnlockedEnvironment(os.fspath(folder))
    txn = env.begin(buffers=True)
    assert isinstance(txn.get(b"0", None, b"few"), memoryview)
    assert [bytes(value) for _, value in txn.cursor(b"few")] == [b"v5"] * 5
    env.close()


def test_what_is_no_table(tmp_path: Path) -> None:
    """As in another program's environment: there is none of the name, or it is a row."""
    with lmdb.open(os.fspath(tmp_path), max_dbs=1, lib_version=0) as writes:
        writes.open_db(b"table")
        with writes.begin(write=True) as other:
            other.put(b"row", b"1")
            other.put(b"row as long as a table", bytes(TABLE.size))
    env = UnlockedEnvironment(os.fspath(tmp_path))
    txn = env.begin()
    assert txn.stat(b"table") == {"entries": 0}
    for name in (b"none", b"row", b"row as long as a table"):
        with pytest.raises(IndexCorrupt, match="another program's"):
            txn.stat(name)
    env.close()


def test_a_copy_is_whole(folder: Path, tmp_path: Path) -> None:
    env = UnlockedEnvironment(os.fspath(folder))
    (tmp_path / "copy").mkdir()
    with open(tmp_path / "copy" / "data.mdb", "wb") as file:
        env.copy(env.begin(), file.fileno())
    with lmdb.open(os.fspath(tmp_path / "copy"), max_dbs=4, lib_version=0) as copy:
        table = copy.open_db(b"many")
        with copy.begin(write=True) as txn:
            assert list(txn.cursor(table)) == list(env.begin().cursor(b"many"))
            txn.put(b"more", b"1", db=table)
        with copy.begin() as txn:
            assert txn.get(b"more", db=table) == b"1"
    env.close()


@pytest.mark.parametrize("commits", [6, 7])  # each is written over the head of the one but last
def test_a_copy_is_of_its_transaction_whatever_is_committed_meanwhile(
    folder: Path, tmp_path: Path, commits: int
) -> None:
    env = UnlockedEnvironment(os.fspath(folder))
    with lmdb.open(os.fspath(folder), max_dbs=4, lib_version=0) as writes:
        table = writes.open_db(b"few")
        for i in range(6, commits + 1):
            txn = env.begin()
            rows = list(txn.cursor(b"few"))
            with writes.begin(write=True) as other:
                other.put(b"0", b"v%d" % i, db=table)
    (tmp_path / "copy").mkdir()
    with open(tmp_path / "copy" / "data.mdb", "wb") as file:
        env.copy(txn, file.fileno())
    env.close()
    copy = UnlockedEnvironment(os.fspath(tmp_path / "copy"))
    assert (copy.last_transaction(), list(copy.begin().cursor(b"few"))) == (txn.id(), rows)
    copy.close()


def test_a_copy_of_what_ends_with_pages_that_were_never_written(tmp_path: Path) -> None:
    """They were freed before: the file is shorter than its commit says, and its copy is not."""
    draw = random.Random(28)
    path = tmp_path / "data.mdb"
    with lmdb.open(os.fspath(tmp_path), map_size=1 << 28, max_dbs=1, lib_version=0) as env:
        table = env.open_db(b"many")
        for _ in range(50):
            with env.begin(write=True) as txn:
                for _ in range(60):
                    value = bytes(draw.choice((10, 1000, 1900, 3000, 9000)))
                    txn.put(b"%d" % draw.randrange(3000), value, db=table)
                keys = [key for key, _ in txn.cursor(table)]
                for key in draw.sample(keys, len(keys) // 2):
                    txn.delete(key, db=table)
            size = (env.info()["last_pgno"] + 1) * env.stat()["psize"]
            if path.stat().st_size < size:
                break
    assert path.stat().st_size < size
    unlocked = UnlockedEnvironment(os.fspath(tmp_path))
    (tmp_path / "copy").mkdir()
    with open(tmp_path / "copy" / "data.mdb", "wb") as file:
        unlocked.copy(unlocked.begin(), file.fileno())
    copy = UnlockedEnvironment(os.fspath(tmp_path / "copy"))
    assert list(copy.begin().cursor(b"many")) == list(unlocked.begin().cursor(b"many"))
    assert (tmp_path / "copy" / "data.mdb").stat().st_size == size
    for each in (copy, unlocked):
        each.close()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="only Linux has a full disk at hand")
def test_a_copy_that_finds_no_room_says_so(folder: Path) -> None:
    env = UnlockedEnvironment(os.fspath(folder))
    with open("/dev/full", "wb") as full, pytest.raises(StoreFull, match="the copy of"):
        env.copy(env.begin(), full.fileno())
    env.close()


def test_whatever_the_file_holds(folder: Path) -> None:
    """Pages of others, of before, cut, and flipped: rows or IndexCorrupt, within the time that
    there are pages for."""
    draw = random.Random(3)
    path = folder / "data.mdb"
    whole = path.read_bytes()
    raised = 0
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(draw.randint(1, 30)):
            page = 4096 * draw.randrange(2, len(data) // 4096)
            other = 4096 * draw.randrange(2, len(data) // 4096)
            match draw.randrange(4):
                case 0:
                    data[page : page + 4096] = data[other : other + 4096]
                case 1:  # its number, too, as of a page that was written over
                    data[page : page + 4096] = data[other : other + 4096]
                    data[page : page + 8] = (page // 4096).to_bytes(8, "little")
                case 2:
                    at = page + draw.randrange(24)
                    data[at] = draw.randrange(256)
                case 3:
                    at = page + draw.randrange(4096)
                    data[at] ^= 1 << draw.randrange(8)
        path.write_bytes(data if draw.random() < 0.8 else data[: draw.randrange(8192, len(data))])
        env = UnlockedEnvironment(os.fspath(folder))
        for name in TABLES:
            txn = env.begin()
            try:
                rows = list(txn.cursor(name))
                txn.cursor(name).last()
                txn.cursor(name).set_range(b"5")
                assert all(isinstance(value, bytes) for _, value in rows)
            except IndexCorrupt:
                raised += 1
        env.close()
    assert raised > 100
