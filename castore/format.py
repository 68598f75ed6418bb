"""Every byte layout of a store, encoded and decoded here and nowhere else (see FORMAT.md).

All integers are little endian, but for keys, which are big endian so that LMDB sorts them.
Decoders take untrusted bytes: each length is checked before anything is allocated from it, and
malformed bytes raise FormatError, nothing else.
"""

from __future__ import annotations

import json
import struct
import sys
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

import xxhash

from castore.errors import FormatError, UnsupportedFormat
from castore.model import SEGMENT_EXTENTS_MAX, Extent, Location

VERSION: Final = 1
CHUNK_ID_BYTES: Final = 16
PACK_ID_BYTES: Final = 16
CHUNK_BYTES_LIMIT: Final = 16 << 20  # no config may ask for larger chunks than this

CODEC_RAW: Final = 0
CODEC_ZSTD: Final = 1

FLAG_SHA256: Final = 1  # a SHA-256 of the raw bytes follows the frame's header
FLAG_DISAMBIGUATED: Final = 2  # the chunk id is that of the SHA-256, not of the raw bytes

_checksum = xxhash.xxh3_64_intdigest


# ---------------------------------------------------------------- config: castore.json


class StoreConfig(NamedTuple):
    """What is fixed for a store's life. The seed keeps outsiders from aiming collisions."""

    store_id: bytes
    seed: int
    chunk_min: int
    chunk_avg: int
    chunk_max: int
    collision_guard: str | None = None


def encode_config(config: StoreConfig) -> bytes:
    fields = {
        "format": "castore",
        "version": VERSION,
        "store_id": config.store_id.hex(),
        "seed": f"{config.seed:016x}",
        "chunk_bytes": {
            "min": config.chunk_min,
            "avg": config.chunk_avg,
            "max": config.chunk_max,
        },
        "collision_guard": config.collision_guard,
    }
    return json.dumps(fields, indent=2).encode() + b"\n"


def decode_config(raw: bytes) -> StoreConfig:
    """Raises FormatError, or UnsupportedFormat for a store of a newer version."""
    if len(raw) > 65536:
        raise FormatError("castore.json is too large to be a store's config")
    try:
        fields = json.loads(raw)
        if fields["format"] != "castore":
            raise FormatError(f"castore.json is of format {fields['format']!r}")
        version = fields["version"]
        if not isinstance(version, int) or version < 1:
            raise FormatError(f"castore.json has version {version!r}")
        if version > VERSION:
            raise UnsupportedFormat(
                f"the store has format version {version}, this castore reads up to {VERSION}: "
                "upgrade castore"
            )
        sizes = fields["chunk_bytes"]
        config = StoreConfig(
            bytes.fromhex(fields["store_id"]),
            int(fields["seed"], 16),
            sizes["min"],
            sizes["avg"],
            sizes["max"],
            fields["collision_guard"],
        )
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        if isinstance(error, (FormatError, UnsupportedFormat)):
            raise
        raise FormatError(f"castore.json does not parse: {error!r}") from error
    sizes_ok = all(
        isinstance(n, int) and not isinstance(n, bool)
        for n in (config.chunk_min, config.chunk_avg, config.chunk_max)
    ) and (0 < config.chunk_min <= config.chunk_avg <= config.chunk_max <= CHUNK_BYTES_LIMIT)
    if len(config.store_id) != 16 or not 0 <= config.seed < 1 << 64 or not sizes_ok:
        raise FormatError("castore.json has a store id, seed or chunk sizes out of range")
    if config.collision_guard not in (None, "sha256"):
        raise FormatError(f"castore.json has collision guard {config.collision_guard!r}")
    return config


# ---------------------------------------------------------------- frames

FRAME_MAGIC: Final = b"CFRM"
_FRAME = struct.Struct("<4sBBHII16s")
FRAME_HEADER_BYTES: Final = _FRAME.size  # 32
SHA256_BYTES: Final = 32


class FrameHeader(NamedTuple):
    """A chunk as stored: the header says how its payload decodes, and to what."""

    codec: int
    flags: int
    raw_bytes: int
    payload_bytes: int
    chunk_id: bytes
    sha256: bytes = b""

    @property
    def header_bytes(self) -> int:
        return FRAME_HEADER_BYTES + len(self.sha256)


