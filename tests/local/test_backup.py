"""Backups of the index, restoring them, and an index made anew."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import oracle
import pytest
from stores import change_rows, contents, failures, fill, packs, read, rows, small

import castore
from castore.cli import main
from castore.cli.output import human_size
from castore.errors import (
    FormatError,
    IndexCorrupt,
    IndexIntact,
    NotAStore,
    StoreFull,
    StoreIOError,
    StoreLocked,
    StoreNotFound,
    UnclaimedData,
    UnsupportedFormat,
)
from castore.format.backup import BackupTrailer, decode_backup_trailer, encode_backup_trailer
from castore.local import backup as backups
from castore.local import index_place
from castore.local.journal.log import UNCLAIMED, Journal

pytestmark = pytest.mark.apart  # LMDB may die of what these do to its pages

VALUES = contents()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A store's, which nobody has open."""
    with small(tmp_path / "store") as store:
        fill(store, VALUES)
    return tmp_path / "store"


def back_up(folder: Path) -> Path:
    path = folder.parent / "backup"
    with castore.open(folder) as store:
        store.backup(path)
    return path


# ---- taking one ---------------------------------------------------------------------------------


def test_progress_of_a_backup(store: castore.Store, tmp_path: Path) -> None:
    class Told:
        size = done = 0

        def set_size(self, size: int) -> None:
            self.size = size

        def relative_update(self, inc: int = 1) -> None:
            assert inc > 0
            self.done += inc

    store.puts("x", b"1")
    told = Told()
    report = store.backup(tmp_path / "backup", progress=told)
    assert told.done == told.size
    assert told.size // 3 < report.bytes < told.size // 3 + 10_000  # behind it are config, trailer


def test_a_backup_takes_the_place_of_no_device(store: castore.Store, tmp_path: Path) -> None:
    """As root, of /dev/null for all programs."""
    os.mkfifo(tmp_path / "pipe")
    os.symlink(tmp_path / "pipe", tmp_path / "link")
    for path in (tmp_path / "pipe", tmp_path / "link"):
        with pytest.raises(FileExistsError, match="a device or pipe"):
            store.backup(path)
    assert (tmp_path / "pipe").is_fifo()
    assert sorted(os.listdir(tmp_path)) == ["link", "pipe", "store"]


def test_a_backup_holds_every_row(folder: Path, tmp_path: Path) -> None:
    before = rows(folder)
    with castore.open(folder, read_only=True) as store:
        report = store.backup(tmp_path / "backup")
    assert report.names == len(VALUES)
    assert report.bytes == (tmp_path / "backup").stat().st_size
    assert (tmp_path / "backup").stat().st_mode & 0o777 == 0o600
    shutil.rmtree(folder / "index")
    assert castore.restore(tmp_path / "backup", folder).lost == []
    assert rows(folder) == before
    with castore.open(folder) as store:
        assert read(store) == VALUES
        assert store.check(True).clean
    assert sorted(os.listdir(tmp_path)) == ["backup", "store"]


def test_a_backup_is_consistent_while_others_write(folder: Path, tmp_path: Path) -> None:
    """Of two names that are always put together, it has both, in the same version."""
    stop = threading.Event()

    def keep_putting() -> None:
        with castore.open(folder) as store:
            turn = 0
            while not stop.is_set():
                turn += 1
                with store.transaction() as transaction:
                    for name in ("left", "right"):
                        transaction.puts(name, b"%d" % turn + bytes(5000))

    thread = threading.Thread(target=keep_putting)
    thread.start()
    try:
        with castore.open(folder) as store:
            while not store.exists("left"):
                pass
            for i in range(3):
                store.backup(tmp_path / f"backup{i}")
    finally:
        stop.set()
        thread.join()
    for i in range(3):
        castore.restore(tmp_path / f"backup{i}", folder, force=True)
        with castore.open(folder) as store:
            assert store.gets("left") == store.gets("right")
            assert store.check(True).exit_code <= 1  # the versions since are orphans now


def test_a_backup_replaces_another_in_one_step(folder: Path, tmp_path: Path) -> None:
    path = back_up(folder)
    first = path.read_bytes()
    data = folder / "index" / "data.mdb"
    whole = data.read_bytes()
    with castore.open(folder) as store:
        data.write_bytes(whole[:8192] + bytes(len(whole) - 8192))
        with pytest.raises(IndexCorrupt, match="restore"):
            store.backup(path)
        data.write_bytes(whole)
    assert path.read_bytes() == first
    assert sorted(os.listdir(tmp_path)) == ["backup", "store"]


@pytest.mark.damages_store("rows, packs or pages are damaged or gone")
def test_a_backup_of_damaged_rows_is_refused(folder: Path, tmp_path: Path) -> None:
    raw = rows(folder)[b"names"][b"n/01"]
    change_rows(folder, b"names", {b"n/01": raw[:-1] + bytes([raw[-1] ^ 1])})
    with (
        castore.open(folder) as store,
        pytest.raises(IndexCorrupt, match=r"the index .* has 1 damaged row,.* castore check"),
    ):
        store.backup(tmp_path / "backup")
    assert os.listdir(tmp_path) == ["store"]


