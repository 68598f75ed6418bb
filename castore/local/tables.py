"""The tables of a local store's index, as a write transaction changes them.

Each owns its rows, and the sums that are kept of them: in a store that is in use, rows are put and
deleted here and nowhere else, so that nobody can forget the totals. (An index that is made anew
takes over rows as they are, and is summed up in the end.)

    with index.write_gate, index.errors, index.begin() as txn, Tables(index, txn) as tables:
        tables.chunks.put(chunk_id, ChunkRow(raw_bytes, location))
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from itertools import takewhile

from castore.errors import FormatError
from castore.format.index import (
    PLAIN_CHUNK_ROW_BYTES,
    ChunkRow,
    Record,
    Totals,
    decode_chunk_row,
    decode_pack_row,
    decode_record,
    encode_chunk_row,
    encode_pack_row,
    encode_record,
    manifest_of,
    segment_key,
)
from castore.format.segment import owned
from castore.local.meta import MARKING, MARKING_VALUE, TOTALS, next_change, read_totals
from castore.system.lmdb_env import Index, Txn
from castore.system.lmdb_snapshot import Table

REWRITTEN_ROWS_MAX = 65_536  # of chunks, in memory at once
REWRITTEN_PER_ROW = 32  # that is new: at most 3 % of the time that its chunk took


class Tables:
    """What a write transaction changes. The totals are written when its `with` ends; after an error
    they are not, as the transaction is aborted."""

    def __init__(self, index: Index, txn: Txn) -> None:
        self.txn = txn
        self._index = index
        self._sums = _Sums(index, txn)
        self.names = NameRows(txn, index.names, self._sums)
        self.segments = SegmentRows(txn, index.segments, self._sums)
        self.chunks = ChunkRows(txn, index.chunks, self._sums)
        self.packs = PackRows(txn, index.packs, self._sums)
        self.pending = StoredRows(txn, index.pending, self._sums)

    def __enter__(self) -> Tables:
        return self

    def __exit__(self, _: object, error: BaseException | None, trace: object) -> None:
        if error is None and self._sums.known is not None:
            self.put_totals(self._sums.known)

    def put_totals(self, totals: Totals) -> None:
        """Those that were counted anew."""
        self._sums.known = totals
        self.txn.put(TOTALS, totals.encode(), db=self._index.meta)

    def note_changes(self, names: Iterable[bytes]) -> None:
        """In the change table, if a collector reads it."""
        if self.txn.get(MARKING, db=self._index.meta) is not None:
            for name in names:
                self.txn.put(next_change(self._index, self.txn), name, db=self._index.changes)

    def begin_marking(self) -> None:
        """Have changes noted from now on; those of a collector that was killed go."""
        self.end_marking()
        self.txn.put(MARKING, MARKING_VALUE, db=self._index.meta)

    def end_marking(self) -> None:
        self.txn.delete(MARKING, db=self._index.meta)
        self.txn.drop(self._index.changes, delete=False)


class _Sums:
    """The totals, read when the first row is counted."""

    def __init__(self, index: Index, txn: Txn) -> None:
        self.known: Totals | None = None
        self._index = index
        self._txn = txn

    @property
    def totals(self) -> Totals:
        if self.known is None:
            self.known = read_totals(self._index, self._txn)
        return self.known


class _Rows:
    """One table. What its rows count for is taken from the totals as they go."""

    def __init__(self, txn: Txn, table: Table, sums: _Sums) -> None:
        self._txn = txn
        self._table = table
        self._sums = sums

    def get(self, key: bytes) -> bytes | None:
        """The row as stored."""
        return self._txn.get(key, db=self._table)

    def __contains__(self, key: bytes) -> bool:
        return self.get(key) is not None

    def delete(self, key: bytes) -> bool:
        """Whether there was one."""
        old = self._txn.pop(key, db=self._table)
        self._count_out(old)
        return old is not None

    def _replace(self, key: bytes, row: bytes) -> None:
        self._count_out(self._txn.replace(key, row, db=self._table))

    def _count_out(self, row: bytes | None) -> None:
        """Nothing, where none are counted."""


class StoredRows(_Rows):
    def put(self, key: bytes, row: bytes) -> None:
        self._txn.put(key, row, db=self._table)


class SegmentRows(StoredRows):
    def add(self, manifest: int, end: int, raw: bytes) -> None:
        """A segment of the manifest, which it is made to say."""
        self.put(segment_key(manifest, end), owned(raw, manifest))

    def delete_first(self, manifest: int, most: int) -> int:
        """Delete up to so many of the manifest's segments, from the first on; how many."""
        deleted = 0
        with self._txn.cursor(db=self._table) as cursor:
            found = cursor.set_range(segment_key(manifest, 0))
            while found and deleted < most and manifest_of(bytes(cursor.key())) == manifest:
                cursor.delete()
                # The cursor stands on what followed, or behind the last.
                found = bool(cursor.key())
                deleted += 1
        return deleted


