"""Each kind of garbage goes, and nothing else does."""

from __future__ import annotations

import errno
import math
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import oracle
import pytest
from between import change_after_each_read
from collected import assert_rows_complete, damage, everything, first_extents, pack_files, sparse
from sessions import rows, small_stages, some_bytes

import castore
from castore.errors import (
    ChunkCorrupt,
    FormatError,
    PackMissing,
    ReadOnlyStore,
    StoreBusy,
    StoreFull,
    StoreIOError,
)
from castore.format.index import decode_chunk_row
from castore.format.segment import SegmentBuilder, decode_segment
from castore.local.gc.mark import Marker
from castore.local.gc.repack import SMALL_PACKS_MAX
from castore.model import Location
from castore.s3.cache.folder import cache_folder
from castore.s3.cache.unused import UNUSED_S, collect_caches
from castore.stream.live_frames import Marks

SMALL: dict[str, Any] = {"chunk_bytes_avg": 2816, "threads": 1}
OLD = some_bytes(60_000)


@pytest.fixture(autouse=True)
def every_store_is_checked() -> None:
    """`assert_clean` asks `check`, too."""


@pytest.fixture(autouse=True)
def no_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "caches"
    monkeypatch.setenv("CASTORE_CACHE_DIR", str(folder))
    return folder


@pytest.fixture
def store(tmp_path: Path) -> Iterator[castore.Store]:
    with castore.open(tmp_path / "store", **SMALL) as store:
        yield store


def in_a_pack_of_its_own(store: castore.Store, name: str, data: bytes) -> bytes:
    """Put it, and end the pack; the id of the pack."""
    before = set(pack_files(store))
    store.puts(name, data)
    store._backend.packs.retire()  # type: ignore[union-attr]
    [pack] = set(pack_files(store)) - before
    return bytes.fromhex(pack)


def assert_clean(store: castore.Store, expected: dict[str, bytes]) -> None:
    """What should be there is, and there is nothing left to collect, nor for a check to say."""
    assert everything(store) == expected
    oracle.check_index(store)
    assert store.check(read_data=True).problems == []
    assert_rows_complete(store)
    assert store.gc().found_nothing
    for name in ("pending", "changes"):
        assert rows(store, name) == {}
    assert b"marking" not in rows(store, "meta")
    assert everything(store) == expected


# ---- each kind of garbage -----------------------------------------------------------------------


def test_nothing_to_collect(store: castore.Store) -> None:
    assert store.gc().found_nothing
    store.puts("a", OLD)
    store.puts("inline", b"1")
    report = store.gc()
    assert report.found_nothing
    assert (report.objects, report.packs_removed, report.bytes_freed) == (2, 0, 0)
    assert report.chunks == store.info("a").chunks
    assert_clean(store, {"a": OLD, "inline": b"1"})


def test_what_was_deleted_goes(store: castore.Store) -> None:
    """At once, also in the process that wrote it."""
    store.puts("a", OLD)
    store.puts("b", some_bytes(3000, 1) * 3)
    chunks = store.stats().chunks
    store.delete("a")
    store.delete("b")
    report = store.gc()
    assert report.chunks_removed == chunks
    assert report.manifests_removed == 2
    assert report.packs_removed == 1
    assert (report.orphans_removed, report.packs_rewritten) == (0, 0)
    assert pack_files(store) == {}
    stats = store.stats()
    assert (stats.chunks, stats.packs, stats.stored_bytes, stats.unique_bytes) == (0, 0, 0, 0)
    for table in ("segments", "chunks", "packs"):
        assert rows(store, table) == {}
    store.puts("a", OLD)
    assert_clean(store, {"a": OLD})


def test_what_another_name_needs_stays(store: castore.Store) -> None:
    store.puts("a", OLD)
    store.copy("a", "copy")
    store.rename("copy", "moved")
    store.delete("a")
    assert store.gc().found_nothing
    store.puts("half", OLD[:30_000])
    store.puts("moved", b"overwritten")
    report = store.gc(repack_below=0)
    assert report.manifests_removed == 1
    assert 0 < report.chunks_removed < report.chunks + report.chunks_removed
    store.gc()
    assert_clean(store, {"moved": b"overwritten", "half": OLD[:30_000]})


