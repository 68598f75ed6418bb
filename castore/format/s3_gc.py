"""What writers and collectors of a store on S3 announce, and what a collector remembers: pins,
lists of condemned packs, `gc/state` (see FORMAT.md)."""

from __future__ import annotations

import json
import struct
from array import array
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, NamedTuple

import xxhash

from castore.errors import FormatError, UnsupportedFormat
from castore.format import VERSION
from castore.format.pack import PACK_ID_BYTES
from castore.format.s3 import SESSION_ID_BYTES, ids_in

_checksum = xxhash.xxh3_64_intdigest


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
    return store_id, session, ids_in(body)


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
            fields["version"], fields["phase"], bytes.fromhex(fields["nonce"]), fields["condemned"]
        )
        known = fields["format"] == "castore-gc" and type(state.version) is int
        known = known and 0 <= state.version < 1 << 63
        whole = fields.pop("checksum") == _state_checksum(fields)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        # Not its repr, in which a UnicodeDecodeError has all the bytes.
        raise FormatError(f"gc/state does not parse: {type(error).__name__}: {error}") from error
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
_REFERENCES = struct.Struct("<HBI")
_LAYOUT = 2  # of the rows; another one's are as if they were damaged


class References(NamedTuple):
    """The packs that a manifest leads to; and which of their frames, for each as u64 in the order
    of this machine, if these were looked at: offset, stored bytes and bases in 32, 29 and 3
    bits."""

    packs: PackIds
    frames: tuple[array[int], ...] | None = None


def encode_references(name: bytes, etag: str, references: References) -> bytes:
    """A row of the cache: what this version of a name refers to."""
    raw, (packs, frames) = etag.encode(), references
    parts = [_REFERENCES.pack(len(raw), frames is not None, len(packs)), raw, *packs]
    if frames is not None:
        parts.append(array("I", map(len, frames)).tobytes())
        parts += [each.tobytes() for each in frames]
    row = b"".join(parts)
    return _row_checksum(name, row) + row


def decode_references(
    name: bytes, etag: str, row: bytes | None, *, with_frames: bool = True
) -> References | None:
    """None unless it is what was remembered of this version of the name; `with_frames`, also if the
    frames were not, which are left out otherwise."""
    if row is None or row[:8] != _row_checksum(name, row[8:]):
        return None
    etag_bytes, has_frames, count = _REFERENCES.unpack_from(row, 8)
    begin = 8 + _REFERENCES.size
    ids = begin + etag_bytes
    if row[begin:ids] != etag.encode():
        return None
    at = ids + count * PACK_ID_BYTES
    packs = tuple(ids_in(row[ids:at]))
    if not with_frames:
        return References(packs)
    if not has_frames:
        return None if packs else References((), ())
    counts, at = array("I", row[at : at + 4 * count]), at + 4 * count
    frames = []
    for number in counts:
        frames.append(array("Q", row[at : at + 8 * number]))
        at += 8 * number
    return References(packs, tuple(frames))


def _row_checksum(name: bytes, row: bytes) -> bytes:
    """What a damaged index has at a name may be another's."""
    return xxhash.xxh3_64_digest(row, seed=xxhash.xxh3_64_intdigest(name) ^ _LAYOUT)
