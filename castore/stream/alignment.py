"""Which chunks of an older object a new stream's chunks resemble, found as the stream goes by.

A stream that is a later version of an older object runs beside it, at some distance: the shift. It
is known from the last chunk that deduplicated, and else from anchors: hashes of 24 bytes at places
that content chooses, one in some hundreds. Those of the older object's bases around the present
place are in a bounded table. Where a new chunk's anchors are found says which bases it was made
from, how much of it each of them has, and where the stream is now. So files that came, went or
moved are followed, without an index on disk, and without trying to compress against anything.

Work is bounded on both sides. The older object is read only around the place, and further ahead
only as far as what was found so far has earned. Where nothing is found, fewer and fewer chunks are
looked at, down to one in 64, and one extent for each.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from typing import TYPE_CHECKING, NamedTuple

from castore.model import Extent, StoredChunk
from castore.stream.anchor_table import RANKED_MAX, anchor_table
from castore.stream.anchored import AnchoredBases

if TYPE_CHECKING:
    from castore.stream.backend import Older

BASES_MAX = RANKED_MAX  # of one delta
TABLE_BASES_MAX = 512  # whose anchors are known at a time: 40 MB of chunks, 10 MB of table
SEGMENTS_MAX = 4  # whose chunk ids are known at a time: 300 MB of the older object
MARGIN_BYTES = 64 << 10  # looked at on both sides of where a chunk is expected
AHEAD_BYTES_MAX = 64 << 20  # how far ahead of there a chunk is looked for
AHEAD_BYTES = 256 << 10  # taken from ahead for one chunk that is not found
CREDIT_FIRST = 16  # bases that may be taken from ahead before anything was found
CREDIT_MAX = 256
CREDIT_OF_HIT = 4
TRIED_ALWAYS = 8  # chunks after the last that was found; then half of as many, a quarter, ...
TRIED_AT_LEAST = 64  # ... down to one chunk in so many
FOLLOWED = 64  # chunks in which nothing is found, and it may be a version nevertheless
SHARES_MIN = 1 / 10  # of a chunk's anchors that all bases must have: with less no delta is small
SHARE_MIN = 1 / 32  # of a chunk's anchors that a base must add to those before it
LEFT_SHARE_MIN = 1 / 4  # and of what they leave: so much smaller another base makes the delta


class Candidate(NamedTuple):
    """A base for a delta, and its share of the chunk's anchors, 0 to 1: those that the bases before
    it have not."""

    base: StoredChunk
    share: float


def is_time(lost: int) -> bool:
    """Whether to try once more, where so many tries before found nothing, or were left out."""
    every = 1 << min(lost // TRIED_ALWAYS, TRIED_AT_LEAST.bit_length() - 1)
    return lost % every == 0


class _Loaded(NamedTuple):
    begin: int  # in the older object, of the extent that it is, or that is a delta of it
    base: StoredChunk
    slot: int  # in the table


class Alignment:
    """The alignment of one new stream to one older object. Tell it every chunk of the stream, in
    order, by `known` or by `candidates`. Not for several threads at once."""

    def __init__(self, older: Older, size: int, bases: AnchoredBases) -> None:
        """`older` is of an object of `size` bytes. A base whose bytes are not to be had is no
        candidate."""
        self.older = older
        self.size = size
        self._bases = bases
        self._shift = 0  # an offset in the older object less the one in the stream
        self._lost = 0  # chunks since one was found
        self.is_version = False  # whether anything was found
        self._credit = CREDIT_FIRST
        self._ahead = 0  # in the older object: what is before was looked at
        self._table = anchor_table(TABLE_BASES_MAX + 1)
        self._loaded: OrderedDict[bytes, _Loaded | None] = OrderedDict()
        self._by_slot: dict[int, _Loaded] = {}
        self._free = list(range(TABLE_BASES_MAX + 1))  # slots
        self._window = range(0)  # of the older object, whose bases were looked at last
        self._segments: OrderedDict[int, dict[bytes, int]] = OrderedDict()

    def known(self, begin: int, end: int, chunk_id: bytes) -> None:
        """The stream's chunk at `[begin, end)` is stored already."""
        at = self._offset_of(chunk_id, begin + self._shift)
        if at is not None:
            self._found(at - begin, at)

    def candidates(self, begin: int, end: int, raw: bytes) -> list[Candidate]:
        """The bases for a delta of the stream's new chunk at `[begin, end)`, the best first: as few
        as do, at most 4, and none where it is not worth trying."""
        if self._lost and not is_time(self._lost):
            self._lost += 1
            return []
        sought = self._bases.of_new(raw)
        if self._lost < TRIED_ALWAYS:
            first, last = begin + self._shift - MARGIN_BYTES, end + self._shift + MARGIN_BYTES
        else:  # nothing was found for long, and the place is a guess: one extent of it will do
            first = (begin + end) // 2 + self._shift
            last = first + 1
        self._load(max(0, first), min(last, self.size))
        ranked, moved = self._table.rank(sought, SHARE_MIN, LEFT_SHARE_MIN, SHARES_MIN)
        if not ranked and sought and self._credit > 0:
            self._load_ahead(begin + self._shift)
            ranked, moved = self._table.rank(sought, SHARE_MIN, LEFT_SHARE_MIN, SHARES_MIN)
        if ranked:
            at = self._by_slot[ranked[0][0]].begin
            self._found(at + moved - begin, at)
        else:
            self._lost += 1
        return [Candidate(self._by_slot[slot].base, share) for slot, share in ranked]

    def bytes_of(self, base: StoredChunk) -> bytes | memoryview | None:
        """None if they are not to be had."""
        return self._bases.read(base)

    @property
    def follows(self) -> bool:
        """Whether the stream is a version of the older object, where it is now."""
        return self.is_version and self._lost < FOLLOWED

    def expected_at(self, begin: int) -> int:
        """Where in the older object what lies at an offset of the stream is expected."""
        return begin + self._shift

    def expected(self, begin: int, end: int) -> list[Extent]:
        """What lies in the older object where the stream's bytes `[begin, end)` are expected."""
        first, last = begin + self._shift - MARGIN_BYTES, end + self._shift + MARGIN_BYTES
        first, last = max(0, first), min(last, self.size)
        return self.older.covering(first, last) if first < last else []

    # ------------------------------------------------------------ the place

    def _found(self, shift: int, at: int) -> None:
        self._shift = shift
        self._lost = 0
        self.is_version = True
        self._ahead = at
        self._credit = min(self._credit + CREDIT_OF_HIT, CREDIT_MAX)

    def _offset_of(self, chunk_id: bytes, expected: int) -> int | None:
        """Where the older object has the chunk, the nearest to the expected place."""
        self._load_ids(expected)
        found = [ids[chunk_id] for ids in self._segments.values() if chunk_id in ids]
        return min(found, key=lambda at: abs(at - expected), default=None)

    def _load_ids(self, offset: int) -> None:
        """Those of the segment at the offset, but for chunks that it has twice."""
        segment = next(self.older.at_or_after(min(max(offset, 0), self.size - 1)), None)
        if segment is None or segment.begin in self._segments:
            return
        ids = dict(segment.begins())
        if len(ids) < len(segment):
            times = Counter(chunk_id for chunk_id, _ in segment.begins())
            ids = {chunk_id: at for chunk_id, at in ids.items() if times[chunk_id] == 1}
        self._segments[segment.begin] = ids
        if len(self._segments) > SEGMENTS_MAX:
            self._segments.popitem(last=False)

    # ------------------------------------------------------------ the table

    def _load(self, first: int, last: int) -> None:
        """The anchors of what lies under `[first, last)` of the older object."""
        window = self._window
        # Of what lay under the last chunk, all is here.
        new = window.stop if window.start <= first <= window.stop else first
        if new < last:
            for extent in self.older.covering(new, last):
                self._load_extent(extent)
                new = extent.end
        self._window = range(first, max(first, new))

    def _load_ahead(self, place: int) -> None:
        """Some more of what comes behind what was looked at."""
        self._ahead = max(self._ahead, place)
        if self._ahead >= min(self.size, place + AHEAD_BYTES_MAX):
            return
        step = min(self._ahead + AHEAD_BYTES, self.size)
        for extent in self.older.covering(self._ahead, step):
            self._credit -= self._load_extent(extent)
            self._ahead = extent.end

    def _load_extent(self, extent: Extent) -> int:
        """How many bases were read for it."""
        read = 0
        for base in extent.location.bases or (extent.stored,):
            if base.chunk_id in self._loaded:
                self._loaded.move_to_end(base.chunk_id)
                continue
            read += 1
            anchors = self._bases.of_base(base)
            if anchors is None:
                self._loaded[base.chunk_id] = None
            else:
                loaded = _Loaded(extent.begin, base, self._free.pop())
                self._loaded[base.chunk_id] = self._by_slot[loaded.slot] = loaded
                self._table.put(loaded.slot, anchors)
            if len(self._loaded) > TABLE_BASES_MAX:
                _, former = self._loaded.popitem(last=False)
                if former is not None:
                    self._table.forget(former.slot)
                    self._free.append(former.slot)
                    del self._by_slot[former.slot]
        return read
