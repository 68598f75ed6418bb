"""What a store has in files: castore.json, frames, packs, and backups (see FORMAT.md).

Every byte layout is encoded and decoded in this package (`index`, `s3` and `journal` have the
others), and nowhere else. All integers are little endian.
Decoders take untrusted bytes: each length is checked before anything is allocated from it, and
malformed bytes raise FormatError, nothing else.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import xxhash

from castore.errors import FormatError, UnsupportedFormat

VERSION: Final = 1
CONFIG_VERSION_BATCHES: Final = 2  # of a castore.json that says that there are batches
CHUNK_ID_BYTES: Final = 16
PACK_ID_BYTES: Final = 16
CHUNK_BYTES_LIMIT: Final = 16 << 20  # no config may ask for larger chunks than this

CODEC_RAW: Final = 0
CODEC_ZSTD: Final = 1
CODEC_DELTA: Final = 2  # zstd, with the bytes of other chunks as its dictionary

FLAG_SHA256: Final = 1  # a SHA-256 of the raw bytes follows the frame's header
FLAG_ID_OF_SHA256: Final = 2  # the chunk id is that of the SHA-256, not of the raw bytes

_checksum = xxhash.xxh3_64_intdigest


# ---------------------------------------------------------------- config: castore.json


class StoreConfig(NamedTuple):
    """What is fixed for a store's life. The seed keeps outsiders from aiming collisions."""

    store_id: bytes
    seed: int
    chunk_bytes_min: int
    chunk_bytes_avg: int
    chunk_bytes_max: int
    collision_guard: str | None = None
    batches: bool = False  # names may share objects (on S3)


def encode_config(config: StoreConfig, *, checksum: bool = True) -> bytes:
    """`checksum` is False for what castore wrote before there was one."""
    fields = _config_fields(config)
    if checksum:
        fields["checksum"] = _config_checksum(config)
    return json.dumps(fields, indent=2).encode() + b"\n"


def _config_fields(config: StoreConfig) -> dict[str, Any]:
    fields = {
        "format": "castore",
        "version": CONFIG_VERSION_BATCHES if config.batches else VERSION,
        "store_id": config.store_id.hex(),
        "seed": f"{config.seed:016x}",
        "chunk_bytes": {
            "min": config.chunk_bytes_min,
            "avg": config.chunk_bytes_avg,
            "max": config.chunk_bytes_max,
        },
        "collision_guard": config.collision_guard,
    }
    return fields | {"batches": True} if config.batches else fields


def _config_checksum(config: StoreConfig) -> str:
    """Of what it means: with another seed nothing that is stored would be found again."""
    return xxhash.xxh3_64_hexdigest(json.dumps(_config_fields(config)).encode())


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
        if version > CONFIG_VERSION_BATCHES:
            raise UnsupportedFormat(
                f"the store has format version {version}, this castore reads up to "
                f"{CONFIG_VERSION_BATCHES}: upgrade castore"
            )
        sizes = fields["chunk_bytes"]
        config = StoreConfig(
            bytes.fromhex(fields["store_id"]),
            int(fields["seed"], 16),
            sizes["min"],
            sizes["avg"],
            sizes["max"],
            fields["collision_guard"],
            fields.get("batches", False),
        )
        checksum = fields.get("checksum")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        if isinstance(error, (FormatError, UnsupportedFormat)):
            raise
        raise FormatError(f"castore.json does not parse: {error!r}") from error
    sizes_ok = all(
        isinstance(n, int) and not isinstance(n, bool)
        for n in (config.chunk_bytes_min, config.chunk_bytes_avg, config.chunk_bytes_max)
    ) and (
        0
        < config.chunk_bytes_min
        <= config.chunk_bytes_avg
        <= config.chunk_bytes_max
        <= CHUNK_BYTES_LIMIT
    )
    if len(config.store_id) != 16 or not 0 <= config.seed < 1 << 64 or not sizes_ok:
        raise FormatError("castore.json has a store id, seed or chunk sizes out of range")
    if config.collision_guard not in (None, "sha256"):
        raise FormatError(f"castore.json has collision guard {config.collision_guard!r}")
    if config.batches is not (version == CONFIG_VERSION_BATCHES):
        raise FormatError(f"castore.json of version {version} has batches {config.batches!r}")
    if checksum is not None and checksum != _config_checksum(config):
        raise FormatError("castore.json is damaged: its checksum is another's")
    return config


# ---------------------------------------------------------------- frames

