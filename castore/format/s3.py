"""The byte layouts that only a store on S3 has (see FORMAT.md), as `pack` has the others.

A pack's id begins with the id of the session that wrote it, so that its key, and whether a pinned
session protects it, follow from the id alone.
"""

from __future__ import annotations

import json
import secrets
import struct
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, NamedTuple

import xxhash

from castore.errors import FormatError, UnsupportedFormat
from castore.format.index import Record, decode_record, encode_record
from castore.format.pack import (
    CHUNK_BYTES_LIMIT,
    PACK_ID_BYTES,
    VERSION,
    PackEntry,
    StoreConfig,
    decode_config,
    encode_config,
)
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


# ---------------------------------------------------------------- manifests

MANIFEST_MAGIC: Final = b"CMAN"
MANIFEST_VERSION: Final = 2  # with the store's config; 1, without, is read, too
_MANIFEST = struct.Struct("<4sBBHIII16s16sQ")
_CONFIG = struct.Struct("<QIIII")
_DIRECTORY = struct.Struct("<QQI")
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
    a collector needs."""

    store_id: bytes
    nonce: bytes
    record: Record
    packs: list[bytes]
    segments: list[Place]
    config: StoreConfig | None = None  # the store's: enough to make castore.json again


def encode_manifest(
    config: StoreConfig,
    nonce: bytes,
    record: Record,
    packs: Sequence[bytes],
    segments: Sequence[tuple[int, bytes]],
) -> bytes:
    """`segments` are (end offset, encoded), in order. The nonce makes each attempt's bytes, and so
    its ETag, its own."""
    raw_record = encode_record(record)
    head_bytes = (
        MANIFEST_HEADER_BYTES
        + _CONFIG.size
        + len(raw_record)
        + PACK_ID_BYTES * len(packs)
        + _DIRECTORY.size * len(segments)
    )
    directory, offset = [], head_bytes
    for end, raw in segments:
        directory.append(_DIRECTORY.pack(end, offset, len(raw)))
        offset += len(raw)
    body = b"".join([_encode_store(config), raw_record, *packs, *directory])
    fixed = _MANIFEST.pack(
        MANIFEST_MAGIC,
        MANIFEST_VERSION,
        0,
        0,
        len(raw_record),
        len(packs),
        len(segments),
        config.store_id,
        nonce,
        0,
    )[:-8]
    checksum = _checksum(body, _checksum(fixed))
    return b"".join([fixed, checksum.to_bytes(8, "little"), body, *(raw for _, raw in segments)])


def manifest_head_bytes(raw: bytes) -> int:
    """How many of a manifest's first bytes its head takes, from its first MANIFEST_HEADER_BYTES."""
    if len(raw) < MANIFEST_HEADER_BYTES:
        raise FormatError(f"manifest is cut short at {len(raw)} bytes")
    magic, version, flags, zero, record, packs, segments, *_ = _MANIFEST.unpack_from(raw)
    if magic != MANIFEST_MAGIC:
        raise FormatError("manifest does not start with its magic")
    if version > MANIFEST_VERSION:
        raise UnsupportedFormat(f"manifest has format version {version}: upgrade castore")
    if version < 1 or flags or zero:
        raise FormatError(f"manifest has version {version} and flags {flags:#x}")
    lists = packs * PACK_ID_BYTES + segments * _DIRECTORY.size
    return int(MANIFEST_HEADER_BYTES + _store_bytes(version) + record + lists)


def decode_manifest_head(raw: bytes) -> ManifestHead:
    """From a manifest's first bytes, `manifest_head_bytes` of them or more."""
    size = manifest_head_bytes(raw)
    if len(raw) < size:
        raise FormatError(f"manifest's head is cut short at {len(raw)} of {size} bytes")
    _, version, _, _, record_bytes, packs, _, store_id, nonce, checksum = _MANIFEST.unpack_from(raw)
    body = raw[MANIFEST_HEADER_BYTES:size]
    if _checksum(body, _checksum(raw[: MANIFEST_HEADER_BYTES - 8])) != checksum:
        raise FormatError("manifest is damaged")
    config = _decode_store(store_id, body) if version > 1 else None
    body = body[_store_bytes(version) :]
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
    return ManifestHead(store_id, nonce, record, _ids(body[record_bytes:at]), places, config)


def _store_bytes(version: int) -> int:
    return _CONFIG.size if version > 1 else 0


