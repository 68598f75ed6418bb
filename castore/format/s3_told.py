"""What machines tell each other of a store on S3, to save requests: hints, and listings (see
FORMAT.md)."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

import xxhash

from castore.errors import FormatError, UnsupportedFormat
from castore.format import VERSION
from castore.format.index import Record
from castore.format.pack import PackEntry, decode_entries, encode_entries, entries_bytes

_checksum = xxhash.xxh3_64_intdigest


_HINTS_MAGIC: Final = b"CHNT"
_TOLD = struct.Struct("<4sBBHI16sQ")
_HINT_PACK = struct.Struct("<16sI")
_HINTS_VERSION_DELTAS = 2  # each pack also says how many bases its deltas have
_HINT_BASES = struct.Struct("<I")


def encode_told(
    magic: bytes, store_id: bytes, count: int, body: bytes, version: int = VERSION
) -> bytes:
    """What hints, samples and listings have in common: a head, and a checksum of all."""
    fixed = _TOLD.pack(magic, version, 0, 0, count, store_id, 0)[:-8]
    return fixed + _checksum(body, _checksum(fixed)).to_bytes(8, "little") + body


def decode_told(
    magic: bytes, raw: bytes, what: str, version_max: int = VERSION
) -> tuple[bytes, int, int, memoryview]:
    """(store id, version, how many are told of, body). Raises FormatError, UnsupportedFormat."""
    if len(raw) < _TOLD.size:
        raise FormatError(f"{what} is cut short at {len(raw)} bytes")
    found, version, flags, zero, count, store_id, checksum = _TOLD.unpack_from(raw)
    if found != magic or flags or zero or version < 1:
        raise FormatError(f"{what} starts with {raw[:8].hex()}")
    if version > version_max:
        raise UnsupportedFormat(f"{what} has format version {version}: upgrade castore")
    body = memoryview(raw)[_TOLD.size :]
    if _checksum(body, _checksum(raw[: _TOLD.size - 8])) != checksum:
        raise FormatError(f"{what} is damaged")
    return store_id, version, count, body


def encode_hints(store_id: bytes, packs: Sequence[tuple[bytes, Sequence[PackEntry]]]) -> bytes:
    """The footers of many packs in one object, so that another machine learns of their chunks in
    one request. Only ever hints: a chunk that they do not tell of is uploaded again."""
    with_deltas = any(entry.bases for _, entries in packs for entry in entries)
    parts = []
    for pack_id, entries in packs:
        body, bases = encode_entries(entries)
        parts.append(_HINT_PACK.pack(pack_id, len(entries)))
        if with_deltas:
            parts.append(_HINT_BASES.pack(bases))
        parts.append(body)
    version = _HINTS_VERSION_DELTAS if with_deltas else VERSION
    return encode_told(_HINTS_MAGIC, store_id, len(packs), b"".join(parts), version)


def decode_hints(raw: bytes) -> tuple[bytes, list[tuple[bytes, list[PackEntry]]]]:
    """(store id, (pack id, its frames) of each pack)."""
    store_id, version, count, view = decode_told(
        _HINTS_MAGIC, raw, "object of hints", _HINTS_VERSION_DELTAS
    )
    packs, at, bases = [], 0, 0
    with_deltas = version == _HINTS_VERSION_DELTAS
    head_bytes = _HINT_PACK.size + (_HINT_BASES.size if with_deltas else 0)
    for _ in range(count):
        if at + head_bytes > len(view):
            raise FormatError("hints list more packs than they hold")
        pack_id, entries = _HINT_PACK.unpack_from(view, at)
        if with_deltas:
            [bases] = _HINT_BASES.unpack_from(view, at + _HINT_PACK.size)
        at += head_bytes
        stop = at + entries_bytes(entries, bases)
        if stop > len(view):
            raise FormatError("hints list more frames than they hold")
        packs.append((pack_id, decode_entries(view[at:stop], entries)))
        at = stop
    if at != len(view):
        raise FormatError(f"hints have {len(view) - at} bytes too many")
    return store_id, packs


_LISTING_MAGIC: Final = b"CLST"
_LISTED_NAME = struct.Struct("<HHIQqQQ16s")
_LISTING_VERSION_DELTAS = 2  # each name also says how many of its chunks are deltas
_LISTED_DELTAS = struct.Struct("<Q")


class NameFacts(NamedTuple):
    """What a name with this ETag maps to, as far as a list shows it."""

    name: bytes
    etag: str
    record: Record  # with no content, and no fingerprint of its source

    @classmethod
    def of(cls, name: bytes, etag: str, record: Record) -> NameFacts:
        r = record
        shown = Record(r.size, r.mtime_ns, r.mode, r.etag, r.stored_bytes, r.chunks, 1)
        return cls(name, etag, shown._replace(deltas=r.deltas))


def listed_bytes(name: bytes, etag: str) -> int:
    """What a name takes in a listing."""
    return _LISTED_NAME.size + len(name) + len(etag.encode()) + _LISTED_DELTAS.size


def encode_listing(store_id: bytes, facts: Sequence[NameFacts]) -> bytes:
    """Of many names in one object, so that a list need not ask for each."""
    with_deltas = any(each.record.deltas for each in facts)
    parts = []
    for name, etag, r in facts:
        tag = etag.encode()
        parts.append(
            _LISTED_NAME.pack(
                len(name), len(tag), r.mode, r.size, r.mtime_ns, r.stored_bytes, r.chunks, r.etag
            )
        )
        parts += [name, tag]
        if with_deltas:
            parts.append(_LISTED_DELTAS.pack(r.deltas))
    version = _LISTING_VERSION_DELTAS if with_deltas else VERSION
    return encode_told(_LISTING_MAGIC, store_id, len(facts), b"".join(parts), version)


def decode_listing(raw: bytes) -> tuple[bytes, list[NameFacts]]:
    """(store id, what it tells)."""
    store_id, version, count, view = decode_told(
        _LISTING_MAGIC, raw, "listing", _LISTING_VERSION_DELTAS
    )
    facts, at, body, deltas = [], 0, bytes(view), 0
    deltas_bytes = _LISTED_DELTAS.size if version == _LISTING_VERSION_DELTAS else 0
    for _ in range(count):
        if at + _LISTED_NAME.size > len(body):
            raise FormatError("a listing tells of more names than it holds")
        name_bytes, tag_bytes, *numbers, etag = _LISTED_NAME.unpack_from(body, at)
        at += _LISTED_NAME.size
        name, tag = body[at : at + name_bytes], body[at + name_bytes :][:tag_bytes]
        at += name_bytes + tag_bytes + deltas_bytes
        if at > len(body):
            raise FormatError("a listing ends within a name")
        if deltas_bytes:
            [deltas] = _LISTED_DELTAS.unpack_from(body, at - deltas_bytes)
        mode, size, mtime_ns, stored_bytes, chunks = numbers
        record = Record(size, mtime_ns, mode, etag, stored_bytes, chunks, 1, deltas=deltas)
        try:
            facts.append(NameFacts(name, tag.decode(), record))
        except UnicodeDecodeError as error:
            raise FormatError(f"a listing has an ETag that is no text: {error}") from error
    if at != len(body):
        raise FormatError(f"a listing has {len(body) - at} bytes too many")
    return store_id, facts
