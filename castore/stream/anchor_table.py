"""A table of the anchors of some bases: which of them have what a chunk has.

Each base has a slot. An anchor is owned by the slot that it was put in last; the slots that own
most of what is sought are looked at, and of these those are ranked that have most of it, each for
what those before it have not.

`castore/native/anchor_table.c` does this in some microseconds a chunk; what is here is its
reference.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from castore._native import AnchorTable
    from castore.stream.anchors import ReferenceAnchors

try:
    from castore import _native
except ImportError:
    _native = None  # type: ignore[assignment]

RANKED_MAX = 4
_CONSIDERED = 2 * RANKED_MAX
_RUN_BYTES = 256  # of which the next anchor of a run is no further on or less


def anchor_table(slots: int) -> AnchorTable:
    """A table of so many slots, 0 and up."""
    if _native is None:
        return cast("AnchorTable", ReferenceTable(slots))
    return _native.AnchorTable(slots)


class ReferenceTable:
    """The same as C's AnchorTable. Not for several threads at once."""

    def __init__(self, slots: int) -> None:
        self._bases: list[dict[int, int]] = [{} for _ in range(slots)]
        self._owner: dict[int, int] = {}  # by an anchor's hash

    def put(self, slot: int, anchors: ReferenceAnchors) -> None:
        """They are from now on those of the slot, and it owns each of them."""
        self.forget(slot)
        self._bases[slot] = anchors.positions()
        self._owner.update(dict.fromkeys(self._bases[slot], slot))

    def forget(self, slot: int) -> None:
        """The slot has no anchors any more."""
        for anchor in self._bases[slot]:
            if self._owner.get(anchor) == slot:
                del self._owner[anchor]
        self._bases[slot] = {}

    def rank(
        self, sought: ReferenceAnchors, least: float, least_left: float, least_all: float
    ) -> tuple[list[tuple[int, float]], int]:
        """The slots, at most 4, that have most of what is sought, each with the share of it that
        those before it have not; and how much further on, in bytes, the first has it.

        Of all that is sought, each must have the share `least`; of what those before it leave, all
        but the first `least_left`; and all together `least_all`: otherwise there are none.
        """
        positions = sought.positions()
        votes = Counter(owner for each in positions if (owner := self._owner.get(each)) is not None)
        if sum(votes.values()) < least_all * len(sought):
            return [], 0
        few = max(1, least * len(sought))
        slots = [slot for slot, count in votes.most_common(_CONSIDERED) if count >= few]
        left = set(positions)
        ranked: list[tuple[int, float]] = []
        while slots and len(ranked) < RANKED_MAX:
            gains = [len(left & self._bases[slot].keys()) for slot in slots]
            gain = max(gains)
            if gain < max(few, least_left * len(left) if ranked else 0):
                break
            best = slots.pop(gains.index(gain))
            left -= self._bases[best].keys()
            ranked.append((best, gain / len(sought)))
        if not ranked or len(sought) - len(left) < least_all * len(sought):
            return [], 0
        first = self._bases[ranked[0][0]]
        shifts = sorted(first[each] - positions[each] for each in positions.keys() & first.keys())
        return ranked, shifts[len(shifts) // 2]

    def runs(self, sought: ReferenceAnchors, slots: Sequence[int]) -> float:
        """The share of what is sought that these slots, at most 4, have about as far on as what was
        found before it, each in the first slot that has it: what is of the same text has runs,
        words that are common have none."""
        in_runs, last = 0, None
        for anchor, position in sought.positions().items():
            places = (self._bases[slot].get(anchor) for slot in slots)
            place = next((place for place in places if place is not None), None)
            if place is None:
                continue
            in_runs += last is not None and abs(place - position - last) < _RUN_BYTES
            last = place - position
        return in_runs / len(sought) if in_runs else 0.0
