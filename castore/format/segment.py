"""Segments: up to 1,024 consecutive extents of one object, in columns (see FORMAT.md).

All integers are little endian. Decoders take untrusted bytes, as those of `pack` do.
"""

from __future__ import annotations

import struct
import sys
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator
from typing import Final

import xxhash

from castore.errors import FormatError
from castore.format.pack import CHUNK_BYTES_LIMIT, CHUNK_ID_BYTES, PACK_ID_BYTES, VERSION
from castore.model import SEGMENT_EXTENTS_MAX, Extent, Location

_checksum = xxhash.xxh3_64_intdigest

SEGMENT_MAGIC: Final = b"CSEG"
OWNER_MASK: Final = (1 << 32) - 1  # of a manifest's number, what its segments say
_SEGMENT = struct.Struct("<4sBBHHHIQQ")
_OWNER = struct.Struct("<I")
_OWNER_AT = 12
SEGMENT_HEADER_BYTES: Final = _SEGMENT.size  # 32
_EXTENT_BYTES: Final = 8 + CHUNK_ID_BYTES + 4 + 4 + 2


class Segment:
    """Up to 1,024 consecutive extents of one object, in columns that are read in place.

    `ends[i]` is the offset in the object where extent i ends; extent 0 begins at `begin`. `owner`
    are the low 32 bits of its manifest's number; 0 where it does not say.
    """

    __slots__ = (
        "_ids",
        "_offsets",
        "_pack_of",
        "_stored",
        "begin",
        "end",
        "ends",
        "owner",
        "packs",
    )

    def __init__(
        self,
        owner: int,
        begin: int,
        ends: memoryview,
        ids: memoryview,
        offsets: memoryview,
        stored: memoryview,
        pack_of: memoryview,
        packs: list[bytes],
    ) -> None:
        self.owner = owner
        self.begin = begin
        self.end: int = ends[-1]
        self.ends = ends
        self._ids = ids
        self._offsets = offsets
        self._stored = stored
        self._pack_of = pack_of
        self.packs = packs

    def __len__(self) -> int:
        return len(self.ends)

    @property
    def stored_bytes(self) -> int:
        return sum(self._stored)

    def extent(self, i: int) -> Extent:
        """Raises FormatError for one that can't be: the columns are checked as they are read, so
        that finding one extent among 1,024 does not cost a look at all."""
        begin, end = self.ends[i - 1] if i else self.begin, self.ends[i]
        pack = self._pack_of[i]
        if not 0 < end - begin <= CHUNK_BYTES_LIMIT + 256 or pack >= len(self.packs):
            raise FormatError(f"segment has an extent [{begin}, {end}) in pack {pack}")
        at = i * CHUNK_ID_BYTES
        return Extent(
            begin,
            end,
            bytes(self._ids[at : at + CHUNK_ID_BYTES]),
            Location(self.packs[pack], self._offsets[i], self._stored[i]),
        )

    def covering(self, begin: int, end: int) -> list[Extent]:
        """The extents that hold bytes of `[begin, end)`, in order."""
        ends = self.ends
        first = bisect_right(ends, begin)
        if first < len(ends) and end <= ends[first]:
            return [self.extent(first)]
        return [self.extent(i) for i in range(first, min(bisect_left(ends, end) + 1, len(ends)))]

    def __iter__(self) -> Iterator[Extent]:
        return (self.extent(i) for i in range(len(self.ends)))

    def relocated(self, find: Callable[[Extent], Location | None]) -> bytes | None:
        """The segment, encoded, with its frames where `find` says that they are from now on, or
        where they were if it says None; None if all of them stay."""
        extents = list(self)
        moves = [find(extent) for extent in extents]
        if not any(moves):
            return None
        builder = SegmentBuilder(self.begin)
        for extent, new in zip(extents, moves, strict=True):
            builder.append(extent.end, extent.chunk_id, *(new or extent.location))
        return builder.encode(self.owner)

    def offsets_by_pack(self) -> Iterable[tuple[bytes, memoryview | array[int]]]:
        """Each pack with the offsets of the frames that are in it, as u32: all that marking needs,
        without an Extent for each."""
        if len(self.packs) == 1:
            return [(self.packs[0], self._offsets)]
        split = [array("I") for _ in self.packs]
        try:
            for pack, offset in zip(self._pack_of, self._offsets, strict=True):
                split[pack].append(offset)
        except IndexError:
            raise FormatError(f"segment has an extent in pack {pack}") from None
        return zip(self.packs, split, strict=True)