FRAME_MAGIC: Final = b"CFRM"
_FRAME = struct.Struct("<4sBBHII16s")
_DELTA = struct.Struct("<BBHQ")
_DELTA_CHECKSUM = struct.Struct("<Q")  # the last of it
_BASE = struct.Struct("<16sI")
_PLAIN_DELTA = struct.Struct("<32sBBHQ")
FRAME_HEADER_BYTES: Final = _FRAME.size  # 32
SHA256_BYTES: Final = 32
BASES_MAX: Final = 4  # of a delta
FRAME_HEAD_BYTES_MAX: Final = (
    FRAME_HEADER_BYTES + SHA256_BYTES + _DELTA.size + BASES_MAX * _BASE.size
)  # before the payload


class Delta(NamedTuple):
    """What the frame of a delta says besides: the chunks that it decodes with, by id and size, in
    their order, and a checksum of the whole frame, by which it is known to be intact while its
    bases are not at hand."""

    bases: tuple[tuple[bytes, int], ...]
    checksum: int


class FrameHeader(NamedTuple):
    """A chunk as stored: the header says how its payload decodes, and to what."""

    codec: int
    flags: int
    raw_bytes: int
    payload_bytes: int
    chunk_id: bytes
    sha256: bytes = b""
    delta: Delta | None = None

    @property
    def header_bytes(self) -> int:
        fixed = delta_header_bytes(len(self.delta.bases)) if self.delta else FRAME_HEADER_BYTES
        return fixed + len(self.sha256)

    @property
    def bases(self) -> tuple[bytes, ...]:
        """The ids of the chunks that it decodes with."""
        return tuple(chunk_id for chunk_id, _ in self.delta.bases) if self.delta else ()


def delta_header_bytes(bases: int) -> int:
    """Of a frame without flags that is a delta of so many."""
    return FRAME_HEADER_BYTES + _DELTA.size + bases * _BASE.size


def encode_frame_header(header: FrameHeader) -> bytes:
    head = _FRAME.pack(
        FRAME_MAGIC,
        header.codec,
        header.flags,
        0,
        header.raw_bytes,
        header.payload_bytes,
        header.chunk_id,
    )
    delta = header.delta
    if delta is None:
        return head + header.sha256
    fixed = _DELTA.pack(len(delta.bases), 0, 0, delta.checksum)
    return b"".join([head, header.sha256, fixed, *(_BASE.pack(*base) for base in delta.bases)])


def encode_delta_header(header: FrameHeader, payload: bytes) -> bytes:
    """With the checksum of the frame that has this payload; the header's own is 0."""
    assert header.delta is not None
    assert not header.delta.checksum
    unsummed = encode_frame_header(header)
    checksum = _DELTA_CHECKSUM.pack(_checksum(payload, _checksum(unsummed)))
    at = FRAME_HEADER_BYTES + len(header.sha256) + _DELTA.size - _DELTA_CHECKSUM.size
    return b"".join([unsummed[:at], checksum, unsummed[at + len(checksum) :]])


def delta_checksum(header: FrameHeader, payload: bytes | memoryview) -> int:
    """What `header.delta.checksum` is to be, with this payload."""
    assert header.delta is not None
    unsummed = header._replace(delta=header.delta._replace(checksum=0))
    return _checksum(payload, _checksum(encode_frame_header(unsummed)))


def plain_frame_header(codec: int, raw_bytes: int, payload_bytes: int, chunk_id: bytes) -> bytes:
    """The only header that a frame without flags can have, to be compared with."""
    return _FRAME.pack(FRAME_MAGIC, codec, 0, 0, raw_bytes, payload_bytes, chunk_id)


def plain_delta_bases(
    frame: bytes | memoryview, raw_bytes: int, chunk_id: bytes
) -> list[tuple[bytes, int]] | None:
    """Id and size of each base of a frame that is a delta without flags, and this chunk's: as
    `decode_frame_header` has them, in a third of the time. None for any other frame, or one that is
    malformed."""
    if len(frame) < _PLAIN_DELTA.size:
        return None
    head, count, zero, more, _ = _PLAIN_DELTA.unpack_from(frame)
    payload_bytes = len(frame) - _PLAIN_DELTA.size - count * _BASE.size
    if zero or more or not 0 < count <= BASES_MAX or not 0 <= payload_bytes <= raw_bytes:
        return None
    if head != plain_frame_header(CODEC_DELTA, raw_bytes, payload_bytes, chunk_id):
        return None
    return list(_BASE.iter_unpack(frame[_PLAIN_DELTA.size : len(frame) - payload_bytes]))


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
    if codec > CODEC_DELTA or flags & ~3 or reserved:
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
    elif flags & FLAG_ID_OF_SHA256:
        raise FormatError("frame has the id of a SHA-256, and no SHA-256")
    at = FRAME_HEADER_BYTES + len(sha256)
    delta = _decode_delta(frame[at : at + _DELTA.size + BASES_MAX * _BASE.size], codec)
    return FrameHeader(codec, flags, raw_bytes, payload_bytes, chunk_id, sha256, delta)


