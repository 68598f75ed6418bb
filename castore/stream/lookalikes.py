"""Chunks that a new chunk resembles, wherever they are: among the full frames of the stream that is
being stored, and in the older object far from where the stream runs beside it.

An archive holds files that are like each other: releases of one interface, modules that were linked
with the same code. `alignment` looks where a chunk is expected, which is as it should be for nearly
all of a next version. What is left of it, and a first version, has the anchors that are found there
looked up here: in one table of the stream's own full frames, as they come, and of the older
object's bases around the place, of which some more are read for each chunk that finds too little.
Nothing of it is stored.

Work is bounded. An older object in which nothing was found at its place is not read. Where nothing
is alike, fewer and fewer chunks are looked at, down to one in 64, and a candidate has so large a
share of the chunk's anchors that it will hardly be tried in vain.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING

from castore.model import Location, StoredChunk
from castore.stream.alignment import LEFT_SHARE_MIN, SHARE_MIN, Alignment, Candidate
from castore.stream.anchor_table import anchor_table
from castore.stream.anchored import AnchoredBases
from castore.stream.chunker import is_incompressible

if TYPE_CHECKING:
    from castore._native import Anchors

SLOTS = 2048  # bases whose anchors are known: 150 MB of chunks, 30 MB of table
ALIGNED_SHARE = 0.7  # of a chunk's anchors: with as many at its place no other is looked for
ALIGNED_SHARE_MIN = 0.2  # with fewer the chunk will be a full frame, and may be a base at once
READ_SHARE = 0.5  # with fewer anywhere, some more of the older object is read
SHARES_MIN = 0.4  # of a chunk's anchors: of deltas of less, hardly one in ten was kept
# And in runs: of what has as much, and less in runs, one delta in fifteen would be kept.
RUNS_MIN = 0.3
OLDER_BASES = 32  # read for one chunk that finds too little
READ_BYTES = 1 << 20  # whose extents are looked for at once
BEHIND_BYTES = 64 << 20  # of the older object, around the place
AHEAD_BYTES = 128 << 20
RECENT_BYTES_MAX = 16 << 20  # of the stream's own frames, kept until they have their places
TRIED_ALWAYS = 32  # chunks that find nothing; then half of as many, a quarter, ...
RARELY = 6  # ... down to one chunk in 2**6
# Chunks that may find nothing before any does. Of first releases of Django, botocore, numpy and
# scipy 229, 663, 694 and 598 chunks were looked at with 96, and 88 of Django's with 16: it took
# 18 KB more of 12.3 MB, the others as many bytes as before.
CREDIT_FIRST = 16
FOUND_CREDIT = 48  # the same, for one that does
CREDIT_MAX = 96

# Of a frame that this stream stores and has not placed yet. It has no bytes in any pack.
NO_PLACE = Location(b"", 0, 0)


class LookAlikes:
    """Of one stream. Not for several threads at once."""

    def __init__(self, bases: AnchoredBases) -> None:
        """`bases` has those that have their place."""
        self._anchored = bases
        self._table = anchor_table(SLOTS)
        self._bases: dict[int, StoredChunk] = {}  # by slot
        self._slots: dict[bytes, int] = {}  # by chunk id
        self._own: set[bytes] = set()
        self._next = 0  # the slot that is given away next
        self._recent: OrderedDict[bytes, bytes] = OrderedDict()
        self._recent_bytes = 0
        self._lost = -CREDIT_FIRST  # chunks that found nothing, less what may
        self._read_to = 0  # in the older object
        self.looks = True  # whether the chunk at hand is one that is looked at

    # ------------------------------------------------------------ looking

    def candidates(
        self, raw: bytes, aligned: list[Candidate], alignment: Alignment | None, begin: int
    ) -> list[Candidate]:
        """The bases for a delta of the stream's chunk at the offset `begin`: those that the
        alignment found, `aligned`, or others with more of it."""
        share = _share(aligned) if aligned else 0.0
        self.looks = share < ALIGNED_SHARE and self._is_time(raw)
        if not self.looks:
            return aligned
        sought = self._anchored.of_new(raw)
        if not sought:
            return aligned
        found = self._ranked(sought)
        little = max(share, _share(found)) < READ_SHARE
        if little and alignment is not None and alignment.is_version:
            self._read_older(alignment, alignment.expected_at(begin))
            found = self._ranked(sought)
        if _share(found) > share:
            self._lost = max(
                -CREDIT_MAX, min(self._lost, TRIED_ALWAYS * RARELY) // 2 - FOUND_CREDIT
            )
            return found
        self._lost += 1
        return aligned if share >= ALIGNED_SHARE_MIN else []

    def bytes_of(self, base: StoredChunk) -> bytes | memoryview | None:
        """None if they are not to be had."""
        recent = self._recent.get(base.chunk_id)
        if recent is not None:
            return recent
        return None if base.location is NO_PLACE else self._anchored.read(base)

    def _is_time(self, raw: bytes) -> bool:
        every = 1 << min(max(0, self._lost) // TRIED_ALWAYS, RARELY)
        if self._lost % every == 0 and not is_incompressible(raw):
            return True
        self._lost += 1
        return False

    def _ranked(self, sought: Anchors) -> list[Candidate]:
        ranked, _ = self._table.rank(sought, SHARE_MIN, LEFT_SHARE_MIN, SHARES_MIN)
        if self._table.runs(sought, [slot for slot, _ in ranked]) < RUNS_MIN:
            return []
        return [Candidate(self._bases[slot], share) for slot, share in ranked]

    # ------------------------------------------------------------ what there is to find

    def is_own(self, base: StoredChunk) -> bool:
        """Whether it is a frame of this stream, which can be relied on."""
        return base.chunk_id in self._own and self._bases[self._slots[base.chunk_id]] == base

    def add(self, chunk_id: bytes, raw: bytes) -> None:
        """The chunk at hand, which was looked at, will be a full frame of this stream."""
        if chunk_id in self._slots:
            return
        self._own.add(chunk_id)
        slot = self._slot_of(StoredChunk(chunk_id, len(raw), NO_PLACE))
        self._table.put(slot, self._anchored.of_new(raw))
        self._recent[chunk_id] = raw
        self._recent_bytes += len(raw)
        while self._recent_bytes > RECENT_BYTES_MAX:
            self._recent_bytes -= len(self._recent.popitem(last=False)[1])

    def placed(self, chunk_id: bytes, location: Callable[[bytes], Location]) -> None:
        """A frame is there, and this tells where."""
        slot = self._slots.get(chunk_id)
        if slot is not None and self._bases[slot].location is NO_PLACE:
            self._bases[slot] = self._bases[slot]._replace(location=location(chunk_id))

    def _slot_of(self, base: StoredChunk) -> int:
        """The one that it gets."""
        slot = self._next
        self._next = (slot + 1) % SLOTS
        former = self._bases.get(slot)
        if former is not None:
            del self._slots[former.chunk_id]
            self._own.discard(former.chunk_id)
            self._recent_bytes -= len(self._recent.pop(former.chunk_id, b""))
        self._bases[slot] = base
        self._slots[base.chunk_id] = slot
        return slot

    def _read_older(self, alignment: Alignment, place: int) -> None:
        """Some more bases of what lies around the place in the older object, the first ones
        first."""
        left = OLDER_BASES
        self._read_to = max(self._read_to, place - BEHIND_BYTES)
        last = min(alignment.size, place + AHEAD_BYTES)
        while self._read_to < last:
            extents = alignment.older.covering(self._read_to, min(self._read_to + READ_BYTES, last))
            if not extents:
                return
            for extent in extents:
                self._read_to = extent.end
                for base in extent.location.bases or (extent.stored,):
                    if base.chunk_id not in self._slots:
                        left -= 1
                        anchors = self._anchored.of_base(base)
                        if anchors is not None:
                            self._table.put(self._slot_of(base), anchors)
                if left <= 0:
                    return


def _share(candidates: list[Candidate]) -> float:
    return sum(each.share for each in candidates)