def _encode_store(config: StoreConfig) -> bytes:
    sizes = config.chunk_bytes_min, config.chunk_bytes_avg, config.chunk_bytes_max
    return _CONFIG.pack(config.seed, *sizes, config.collision_guard is not None)


def _decode_store(store_id: bytes, raw: bytes) -> StoreConfig:
    if len(raw) < _CONFIG.size:
        raise FormatError("manifest's head is cut short in its store's config")
    return _store_config(store_id, raw[: _CONFIG.size])


@lru_cache(maxsize=16)  # one per store
def _store_config(store_id: bytes, raw: bytes) -> StoreConfig:
    seed, smallest, average, largest, guarded = _CONFIG.unpack_from(raw)
    if guarded > 1:
        raise FormatError(f"manifest tells of an unknown collision guard {guarded}")
    guard = "sha256" if guarded else None
    config = StoreConfig(store_id, seed, smallest, average, largest, guard)
    return decode_config(encode_config(config))  # its sizes may be out of range


# ---------------------------------------------------------------- pins and condemned lists

_LIST = struct.Struct("<4sBBHI16s8s16sQ")


def encode_pin(store_id: bytes, session: bytes, nonce: bytes, packs: Collection[bytes]) -> bytes:
    """What a session's uploads rely on: the packs of others that it has begun to reuse."""
    return _encode_list(b"CPIN", store_id, session, nonce, packs)


def decode_pin(raw: bytes) -> tuple[bytes, bytes, list[bytes]]:
    """(store id, session, packs)."""
    return _decode_list(b"CPIN", raw)


def encode_condemned(
    store_id: bytes, nonce: bytes, packs: Collection[bytes], carried: Collection[bytes] = ()
) -> bytes:
    """See Condemned. Those that are carried come first, and their number stands where a pin has its
    session."""
    first = set(carried)
    ordered = [*carried, *(pack_id for pack_id in packs if pack_id not in first)]
    number = len(first).to_bytes(SESSION_ID_BYTES, "little")
    return _encode_list(b"CCON", store_id, number, nonce, ordered)


class Condemned(NamedTuple):
    """What a collector is about to delete; `carried` are those that one has tried to delete before:
    a request of its may yet do it, so they stay condemned, whoever came to pin them."""

    packs: list[bytes]
    carried: list[bytes]


def decode_condemned(raw: bytes, store_id: bytes) -> Condemned:
    """The list of that store."""
    owner, number, packs = _decode_list(b"CCON", raw)
    carried = int.from_bytes(number, "little")
    if carried > len(packs):
        raise FormatError(f"list of {len(packs)} condemned packs carries {carried}")
    if owner != store_id:
        raise FormatError("the list of condemned packs belongs to another store")
    return Condemned(packs, packs[:carried])


def _encode_list(
    magic: bytes, store_id: bytes, session: bytes, nonce: bytes, packs: Collection[bytes]
) -> bytes:
    body = b"".join(packs)
    fixed = _LIST.pack(magic, VERSION, 0, 0, len(packs), store_id, session, nonce, 0)[:-8]
    return fixed + _checksum(body, _checksum(fixed)).to_bytes(8, "little") + body


def _decode_list(magic: bytes, raw: bytes) -> tuple[bytes, bytes, list[bytes]]:
    if len(raw) < _LIST.size:
        raise FormatError(f"list of packs is cut short at {len(raw)} bytes")
    found, version, flags, zero, count, store_id, session, _, checksum = _LIST.unpack_from(raw)
    body = raw[_LIST.size :]
    if found != magic or flags or zero or version < 1:
        raise FormatError(f"list of packs starts with {raw[:8].hex()}")
    if version > VERSION:
        raise UnsupportedFormat(f"list of packs has format version {version}: upgrade castore")
    if len(body) != count * PACK_ID_BYTES:
        raise FormatError(f"list of {count} packs has {len(raw)} bytes")
    if _checksum(body, _checksum(raw[: _LIST.size - 8])) != checksum:
        raise FormatError("list of packs is damaged")
    return store_id, session, _ids(body)


def _ids(raw: bytes) -> list[bytes]:
    return [raw[i : i + PACK_ID_BYTES] for i in range(0, len(raw), PACK_ID_BYTES)]


# ---------------------------------------------------------------- gc/state


