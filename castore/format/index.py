"""What the index holds: segments of extents, records, and the rows of its tables (see FORMAT.md).

All integers are little endian, but for keys, which are big endian so that LMDB sorts them.
Decoders take untrusted bytes, as those of `pack` do.
"""

from __future__ import annotations

import struct
import sys
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator
from typing import Final, NamedTuple

import xxhash

from castore.errors import FormatError, UnsupportedFormat
from castore.format.pack import (
    CHUNK_BYTES_LIMIT,
    CHUNK_ID_BYTES,
    CODEC_RAW,
    CODEC_ZSTD,
    PACK_ID_BYTES,
    VERSION,
)
from castore.model import SEGMENT_EXTENTS_MAX, Extent, Location

_checksum = xxhash.xxh3_64_intdigest


# ---------------------------------------------------------------- segments

SEGMENT_MAGIC: Final = b"CSEG"
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


# ---------------------------------------------------------------- records: names -> objects

RECORD_INLINE: Final = 0
RECORD_EXTENTS: Final = 1
_RECORD = struct.Struct("<BBBBIQq16sQQQQ")
RECORD_HEADER_BYTES: Final = _RECORD.size  # 72
_RECORD_VERSION_SOURCE = 2  # has the state of a source behind the header
INLINE_BYTES_LIMIT: Final = 1 << 16


class Record(NamedTuple):
    """What a name maps to: the object's facts, and its bytes inline or its manifest's number."""

    size: int
    mtime_ns: int
    mode: int
    etag: bytes
    stored_bytes: int
    chunks: int = 0
    manifest: int = 0  # the segments' key; 0 for an inline object
    codec: int = CODEC_RAW
    inline: bytes = b""
    source: int = 0  # tells the state of the file that it was put from; 0: not known

    @property
    def is_inline(self) -> bool:
        return self.manifest == 0


def encode_record(record: Record) -> bytes:
    head = _RECORD.pack(
        _RECORD_VERSION_SOURCE if record.source else VERSION,
        RECORD_INLINE if record.is_inline else RECORD_EXTENTS,
        record.codec,
        0,
        record.mode,
        record.size,
        record.mtime_ns,
        record.etag,
        record.stored_bytes,
        record.chunks,
        record.manifest,
        0,
    )[:-8]
    tail = (record.source.to_bytes(8, "little") if record.source else b"") + record.inline
    return head + _checksum(tail, _checksum(head)).to_bytes(8, "little") + tail


def decode_record(raw: bytes) -> Record:
    if len(raw) < RECORD_HEADER_BYTES:
        raise FormatError(f"record is cut short at {len(raw)} bytes")
    (
        version,
        kind,
        codec,
        flags,
        mode,
        size,
        mtime_ns,
        etag,
        stored_bytes,
        chunks,
        manifest,
        checksum,
    ) = _RECORD.unpack_from(raw)
    tail = bytes(raw[RECORD_HEADER_BYTES:])
    if _checksum(tail, _checksum(raw[: RECORD_HEADER_BYTES - 8])) != checksum:
        raise FormatError("record is damaged")
    if version > _RECORD_VERSION_SOURCE:
        raise UnsupportedFormat(f"record has format version {version}: upgrade castore")
    source_bytes = 8 if version == _RECORD_VERSION_SOURCE else 0
    source, inline = int.from_bytes(tail[:source_bytes], "little"), tail[source_bytes:]
    if not version or len(tail) < source_bytes or flags or codec not in (CODEC_RAW, CODEC_ZSTD):
        raise FormatError(f"record has version {version}, codec {codec}, flags {flags:#x}")
    if kind == RECORD_INLINE:
        if manifest or chunks or size > INLINE_BYTES_LIMIT or stored_bytes != len(inline):
            raise FormatError(f"inline record claims {size} bytes in {chunks} chunks")
        if codec == CODEC_RAW and len(inline) != size:
            raise FormatError(f"inline record claims {size} bytes and has {len(inline)}")
    elif kind != RECORD_EXTENTS or not manifest or not chunks or inline or size < chunks:
        raise FormatError(f"record of kind {kind} claims {size} bytes in {chunks} chunks")
    return Record(size, mtime_ns, mode, etag, stored_bytes, chunks, manifest, codec, inline, source)


# ---------------------------------------------------------------- rows of the index

_CHUNK_ROW = struct.Struct("<IIIBBH16s")
_PACK_ROW = struct.Struct("<QQ")
_CHECKSUM_BYTES = 8
_TOTALS = struct.Struct("<qqqqqq")
TOTALS_BYTES: Final = _TOTALS.size
_SEGMENT_KEY = struct.Struct(">QQ")


def encode_chunk_row(raw_bytes: int, location: Location) -> bytes:
    return _CHUNK_ROW.pack(
        raw_bytes, location.offset, location.stored_bytes, VERSION, 0, 0, location.pack_id
    )


