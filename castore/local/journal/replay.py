"""A journal's entries put back into an index, and what one index has put into another.

A journal says which chunks an object is of, and not where their frames are: that is looked up in
rows of chunks that were made from the packs. What is in no pack gets a place that is none, so that
the object keeps its name and its size, and whoever reads or checks it is told what is missing.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from castore.errors import fault_of
from castore.format.index import ChunkRow, decode_chunk_row, decode_record, manifest_of, segment_key
from castore.format.journal import Entry, Piece, Put
from castore.format.segment import SegmentBuilder, decode_segment, owned
from castore.local.index_walk import pages
from castore.model import Location
from castore.stream.known import located
from castore.system.lmdb_env import Index
from castore.system.lmdb_snapshot import Table

BATCH_ENTRIES = 256  # each up to 1,024 extents
NOWHERE = bytes(16)  # the id of a pack that can't be


def replay(entries: Iterable[Entry], target: Index, rows: Index) -> int:
    """Apply entries to the names and segments of an index; how many changed a name. Places are
    from the rows of chunks of another, or the same."""
    changed, left = 0, iter(entries)
    while batch := list(islice(left, BATCH_ENTRIES)):
        places = _places(rows, batch)
        with target.write_gate, target.errors, target.begin() as txn:
            for entry in batch:
                if isinstance(entry, Piece):
                    key = segment_key(entry.manifest, entry.extents[-1][0])
                    txn.put(key, _segment(entry, places), db=target.segments)
                    continue
                changed += 1
                if isinstance(entry, Put):
                    txn.put(entry.name, entry.record, db=target.names)
                else:
                    txn.delete(entry.name, db=target.names)
    return changed


def fill(source: Index, target: Index) -> int:
    """Put the names and segments of one index into another that has none of them, or has them
    damaged; how many names."""
    _fill(source, source.segments, target, target.segments)
    return _fill(source, source.names, target, target.names)


def clear_names(index: Index) -> None:
    with index.write_gate, index.errors, index.begin() as txn:
        for table in (index.names, index.segments, index.pending):
            txn.drop(table, delete=False)


def drop_unnamed(index: Index) -> None:
    """Remove the segments that no name leads to. For who has the store alone: no writer lives."""
    named = set()
    for page in pages(index, index.names):
        for _, raw in page:
            if _decodes(raw):
                named.add(decode_record(raw).manifest)
    for page in pages(index, index.segments):
        dead = [key for key, _ in page if manifest_of(key) not in named]
        with index.write_gate, index.errors, index.begin() as txn:
            for key in dead:
                txn.delete(key, db=index.segments)
    with index.write_gate, index.errors, index.begin() as txn:
        txn.drop(index.pending, delete=False)


def _fill(source: Index, rows: Table, target: Index, into: Table) -> int:
    filled = 0
    for page in pages(source, rows):
        with target.write_gate, target.errors, target.begin() as txn:
            for key, raw in page:
                found = txn.get(key, db=into)
                if found is None or not _decodes(found):
                    txn.put(key, raw, db=into)
                    filled += 1
    return filled


def _decodes(raw: bytes) -> bool:
    """Whether it is a record or a segment."""
    return not fault_of(decode_segment if raw[:4] == b"CSEG" else decode_record, raw)


def _places(rows: Index, batch: list[Entry]) -> dict[bytes, Location]:
    wanted = sorted({i for entry in batch if isinstance(entry, Piece) for _, i in entry.extents})
    if not wanted:
        return {}
    with rows.gate, rows.snapshot() as txn, txn.cursor(db=rows.chunks) as cursor:

        def found(chunk_ids: Iterable[bytes]) -> dict[bytes, ChunkRow]:
            rows = cursor.getmulti(sorted(chunk_ids))
            return {bytes(chunk_id): decode_chunk_row(row) for chunk_id, row in rows}

        return located(found(wanted), found)


def _segment(piece: Piece, places: dict[bytes, Location]) -> bytes:
    builder = SegmentBuilder(piece.begin)
    for end, chunk_id in piece.extents:
        builder.append(end, chunk_id, places.get(chunk_id, Location(NOWHERE, 0, 0)))
    return owned(builder.encode(), piece.manifest)
