"""Sessions against a collector: whatever it takes, and whenever, a put that ends can be read."""

from __future__ import annotations

import fcntl
import os
import random
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import oracle
import pytest
from sessions import rows, small_batches, small_stages, some_bytes

import castore
from castore.errors import (
    CastoreError,
    NameExists,
    NameNotFound,
    PackMissing,
    StoreFull,
    StoreIOError,
)
from castore.format.frame import decode_frame_header
from castore.format.index import (
    ChunkRow,
    Totals,
    decode_chunk_row,
    decode_record,
    encode_chunk_row,
    encode_pack_row,
    manifest_of,
    segment_key,
)
from castore.format.pack import PackEntry, encode_footer, encode_pack_header
from castore.format.segment import decode_segment
from castore.local.catalog import LocalCatalog
from castore.local.groups import PacksVanished
from castore.local.pack import Placement
from castore.local.packs import LocalPacks
from castore.model import FrameKind, Location, StoredChunk
from castore.system.lmdb_env import Index, open_index

CHUNKS_OF = {"chunk_bytes_avg": 2816, "threads": 1}


# ---- a collector, by the rules of the commit ----------------------------------------------------


class Collector:
    """What a collector does to a store, in one write transaction, by the rules it is held to: it
    takes a pack only under its lock, and counts a pending manifest as named while the lock of its
    owner's pack is held."""

    def __init__(self, store: castore.Store) -> None:
        self.root = Path(store.path)
        self.packs = store._backend.packs  # type: ignore[union-attr]
        self.index: Index = open_index(str(self.root / "index"))
        self.taken: set[bytes] = set()

    def close(self) -> None:
        self.index.close()

    def locked(self, pack_id: bytes) -> int | None:
        """A descriptor that holds the pack's lock; None if its writer lives."""
        fd = os.open(self.packs.path(pack_id), os.O_RDWR)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return None
        return fd

    def run(self, *, move_to: bytes | None = None) -> set[bytes]:
        """Take every pack that nothing alive refers to; with `move_to`, all that can be locked,
        after the frames that are alive were moved to that new pack."""
        index = self.index
        locks: dict[bytes, int] = {}
        with index.write_gate, index.errors, index.begin() as txn:
            alive = self._alive_manifests(txn)
            segments = {
                bytes(key): bytes(raw)
                for key, raw in txn.cursor(db=index.segments)
                if manifest_of(bytes(key)) in alive
            }
            used = {p for raw in segments.values() for p in decode_segment(raw).packs}
            files = {bytes.fromhex(path.stem) for path in self.root.glob("packs/*/*.pack")}
            for pack_id in sorted(files):
                if pack_id in used and move_to is None:
                    continue
                fd = self.locked(pack_id)
                if fd is not None:
                    locks[pack_id] = fd
            if move_to is not None:
                self._move(txn, segments, set(locks), move_to)
            for key in [bytes(key) for key in txn.cursor(db=index.segments).iternext(values=False)]:
                if manifest_of(key) not in alive:
                    txn.delete(key, db=index.segments)
            kept = txn.get(b"totals", db=index.meta)
            totals = Totals() if kept is None else Totals.decode(bytes(kept))
            for chunk_id, raw in list(txn.cursor(db=index.chunks)):
                row = decode_chunk_row(bytes(raw))
                if row.location.pack_id in locks:
                    txn.delete(bytes(chunk_id), db=index.chunks)
                    totals.count_chunk(row, -1)
            txn.put(b"totals", totals.encode(), db=index.meta)
            for pack_id in locks:
                txn.delete(pack_id, db=index.packs)
            sequence = int.from_bytes(txn.get(b"gc_seq", db=index.meta) or b"", "little")
            txn.put(b"gc_seq", (sequence + 1).to_bytes(8, "little"), db=index.meta)
        for pack_id, fd in locks.items():
            os.unlink(self.packs.path(pack_id))
            os.close(fd)
        self.taken |= set(locks)
        return set(locks)

    def _alive_manifests(self, txn: Any) -> set[int]:
        index = self.index
        alive = {decode_record(bytes(raw)).manifest for _, raw in txn.cursor(db=index.names)}
        for key, owner in list(txn.cursor(db=index.pending)):
            fd = self.locked(bytes(owner))
            if fd is None:
                alive.add(manifest_of(bytes(key)))
            else:
                os.close(fd)
                txn.delete(bytes(key), db=index.pending)
        return alive - {0}

    def _move(
        self, txn: Any, segments: dict[bytes, bytes], packs: set[bytes], target: bytes
    ) -> None:
        """Copy what is alive in `packs` to the pack `target`, and let the index say so."""
        store_id = bytes(txn.get(b"store_id", db=self.index.meta))
        parts, size = [encode_pack_header(store_id, target)], 64
        moved: dict[FrameKind, tuple[int, Location]] = {}

        def find(chunk: StoredChunk) -> Location | None:
            nonlocal size
            at = chunk.location
            if at.pack_id not in packs:
                return None
            if chunk.kind not in moved:
                frame = Path(self.packs.path(at.pack_id)).read_bytes()
                parts.append(frame[at.offset :][: at.stored_bytes])
                moved[chunk.kind] = chunk.raw_bytes, Location(target, size, at.stored_bytes)
                size += at.stored_bytes
            return moved[chunk.kind][1]._replace(bases=at.bases)

        for key, raw in segments.items():
            txn.put(key, decode_segment(raw).relocated(find) or raw, db=self.index.segments)
        entries = [
            PackEntry(chunk_id, place.offset, place.stored_bytes, raw_bytes, bases)
            for (chunk_id, bases), (raw_bytes, place) in moved.items()
        ]
        path = Path(self.packs.path(target))
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"".join(parts) + encode_footer(entries, size))
        txn.put(target, encode_pack_row(1, size), db=self.index.packs)
        for (chunk_id, bases), (raw_bytes, place) in moved.items():
            if not bases or (chunk_id, ()) not in moved:
                row = encode_chunk_row(ChunkRow(raw_bytes, place, bases))
                txn.put(chunk_id, row, db=self.index.chunks)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[castore.Store]:
    with castore.open(tmp_path / "store", **CHUNKS_OF) as store:  # type: ignore[arg-type]
        yield store


