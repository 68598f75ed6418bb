"""Mending a local store, while it may be in use.

What the repair of damage must never do is add to it. So: nothing is written over or removed but
rows of the index, each in a write transaction that looks again at what it changes; a pack that is
damaged is left as it is, its intact frames are copied to a new one, and once nothing leads to it
any more it is moved below `quarantine/`, by linking (or copying) it there before the transaction
and unlinking it after. Whoever dies in the middle leaves a store that the next repair goes on with.

It keeps to what a collector keeps to: it touches a pack only with its lock held, inside a write
transaction that raises `gc_seq`, so that a writer who has looked up a frame of it finds out.
"""

from __future__ import annotations

import errno
import os
from functools import partial
from itertools import count

from castore.check.plan import refuse_later, refuse_most_missing
from castore.errors import FormatError
from castore.format.index import manifest_of
from castore.format.segment import decode_segment
from castore.local.check.journal import mend_journal
from castore.local.check.pack_files import pack_path
from castore.local.check.repair_objects import ObjectRepair
from castore.local.check.repair_packs import PackRepair, Parts
from castore.local.check.repair_places import make_folder, mend_places
from castore.local.check.repair_rows import RowRepair
from castore.local.check.run import check_local
from castore.local.check.segments import named_manifests, pending_manifests, segments_of
from castore.local.config_repair import rewrite_config
from castore.local.gc.collect import LOCK as GC_LOCK
from castore.local.journal.files import append_all
from castore.local.locks import CollectorLock, PackLocks
from castore.local.meta import GC_SEQ, next_number
from castore.local.pack import Placement
from castore.local.tables import Tables
from castore.model import Progress, Stages
from castore.stream.reports import CheckReport, Problem
from castore.system.fileio import NO_HARD_LINKS, adopt, descriptor, sync_folder, typed_errors
from castore.system.outfolder import replacing

COPY_BYTES = 1 << 20