def _decode_delta(raw: bytes | memoryview, codec: int) -> Delta | None:
    if codec != CODEC_DELTA:
        return None
    if len(raw) < _DELTA.size:
        raise FormatError("frame of a delta is cut short")
    count, zero, more, checksum = _DELTA.unpack_from(raw)
    if not 0 < count <= BASES_MAX or zero or more:
        raise FormatError(f"frame of a delta claims {count} bases")
    end = _DELTA.size + count * _BASE.size
    if len(raw) < end:
        raise FormatError("frame of a delta is cut short in its bases")
    bases = tuple(_BASE.iter_unpack(raw[_DELTA.size : end]))
    if not all(0 < size <= CHUNK_BYTES_LIMIT + 256 for _, size in bases):
        raise FormatError("frame of a delta claims bases of sizes that no chunk has")
    return Delta(bases, checksum)


# ---------------------------------------------------------------- packs

PACK_MAGIC: Final = b"castpack"
PACK_VERSION: Final = 2  # with the store's config; 1, without, is written and read, too
PACK_GUARDED: Final = 1  # the store has a collision guard
PACK_BATCHES: Final = 2  # the store has batches of names
FOOTER_MAGIC: Final = b"castfoot"
_PACK = struct.Struct("<8sHHI16s16sQQ")
_ENTRY = struct.Struct("<16sIII")
_ENTRY_BASE = struct.Struct("<I16s")
_TRAILER = struct.Struct("<QIIQQ8s")
PACK_HEADER_BYTES: Final = _PACK.size  # 64
PACK_TRAILER_BYTES: Final = _TRAILER.size  # 40
PACK_BYTES_LIMIT: Final = 1 << 31  # offsets are u32, with room for the last frame


class PackEntry(NamedTuple):
    """One frame, as a pack's footer lists it. A delta's `bases` are the ids of the chunks that it
    decodes with."""

    chunk_id: bytes
    offset: int
    stored_bytes: int
    raw_bytes: int
    bases: tuple[bytes, ...] = ()


def entry_of(header: FrameHeader, offset: int) -> PackEntry:
    """The frame with this header, at an offset of its pack."""
    stored_bytes = header.header_bytes + header.payload_bytes
    return PackEntry(header.chunk_id, offset, stored_bytes, header.raw_bytes, header.bases)


def encode_pack_header(store_id: bytes, pack_id: bytes, config: StoreConfig | None = None) -> bytes:
    """With its store's `config`, the pack is enough to make castore.json again."""
    version, flags, average, seed = 1, 0, 0, 0
    if config is not None and config == _usual_config(config):
        version, average, seed = PACK_VERSION, config.chunk_bytes_avg, config.seed
        flags = PACK_GUARDED if config.collision_guard else 0
        flags |= PACK_BATCHES if config.batches else 0
    head = _PACK.pack(PACK_MAGIC, version, flags, average, store_id, pack_id, seed, 0)[:-8]
    return head + _checksum(head).to_bytes(8, "little")


def decode_pack_header(raw: bytes | memoryview) -> tuple[bytes, bytes]:
    """(store id, pack id) of the pack that starts with `raw`."""
    if len(raw) < PACK_HEADER_BYTES:
        raise FormatError(f"pack header is cut short at {len(raw)} bytes")
    magic, version, flags, average, store_id, pack_id, seed, checksum = _PACK.unpack_from(raw)
    if magic != PACK_MAGIC or _checksum(raw[: PACK_HEADER_BYTES - 8]) != checksum:
        raise FormatError("pack header is damaged")
    if version > PACK_VERSION:
        raise UnsupportedFormat(
            f"pack {pack_id.hex()} has format version {version}: upgrade castore"
        )
    known = PACK_GUARDED | PACK_BATCHES
    if version < 1 or flags & ~known or (version == 1 and (flags or average or seed)):
        raise FormatError(f"pack header has version {version} and flags {flags:#x}")
    return store_id, pack_id