@pytest.fixture
def fast_folder(tmp_path: Path) -> Iterator[Path]:
    with oracle.fast_folder(tmp_path) as folder:
        yield folder


def reopened(store: castore.Store) -> castore.Store:
    """The same store without anything that this process remembers of it: its packs are closed."""
    store.close()
    return castore.open(store.path, create=False, threads=1)


class Moments:
    """Calls something between the steps of a put."""

    def __init__(self, patch: pytest.MonkeyPatch, call: Callable[[], object], at: int) -> None:
        self.count = 0
        self.at = at
        self.call = call
        self.inside = False
        for owner, name, before in (
            (LocalCatalog, "known", False),
            (LocalPacks, "append", True),
            (LocalPacks, "append", False),
            (Placement, "sync", True),
            (LocalCatalog, "stage", True),
            (LocalCatalog, "stage", False),
            (LocalCatalog, "commit", True),
        ):
            patch.setattr(owner, name, self._around(getattr(owner, name), before))

    def _around(self, real: Callable[..., Any], before: bool) -> Callable[..., Any]:
        def around(*args: Any, **options: Any) -> Any:
            if before:
                self._moment()
            result = real(*args, **options)
            if not before:
                self._moment()
            return result

        return around

    def _moment(self) -> None:
        if self.inside:
            return
        self.count += 1
        # 0: often, but not so often that no look-up finds what it has looked up.
        if self.at == self.count or (self.at == 0 and self.count % 3 == 1):
            self.inside = True
            try:
                self.call()
            finally:
                self.inside = False


OLD = some_bytes(60_000)
NEW = OLD[:40_000] + some_bytes(30_000, 1) + OLD[20_000:]