@dataclass(frozen=True, slots=True)
class GcState:
    """What the collector is at: "idle", "condemned" or "sweeping", and the key of its list."""

    version: int
    phase: str
    nonce: bytes
    condemned: str | None = None


def encode_state(state: GcState) -> bytes:
    fields = {
        "format": "castore-gc",
        "version": state.version,
        "phase": state.phase,
        "nonce": state.nonce.hex(),
        "condemned": state.condemned,
    }
    return json.dumps({**fields, "checksum": _state_checksum(fields)}).encode()


def decode_state(raw: bytes) -> GcState:
    if len(raw) > 4096:
        raise FormatError(f"gc/state has {len(raw)} bytes")
    try:
        fields = json.loads(raw)
        state = GcState(
            fields["version"],
            fields["phase"],
            bytes.fromhex(fields["nonce"]),
            fields["condemned"],
        )
        known = fields["format"] == "castore-gc" and type(state.version) is int
        known = known and 0 <= state.version < 1 << 63
        whole = fields.pop("checksum") == _state_checksum(fields)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise FormatError(f"gc/state does not parse: {error!r}") from error
    if not known or state.phase not in ("idle", "condemned", "sweeping"):
        raise FormatError(
            f"gc/state has phase {state.phase!r} and version {str(state.version)[:40]}"
        )
    if (state.phase == "idle") != (state.condemned is None) or not isinstance(
        state.condemned, str | None
    ):
        raise FormatError(f"gc/state is {state.phase} with list {state.condemned!r}")
    if not whole:
        raise FormatError("gc/state is damaged")
    return state


def _state_checksum(fields: dict[str, Any]) -> str:
    """Of all fields but itself, in their order: a version that went back, or another list's number,
    parses as well."""
    return xxhash.xxh3_64_hexdigest(json.dumps(fields).encode())


# ---------------------------------------------------------------- what a collector remembers

PackIds = tuple[bytes, ...]
_ETAG = struct.Struct("<H")


def encode_references(name: bytes, etag: str, packs: PackIds) -> bytes:
    """A row of the cache: the packs that this version of a name refers to."""
    raw = etag.encode()
    row = b"".join([_ETAG.pack(len(raw)), raw, *packs])
    return _row_checksum(name, row) + row


def decode_references(name: bytes, etag: str, row: bytes | None) -> PackIds | None:
    """None unless it is what was remembered of this version of the name."""
    if row is None or row[:8] != _row_checksum(name, row[8:]):
        return None
    begin = 8 + _ETAG.size
    end = begin + _ETAG.unpack_from(row, 8)[0]
    if row[begin:end] != etag.encode():
        return None
    return tuple(_ids(row[end:]))


def _row_checksum(name: bytes, row: bytes) -> bytes:
    """What a damaged index has at a name may be another's."""
    return xxhash.xxh3_64_digest(row, seed=xxhash.xxh3_64_intdigest(name))


# ---------------------------------------------------------------- hints: which chunks are where

_HINTS_MAGIC: Final = b"CHNT"
_HINTS = struct.Struct("<4sBBHI16sQ")
_HINT_PACK = struct.Struct("<16sI")
_HINT_ENTRY = struct.Struct("<16sIII")


def encode_hints(store_id: bytes, packs: Sequence[tuple[bytes, Sequence[PackEntry]]]) -> bytes:
    """The footers of many packs in one object, so that another machine learns of their chunks in
    one request. Only ever hints: a chunk that they do not tell of is uploaded again."""
    body = b"".join(
        part
        for pack_id, entries in packs
        for part in (
            _HINT_PACK.pack(pack_id, len(entries)),
            *(_HINT_ENTRY.pack(e.chunk_id, e.offset, e.stored_bytes, e.raw_bytes) for e in entries),
        )
    )
    fixed = _HINTS.pack(_HINTS_MAGIC, VERSION, 0, 0, len(packs), store_id, 0)[:-8]
    return fixed + _checksum(body, _checksum(fixed)).to_bytes(8, "little") + body