class SegmentBuilder:
    """Collects consecutive extents and encodes them as one segment."""

    def __init__(self, begin: int) -> None:
        self.begin = begin
        self._ends = array("Q")
        self._ids = bytearray()
        self._offsets = array("I")
        self._stored = array("I")
        self._pack_of = array("H")
        self._packs: dict[bytes, int] = {}

    def __len__(self) -> int:
        return len(self._ends)

    @property
    def full(self) -> bool:
        return len(self._ends) >= SEGMENT_EXTENTS_MAX

    @property
    def packs(self) -> set[bytes]:
        return set(self._packs)

    @property
    def end(self) -> int:
        return self._ends[-1]

    def append(
        self, end: int, chunk_id: bytes, pack_id: bytes, offset: int, stored_bytes: int
    ) -> None:
        self._ends.append(end)
        self._ids += chunk_id
        self._offsets.append(offset)
        self._stored.append(stored_bytes)
        self._pack_of.append(self._packs.setdefault(pack_id, len(self._packs)))

    def encode(self, owner: int = 0) -> bytes:
        columns = b"".join(
            [
                _little(self._ends),
                self._ids,
                _little(self._offsets),
                _little(self._stored),
                _little(self._pack_of),
                *self._packs,
            ]
        )
        count = len(self._ends)
        return b"".join(
            [
                _SEGMENT.pack(
                    SEGMENT_MAGIC,
                    VERSION,
                    0,
                    count,
                    len(self._packs),
                    0,
                    owner,
                    self.begin,
                    _checksum(columns, self.begin ^ count << 48),
                ),
                columns,
            ]
        )


def owned(raw: bytes, manifest: int) -> bytes:
    """The segment, saying which manifest it is of."""
    return raw[:_OWNER_AT] + _OWNER.pack(manifest & OWNER_MASK) + raw[_OWNER_AT + _OWNER.size :]


def check_owner(raw: bytes | memoryview, manifest: int) -> None:
    """Raises FormatError for a segment that says that it is of another manifest."""
    owner: int = _OWNER.unpack_from(raw, _OWNER_AT)[0] if len(raw) >= SEGMENT_HEADER_BYTES else 0
    if owner not in (0, manifest & OWNER_MASK):
        raise FormatError("segment is of another manifest")


def decode_segment(
    raw: bytes | memoryview, *, manifest: int | None = None, verify: bool = True
) -> Segment:
    """With `manifest`, it must be of that one. Without `verify` its checksum is not looked at, so
    that finding one extent does not read all 1,024. What a damaged one says does not agree with the
    frame that it leads to."""
    if len(raw) < SEGMENT_HEADER_BYTES:
        raise FormatError(f"segment is cut short at {len(raw)} bytes")
    magic, version, flags, count, packs, zero, owner, begin, checksum = _SEGMENT.unpack_from(raw)
    if magic != SEGMENT_MAGIC or version != VERSION or flags or zero:
        raise FormatError(f"segment has an unknown header {bytes(raw[:8]).hex()}")
    if manifest is not None:
        check_owner(raw, manifest)
    if not 0 < count <= SEGMENT_EXTENTS_MAX or not 0 < packs <= count:
        raise FormatError(f"segment claims {count} extents in {packs} packs")
    if len(raw) != SEGMENT_HEADER_BYTES + count * _EXTENT_BYTES + packs * PACK_ID_BYTES:
        raise FormatError(f"segment is {len(raw)} bytes for {count} extents")
    columns = memoryview(raw)[SEGMENT_HEADER_BYTES:]
    if verify and _checksum(columns, begin ^ count << 48) != checksum:
        raise FormatError("segment is damaged")
    sizes = (8 * count, CHUNK_ID_BYTES * count, 4 * count, 4 * count, 2 * count)
    parts, at = [], 0
    for size in sizes:
        parts.append(columns[at : at + size])
        at += size
    pack_ids = [bytes(columns[i : i + PACK_ID_BYTES]) for i in range(at, len(columns), 16)]
    ends, ids, offsets, stored, pack_of = parts
    return Segment(
        owner,
        begin,
        _native(ends, "Q"),
        ids,
        _native(offsets, "I"),
        _native(stored, "I"),
        _native(pack_of, "H"),
        pack_ids,
    )


def _little(column: array[int]) -> bytes:
    if sys.byteorder == "big":
        column = array(column.typecode, column)
        column.byteswap()
    return column.tobytes()


def _native(column: memoryview, typecode: str) -> memoryview:
    if sys.byteorder == "big":
        swapped = array(typecode, column.tobytes())
        swapped.byteswap()
        return memoryview(swapped)
    return column.cast(typecode)  # type: ignore[call-overload, no-any-return]