def encode_frame_header(header: FrameHeader) -> bytes:
    return (
        _FRAME.pack(
            FRAME_MAGIC,
            header.codec,
            header.flags,
            0,
            header.raw_bytes,
            header.payload_bytes,
            header.chunk_id,
        )
        + header.sha256
    )


def plain_frame_header(codec: int, raw_bytes: int, payload_bytes: int, chunk_id: bytes) -> bytes:
    """The only header that a frame without flags can have, to be compared with."""
    return _FRAME.pack(FRAME_MAGIC, codec, 0, 0, raw_bytes, payload_bytes, chunk_id)


def decode_frame_header(frame: bytes | memoryview) -> FrameHeader:
    """The header at the start of `frame`, which may go on past the frame's payload."""
    try:
        magic, codec, flags, reserved, raw_bytes, payload_bytes, chunk_id = _FRAME.unpack_from(
            frame
        )
    except struct.error as error:
        raise FormatError(f"frame is cut short at {len(frame)} bytes") from error
    if magic != FRAME_MAGIC:
        raise FormatError("frame does not start with its magic")
    if codec not in (CODEC_RAW, CODEC_ZSTD) or flags & ~3 or reserved:
        raise FormatError(f"frame has unknown codec {codec} or flags {flags:#x}")
    if not 0 < raw_bytes <= CHUNK_BYTES_LIMIT + 256 or payload_bytes > raw_bytes:
        raise FormatError(f"frame claims {raw_bytes} raw and {payload_bytes} stored bytes")
    if codec == CODEC_RAW and payload_bytes != raw_bytes:
        raise FormatError(f"raw frame claims {raw_bytes} raw and {payload_bytes} stored bytes")
    sha256 = b""
    if flags & FLAG_SHA256:
        sha256 = bytes(frame[FRAME_HEADER_BYTES : FRAME_HEADER_BYTES + SHA256_BYTES])
        if len(sha256) != SHA256_BYTES:
            raise FormatError(f"frame is cut short at {len(frame)} bytes")
    elif flags & FLAG_DISAMBIGUATED:
        raise FormatError("frame has a disambiguated id without its SHA-256")
    return FrameHeader(codec, flags, raw_bytes, payload_bytes, chunk_id, sha256)


# ---------------------------------------------------------------- packs

PACK_MAGIC: Final = b"castpack"
FOOTER_MAGIC: Final = b"castfoot"
_PACK = struct.Struct("<8sHHI16s16sQQ")
_ENTRY = struct.Struct("<16sIII")
_TRAILER = struct.Struct("<QIIQQ8s")
PACK_HEADER_BYTES: Final = _PACK.size  # 64
PACK_TRAILER_BYTES: Final = _TRAILER.size  # 40
PACK_BYTES_LIMIT: Final = 1 << 31  # offsets are u32, with room for the last frame


class PackEntry(NamedTuple):
    """One frame, as a pack's footer lists it."""

    chunk_id: bytes
    offset: int
    stored_bytes: int
    raw_bytes: int


def encode_pack_header(store_id: bytes, pack_id: bytes) -> bytes:
    head = _PACK.pack(PACK_MAGIC, VERSION, 0, 0, store_id, pack_id, 0, 0)[:-8]
    return head + _checksum(head).to_bytes(8, "little")


def decode_pack_header(raw: bytes | memoryview) -> tuple[bytes, bytes]:
    """(store id, pack id) of the pack that starts with `raw`."""
    if len(raw) < PACK_HEADER_BYTES:
        raise FormatError(f"pack header is cut short at {len(raw)} bytes")
    magic, version, flags, reserved, store_id, pack_id, zero, checksum = _PACK.unpack_from(raw)
    if magic != PACK_MAGIC or _checksum(raw[: PACK_HEADER_BYTES - 8]) != checksum:
        raise FormatError("pack header is damaged")
    if version > VERSION:
        raise UnsupportedFormat(f"pack {pack_id.hex()} has format version {version}")
    if version < 1 or flags or reserved or zero:
        raise FormatError(f"pack header has version {version} and flags {flags:#x}")
    return store_id, pack_id


