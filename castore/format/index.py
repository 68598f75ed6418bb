"""What the index holds besides segments: records, and the rows of its tables (see FORMAT.md)."""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

import xxhash

from castore.errors import FormatError, UnsupportedFormat
from castore.format import VERSION
from castore.format.frame import BASES_MAX, CHUNK_ID_BYTES, CODEC_RAW, CODEC_ZSTD
from castore.model import Location, StoredChunk

_checksum = xxhash.xxh3_64_intdigest


# ---------------------------------------------------------------- records: names -> objects

RECORD_INLINE: Final = 0
RECORD_EXTENTS: Final = 1
_RECORD = struct.Struct("<BBBBIQq16sQQQQ")
_EXTRA = struct.Struct("<QQ")
_SOURCE_BYTES = 8
RECORD_HEADER_BYTES: Final = _RECORD.size  # 72
_RECORD_VERSION_SOURCE = 2  # has the state of a source behind the header
_RECORD_VERSION_DELTAS = 3  # has that, or 0, and how many of its chunks are deltas
INLINE_BYTES_LIMIT: Final = 1 << 17


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
    deltas: int = 0  # chunks whose frames decode with others

    @property
    def is_inline(self) -> bool:
        return self.manifest == 0


def encode_record(record: Record) -> bytes:
    version, extra = VERSION, b""
    if record.deltas:
        version, extra = _RECORD_VERSION_DELTAS, _EXTRA.pack(record.source, record.deltas)
    elif record.source:
        version, extra = _RECORD_VERSION_SOURCE, _EXTRA.pack(record.source, 0)[:_SOURCE_BYTES]
    head = _RECORD.pack(
        version,
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
    tail = extra + record.inline
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
    if version > _RECORD_VERSION_DELTAS:
        raise UnsupportedFormat(f"record has format version {version}: upgrade castore")
    extra_bytes = (0, 0, _SOURCE_BYTES, _EXTRA.size)[version]
    if not version or len(tail) < extra_bytes or flags or codec not in (CODEC_RAW, CODEC_ZSTD):
        raise FormatError(f"record has version {version}, codec {codec}, flags {flags:#x}")
    source, deltas = _EXTRA.unpack(tail[:extra_bytes].ljust(_EXTRA.size, b"\0"))
    inline = tail[extra_bytes:]
    if kind == RECORD_INLINE:
        if manifest or chunks or size > INLINE_BYTES_LIMIT or stored_bytes != len(inline) or deltas:
            raise FormatError(f"inline record claims {size} bytes in {chunks} chunks")
        if codec == CODEC_RAW and len(inline) != size:
            raise FormatError(f"inline record claims {size} bytes and has {len(inline)}")
    elif kind != RECORD_EXTENTS or not manifest or not deltas <= chunks <= size or inline:
        raise FormatError(f"record of kind {kind} claims {size} bytes in {chunks} chunks")
    elif not chunks:
        raise FormatError(f"record claims {size} bytes in no chunk")
    return Record(
        size, mtime_ns, mode, etag, stored_bytes, chunks, manifest, codec, inline, source, deltas
    )


RECORD_FACTS_BYTES: Final = RECORD_HEADER_BYTES + _EXTRA.size  # of an encoded record, at most


def decode_record_facts(raw: bytes) -> Record:
    """From the first RECORD_FACTS_BYTES of an inline object's record, all but its bytes. The caller
    has checked that these are as they were written: the record's own checksum is of all of it."""
    if len(raw) < RECORD_FACTS_BYTES:
        raise FormatError(f"record is cut short at {len(raw)} bytes")
    version, kind, codec, flags, mode, size, mtime_ns, etag, stored_bytes, chunks, manifest, _ = (
        _RECORD.unpack_from(raw)
    )
    if version > _RECORD_VERSION_SOURCE:
        raise UnsupportedFormat(f"record has format version {version}: upgrade castore")
    if not version or flags or kind != RECORD_INLINE or manifest or chunks:
        raise FormatError(f"record of kind {kind} and version {version} claims to be inline")
    source = 0
    if version == _RECORD_VERSION_SOURCE:
        source, _ = _EXTRA.unpack(raw[RECORD_HEADER_BYTES:RECORD_FACTS_BYTES])
    return Record(size, mtime_ns, mode, etag, stored_bytes, codec=codec, source=source)


# ---------------------------------------------------------------- rows of the index

_CHUNK_ROW = struct.Struct("<IIIBBH16s")
PLAIN_CHUNK_ROW_BYTES: Final = _CHUNK_ROW.size  # of a chunk that is no delta
_CHUNK_ROW_VERSION_DELTA = 2  # behind it are the ids of its bases
_PACK_ROW = struct.Struct("<QQ")
_PACK_TIME_NS_MAX = (1 << 64) - 1
_CHECKSUM_BYTES = 8
_TOTALS = struct.Struct("<qqqqqq")
_DELTA_TOTALS = struct.Struct("<qqqq")  # behind those of a store that has deltas
TOTALS_BYTES: Final = (_TOTALS.size, _TOTALS.size + _DELTA_TOTALS.size)
_SEGMENT_KEY = struct.Struct(">QQ")


class ChunkRow(NamedTuple):
    """A known chunk. The location of one that is a delta does not say where its bases are, as these
    may move: their own rows do, by their ids."""

    raw_bytes: int
    location: Location
    bases: tuple[bytes, ...] = ()

    @classmethod
    def of(cls, chunk: StoredChunk) -> ChunkRow:
        return cls(chunk.raw_bytes, chunk.location, chunk.kind[1])


def encode_chunk_row(row: ChunkRow) -> bytes:
    at = row.location
    version = _CHUNK_ROW_VERSION_DELTA if row.bases else VERSION
    fixed = _CHUNK_ROW.pack(
        row.raw_bytes, at.offset, at.stored_bytes, version, len(row.bases), 0, at.pack_id
    )
    return b"".join([fixed, *row.bases])


def decode_chunk_row(raw: bytes) -> ChunkRow:
    try:
        raw_bytes, offset, stored, version, count, zero, pack_id = _CHUNK_ROW.unpack_from(raw)
    except struct.error as error:
        raise FormatError(f"chunk row has {len(raw)} bytes") from error
    most = BASES_MAX if version == _CHUNK_ROW_VERSION_DELTA else 0
    if not 0 < version <= _CHUNK_ROW_VERSION_DELTA or zero or not (most > 0) <= count <= most:
        raise FormatError(f"chunk row has version {version} and {count} bases")
    if len(raw) != _CHUNK_ROW.size + count * CHUNK_ID_BYTES:
        raise FormatError(f"chunk row of {count} bases has {len(raw)} bytes")
    ids = raw[_CHUNK_ROW.size :]
    bases = tuple(bytes(ids[i : i + CHUNK_ID_BYTES]) for i in range(0, len(ids), CHUNK_ID_BYTES))
    return ChunkRow(raw_bytes, Location(pack_id, offset, stored), bases)


def encode_pack_row(created_ns: int, pack_bytes: int) -> bytes:
    """A pack that commits refer to. `pack_bytes` is how much of it was durable at the last one;
    a footer written since is not counted."""
    # Of a pack whose row was lost it is its file's time, which may be any.
    row = _PACK_ROW.pack(min(max(created_ns, 0), _PACK_TIME_NS_MAX), pack_bytes)
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
        "delta_bases",
        "delta_raw_bytes",
        "delta_stored_bytes",
        "deltas",
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
        deltas: int = 0,
        delta_bases: int = 0,
        delta_raw_bytes: int = 0,
        delta_stored_bytes: int = 0,
    ) -> None:
        self.logical_bytes = logical_bytes
        self.inline_raw_bytes = inline_raw_bytes
        self.inline_stored_bytes = inline_stored_bytes
        self.chunk_raw_bytes = chunk_raw_bytes
        self.chunk_stored_bytes = chunk_stored_bytes
        self.deltas = deltas
        self.delta_bases = delta_bases
        self.delta_raw_bytes = delta_raw_bytes
        self.delta_stored_bytes = delta_stored_bytes

    def count_object(self, record: Record, sign: int) -> None:
        """Add what the record counts for, or take it away."""
        self.logical_bytes += sign * record.size
        if record.is_inline:
            self.inline_raw_bytes += sign * record.size
            self.inline_stored_bytes += sign * record.stored_bytes

    def count_chunk(self, row: ChunkRow, sign: int) -> None:
        raw_bytes, stored_bytes = sign * row.raw_bytes, sign * row.location.stored_bytes
        self.chunk_raw_bytes += raw_bytes
        self.chunk_stored_bytes += stored_bytes
        if row.bases:
            self.deltas += sign
            self.delta_bases += sign * len(row.bases)
            self.delta_raw_bytes += raw_bytes
            self.delta_stored_bytes += stored_bytes

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Totals) and self.encode() == other.encode()

    __hash__ = None  # type: ignore[assignment]

    def encode(self) -> bytes:
        deltas = self.deltas, self.delta_bases, self.delta_raw_bytes, self.delta_stored_bytes
        return _TOTALS.pack(
            self.logical_bytes,
            self.inline_raw_bytes,
            self.inline_stored_bytes,
            self.chunk_raw_bytes,
            self.chunk_stored_bytes,
            0,
        ) + (_DELTA_TOTALS.pack(*deltas) if any(deltas) else b"")

    @classmethod
    def decode(cls, row: bytes) -> Totals:
        if len(row) not in TOTALS_BYTES:
            raise FormatError(f"totals row has {len(row)} bytes")
        deltas = row[_TOTALS.size :].ljust(_DELTA_TOTALS.size, b"\0")
        return cls(*_TOTALS.unpack_from(row)[:5], *_DELTA_TOTALS.unpack(deltas))
