"""The journal of names: what it says when the index is lost, and what it must not cost."""

from __future__ import annotations

import errno
import io
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import lmdb
import oracle
import pytest
from stores import change_rows, contents, fill, read, rows, small

import castore
from castore.cli import main
from castore.errors import (
    CommitUnknown,
    ConfigLost,
    FormatError,
    IndexCorrupt,
    StoreFull,
    StoreIOError,
    StoreLocked,
    StoreNotFound,
    UnclaimedData,
    UnsupportedFormat,
)
from castore.format.journal import Kind, decode_block_head, decode_entries
from castore.local import rebuild
from castore.local.folder import alone
from castore.local.journal.files import blocks
from castore.local.journal.log import Journal
from castore.local.journal.scan import read_journal
from castore.system.lmdb_env import Index

VALUES = contents()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with small(tmp_path / "store") as store:
        fill(store, VALUES)
    return tmp_path / "store"


def lose_index(folder: Path) -> None:
    shutil.rmtree(folder / "index")


def rebuilt(folder: Path) -> dict[str, bytes]:
    """What is there after the index was lost and made anew, and all agree that it is whole."""
    lose_index(folder)
    report = castore.rebuild_index(folder)
    assert (report.lost, report.lost_names, report.unclaimed_chunks) == ([], [], 0)
    with castore.open(folder) as store:
        found = read(store)
        assert len(found) == store.stats().objects
        store.gc()
        assert read(store) == found
        assert store.check(True).clean
        assert store.gc().found_nothing
    assert main(["-r", str(folder), "check", "--read-data"]) == 0
    assert read_journal(str(folder)).gaps == []
    return found


def logs(folder: Path) -> list[Path]:
    return sorted((folder / "journal").glob("*.log"))


@pytest.mark.damages_store("a record is of a later version")
@pytest.mark.parametrize("lost", [False, True])
def test_names_of_a_later_castore_are_left_to_that(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: bool
) -> None:
    """What they lead to is not known, and would be dropped."""
    (tmp_path / "files").mkdir()
    (tmp_path / "files/later").write_bytes(VALUES["n/03"][::-1])
    with small(folder) as store, monkeypatch.context() as patched:
        patched.setattr("castore.stream.sourcefile.YOUNG_NS", 0)
        patched.setattr("castore.format.index._RECORD_VERSION_SOURCE", 99)
        store.import_folder(tmp_path / "files", "")
    assert rows(folder)[b"names"][b"later"][0] == 99
    if lost:
        lose_index(folder)
    before = sorted(folder.iterdir())
    index = None if lost else rows(folder)
    with pytest.raises(UnsupportedFormat, match="record has format version 99"):
        castore.rebuild_index(folder)
    assert sorted(folder.iterdir()) == before
    assert lost or rows(folder) == index


# ---- names outlive the index --------------------------------------------------------------------


def test_names_outlive_the_index(folder: Path) -> None:
    assert rebuilt(folder) == VALUES


def test_the_rebuilt_index_is_what_it_was(folder: Path) -> None:
    """Records and segments to the bit: times, modes, etags, sizes."""
    before = rows(folder)
    lose_index(folder)
    castore.rebuild_index(folder)
    after = rows(folder)
    for table in (b"names", b"segments", b"chunks"):
        assert after[table] == before[table]


def test_every_change_of_a_name(folder: Path) -> None:
    with castore.open(folder) as store:
        store.delete("n/00")
        store.rename("n/01", "moved")
        store.copy("n/02", "copied")
        store.puts("n/03", b"over")
        store.puts("d/1", b"1")
        store.puts("d/2", bytes(9000))
        store.delete_prefix("d/")
        with store.transaction() as transaction:
            transaction.puts("t/1", b"1" * 7000)
            transaction.delete("n/04")
        with pytest.raises(castore.errors.NameNotFound):
            store.delete("none")
        expected = read(store)
    assert rebuilt(folder) == expected


def test_frames_that_a_collection_moved(folder: Path) -> None:
    """The journal does not say where frames are."""
    with castore.open(folder) as store:
        for name in list(VALUES)[::2]:
            store.delete(name)
        assert store.gc(repack_below=1.0).bytes_rewritten
        expected = read(store)
    assert rebuilt(folder) == expected