def footer_bytes(frames: int) -> int:
    """The size of the footer of a pack with so many frames."""
    return frames * _ENTRY.size + PACK_TRAILER_BYTES


def encode_footer(entries: Sequence[PackEntry], footer_offset: int) -> bytes:
    """The footer that makes a pack of `footer_offset` bytes complete."""
    body = b"".join(_ENTRY.pack(e.chunk_id, e.offset, e.stored_bytes, e.raw_bytes) for e in entries)
    head = _TRAILER.pack(footer_offset, len(entries), 0, _checksum(body), 0, b"")[:24]
    footer = body + head + _checksum(head).to_bytes(8, "little") + FOOTER_MAGIC
    assert decode_footer(footer, footer_offset + len(footer)) == list(entries)
    return footer


def decode_trailer(trailer: bytes | memoryview, pack_bytes: int) -> tuple[int, int]:
    """(offset of the footer, entries in it) from a pack's last PACK_TRAILER_BYTES bytes."""
    if len(trailer) != PACK_TRAILER_BYTES:
        raise FormatError(f"pack trailer is cut short at {len(trailer)} bytes")
    offset, count, reserved, _, checksum, magic = _TRAILER.unpack(trailer)
    if magic != FOOTER_MAGIC or _checksum(trailer[:24]) != checksum or reserved:
        raise FormatError("pack has no footer: it was not sealed, or is damaged")
    if (
        offset < PACK_HEADER_BYTES
        or offset + count * _ENTRY.size + PACK_TRAILER_BYTES != pack_bytes
    ):
        raise FormatError(f"pack footer claims {count} frames at byte {offset}")
    return offset, count


def decode_footer(footer: bytes | memoryview, pack_bytes: int) -> list[PackEntry]:
    """The frames of a pack of `pack_bytes` bytes that ends with `footer`."""
    offset, count = decode_trailer(footer[-PACK_TRAILER_BYTES:], pack_bytes)
    body = footer[:-PACK_TRAILER_BYTES]
    if len(body) != count * _ENTRY.size:
        raise FormatError(f"pack footer is {len(body)} bytes for {count} frames")
    if _checksum(body) != _TRAILER.unpack(footer[-PACK_TRAILER_BYTES:])[3]:
        raise FormatError("pack footer is damaged")
    entries = [PackEntry(*fields) for fields in _ENTRY.iter_unpack(body)]
    for entry in entries:
        if entry.offset < PACK_HEADER_BYTES or entry.offset + entry.stored_bytes > offset:
            raise FormatError(f"pack footer places a frame at byte {entry.offset}")
    return entries


# ---------------------------------------------------------------- segments

SEGMENT_MAGIC: Final = b"CSEG"
_SEGMENT = struct.Struct("<4sBBHHHIQQ")
SEGMENT_HEADER_BYTES: Final = _SEGMENT.size  # 32
_EXTENT_BYTES: Final = 8 + CHUNK_ID_BYTES + 4 + 4 + 2


class Segment:
    """Up to 1,024 consecutive extents of one object, in columns that are read in place.

    `ends[i]` is the offset in the object where extent i ends; extent 0 begins at `begin`.
    """

    __slots__ = ("_ids", "_offsets", "_pack_of", "_stored", "begin", "end", "ends", "packs")

    def __init__(
        self,
        begin: int,
        ends: memoryview,
        ids: memoryview,
        offsets: memoryview,
        stored: memoryview,
        pack_of: memoryview,
        packs: list[bytes],
    ) -> None:
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

    def encode(self) -> bytes:
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
                    0,
                    self.begin,
                    _checksum(columns, self.begin ^ count << 48),
                ),
                columns,
            ]
        )


def decode_segment(raw: bytes | memoryview, *, verify: bool = True) -> Segment:
    """Without `verify` its checksum is not looked at, so that finding one extent does not read all
    1,024. What a damaged one says does not agree with the frame that it leads to."""
    if len(raw) < SEGMENT_HEADER_BYTES:
        raise FormatError(f"segment is cut short at {len(raw)} bytes")
    magic, version, flags, count, packs, zero, zeroes, begin, checksum = _SEGMENT.unpack_from(raw)
    if magic != SEGMENT_MAGIC or version != VERSION or flags or zero or zeroes:
        raise FormatError(f"segment has an unknown header {bytes(raw[:8]).hex()}")
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

    @property
    def is_inline(self) -> bool:
        return self.manifest == 0


