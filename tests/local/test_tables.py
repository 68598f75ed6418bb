"""Rows that are put and deleted by their tables, and the totals that these keep."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from castore.errors import FormatError
from castore.format.index import ChunkRow, Record, Totals
from castore.local.meta import STORE_ID, read_totals, release_freed_pages
from castore.local.tables import Tables
from castore.model import Location
from castore.system.lmdb_env import Index, open_index

PACKS = [bytes([n]) * 16 for n in range(3)]
CHUNKS = [bytes([n]) * 16 for n in range(10, 14)]


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    index = open_index(str(tmp_path / "index"))
    yield index
    index.close()


def totals(index: Index) -> Totals:
    with index.gate, index.snapshot() as txn:
        return read_totals(index, txn)


def inline(raw: bytes) -> Record:
    return Record(len(raw), 0, 0o644, bytes(16), len(raw), inline=raw)


def test_the_totals_follow_what_is_put_moved_and_deleted(index: Index) -> None:
    with index.write_gate, index.errors, index.begin() as txn, Tables(index, txn) as tables:
        tables.names.put(b"a", inline(b"12345"))
        tables.names.put(b"b", Record(900, 0, 0o644, bytes(16), 500, chunks=2, manifest=7))
        tables.chunks.put(CHUNKS[0], ChunkRow(400, Location(PACKS[0], 64, 300)))
        tables.chunks.put(CHUNKS[1], ChunkRow(500, Location(PACKS[0], 364, 200)))
    assert totals(index) == Totals(905, 5, 5, 900, 500)
    with index.write_gate, index.errors, index.begin() as txn, Tables(index, txn) as tables:
        tables.names.put(b"a", inline(b"1"))  # in place of the other
        assert tables.names.delete(b"b")
        assert not tables.names.delete(b"b")
        assert not tables.chunks.add(CHUNKS[0], ChunkRow(1, Location(PACKS[1], 64, 1)))
        elsewhere = ChunkRow(400, Location(PACKS[2], 64, 1))
        tables.chunks.move(CHUNKS[0], elsewhere, (PACKS[1], 64))  # not there
        tables.chunks.move(CHUNKS[1], ChunkRow(500, Location(PACKS[2], 64, 250)), (PACKS[0], 364))
        tables.chunks.move(CHUNKS[2], ChunkRow(7, Location(PACKS[2], 314, 7)), (PACKS[0], 0))
        assert tables.chunks.known(CHUNKS[0]) == ChunkRow(400, Location(PACKS[0], 64, 300))
        assert tables.chunks.known(CHUNKS[1]) == ChunkRow(500, Location(PACKS[2], 64, 250))
    assert totals(index) == Totals(1, 1, 1, 907, 557)
    with index.write_gate, index.errors, index.begin() as txn, Tables(index, txn) as tables:
        for chunk_id in CHUNKS:
            tables.chunks.delete(chunk_id)
        tables.names.delete(b"a")
    assert totals(index) == Totals()


def test_rows_that_are_gathered_are_as_those_put_one_by_one(tmp_path: Path) -> None:
    """Many of them, of which the table is written anew, and then few."""
    made = random.Random(4)
    ids = [made.randbytes(16) for _ in range(400)]
    indexes = [open_index(str(tmp_path / which)) for which in ("gathered", "one by one")]
    for count in (300, 200, 3):
        bases = [(), tuple(made.sample(ids, 2))]
        rows = [
            (chunk_id, ChunkRow(n + 1, Location(PACKS[n % 3], n, 9), bases[n % 2]), n % 5)
            for n, chunk_id in enumerate(made.choices(ids, k=count))
        ]
        for index in indexes:
            with index.write_gate, index.errors, index.begin() as txn, Tables(index, txn) as tables:
                gathered = tables.chunks.gathered() if index is indexes[0] else nullcontext()
                with gathered:
                    for chunk_id, row, how in rows:
                        if how == 0:
                            tables.chunks.put(chunk_id, row)
                        elif how == 1:
                            tables.chunks.move(chunk_id, row, (PACKS[1], 4))
                        else:
                            known = tables.chunks.known(chunk_id)
                            assert tables.chunks.add(chunk_id, row) == (known is None)
                        assert chunk_id in tables.chunks
        one, other = (chunk_rows(index) for index in indexes)
        assert one == other
        assert totals(indexes[0]) == totals(indexes[1])
    for index in indexes:
        index.close()


def chunk_rows(index: Index) -> list[tuple[bytes, bytes]]:
    with index.gate, index.snapshot() as txn, txn.cursor(db=index.chunks) as cursor:
        return list(cursor)


def test_commits_of_many_rows_fill_pages_and_free_few(index: Index) -> None:
    """Of eight versions, each of whose chunks are new: not twice what the rows take."""
    made = random.Random(5)
    with index.write_gate, index.errors, index.begin() as txn:
        txn.put(STORE_ID, bytes(16), db=index.meta)
    for _ in range(8):
        release_freed_pages(index)
        with index.write_gate, index.errors, index.begin() as txn, Tables(index, txn) as tables:
            with tables.chunks.gathered():
                for n in range(500):
                    row = ChunkRow(70_000, Location(PACKS[0], n, 900), (PACKS[1],))
                    tables.chunks.add(made.randbytes(16), row)
            stat = txn.stat(index.chunks)
    taken = sum(len(key) + len(row) + 10 for key, row in chunk_rows(index))  # as LMDB has them
    pages = stat["leaf_pages"] + stat["branch_pages"]
    assert taken > 0.92 * pages * stat["psize"]
    assert index.stat_bytes() < 2.2 * taken


def test_a_damaged_row_is_replaced_and_counts_for_nothing(index: Index) -> None:
    with index.write_gate, index.errors, index.begin() as txn:
        txn.put(CHUNKS[0], b"garbled", db=index.chunks)
        txn.put(b"a", b"garbled", db=index.names)
    with index.write_gate, index.errors, index.begin() as txn, Tables(index, txn) as tables:
        with pytest.raises(FormatError):
            tables.chunks.known(CHUNKS[0])
        tables.chunks.move(CHUNKS[0], ChunkRow(5, Location(PACKS[1], 64, 5)), (PACKS[0], 64))
        assert tables.chunks.get(CHUNKS[0]) == b"garbled"  # for a check to tell
        tables.chunks.put(CHUNKS[0], ChunkRow(5, Location(PACKS[1], 64, 5)))
        tables.names.put(b"a", inline(b"123"))
    assert totals(index) == Totals(3, 3, 3, 5, 5)


def test_a_transaction_that_fails_leaves_the_totals(index: Index) -> None:
    with pytest.raises(ZeroDivisionError):
        put_and_fail(index)
    assert totals(index) == Totals()


def put_and_fail(index: Index) -> None:
    with index.write_gate, index.errors, index.begin() as txn, Tables(index, txn) as tables:
        tables.names.put(b"a", inline(b"12345"))
        raise ZeroDivisionError


def test_a_pack_row_never_says_less_than_before(index: Index) -> None:
    with index.write_gate, index.errors, index.begin() as txn, Tables(index, txn) as tables:
        for durable_bytes in (300, 200):
            tables.packs.extend(PACKS[0], 1, durable_bytes)
        first = tables.packs.get(PACKS[0])
        tables.packs.put(PACKS[1], 1, 300)
        assert first == tables.packs.get(PACKS[1])
        tables.packs.extend(PACKS[0], 1, 400)
        assert tables.packs.get(PACKS[0]) != first


def test_segments_are_deleted_in_bounded_steps(index: Index) -> None:
    with index.write_gate, index.errors, index.begin() as txn, Tables(index, txn) as tables:
        for manifest in (3, 4):
            for end in (10, 20, 30):
                tables.segments.put(manifest.to_bytes(8, "big") + end.to_bytes(8, "big"), b"x")
        assert [tables.segments.delete_first(3, 2) for _ in range(3)] == [2, 1, 0]
        assert int(txn.stat(index.segments)["entries"]) == 3
        assert tables.segments.delete_first(4, 9) == 3