class LocalRepair:
    """`check_and_repair` is all of it; `run` does what can be done about what a check of all data
    found, and says what it did."""

    def __init__(self, parts: Parts) -> None:
        self._root = parts.root
        self._index = parts.index
        self._catalog = parts.catalog
        self._packs = parts.packs
        self.lost: list[Problem] = []  # objects that are kept below quarantine/, with holes
        self.sound: set[bytes] = set()  # packs that nothing was wrong with, with all data read
        self._done: list[str] = []
        self._placement = Placement()
        self._locks = PackLocks(parts.packs)
        self._frames = PackRepair(parts, self._locks, self._placement, self._done)
        self._rows = RowRepair(parts, self._frames, self._done)
        self._objects = ObjectRepair(parts, self._frames, self._done, self.lost)

    def check_and_repair(
        self,
        found: CheckReport | None,
        *,
        packs_are_lost: bool,
        threads: int,
        progress: Progress | None,
    ) -> CheckReport:
        """The report of a check after the repair. All data is read once, by this or by the check
        that `found` is the report of; then only packs that something was wrong with, or that have
        come since. Raises RepairRefused, UnsupportedFormat, StoreFull, StoreIOError."""
        stages = Stages(progress)
        check = partial(check_local, self._root, fraction=1, threads=threads, progress=stages)
        before = found or check()
        refuse_later(before, self._root)
        if not packs_are_lost:
            refuse_most_missing(before, self._root)
        # A collector moves frames, too, and relies on it that nobody else does.
        with CollectorLock(os.path.join(self._root, GC_LOCK)) as lock:
            try:
                self._packs.retire()
                with typed_errors(self._root):
                    done = self.run(before)
            finally:
                lock.unlock()
        report = check(sound=self.sound)
        report.read_frames += before.read_frames
        report.read_bytes += before.read_bytes
        report.problems += self.lost
        report.repaired = done
        return report

    def run(self, report: CheckReport) -> list[str]:
        frames, objects = self._frames, self._objects
        self._done += rewrite_config(self._root)
        self._done += mend_places(self._root)
        self._rows.mend_meta()
        self._done += mend_journal(self._root, self._index, self._catalog.journal)
        self._rows.mend_pending()
        self._rows.mend_keys()
        self._rows.mend_bits(report)
        frames.read(report)
        self.sound = frames.sound(report)
        try:
            with self._locks:
                frames.take_locks(report)
                wanted = {bytes.fromhex(p.chunk) for p in report.problems if p.chunk}
                frames.find_elsewhere(wanted | objects.dangling_chunks())
                frames.copy_intact()
                frames.read_new()
                self._rows.mend_chunks()
                objects.move_extents()
                objects.salvage(report)
                frames.read_new()
                self._finish()
        finally:
            self._catalog.forget_all()
            self._packs.release(self._placement)
        return self._done

    # ------------------------------------------------------------ the end

    def _finish(self) -> None:
        """One transaction after which nothing leads to the packs that were replaced, and all rows
        are right; then these packs are below quarantine/ alone."""
        replaced = self._frames.replaced
        links = {pack_id: self._link(pack_id) for pack_id in sorted(replaced)}
        index = self._index
        with index.write_gate, index.errors, index.begin() as txn, Tables(index, txn) as tables:
            named = named_manifests(index, txn)
            self._drop_segments(tables, named)
            pending = pending_manifests(index, txn, self._root, replaced)
            blocked = self._move_stragglers(tables, named | pending)
            gone = replaced - blocked
            self._rows.mend_all_chunks(tables, gone)
            self._rows.mend_packs(tables, gone)
            self._rows.count(tables)
            next_number(index, txn, GC_SEQ)
        for pack_id, link in links.items():
            if pack_id in blocked:
                os.unlink(link)
                self._done.append(
                    f"pack {pack_id.hex()} is in use by what was put just now: repeat"
                )
                continue
            os.unlink(pack_path(self._root, pack_id))
            sync_folder(os.path.dirname(pack_path(self._root, pack_id)))
            self._done.append(f"pack {pack_id.hex()} is now {link}")

    def _link(self, pack_id: bytes) -> str:
        """Where the pack's file is below quarantine/, too: where it was linked by a repair that was
        killed, or else beside what an earlier repair put there, of a pack that was brought back."""
        folder = os.path.join(self._root, "quarantine")
        make_folder(folder, self._root)
        source = pack_path(self._root, pack_id)
        for number in count():
            end = f".{number}.pack" if number else ".pack"
            path = os.path.join(folder, pack_id.hex() + end)
            try:
                os.link(source, path)
            except FileExistsError:
                if not os.path.samefile(source, path):
                    continue
            except OSError as error:
                # Linux lets only who may write to a file link it, and others may share the store.
                if error.errno not in NO_HARD_LINKS | {errno.EACCES}:
                    raise
                self._copy(source, path)
            break
        sync_folder(folder)
        return path

    def _copy(self, source: str, target: str) -> None:
        with descriptor(source) as reading, replacing(target) as draft:
            for block in iter(partial(os.read, reading, COPY_BYTES), b""):
                append_all(draft.fd, block)
            adopt(draft.fd, self._root)
            os.fsync(draft.fd)

    def _drop_segments(self, tables: Tables, named: set[int]) -> None:
        """Of the manifests whose names were moved away: what they lead to is lost, or copied."""
        for manifest in self._objects.emptied - named:
            for key, _ in list(segments_of(self._index, tables.txn, manifest)):
                tables.segments.delete(key)

    def _move_stragglers(self, tables: Tables, alive: set[int]) -> set[bytes]:
        """Lead what was committed meanwhile to the copies; the packs that some object still needs,
        though no copy of what it needs is known."""
        index, replaced = self._index, self._frames.replaced
        blocked: set[bytes] = set()
        moved = {}
        for key, raw in tables.txn.cursor(db=index.segments):
            raw = bytes(raw)
            try:
                segment = decode_segment(raw)
            except FormatError:
                continue
            if replaced.isdisjoint(segment.packs):
                continue
            new = segment.relocated(self._frames.moved_to)
            if new is not None:
                moved[bytes(key)] = new
            if manifest_of(bytes(key)) in alive:
                blocked |= replaced & set(decode_segment(new or raw).packs)
        for key, raw in moved.items():
            tables.segments.put(key, raw)
        return blocked