def encode_record(record: Record) -> bytes:
    head = _RECORD.pack(
        VERSION,
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
    checksum = _checksum(record.inline, _checksum(head))
    return head + checksum.to_bytes(8, "little") + record.inline


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
    inline = bytes(raw[RECORD_HEADER_BYTES:])
    if _checksum(inline, _checksum(raw[: RECORD_HEADER_BYTES - 8])) != checksum:
        raise FormatError("record is damaged")
    if version > VERSION:
        raise UnsupportedFormat(f"record has format version {version}: upgrade castore")
    if version != VERSION or flags or codec not in (CODEC_RAW, CODEC_ZSTD):
        raise FormatError(f"record has version {version}, codec {codec}, flags {flags:#x}")
    if kind == RECORD_INLINE:
        if manifest or chunks or size > INLINE_BYTES_LIMIT or stored_bytes != len(inline):
            raise FormatError(f"inline record claims {size} bytes in {chunks} chunks")
        if codec == CODEC_RAW and len(inline) != size:
            raise FormatError(f"inline record claims {size} bytes and has {len(inline)}")
    elif kind != RECORD_EXTENTS or not manifest or not chunks or inline or size < chunks:
        raise FormatError(f"record of kind {kind} claims {size} bytes in {chunks} chunks")
    return Record(size, mtime_ns, mode, etag, stored_bytes, chunks, manifest, codec, inline)


# ---------------------------------------------------------------- rows of the index

_CHUNK_ROW = struct.Struct("<IIIBBH16s")
_PACK_ROW = struct.Struct("<QQ")
_TOTALS = struct.Struct("<qqqqqq")
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
    """A pack that commits refer to. `pack_bytes` is how much of it was durable at the last one."""
    return _PACK_ROW.pack(created_ns, pack_bytes)


def decode_pack_row(row: bytes) -> tuple[int, int]:
    """(creation time in ns since the epoch, durable bytes)."""
    try:
        created_ns, pack_bytes = _PACK_ROW.unpack(row)
    except struct.error as error:
        raise FormatError(f"pack row has {len(row)} bytes") from error
    return created_ns, pack_bytes


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


# ---------------------------------------------------------------- backups of a local store's index

BACKUP_MAGIC: Final = b"castback"
_BACKUP = struct.Struct("<QQIIQQ8s")
BACKUP_TRAILER_BYTES: Final = _BACKUP.size  # 48


class BackupTrailer(NamedTuple):
    """The end of a backup: LMDB's data file, then castore.json, then this. `checksum` is xxh3-64 of
    all that comes before the trailer."""

    index_bytes: int
    config_bytes: int
    created_ns: int
    checksum: int


def encode_backup_trailer(trailer: BackupTrailer) -> bytes:
    head = _BACKUP.pack(
        trailer.index_bytes,
        trailer.created_ns,
        trailer.config_bytes,
        VERSION,
        trailer.checksum,
        0,
        b"",
    )[:-16]
    return head + _checksum(head).to_bytes(8, "little") + BACKUP_MAGIC


def decode_backup_trailer(raw: bytes, backup_bytes: int) -> BackupTrailer:
    """From the last BACKUP_TRAILER_BYTES bytes of a backup of `backup_bytes` bytes."""
    if len(raw) != BACKUP_TRAILER_BYTES:
        raise FormatError(f"backup is cut short at {backup_bytes} bytes")
    index_bytes, created_ns, config_bytes, version, checksum, own, magic = _BACKUP.unpack(raw)
    if magic != BACKUP_MAGIC or _checksum(raw[:-16]) != own:
        raise FormatError("backup has no whole trailer: it is cut short, or no backup at all")
    if version > VERSION:
        raise UnsupportedFormat(f"backup has format version {version}: upgrade castore")
    if version < 1 or index_bytes + config_bytes + BACKUP_TRAILER_BYTES != backup_bytes:
        raise FormatError(f"backup claims {index_bytes} bytes of index")
    return BackupTrailer(index_bytes, config_bytes, created_ns, checksum)
