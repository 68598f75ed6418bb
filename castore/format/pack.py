"""Packs: files, or objects on S3, of frames, with a footer that lists them (see FORMAT.md)."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

import xxhash

from castore.errors import FormatError, UnsupportedFormat
from castore.format.config import StoreConfig, decode_config, encode_config
from castore.format.frame import BASES_MAX, FrameHeader

PACK_ID_BYTES: Final = 16
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

_checksum = xxhash.xxh3_64_intdigest


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


def footer_bytes(frames: int, bases: int) -> int:
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