def decode_pack_config(raw: bytes | memoryview) -> StoreConfig | None:
    """The config of the store that the pack was written to; None where its header has none. The
    header is decoded first, by `decode_pack_header`."""
    _, version, flags, average, store_id, _, seed, _ = _PACK.unpack_from(raw)
    if version < PACK_VERSION:
        return None
    guard = "sha256" if flags & PACK_GUARDED else None
    batches = bool(flags & PACK_BATCHES)
    config = _usual_config(StoreConfig(store_id, seed, 0, average, 0, guard, batches))
    return decode_config(encode_config(config))  # its sizes may be out of range


def _usual_config(config: StoreConfig) -> StoreConfig:
    """With the smallest and the largest chunk that castore chooses for the average."""
    average = config.chunk_bytes_avg
    return config._replace(chunk_bytes_min=average // 4, chunk_bytes_max=average * 4)


def footer_bytes(frames: int, bases: int = 0) -> int:
    """The size of the footer of a pack with so many frames, which have so many bases."""
    return entries_bytes(frames, bases) + PACK_TRAILER_BYTES


def encode_entries(entries: Sequence[PackEntry]) -> tuple[bytes, int]:
    """One behind the other, and behind all of them the bases of those that are deltas; how many
    bases these are."""
    parts = [_ENTRY.pack(*entry[:4]) for entry in entries]
    bases = [_ENTRY_BASE.pack(i, base) for i, entry in enumerate(entries) for base in entry.bases]
    return b"".join(parts + bases), len(bases)


def entries_bytes(entries: int, bases: int) -> int:
    """What so many take, encoded."""
    return entries * _ENTRY.size + bases * _ENTRY_BASE.size


def decode_entries(raw: bytes | memoryview, count: int) -> list[PackEntry]:
    """The first `count` are entries, the rest their bases."""
    end = count * _ENTRY.size
    entries = [PackEntry(*fields) for fields in _ENTRY.iter_unpack(raw[:end])]
    for i, base in _ENTRY_BASE.iter_unpack(raw[end:]):
        if i >= count or len(entries[i].bases) >= BASES_MAX:
            raise FormatError(f"a frame is said to be the delta of chunk {base.hex()}")
        entries[i] = entries[i]._replace(bases=(*entries[i].bases, base))
    return entries


def encode_footer(entries: Sequence[PackEntry], footer_offset: int) -> bytes:
    """The footer that makes a pack of `footer_offset` bytes complete."""
    body, bases = encode_entries(entries)
    head = _TRAILER.pack(footer_offset, len(entries), bases, _checksum(body), 0, b"")[:24]
    footer = body + head + _checksum(head).to_bytes(8, "little") + FOOTER_MAGIC
    assert decode_footer(footer, footer_offset + len(footer)) == list(entries)
    return footer


def decode_trailer(trailer: bytes | memoryview, pack_bytes: int) -> tuple[int, int]:
    """(offset of the footer, entries in it) from a pack's last PACK_TRAILER_BYTES bytes."""
    if len(trailer) != PACK_TRAILER_BYTES:
        raise FormatError(f"pack trailer is cut short at {len(trailer)} bytes")
    offset, count, bases, _, checksum, magic = _TRAILER.unpack(trailer)
    if magic != FOOTER_MAGIC or _checksum(trailer[:24]) != checksum:
        raise FormatError("pack has no footer: it was not sealed, or is damaged")
    if (
        offset < PACK_HEADER_BYTES
        or offset + entries_bytes(count, bases) + PACK_TRAILER_BYTES != pack_bytes
    ):
        raise FormatError(f"pack footer claims {count} frames at byte {offset}")
    return offset, count


def decode_footer(footer: bytes | memoryview, pack_bytes: int) -> list[PackEntry]:
    """The frames of a pack of `pack_bytes` bytes that ends with `footer`."""
    offset, count = decode_trailer(footer[-PACK_TRAILER_BYTES:], pack_bytes)
    body = footer[:-PACK_TRAILER_BYTES]
    if offset + len(footer) != pack_bytes:
        raise FormatError(f"pack footer is {len(body)} bytes for {count} frames")
    if _checksum(body) != _TRAILER.unpack(footer[-PACK_TRAILER_BYTES:])[3]:
        raise FormatError("pack footer is damaged")
    entries = decode_entries(body, count)
    for entry in entries:
        if entry.offset < PACK_HEADER_BYTES or entry.offset + entry.stored_bytes > offset:
            raise FormatError(f"pack footer places a frame at byte {entry.offset}")
    return entries


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
