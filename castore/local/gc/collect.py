"""Collecting a local store.

In this order: mark; remove the segments that nothing leads to, then rows of chunks, then packs;
then rewrite packs that are mostly dead. Each step leaves a store that is whole, with perhaps more
garbage than need be, so that a collection may end anywhere: the next one begins anew and finishes.

No clock is asked and no grace needed. Readers keep what they read from mapped; a writer holds the
locks of what it wrote, and learns in its commit if what it reuses is gone.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from castore.errors import CostsNothing, FormatError
from castore.local.catalog import LocalCatalog
from castore.local.gc.claim import claim, remove_leftovers, tend
from castore.local.gc.mark import SEGMENT_BYTES, Marker
from castore.local.gc.parts import Parts
from castore.local.gc.repack import Repacker
from castore.local.gc.sweep import ROW_BYTES, Sweeper
from castore.local.locks import CollectorLock
from castore.local.meta import GC_SEQ, read_number
from castore.local.packs import LocalPacks
from castore.model import Progress, Stages
from castore.stream.repack_choice import PackFacts
from castore.stream.reports import GcOptions, GcReport
from castore.system.lmdb_env import Index

LOCK = "castore.gc"
REPACK_BELOW = 0.5
FORETELLS_MAX = 3


def collect(
    root: str,
    catalog: LocalCatalog,
    packs: LocalPacks,
    *,
    seed: int,
    options: GcOptions,
    progress: Progress | None,
) -> GcReport:
    """Collect the store in the folder `root`.

    Raises CostsNothing for a `max_cost`; UnclaimedData if names are known to be lost, unless that
    is accepted; StoreBusy if another collection is running; FormatError if something that a name
    leads to can't be read, before anything is taken; StoreFull, StoreIOError, CommitUnknown: what
    was done until then is done, and the store is whole."""
    if options.max_cost is not None:
        raise CostsNothing(root)
    repack_below = REPACK_BELOW if options.repack_below is None else options.repack_below
    began = time.monotonic()
    index, dry_run = catalog.index, options.dry_run

    def run() -> GcReport:
        report = GcReport(dry_run=dry_run)
        collection = _Collection(Parts(index, packs, seed, report, Stages(progress)))
        claim(root, index, catalog.journal, accept=options.accept_unclaimed, dry_run=dry_run)
        if dry_run:
            collection.run(repack_below, options.max_repack_bytes)
        else:
            packs.retire()
            collection.marker.begin()
            try:
                collection.run(repack_below, options.max_repack_bytes)
            finally:
                collection.marker.end()
            tend(root, index, catalog.journal)
        report.leftovers_removed, size = remove_leftovers(root, dry_run=dry_run)
        report.bytes_freed += size
        return report

    if dry_run:
        report = _foretell(index, run)
    else:
        with CollectorLock(os.path.join(root, LOCK)) as lock:
            try:
                report = run()
            finally:
                lock.unlock()
    report.duration_s = time.monotonic() - began
    return report


def _foretell(index: Index, run: Callable[[], GcReport]) -> GcReport:
    """A dry run, which holds up no collection: what one takes meanwhile is not damage."""
    for _ in range(FORETELLS_MAX):
        before = _gc_seq(index)
        try:
            return run()
        except FormatError:
            if _gc_seq(index) == before:
                raise
    return run()


def _gc_seq(index: Index) -> int:
    with index.gate, index.snapshot() as txn:
        return read_number(index, txn, GC_SEQ)


class _Collection:
    def __init__(self, parts: Parts) -> None:
        self._index = parts.index
        self._report = parts.report
        self._stages = parts.stages
        self.marker = Marker(parts)
        self.sweeper = Sweeper(parts, self.marker)
        self.repacker = Repacker(parts, self.marker, self.sweeper)

    def run(self, repack_below: float, max_repack_bytes: int | None) -> None:
        self._begin_marking()
        self.marker.mark()
        if self._report.dry_run:
            self.marker.look_again()
        else:
            self.marker.catch_up_outside()
        self.sweeper.sweep_manifests()
        self.sweeper.sweep_chunks()
        marks = self.marker.marks
        facts = [
            PackFacts(
                pack_id,
                created_ns,
                size,
                marks.live_bytes[pack_id],
                len(marks.offsets(pack_id)),
                marks.live_bases[pack_id],
            )
            for pack_id, (size, created_ns) in self.sweeper.sweep_packs().items()
        ]
        chosen = self.repacker.choose(facts, repack_below=repack_below, bytes_max=max_repack_bytes)
        if self._report.dry_run:
            self._count_rewritten(chosen)
        elif chosen:
            self._stages.begin_stage("repacking", sum(pack.live_bytes for pack in chosen))
            self.repacker.rewrite(chosen)
        self.sweeper.seal_packs(but={pack.pack_id for pack in chosen})
        self._stages.end()
        self._report.objects = self.marker.objects

    def _count_rewritten(self, chosen: list[PackFacts]) -> None:
        report = self._report
        moved = sum(pack.live_size for pack in chosen)
        report.packs_rewritten = len(chosen)
        report.packs_removed += len(chosen)
        report.bytes_rewritten = moved
        report.bytes_freed += sum(pack.size for pack in chosen) - moved

    # ------------------------------------------------------------ progress, in bytes looked at

    def _begin_marking(self) -> None:
        index = self._index
        with index.gate, index.snapshot() as txn:
            segments = int(txn.stat(index.segments)["entries"])
            rows = int(txn.stat(index.chunks)["entries"])
        self._stages.begin_stage("marking", segments * SEGMENT_BYTES + rows * ROW_BYTES)
