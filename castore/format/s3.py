"""Manifests, which names on S3 lead to, and the ids of sessions and packs (see FORMAT.md).

A pack's id begins with the id of the session that wrote it, so that its key, and whether a pinned
session protects it, follow from the id alone.
"""

from __future__ import annotations

import secrets
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NamedTuple

import xxhash

from castore.errors import FormatError, UnsupportedFormat
from castore.format import CHUNK_BYTES_LIMIT
from castore.format.config import StoreConfig, decode_config, encode_config
from castore.format.index import (
    RECORD_FACTS_BYTES,
    Record,
    decode_record,
    decode_record_facts,
    encode_record,
)
from castore.format.pack import PACK_ID_BYTES
from castore.format.s3_batches import decode_tombstone, encode_tombstone
from castore.format.segment import decode_segment
from castore.model import SEGMENT_EXTENTS_MAX

SESSION_ID_BYTES: Final = 8
NONCE_BYTES: Final = 16

_checksum = xxhash.xxh3_64_intdigest


def new_session_id() -> bytes:
    return secrets.token_bytes(SESSION_ID_BYTES)


def new_pack_id(session: bytes) -> bytes:
    return session + secrets.token_bytes(PACK_ID_BYTES - SESSION_ID_BYTES)


def session_of(pack_id: bytes) -> bytes:
    return pack_id[:SESSION_ID_BYTES]


def ids_in(raw: bytes) -> list[bytes]:
    """The ids of packs, one behind the other."""
    return [raw[i : i + PACK_ID_BYTES] for i in range(0, len(raw), PACK_ID_BYTES)]


# ---------------------------------------------------------------- manifests

MANIFEST_MAGIC: Final = b"CMAN"
MANIFEST_VERSION: Final = 2  # with the store's config; 1, without, is read, too
# Of a larger inline object the head ends before its bytes, which the record's own checksum is of:
# who lists or collects does not read them.
_VERSION_BYTES_BEHIND: Final = 3
_RECORD_BYTES_MAX: Final = 4096  # in a head, of an object
_SIZE_MAX: Final = 64 << 10  # that is no larger than this: castores before had no room for more
_MANIFEST = struct.Struct("<4sBBHIII16s16sQ")
_CONFIG = struct.Struct("<QIIII")
_DIRECTORY = struct.Struct("<QQI")
_NUMBER = struct.Struct("<Q")
_WEAK = 1  # flag: it was decided by what the root of batches said, and has its number
_GUARDED, _BATCHES = 1, 2  # of a store
MANIFEST_HEADER_BYTES: Final = _MANIFEST.size
_SEGMENT_BYTES_LIMIT: Final = SEGMENT_EXTENTS_MAX * (CHUNK_BYTES_LIMIT + 256)


class Place(NamedTuple):
    """A segment's bytes in the manifest, and where in the object its last extent ends."""

    end: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class ManifestHead:
    """What comes before a manifest's segments: enough to find the one for any offset, and all that
    a collector needs. The record has an inline object's bytes unless they were not read."""

    store_id: bytes
    nonce: bytes
    record: Record
    packs: list[bytes]
    segments: list[Place]
    config: StoreConfig | None = None  # the store's: enough to make castore.json again
    number: int | None = None  # of the root of batches that decided it; None if it is strong

    @property
    def is_whole(self) -> bool:
        """Whether an inline object's bytes were read with it."""
        record = self.record
        return not record.is_inline or len(record.inline) == record.stored_bytes