class NameRows(_Rows):
    def put(self, name: bytes, record: Record) -> bytes:
        """The row."""
        row = encode_record(record)
        self._replace(name, row)
        self._sums.totals.count_object(record, +1)
        return row

    def below(self, prefix: bytes) -> list[bytes]:
        """The names that start with it, in order."""
        with self._txn.cursor(db=self._table) as cursor:
            if not cursor.set_range(prefix):
                return []
            names = map(bytes, cursor.iternext(values=False))
            return list(takewhile(lambda name: name.startswith(prefix), names))

    def _count_out(self, row: bytes | None) -> None:
        # A damaged record must not keep its name from being replaced or deleted; the totals, which
        # are only statistics, then keep what it counted for.
        with contextlib.suppress(FormatError):
            if row is not None:
                self._sums.totals.count_object(decode_record(row), -1)


class ChunkRows(_Rows):
    def __init__(self, txn: Txn, table: Table, sums: _Sums) -> None:
        super().__init__(txn, table, sums)
        self._gathered: dict[bytes, bytes] | None = None

    @contextlib.contextmanager
    def gathered(self) -> Iterator[None]:
        """What is put and added in the block is written at its end, in the order of keys. Nothing
        is deleted in it.

        Ids are random: rows that are put one by one leave pages a third empty, and a commit of many
        of them writes nearly every page again. So where they are a fair part of the table, all of
        it is written anew, with full pages."""
        self._gathered = {}
        yield
        rows, self._gathered = self._gathered, None
        entries = self._txn.stat(self._table)["entries"]
        anew = entries <= min(REWRITTEN_ROWS_MAX, len(rows) * REWRITTEN_PER_ROW)
        if anew:
            with self._txn.cursor(db=self._table) as cursor:
                rows = dict(cursor) | rows
            self._txn.drop(self._table, delete=False)
        with self._txn.cursor(db=self._table) as cursor:
            cursor.putmulti(sorted(rows.items()), append=anew)

    def get(self, key: bytes) -> bytes | None:
        gathered = None if self._gathered is None else self._gathered.get(key)
        return super().get(key) if gathered is None else gathered

    def known(self, chunk_id: bytes) -> ChunkRow | None:
        """Raises FormatError."""
        row = self.get(chunk_id)
        return None if row is None else decode_chunk_row(row)

    def put(self, chunk_id: bytes, row: ChunkRow) -> None:
        self._replace(chunk_id, encode_chunk_row(row))
        self._sums.totals.count_chunk(row, +1)

    def _replace(self, key: bytes, row: bytes) -> None:
        if self._gathered is None:
            super()._replace(key, row)
        else:
            self._count_out(self.get(key))
            self._gathered[key] = row

    def _insert(self, key: bytes, row: bytes) -> None:
        """Where there is none."""
        if self._gathered is None:
            self._txn.put(key, row, db=self._table)
        else:
            self._gathered[key] = row

    def add(self, chunk_id: bytes, row: ChunkRow) -> bool:
        """Unless the chunk has a row, of whatever kind. But a delta's gives way to that of a frame
        that is none, which may be the base of others: these are known as long as it is."""
        known = self.get(chunk_id)
        if known is None:
            self._insert(chunk_id, encode_chunk_row(row))
            self._sums.totals.count_chunk(row, +1)
        elif not row.bases and len(known) > PLAIN_CHUNK_ROW_BYTES:
            with contextlib.suppress(FormatError):
                if decode_chunk_row(known).bases:
                    self.put(chunk_id, row)
        return known is None

    def move(self, chunk_id: bytes, row: ChunkRow, old: tuple[bytes, int]) -> None:
        """Lead to a copy of the frame at `old` (pack id, offset). A chunk that is known elsewhere
        stays, which is as good, and so does a damaged row, which a check tells of."""
        with contextlib.suppress(FormatError):
            known = self.known(chunk_id)
            if known is None or known.location.place == old:
                self.put(chunk_id, row)

    def _count_out(self, row: bytes | None) -> None:
        with contextlib.suppress(FormatError):  # of a damaged one nobody knows what it counted for
            if row is not None:
                self._sums.totals.count_chunk(decode_chunk_row(row), -1)


class PackRows(_Rows):
    def put(self, pack_id: bytes, created_ns: int, durable_bytes: int) -> None:
        self._replace(pack_id, encode_pack_row(created_ns, durable_bytes))

    def extend(self, pack_id: bytes, created_ns: int, durable_bytes: int) -> None:
        """Another session may have committed more of the same pack. Raises FormatError."""
        row = self.get(pack_id)
        if row is None or decode_pack_row(row)[1] < durable_bytes:
            self.put(pack_id, created_ns, durable_bytes)