def decode_chunk_row(row: bytes) -> tuple[int, Location]:
    """(raw bytes, location) of a known chunk."""
    try:
        raw_bytes, offset, stored, version, flags, zero, pack_id = _CHUNK_ROW.unpack(row)
    except struct.error as error:
        raise FormatError(f"chunk row has {len(row)} bytes") from error
    if version != VERSION or flags or zero:
        raise FormatError(f"chunk row has version {version} and flags {flags:#x}")
    return raw_bytes, Location(pack_id, offset, stored)


def encode_pack_row(created_ns: int, pack_bytes: int) -> bytes:
    """A pack that commits refer to. `pack_bytes` is how much of it was durable at the last one;
    a footer written since is not counted."""
    row = _PACK_ROW.pack(created_ns, pack_bytes)
    return row + _checksum(row).to_bytes(_CHECKSUM_BYTES, "little")


def decode_pack_row(row: bytes) -> tuple[int, int]:
    """(creation time in ns since the epoch, durable bytes)."""
    facts, checksum = row[: _PACK_ROW.size], row[_PACK_ROW.size :]
    if len(facts) != _PACK_ROW.size or len(checksum) not in (0, _CHECKSUM_BYTES):
        raise FormatError(f"pack row has {len(row)} bytes")
    # Earlier versions wrote none.
    if checksum and _checksum(facts) != int.from_bytes(checksum, "little"):
        raise FormatError("pack row is damaged")
    created_ns, pack_bytes = _PACK_ROW.unpack(facts)
    return created_ns, pack_bytes


# ---------------------------------------------------------------- numbers of manifests

# In the order in which they were made, above a random tag: a number is not given out twice, even if
# what is known of the last one is lost, and a flipped bit in one does not make it another's.
_TAG_BITS = 24
MANIFEST_ORDER_MAX: Final = (1 << 40) - 1
OWNER_MASK: Final = (1 << 32) - 1


def manifest_number(order: int, tag: int) -> int:
    """`tag` is a random number below 2^24; 0 counts as 1, so that no owner is 0."""
    return order << _TAG_BITS | max(tag, 1)


def manifest_order(manifest: int) -> int:
    """0 for those of earlier versions, which counted from 1 and had no tag."""
    return manifest >> _TAG_BITS


def manifest_slot(manifest: int) -> int:
    """A small number for each manifest, as far as they were given out in their order."""
    order = manifest_order(manifest)
    return order + (1 << _TAG_BITS) if order else manifest


def segment_key(manifest: int, end: int) -> bytes:
    """Sorted by where each segment ends, so that the first key at or after
    `segment_key(manifest, offset + 1)` is the segment that holds the byte at `offset`."""
    return _SEGMENT_KEY.pack(manifest, end)


def manifest_of(key: bytes) -> int:
    return segment_place(key)[0]


def segment_place(key: bytes) -> tuple[int, int]:
    """(manifest, end offset) of a segment's key."""
    try:
        manifest, end = _SEGMENT_KEY.unpack(key)
        return manifest, end
    except struct.error as error:
        raise FormatError(f"segment key has {len(key)} bytes") from error


class Totals:
    """The running sums behind StoreStats, kept by every commit."""

    __slots__ = (
        "chunk_raw_bytes",
        "chunk_stored_bytes",
        "inline_raw_bytes",
        "inline_stored_bytes",
        "logical_bytes",
    )

    def __init__(
        self,
        logical_bytes: int = 0,
        inline_raw_bytes: int = 0,
        inline_stored_bytes: int = 0,
        chunk_raw_bytes: int = 0,
        chunk_stored_bytes: int = 0,
    ) -> None:
        self.logical_bytes = logical_bytes
        self.inline_raw_bytes = inline_raw_bytes
        self.inline_stored_bytes = inline_stored_bytes
        self.chunk_raw_bytes = chunk_raw_bytes
        self.chunk_stored_bytes = chunk_stored_bytes

    def count_object(self, record: Record, sign: int) -> None:
        """Add what the record counts for, or take it away."""
        self.logical_bytes += sign * record.size
        if record.is_inline:
            self.inline_raw_bytes += sign * record.size
            self.inline_stored_bytes += sign * record.stored_bytes

    def count_chunk(self, raw_bytes: int, stored_bytes: int, sign: int) -> None:
        self.chunk_raw_bytes += sign * raw_bytes
        self.chunk_stored_bytes += sign * stored_bytes

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Totals) and self.encode() == other.encode()

    __hash__ = None  # type: ignore[assignment]

    def encode(self) -> bytes:
        return _TOTALS.pack(
            self.logical_bytes,
            self.inline_raw_bytes,
            self.inline_stored_bytes,
            self.chunk_raw_bytes,
            self.chunk_stored_bytes,
            0,
        )

    @classmethod
    def decode(cls, row: bytes) -> Totals:
        try:
            return cls(*_TOTALS.unpack(row)[:5])
        except struct.error as error:
            raise FormatError(f"totals row has {len(row)} bytes") from error