def encode_manifest(
    config: StoreConfig,
    nonce: bytes,
    record: Record,
    packs: Sequence[bytes],
    segments: Sequence[tuple[int, bytes]],
    number: int | None = None,
) -> bytes:
    """`segments` are (end offset, encoded), in order. The nonce makes each attempt's bytes, and so
    its ETag, its own. In a store with batches the size is odd if there is a `number`, and else
    even, so that a list tells."""
    raw_record = encode_record(record)
    behind = b""
    version = MANIFEST_VERSION
    large = len(raw_record) > _RECORD_BYTES_MAX or record.size > _SIZE_MAX
    if record.is_inline and large:
        version, behind = _VERSION_BYTES_BEHIND, raw_record[RECORD_FACTS_BYTES:]
    weak = b"" if number is None else _NUMBER.pack(number)
    head_bytes = (
        MANIFEST_HEADER_BYTES
        + len(weak)
        + _CONFIG.size
        + len(raw_record)
        + PACK_ID_BYTES * len(packs)
        + _DIRECTORY.size * len(segments)
    )
    directory, offset = [], head_bytes
    for end, raw in segments:
        directory.append(_DIRECTORY.pack(end, offset, len(raw)))
        offset += len(raw)
    raw_facts = raw_record[: len(raw_record) - len(behind)]
    body = b"".join([weak, _encode_store(config), raw_facts, *packs, *directory])
    fixed = _MANIFEST.pack(
        MANIFEST_MAGIC,
        version,
        _WEAK if weak else 0,
        0,
        len(raw_record),
        len(packs),
        len(segments),
        config.store_id,
        nonce,
        0,
    )[:-8]
    checksum = _checksum(body, _checksum(fixed)).to_bytes(8, "little")
    raw_segments = [raw for _, raw in segments]
    pad = b"\0" * ((offset + bool(weak)) % 2) if config.batches else b""
    return b"".join([fixed, checksum, body, behind, *raw_segments, pad])


def with_nonce(raw: bytes, nonce: bytes) -> bytes:
    """A whole manifest, or what says of a name that it is deleted, with another nonce. Raises
    FormatError."""
    if raw[:4] != MANIFEST_MAGIC:
        store_id, number = decode_tombstone(raw)
        return encode_tombstone(store_id, nonce, number)
    size = manifest_head_bytes(raw, whole=False)
    for place in decode_manifest_head(raw).segments:
        decode_segment(raw[place.offset : place.offset + place.length])
    fixed = raw[: MANIFEST_HEADER_BYTES - 8 - NONCE_BYTES] + nonce
    checksum = _checksum(raw[MANIFEST_HEADER_BYTES:size], _checksum(fixed)).to_bytes(8, "little")
    return fixed + checksum + raw[MANIFEST_HEADER_BYTES:]


def manifest_head_bytes(raw: bytes, *, whole: bool = True) -> int:
    """How many of a manifest's first bytes its head takes, from its first MANIFEST_HEADER_BYTES;
    if `whole`, with an inline object's bytes."""
    if len(raw) < MANIFEST_HEADER_BYTES:
        raise FormatError(f"manifest is cut short at {len(raw)} bytes")
    magic, version, flags, zero, record, packs, segments, *_ = _MANIFEST.unpack_from(raw)
    if magic != MANIFEST_MAGIC:
        raise FormatError("manifest does not start with its magic")
    if version > _VERSION_BYTES_BEHIND:
        raise UnsupportedFormat(f"manifest has format version {version}: upgrade castore")
    if version < 1 or flags & ~_WEAK or (flags and version == 1) or zero:
        raise FormatError(f"manifest has version {version} and flags {flags:#x}")
    if version == _VERSION_BYTES_BEHIND:
        if packs or segments:
            raise FormatError(f"manifest has {packs} packs, {segments} segments and bytes inline")
        record = record if whole else min(record, RECORD_FACTS_BYTES)
    lists = packs * PACK_ID_BYTES + segments * _DIRECTORY.size
    return int(MANIFEST_HEADER_BYTES + _store_bytes(version, flags) + record + lists)


NUMBERED_BYTES: Final = MANIFEST_HEADER_BYTES + _NUMBER.size


def manifest_number(raw: bytes) -> int | None:
    """Of the root of batches that decided it, from its first NUMBERED_BYTES; None if it is strong,
    or is no manifest."""
    if len(raw) < NUMBERED_BYTES or raw[:4] != MANIFEST_MAGIC or not raw[5] & _WEAK:
        return None
    return int.from_bytes(raw[MANIFEST_HEADER_BYTES:NUMBERED_BYTES], "little")


