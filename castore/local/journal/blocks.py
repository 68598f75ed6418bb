"""Entries in the blocks that a journal's files are made of, and those of a snapshot."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from castore.errors import FormatError
from castore.format.index import decode_record, manifest_of
from castore.format.journal import (
    FLAG_LAST,
    FLAG_ZSTD,
    Kind,
    encode_block,
    encode_piece,
    encode_put,
)
from castore.format.segment import decode_segment
from castore.local.index_walk import pages
from castore.stream.codec import encode_block_payload
from castore.system.lmdb_env import Index

PIECE_BYTES = 1 << 20  # of entries in one block


class SnapshotEntries:
    """The entries of a snapshot: all segments and names of an index. `whole` is false if some do
    not decode, and are left out."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self.whole = True

    def __iter__(self) -> Iterator[bytes]:
        index = self._index
        # Segments first: a name that came meanwhile is in the log, with its own.
        for page in pages(index, index.segments):
            for key, raw in page:
                try:
                    decode_segment(raw, manifest=manifest_of(key))
                    yield encode_piece(manifest_of(key), raw)
                except FormatError:
                    self.whole = False
        for page in pages(index, index.names):
            for name, raw in page:
                try:
                    decode_record(raw)
                    yield encode_put(name, raw)
                except FormatError:
                    self.whole = False


def encode_blocks(kind: Kind, seq: int, entries: Iterable[bytes]) -> Iterator[bytes]:
    """The blocks of a transaction or a snapshot; there is always one."""
    part, size, batch = 0, 0, list[bytes]()
    for entry in entries:
        if size and size + len(entry) > PIECE_BYTES:
            yield _encoded(kind, seq, part, b"".join(batch), 0)
            part, size = part + 1, 0
            batch.clear()
        batch.append(entry)
        size += len(entry)
    yield _encoded(kind, seq, part, b"".join(batch), FLAG_LAST)


def _encoded(kind: Kind, seq: int, part: int, raw: bytes, flags: int) -> bytes:
    compressed, payload = encode_block_payload(raw)
    flags |= FLAG_ZSTD if compressed else 0
    return encode_block(kind, seq, part, payload, raw_bytes=len(raw), flags=flags)
