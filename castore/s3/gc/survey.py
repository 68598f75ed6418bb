"""What a collection of a store on S3 finds in its packs, and which of them it is to rewrite."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import xxhash

from castore.s3.gc.live import LiveFrames
from castore.s3.gc.mark import Pins, S3Marker
from castore.s3.gc.memory import CollectorMemory, Kept
from castore.s3.gc.repack import FRAMES_MAX
from castore.s3.gc.worth import Bargain, Estimate, Referrers
from castore.s3.uploads import PACK_BYTES_MAX
from castore.stream.repack_choice import PackFacts, choose, choose_small
from castore.stream.reports import GcOptions

SMALL_PACK_BYTES = 1 << 20
SMALL_PACKS_MAX = 31  # as many are left alone: each put of a little makes one


@dataclass
class Choice:
    """The packs to rewrite, what is alive in them, and what that costs and saves. `bytes_left` of
    garbage stay in packs that have something alive, too."""

    packs: list[PackFacts]
    live: LiveFrames
    estimate: Estimate = field(default_factory=Estimate)
    bytes_left: int = 0


class Survey:
    """One look at all names, of one collection."""

    def __init__(
        self, marker: S3Marker, memory: CollectorMemory, options: GcOptions, now: float
    ) -> None:
        """`now` is the server's time, in seconds."""
        self._marker = marker
        self._memory = memory
        self._options = options
        self._now = now

    def choose(self, packs: Mapping[bytes, int], pins: Pins, unfit: Collection[bytes]) -> Choice:
        """Which of all `packs`, with their bytes, to rewrite. Those of writers at work are left
        alone, and so is whatever a name has that also needs one that is `unfit`, or that is not
        there: it could not be put anew."""
        live = LiveFrames(packs, small_bytes=SMALL_PACK_BYTES)
        referrers = Referrers()
        stuck = set(unfit)
        for page in self._marker.references(with_frames=True):
            for name, (_, (pack_ids, frames)) in page.items():
                if not pack_ids:
                    continue
                if any(i in unfit or i not in packs for i in pack_ids):
                    stuck.update(pack_ids)
                referrers.add(xxhash.xxh3_64_intdigest(name), pack_ids)
                for pack_id, each in zip(pack_ids, frames or (), strict=True):
                    live.extend(pack_id, each)
        partly = [
            facts
            for i, size in packs.items()
            if not live.is_full(i) and (facts := live.facts(i, size)).live_frames
        ]  # the others are garbage, or have none
        free = [
            pack for pack in partly if pack.pack_id not in stuck and not pins.protect(pack.pack_id)
        ]
        bargain = self._bargain(referrers, partly)
        chosen = self._chosen(free, bargain)
        dead = sum(pack.size - pack.live_size for pack in partly)
        estimate = bargain.estimate(chosen)
        return Choice(chosen, live, estimate, dead - sum(p.size - p.live_size for p in chosen))

    def _chosen(self, free: Sequence[PackFacts], bargain: Bargain) -> list[PackFacts]:
        options = self._options
        below = 1.0 if options.repack_below is None else options.repack_below
        if options.repack_below is None:
            alive = [pack for pack in free if pack.live_size >= pack.size]
            small = choose_small(
                alive,
                small_bytes=SMALL_PACK_BYTES,
                small_packs_max=SMALL_PACKS_MAX,
                frames_max=FRAMES_MAX,
            )
            free = bargain.worthwhile([p for p in free if p.live_size < p.size] + small)
        chosen = choose(
            free,
            repack_below=below,
            bytes_max=options.max_repack_bytes,
            small_bytes=SMALL_PACK_BYTES,
            small_packs_max=SMALL_PACKS_MAX,
            frames_max=FRAMES_MAX,
        )
        if options.repack_below is None and len(chosen) < len(free):
            chosen = bargain.worthwhile(chosen)  # without the others these may not pay
        if options.max_cost is not None:
            chosen = bargain.within(chosen, options.max_cost)
        return chosen

    def _bargain(self, referrers: Referrers, partly: Sequence[PackFacts]) -> Bargain:
        options, made = self._options, self._marker.packs_made
        ages_s = {
            pack.pack_id: max(self._now - made.get(pack.pack_id, self._now), 0.0) for pack in partly
        }
        rents = self._rents(partly, ages_s)
        return Bargain(
            referrers,
            options.prices,
            options.horizon_s,
            PACK_BYTES_MAX,
            rents=rents,
            ages_s=ages_s,
        )

    def _rents(
        self, partly: Sequence[PackFacts], ages_s: Mapping[bytes, float]
    ) -> dict[bytes, float]:
        """The byte-seconds for which there has been garbage in each, and remember them. What was
        garbage at the last look has been since. Where none is known of, as on a new machine, what
        is there is taken to have come evenly in the pack's life."""
        before = self._memory.kept()
        kept: dict[bytes, Kept] = {}
        for pack in partly:
            dead = max(pack.size - pack.live_size, 0)
            if before is None:
                byte_seconds = dead * ages_s[pack.pack_id] / 2
            else:
                at, known = before
                last = known.get(pack.pack_id, Kept(0, 0.0))
                byte_seconds = last.byte_seconds + min(last.dead, dead) * max(self._now - at, 0.0)
            if dead:
                kept[pack.pack_id] = Kept(dead, byte_seconds)
        if not self._options.dry_run:
            self._memory.keep(self._now, kept)
        return {pack_id: each.byte_seconds for pack_id, each in kept.items()}
