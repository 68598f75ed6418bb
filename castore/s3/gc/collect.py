"""Collecting a store on S3, beside writers on other machines and with no server between.

A round has two phases, with the grace between them. First everything is listed, and what nobody
needs is condemned: from then on no writer comes to rely on it. Then everything is listed again,
and what of it still nobody needs is removed: whoever came to rely on it before it was condemned
had pinned it, and has published it or still does. A collection finishes the round that it finds,
once its grace is over, and begins the next. It may end anywhere: the next one goes on from what
`gc/state` says.

The grace is for readers. What keeps data is the order in which collector and writers look at what
the other has announced (`castore/s3/lease.py` has the writers' half).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Set

from castore.errors import CastoreError, ClockSkewed, StoreIOError
from castore.model import Progress, Stages
from castore.s3.client.bucket import Bucket, OutcomeUnknown
from castore.s3.client.probe import ServerFeatures
from castore.s3.creation import server_time
from castore.s3.damaged import damaged_packs, mark_damaged, remove_marks
from castore.s3.gc.batches import BatchCollector
from castore.s3.gc.mark import PIN_S, S3Marker
from castore.s3.gc.memory import CollectorMemory
from castore.s3.gc.repack import OpenSession, S3Repacker
from castore.s3.gc.server import fit_server
from castore.s3.gc.state import CONDEMNED, SWEEPING, CollectorState
from castore.s3.gc.survey import Choice, Survey
from castore.s3.gc.sweep import remove_packs, remove_scratch
from castore.s3.hints import listed_hints, rewrite_hints
from castore.s3.listings import facts_of, rewrite_listings
from castore.s3.parts import Parts
from castore.s3.samples import tidy_samples
from castore.stream.reports import GcOptions, GcReport, Undeletable

SKEW_S_MAX = 300
SCRATCH_S = 86_400


def collect(
    parts: Parts,
    open_session: OpenSession,
    options: GcOptions,
    progress: Progress | None,
    ending: Set[bytes] = frozenset(),
) -> GcReport:
    """`open_session` is for what is copied. A dry run takes the sessions that are `ending` for
    ended.

    Raises CollectionRefused, ManifestUnreadable and FormatError before anything is removed;
    StoreBusy when another collection took over; StoreIOError, RemoteError and what else a Bucket
    raises: then the next collection goes on."""
    began = time.monotonic()
    features = _checked_server(parts.bucket, options)
    collection = _Collection(parts, open_session, options, features, progress, ending)
    try:
        if options.dry_run:
            collection.dry_run()
        else:
            collection.run()
    except OutcomeUnknown as error:
        raise StoreIOError(
            f"whether {error.key!r} was changed is not known ({error.__cause__}): collect again"
        ) from error
    report = collection.report()
    report.duration_s = time.monotonic() - began
    return report


def _checked_server(bucket: Bucket, options: GcOptions) -> ServerFeatures | None:
    """What it honours; not asked for a dry run, which writes nothing."""
    url = bucket.settings.url
    skew_s = bucket.clock_skew()
    if abs(skew_s) > SKEW_S_MAX:
        raise ClockSkewed(url, skew_s)
    return None if options.dry_run else fit_server(bucket, alone=options.alone)


class _Collection:
    """One run of the collector: `run`, or `dry_run`, then `report`."""

    def __init__(
        self,
        parts: Parts,
        open_session: OpenSession,
        options: GcOptions,
        features: ServerFeatures | None,
        progress: Progress | None,
        ending: Set[bytes],
    ) -> None:
        self._parts = parts
        self._bucket = parts.bucket
        self._requests = parts.requests
        self._store_id = parts.config.store_id
        self._options = options
        self._catalog = parts.catalog
        self._stages = stages = Stages(progress)
        self._may_rewrite = features is None or features.if_match_put
        conditional = features is None or (features.if_none_match and features.if_match_put)
        memory = CollectorMemory(parts.cache)
        self._state = CollectorState(parts, memory, conditional=conditional)
        self._memory = memory
        self._marker = S3Marker(parts, memory, stages, with_frames=options.repacks, ended=ending)
        self._repacker = S3Repacker(parts.catalog, self._marker, open_session, stages)
        self._report = GcReport(dry_run=options.dry_run)
        self._undeletable: dict[bytes, Exception] = {}

    def run(self) -> None:
        state, options = self._state, self._options
        state.read()
        if state.phase == CONDEMNED:
            if not self._grace_is_over():
                self._note_waiting()
                self._marker.count()
                return
            state.lead()
            self._second_phase()
        elif state.phase == SWEEPING:
            self._sweep()
        if state.phase == SWEEPING and not options.carry_undeletable:
            self._marker.count()
            return
        self._expire()
        if options.repacks and self._may_rewrite:
            self._repack()
        self._first_phase()
        with contextlib.suppress(CastoreError):  # they only save who lists some time
            rewrite_listings(
                self._bucket,
                self._store_id,
                self._marker.objects,
                self._marker.listed_bytes,
                facts_of(self._catalog.facts()),
            )
        self._collect_batches()
        if state.phase == CONDEMNED and not options.grace_s:
            self._second_phase()

    def dry_run(self) -> None:
        """Look, and count what a run would do: nothing before the grace is over."""
        options, report, state = self._options, self._report, self._state
        state.read()
        if state.phase == CONDEMNED and not self._grace_is_over():
            self._note_waiting()
            self._marker.count()
            return
        packs = self._marker.packs()
        condemned = set(state.listed().packs)
        expired_before = self._now() - PIN_S
        report.pins_expired = len(self._marker.expired_pins(expired_before))
        garbage = self._marker.garbage(packs, expired_before=expired_before)
        report.missing = tuple(i.hex() for i in self._marker.missing(packs))
        if options.repacks:
            chosen = self._choose(packs, garbage.keys() | condemned, expired_before).packs
            report.packs_rewritten = len(chosen)
            report.bytes_rewritten = sum(pack.live_bytes for pack in chosen)
            garbage |= {pack.pack_id: pack.size for pack in chosen}
        removed = condemned if options.grace_s else garbage.keys()
        doomed = [size for i, size in garbage.items() if i in removed]
        report.packs_removed, report.bytes_freed = len(doomed), sum(doomed)
        report.packs_condemned = len(garbage) - len(doomed)
        report.bytes_condemned = sum(garbage.values()) - sum(doomed)
        self._collect_batches()

    def report(self) -> GcReport:
        report = self._report
        report.objects = self._marker.objects
        report.undeletable = tuple(
            Undeletable(pack_id.hex(), str(error))
            for pack_id, error in sorted(self._undeletable.items())
        )
        report.damaged = tuple(self._repacker.damaged.values())
        return report

    # ------------------------------------------------------------ the phases

    def _first_phase(self) -> None:
        """Condemn what nobody needs. What could not be removed stays condemned: no state is without
        it, so no writer ever relies on what a late request may yet remove."""
        state, report = self._state, self._report
        carried = set(self._undeletable)
        # Whatever else is going on: who led before may have written the next list, and died.
        state.lead()
        packs = self._marker.packs()
        garbage = self._marker.garbage(packs, expired_before=0)
        report.missing = tuple(i.hex() for i in self._marker.missing(packs))
        doomed = carried | garbage.keys()
        if not doomed:
            state.remove_lists()
            return
        state.condemn(doomed, carried)
        state.remove_lists()
        report.packs_condemned = len(doomed)
        report.bytes_condemned = sum(packs.get(pack_id, 0) for pack_id in doomed)
        report.next_run_at = state.condemned_at() + self._options.grace_s

    def _second_phase(self) -> None:
        """Remove what was condemned and is still not needed. What was carried never is: who pins it
        has not read yet that it is condemned, and will."""
        state, report = self._state, self._report
        condemned = state.listed()
        listed = self._marker.packs()
        left = {pack_id: listed.get(pack_id, 0) for pack_id in condemned.packs}
        doomed = self._marker.garbage(left, expired_before=0)
        doomed |= {pack_id: left[pack_id] for pack_id in condemned.carried}
        report.packs_condemned = report.bytes_condemned = 0
        report.next_run_at = None
        if not doomed:
            state.retire()
            return
        state.sweep(doomed)
        self._remove(doomed)

    def _sweep(self) -> None:
        """Go on with what another collection was removing."""
        listed = self._marker.packs()
        self._remove({i: listed.get(i, 0) for i in self._state.listed().packs})

    def _remove(self, doomed: dict[bytes, int]) -> None:
        report = self._report
        left = remove_packs(self._bucket, self._requests, doomed, self._stages)
        gone = {pack_id: size for pack_id, size in doomed.items() if pack_id not in left}
        report.packs_removed += sum(size > 0 for size in gone.values())
        report.bytes_freed += sum(gone.values())
        self._undeletable = left
        self._forget_removed()
        if not left:
            self._state.retire()

    def _forget_removed(self) -> None:
        """Hints, and marks of damage, of packs that are gone, whoever removed them. A pack is there
        before it is told of, so those that are told of are listed first."""
        told = listed_hints(self._bucket)
        there = self._marker.packs().keys()
        covered = tidy_samples(self._bucket, self._store_id, told.keys(), now=self._now())
        rewrite_hints(
            self._bucket,
            self._store_id,
            told,
            lambda pack_id: pack_id not in there,
            covered=covered,
        )
        remove_marks(self._bucket, there, now=self._now())

    def _collect_batches(self) -> None:
        dry_run = self._options.dry_run
        collector = BatchCollector(self._parts, self._now(), dry_run=dry_run)
        collector.run(any_tombstones=self._marker.tombstones > 0)
        report = self._report
        report.batches_rewritten = collector.batches_rewritten
        report.batches_removed = collector.batches_removed
        report.tombstones_removed = collector.tombstones_removed
        report.manifests_removed = collector.manifests_removed

    def _expire(self) -> None:
        now = self._now()
        keys = self._marker.expired_pins(now - PIN_S)
        kept = self._bucket.delete_many(keys)
        self._report.pins_expired = len(keys) - len(kept)
        remove_scratch(self._bucket, before=now - SCRATCH_S)

    def _repack(self) -> None:
        choice = self._choose(self._marker.packs(), self._undeletable.keys(), 0)
        if choice.packs:
            self._repacker.rewrite(choice.packs, choice.live)
            self._report.packs_rewritten = len(choice.packs)
            self._report.bytes_rewritten = self._repacker.bytes_written
            # Neither is moved the next time, in vain, nor does a put come to rely on them.
            mark_damaged(self._bucket, {at.pack_id for at in self._repacker.damaged})

    def _choose(
        self, packs: dict[bytes, int], condemned: Set[bytes], expired_before: float
    ) -> Choice:
        survey = Survey(self._marker, self._memory, self._options, self._now())
        pins = self._marker.pins(expired_before)
        choice = survey.choose(packs, pins, condemned | damaged_packs(self._bucket))
        report, estimate = self._report, choice.estimate
        report.repack_manifests = estimate.manifests
        report.repack_requests = estimate.requests
        report.repack_cost = estimate.cost
        report.repack_bytes_freed = estimate.bytes_freed
        report.repack_saves = estimate.saves
        report.bytes_left = choice.bytes_left
        return choice

    # ------------------------------------------------------------ time and progress

    def _now(self) -> float:
        """Seconds since the epoch by the server's clock."""
        return server_time(self._bucket)

    def _grace_is_over(self) -> bool:
        """What was condemned, is."""
        grace = self._options.grace_s
        return not grace or self._now() - self._state.condemned_at() >= grace

    def _note_waiting(self) -> None:
        report, state = self._report, self._state
        condemned = state.listed().packs
        listed = self._marker.packs()
        report.packs_condemned = len(condemned)
        report.bytes_condemned = sum(listed.get(pack_id, 0) for pack_id in condemned)
        report.next_run_at = state.condemned_at() + self._options.grace_s
