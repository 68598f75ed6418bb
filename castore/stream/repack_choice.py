"""Which packs are worth rewriting. Pure: it is told what there is.

What is alive as the base of deltas only is moved like any other frame, and the deltas stay deltas.
To store one of these plainly would free its base where it is the last that needs it; but a chunk
takes about as much as the base that it resembles, so that what is won is the delta itself, which is
at most half of it and mostly a fiftieth, and lost where there are two. That is less than the space
that `repack_below` leaves to any pack.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from castore.format.pack import PACK_HEADER_BYTES, footer_bytes

FULL_OF_SMALL = 16  # so many times the bytes of a small pack are those of a full one


@dataclass(frozen=True, slots=True)
class PackFacts:
    """What is known of a pack, with sizes in bytes; when it was made in ns since the epoch, 0 where
    that is not known."""

    pack_id: bytes
    created_ns: int
    size: int
    live_bytes: int
    live_frames: int
    live_bases: int = 0  # that its live frames have together

    @property
    def live_size(self) -> int:
        """What a pack of its live frames would take."""
        footer = footer_bytes(self.live_frames, self.live_bases)
        return PACK_HEADER_BYTES + self.live_bytes + footer

    @property
    def live_share(self) -> float:
        return self.live_size / max(self.size, 1)


def choose(
    packs: Iterable[PackFacts],
    *,
    repack_below: float,
    bytes_max: int | None,
    small_bytes: int,
    small_packs_max: int,
    frames_max: int,
) -> list[PackFacts]:
    """The packs to rewrite, the oldest first so that what was put together stays together.

    Those with a live share below `repack_below`, the lowest first, and small ones if there are
    more than `small_packs_max` of them, as long as the live bytes stay within `bytes_max`. Small is
    a pack of less than `small_bytes`, with less than half the `frames_max` that are moved at a
    time: two like it go into one, so that merging comes to an end.
    """
    ranked = sorted(packs, key=lambda pack: (pack.live_share, pack.size, pack.pack_id))
    low = [pack for pack in ranked if pack.live_share < repack_below]
    others = [pack for pack in ranked if pack.live_share >= repack_below]
    low += choose_small(
        others,
        small_bytes=small_bytes,
        small_packs_max=small_packs_max - _new_small_packs(low, small_bytes, frames_max),
        frames_max=frames_max,
    )
    chosen, total = [], 0
    for pack in low:
        if bytes_max is not None and total + pack.live_bytes > bytes_max:
            continue
        total += pack.live_bytes
        chosen.append(pack)
    if len(chosen) == 1 and chosen[0].live_share >= repack_below:
        return []  # there is nothing to merge it with
    return sorted(chosen, key=lambda pack: (pack.created_ns, pack.pack_id))


def _new_small_packs(packs: list[PackFacts], small_bytes: int, frames_max: int) -> int:
    """At most so many small ones they become: one is left at the end, and of those before, of which
    each is followed by what does not go into it as well, every second."""
    if not packs:
        return 0
    full_bytes = FULL_OF_SMALL * small_bytes
    live_bytes, live_frames = sum(p.live_bytes for p in packs), sum(p.live_frames for p in packs)
    return 1 + live_bytes // full_bytes + live_frames // frames_max


def choose_small(
    packs: Iterable[PackFacts], *, small_bytes: int, small_packs_max: int, frames_max: int
) -> list[PackFacts]:
    """The small ones of the packs, if there are more than `small_packs_max`."""
    small = [p for p in packs if p.size < small_bytes and p.live_frames < frames_max // 2]
    return small if len(small) > small_packs_max else []
