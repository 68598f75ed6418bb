"""The journal of a local store: blocks of entries, each with its checksum (see FORMAT.md)."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import Final, NamedTuple, TypeAlias

import xxhash

from castore.errors import FormatError
from castore.format.frame import CHUNK_ID_BYTES
from castore.format.index import Record, decode_record
from castore.format.segment import SEGMENT_HEADER_BYTES
from castore.model import SEGMENT_EXTENTS_MAX

JOURNAL_MAGIC: Final = b"CJNL"
JOURNAL_VERSION: Final = 1
_BLOCK = struct.Struct("<4sBBBBIIIIQQ")
BLOCK_HEADER_BYTES: Final = _BLOCK.size  # 40
BLOCK_BYTES_LIMIT: Final = 4 << 20  # a payload is never larger, stored or not
FLAG_ZSTD: Final = 1
FLAG_LAST: Final = 2

_checksum = xxhash.xxh3_64_intdigest


class Kind(IntEnum):
    HEAD = 1  # the first block of a file: JSON
    CHANGES = 2  # entries of one transaction, in one block or several
    STATE = 3  # entries of a snapshot, in one block or several
    DONE = 4  # the transaction was committed
    UNDONE = 5  # the commit failed: its payload is where its blocks end, u64


class BlockHead(NamedTuple):
    """A block's header. `part` counts the blocks of one transaction, or of a snapshot, from 0."""

    kind: int
    flags: int
    part: int
    payload_bytes: int
    raw_bytes: int
    seq: int
    checksum: int

    @property
    def is_last(self) -> bool:
        return bool(self.flags & FLAG_LAST)


def encode_block(
    kind: Kind, seq: int, part: int, payload: bytes, *, raw_bytes: int, flags: int
) -> bytes:
    head = _BLOCK.pack(
        JOURNAL_MAGIC, JOURNAL_VERSION, kind, flags, 0, part, len(payload), raw_bytes, 0, seq, 0
    )[:-8]
    return head + _checksum(payload, _checksum(head)).to_bytes(8, "little") + payload


def decode_block_head(raw: bytes) -> BlockHead:
    """The header at the start of `raw`. Raises FormatError."""
    if len(raw) < BLOCK_HEADER_BYTES:
        raise FormatError(f"journal block is cut short at {len(raw)} bytes")
    magic, version, kind, flags, zero, part, payload, size, zeroes, seq, checksum = (
        _BLOCK.unpack_from(raw)
    )
    if magic != JOURNAL_MAGIC or version != JOURNAL_VERSION or zero or zeroes or flags & ~3:
        raise FormatError("journal block has an unknown header")
    if kind not in set(Kind) or payload > size or size > BLOCK_BYTES_LIMIT:
        raise FormatError(f"journal block of kind {kind} claims {size} bytes")
    return BlockHead(kind, flags, part, payload, size, seq, checksum)


def block_is_whole(raw: bytes, head: BlockHead) -> bool:
    """Whether header and payload, all of `raw`, are as they were written."""
    payload = memoryview(raw)[BLOCK_HEADER_BYTES:]
    return (
        len(payload) == head.payload_bytes
        and _checksum(payload, _checksum(raw[: BLOCK_HEADER_BYTES - 8])) == head.checksum
    )


# ---------------------------------------------------------------- entries

_ENTRY = struct.Struct("<BBHI")
_SEGMENT = struct.Struct("<QQ")
_PUT, _DELETE, _SEGMENT_ENTRY = 1, 2, 3
EXTENT_BYTES: Final = 8 + CHUNK_ID_BYTES


class Put(NamedTuple):
    """The name maps to the record from now on; its manifest is that of the segments before."""

    name: bytes
    record: bytes

    def decoded(self) -> Record:
        return decode_record(self.record)


class Drop(NamedTuple):
    """The name is gone."""

    name: bytes


class Piece(NamedTuple):
    """A segment of a manifest without the places of its frames, which collectors change: where the
    first extent begins, and (end offset, chunk id) of each."""

    manifest: int
    begin: int
    extents: list[tuple[int, bytes]]


Entry: TypeAlias = Put | Drop | Piece


def encode_put(name: bytes, record: bytes) -> bytes:
    return _ENTRY.pack(_PUT, 0, len(name), len(record)) + name + record


def encode_drop(name: bytes) -> bytes:
    return _ENTRY.pack(_DELETE, 0, len(name), 0) + name