def test_a_large_object_goes_in_by_pieces(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    value = random.Random(5).randbytes(8 << 20)
    with small(folder) as store:
        limits = {"ROWS_MAX": 256, "SEGMENTS_MAX": 2}
        from castore.local import session

        before = {name: getattr(session, name) for name in limits}
        for name, limit in limits.items():
            setattr(session, name, limit)
        try:
            store.put("large", io.BytesIO(value))
        finally:
            for name, limit in before.items():
                setattr(session, name, limit)
    seqs = {block.head.seq for block in blocks(str(logs(folder)[0]))}
    assert len(seqs) > 3
    assert rebuilt(folder) == {"large": value}


def test_many_processes_and_forks(folder: Path) -> None:
    program = """
import os, sys, castore
with castore.open(sys.argv[1]) as store:
    for i in range(20):
        store.puts(f"{sys.argv[2]}/{i}", sys.argv[2].encode() * 3000)
        if i == 10 and os.fork() == 0:
            for j in range(5):
                store.puts(f"{sys.argv[2]}/child/{j}", b"child" * j)
            os._exit(0)
    os.wait()
"""
    running = [
        subprocess.Popen([sys.executable, "-c", program, folder, name], env=oracle.environment())
        for name in ("a", "b", "c")
    ]
    assert [process.wait() for process in running] == [0, 0, 0]
    assert read_journal(str(folder)).gaps == []
    found = rebuilt(folder)
    assert len(found) == len(VALUES) + 3 * 25


def test_threads_beside_a_rotation(folder: Path) -> None:
    with castore.open(folder) as store:
        stop = threading.Event()

        def put(who: int) -> None:
            turn = 0
            while not stop.is_set():
                turn += 1
                store.puts(f"{who}/{turn % 7}", b"%d" % turn * 900)
                if turn % 5 == 0:
                    store.delete(f"{who}/{turn % 7}")

        threads = [threading.Thread(target=put, args=(who,)) for who in range(2)]
        for thread in threads:
            thread.start()
        catalog: Any = store._catalog
        for _ in range(6):
            catalog.journal.rotate(catalog.index)
        stop.set()
        for thread in threads:
            thread.join()
        expected = read(store)
    assert len(read_journal(str(folder)).known) == 1
    assert rebuilt(folder) == expected


# ---- generations --------------------------------------------------------------------------------


def test_a_collection_begins_it_anew_when_it_has_grown(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("castore.local.gc.claim", "castore.local.journal.log"):
        monkeypatch.setattr(f"{module}.LOG_BYTES_MIN", 1000)
    with castore.open(folder) as store:
        store.puts("secret", b"do not keep")
        store.delete("secret")
        store.gc()
        files = sorted(os.listdir(folder / "journal"))
        assert [name[-8:] for name in files] == ["0002.log", "snapshot"]
        assert b"do not keep" not in b"".join(
            (folder / "journal" / name).read_bytes() for name in files
        )
        store.gc()
        assert sorted(os.listdir(folder / "journal")) == files
        assert store.stats().journal_bytes == sum(
            (folder / "journal" / name).stat().st_size for name in files
        )
        store.puts("later", b"1")
    assert rebuilt(folder) == {**VALUES, "later": b"1"}


@pytest.fixture
def low(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logs are small already when puts begin them anew."""
    monkeypatch.setattr("castore.local.journal.log.LOG_BYTES_MAX", 20_000)


def rotations(monkeypatch: pytest.MonkeyPatch, fails: bool = False) -> list[int]:
    """The generations that were begun anew from now on, by length of the log."""
    whole, found = Journal._rotate, list[int]()

    def rotate(self: Journal, index: Index, only: int | None, **options: bool) -> None:
        found.append(logs(Path(self.folder).parent)[-1].stat().st_size)
        if fails:
            raise OSError(errno.ENOSPC, "No space left on device")
        whole(self, index, only, **options)

    monkeypatch.setattr(Journal, "_rotate", rotate)
    return found


def test_a_store_that_is_never_collected(
    folder: Path, low: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One name that is overwritten for ever: the journal stays as small as what it stands for, and
    as much was written before each snapshot as that takes."""
    found = rotations(monkeypatch)
    largest = 0
    with castore.open(folder) as store:
        store.puts("key", random.Random(0).randbytes(3000))
        for turn in range(150):
            store.puts("key", random.Random(turn).randbytes(3000))
            largest = max(largest, store.stats().journal_bytes)
        snapshot = next((folder / "journal").glob("*.snapshot")).stat().st_size
        limit = max(20_000, 4 * snapshot)
        assert 2 <= len(found) <= 150 * 3200 / limit + 1
        assert all(limit < size < limit + 7000 for size in found[1:])
        assert largest < limit + snapshot + 7000
        value = random.Random(149).randbytes(3000)
        assert read(store) == {**VALUES, "key": value}
    assert rebuilt(folder) == {**VALUES, "key": value}


def test_what_a_put_can_not_begin_anew_is_not_tried_at_each(
    folder: Path, low: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It succeeds all the same."""
    with castore.open(folder) as store:
        with monkeypatch.context() as patched:
            found = rotations(patched, fails=True)
            for turn in range(30):
                store.puts("key", random.Random(turn).randbytes(3000))
        assert 2 <= len(found) <= 5
        assert store.check(True).clean
    expected = {**VALUES, "key": random.Random(29).randbytes(3000)}
    assert rebuilt(folder) == expected


def test_a_full_disk_in_the_middle_of_it(
    folder: Path, low: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was written of the snapshot goes, and the older generation stays until there is one."""

    def full(fd: int, block: bytes) -> None:
        os.write(fd, block[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    with castore.open(folder) as store:
        with monkeypatch.context() as patched:
            patched.setattr("castore.local.journal.log.append_all", full)
            for turn in range(9):
                store.puts("key", random.Random(turn).randbytes(3000))
        kinds = [name.partition(".")[2] for name in sorted(os.listdir(folder / "journal"))]
        assert kinds == ["log", "log"]
        assert store.check(True).clean
    expected = {**VALUES, "key": random.Random(8).randbytes(3000)}
    assert rebuilt(folder) == expected


def test_a_put_begins_nothing_anew_over_names_that_the_index_lacks(folder: Path, low: None) -> None:
    shutil.copytree(folder / "index", folder.parent / "old")
    with castore.open(folder) as store:
        store.puts("since", b"1")
    lose_index(folder)
    shutil.copytree(folder.parent / "old", folder / "index")
    with castore.open(folder) as store:
        for turn in range(20):
            store.puts("key", random.Random(turn).randbytes(3000))
        with pytest.raises(UnclaimedData):
            store.gc()
    castore.rebuild_index(folder)
    expected = {**VALUES, "since": b"1", "key": random.Random(19).randbytes(3000)}
    assert rebuilt(folder) == expected


def test_a_process_for_each_put(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the command does: a small store's journal is begun anew when one ends."""
    monkeypatch.setattr("castore.local.journal.log.LOG_BYTES_MIN", 20_000)
    found = rotations(monkeypatch)
    for turn in range(40):
        with castore.open(folder) as store:
            store.puts("key", random.Random(turn).randbytes(3000))
            assert store.stats().journal_bytes < 250_000
    assert 1 <= len(found) <= 6
    with castore.open(folder, read_only=True) as store:
        assert store.check(True).clean
    assert rebuilt(folder) == {**VALUES, "key": random.Random(39).randbytes(3000)}


def test_a_store_without_a_journal_gets_one(folder: Path) -> None:
    """As one of an earlier version: at the end of the next use, or by a collection."""
    shutil.rmtree(folder / "journal")
    change_rows(folder, b"meta", {b"journal": None})
    with castore.open(folder, read_only=True) as store:
        [problem] = store.check(True).problems
        assert "next gc" in problem.what
    assert not (folder / "journal").exists()
    with castore.open(folder) as store:
        store.puts("later", b"1")
    assert read_journal(str(folder)).complete
    shutil.rmtree(folder / "journal")
    with castore.open(folder) as store:
        store.gc()
        assert store.check(True).clean
    assert rebuilt(folder) == {**VALUES, "later": b"1"}


@pytest.mark.parametrize("moment", ["close", "backup"])
def test_what_was_put_is_durable_in_the_log(
    folder: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Not as it is put, but where its process ends, and in time for what a backup has."""
    durable: dict[int, int] = {}  # bytes of each file that was synced, by its inode
    fsync = os.fsync

    def noted(fd: int) -> None:
        fsync(fd)
        durable[os.fstat(fd).st_ino] = os.fstat(fd).st_size

    with castore.open(folder) as store:
        monkeypatch.setattr(os, "fsync", noted)
        store.puts("later", b"1")
        status = logs(folder)[-1].stat()
        assert status.st_ino not in durable
        if moment == "backup":
            store.backup(folder.with_name("backup"))
            assert durable[status.st_ino] == status.st_size
    assert durable[status.st_ino] == logs(folder)[-1].stat().st_size == status.st_size


def test_a_snapshot_has_nothing_that_the_log_may_lose(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of what another process commits while it is written, behind a sync by another thread."""
    program = "import sys, castore\nwith castore.open(sys.argv[1]) as s: s.puts('other', b'o')"
    durable: dict[int, int] = {}  # bytes of each file that was synced, by its inode
    found: list[tuple[int, int]] = []
    fsync, rename, write_snapshot = os.fsync, os.rename, Journal._write_snapshot

    def noted(fd: int) -> None:
        fsync(fd)
        durable[os.fstat(fd).st_ino] = os.fstat(fd).st_size

    def looked_at(source: Any, target: Any) -> None:
        status = logs(folder)[-1].stat()
        found.append((durable[status.st_ino], status.st_size))
        rename(source, target)

    def beside(journal: Journal, *args: Any) -> bool:
        journal.sync()  # as a backup does
        oracle.run_program(program, folder)
        return write_snapshot(journal, *args)

    with castore.open(folder) as store, monkeypatch.context() as patched:
        patched.setattr(os, "fsync", noted)
        patched.setattr(os, "rename", looked_at)
        patched.setattr(Journal, "_write_snapshot", beside)
        catalog = store._catalog
        catalog.journal.rotate(catalog.index)  # type: ignore[union-attr]
    [(synced, size)] = found
    assert synced == size
    assert rebuilt(folder) == {**VALUES, "other": b"o"}


@pytest.mark.parametrize("call", ["open", "fsync", "rename", "unlink"])
@pytest.mark.parametrize("nth", [1, 2, 3])
@pytest.mark.sampled(5)
def test_killed_in_a_rotation(folder: Path, call: str, nth: int) -> None:
    program = f"""
import os, signal, sys, castore
store = castore.open(sys.argv[1])
store.puts("later", b"1")
left = [{nth}]
whole = os.{call}
def dies(*args, **options):
    left[0] -= 1
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(*args, **options)
os.{call} = dies
store._catalog.journal.rotate(store._catalog.index)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder)], env=oracle.environment(), check=False
    )
    assert done.returncode in (0, -signal.SIGKILL)
    with castore.open(folder) as store:
        assert store.check(True).clean
        store.puts("after", b"2")
    assert rebuilt(folder) == {**VALUES, "later": b"1", "after": b"2"}


# ---- what goes wrong ----------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_between_the_journal_and_the_commit(folder: Path, when: str) -> None:
    """What the index never came to know does not count, once somebody commits."""
    program = f"""
import os, signal, sys, castore
from castore.local.journal import log as journal
store = castore.open(sys.argv[1])
whole = journal.Journal.append
def dies(self, index, txn, entries):
    if {when!r} == "after":
        whole(self, index, txn, entries)
    os.kill(os.getpid(), signal.SIGKILL)
journal.Journal.append = dies
store.puts("never", b"1")
"""
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", program, str(folder)], env=oracle.environment(), check=False
        )
        assert done.returncode == -signal.SIGKILL
    with castore.open(folder) as store:
        assert not store.exists("never")
        store.gc()
        assert store.check(True).clean
        store.puts("after", b"2")
    assert rebuilt(folder) == {**VALUES, "after": b"2"}


def test_older_generations_go_once_the_snapshot_is_durable(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its bytes, and then its name: the power may go at any moment."""
    durable: dict[int, int] = {}  # bytes of each file that was synced, by its inode
    steps: list[str] = []
    fsync, rename, unlink = os.fsync, os.rename, os.unlink

    def synced(fd: int) -> None:
        fsync(fd)
        durable[os.fstat(fd).st_ino] = os.fstat(fd).st_size
        if os.path.samestat(os.fstat(fd), os.stat(folder / "journal")):
            steps.append("folder synced")

    def renamed(source: str, target: str) -> None:
        status = os.stat(source)
        assert durable.get(status.st_ino) == status.st_size > 0
        steps.append("renamed")
        rename(source, target)

    def removed(path: str) -> None:
        steps.append("removed")
        unlink(path)

    with castore.open(folder) as store, monkeypatch.context() as patched:
        patched.setattr(os, "fsync", synced)
        patched.setattr(os, "rename", renamed)
        patched.setattr(os, "unlink", removed)
        catalog: Any = store._catalog
        catalog.journal.rotate(catalog.index)
    behind = steps[steps.index("renamed") :]
    assert behind[:3] == ["renamed", "folder synced", "removed"]
    assert "removed" not in steps[: -len(behind)]


def test_a_snapshot_that_somebody_took_leaves_the_older_ones(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They alone have the names then, if no later one has."""
    before = sorted((folder / "journal").iterdir())

    def taken(source: str, target: str) -> None:
        os.unlink(source)
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), source, None, target)

    with castore.open(folder) as store:
        catalog: Any = store._catalog
        with monkeypatch.context() as patched:
            patched.setattr(os, "rename", taken)
            with pytest.raises(StoreNotFound, match="was removed"):
                catalog.journal.rotate(catalog.index)
        assert {*before} < {*(folder / "journal").iterdir()}
    assert rebuilt(folder) == VALUES


def test_a_commit_that_fails_is_undone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller was told that nothing was published: so it stays, whatever happens next."""
    with castore.open(folder) as store:
        with monkeypatch.context() as patched:
            patched.setattr(Index, "begin", failing_commit(StoreFull("no space left")))
            with pytest.raises(StoreFull):
                store.puts("never", b"1")
        assert not store.exists("never")
    assert rebuilt(folder) == VALUES


def test_a_commit_that_may_have_landed_is_not_undone(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has: whoever looked, as the error says, found it, and does so after a rebuild."""
    with castore.open(folder) as store:
        with monkeypatch.context() as patched:
            patched.setattr(Index, "begin", failing_commit(CommitUnknown("?"), landed=True))
            with pytest.raises(CommitUnknown):
                store.puts("landed", b"1")
        assert store.gets("landed") == b"1"
    assert rebuilt(folder) == {**VALUES, "landed": b"1"}


def failing_commit(error: Exception, *, landed: bool = False) -> Any:
    """In place of `Index.begin`: fails where LMDB's commit would, behind everything else, or has
    just been done."""
    whole = Index.begin

    class Transaction:
        def __init__(self, index: Index) -> None:
            self._txn = whole(index)

        def __enter__(self) -> Any:
            return self._txn

        def __exit__(self, *_: object) -> None:
            if landed:
                self._txn.commit()
            else:
                self._txn.abort()
            raise error

    return lambda index: Transaction(index)


@pytest.mark.parametrize("code", [28, 5, 13])
@pytest.mark.parametrize("short", [True, False])
@pytest.mark.parametrize("mended_by", ["collection", "close"])
@pytest.mark.sampled(4)
def test_a_put_does_not_need_the_journal(
    folder: Path, monkeypatch: pytest.MonkeyPatch, code: int, short: bool, mended_by: str
) -> None:
    """A full disk: what the index takes is stored. The gap is known, and mended by a collection, or
    when the store is closed."""
    whole = os.write

    def fails(fd: int, raw: Any) -> int:
        if bytes(raw[:4]) == b"CJNL":
            if short:
                return whole(fd, bytes(raw)[: len(raw) // 2])
            raise OSError(code, os.strerror(code))
        return whole(fd, raw)

    with castore.open(folder) as store:
        with monkeypatch.context() as patched:
            patched.setattr(os, "write", fails)
            store.puts("later", b"1" * 5000)
        store.puts("last", b"2")
        [problem] = store.check(True).problems
        assert (problem.severity, problem.kind) == ("warning", "journal")
        assert "transactions" in problem.what
        if mended_by == "collection":
            store.gc()
            assert store.check(True).clean
    assert rebuilt(folder) == {**VALUES, "later": b"1" * 5000, "last": b"2"}


@pytest.mark.damages_store("its index is gone")
def test_a_torn_tail_and_a_flipped_bit(folder: Path) -> None:
    """Every bit of it, one by one: a name is as it was, or what is missing is said."""
    log = logs(folder)[0]
    whole = log.read_bytes()
    lose_index(folder)
    choose = random.Random(3)
    damaged = [whole[:n] for n in choose.sample(range(len(whole)), 8)]
    for at in choose.sample(range(len(whole)), 25):
        damaged.append(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
    for raw in damaged:
        log.write_bytes(raw)
        reading = read_journal(str(folder))
        names = {e.name for e in reading.changes() if hasattr(e, "record")}
        kept = {name.decode() for name in names}
        assert kept <= VALUES.keys()
        # The end of the last transaction is not known to be the end: that the index says.
        if len(kept) < len(VALUES) and len(raw) == len(whole):
            assert reading.gaps or reading.seq < len(VALUES)


@pytest.mark.parametrize("rotated", [False, True])
def test_a_flipped_bit_of_the_last_number_is_no_news(folder: Path, rotated: bool) -> None:
    """Of the block that says that the last commit was done: nothing is lost by that, and whoever
    puts next does not take it for names that the index lacks."""
    if rotated:
        with castore.open(folder) as store:
            catalog: Any = store._catalog
            catalog.journal.rotate(catalog.index)
            store.puts("since", b"1")
    log = logs(folder)[-1]
    raw = bytearray(log.read_bytes())
    last = list(blocks(str(log)))[-1]
    assert last.head.kind == Kind.DONE
    raw[last.begin + 26] ^= 1  # of its number
    log.write_bytes(raw)
    with castore.open(folder) as store:
        store.puts("after", b"2")
        expected = read(store)
        assert store.check(True).clean
        store.gc()
    assert rebuilt(folder) == expected


def test_a_journal_that_lost_its_end_is_noticed(folder: Path) -> None:
    """As by a power cut: the index has what it lacks."""
    log = logs(folder)[0]
    os.truncate(log, log.stat().st_size - 200)
    with castore.open(folder, read_only=True) as store:
        [problem] = store.check(True).problems
        assert problem.kind == "journal"
    assert main(["-r", str(folder), "check"]) == 1
    with castore.open(folder) as store:
        store.gc()
        assert store.check(True).clean
    assert rebuilt(folder) == VALUES


@pytest.mark.parametrize("used", [False, True])
@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.sampled(3)
def test_an_old_copy_of_the_index_put_back_by_hand(folder: Path, used: bool, rotated: bool) -> None:
    """By one commit older is older: a gc refuses, whoever has written since, and a rebuild has all
    names again."""
    shutil.copytree(folder / "index", folder.parent / "old")
    with castore.open(folder) as store:
        store.puts("since", random.Random(2).randbytes(50_000))
        if rotated:
            catalog: Any = store._catalog
            catalog.journal.rotate(catalog.index)
    lose_index(folder)
    shutil.copytree(folder.parent / "old", folder / "index")
    expected = {**VALUES, "since": random.Random(2).randbytes(50_000)}
    with castore.open(folder) as store:
        assert not store.exists("since")
        if used:
            store.puts("used", b"1" * 6000)
            expected["used"] = b"1" * 6000
        with pytest.raises(UnclaimedData, match="index rebuild"):
            store.gc()
        assert store.check(True).exit_code == 14
    assert main(["-r", str(folder), "gc"]) == 1
    report = castore.rebuild_index(folder)
    assert report.replayed
    with castore.open(folder) as store:
        assert read(store) == expected
        store.gc()
        assert store.check(True).clean
    assert rebuilt(folder) == expected


def test_an_old_copy_of_the_index_before_a_transaction_of_many_names(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes more than a megabyte of the journal: whoever writes next looks at all of that."""
    monkeypatch.setattr("castore.local.journal.log.ROWS_AT_CLOSE_MAX", 0)  # as of far more names
    shutil.copytree(folder / "index", folder.parent / "old")
    choose = random.Random(1)
    many = {choose.randbytes(240).hex(): choose.randbytes(240) for _ in range(3000)}
    expected = VALUES | many
    with castore.open(folder) as store:
        store.puts_many(expected)
    assert logs(folder)[-1].stat().st_size > 1_300_000
    lose_index(folder)
    shutil.copytree(folder.parent / "old", folder / "index")
    for name in ("used", "again"):
        expected[name] = b"1"
        with castore.open(folder) as store:
            store.puts(name, b"1")
    castore.rebuild_index(folder)
    assert rebuilt(folder) == expected


def test_a_put_that_ends_as_a_rebuild_begins_is_not_lost(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Into an older index, so that what counts is the journal: as it is once nobody has the store
    open any more."""
    shutil.copytree(folder / "index", folder.parent / "old")
    with castore.open(folder) as store:
        store.puts("since", b"1" * 5000)
    lose_index(folder)
    shutil.copytree(folder.parent / "old", folder / "index")
    alone = rebuild.alone

    def put_first(root: str) -> Any:
        with castore.open(folder) as store:
            store.puts("last", b"2" * 5000)
        return alone(root)

    monkeypatch.setattr(rebuild, "alone", put_first)
    castore.rebuild_index(folder)
    with castore.open(folder) as store:
        assert read(store) == {**VALUES, "since": b"1" * 5000, "last": b"2" * 5000}
        assert store.check(True).clean


def test_an_older_index_may_be_accepted(folder: Path) -> None:
    shutil.copytree(folder / "index", folder.parent / "old")
    with castore.open(folder) as store:
        store.puts("since", random.Random(2).randbytes(50_000))
    lose_index(folder)
    shutil.copytree(folder.parent / "old", folder / "index")
    assert main(["-r", str(folder), "gc", "--accept-unclaimed"]) == 0
    assert main(["-r", str(folder), "check", "--read-data"]) == 0
    assert main(["-r", str(folder), "gc"]) == 0
    assert rebuilt(folder) == VALUES


@pytest.mark.parametrize("since", [False, True])
def test_a_backup_that_is_newer_than_the_journal_beside_it_counts(
    folder: Path, since: bool
) -> None:
    """As one of today, restored into a copy of yesterday's whole folder and today's packs."""
    shutil.copytree(folder / "journal", folder.parent / "yesterday")
    backup = folder.parent / "backup"
    expected = {**VALUES, "new": random.Random(2).randbytes(50_000), "inline-too": b"1"}
    with castore.open(folder) as store:
        store.puts("new", expected["new"])
        store.puts("inline-too", b"1")
        store.backup(backup)
        if since:
            store.puts("since", random.Random(3).randbytes(50_000))
    lose_index(folder)
    shutil.rmtree(folder / "journal")
    shutil.copytree(folder.parent / "yesterday", folder / "journal")
    report = castore.restore(backup, folder)
    assert (report.replayed, report.unclaimed_bytes > 50_000) == (0, since)
    with castore.open(folder) as store:
        assert read(store) == expected
        store.gc(accept_unclaimed=since)
        assert store.check(True).clean
    assert rebuilt(folder) == expected


@pytest.mark.parametrize("journal", ["whole", "gone"])
def test_what_a_rebuild_kept_aside_is_not_the_last_index(folder: Path, journal: str) -> None:
    """Once that is lost as well, what is there may be of weeks ago."""
    castore.rebuild_index(folder)
    with castore.open(folder) as store:
        store.puts("since", random.Random(2).randbytes(50_000))
    expected = {**VALUES, "since": random.Random(2).randbytes(50_000)}
    lose_index(folder)
    if journal == "gone":
        shutil.rmtree(folder / "journal")
    report = castore.rebuild_index(folder)
    with castore.open(folder) as store:
        if journal == "whole":
            assert (report.unclaimed_chunks, read(store)) == (0, expected)
        else:
            assert (report.unclaimed_bytes > 50_000, read(store)) == (True, VALUES)
            with pytest.raises(UnclaimedData, match="accept"):
                store.gc()
            store.gc(accept_unclaimed=True)
        assert store.check(True).clean


@pytest.mark.damages_store("index and journal are gone")
def test_without_index_and_journal_only_a_backup_helps(folder: Path) -> None:
    lose_index(folder)
    shutil.rmtree(folder / "journal")
    with pytest.raises(IndexCorrupt, match="backup"):
        castore.rebuild_index(folder)


@pytest.mark.parametrize("size", [0, 7, 5000])
def test_a_pack_that_lost_all_in_a_power_cut_is_garbage_after_a_rebuild(
    folder: Path, size: int
) -> None:
    pack_id = os.urandom(16).hex()
    path = folder / "packs" / pack_id[:2] / f"{pack_id}.pack"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(bytes(size))
    lose_index(folder)
    castore.rebuild_index(folder)
    assert castore.check_store(folder, read_data=True).problems == []
    with castore.open(folder) as store:
        assert read(store) == VALUES
        assert store.gc().orphans_removed == 1
    assert not path.exists()


@pytest.mark.parametrize("left", ["journal", "index", "both"])
def test_castore_json_is_made_again(folder: Path, left: str) -> None:
    config = (folder / "castore.json").read_bytes()
    (folder / "castore.json").unlink()
    if left == "index":
        shutil.rmtree(folder / "journal")
    if left == "journal":
        lose_index(folder)
    for verb in (["ls"], ["check"], ["put", os.devnull, "x"]):
        assert main(["-r", str(folder), *verb]) == 13
    assert main(["-r", str(folder), "index", "rebuild"]) == 0
    assert (folder / "castore.json").read_bytes() == config
    with castore.open(folder) as store:
        assert read(store) == VALUES
        store.gc()
        assert store.check(True).clean


@pytest.mark.parametrize("left", ["index", "both"])
@pytest.mark.parametrize("damage", [None, b"", b"{}"])
def test_a_repair_makes_castore_json_again(
    folder: Path, left: str, damage: bytes | None, capsys: pytest.CaptureFixture[str]
) -> None:
    path = folder / "castore.json"
    config = path.read_bytes()
    path.unlink()
    if damage is not None:
        path.write_bytes(damage)
    if left == "index":
        shutil.rmtree(folder / "journal")
    for verb in (castore.open, castore.check_store, castore.compact_index):
        with pytest.raises(ConfigLost, match=r"check --repair"):
            verb(folder)
    assert main(["-r", str(folder), "check", "--repair"]) == 13  # nobody agrees
    assert "repeat it with --yes" in capsys.readouterr().err
    assert main(["-r", str(folder), "check", "--repair", "--yes"]) in (0, 1)
    assert "made again" in capsys.readouterr().err
    assert path.read_bytes() == config
    assert [each.read_bytes() for each in folder.glob("castore.json.before-*")] == (
        [] if damage is None else [damage]
    )
    with castore.open(folder) as store:
        assert read(store) == VALUES
        store.gc()
        assert store.check(True).clean


def test_a_repair_in_python_makes_castore_json_again(folder: Path) -> None:
    (folder / "castore.json").unlink()
    with alone(str(folder)), pytest.raises(StoreLocked):
        castore.check_store(folder, repair=True)
    assert "made again" in castore.check_store(folder, repair=True).repaired[0]
    assert castore.check_store(folder, repair=True, read_data=True).repaired == []


@pytest.mark.damages_store("nothing says what castore.json was")
def test_a_castore_json_that_nothing_tells_of_stays_lost(folder: Path) -> None:
    (folder / "castore.json").unlink()
    shutil.rmtree(folder / "journal")
    lose_index(folder)
    for _ in range(2):
        with pytest.raises(ConfigLost, match="backup"):
            castore.check_store(folder, repair=True)
    assert not (folder / "castore.json").exists()


def test_a_store_of_small_objects_only_is_restored(tmp_path: Path) -> None:
    with castore.open(tmp_path / "store") as store:
        store.puts("a", b"1")
        store.backup(tmp_path / "backup")
    os.mkdir(tmp_path / "new")
    castore.restore(tmp_path / "backup", tmp_path / "new")
    with castore.open(tmp_path / "new") as store:
        assert read(store) == {"a": b"1"}
        assert store.check(True).clean


# ---- the row of the index that says how far it is ----------------------------------------------


def damage_place(folder: Path, bits: int) -> None:
    with castore.open(folder) as store:
        index: Any = store._catalog
        with index.index.begin() as txn:
            row = int.from_bytes(txn.get(b"journal", db=index.index.meta), "little")
    for bit in random.Random(bits).sample(range(256), bits):
        row ^= 1 << bit
    change_rows(folder, b"meta", {b"journal": row.to_bytes(32, "little")})


@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.parametrize("bits", [1, 2, 40])
@pytest.mark.parametrize("used", [False, True])
@pytest.mark.sampled(8)
def test_a_damaged_row_of_the_journal(folder: Path, bits: int, used: bool, rotated: bool) -> None:
    """A repair puts it right, and nothing is refused for ever: of a bit, not even before. Whoever
    puts over one of which nothing can be read has a collection ask; a rebuild answers."""
    expected = dict(VALUES)
    with castore.open(folder) as store:
        store.delete("n/00")
        del expected["n/00"]
        if rotated:
            catalog: Any = store._catalog
            catalog.journal.rotate(catalog.index)
    damage_place(folder, bits)
    if used:
        with castore.open(folder) as store:
            store.puts("used", b"1" * 6000)
            expected["used"] = b"1" * 6000
    else:
        assert main(["-r", str(folder), "check"]) in (13, 14)
    main(["-r", str(folder), "check", "--repair", "--yes"])
    with castore.open(folder) as store:
        if used and bits > 1:
            with pytest.raises(UnclaimedData, match="index rebuild"):
                store.gc()
        else:
            assert store.check(True).clean
            store.gc()
    if used and bits > 1:
        castore.rebuild_index(folder)
    with castore.open(folder) as store:
        assert read(store) == expected
        store.puts("after", b"2")
        store.gc()
        assert store.check(True).clean
    assert rebuilt(folder) == {**expected, "after": b"2"}


@pytest.mark.parametrize("last", ["put", "delete", "put rotate", "delete rotate"])
@pytest.mark.sampled(4)
def test_a_damaged_row_of_an_index_that_is_older(folder: Path, last: str) -> None:
    """Two faults at once: no repair takes the names that the journal has for those that are not."""
    shutil.copytree(folder / "index", folder.parent / "old")
    with castore.open(folder) as store:
        if "put" in last:
            store.puts("since", random.Random(2).randbytes(50_000))
        else:
            store.delete("n/00")
        if "rotate" in last:
            catalog: Any = store._catalog
            catalog.journal.rotate(catalog.index)
        expected = read(store)
    lose_index(folder)
    shutil.copytree(folder.parent / "old", folder / "index")
    damage_place(folder, 9)
    main(["-r", str(folder), "check", "--repair", "--yes"])
    with castore.open(folder) as store, pytest.raises(UnclaimedData, match="index rebuild"):
        store.gc()
    castore.rebuild_index(folder)
    assert rebuilt(folder) == expected


# ---- bytes --------------------------------------------------------------------------------------


def test_blocks_of_any_bytes_are_refused() -> None:
    choose = random.Random(1)
    for size in (0, 10, 40, 200):
        for _ in range(50):
            raw = b"CJNL\1\2" + choose.randbytes(size)
            for decode in (decode_block_head, lambda raw: list(decode_entries(raw))):
                try:
                    decode(raw)
                except FormatError:
                    continue


def test_where_each_transaction_is(folder: Path) -> None:
    kinds = [block.head.kind for block in blocks(str(logs(folder)[0]))]
    assert kinds[0] == Kind.HEAD
    assert kinds[1::2] == [Kind.CHANGES] * len(VALUES)
    assert kinds[2::2] == [Kind.DONE] * len(VALUES)


@pytest.mark.parametrize("puts", [1, 3])
def test_a_first_commit_that_fails_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, puts: int
) -> None:
    """It had begun the first log, which an index that knows of none is not older than."""
    failing = [True]

    def fail() -> None:
        if failing[0]:
            raise lmdb.DiskError("mdb_txn_commit: injected")

    with small(tmp_path / "store") as store:
        store.exists("opened")
    end = oracle.watch_commits(fail, lambda: None)
    try:
        with small(tmp_path / "store") as store:
            with pytest.raises(StoreIOError):
                store.puts("lost", b"x")
            failing[0] = False
            for i in range(puts):
                store.puts(f"{i}", b"x")
            assert store.check(read_data=True).problems == []
            store.gc()
    finally:
        end()
    shutil.rmtree(tmp_path / "store/index")
    castore.rebuild_index(tmp_path / "store")
    with small(tmp_path / "store") as store:
        assert list(store.names()) == [f"{i}" for i in range(puts)]


@pytest.mark.parametrize("lost", [False, True], ids=["the first", "one whose log is gone"])
def test_a_log_that_a_commit_under_way_begins_is_no_news(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: bool
) -> None:
    """Whoever looks before the commit finds a log that the index does not know."""
    whole = Journal._write
    seen = []

    def write(journal: Journal, seq: int, entries: Any) -> int:
        end = whole(journal, seq, entries)
        looker = threading.Thread(target=lambda: seen.append(other.gc(dry_run=True)))
        looker.start()
        looker.join()
        return end

    with small(tmp_path / "store") as store, small(tmp_path / "store") as other:
        if lost:
            store.puts("before", b"1" * 9000)
            for path in (tmp_path / "store" / "journal").iterdir():
                path.unlink()
        monkeypatch.setattr(Journal, "_write", write)
        store.puts("a", b"2" * 9000)
        monkeypatch.undo()
        assert len(seen) == 1
        other.gc()