def put_amid_collections(
    path: Path, patch: pytest.MonkeyPatch, at: int, *, staged: bool, moves: bool, options: Any
) -> tuple[int, int]:
    """One put of bytes that are partly known, with a collector at moment `at` of it (0: at many).
    How many moments there were, and how many packs were taken."""
    with patch.context() as patched:
        small_batches(patched)
        if staged:
            small_stages(patched)
        with castore.open(path, **options) as store:
            store.puts("old", OLD)
            if moves:
                store.copy("old", "kept")
            store.delete("old")
            store = reopened(store)
            store.puts("other", some_bytes(9000, 7))
            store = reopened(store)
            collector = Collector(store)

            def collect() -> None:
                target = random.Random(len(collector.taken)).randbytes(16) if moves else None
                collector.run(move_to=target)

            moments = Moments(patched, collect, at)
            store.puts("new", NEW)
            count = moments.count
            moments.at = -1
            assert store.gets("new") == NEW
            store = reopened(store)
            assert store.gets("new") == NEW
            assert store.gets("other") == some_bytes(9000, 7)
            assert not moves or store.gets("kept") == OLD
            oracle.check_index(store)
            # And nothing of it is garbage: the next collection leaves it.
            collector.run()
            store = reopened(store)
            assert store.gets("new") == NEW
            oracle.check_index(store)
            taken = len(collector.taken)
            collector.close()
            store.close()
    return count, taken


@pytest.mark.parametrize("moves", [False, True], ids=["removed", "moved"])
@pytest.mark.parametrize("staged", [False, True], ids=["at once", "staged"])
@pytest.mark.parametrize("guard", [None, "sha256"], ids=["plain", "guarded"])
@pytest.mark.sampled(3)
def test_packs_collected_at_any_moment(
    fast_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    staged: bool,
    moves: bool,
    guard: str | None,
) -> None:
    options = {**CHUNKS_OF, "collision_guard": guard}
    at, last, taken = 0, 1, 0
    while at <= last:
        last, taken_now = put_amid_collections(
            fast_folder / str(at), monkeypatch, at, staged=staged, moves=moves, options=options
        )
        taken += taken_now
        at += 1 if at < 12 else 3
    assert last > 10
    assert taken > 4


@pytest.mark.parametrize("staged", [False, True])
def test_a_transaction_amid_collections(
    fast_folder: Path, monkeypatch: pytest.MonkeyPatch, staged: bool
) -> None:
    """Several objects in one commit, each partly of packs that go."""
    if staged:
        small_stages(monkeypatch)
    at, last = 0, 1
    while at <= last:
        with castore.open(fast_folder / str(at), **CHUNKS_OF) as store:  # type: ignore[arg-type]
            store.puts("old", OLD)
            store.delete("old")
            store = reopened(store)
            collector = Collector(store)
            with monkeypatch.context() as patched:
                moments = Moments(patched, collector.run, at)
                with store.transaction() as transaction:
                    transaction.puts("a", OLD)
                    transaction.puts("b", NEW)
                    transaction.puts("c", b"inline")
                    transaction.copy("a", "d")
            last = moments.count
            store = reopened(store)
            held = {"a": OLD, "b": NEW, "c": b"inline", "d": OLD}
            assert {name: store.gets(name) for name in store.names()} == held
            oracle.check_index(store)
            collector.close()
            store.close()
        at += 2


