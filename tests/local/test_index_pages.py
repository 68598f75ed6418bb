"""The pages of an index, read without LMDB; and what is done about damaged ones."""

from __future__ import annotations

import os
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import lmdb
import pytest
from stores import contents, fill, read, rows, small

import castore
from castore.cli import main
from castore.errors import IndexCorrupt, StoreFull, UnclaimedData
from castore.local.index_walk import check_pages
from castore.system.lmdb_env import open_index
from castore.system.lmdb_files import LOCK_FILE_BYTES
from castore.system.lmdb_pages import BRANCH, LEAF, IndexPages, check_length

pytestmark = pytest.mark.apart  # LMDB may die of what these do to its pages

VALUES = contents(names=400)
PAGE = 4096


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """An index of several levels, with free pages, as bytes of data.mdb."""
    folder = tmp_path_factory.mktemp("pages") / "store"
    with small(folder) as store:
        fill(store, VALUES)
        for i in range(0, 400, 5):
            store.delete(f"n/{i:02}")
        store.gc()
    return (folder / "index/data.mdb").read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "store"
    with small(folder) as store:
        fill(store, VALUES)
        store.delete("n/00")
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "store"))


def salvage(path: Path, raw: bytes) -> tuple[dict[bytes, dict[bytes, bytes]], IndexPages]:
    path.write_bytes(raw)
    fd = os.open(path, os.O_RDONLY)
    try:
        pages = IndexPages(fd, str(path))
        found = {name: dict(pages.rows(table)) for name, table in pages.tables().items()}
        return found, pages
    finally:
        os.close(fd)


def tree_pages(raw: bytes, kind: int) -> list[int]:
    """Where the pages of a kind are that name rows are in reach of, the last written first."""
    return [
        at
        for at in range(2 * PAGE, len(raw), PAGE)
        if struct.unpack_from("<H", raw, at + 10)[0] == kind
        and struct.unpack_from("<Q", raw, at)[0] == at // PAGE
    ]


def test_it_reads_what_lmdb_reads(folder: Path) -> None:
    raw = (folder / "index/data.mdb").read_bytes()
    found, pages = salvage(folder.parent / "copy", raw)
    found[b"meta"].pop(b"journal")
    assert found == rows(folder)
    assert pages.lost == []
    with castore.open(folder):
        index = open_index(str(folder / "index"))
        check_pages(index)
        index.close()


@pytest.mark.damages_store("a row of meta is none of castore's")
def test_lists_of_free_pages_are_sorted_as_numbers(folder: Path) -> None:
    """One for each transaction, as long as a reader is there that may need the pages: byte by
    byte, number 512 would come before number 511."""
    with lmdb.open(str(folder / "index"), max_dbs=9, map_size=1 << 30) as environment:
        meta = environment.open_db(b"meta", create=False)
        with environment.begin():
            for value in range(600):
                with environment.begin(write=True) as txn:
                    txn.put(b"of a test", b"%d" % value, db=meta)
    with open(folder / "index/data.mdb", "rb") as file:
        pages = IndexPages(file.fileno(), "index")
        assert pages.fault() == ""
        pages.lost.clear()
        pages.visited.clear()
        lists = [int.from_bytes(key, "little") for key, _ in pages.rows(pages.meta.free)]
    assert lists == sorted(lists)
    assert {511, 512} <= set(lists)
    assert not pages.lost


def test_a_small_value_written_over_a_large_one_keeps_its_pages(tmp_path: Path) -> None:
    path = tmp_path / "index"
    open_index(str(path)).close()
    with lmdb.open(str(path), max_dbs=9) as env, env.begin(write=True) as txn:
        names = env.open_db(b"names", txn=txn)
        txn.put(b"large", os.urandom(9000), db=names)
        txn.put(b"large", b"small", db=names)
        assert txn.stat(names)["overflow_pages"] == 3
    index = open_index(str(path), create=False)
    check_pages(index)
    index.close()
    found, pages = salvage(tmp_path / "copy", raw := (path / "data.mdb").read_bytes())
    assert found[b"names"] == {b"large": b"small"}
    # But how many there are is what LMDB frees one day: one more would be another value's.
    at = next(
        at
        for at in range(2 * PAGE, len(raw), PAGE)
        if struct.unpack_from("<QHHI", raw, at)[2:] == (4, 3)
    )
    for wrong in (2, 4):
        changed = raw[: at + 12] + struct.pack("<I", wrong) + raw[at + 16 :]
        found, pages = salvage(tmp_path / "copy", changed)
        assert found[b"names"] == {b"large": b"small"}
        assert pages.lost