def decode_manifest_head(raw: bytes) -> ManifestHead:
    """From a manifest's first bytes, `manifest_head_bytes` of them or more; `is_whole` if these are
    as many as with an inline object's bytes."""
    size = manifest_head_bytes(raw, whole=False)
    if len(raw) < size:
        raise FormatError(f"manifest's head is cut short at {len(raw)} of {size} bytes")
    _, version, flags, _, record_bytes, packs, _, store_id, nonce, checksum = _MANIFEST.unpack_from(
        raw
    )
    body = raw[MANIFEST_HEADER_BYTES:size]
    if _checksum(body, _checksum(raw[: MANIFEST_HEADER_BYTES - 8])) != checksum:
        raise FormatError("manifest is damaged")
    number = None
    if flags & _WEAK:
        [number] = _NUMBER.unpack_from(body)
        body = body[_NUMBER.size :]
    config = _decode_store(store_id, body) if version > 1 else None
    body = body[_store_bytes(version, 0) :]
    if version == _VERSION_BYTES_BEHIND:
        record = _decode_bytes_behind(body, raw[size:], record_bytes)
        return ManifestHead(store_id, nonce, record, [], [], config, number)
    at = record_bytes + packs * PACK_ID_BYTES
    places = [Place(*fields) for fields in _DIRECTORY.iter_unpack(body[at:])]
    record = decode_record(body[:record_bytes])
    following, end = size, 0
    for place in places:
        if place.offset != following:
            raise FormatError("manifest's segments are not one behind the other")
        # Who would write zeros for what can't be read of more than fits would never come to an end.
        if not 0 < place.end - end <= _SEGMENT_BYTES_LIMIT:
            raise FormatError(f"manifest's segment ends at byte {place.end} after {end}")
        following, end = following + place.length, place.end
    if record.is_inline == bool(places) or (places and places[-1].end != record.size):
        raise FormatError(f"manifest has {len(places)} segments for {record.size} bytes")
    packs_of = ids_in(body[record_bytes:at])
    return ManifestHead(store_id, nonce, record, packs_of, places, config, number)


def _decode_bytes_behind(facts: bytes, behind: bytes, record_bytes: int) -> Record:
    """The record whose first bytes are the `facts`, without an inline object's bytes if not all of
    them are among those `behind`."""
    length = record_bytes - len(facts)
    if len(behind) < length:
        return decode_record_facts(facts)
    record = decode_record(facts + behind[:length])
    if not record.is_inline:
        raise FormatError("manifest has neither segments nor bytes inline")
    return record


def _store_bytes(version: int, flags: int) -> int:
    """What lies between the header and the record."""
    return (_NUMBER.size if flags & _WEAK else 0) + (_CONFIG.size if version > 1 else 0)


def _encode_store(config: StoreConfig) -> bytes:
    sizes = config.chunk_bytes_min, config.chunk_bytes_avg, config.chunk_bytes_max
    flags = (_GUARDED if config.collision_guard else 0) | (_BATCHES if config.batches else 0)
    return _CONFIG.pack(config.seed, *sizes, flags)


def _decode_store(store_id: bytes, raw: bytes) -> StoreConfig:
    if len(raw) < _CONFIG.size:
        raise FormatError("manifest's head is cut short in its store's config")
    return _store_config(store_id, raw[: _CONFIG.size])


@lru_cache(maxsize=16)  # one per store
def _store_config(store_id: bytes, raw: bytes) -> StoreConfig:
    seed, smallest, average, largest, flags = _CONFIG.unpack_from(raw)
    if flags & ~(_GUARDED | _BATCHES):
        raise FormatError(f"manifest tells of a store with unknown flags {flags:#x}")
    guard = "sha256" if flags & _GUARDED else None
    batches = bool(flags & _BATCHES)
    config = StoreConfig(store_id, seed, smallest, average, largest, guard, batches)
    return decode_config(encode_config(config))  # its sizes may be out of range