def decode_hints(raw: bytes) -> tuple[bytes, list[tuple[bytes, list[PackEntry]]]]:
    """(store id, (pack id, its frames) of each pack)."""
    if len(raw) < _HINTS.size:
        raise FormatError(f"hints are cut short at {len(raw)} bytes")
    magic, version, flags, zero, count, store_id, checksum = _HINTS.unpack_from(raw)
    if magic != _HINTS_MAGIC or flags or zero or version < 1:
        raise FormatError(f"hints start with {raw[:8].hex()}")
    if version > VERSION:
        raise UnsupportedFormat(f"hints have format version {version}: upgrade castore")
    view = memoryview(raw)[_HINTS.size :]
    if _checksum(view, _checksum(raw[: _HINTS.size - 8])) != checksum:
        raise FormatError("hints are damaged")
    packs, at = [], 0
    for _ in range(count):
        if at + _HINT_PACK.size > len(view):
            raise FormatError("hints list more packs than they hold")
        pack_id, entries = _HINT_PACK.unpack_from(view, at)
        at += _HINT_PACK.size
        stop = at + entries * _HINT_ENTRY.size
        if stop > len(view):
            raise FormatError("hints list more frames than they hold")
        packs.append((pack_id, [PackEntry(*f) for f in _HINT_ENTRY.iter_unpack(view[at:stop])]))
        at = stop
    if at != len(view):
        raise FormatError(f"hints have {len(view) - at} bytes too many")
    return store_id, packs


# ---------------------------------------------------------------- listings

_LISTING_MAGIC: Final = b"CLST"
_LISTED_NAME = struct.Struct("<HHIQqQQ16s")


class NameFacts(NamedTuple):
    """What a name with this ETag maps to, as far as a list shows it."""

    name: bytes
    etag: str
    record: Record  # with no content, and no fingerprint of its source

    @classmethod
    def of(cls, name: bytes, etag: str, record: Record) -> NameFacts:
        r = record
        return cls(
            name, etag, Record(r.size, r.mtime_ns, r.mode, r.etag, r.stored_bytes, r.chunks, 1)
        )


def listed_bytes(name: bytes, etag: str) -> int:
    """What a name takes in a listing."""
    return _LISTED_NAME.size + len(name) + len(etag.encode())


def encode_listing(store_id: bytes, facts: Sequence[NameFacts]) -> bytes:
    """Of many names in one object, so that a list need not ask for each."""
    parts = []
    for name, etag, r in facts:
        tag = etag.encode()
        parts.append(
            _LISTED_NAME.pack(
                len(name), len(tag), r.mode, r.size, r.mtime_ns, r.stored_bytes, r.chunks, r.etag
            )
        )
        parts += [name, tag]
    body = b"".join(parts)
    fixed = _HINTS.pack(_LISTING_MAGIC, VERSION, 0, 0, len(facts), store_id, 0)[:-8]
    return fixed + _checksum(body, _checksum(fixed)).to_bytes(8, "little") + body


def decode_listing(raw: bytes) -> tuple[bytes, list[NameFacts]]:
    """(store id, what it tells)."""
    if len(raw) < _HINTS.size:
        raise FormatError(f"a listing is cut short at {len(raw)} bytes")
    magic, version, flags, zero, count, store_id, checksum = _HINTS.unpack_from(raw)
    if magic != _LISTING_MAGIC or flags or zero or version < 1:
        raise FormatError(f"a listing starts with {raw[:8].hex()}")
    if version > VERSION:
        raise UnsupportedFormat(f"a listing has format version {version}: upgrade castore")
    body = raw[_HINTS.size :]
    if _checksum(body, _checksum(raw[: _HINTS.size - 8])) != checksum:
        raise FormatError("a listing is damaged")
    facts, at = [], 0
    for _ in range(count):
        if at + _LISTED_NAME.size > len(body):
            raise FormatError("a listing tells of more names than it holds")
        name_bytes, tag_bytes, *numbers, etag = _LISTED_NAME.unpack_from(body, at)
        at += _LISTED_NAME.size
        name, tag = body[at : at + name_bytes], body[at + name_bytes :][:tag_bytes]
        at += name_bytes + tag_bytes
        if at > len(body):
            raise FormatError("a listing ends within a name")
        mode, size, mtime_ns, stored_bytes, chunks = numbers
        record = Record(size, mtime_ns, mode, etag, stored_bytes, chunks, 1)
        try:
            facts.append(NameFacts(name, tag.decode(), record))
        except UnicodeDecodeError as error:
            raise FormatError(f"a listing has an ETag that is no text: {error}") from error
    if at != len(body):
        raise FormatError(f"a listing has {len(body) - at} bytes too many")
    return store_id, facts