def test_no_bytes_are_too_damaged_to_be_read(template: bytes, tmp_path: Path) -> None:
    """Where rows are left out `lost` says so; nothing else is raised."""
    whole, _ = salvage(tmp_path / "data.mdb", template)
    choose = random.Random(1)
    for _ in range(60):
        raw = bytearray(template)
        at = choose.randrange(len(raw))
        if choose.random() < 0.5:
            raw[at] ^= 1 << choose.randrange(8)
        else:
            raw[at : at + 200] = choose.randbytes(len(raw[at : at + 200]))
        try:
            found, pages = salvage(tmp_path / "data.mdb", bytes(raw))
        except IndexCorrupt:
            assert at < 2 * PAGE
            continue
        # A key that is another by one bit, and in order, no reader of pages can tell.
        fewer = [name for name in whole if len(found.get(name, {})) < len(whole[name])]
        if fewer and at >= 2 * PAGE:
            assert pages.lost, (at, fewer)


def test_a_page_of_another_kind_than_its_place_costs_no_row(
    template: bytes, tmp_path: Path
) -> None:
    whole, pages = salvage(tmp_path / "data.mdb", template)
    used = [at for at in tree_pages(template, LEAF) if at // PAGE in pages.visited]
    for at in used[:: max(1, len(used) // 10)]:
        raw = bytearray(template)
        raw[at + 10] ^= BRANCH | LEAF
        found, damaged = salvage(tmp_path / "data.mdb", bytes(raw))
        assert found == whole
        assert "head of page" in damaged.lost[0].reason


def damage_free_list(raw: bytes, path: Path) -> bytes:
    """One bit of the number of a free page."""
    path.write_bytes(raw)
    fd = os.open(path, os.O_RDONLY)
    try:
        pages = IndexPages(fd, str(path))
        value = next(value for _, value in pages.rows(pages.meta.free) if len(value) > 16)
    finally:
        os.close(fd)
    # Wherever it is: a page that is free by now may hold it, too.
    return raw.replace(value, value[:8] + bytes([value[8] ^ 64]) + value[9:])


def page_of_names(raw: bytes, path: Path) -> int:
    """Where a page is that holds names from n/1 on, and nothing else."""
    path.write_bytes(raw)
    fd = os.open(path, os.O_RDONLY)
    try:
        tables = IndexPages(fd, str(path)).tables()
        pages = IndexPages(fd, str(path))
        assert list(pages.rows(tables[b"names"]))
    finally:
        os.close(fd)
    return next(
        at
        for at in tree_pages(raw, LEAF)
        if at // PAGE in pages.visited and b"n/1" in raw[at : at + PAGE]
    )


def damage_flags(raw: bytes, path: Path) -> bytes:
    """The kind of a page of names."""
    at = page_of_names(raw, path)
    return raw[: at + 10] + bytes([raw[at + 10] ^ 3]) + raw[at + 11 :]


@pytest.mark.parametrize("damage", [damage_free_list, damage_flags])
def test_damaged_pages_are_told_of_by_every_verb_and_have_a_way_out(
    folder: Path,
    damage: Callable[[bytes, Path], bytes],
    capsys: pytest.CaptureFixture[str],
) -> None:
    expected = {name: value for name, value in VALUES.items() if name != "n/00"}
    with castore.open(folder) as store:
        store.backup(folder.parent / "backup")
    data = folder / "index/data.mdb"
    data.write_bytes(damage(data.read_bytes(), folder.parent / "copy"))
    assert main(["-r", str(folder), "check"]) == 13
    assert "castore index rebuild" in capsys.readouterr().err
    assert main(["-r", str(folder), "doctor"]) == 1
    assert "castore index rebuild" in capsys.readouterr().out
    assert main(["-r", str(folder), "index", "rebuild"]) == 0
    with castore.open(folder) as store:
        assert read(store) == expected
        store.puts("more", bytes(20_000))
        store.gc()
    assert main(["-r", str(folder), "check", "--read-data"]) == 0
    assert main(["-r", str(folder), "doctor"]) == 0
    capsys.readouterr()
    data.write_bytes(damage(data.read_bytes(), folder.parent / "copy"))
    assert main(["-r", str(folder), "restore", str(folder.parent / "backup")]) == 0


def test_what_a_lost_page_did_not_hold_is_saved(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And which names it held is said, where there is no journal. What is left of them is kept."""
    shutil.rmtree(folder / "journal")
    data = folder / "index/data.mdb"
    raw = data.read_bytes()
    at = page_of_names(raw, folder.parent / "copy")
    data.write_bytes(raw[:at] + b"\xff" * PAGE + raw[at + PAGE :])
    assert main(["-r", str(folder), "index", "rebuild"]) == 14
    said = capsys.readouterr().err
    assert "names from '" in said
    assert "castore restore" in said
    with castore.open(folder) as store:
        found = read(store)
        assert found.items() <= VALUES.items()
        assert len(VALUES) - 50 < len(found) < len(VALUES) - 1
        with pytest.raises(UnclaimedData, match="chunks that no name leads to"):
            store.gc()
        assert "journal" in [p.kind for p in store.check(True).problems]
        lost = len(VALUES) - 1 - len(found)
        assert store.gc(accept_unclaimed=True).chunks_removed >= lost
        assert store.check(True).clean


def test_what_a_lost_page_held_comes_from_the_journal(folder: Path) -> None:
    data = folder / "index/data.mdb"
    raw = data.read_bytes()
    at = page_of_names(raw, folder.parent / "copy")
    data.write_bytes(raw[:at] + b"\xff" * PAGE + raw[at + PAGE :])
    assert main(["-r", str(folder), "index", "rebuild"]) == 0
    with castore.open(folder) as store:
        assert read(store) == {name: value for name, value in VALUES.items() if name != "n/00"}
        store.gc()
        assert store.check(True).clean
        assert len(read(store)) == len(VALUES) - 1


@pytest.mark.parametrize("keep", [2, 3, 5, 20])
def test_an_index_that_was_cut_short(folder: Path, keep: int) -> None:
    data = folder / "index/data.mdb"
    whole = data.read_bytes()
    data.write_bytes(whole[: keep * PAGE])
    with pytest.raises(IndexCorrupt, match="index rebuild"):
        castore.open(folder)
    assert main(["-r", str(folder), "check"]) == 13
    assert main(["-r", str(folder), "get", "inline"]) == 13
    data.write_bytes(whole)
    with castore.open(folder) as store:
        assert store.check(True).exit_code <= 1


@pytest.mark.parametrize("keep", [2, 3, 5, 20])
def test_an_index_of_which_no_table_is_left_comes_from_the_journal(
    folder: Path, keep: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """As one that is gone does: what is left of its pages is in nobody's way."""
    data = folder / "index/data.mdb"
    raw = data.read_bytes()
    while any(salvage(data, raw[: keep * PAGE])[0].values()):
        keep -= 1  # where a table begins is another page each time
    journal = folder / "journal"
    journal.rename(folder / "away")
    assert main(["-r", str(folder), "index", "rebuild"]) == 13  # nothing knows the names
    assert "castore restore" in capsys.readouterr().err
    (folder / "away").rename(journal)
    assert main(["-r", str(folder), "index", "rebuild"]) == 0
    with castore.open(folder) as store:
        assert read(store) == {name: value for name, value in VALUES.items() if name != "n/00"}
        assert store.check(True).clean


def test_the_lock_file_has_its_room_before_lmdb_maps_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = folder / "index/lock.mdb"
    lock.unlink()
    with monkeypatch.context() as patched:

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        patched.setattr(os, "posix_fallocate", full)
        with pytest.raises(StoreFull, match="no space left"):
            castore.open(folder)
    with castore.open(folder) as store:
        assert lock.stat().st_blocks * 512 >= LOCK_FILE_BYTES
        assert store.gets("inline") == VALUES["inline"]


def test_no_writable_folder_for_temporary_files(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "nowhere"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    assert castore.check_store(folder).exit_code <= 1
    castore.rebuild_index(folder)
    with castore.open(folder) as store:
        store.backup(tmp_path / "backup")


def test_a_commit_between_two_looks_is_no_damage(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it needs of the file is then of after the commit, and the length of before."""
    real, looks = IndexPages.__init__, 0

    def init(self: IndexPages, fd: int, path: str) -> None:
        nonlocal looks
        real(self, fd, path)
        looks += 1
        if looks == 1:
            self.size = 8192

    monkeypatch.setattr(IndexPages, "__init__", init)
    check_length(str(folder / "index"))
    assert looks > 2
