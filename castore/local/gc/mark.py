"""Which manifests are alive, and the frames that they lead to, while others go on writing.

Marking reads in short transactions, so what it has seen may be outdated at any time. Whoever
changes a name meanwhile writes that down in the change table, and whoever stages an object keeps it
in `pending`: `catch_up` reads both and marks what came to life. So the rule for every transaction
that takes something is that it first catches up *within itself*: what is unmarked then is garbage,
since nobody can bring back what no name leads to and no live writer holds. What was marked and died
meanwhile is left to the next collection.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from itertools import islice

from castore.errors import FormatError
from castore.format.index import Record, decode_record, manifest_of, segment_key, segment_place
from castore.format.segment import Segment, decode_segment
from castore.local.gc.parts import Parts
from castore.local.index_walk import pages
from castore.local.locks import PackLocks
from castore.local.meta import GC_SEQ, last_manifest, next_number
from castore.local.tables import Tables
from castore.stream.live_frames import Manifests, Marks
from castore.system.lmdb_env import Txn
from castore.system.lmdb_snapshot import Snapshot

SEGMENT_BYTES = 36 << 10  # about, as progress goes
NAMES_PER_READ = 1000
SEGMENTS_PER_READ = 32  # 1 MiB: other threads wait for a read transaction of this process
CHANGES_PER_READ = 1000
CHANGES_LEFT = 256  # few enough to be marked while everybody waits
ROUNDS_MAX = 20


class Marker:
    def __init__(self, parts: Parts) -> None:
        self.marks = Marks()
        self.objects = 0
        self.dead = array("Q")  # manifests that had no name and no live writer
        self.recent: set[bytes] = set()  # packs that came to be referred to since it was cleared
        self._index = parts.index
        self._locks = PackLocks(parts.packs)
        self._advance = parts.stages.relative_update
        self._named = Manifests()
        self._pending: dict[int, int] = {}  # manifest of a live writer -> marked up to this end
        self._change_seq = 0
        self._manifest_last = 0

    # ------------------------------------------------------------ the change table

    def begin(self) -> None:
        """Have changes written down from now on."""
        index = self._index
        with index.write_gate, index.errors, index.begin() as txn:
            Tables(index, txn).begin_marking()

    def end(self) -> None:
        index = self._index
        with index.write_gate, index.errors, index.begin() as txn:
            Tables(index, txn).end_marking()

    def make_decisive(self, txn: Txn) -> None:
        """Have everything alive marked in a write transaction that is to take something. Those who
        looked up what it takes learn by the counter that they have to look again."""
        self.catch_up(txn)
        next_number(self._index, txn, GC_SEQ)

    # ------------------------------------------------------------ marking

    def mark(self) -> None:
        """Mark everything that is alive. Raises FormatError if something that a name leads to can't
        be read: then nothing can be said to be garbage."""
        index = self._index
        with index.gate, index.snapshot() as txn:
            self._manifest_last = last_manifest(index, txn)
            self._mark_pending(txn)
        self._read_names()
        last = (0, 0)  # manifest, and where its last segment ended
        for batch in self.live_segments(note_dead=True):
            for key, raw in batch:
                segment = _decode(key, raw)
                self.marks.add(segment)
                manifest, end = segment_place(key)
                if segment.begin != (last[1] if last[0] == manifest else 0):
                    raise _unknown(f"manifest {manifest} lacks a segment before byte {end}")
                last = manifest, end
                if manifest in self._pending:
                    self._pending[manifest] = max(end, self._pending[manifest])
            self._advance(len(batch) * SEGMENT_BYTES)
        self.marks.settle()

    def is_alive(self, manifest: int) -> bool:
        return manifest in self._pending or manifest in self._named

    def live_segments(self, *, note_dead: bool = False) -> Iterator[list[tuple[bytes, bytes]]]:
        """The segments of all manifests that are marked, as (key, raw), some at a time."""
        index, at = self._index, segment_key(0, 0)
        while at:
            batch = []
            with index.gate, index.snapshot() as txn, txn.cursor(db=index.segments) as cursor:
                found = cursor.set_range(at)
                for _ in range(SEGMENTS_PER_READ):
                    if not found:
                        break
                    key = bytes(cursor.key())
                    manifest = _manifest_of(key)
                    if self.is_alive(manifest):
                        batch.append((key, bytes(cursor.value())))
                        found = cursor.next()
                        continue
                    # Younger manifests are named or pending, which catching up will see.
                    if note_dead and manifest <= self._manifest_last:
                        self.dead.append(manifest)
                    found = cursor.set_range(segment_key(manifest + 1, 0))
                at = bytes(cursor.key()) if found else b""
            yield batch

    def catch_up(self, txn: Snapshot | Txn, changes_max: int | None = None) -> int:
        """Mark what came to life since; how many changes there were."""
        index = self._index
        with txn.cursor(db=index.changes) as cursor:
            first = (self._change_seq + 1).to_bytes(8, "big")
            rows = list(islice(cursor, changes_max)) if cursor.set_range(first) else []
        for sequence, name in rows:
            raw = txn.get(name, db=index.names)
            manifest = 0 if raw is None else self._record(name, raw).manifest
            if manifest and manifest not in self._named:
                self._mark_manifest(txn, manifest, 0)
                self._named.add(manifest)
            self._change_seq = int.from_bytes(sequence, "big")
        self._mark_pending(txn)
        return len(rows)

    def catch_up_outside(self) -> None:
        """Leave little to catch up with in the transactions that others wait for."""
        for _ in range(ROUNDS_MAX):
            changes = CHANGES_PER_READ
            while changes == CHANGES_PER_READ:
                with self._index.gate, self._index.snapshot() as txn:
                    changes = self.catch_up(txn, CHANGES_PER_READ)
            if changes <= CHANGES_LEFT:
                return

    def look_again(self) -> None:
        """Mark what came to life since, as far as a dry run can, for which nobody writes down what
        changes: what was renamed while names were read is found by its new one."""
        index = self._index
        for page in pages(index, index.names):
            found = {self._record(name, raw).manifest for name, raw in page}
            with index.gate, index.snapshot() as txn:
                for manifest in found:
                    if manifest and manifest not in self._named:
                        self._mark_manifest(txn, manifest, 0)
                        self._named.add(manifest)
        with index.gate, index.snapshot() as txn:
            self._mark_pending(txn)

    # ------------------------------------------------------------ below

    def _read_names(self) -> None:
        index, after = self._index, b""
        while True:
            with (
                index.gate,
                index.snapshot() as txn,
                txn.cursor(db=index.names) as cursor,
                txn.cursor(db=index.segments) as segments,
            ):
                if not (cursor.set_range(after + b"\0") if after else cursor.first()):
                    return
                for after, raw in islice(cursor, NAMES_PER_READ):
                    record = self._record(after, raw)
                    self.objects += 1
                    if record.is_inline:
                        continue
                    if not segments.set_key(segment_key(record.manifest, record.size)):
                        raise _unknown(f"{_shown(after)} lacks its last segment")
                    self._named.add(record.manifest)

    def _mark_pending(self, txn: Snapshot | Txn) -> None:
        with txn.cursor(db=self._index.pending) as cursor:
            rows = [(_manifest_of(bytes(key)), bytes(owner)) for key, owner in cursor]
        for manifest, owner in rows:
            if manifest not in self._named and self._locks.is_held(owner):
                marked = self._pending.get(manifest, 0)
                self._pending[manifest] = self._mark_manifest(txn, manifest, marked)

    def _mark_manifest(self, txn: Snapshot | Txn, manifest: int, end: int) -> int:
        """Mark its segments behind the one that ends at `end`; where the last of them ends."""
        with txn.cursor(db=self._index.segments) as cursor:
            found = cursor.set_range(segment_key(manifest, end + 1))
            while found and manifest_of(bytes(cursor.key())) == manifest:
                key = bytes(cursor.key())
                segment = _decode(key, bytes(cursor.value()))
                self.marks.add(segment)
                self.recent.update(segment.packs)
                end = segment_place(key)[1]
                found = cursor.next()
        return end

    def _record(self, name: bytes, raw: bytes) -> Record:
        try:
            return decode_record(raw)
        except FormatError as error:
            raise FormatError(
                f"the record of {_shown(name)}: {error}. Nothing is collected while it can't be "
                "told what it needs: put or delete the name"
            ) from None


def _decode(key: bytes, raw: bytes) -> Segment:
    try:
        return decode_segment(raw, manifest=manifest_of(key))
    except FormatError as error:
        raise _unknown(f"a segment of manifest {manifest_of(key)}: {error}") from None


def _manifest_of(key: bytes) -> int:
    try:
        return manifest_of(key)
    except FormatError as error:
        raise _unknown(f"a key of the index is damaged: {error}") from None


def _shown(name: bytes) -> str:
    return repr(bytes(name).decode(errors="replace"))


def _unknown(what: str) -> FormatError:
    return FormatError(
        f"{what}. Nothing is collected while it can't be told what it needs: run `castore check "
        "--repair`"
    )
