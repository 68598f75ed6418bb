"""The frames that names need of each pack."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Mapping

from castore.format.segment import Segment
from castore.model import Location
from castore.stream.repack_choice import PackFacts

_SETTLED_MIN = 512  # entries of a pack before they are looked through for repeated ones


class LiveFrames:
    """8 bytes for each, and at most twice that. Of a pack that turns out to be alive to the last
    byte it is only kept that it is: most are, and nobody moves what is in them."""

    def __init__(self, sizes: Mapping[bytes, int] | None = None, *, small_bytes: int = 0) -> None:
        """`sizes` are those of packs, in bytes; smaller ones than `small_bytes` may be moved though
        all of them is alive."""
        self._frames: dict[bytes, array[int]] = {}  # offset, stored bytes, bases: 32, 29, 3 bits
        self._settled: dict[bytes, int] = {}
        self._sizes = {} if sizes is None else sizes
        self._small_bytes = small_bytes
        self._full: set[bytes] = set()

    def add(self, at: Location) -> None:
        pack_id, offset, stored_bytes, bases = at
        self.extend(pack_id, array("Q", [_frame(offset, stored_bytes, len(bases))]))

    def extend(self, pack_id: bytes, frames: array[int]) -> None:
        """As `frames_by_pack` gives them."""
        if pack_id in self._full:
            return
        there = self._frames.setdefault(pack_id, array("Q"))
        there.extend(frames)
        if len(there) >= self._settled.get(pack_id, _SETTLED_MIN):
            self._settle(pack_id)

    def is_full(self, pack_id: bytes) -> bool:
        """Whether all of the pack is alive, and it is not small."""
        self._settle(pack_id)
        return pack_id in self._full

    def of(self, pack_id: bytes) -> list[Location]:
        """Each once, in order, without its bases."""
        self._settle(pack_id)
        frames = self._frames.get(pack_id, ())
        return [Location(pack_id, frame >> 32, _stored_bytes(frame)) for frame in frames]

    def __contains__(self, at: Location) -> bool:
        """Of a pack that was looked at."""
        frames, frame = self._frames.get(at.pack_id, ()), _frame(at.offset, at.stored_bytes, 0)
        i = bisect_left(frames, frame)
        return i < len(frames) and frames[i] >> 3 == frame >> 3

    def facts(self, pack_id: bytes, size: int) -> PackFacts:
        """Of a pack of this size."""
        self._settle(pack_id)
        return _facts(pack_id, size, self._frames.get(pack_id, array("Q")))

    def _settle(self, pack_id: bytes) -> None:
        if pack_id not in self._frames:
            return
        frames = self._frames[pack_id] = array("Q", sorted({*self._frames[pack_id]}))
        self._settled[pack_id] = max(2 * len(frames), _SETTLED_MIN)
        size = self._sizes.get(pack_id, 0)
        if size >= max(self._small_bytes, 1) and _facts(pack_id, size, frames).live_size >= size:
            self._full.add(pack_id)
            del self._frames[pack_id], self._settled[pack_id]


def frames_by_pack(segment: Segment, into: dict[bytes, array[int]]) -> None:
    """Add the segment's frames, those that its deltas decode with among them."""
    for chunk in segment.frames():
        pack_id, offset, stored_bytes, bases = chunk.location
        frames = into.setdefault(pack_id, array("Q"))
        frames.append(_frame(offset, stored_bytes, len(bases)))


def _facts(pack_id: bytes, size: int, frames: array[int]) -> PackFacts:
    live_bytes = sum(map(_stored_bytes, frames))
    live_bases = sum(frame & 7 for frame in frames)
    return PackFacts(pack_id, 0, size, live_bytes, len(frames), live_bases)


def _frame(offset: int, stored_bytes: int, bases: int) -> int:
    return offset << 32 | stored_bytes << 3 | bases


def _stored_bytes(frame: int) -> int:
    return frame >> 3 & 0x1FFFFFFF
