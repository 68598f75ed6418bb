"""Which packs are worth rewriting. Pure: it is told what there is."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from castore.format.pack import PACK_HEADER_BYTES, footer_bytes

SMALL_PACK_BYTES = 16 << 20  # a sixteenth of a full local pack
SMALL_PACKS_MAX = 8  # as many are left alone: one is made by each process that puts
FRAMES_MAX = 65_536  # moved at a time: what is known of each is kept meanwhile


@dataclass(frozen=True, slots=True)
class PackFacts:
    """What is known of a pack, with sizes in bytes; when it was made in ns since the epoch."""

    pack_id: bytes
    created_ns: int
    size: int
    live_bytes: int
    live_frames: int

    @property
    def live_size(self) -> int:
        """What a pack of its live frames would take."""
        return PACK_HEADER_BYTES + self.live_bytes + footer_bytes(self.live_frames)

    @property
    def is_small(self) -> bool:
        """Whether two like it go into one, so that merging comes to an end."""
        return self.size < SMALL_PACK_BYTES and self.live_frames < FRAMES_MAX // 2

    @property
    def live_share(self) -> float:
        return self.live_size / max(self.size, 1)


def choose(
    packs: Iterable[PackFacts], *, repack_below: float, bytes_max: int | None
) -> list[PackFacts]:
    """The packs to rewrite, the oldest first so that what was put together stays together.

    Those with a live share below `repack_below`, the lowest first, and small ones if there are
    more than SMALL_PACKS_MAX of them, as long as what is moved stays within `bytes_max`.
    """
    ranked = sorted(packs, key=lambda pack: (pack.live_share, pack.size, pack.pack_id))
    low = [pack for pack in ranked if pack.live_share < repack_below]
    small = [pack for pack in ranked if pack.live_share >= repack_below and pack.is_small]
    if len(small) + bool(low) > SMALL_PACKS_MAX:
        low += small
    chosen, total = [], 0
    for pack in low:
        if bytes_max is not None and total + pack.live_bytes > bytes_max:
            continue
        total += pack.live_bytes
        chosen.append(pack)
    if len(chosen) == 1 and chosen[0].live_share >= repack_below:
        return []  # there is nothing to merge it with
    return sorted(chosen, key=lambda pack: (pack.created_ns, pack.pack_id))