def test_chunks_that_were_just_moved_are_found_again(
    store: castore.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look-up and the hold: they are where the index says now, and not stored anew."""
    store.puts("old", OLD)
    store = reopened(store)
    collector = Collector(store)
    real = LocalCatalog.known
    moves = iter([b"first target....", b"second target..."])

    def known(catalog: LocalCatalog, chunk_ids: Any) -> Any:
        found = real(catalog, chunk_ids)
        target = next(moves, None)
        if target is not None:
            collector.run(move_to=target)
        return found

    monkeypatch.setattr(LocalCatalog, "known", known)
    store.puts("again", OLD)
    monkeypatch.undo()
    assert [pack_id for pack_id, _ in collector.packs.list()] == [b"second target..."]
    assert store.gets("again") == store.gets("old") == OLD
    oracle.check_index(store)
    collector.close()
    store.close()


# ---- what the commit promises the collector -----------------------------------------------------


def test_chunk_rows_come_back_when_the_collector_has_been_there(
    store: castore.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may take the row of a chunk and leave its pack, which other chunks keep."""
    small_batches(monkeypatch)
    store.puts("old", OLD)
    store.delete("old")
    index = store._catalog._index  # type: ignore[union-attr]
    before = rows(store, "chunks")
    file = store.open("new", "wb")
    file.write(OLD)
    file.write(some_bytes(100_000, 3))  # so that the first are looked up
    with index.write_gate, index.errors, index.begin() as txn:
        totals = Totals.decode(bytes(txn.get(b"totals", db=index.meta)))
        for chunk_id, row in before.items():
            txn.delete(chunk_id, db=index.chunks)
            totals.count_chunk(decode_chunk_row(row), -1)
        txn.put(b"totals", totals.encode(), db=index.meta)
        txn.put(b"gc_seq", (5).to_bytes(8, "little"), db=index.meta)
    file.close()
    after = rows(store, "chunks")
    assert len(before) > 10
    # The last chunk of OLD may be cut elsewhere now that more follows.
    assert len(before.keys() - after.keys()) <= 1
    assert all(after[chunk_id] == before[chunk_id] for chunk_id in before.keys() & after.keys())
    oracle.check_index(store)


def test_changes_are_written_down_only_while_a_collector_marks(store: castore.Store) -> None:
    index = store._catalog._index  # type: ignore[union-attr]
    store.puts("before", b"1")
    assert rows(store, "changes") == {}
    with index.write_gate, index.errors, index.begin() as txn:
        txn.put(b"marking", b"1", db=index.meta)

    def in_one_commit() -> None:
        with store.transaction() as transaction:
            transaction.puts("p/1", b"1")
            transaction.puts("p/2", OLD)
            transaction.delete("before")

    seen = 0
    for change, names in (
        (lambda: store.puts("a", b"1"), "a"),
        (lambda: store.puts("a", OLD), "a"),
        (lambda: store.copy("a", "b"), "b"),
        (lambda: store.rename("b", "c"), "b c"),
        (lambda: store.delete("c"), "c"),
        (in_one_commit, "p/1 p/2 before"),
        (lambda: store.delete_prefix("p/"), "p/1 p/2"),
    ):
        change()
        changes = rows(store, "changes")
        assert [int.from_bytes(key, "big") for key in changes] == list(range(1, len(changes) + 1))
        assert {name.decode() for name in list(changes.values())[seen:]} == set(names.split())
        seen = len(changes)
    with pytest.raises(NameExists):
        store.puts("a", b"", if_absent=True)
    with pytest.raises(NameNotFound):
        store.delete("nothing")
    with index.write_gate, index.errors, index.begin() as txn:
        txn.delete(b"marking", db=index.meta)
    store.puts("after", b"1")
    assert rows(store, "changes") == changes


def test_a_staged_object_is_pending_until_its_commit(
    store: castore.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_stages(monkeypatch)
    store.puts("warm", some_bytes(9000, 2))
    data = some_bytes(1_200_000, 4)
    file = store.open("large", "wb")
    file.write(data)
    pending = rows(store, "pending")
    assert len(pending) == 1
    ((key, owner),) = pending.items()
    assert key == segment_key(manifest_of(key), 0)
    collector = Collector(store)
    assert collector.locked(owner) is None, "the owner lives"
    segments = len(rows(store, "segments"))
    assert segments > 50
    assert collector.run() == set()
    assert rows(store, "pending") == pending
    assert len(rows(store, "segments")) == segments
    assert not store.exists("large")
    assert list(store.names()) == ["warm"]
    file.close()
    assert rows(store, "pending") == {}
    assert store.gets("large") == data
    oracle.check_index(store)
    collector.run()
    store = reopened(store)
    assert store.gets("large") == data
    collector.close()
    store.close()


@pytest.mark.parametrize("end", ["abort", "error"])
def test_what_was_staged_is_garbage_when_the_put_fails(
    store: castore.Store, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    small_stages(monkeypatch)
    file = store.open("large", "wb")
    file.write(some_bytes(900_000, 5))
    if end == "abort":
        file.abort()
    else:
        with pytest.raises(NameExists), monkeypatch.context() as patched:  # noqa: PT012

            def fail(*args: Any) -> None:
                raise NameExists("large")

            patched.setattr(LocalCatalog, "commit", fail)
            file.close()
    assert len(rows(store, "pending")) == 1
    assert not store.exists("large")
    store.puts("small", OLD)
    store = reopened(store)
    collector = Collector(store)
    collector.run()
    assert rows(store, "pending") == {}
    assert store.gets("small") == OLD
    store = reopened(store)
    assert store.gets("small") == OLD
    oracle.check_index(store)
    collector.close()
    store.close()


def test_a_killed_writers_staged_rows_are_the_collectors(tmp_path: Path) -> None:
    program = """
import os, random, sys
import castore, castore.format.segment, castore.local.session, castore.stream.writer
castore.format.segment.SEGMENT_EXTENTS_MAX = 4
castore.local.session.SEGMENTS_MAX = 2
store = castore.open(sys.argv[1], chunk_bytes_avg=2816, threads=1)
castore.stream.writer.BATCHES_MAX = 0
castore.stream.writer.BATCH_BYTES = 16_384
file = store.open('large', 'wb')
file.write(random.Random(1).randbytes(900_000))
print('staged', flush=True)
sys.stdin.readline()
"""
    path = tmp_path / "store"
    with subprocess.Popen(
        oracle.python(program, path),
        env=oracle.environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"staged\n"
        with castore.open(path, create=False) as store:
            collector = Collector(store)
            ((_, owner),) = rows(store, "pending").items()
            assert collector.run() == set(), "its writer lives"
            assert len(rows(store, "pending")) == 1
            process.kill()
            process.wait()
            assert owner in collector.run()
            assert rows(store, "pending") == rows(store, "segments") == {}
            assert rows(store, "chunks") == rows(store, "packs") == {}
            assert not list(path.glob("packs/*/*.pack"))
            store.puts("a", OLD)
            assert store.gets("a") == OLD
            oracle.check_index(store)
            collector.close()


def test_a_live_writers_packs_can_not_be_taken(
    store: castore.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_batches(monkeypatch)
    collector = Collector(store)
    file = store.open("a", "wb")
    file.write(some_bytes(900_000, 6))
    assert list(Path(store.path).glob("packs/*/*.pack"))
    assert collector.run() == set()
    file.close()
    store.delete("a")
    assert collector.run() == set(), "the pack is still open for the next put"
    store = reopened(store)
    assert len(collector.run()) == 1
    collector.close()
    store.close()


def test_sealed_packs_stay_locked_until_the_commit_that_names_them(
    store: castore.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_batches(monkeypatch)
    monkeypatch.setattr("castore.local.packs.PACK_BYTES_MAX", 200_000)
    collector = Collector(store)
    data = some_bytes(1_500_000, 6)
    file = store.open("a", "wb")
    file.write(data)
    assert len(list(Path(store.path).glob("packs/*/*.pack"))) > 4
    assert collector.run() == set()
    file.close()
    assert store.gets("a") == data
    # They are free now that their rows are there, but for the one that is open.
    locked = [path for path in Path(store.path).glob("packs/*/*.pack") if
              collector.locked(bytes.fromhex(path.stem)) is None]  # fmt: skip
    assert len(locked) == 1
    assert collector.run() == set()
    collector.close()


def test_a_collector_that_never_rests(
    store: castore.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The put gives up with an error of its own, and publishes nothing."""

    def vanish(catalog: LocalCatalog, batch: Any, operations: Any) -> int:
        raise PacksVanished(set(batch.packs))

    store.puts("old", OLD)
    monkeypatch.setattr(LocalCatalog, "commit", vanish)
    with pytest.raises(StoreIOError, match="repeat"):
        store.puts("new", OLD + OLD)
    monkeypatch.undo()
    assert list(store.names()) == ["old"]
    store.puts("new", OLD + OLD)
    assert store.gets("new") == OLD + OLD


# ---- numbers of manifests -----------------------------------------------------------------------


@pytest.mark.parametrize("moment", ["in the transaction", "at its commit"])
def test_a_stage_that_fails_takes_no_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """In a transaction that goes on, the other objects must not be committed under numbers that
    were rolled back: another commit has taken them meanwhile."""
    failing = [False]

    def fail() -> None:
        if failing[0]:
            failing[0] = False
            raise (
                oracle.lmdb.DiskError("mdb_txn_commit: injected")
                if hasattr(oracle.lmdb, "DiskError")
                else oracle.lmdb.Error("mdb_txn_commit: injected")
            )

    end = oracle.watch_commits(fail if moment == "at its commit" else lambda: None)
    small_stages(monkeypatch)
    real = LocalCatalog._apply

    def apply(catalog: LocalCatalog, *changes: Any, pending_owner: Any) -> Any:
        numbers = real(catalog, *changes, pending_owner=pending_owner)
        if moment == "in the transaction" and pending_owner is not None and failing[0]:
            failing[0] = False
            raise StoreFull("injected")
        return numbers

    monkeypatch.setattr(LocalCatalog, "_apply", apply)
    with castore.open(tmp_path / "store", **CHUNKS_OF) as store:  # type: ignore[arg-type]
        first, second, third = (some_bytes(9000, i) for i in range(3))
        with store.transaction() as transaction:
            transaction.puts("first", first)
            failing[0] = True
            with pytest.raises(CastoreError):
                transaction.puts("fails", some_bytes(900_000, 9))
            assert not failing[0]
            store.puts("second", second)
            store.puts("third", third)
        assert store.gets("second") == second
        assert store.gets("third") == third
        assert store.gets("first") == first
        assert not store.exists("fails")
        oracle.check_index(store)
    end()


def test_numbers_are_not_given_twice(store: castore.Store) -> None:
    for i in range(20):
        store.puts(f"{i}", some_bytes(5000, i))
    store.delete_prefix("1", unbounded=True)
    for i in range(20, 30):
        store.puts(f"{i}", some_bytes(5000, i))
    manifests = [manifest_of(key) for key in rows(store, "segments")]
    assert len(set(manifests)) == len(manifests) == 30
    for name in store.names():
        assert store.gets(name) == some_bytes(5000, int(name))


# ---- packs that were lost outside ---------------------------------------------------------------


@pytest.mark.damages_store("packs are damaged or removed")
@pytest.mark.parametrize("loss", ["removed", "emptied", "cut short"])
@pytest.mark.parametrize("mapped", [False, True], ids=["reopened", "mapped"])
def test_the_next_put_of_lost_bytes_stores_them_anew(
    store: castore.Store, loss: str, mapped: bool
) -> None:
    store.puts("a", OLD)
    store.puts("small", b"small")
    store = reopened(store)
    if mapped:
        assert store.gets("a") == OLD
    (pack,) = Path(store.path).glob("packs/*/*.pack")
    if loss == "removed":
        pack.unlink()
    else:
        os.truncate(pack, 0 if loss == "emptied" else pack.stat().st_size // 3)
    if not mapped:
        with pytest.raises(CastoreError):
            store.gets("a")
    assert store.gets("small") == b"small"
    store.puts("a", OLD)
    assert store.gets("a") == OLD
    store = reopened(store)
    assert store.gets("a") == OLD
    store.puts("b", OLD[:30_000])
    store = reopened(store)
    assert store.gets("b") == OLD[:30_000]
    oracle.check_index(store)  # no row leads to what is lost
    store.close()


@pytest.mark.damages_store("packs are damaged or removed")
def test_a_lost_pack_is_a_typed_loss(store: castore.Store) -> None:
    store.puts("a", OLD)
    store = reopened(store)
    (pack,) = Path(store.path).glob("packs/*/*.pack")
    pack.unlink()
    for read in (
        lambda: store.gets("a"),
        lambda: store.gets("a", (0, 1)),
        lambda: store.open("a"),
        lambda: store.get("a", pack.with_name("target")),
    ):
        with pytest.raises(PackMissing) as caught:
            read()
        assert caught.value.pack_id.hex() == pack.stem
    store.close()


@pytest.mark.damages_store("packs are damaged or removed")
def test_a_writers_own_pack_that_is_removed_under_it(
    store: castore.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its bytes are there until it is closed: this put is whole, and so are the next."""
    store.puts("a", OLD)
    (pack,) = Path(store.path).glob("packs/*/*.pack")
    pack.unlink()
    for i in range(3):
        store.puts(f"b{i}", some_bytes(50_000, i + 20))
    small_batches(monkeypatch)
    file = store.open("c", "wb")
    file.write(some_bytes(900_000, 30))
    for path in Path(store.path).glob("packs/*/*.pack"):
        path.unlink()
    file.close()
    store = reopened(store)
    assert store.gets("c") == some_bytes(900_000, 30)
    with pytest.raises(PackMissing):
        store.gets("a")
    store.puts("a", OLD)
    store = reopened(store)
    assert store.gets("a") == OLD
    store.close()


# ---- one session, several threads' puts ---------------------------------------------------------


def test_puts_that_share_a_pack_commit_each_for_itself(store: castore.Store) -> None:
    """One that fails takes nothing from the others in its pack."""
    files = [store.open(f"{i}", "wb") for i in range(6)]
    data = [some_bytes(400_000 + i, i + 40) for i in range(6)]
    for piece in range(0, 400_000, 100_000):
        for file, whole in zip(files, data, strict=True):
            file.write(whole[piece : piece + 100_000])
    for i, (file, whole) in enumerate(zip(files, data, strict=True)):
        file.write(whole[400_000:])
        if i % 2:
            file.abort()
        else:
            file.close()
    assert list(store.names()) == ["0", "2", "4"]
    store = reopened(store)
    for i in (0, 2, 4):
        assert store.gets(f"{i}") == data[i]
    oracle.check_index(store)
    store.close()


def test_the_same_new_bytes_in_two_sessions(store: castore.Store) -> None:
    """Each has a frame of its own; the index keeps the first, and both can be read."""
    files = [store.open(name, "wb") for name in "ab"]
    for file in files:
        file.write(NEW)
    threads = [threading.Thread(target=file.close) for file in files]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.gets("a") == store.gets("b") == NEW
    assert store.info("a").etag == store.info("b").etag
    oracle.check_index(store)
    frames = sum(
        decode_frame_header(path.read_bytes()[location.offset :]).raw_bytes
        for path in Path(store.path).glob("packs/*/*.pack")
        for _, location, _ in [decode_chunk_row(row) for row in rows(store, "chunks").values()]
        if bytes.fromhex(path.stem) == location.pack_id
    )
    assert frames == store.stats().unique_bytes


def test_what_is_copied_from_a_pack_that_went_is_checked(store: castore.Store) -> None:
    """The put fails, as what it would be made of is damaged."""
    store.puts("old", OLD)
    store.delete("old")
    store = reopened(store)
    collector = Collector(store)

    def put() -> None:
        with store.transaction() as transaction:
            transaction.puts("new", OLD)  # all of it is known, and held
            for path in Path(store.path).glob("packs/*/*.pack"):
                with path.open("r+b") as file:
                    file.seek(20_000)
                    byte = file.read(1)[0]
                    file.seek(20_000)
                    file.write(bytes([byte ^ 1]))
            assert collector.run()

    with pytest.raises(castore.errors.ChunkCorrupt):
        put()
    assert not store.exists("new")
    collector.close()
    store.close()