def encode_piece(manifest: int, segment: bytes) -> bytes:
    """Of a segment as the index has it: its first two columns."""
    count = int.from_bytes(segment[6:8], "little")
    begin = int.from_bytes(segment[16:24], "little")
    columns = segment[SEGMENT_HEADER_BYTES : SEGMENT_HEADER_BYTES + count * EXTENT_BYTES]
    return _ENTRY.pack(_SEGMENT_ENTRY, 0, count, 0) + _SEGMENT.pack(manifest, begin) + columns


def decode_entries(raw: bytes) -> Iterator[Entry]:
    """The entries of a block. Raises FormatError."""
    at = 0
    while at < len(raw):
        if at + _ENTRY.size > len(raw):
            raise FormatError("journal entry is cut short")
        kind, zero, count, size = _ENTRY.unpack_from(raw, at)
        at += _ENTRY.size
        if kind in (_PUT, _DELETE) and not zero:
            if at + count + size > len(raw) or (kind == _DELETE and size):
                raise FormatError("journal entry is cut short")
            name = raw[at : at + count]
            at += count
            yield Put(name, raw[at : at + size]) if kind == _PUT else Drop(name)
            at += size
        elif kind == _SEGMENT_ENTRY and not zero and not size:
            yield _piece(raw, at, count)
            at += _SEGMENT.size + count * EXTENT_BYTES
        else:
            raise FormatError(f"journal entry is of kind {kind}")


def _piece(raw: bytes, at: int, count: int) -> Piece:
    ids = at + _SEGMENT.size + 8 * count
    if not 0 < count <= SEGMENT_EXTENTS_MAX or ids + count * CHUNK_ID_BYTES > len(raw):
        raise FormatError(f"journal entry of {count} extents is cut short")
    manifest, begin = _SEGMENT.unpack_from(raw, at)
    ends = struct.unpack_from(f"<{count}Q", raw, at + _SEGMENT.size)
    extents, last = [], begin
    for i, end in enumerate(ends):
        if end <= last:
            raise FormatError(f"journal entry has an extent [{last}, {end})")
        last = end
        extents.append((end, raw[ids + i * CHUNK_ID_BYTES : ids + (i + 1) * CHUNK_ID_BYTES]))
    return Piece(manifest, begin, extents)


# ---------------------------------------------------------------- the journal's rows in `meta`

_PLACE = struct.Struct("<QQQQ")
_UNCLAIMED = struct.Struct("<QQQ")


class JournalPlace(NamedTuple):
    """How far the journal is: the generation that is written to, the number of the last
    transaction in it, and where that ends in its file."""

    generation: int
    seq: int
    end: int

    def encode(self) -> bytes:
        return _encode_row(_PLACE, self)

    @classmethod
    def decode(cls, row: bytes) -> JournalPlace:
        return cls(*_decode_row(_PLACE, row, "the journal's row"))

    @classmethod
    def mended(cls, row: bytes) -> JournalPlace:
        """Of a row in which one bit at most is flipped. Raises FormatError."""
        for bit in range(-1, 8 * len(row)):
            flip = 1 << bit if bit >= 0 else 0
            whole = (int.from_bytes(row, "little") ^ flip).to_bytes(len(row), "little")
            with contextlib.suppress(FormatError):
                return cls.decode(whole)
        return cls.decode(row)


class Unclaimed(NamedTuple):
    """What was stored after the index was: chunks that no name leads to, as their names are lost.
    With no chunks it is only known that there are names."""

    chunks: int
    stored_bytes: int

    def encode(self) -> bytes:
        return _encode_row(_UNCLAIMED, self)

    @classmethod
    def decode(cls, row: bytes) -> Unclaimed:
        return cls(*_decode_row(_UNCLAIMED, row, "the row of unclaimed chunks"))


def _encode_row(layout: struct.Struct, row: tuple[int, ...]) -> bytes:
    """Its numbers, then their checksum."""
    head = layout.pack(*row, 0)[:-8]
    return head + _checksum(head).to_bytes(8, "little")


def _decode_row(layout: struct.Struct, row: bytes, what: str) -> tuple[int, ...]:
    if len(row) != layout.size or row[-8:] != _checksum(row[:-8]).to_bytes(8, "little"):
        raise FormatError(f"{what} in the index is damaged")
    return layout.unpack(row)[:-1]