def test_what_a_failed_put_had_staged_goes(
    store: castore.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        small_stages(patched)
        file = store.open("large", "wb")
        file.write(some_bytes(900_000, 5))
        file.abort()
    assert len(rows(store, "pending")) == 1
    report = store.gc()
    assert (report.manifests_removed, report.packs_removed) == (1, 1)
    assert rows(store, "segments") == rows(store, "packs") == {}
    assert_clean(store, {})


WRITER = """
import random, sys
import castore, castore.format.segment, castore.stream.writer
import castore.local.packs, castore.local.session
castore.format.segment.SEGMENT_EXTENTS_MAX = 4
castore.local.session.SEGMENTS_MAX = 2
castore.local.packs.PACK_BYTES_MAX = 200_000
castore.stream.writer.BATCHES_MAX = 0
castore.stream.writer.BATCH_BYTES = 16_384
castore.stream.writer.CUT_BYTES = 8192
store = castore.open(sys.argv[1], threads=1)
file = store.open('large', 'wb')
data = random.Random('bytes 5').randbytes(900_000)
file.write(data[:600_000])
print('staged', flush=True)
sys.stdin.readline()
file.write(data[600_000:])
file.close()
store.gc()
print('done', flush=True)
"""


@pytest.fixture
def writer(store: castore.Store) -> Iterator[subprocess.Popen[bytes]]:
    """Another process amid a large put."""
    with subprocess.Popen(
        oracle.python(WRITER, store.path),
        env=oracle.environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"staged\n"
        yield process
        process.kill()


def test_a_live_writer_loses_nothing(store: castore.Store, writer: subprocess.Popen[bytes]) -> None:
    staged = len(rows(store, "segments"))
    assert len(rows(store, "pending")) == 1
    assert staged > 10
    for _ in range(3):
        report = store.gc()
        assert report.packs_removed == report.packs_rewritten
        assert report.manifests_removed == 0
    assert len(rows(store, "segments")) == staged
    said, _ = writer.communicate(b"\n")
    assert said == b"done\n"
    assert store.gets("large") == some_bytes(900_000, 5)
    store.gc()
    assert_clean(store, {"large": some_bytes(900_000, 5)})


def test_what_a_killed_writer_leaves_goes(
    store: castore.Store, writer: subprocess.Popen[bytes]
) -> None:
    """Rows without a name, packs with rows, and the file of the pack that no row names yet."""
    writer.kill()
    writer.wait()
    orphan = Path(store.path) / "packs" / "ab" / f"ab{'0' * 30}.pack"
    orphan.parent.mkdir(exist_ok=True)
    orphan.write_bytes(b"")
    stranger = orphan.with_suffix(".txt")
    stranger.write_bytes(b"not ours")
    report = store.gc()
    assert report.manifests_removed == 1
    assert report.packs_removed > 3
    assert report.orphans_removed >= 1
    assert pack_files(store) == {}
    assert stranger.exists()
    assert_clean(store, {})


@pytest.mark.plain("the second pack needs the first")
@pytest.mark.damages_store("rows are damaged")
def test_a_chunk_row_may_be_lost_or_lead_elsewhere(store: castore.Store) -> None:
    """Two writers may store the same chunk at once: each has its own frame, one has the row."""
    first = in_a_pack_of_its_own(store, "first", OLD)
    row_of = rows(store, "chunks")
    index = store._catalog.index  # type: ignore[attr-defined]
    with index.write_gate, index.errors, index.begin() as txn:
        txn.drop(index.chunks, delete=False)
        txn.delete(b"totals", db=index.meta)
    second = in_a_pack_of_its_own(store, "second", OLD)
    assert rows(store, "chunks").keys() == row_of.keys()
    with index.write_gate, index.errors, index.begin() as txn:
        for chunk_id, row in row_of.items():
            txn.put(chunk_id, row, db=index.chunks)
    assert first != second
    assert store.gc().packs_removed == 0, "both are needed"
    store.delete("first")
    report = store.gc()
    assert report.packs_removed == 1
    assert set(pack_files(store)) == {second.hex()}
    assert {decode_chunk_row(row)[1].pack_id for row in rows(store, "chunks").values()} == {second}
    assert everything(store) == {"second": OLD}
    assert_rows_complete(store)
    assert store.gc().found_nothing


def test_a_pack_that_is_missing_is_reported(store: castore.Store) -> None:
    lost = in_a_pack_of_its_own(store, "lost", OLD)
    in_a_pack_of_its_own(store, "gone", some_bytes(9000, 1))
    store.delete("gone")
    store._backend.packs.unmap(lost)  # type: ignore[union-attr]
    os.unlink(store._backend.packs.path(lost))  # type: ignore[union-attr]
    report = store.gc()
    assert report.missing == (lost.hex(),)
    assert report.packs_removed == 1, "the other"
    assert set(rows(store, "packs")) == {lost}
    with pytest.raises(PackMissing):
        store.gets("lost")
    store.delete("lost")
    report = store.gc()
    assert (report.missing, report.packs_removed) == ((), 1)
    assert_clean(store, {})


@pytest.mark.damages_store("rows are damaged")
@pytest.mark.parametrize("table", ["names", "segments"])
def test_nothing_is_taken_while_something_can_not_be_read(store: castore.Store, table: str) -> None:
    store.puts("damaged", OLD)
    store.puts("garbage", some_bytes(50_000, 1))
    store.delete("garbage")
    index = store._catalog.index  # type: ignore[attr-defined]
    key, raw = next(iter(rows(store, table).items()))
    with index.write_gate, index.errors, index.begin() as txn:
        txn.put(key, raw[:-1] + bytes([raw[-1] ^ 1]), db=getattr(index, table))
    store._backend.packs.retire()  # type: ignore[union-attr]
    before = {name: rows(store, name) for name in ("segments", "chunks", "packs", "names")}
    files = pack_files(store)
    with pytest.raises(FormatError, match="Nothing is collected"):
        store.gc()
    assert {name: rows(store, name) for name in before} == before
    assert pack_files(store) == files
    assert b"marking" not in rows(store, "meta")
    store.delete("damaged")
    assert store.gc().packs_removed == 1
    assert pack_files(store) == {}


# ---- rewriting ----------------------------------------------------------------------------------


@pytest.mark.parametrize("guard", [None, "sha256"])
def test_a_sparse_pack_is_rewritten(tmp_path: Path, guard: str | None) -> None:
    with castore.open(tmp_path / "store", **SMALL, collision_guard=guard) as store:
        old = sparse(store, "a")
        store.copy("a/kept", "copy")
        expected = everything(store)
        size = pack_files(store)[old.hex()]
        assert store.gc(repack_below=0.2).packs_rewritten == 0
        assert set(pack_files(store)) == {old.hex()}
        report = store.gc(repack_below=0.3)
        assert (report.packs_rewritten, report.packs_removed) == (1, 1)
        [(new, new_size)] = pack_files(store).items()
        assert new != old.hex()
        assert report.bytes_rewritten == new_size < size / 3
        assert report.bytes_freed == size - new_size
        assert_clean(store, expected)
        store.puts("again", expected["copy"])
        assert pack_files(store) == {new: new_size}, "its chunks are known where they are now"


def test_no_more_is_copied_than_allowed(store: castore.Store) -> None:
    for n in range(4):
        sparse(store, f"{n}", seed=10 * n)
    expected = everything(store)
    assert store.gc(max_repack_bytes=0).packs_rewritten == 0
    assert store.gc(max_repack_bytes=60_000).packs_rewritten == 2
    assert store.gc(max_repack_bytes=60_000).packs_rewritten == 2
    assert_clean(store, expected)


def test_nothing_is_copied_out_of_the_pack_of_a_live_writer(store: castore.Store) -> None:
    """It could not be removed, and each collection would copy it once more."""
    values = {"kept": some_bytes(20_000, 1), "more": some_bytes(20_000, 3)}
    store.puts_many({"dead": some_bytes(200_000, 2), "kept": values["kept"]})
    with store.transaction() as transaction:
        transaction.puts("more", values["more"])
        store.delete("dead")
        report = store.gc(repack_below=0.9)
        assert (report.packs_rewritten, report.bytes_rewritten) == (0, 0)
    report = store.gc(repack_below=0.9)
    assert report.packs_rewritten == 1
    assert report.bytes_rewritten > 40_000
    assert_clean(store, values)


def test_small_packs_are_merged_when_they_are_many(store: castore.Store) -> None:
    expected = {}
    for n in range(SMALL_PACKS_MAX):
        expected[f"{n}"] = some_bytes(9000, n)
        in_a_pack_of_its_own(store, f"{n}", expected[f"{n}"])
    assert store.gc().found_nothing
    expected["last"] = some_bytes(9000, 99)
    in_a_pack_of_its_own(store, "last", expected["last"])
    report = store.gc()
    assert report.packs_rewritten == SMALL_PACKS_MAX + 1
    assert len(pack_files(store)) == 1
    assert_clean(store, expected)


def test_packs_larger_than_memory_allows_are_moved_in_pieces(
    store: castore.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("castore.local.gc.repack.FRAMES_MAX", 3)
    monkeypatch.setattr("castore.local.gc.repack.SEGMENTS_MAX", 1)
    monkeypatch.setattr("castore.local.gc.repack.APPEND_BYTES", 5000)
    monkeypatch.setattr("castore.format.segment.SEGMENT_EXTENTS_MAX", 4)
    for n in range(3):
        sparse(store, f"{n}", seed=10 * n)
    store.puts("both", everything(store)["0/kept"] + everything(store)["2/kept"])
    expected = everything(store)
    report = store.gc()
    assert report.packs_rewritten == 3
    assert len(pack_files(store)) > 6
    for knob, value in (
        ("local.gc.repack.FRAMES_MAX", 1000),
        ("local.gc.repack.SEGMENTS_MAX", 256),
    ):
        monkeypatch.setattr(f"castore.{knob}", value)
    store.gc()
    assert len(pack_files(store)) == 1, "merged"
    assert_clean(store, expected)


def test_a_damaged_frame_is_left_where_it_is(store: castore.Store) -> None:
    old = sparse(store, "a")
    expected = store.gets("a/kept")
    extent = first_extents(store, "a/kept")[1]
    damage(store, extent.location)
    for turn in range(3):
        report = store.gc()
        assert [d.chunk_id for d in report.damaged] == [extent.chunk_id.hex()]
        assert (report.damaged[0].pack_id, report.damaged[0].offset) == (
            old.hex(),
            extent.location.offset,
        )
        assert report.packs_rewritten == 0
        assert (report.bytes_rewritten > 0) == (turn == 0), "the others are moved once"
        assert old.hex() in pack_files(store)
        with pytest.raises(ChunkCorrupt) as raised:
            store.gets("a/kept")
        assert raised.value.pack_id == old
        assert store.gets("a/kept", (0, extent.begin)) == expected[: extent.begin]
        assert store.gets("a/kept", (extent.end, 1 << 30)) == expected[extent.end :]
    oracle.check_index(store)
    # And where another frame of the chunk is whole, nothing is lost by it.
    damage(store, extent.location)
    assert store.gc().damaged == ()
    assert store.gets("a/kept") == expected
    assert old.hex() not in pack_files(store)


def test_frames_are_moved_byte_for_byte(store: castore.Store) -> None:
    sparse(store, "a")

    def frames() -> list[bytes]:
        packs = store._backend.packs  # type: ignore[union-attr]
        return [
            Path(packs.path(at.pack_id)).read_bytes()[at.offset : at.offset + at.stored_bytes]
            for _, _, _, at in first_extents(store, "a/kept")
        ]

    before = frames()
    assert store.gc().packs_rewritten == 1
    assert frames() == before


def test_marks() -> None:
    packs = [bytes([n] * 16) for n in range(4)]
    one, several = SegmentBuilder(0), SegmentBuilder(0)
    for n in range(20):
        one.append(n + 1, bytes(16), Location(packs[0], 64 + 40 * n, 40))
        several.append(n + 1, bytes(16), Location(packs[n % 3], 64 + 40 * n, 40))
    marks = Marks()
    for _ in range(3):
        marks.add(decode_segment(one.encode()))
        marks.add(decode_segment(several.encode()))
    marks.settle()
    assert list(marks.offsets(packs[0])) == [64 + 40 * n for n in range(20)]
    assert list(marks.offsets(packs[1])) == [64 + 40 * n for n in range(1, 20, 3)]
    assert list(marks.offsets(packs[3])) == []
    assert marks.packs == set(packs[:3])
    assert marks.see(Location(packs[1], 104, 40))
    assert marks.see(Location(packs[1], 104, 40))
    assert not marks.see(Location(packs[1], 64, 40))
    assert not marks.is_live(Location(packs[3], 64, 40))
    assert marks.live_bytes == {packs[1]: 40}
    assert len(marks.unseen()[packs[0]]) == 20
    assert 104 not in marks.unseen()[packs[1]]
    late = SegmentBuilder(0)
    late.append(1, bytes(16), Location(packs[3], 64, 40))
    marks.add(decode_segment(late.encode()))
    assert marks.has(packs[3])
    assert marks.is_live(Location(packs[3], 64, 40))
    assert marks.see(Location(packs[3], 64, 40))
    assert not marks.is_live(Location(packs[3], 65, 40))


# ---- how it is run ------------------------------------------------------------------------------


def test_a_dry_run_changes_nothing_and_says_what_would_be(store: castore.Store) -> None:
    sparse(store, "a")
    store.puts("b", some_bytes(70_000, 7))
    store.delete("b")
    store._backend.packs.retire()  # type: ignore[union-attr]
    (Path(store.path) / "packs" / "00").mkdir(exist_ok=True)
    (Path(store.path) / "packs" / "00" / f"{'0' * 32}.pack").write_bytes(b"orphan")
    tables = ("names", "segments", "chunks", "packs", "pending", "changes", "meta")
    before = {name: rows(store, name) for name in tables}, pack_files(store)
    with castore.open(store.path, read_only=True) as reader:
        foretold = reader.gc(dry_run=True)
        with pytest.raises(ReadOnlyStore):
            reader.gc()
    assert ({name: rows(store, name) for name in tables}, pack_files(store)) == before
    report = store.gc()
    assert foretold.dry_run
    for field in (
        "objects",
        "chunks",
        "chunks_removed",
        "manifests_removed",
        "packs_removed",
        "packs_rewritten",
        "bytes_rewritten",
        "bytes_freed",
    ):
        assert getattr(foretold, field) == getattr(report, field) > 0, field


def test_a_dry_run_beside_a_rename(store: castore.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the last name to the first, while names are read: it is alive by either of them."""
    monkeypatch.setattr("castore.local.gc.mark.NAMES_PER_READ", 1)
    for name in "bcd":
        store.puts(name, some_bytes(30_000, ord(name)))
    store._backend.packs.retire()  # type: ignore[union-attr]
    for reads in range(14):
        store.puts("e", some_bytes(30_000, 5))
        with monkeypatch.context() as patched:
            waits = [lambda: None] * reads
            change_after_each_read(patched, [*waits, lambda: store.rename("e", "a")])
            foretold = store.gc(dry_run=True)
        assert (foretold.manifests_removed, foretold.chunks_removed) == (0, 0), reads
        store.delete("a")
        store.gc()


def test_a_dry_run_beside_a_collection_finds_no_damage(
    store: castore.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which has taken the first of an object's segments, of a name that was there just now."""
    store.puts("large", some_bytes(8 << 20, 3))
    read_names = Marker._read_names
    make_decisive = Marker.make_decisive
    calls: list[str] = []

    def fail_second(marker: Marker, txn: Any) -> None:
        calls.append("decisive")
        if len(calls) == 3:
            raise StoreFull("injected")
        make_decisive(marker, txn)

    def then_collect_half(marker: Marker) -> None:
        read_names(marker)
        if not calls:
            calls.append("collect")
            store.delete("large")
            with pytest.raises(StoreFull):
                store.gc()

    monkeypatch.setattr("castore.local.gc.sweep.SEGMENTS_MAX", 1)
    monkeypatch.setattr(Marker, "_read_names", then_collect_half)
    monkeypatch.setattr(Marker, "make_decisive", fail_second)
    foretold = store.gc(dry_run=True)
    assert calls == ["collect", "decisive", "decisive"]
    assert (foretold.objects, foretold.manifests_removed) == (0, 1)


def test_leftovers_that_cannot_be_removed(
    store: castore.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    leftover = Path(store.path) / "index.new-0123"
    leftover.mkdir()

    def fail(path: str) -> None:
        raise OSError(errno.EIO, "Input/output error", path)

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", fail)
        with pytest.raises(StoreIOError, match=r"index\.new-0123"):
            store.gc()
    assert store.gc().leftovers_removed == 1


def test_what_a_maker_that_was_killed_left_is_removed(store: castore.Store) -> None:
    root = Path(store.path)
    left = root / f"castore.json.{os.urandom(8).hex()}"
    left.write_bytes((root / "castore.json").read_bytes())
    kept = root / "castore.json.before-0a1b2c"  # of a repair
    kept.write_bytes(b"damaged")
    assert store.gc(dry_run=True).leftovers_removed == 1
    assert left.exists()
    assert store.gc().leftovers_removed == 1
    assert not left.exists()
    assert kept.exists()
    assert store.gc().leftovers_removed == 0


def test_folders_that_are_none_of_castores_are_left_alone(
    store: castore.Store, tmp_path: Path
) -> None:
    root, old = Path(store.path), "20200102-030405"
    for name in (f"{old}-photos", f"index.before-{old[:8]}", "index.nearly"):
        (root / name).mkdir()
    (tmp_path / "elsewhere").mkdir()
    (root / "index.new-link").symlink_to(tmp_path / "elsewhere")
    (root / f"index.before-{old}.link").symlink_to(tmp_path / "elsewhere")
    (root / "index.new-file").write_bytes(b"1")
    before = sorted(os.listdir(root))
    assert store.gc().leftovers_removed == 0
    assert sorted({*os.listdir(root)} - {"castore.gc"}) == before
    (root / f"index.before-{old}-0a1b2c").mkdir()
    assert store.gc().leftovers_removed == 1


def test_a_dry_run_beside_a_collection_that_takes_leftovers(
    store: castore.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = Path(store.path) / "index.new-0a1b2c"
    left.mkdir()
    (left / "data.mdb").write_bytes(b"of a rebuild that was killed")
    scandir = os.scandir

    def taken(path: Any) -> Any:
        if path == str(left):
            shutil.rmtree(left)
        return scandir(path)

    monkeypatch.setattr("castore.local.gc.claim.os.scandir", taken)
    assert store.gc(dry_run=True).leftovers_removed == 0


def test_one_collector_at_a_time(store: castore.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.puts("a", OLD)
    store.delete("a")
    seen: list[Exception] = []

    def another(*_: Any) -> None:
        thread = threading.Thread(target=lambda: seen.append(busy(store)))
        thread.start()
        thread.join()
        # A child that outlives us does not keep the lock.
        subprocess.run([sys.executable, "-c", ""], check=True)

    with monkeypatch.context() as patched:
        patched.setattr("castore.local.gc.mark.Marker.catch_up_outside", another)
        assert store.gc().packs_removed == 1
    assert isinstance(seen[0], StoreBusy)
    assert isinstance(seen[0], BlockingIOError)
    assert "another collection" in str(seen[0])
    assert_clean(store, {})


def busy(store: castore.Store) -> Exception:
    try:
        store.gc()
    except StoreBusy as error:
        return error
    return AssertionError("two collectors at once")


def test_a_child_forked_amid_a_collection_does_not_keep_its_locks(
    store: castore.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = 0

    def fork(*_: Any) -> None:
        nonlocal child
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)

    try:
        with monkeypatch.context() as patched:
            patched.setattr("castore.local.gc.mark.Marker.catch_up_outside", fork)
            store.gc()
        assert store.gc().found_nothing
    finally:
        if child:  # 0 would mean all of us
            os.kill(child, 9)
            os.waitpid(child, 0)


def test_what_a_killed_collector_leaves_is_cleared(store: castore.Store) -> None:
    index = store._catalog.index  # type: ignore[attr-defined]
    with index.write_gate, index.errors, index.begin() as txn:
        txn.put(b"marking", b"1", db=index.meta)
    store.puts("a", OLD)
    store.puts("b", OLD)
    store.delete("a")
    assert len(rows(store, "changes")) == 3
    store.gc()
    assert_clean(store, {"b": OLD})


def test_an_open_file_is_read_to_its_end(store: castore.Store) -> None:
    sparse(store, "a")
    expected = everything(store)["a/kept"]
    store.puts("dead", OLD)
    with store.open("a/kept") as moved, store.open("dead") as dead:
        assert moved.read(10) == expected[:10]
        store.delete("dead")
        report = store.gc()
        assert (report.packs_rewritten, report.packs_removed) == (1, 2)
        assert moved.read() == expected[10:]
        assert dead.read() == OLD


def test_a_reader_that_remembers_where_chunks_were_finds_them(store: castore.Store) -> None:
    sparse(store, "a")
    with castore.open(store.path, cache_bytes=0, threads=1) as other:
        expected = other.gets("a/kept")
        program = "import sys, castore\nwith castore.open(sys.argv[1]) as s: s.gc()"
        oracle.run_program(program, store.path)
        # Its packs were mapped, and still can be read; then they aren't mapped any more.
        assert other.gets("a/kept") == expected
        other._backend.packs._mapped.clear()  # type: ignore[union-attr]
        assert other.gets("a/kept") == expected
        assert other.gets("a/kept", (20_000, 20_010)) == expected[20_000:20_010]


def test_progress_is_told(store: castore.Store) -> None:
    sparse(store, "a")

    class Told:
        size = done = 0

        def set_size(self, size: int) -> None:
            assert size >= self.size
            self.size = size

        def relative_update(self, inc: int = 1) -> None:
            self.done += inc

    told = Told()
    store.gc(progress=told)
    assert 0 < told.done == told.size


def test_progress_of_a_dry_run_is_of_no_copying(store: castore.Store) -> None:
    sparse(store, "a")

    class Told(list[tuple[str, int]]):
        done = 0

        def begin_stage(self, what: str, size: int) -> None:
            self.append((what, size))

        def set_size(self, size: int) -> None: ...

        def relative_update(self, inc: int = 1) -> None:
            self.done += inc

    for dry_run, stages in ((True, ["marking"]), (False, ["marking", "repacking"])):
        told = Told()
        store.gc(dry_run=dry_run, progress=told)
        assert [what for what, _ in told] == stages
        assert told.done == sum(size for _, size in told)
    assert store.check(read_data=True).exit_code == 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"repack_below": 1.1},
        {"grace_s": -1},
        {"max_repack_bytes": -1},
        {"repack_below": -1},
        {"grace_s": math.nan},
        {"horizon_s": math.nan},
    ],
)
def test_arguments_that_make_no_sense(store: castore.Store, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"must not|from 0 to 1"):
        store.gc(**wrong)


@pytest.mark.plain("what is deleted is needed as bases")
def test_stats_agree_with_the_disk(tmp_path: Path) -> None:
    def check(store: castore.Store) -> None:
        stats = store.stats()
        done = subprocess.run(["du", "-sB1", store.path], capture_output=True, check=True)
        on_disk = int(done.stdout.split()[0])
        assert abs(stats.pack_bytes + stats.index_bytes - on_disk) < 0.01 * on_disk

    with castore.open(tmp_path / "store", threads=2) as store:
        for n in range(8):
            store.puts(f"{n}", some_bytes(6 << 20, n))
        check(store)
        for n in range(0, 8, 2):
            store.delete(f"{n}")
        report = store.gc(repack_below=0.6)
        assert report.bytes_freed > 23 << 20
        check(store)
        assert store.stats().stored_bytes < 1.01 * (24 << 20)
        assert store.gc(repack_below=0.6).found_nothing


# ---- when the disk fails ------------------------------------------------------------------------


def failing(call: Callable[..., Any], at: int, code: int) -> Callable[..., Any]:
    count = 0

    def fail(*args: Any, **options: Any) -> Any:
        nonlocal count
        count += 1
        if count == at:
            raise OSError(code, os.strerror(code))
        return call(*args, **options)

    return fail


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EMFILE])
@pytest.mark.parametrize(
    ("call", "at"),
    [
        ("os.open", 1), ("os.open", 2), ("os.open", 3), ("os.open", 5), ("os.pwritev", 1),
        ("os.pwritev", 2), ("os.pwritev", 3), ("os.fsync", 1), ("os.fsync", 2), ("os.unlink", 1),
        ("os.unlink", 2), ("fcntl.flock", 1), ("fcntl.flock", 2), ("fcntl.flock", 4),
    ],
)  # fmt: skip
def test_a_failing_disk_ends_it_and_nothing_else(
    store: castore.Store, monkeypatch: pytest.MonkeyPatch, call: str, at: int, code: int
) -> None:
    in_a_pack_of_its_own(store, "dead", OLD)
    store.delete("dead")
    sparse(store, "a")
    expected = everything(store)
    module, name = call.split(".")
    with monkeypatch.context() as patched:
        real = getattr(sys.modules[module], name)
        patched.setattr(sys.modules[module], name, failing(real, at, code))
        raised: Exception | None = None
        try:
            store.gc()
        except (StoreFull, StoreIOError) as error:
            raised = error
        assert raised is None or isinstance(raised, StoreFull) == (code == errno.ENOSPC)
    assert everything(store) == expected
    store.puts("more", OLD)
    store.gc()
    assert_clean(store, {**expected, "more": OLD})
    assert len(pack_files(store)) == 2


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_failing_commit_ends_it_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    import lmdb

    fails_at, count = 0, -1000

    def before() -> None:
        nonlocal count
        count += 1
        if count == fails_at:
            error = lmdb.Error(os.strerror(code))
            error.code = code
            raise error

    end = oracle.watch_commits(before)
    try:
        for fails_at in range(1, 12):
            with castore.open(tmp_path / str(fails_at), **SMALL) as store:
                in_a_pack_of_its_own(store, "dead", OLD)
                store.delete("dead")
                sparse(store, "a")
                expected = everything(store)
                count = 0
                try:
                    store.gc()
                except (StoreFull, StoreIOError):
                    pass
                else:
                    assert count < fails_at
                count = -1000
                assert everything(store) == expected
                # A file goes when it is committed that nothing leads to it.
                assert {pack_id.hex() for pack_id in rows(store, "packs")} <= {*pack_files(store)}
                store.gc()
                assert_clean(store, expected)
                assert len(pack_files(store)) == 1
                count = -1000
    finally:
        end()
    assert fails_at > 8


# ---- caches of stores on S3 ---------------------------------------------------------------------


def make_cache(folder: Path, name: str, *, age: float, users: tuple[str, ...] = ()) -> Path:
    path = folder / name
    for part in ("index", "users", "frames"):
        (path / part).mkdir(parents=True)
    (path / "frames" / "file").write_bytes(bytes(1000))
    for user in users:
        (path / "users" / user).write_bytes(b"")
    for each in (path / "index", path / "users", path / "frames", path):
        os.utime(each, (time.time() - age,) * 2)
    return path


def test_caches_that_nobody_uses_go(no_caches: Path) -> None:
    from castore.s3.cache.index import boot_id

    old = 31 * 86400
    folder = cache_folder(bytes(16), "a place")
    assert folder is not None
    doomed = [
        make_cache(no_caches, os.path.basename(folder), age=old),
        make_cache(no_caches, "b" * 32, age=old, users=("an-earlier-boot.1",)),
        make_cache(no_caches, f"{'c' * 32}.{'0' * 12}", age=old),
        make_cache(no_caches, "9" * 32, age=old),
    ]
    (doomed[-1] / "users").rmdir()
    os.utime(doomed[-1], (time.time() - old,) * 2)
    kept = [
        make_cache(no_caches, "d" * 32, age=29 * 86400),
        make_cache(no_caches, "e" * 32, age=old, users=(f"{boot_id()}.1",)),
        *(make_cache(no_caches, name, age=old) for name in ("not-a-cache", "a" * 33, "A" * 32)),
        make_cache(no_caches, f"{'c' * 32}.{'0' * 13}", age=old),
    ]
    foreign = make_cache(no_caches, "f" * 32, age=old)
    (foreign / "something").write_bytes(b"of somebody else")
    for path in (foreign / "something", foreign):
        os.utime(path, (time.time() - old,) * 2)
    assert collect_caches(dry_run=True) == (4, 4000)
    assert all(path.exists() for path in doomed)
    assert collect_caches(dry_run=False) == (4, 4000)
    assert not any(path.exists() for path in doomed)
    assert {*no_caches.iterdir()} == {*kept, foreign}
    assert collect_caches(dry_run=False) == (0, 0)


@pytest.mark.parametrize("part", ["", "index", "users", "frames"])
def test_a_cache_was_used_when_the_last_of_its_parts_was(part: str, no_caches: Path) -> None:
    cache = make_cache(no_caches, "a" * 32, age=2 * UNUSED_S)
    os.utime(cache / part)
    assert collect_caches(dry_run=False) == (0, 0)
    assert cache.exists()


@pytest.mark.parametrize("backwards", [False, True])
def test_what_is_no_cache_stays_and_keeps_no_other(
    backwards: bool, no_caches: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listdir = os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: sorted(listdir(path), reverse=backwards))
    elsewhere = make_cache(tmp_path, "elsewhere", age=2 * UNUSED_S)
    doomed = make_cache(no_caches, "b" * 32, age=2 * UNUSED_S)
    link, file = no_caches / ("a" * 32), no_caches / ("c" * 32)
    link.symlink_to(elsewhere)
    file.write_bytes(b"")
    assert collect_caches(dry_run=False) == (1, 1000)
    assert not doomed.exists()
    assert {*no_caches.iterdir()} == {link, file}
    assert elsewhere.exists()


def test_a_user_without_a_place_for_caches_has_none_to_collect(
    no_caches: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert collect_caches(dry_run=False) == (0, 0)  # it is not made for it
    assert not no_caches.exists()
    no_caches.mkdir()
    monkeypatch.chdir(no_caches)
    monkeypatch.setattr("castore.s3.cache.unused.cache_root", lambda: None)
    make_cache(no_caches, "a" * 32, age=2 * UNUSED_S)
    assert collect_caches(dry_run=False) == (0, 0)


def test_a_collection_takes_caches_too(store: castore.Store, no_caches: Path) -> None:
    make_cache(no_caches, "a" * 32, age=2 * UNUSED_S)
    report = store.gc()
    assert (report.caches_removed, report.cache_bytes_freed) == (1, 1000)
    assert not report.found_nothing


# ---- the ground that it stands on ---------------------------------------------------------------


def test_a_put_whose_full_packs_are_collected_keeps_their_frames(
    store: castore.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It lets their locks go before its end; frames that no staged segment refers to yet are only
    in its own hands."""
    small_stages(monkeypatch)
    monkeypatch.setattr("castore.local.packs.PACK_BYTES_MAX", 20_000)
    data = some_bytes(300_000, 3)
    removed = 0
    file = store.open("large", "wb")
    for at in range(0, len(data), 5000):
        file.write(data[at : at + 5000])
        removed += store.gc(repack_below=1).packs_removed
    file.close()
    assert removed > 5
    assert store.gets("large") == data
    monkeypatch.setattr("castore.local.packs.PACK_BYTES_MAX", 256 << 20)
    store.gc(repack_below=1)
    assert_clean(store, {"large": data})


def test_a_put_that_was_taken_for_dead_publishes_nothing(
    store: castore.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody removed the file whose lock said that it lives."""
    small_stages(monkeypatch)
    file = store.open("large", "wb")
    file.write(some_bytes(300_000, 3))
    for pack in pack_files(store):
        os.unlink(store._backend.packs.path(bytes.fromhex(pack)))  # type: ignore[union-attr]
    assert store.gc().manifests_removed == 1
    with pytest.raises(StoreIOError, match="repeat the put"):
        file.close()
    assert not store.exists("large")
    store.gc()
    assert_clean(store, {})
