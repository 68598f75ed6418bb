"""All segments of one version of an object, in memory or, for huge objects, in an unnamed file."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from castore.errors import FormatError
from castore.format.segment import Segment, decode_segment
from castore.model import Extent
from castore.system.mapping import Mapping

MEMORY_BYTES_MAX = 32 << 20  # the segments of about 70 GB


def covering(segments: Iterable[Segment], begin: int, end: int) -> list[Extent]:
    """The extents that hold bytes of `[begin, end)`, of the segments from the one with its first
    byte on."""
    extents: list[Extent] = []
    for segment in segments:
        extents += segment.covering(begin, end)
        if segment.end >= end:
            break
    return extents


class Manifest:
    """The segments in order; decoded one at a time, as they are asked for.

    Raises FormatError unless they cover [0, size) of the object without a gap: what is read through
    a manifest is all of the object, or an error.
    """

    def __init__(self, raw_segments: Iterable[bytes], size: int) -> None:
        self.packs: set[bytes] = set()
        self._ends: list[int] = []  # of the segments, as offsets in the object
        self._raw: list[bytes] = []
        self._spans: list[tuple[int, int]] = []
        self._spilled: memoryview | None = None
        self._last: tuple[int, Segment] | None = None  # decoded
        self._load(raw_segments)
        if self._end != size:
            raise FormatError(f"the segments of an object end at {self._end} of {size} bytes")

    def __len__(self) -> int:
        return len(self._ends)

    def __iter__(self) -> Iterator[Segment]:
        return (self._segment(i) for i in range(len(self._ends)))

    def at_or_after(self, offset: int) -> Iterator[Segment]:
        """The segment that holds the byte at `offset`, and those behind it."""
        first = bisect_right(self._ends, offset)
        return (self._segment(i) for i in range(first, len(self._ends)))

    def covering(self, begin: int, end: int) -> list[Extent]:
        """The extents that hold bytes of the half-open range `[begin, end)`."""
        return covering(self.at_or_after(begin), begin, end)

    @property
    def _end(self) -> int:
        return self._ends[-1] if self._ends else 0

    def _load(self, raw_segments: Iterable[bytes]) -> None:
        spill: BinaryIO | None = None
        size = 0
        for raw in raw_segments:
            segment = decode_segment(raw)
            if segment.begin != self._end:
                raise FormatError(f"a segment begins at byte {segment.begin}, not {self._end}")
            self.packs.update(segment.packs)
            self._ends.append(segment.end)
            self._spans.append((size, size + len(raw)))
            size += len(raw)
            self._raw.append(raw)
            if size > MEMORY_BYTES_MAX:
                if spill is None:
                    from tempfile import TemporaryFile  # a while to load, and seldom needed

                    spill = TemporaryFile()  # noqa: SIM115  (lives on in its mapping)
                spill.write(b"".join(self._raw))
                self._raw = []
        if spill is not None:
            spill.flush()
            self._spilled = memoryview(Mapping(spill.fileno()))
            spill.close()

    def _segment(self, i: int) -> Segment:
        last = self._last
        if last is not None and last[0] == i:
            return last[1]
        if self._spilled is None:
            segment = decode_segment(self._raw[i])
        else:
            begin, end = self._spans[i]
            segment = decode_segment(bytes(self._spilled[begin:end]))
        self._last = i, segment
        return segment