def test_where_a_backup_can_not_go(folder: Path, tmp_path: Path) -> None:
    with castore.open(folder) as store:
        with pytest.raises(NotAStore, match="inside the open store"):
            store.backup(folder / "backup")
        with pytest.raises(IsADirectoryError):
            store.backup(tmp_path)
        with pytest.raises(FileNotFoundError):
            store.backup(tmp_path / "none" / "backup")
    assert os.listdir(tmp_path) == ["store"]


@pytest.mark.parametrize(
    ("call", "code"),
    failures(
        ["mkdir", "open", "fsync", "rename", "pwritev"], [errno.ENOSPC, errno.EIO, errno.EMFILE]
    ),
)
def test_a_backup_that_fails(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    """Whatever fails, the file is as it was, nothing is left over, and the next one works."""
    path = back_up(folder)
    before = path.read_bytes()
    whole = getattr(os, call)

    def fails(*args: Any, **options: Any) -> Any:
        if call != "open" or (len(args) > 1 and args[1] & os.O_CREAT):
            raise OSError(code, os.strerror(code))
        return whole(*args, **options)

    with castore.open(folder) as store:
        store.puts("more", b"1")  # the journal has what is not durable yet
        with monkeypatch.context() as patched:
            patched.setattr(os, call, fails)
            expected = StoreFull if code == errno.ENOSPC else StoreIOError
            with pytest.raises(expected):
                store.backup(path)
        assert path.read_bytes() == before
        assert sorted(os.listdir(tmp_path)) == ["backup", "store"]
        store.backup(path)


# ---- restoring ----------------------------------------------------------------------------------


def test_an_index_that_is_whole_is_not_replaced(folder: Path) -> None:
    path = back_up(folder)
    before = rows(folder)
    with pytest.raises(IndexIntact, match=f"whole, with {len(VALUES)} names"):
        castore.restore(path, folder)
    assert rows(folder) == before
    report = castore.restore(path, folder, force=True)
    assert Path(report.kept, "data.mdb").exists()


@pytest.mark.parametrize("damage", ["no folder", "no file", "zeros", "cut short", "a row", "pages"])
def test_a_damaged_index_is_replaced_and_kept(folder: Path, damage: str) -> None:
    path = back_up(folder)
    data = folder / "index" / "data.mdb"
    whole = data.read_bytes()
    if damage == "no folder":
        shutil.rmtree(folder / "index")
    elif damage == "no file":
        data.unlink()
    elif damage == "a row":
        raw = rows(folder)[b"names"][b"n/01"]
        change_rows(folder, b"names", {b"n/01": raw[:-1] + bytes([raw[-1] ^ 1])})
    elif damage == "cut short":
        data.write_bytes(whole[: len(whole) // 3])
    else:
        keep = 0 if damage == "zeros" else 8192
        data.write_bytes(whole[:keep] + b"\xff" * (len(whole) - keep))
    report = castore.restore(path, folder)
    assert bool(report.kept) == (damage != "no folder")
    with castore.open(folder) as store:
        assert read(store) == VALUES
        assert store.check(True).clean


@pytest.mark.damages_store("rows, packs or pages are damaged or gone")
def test_names_whose_packs_are_gone_are_told_of(folder: Path) -> None:
    with castore.open(folder) as store:
        store.puts("late", random.Random(7).randbytes(9000))
    [old, new] = sorted(packs(folder), key=lambda pack: pack.stat().st_mtime_ns)
    path = back_up(folder)
    shutil.rmtree(folder / "index")
    new.unlink()
    report = castore.restore(path, folder)
    assert report.lost == ["late"]
    with castore.open(folder) as store:
        assert read(store) == VALUES
    assert old.exists()


def test_chunks_that_were_stored_since_are_known_again(folder: Path, tmp_path: Path) -> None:
    """Without a journal the names since the backup are lost, but what they were of needs not be
    stored again; and nothing collects it before the loss is accepted."""
    path = back_up(folder)
    since = random.Random(9).randbytes(90_000)
    with castore.open(folder) as store:
        store.puts("since", since)
        store.delete("n/00")
    shutil.rmtree(folder / "index")
    shutil.rmtree(folder / "journal")
    report = castore.restore(path, folder)
    assert report.chunk_rows_added > 5
    assert report.unclaimed_chunks == report.chunk_rows_added
    stored = sum(pack.stat().st_size for pack in packs(folder))
    with castore.open(folder) as store:
        assert read(store) == VALUES
        with pytest.raises(
            UnclaimedData, match=rf"{report.unclaimed_chunks} chunks .* newer backup"
        ):
            store.gc()
        [problem] = store.check(True).problems
        assert "newer backup" in problem.what
        store.puts("again", since)
        assert sum(pack.stat().st_size for pack in packs(folder)) == stored
        store.delete("again")
        assert store.gc(accept_unclaimed=True).chunks_removed >= report.unclaimed_chunks
        assert store.gc().found_nothing
        assert store.check(True).clean


def test_names_since_a_backup_come_from_the_journal(folder: Path) -> None:
    path = back_up(folder)
    since = random.Random(9).randbytes(90_000)
    with castore.open(folder) as store:
        store.puts("since", since)
        store.delete("n/00")
        store.rename("n/01", "moved")
    shutil.rmtree(folder / "index")
    report = castore.restore(path, folder)
    assert (report.lost, report.lost_names, report.unclaimed_chunks) == ([], [], 0)
    with castore.open(folder) as store:
        expected = {**VALUES, "since": since, "moved": VALUES["n/01"]}
        del expected["n/00"], expected["n/01"]
        assert read(store) == expected
        store.gc()
        assert read(store) == expected
        assert store.check(True).clean


def test_who_goes_back_to_a_backup_keeps_what_came_since(folder: Path) -> None:
    """Until the loss is accepted: by --force names are given up, not yet their bytes."""
    path = back_up(folder)
    with castore.open(folder) as store:
        store.puts("since", random.Random(9).randbytes(90_000))
    report = castore.restore(path, folder, force=True)
    assert report.unclaimed_bytes > 90_000
    with castore.open(folder) as store:
        assert read(store) == VALUES
        with pytest.raises(UnclaimedData):
            store.gc(dry_run=True)
    shutil.rmtree(folder / "index")
    castore.rebuild_index(folder)  # the journal is that of the names gone back to
    with castore.open(folder) as store:
        assert read(store) == VALUES


@pytest.mark.parametrize("kept", ["the index", "a backup"])
def test_who_goes_back_is_not_taken_forward_again_when_the_index_is_lost(
    folder: Path, tmp_path: Path, kept: str
) -> None:
    """Neither by the index that was kept then, nor by a backup of it, whose last transactions are
    given up: what was put since is newer, whatever numbers they had."""
    path = back_up(folder)
    with castore.open(folder) as store:
        for i in range(5):
            store.puts(f"given up {i}", b"1")
        store.puts("n/00", b"given up")
        later = tmp_path / "later"
        store.backup(later)
    castore.restore(path, folder, force=True)
    with castore.open(folder) as store:
        store.puts("since", b"2")
    shutil.rmtree(folder / "index")
    if kept == "the index":
        report = castore.rebuild_index(folder)
    else:
        report = castore.restore(later, folder)
    assert (report.lost, report.lost_names, report.unclaimed_chunks) == ([], [], 0)
    with castore.open(folder) as store:
        assert read(store) == {**VALUES, "since": b"2"}
        store.gc()
        assert store.check(True).clean


def lose_index(folder: Path) -> None:
    """And those that were kept aside, which a rebuild would go on from."""
    for path in folder.glob("index*"):
        shutil.rmtree(path)


@pytest.mark.parametrize("put", [False, True])
@pytest.mark.parametrize("lost", ["the index", "its row of them", "the index, twice"])
def test_what_who_went_back_left_is_kept_though_the_index_is_lost(
    folder: Path, lost: str, put: bool
) -> None:
    """The journal has all names, and says that these are not all that there were."""
    path = back_up(folder)
    since = random.Random(9).randbytes(90_000)
    with castore.open(folder) as store:
        store.puts("since", since)
    unclaimed = castore.restore(path, folder, force=True).unclaimed_chunks
    later = {"later": b"1"} if put else {}
    with castore.open(folder) as store:
        store.puts_many(later)
    for _ in range(2 if "twice" in lost else 1):
        if lost == "its row of them":
            change_rows(folder, b"meta", {UNCLAIMED: None})
        else:
            lose_index(folder)
        report = castore.rebuild_index(folder)
        assert report.unclaimed_chunks == unclaimed
    before = packs(folder)
    with castore.open(folder) as store:
        assert read(store) == {**VALUES, **later}
        with pytest.raises(UnclaimedData, match=f"{unclaimed} chunks"):
            store.gc()
        [problem] = store.check(True).problems
        assert "newer backup" in problem.what
        assert packs(folder) == before
        store.gc(accept_unclaimed=True)
        assert store.check(True).clean
        store.puts("garbage", random.Random(10).randbytes(90_000))
        store.delete("garbage")
    lose_index(folder)  # given up once is given up for good
    assert castore.rebuild_index(folder).unclaimed_chunks == 0
    with castore.open(folder) as store:
        store.gc()
        assert read(store) == {**VALUES, **later}


@pytest.mark.parametrize("lost", ["nothing", "the index", "its row of them"])
def test_what_is_claimed_again_is_no_longer_unclaimed(folder: Path, lost: str) -> None:
    """Nor after the index is lost: by a put of the same bytes all that was unclaimed has names."""
    path = back_up(folder)
    since = random.Random(9).randbytes(90_000)
    with castore.open(folder) as store:
        store.puts("since", since)
    assert castore.restore(path, folder, force=True).unclaimed_chunks
    with castore.open(folder) as store:
        store.puts("again", since)
    if lost == "the index":
        lose_index(folder)
    elif lost == "its row of them":
        change_rows(folder, b"meta", {UNCLAIMED: None})
    assert castore.rebuild_index(folder).unclaimed_chunks == 0
    with castore.open(folder) as store:
        store.gc()
        store.delete("again")
    lose_index(folder)
    assert castore.rebuild_index(folder).unclaimed_chunks == 0


def test_a_backup_of_who_went_back_keeps_what_came_since(folder: Path, tmp_path: Path) -> None:
    """Also though the journal has all names of it."""
    path = back_up(folder)
    with castore.open(folder) as store:
        store.puts("since", random.Random(9).randbytes(90_000))
    unclaimed = castore.restore(path, folder, force=True).unclaimed_chunks
    with castore.open(folder) as store:
        second = tmp_path / "second"
        store.backup(second)
    shutil.rmtree(folder / "index")
    report = castore.restore(second, folder)
    assert (report.lost, report.lost_names) == ([], [])
    assert report.unclaimed_chunks == unclaimed > 5
    with castore.open(folder) as store:
        assert read(store) == VALUES
        with pytest.raises(UnclaimedData, match=f"{unclaimed} chunks"):
            store.gc()
        [problem] = store.check(True).problems
        assert "newer backup" in problem.what
        store.gc(accept_unclaimed=True)
        assert store.check(True).clean
        assert read(store) == VALUES


def test_a_lost_config_comes_back_too(folder: Path) -> None:
    path = back_up(folder)
    config = (folder / "castore.json").read_bytes()
    for damaged in (None, b"{}", config.replace(b'"seed": "', b'"seed": "1')[:-1]):
        shutil.rmtree(folder / "index")
        (folder / "castore.json").unlink()
        if damaged is not None:
            (folder / "castore.json").write_bytes(damaged)
        castore.restore(path, folder)
        assert (folder / "castore.json").read_bytes() == config
        with castore.open(folder) as store:
            assert read(store) == VALUES


def test_an_index_of_another_store_is_not_taken_for_the_old_one(
    folder: Path, tmp_path: Path
) -> None:
    with small(tmp_path / "other") as store:
        store.puts("theirs", random.Random(1).randbytes(30_000))
    mine = tmp_path / "mine"
    (folder / "index").rename(mine)
    shutil.copytree(tmp_path / "other" / "index", folder / "index")
    before = rows(folder)
    with pytest.raises(IndexCorrupt, match="the names are not those of the store"):
        castore.rebuild_index(folder)
    assert rows(folder) == before
    shutil.rmtree(folder / "index")
    mine.rename(folder / "index")
    with castore.open(folder) as store:
        assert read(store) == VALUES


def test_a_folder_that_is_not_fit_for_a_restore(folder: Path, tmp_path: Path) -> None:
    path = back_up(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotAStore, match="has no packs: put the store's packs/ into it first"):
        castore.restore(path, tmp_path / "empty")
    shutil.copytree(folder / "packs", tmp_path / "strange" / "packs")
    (tmp_path / "strange" / "photo.jpg").write_bytes(b"precious")
    with pytest.raises(NotAStore, match="is no store, and not empty"):
        castore.restore(path, tmp_path / "strange")
    assert sorted(os.listdir(tmp_path / "strange")) == ["packs", "photo.jpg"]
    shutil.copytree(folder / "packs", tmp_path / "empty" / "packs")
    castore.restore(path, tmp_path / "empty")
    with castore.open(tmp_path / "empty") as store:
        assert read(store) == VALUES


@pytest.mark.parametrize("damage", [b"", b"{}", b"\xff\xd8" * 2000])
def test_a_damaged_config_is_told_in_a_few_words_with_the_way_out(
    folder: Path, damage: bytes
) -> None:
    (folder / "castore.json").write_bytes(damage)
    with pytest.raises(FormatError, match="castore index rebuild makes it again") as caught:
        castore.open(folder)
    assert len(str(caught.value)) < len(str(folder)) + 300  # and not with all that is in it
    castore.rebuild_index(folder)
    with castore.open(folder) as store:
        assert read(store) == VALUES


@pytest.mark.damages_store("a later castore's config")
@pytest.mark.parametrize("what", ["restore", "rebuild", "repair"])
def test_the_config_of_a_later_castore_is_left(folder: Path, what: str) -> None:
    """The journal and the index may say what it was before."""
    path = back_up(folder)
    config = folder / "castore.json"
    config.write_bytes(config.read_bytes().replace(b'"version": 1', b'"version": 99'))
    before = {each: each.read_bytes() for each in folder.rglob("*") if each.is_file()}
    mend = {
        "restore": partial(castore.restore, path, folder, force=True),
        "rebuild": partial(castore.rebuild_index, folder),
        "repair": partial(castore.check_store, folder, repair=True),
    }[what]
    with pytest.raises(UnsupportedFormat, match="format version 99"):
        mend()
    after = {each: each.read_bytes() for each in folder.rglob("*") if each.is_file()}
    assert after == before


def test_what_is_no_backup_of_this_store(folder: Path, tmp_path: Path) -> None:
    path = back_up(folder)
    before = rows(folder)
    whole = path.read_bytes()
    with small(tmp_path / "other") as store:
        store.puts("a", b"a")
    with pytest.raises(NotAStore, match="another store"):
        castore.restore(path, tmp_path / "other", force=True)
    with pytest.raises(castore.errors.StoreNotFound, match="no folder"):
        castore.restore(path, tmp_path / "none")
    choose = random.Random(3)
    damaged = [b"", b"x", whole[:-1], whole[:-48], whole[4096:], whole + b"\0"]
    for _ in range(30):
        flipped = bytearray(whole)
        flipped[choose.randrange(len(whole))] ^= 1 << choose.randrange(8)
        damaged.append(bytes(flipped))
    for raw in damaged:
        path.write_bytes(raw)
        with pytest.raises(FormatError, match="backup"):
            castore.restore(path, folder, force=True)
    assert rows(folder) == before
    assert not list(folder.glob("index.*"))


def test_a_store_in_use_is_not_restored(folder: Path) -> None:
    path = back_up(folder)
    with castore.open(folder) as store:
        with pytest.raises(StoreLocked, match="in use"):
            castore.restore(path, folder, force=True)
        with pytest.raises(StoreLocked, match="in use"):
            castore.rebuild_index(folder)
        with pytest.raises(StoreLocked, match="open"):
            store.rebuild_index()
        assert read(store) == VALUES


# ---- an index made anew -------------------------------------------------------------------------


def test_a_rebuilt_index_is_what_it_was(folder: Path) -> None:
    before = rows(folder)
    report = castore.rebuild_index(folder)
    assert (report.names, report.lost, report.chunk_rows_added) == (len(VALUES), [], 0)
    assert rows(folder) == before
    assert Path(report.kept).is_dir()


@pytest.mark.parametrize("footers", [True, False])
def test_rows_come_back_from_packs(folder: Path, footers: bool) -> None:
    before = rows(folder)
    chunks, [pack] = before[b"chunks"], before[b"packs"]
    change_rows(folder, b"chunks", dict.fromkeys(chunks))
    change_rows(folder, b"packs", {pack: None})
    change_rows(folder, b"meta", {b"totals": None})
    [path] = packs(folder)
    if not footers:
        size = int.from_bytes(before[b"packs"][pack][8:16], "little")
        os.truncate(path, size)
    report = castore.rebuild_index(folder)
    assert report.chunk_rows_added == len(chunks)
    after = rows(folder)
    assert {**after, b"packs": {}} == {**before, b"packs": {}}
    assert after[b"packs"][pack][8:16] == before[b"packs"][pack][8:16]  # its time is the file's now


def test_rows_that_lead_astray_are_replaced(folder: Path) -> None:
    before = rows(folder)
    chunks = before[b"chunks"]
    first, second, third, *_ = chunks
    wrong = {first: chunks[second], second: chunks[second][:20] + bytes(16), third: b"short"}
    change_rows(folder, b"chunks", {**wrong, b"no id": chunks[first]})
    report = castore.rebuild_index(folder)
    assert report.chunk_rows_dropped == 4
    assert rows(folder) == before


@pytest.mark.plain("what is a delta of it gets none either")
@pytest.mark.damages_store("rows, packs or pages are damaged or gone")
def test_a_frame_that_is_not_whole_gets_no_row(folder: Path) -> None:
    before = rows(folder)
    chunk_id, row = next(iter(before[b"chunks"].items()))
    offset, stored = (int.from_bytes(row[i : i + 4], "little") for i in (4, 8))
    change_rows(folder, b"chunks", {chunk_id: None})
    [path] = packs(folder)
    raw = bytearray(path.read_bytes())
    raw[offset + stored - 1] ^= 1
    path.write_bytes(raw)
    castore.rebuild_index(folder)
    assert rows(folder)[b"chunks"].keys() == before[b"chunks"].keys() - {chunk_id}


@pytest.mark.damages_store("rows, packs or pages are damaged or gone")
def test_an_index_whose_names_can_not_be_read(folder: Path) -> None:
    """Nor is there a journal that has them."""
    shutil.rmtree(folder / "journal")
    data = folder / "index" / "data.mdb"
    whole = data.read_bytes()
    data.write_bytes(whole[:8192] + b"\xff" * (len(whole) - 8192))
    damaged = data.read_bytes()
    with pytest.raises(IndexCorrupt, match="restore"):
        castore.rebuild_index(folder)
    assert data.read_bytes() == damaged
    assert not list(folder.glob("index.*"))


@pytest.mark.parametrize(
    ("call", "code"),
    failures(["mkdir", "open", "fsync", "rename"], [errno.ENOSPC, errno.EIO, errno.EMFILE]),
)
def test_a_restore_that_fails(
    folder: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    path = back_up(folder)
    shutil.rmtree(folder / "index")
    whole = getattr(os, call)

    def fails(*args: Any, **options: Any) -> Any:
        if call != "open" or str(args[0]).endswith(".mdb"):
            raise OSError(code, os.strerror(code))
        return whole(*args, **options)

    with monkeypatch.context() as patched:
        patched.setattr(os, call, fails)
        with pytest.raises(StoreFull if code == errno.ENOSPC else StoreIOError):
            castore.restore(path, folder)
    castore.restore(path, folder)
    with castore.open(folder) as store:
        assert read(store) == VALUES


@pytest.mark.parametrize(
    ("call", "code"),
    failures(["mkdir", "open", "fsync", "rename"], [errno.ENOSPC, errno.EIO, errno.EMFILE]),
)
def test_a_rebuild_that_fails(
    folder: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    before = rows(folder)
    whole = getattr(os, call)

    def fails(*args: Any, **options: Any) -> Any:
        if call != "open" or index_place.DRAFT in str(args[0]):
            raise OSError(code, os.strerror(code))
        return whole(*args, **options)

    with monkeypatch.context() as patched:
        patched.setattr(os, call, fails)
        with pytest.raises(StoreFull if code == errno.ENOSPC else StoreIOError):
            castore.rebuild_index(folder)
    assert rows(folder) == before
    castore.rebuild_index(folder)
    assert rows(folder) == before


@pytest.mark.parametrize("what", ["restore", "rebuild"])
def test_an_index_in_its_place_is_said_to_be_though_its_journal_finds_no_room(
    folder: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """To repeat it, as one does that failed for want of room, would be refused."""
    path = back_up(folder)
    shutil.rmtree(folder / "index")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(Journal, "_write_snapshot", full)
        if what == "restore":
            report = castore.restore(path, folder)
        else:
            report = castore.rebuild_index(folder)
    assert (report.names, report.lost, report.lost_names) == (len(VALUES), [], [])
    with castore.open(folder) as store:
        assert read(store) == VALUES
        store.gc()
        assert store.check(True).clean
    shutil.rmtree(folder / "index")
    castore.rebuild_index(folder)
    with castore.open(folder) as store:
        assert read(store) == VALUES


@pytest.mark.parametrize("what", ["restore", "rebuild", "compact"])
def test_an_index_that_can_not_take_its_place_leaves_the_old_one_in_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    path, before = back_up(folder), rows(folder)
    begin: Callable[[], object] = {
        "restore": partial(castore.restore, path, folder, force=True),
        "rebuild": partial(castore.rebuild_index, folder),
        "compact": partial(castore.compact_index, folder),
    }[what]
    rename = os.rename

    def fails(source: Any, target: Any, **options: Any) -> None:
        if os.path.basename(source).startswith(index_place.DRAFT):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        rename(source, target, **options)

    with monkeypatch.context() as patched:
        patched.setattr(os, "rename", fails)
        with pytest.raises(OSError, match=r"[Nn]o space left"):
            begin()
    assert sorted(folder.glob("index*")) == [folder / "index"]
    assert rows(folder) == before


def killed_in(folder: Path, call: str, nth: int, program: str) -> None:
    """Run a program that dies at the nth call of a function of os."""
    dying = f"""
import os, signal, sys, castore
left = [{nth}]
whole = os.{call}
def dies(*args, **options):
    left[0] -= 1
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(*args, **options)
os.{call} = dies
{program}
"""
    done = subprocess.run(
        [sys.executable, "-c", dying, str(folder)], env=oracle.environment(), check=False
    )
    assert done.returncode in (0, -9)


@pytest.mark.parametrize(
    ("what", "call", "nth"),
    [
        ("restore", "rename", 1),
        ("rebuild", "rename", 2),
        ("restore", "fsync", 1),
        pytest.param("restore", "rename", 2, marks=pytest.mark.long),
        pytest.param("rebuild", "rename", 1, marks=pytest.mark.long),
        pytest.param("rebuild", "fsync", 1, marks=pytest.mark.long),
    ],
)
def test_killed_on_the_way(folder: Path, what: str, call: str, nth: int) -> None:
    """To repeat it is all there is to do."""
    path = back_up(folder)
    again: Callable[[], object]
    if what == "restore":
        program = f"castore.restore({str(path)!r}, sys.argv[1], force=True)"

        def again() -> object:
            return castore.restore(path, folder, force=True)
    else:
        program = "castore.rebuild_index(sys.argv[1])"

        def again() -> object:
            return castore.rebuild_index(folder)

    before = rows(folder)
    killed_in(folder, call, nth, program)
    again()
    assert rows(folder) == before
    assert not list(folder.glob(index_place.DRAFT + "*"))


# ---- what is left behind ------------------------------------------------------------------------


def test_the_drafts_of_backups_that_were_killed(folder: Path, tmp_path: Path) -> None:
    """They have a copy of all names: the next backup beside them takes them when they are old."""
    place = tmp_path / "place"
    place.mkdir()
    for call in ("fsync", "rename"):
        program = f"castore.open(sys.argv[1]).backup({str(place / 'backup')!r})"
        killed_in(folder, call, 1, program)
    drafts = list(place.glob(".castore-*"))
    assert len(drafts) == 2
    kept = place / f".castore-{'0' * 16}"
    kept.write_bytes(b"of a get")
    (place / f".castore-{'1' * 16}").symlink_to(folder)
    (place / ".castore-mine").mkdir()
    with castore.open(folder) as store:
        store.backup(place / "backup")
        assert all(draft.exists() for draft in drafts)  # they may be written to at this moment
        two_days_ago = time.time() - 2 * 86400
        for path in (*place.glob(".castore-*/*"), *place.glob(".castore-*")):
            os.utime(path, (two_days_ago, two_days_ago), follow_symlinks=False)
        os.utime(next(drafts[0].iterdir()))  # one of them is
        store.backup(place / "backup")
    assert sorted(place.iterdir()) == sorted(
        [drafts[0], kept, place / f".castore-{'1' * 16}", place / ".castore-mine", place / "backup"]
    )
    with castore.open(folder) as store:
        assert read(store) == VALUES


def test_a_backup_into_a_folder_that_can_not_be_listed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = os.scandir

    def refuses(path: Any = ".") -> Any:
        if str(path) == str(tmp_path):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return whole(path)

    monkeypatch.setattr(os, "scandir", refuses)
    assert back_up(folder).stat().st_size


def test_a_collection_takes_indexes_that_were_left(folder: Path) -> None:
    """Of a rebuild that was killed at once, of one that was replaced after a month."""
    killed_in(folder, "rename", 1, "castore.rebuild_index(sys.argv[1])")
    path = back_up(folder)
    castore.restore(path, folder, force=True)
    [kept] = folder.glob(index_place.ASIDE + "*")
    killed_in(folder, "rename", 1, "castore.rebuild_index(sys.argv[1])")
    [draft] = folder.glob(index_place.DRAFT + "*")

    def of(days: float) -> Path:
        then = time.strftime("%Y%m%d-%H%M%S", time.gmtime(time.time() - days * 86400))
        return Path(shutil.copytree(kept, folder / f"{index_place.ASIDE}{then}-0a1b2c"))

    old, young = of(30.1), of(29.9)
    others = [folder / f"{index_place.ASIDE}mine", folder / f"{index_place.DRAFT}file"]
    others[0].mkdir()
    others[1].write_bytes(b"1")
    (folder / f"{index_place.DRAFT}link").symlink_to(kept)
    with castore.open(folder) as store:
        foretold = store.gc(dry_run=True)
        assert old.exists()
        assert draft.exists()
        report = store.gc()
        assert report.leftovers_removed == foretold.leftovers_removed == 2
        assert report.bytes_freed >= foretold.bytes_freed > 2 * 4096
        assert not old.exists()
        assert not draft.exists()
        assert young.exists()
        assert kept.exists()
        assert all(path.exists() for path in others)
        assert store.gc().found_nothing
        assert read(store) == VALUES
        assert store.check(True).clean


# ---- the commands -------------------------------------------------------------------------------


@pytest.mark.damages_store("rows, packs or pages are damaged or gone")
def test_the_commands(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*arguments: object) -> tuple[int, str, str]:
        code = main(["-r", str(folder), *map(str, arguments)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    code, out, _ = run("backup", "--json", tmp_path / "backup")
    assert (code, json.loads(out)["names"]) == (0, len(VALUES))
    code, _, err = run("restore", tmp_path / "backup")
    assert code == 1
    assert "--force" in err
    code, out, _ = run("restore", "--force", tmp_path / "backup")
    assert code == 0
    assert "kept" not in out
    assert "index.before-" in out
    code, out, _ = run("index", "rebuild", "--json")
    assert (code, json.loads(out)["lost"]) == (0, [])
    with castore.open(folder):
        code, _, err = run("index", "rebuild")
    assert code == 11
    assert "in use" in err
    packs(folder)[0].unlink()
    code, _, err = run("restore", "--force", tmp_path / "backup")
    assert code == 14
    assert "n/01 can't be read in full" in err
    assert run("backup")[0] == 2
    assert run("index", "destroy")[0] == 2


def test_blocks_end_where_the_file_does(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    with open(path, "rb") as file:
        assert b"".join(backups._blocks(file.fileno(), 100)) == b"0123456789"


def test_the_bytes_of_a_trailer() -> None:
    trailer = BackupTrailer(8192, 300, 1_600_000_000_000_000_000, 0x0123456789ABCDEF)
    raw = encode_backup_trailer(trailer)
    assert raw.hex() == (
        "00200000000000000000a0d8855734162c01000001000000efcdab8967452301"
        "8bf8e4fe42578d8c636173746261636b"
    )
    assert decode_backup_trailer(raw, 8192 + 300 + len(raw)) == trailer
    for size in (8192, 8192 + 300 + len(raw) + 1):
        with pytest.raises(FormatError):
            decode_backup_trailer(raw, size)


def test_a_compacted_index_has_all_and_is_small(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = folder / "index/data.mdb"
    with castore.open(folder) as store:
        with store.transaction() as transaction:
            for i in range(400):
                transaction.puts(f"small/{i}", b"1" * 3000 + b"%d" % i)
        store.delete_prefix("small/")
        with pytest.raises(StoreLocked):
            castore.compact_index(folder)
    before, size = rows(folder), data.stat().st_size
    assert main(["-r", str(folder), "index", "compact"]) == 0
    assert data.stat().st_size < size / 2
    sizes = f"{human_size(size)} before, {human_size(data.stat().st_size)} now"
    assert capsys.readouterr().out == f"{len(VALUES)} names, {sizes}\n"
    assert rows(folder) == before
    assert not list(folder.glob("index.*"))
    with castore.open(folder) as store:
        assert read(store) == VALUES
        store.puts("more", b"1")


def test_a_compacted_index_is_said_to_be_though_the_old_one_can_not_be_removed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = rows(folder)

    def fails(path: Any, **options: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), path)

    monkeypatch.setattr(os, "unlink", fails)
    assert main(["-r", str(folder), "index", "compact"]) == 0
    monkeypatch.undo()
    [_] = folder.glob("index.before-*")  # which a collection removes in time
    assert rows(folder) == before


def test_an_index_is_compacted_of_a_store_only(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for path in ("nowhere", "folder"):
        with pytest.raises(StoreNotFound, match="there is no store at"):
            castore.compact_index(tmp_path / path)
    (tmp_path / "file").write_text("no store")
    with pytest.raises(NotAStore):
        castore.compact_index(tmp_path / "file")
    assert not os.listdir(tmp_path / "folder")


def test_an_index_behind_a_symbolic_link_is_not_compacted(folder: Path) -> None:
    """It would come to be where the link is, as on a slower disk, and the old one stay."""
    (folder / "index").rename(folder.parent / "elsewhere")
    (folder / "index").symlink_to(folder.parent / "elsewhere")
    with pytest.raises(StoreIOError, match="is a symbolic link"):
        castore.compact_index(folder)
    assert (folder / "index").is_symlink()
    with castore.open(folder) as store:
        assert read(store) == VALUES
        assert store.check(True).clean


@pytest.mark.parametrize("verb", [["check"], ["index", "compact"], ["index", "rebuild"], ["gc"]])
@pytest.mark.parametrize("what", ["nothing", "an empty folder", "a folder", "a file"])
def test_a_verb_finds_no_store_and_leaves_nothing(
    tmp_path: Path, verb: list[str], what: str
) -> None:
    place = tmp_path / "place"
    if what == "a file":
        place.write_bytes(b"x")
    elif what != "nothing":
        place.mkdir()
        if what == "a folder":
            (place / "notes").write_bytes(b"x")
    before = sorted(tmp_path.rglob("*"))
    assert main(["-r", str(place), *verb]) == 10
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("verb", ["backup", "compact"])
def test_a_copy_is_durable_before_it_takes_the_place_of_an_older_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    """Its bytes, and then its name: else a power cut leaves neither."""
    path, backup = tmp_path / "store", tmp_path / "backups" / "names"
    backup.parent.mkdir()
    with castore.open(path) as store:
        store.puts("name", b"1")
        store.backup(backup)
    durable: dict[int, int] = {}  # bytes of each file that was synced, by its inode
    steps: list[str] = []
    fsync, rename = os.fsync, os.rename

    def synced(fd: int) -> None:
        fsync(fd)
        status = os.fstat(fd)
        durable[status.st_ino] = status.st_size
        steps.append(os.readlink(f"/proc/self/fd/{fd}"))

    def renamed(source: str, target: str) -> None:
        copy = os.path.join(source, "data.mdb") if os.path.isdir(source) else source
        if target in (str(backup), str(path / "index")):
            status = os.stat(copy)
            assert durable.get(status.st_ino) == status.st_size > 0
            steps.append("renamed")
        rename(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", synced)
        patched.setattr(os, "rename", renamed)
        if verb == "backup":
            with castore.open(path) as store:
                store.backup(backup)
        else:
            castore.compact_index(path)
    folder = backup.parent if verb == "backup" else path
    assert str(folder) in steps[steps.index("renamed") :]
