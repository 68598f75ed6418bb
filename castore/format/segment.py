"""Segments: up to 1,024 consecutive extents of one object, in columns (see FORMAT.md)."""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, NamedTuple, TypeAlias

import xxhash

from castore.errors import FormatError
from castore.format import CHUNK_BYTES_LIMIT, VERSION
from castore.format.frame import BASES_MAX, CHUNK_ID_BYTES
from castore.format.pack import PACK_ID_BYTES
from castore.format.segment_columns import BaseColumns, little, native
from castore.model import SEGMENT_EXTENTS_MAX, Extent, Location, StoredChunk

_checksum = xxhash.xxh3_64_intdigest

SEGMENT_MAGIC: Final = b"CSEG"
OWNER_MASK: Final = (1 << 32) - 1  # of a manifest's number, what its segments say
_SEGMENT = struct.Struct("<4sBBHHHIQQ")
_OWNER = struct.Struct("<I")
_OWNER_AT = 12
SEGMENT_HEADER_BYTES: Final = _SEGMENT.size  # 32
# Of one extent, as those of small objects are, and no delta: all of it in one go.
_TAIL_OF_ONE = struct.Struct("<IQQ")  # of its header
_COLUMNS_OF_ONE = struct.Struct("<Q16sIIH16s")
_OF_ONE = struct.Struct("<12sIQQQ16sIIH16s")  # of a segment of one extent
_VERSION_DELTAS: Final = 2  # with the frames that deltas decode with, in columns of their own
_HEAD_OF_ONE: Final = struct.pack("<4sBBHHH", SEGMENT_MAGIC, VERSION, 0, 1, 1, 0)


class Segment:
    """Up to 1,024 consecutive extents of one object, in columns that are read in place.

    `ends[i]` is the offset in the object where extent i ends; extent 0 begins at `begin`. `owner`
    are the low 32 bits of its manifest's number; 0 where it does not say.
    """

    __slots__ = (
        "_bases",
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
        ends: Sequence[int],
        ids: bytes | memoryview,
        offsets: Sequence[int],
        stored: Sequence[int],
        pack_of: Sequence[int],
        packs: list[bytes],
        bases: BaseColumns | None = None,
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
        self._bases = bases

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
        bases = () if self._bases is None else self._bases.of(i, self.packs)
        return Extent(
            begin,
            end,
            bytes(self._ids[at : at + CHUNK_ID_BYTES]),
            Location(self.packs[pack], self._offsets[i], self._stored[i], bases),
        )

    def begins(self) -> Iterator[tuple[bytes, int]]:
        """The chunk id of each extent, and where the extent begins: without a check."""
        ids = bytes(self._ids)
        cuts = range(0, len(ids), CHUNK_ID_BYTES)
        chunk_ids = [ids[at : at + CHUNK_ID_BYTES] for at in cuts]
        return zip(chunk_ids, (self.begin, *self.ends), strict=False)

    def frames(self) -> Iterator[StoredChunk]:
        """Every frame that the segment leads to: those of its extents, then those that its deltas
        decode with."""
        yield from (extent.stored for extent in self)
        if self._bases is not None:
            yield from (self._bases.at(i, self.packs) for i in range(len(self._bases)))

    @property
    def deltas(self) -> int:
        """How many extents are deltas."""
        return 0 if self._bases is None else self._bases.deltas

    def covering(self, begin: int, end: int) -> list[Extent]:
        """The extents that hold bytes of `[begin, end)`, in order."""
        ends = self.ends
        first = bisect_right(ends, begin)
        if first < len(ends) and end <= ends[first]:
            return [self.extent(first)]
        return [self.extent(i) for i in range(first, min(bisect_left(ends, end) + 1, len(ends)))]

    def __iter__(self) -> Iterator[Extent]:
        return (self.extent(i) for i in range(len(self.ends)))

    def relocated(self, find: Callable[[StoredChunk], Location | None]) -> bytes | None:
        """The segment, encoded, with its frames where `find` says that they are from now on, or
        where they were if it says None; None if all of them stay. It is asked for the bases of
        deltas, too: of those that it names itself, and of those that there were."""
        extents = list(self)
        places = [_moved(extent.stored, find) for extent in extents]
        if all(place is extent.location for place, extent in zip(places, extents, strict=True)):
            return None
        builder = SegmentBuilder(self.begin)
        for extent, place in zip(extents, places, strict=True):
            builder.append(extent.end, extent.chunk_id, place)
        return builder.encode(self.owner)

    def offsets_by_pack(self) -> Iterable[tuple[bytes, Sequence[int]]]:
        """Each pack with the offsets of the frames that are in it, as u32: all that marking needs,
        without an Extent for each."""
        if len(self.packs) == 1 and self._bases is None:
            return [(self.packs[0], self._offsets)]
        split = [array("I") for _ in self.packs]
        bases = self._bases
        columns = [(self._pack_of, self._offsets)]
        columns += [] if bases is None else [(bases.pack_of, bases.offsets)]
        try:
            for pack_of, offsets in columns:
                for pack, offset in zip(pack_of, offsets, strict=True):
                    split[pack].append(offset)
        except IndexError:
            raise FormatError(f"segment has an extent in pack {pack}") from None
        return zip(self.packs, split, strict=True)


def _moved(chunk: StoredChunk, find: Callable[[StoredChunk], Location | None]) -> Location:
    """Where the chunk is from now on; the very location it has if nothing about it changes. What is
    a delta itself is the base of none."""
    place = find(chunk) or chunk.location
    if not place.bases:
        return place
    bases = [find(base) for base in place.bases]
    if not any(bases):
        return place
    moved = [
        base if new is None or new.bases else base._replace(location=new)
        for base, new in zip(place.bases, bases, strict=True)
    ]
    return place._replace(bases=tuple(moved))


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
        self._used_ends = array("H")
        self._used = array("H")
        self._bases: dict[StoredChunk, int] = {}

    def __len__(self) -> int:
        return len(self._ends)

    @property
    def full(self) -> bool:
        return len(self._ends) >= SEGMENT_EXTENTS_MAX

    @property
    def deltas(self) -> int:
        """How many extents are deltas."""
        ends = self._used_ends
        return sum(end != (ends[i - 1] if i else 0) for i, end in enumerate(ends))

    @property
    def packs(self) -> set[bytes]:
        return set(self._packs)

    @property
    def end(self) -> int:
        return self._ends[-1]

    def append(self, end: int, chunk_id: bytes, place: Location) -> None:
        self._ends.append(end)
        self._ids += chunk_id
        self._offsets.append(place.offset)
        self._stored.append(place.stored_bytes)
        self._pack_of.append(self._pack(place.pack_id))
        for base in place.bases:
            self._pack(base.location.pack_id)
            self._used.append(self._bases.setdefault(base, len(self._bases)))
        self._used_ends.append(len(self._used))

    def _pack(self, pack_id: bytes) -> int:
        return self._packs.setdefault(pack_id, len(self._packs))

    def encode(self, owner: int = 0) -> bytes:
        columns = b"".join(
            [
                little(self._ends),
                self._ids,
                little(self._offsets),
                little(self._stored),
                little(self._pack_of),
                *(self._base_columns() if self._bases else ()),
                *self._packs,
            ]
        )
        count = len(self._ends)
        version = _VERSION_DELTAS if self._bases else VERSION
        return b"".join(
            [
                _SEGMENT.pack(
                    SEGMENT_MAGIC,
                    version,
                    0,
                    count,
                    len(self._packs),
                    len(self._bases),
                    owner,
                    self.begin,
                    _checksum(columns, self.begin ^ count << 48),
                ),
                columns,
            ]
        )

    def _base_columns(self) -> Iterator[bytes]:
        bases = list(self._bases)
        yield little(self._used_ends)
        yield little(self._used)
        yield little(array("I", [base.raw_bytes for base in bases]))
        yield b"".join(base.chunk_id for base in bases)
        yield little(array("I", [base.location.offset for base in bases]))
        yield little(array("I", [base.location.stored_bytes for base in bases]))
        yield little(array("H", [self._packs[base.location.pack_id] for base in bases]))


class SegmentOfOne(NamedTuple):
    """What a SegmentBuilder makes of one extent `[0, end)` that is no delta, in a fraction of the
    time."""

    end: int
    chunk_id: bytes
    place: Location

    @property
    def packs(self) -> set[bytes]:
        return {self.place.pack_id}

    def encode(self) -> bytes:
        pack_id, offset, stored_bytes, _ = self.place
        columns = _COLUMNS_OF_ONE.pack(self.end, self.chunk_id, offset, stored_bytes, 0, pack_id)
        return _HEAD_OF_ONE + _TAIL_OF_ONE.pack(0, 0, _checksum(columns, 1 << 48)) + columns


NewSegment: TypeAlias = SegmentBuilder | SegmentOfOne


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
    one = _unpack_one(raw, manifest)
    if one is not None:
        owner, begin, end, chunk_id, offset, stored_bytes, pack_id = one
        return Segment(owner, begin, (end,), chunk_id, (offset,), (stored_bytes,), (0,), [pack_id])
    if len(raw) < SEGMENT_HEADER_BYTES:
        raise FormatError(f"segment is cut short at {len(raw)} bytes")
    magic, version, flags, count, packs, bases, owner, begin, checksum = _SEGMENT.unpack_from(raw)
    with_deltas = version == _VERSION_DELTAS
    if magic != SEGMENT_MAGIC or not (version == VERSION or with_deltas) or flags:
        raise FormatError(f"segment has an unknown header {bytes(raw[:8]).hex()}")
    if manifest is not None:
        check_owner(raw, manifest)
    if not 0 < count <= SEGMENT_EXTENTS_MAX or not 0 < packs <= count + bases:
        raise FormatError(f"segment claims {count} extents in {packs} packs")
    if (bases > 0) != with_deltas or bases > count * BASES_MAX:
        raise FormatError(f"segment of version {version} claims {bases} bases")
    columns = memoryview(raw)[SEGMENT_HEADER_BYTES:]
    sizes = [8 * count, CHUNK_ID_BYTES * count, 4 * count, 4 * count, 2 * count]
    if with_deltas:
        # The last of the ends says how many bases are used in all.
        last = columns[sum(sizes) + 2 * count - 2 : sum(sizes) + 2 * count]
        used = int.from_bytes(last, "little")
        sizes += [2 * count, 2 * used]
        sizes += [4 * bases, CHUNK_ID_BYTES * bases, 4 * bases, 4 * bases, 2 * bases]
    if len(columns) != sum(sizes) + packs * PACK_ID_BYTES:
        raise FormatError(f"segment is {len(raw)} bytes for {count} extents")
    if verify and _checksum(columns, begin ^ count << 48) != checksum:
        raise FormatError("segment is damaged")
    parts, at = [], 0
    for size in sizes:
        parts.append(columns[at : at + size])
        at += size
    pack_ids = [bytes(columns[i : i + PACK_ID_BYTES]) for i in range(at, len(columns), 16)]
    ends, ids, offsets, stored, pack_of, *rest = parts
    return Segment(
        owner,
        begin,
        native(ends, "Q"),
        ids,
        native(offsets, "I"),
        native(stored, "I"),
        native(pack_of, "H"),
        pack_ids,
        BaseColumns(rest) if rest else None,
    )


def decode_extent_of_one(raw: bytes | memoryview, manifest: int) -> Extent | None:
    """The extent of a segment of that manifest that has no other, and is no delta; None if it is
    another one, or malformed: the quickest way to the bytes of a small object."""
    one = _unpack_one(raw, manifest)
    if one is None:
        return None
    _, begin, end, chunk_id, offset, stored_bytes, pack_id = one
    if not 0 < end - begin <= CHUNK_BYTES_LIMIT + 256:
        return None
    return Extent(begin, end, chunk_id, Location(pack_id, offset, stored_bytes))


def _unpack_one(
    raw: bytes | memoryview, manifest: int | None
) -> tuple[int, int, int, bytes, int, int, bytes] | None:
    """Owner, begin, end, chunk id, offset, stored bytes and pack of a segment of one extent that is
    no delta; None if it is another one, or malformed."""
    if len(raw) != _OF_ONE.size:
        return None
    head, owner, begin, checksum, end, chunk_id, offset, stored_bytes, pack_of, pack_id = (
        _OF_ONE.unpack(raw)
    )
    if (
        head != _HEAD_OF_ONE
        or pack_of
        or (manifest is not None and owner not in (0, manifest & OWNER_MASK))
        or _checksum(raw[SEGMENT_HEADER_BYTES:], begin ^ 1 << 48) != checksum
    ):
        return None
    return owner, begin, end, chunk_id, offset, stored_bytes, pack_id
