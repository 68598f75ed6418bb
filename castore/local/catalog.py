"""The catalog of a local store: LMDB is the truth for names.

Tables: `names` (name -> record), `segments` (manifest number, end offset -> segment), `chunks`
(chunk id -> where its frame is), `packs` (pack id -> durable bytes), `pending` (manifest number ->
the pack by whose lock its writer is known to live), `changes` and `meta`.

A manifest is immutable and may have several names, so that a copy costs one row; the segments of
one that has no name left are the collector's to take.

What the commit promises to the collector, and expects from it:

- Packs are durable before a transaction refers to them (the writer's part), and every pack that a
  transaction refers to is looked up inside it: one that went raises PacksVanished, and nothing is
  published. While `gc_seq` has not moved since the look-ups, the chunk rows need no second look;
  when it has, those of the batch that went are put back, since their packs are there.
- Rows of a large object go in before its name, in bounded batches. Until then its manifest is in
  `pending`, with a pack that its writer holds the lock of: while that lock is held, the manifest
  counts as named; when it is free, the writer is dead and the manifest is garbage.
- The change table exists for a collector that is marking: it sets `marking` in a transaction of
  its own and from then on every commit appends (sequence, name). Without one there is no reader
  of the table, and it would only grow: so it is not written.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from castore.errors import IndexCorrupt, StoreIOError
from castore.format.config import StoreConfig, encode_config
from castore.format.index import ChunkRow, segment_key
from castore.format.journal import encode_drop, encode_piece, encode_put
from castore.format.segment import decode_segment
from castore.local.batch import Batch
from castore.local.groups import Commit, GroupCommits, PacksVanished
from castore.local.journal.log import Journal, start_journal
from castore.local.lookup import NameReader
from castore.local.meta import (
    CONFIG,
    GC_SEQ,
    STORE_ID,
    is_damaged_id,
    next_manifests,
    read_number,
    release_freed_pages,
)
from castore.local.names import NameChanges
from castore.local.tables import Tables
from castore.model import StoredChunk
from castore.stream.operations import Draft, Operation
from castore.system.fileio import sync_folder
from castore.system.lmdb_env import Index

RELEASE_ROWS_MIN = 64  # new ones: a commit of fewer makes the index grow by little


class LocalCatalog(NameReader):
    def __init__(self, index: Index, journal: Journal, config: StoreConfig) -> None:
        super().__init__(index)
        self._journal = journal
        self._config = config
        self._groups = GroupCommits(index, self._write_group)
        self.check_whose()

    def check_whose(self) -> None:
        """Have the index say whose it is, if it can be written and does not yet. Raises
        IndexCorrupt if it is another store's."""
        index, config = self._index, self._config
        store_id = config.store_id
        with index.gate, index.snapshot() as txn:
            found = txn.get(STORE_ID, db=index.meta)
        if found is None and index.writable:
            # Whoever made the index may have died before it was durable.
            sync_folder(index.path)
            sync_folder(os.path.dirname(index.path))
            with index.write_gate, index.errors, index.begin() as txn:
                if txn.put(STORE_ID, store_id, db=index.meta, overwrite=False):
                    txn.put(CONFIG, encode_config(config), db=index.meta)
                    start_journal(index, txn)
                found = txn.get(STORE_ID, db=index.meta)
        # A flipped bit is for a check to find and a repair to put right: both open the store.
        if found not in (None, store_id) and not is_damaged_id(found, store_id):
            raise IndexCorrupt(
                f"the index {index.path} belongs to another store: bring this one's back, or "
                "restore it from a backup (castore restore)"
            )

    @property
    def journal(self) -> Journal:
        return self._journal

    @property
    def index(self) -> Index:
        """What a collector reads and writes beside us."""
        return self._index

    def stage(self, batch: Batch, owner: bytes) -> None:
        """Put a batch of rows in, before there is a name for them. `owner` is the pack whose lock
        shows that the writer lives. Raises PacksVanished."""
        numbers: dict[Draft, int] = {}

        def apply(tables: Tables) -> list[bytes]:
            entries: list[bytes] = []
            numbers.update(self._apply(tables, batch, entries, pending_owner=owner))
            return entries

        self._write(apply, rows=len(batch.chunks))
        # Only now are they taken: of a transaction that failed, another takes them.
        for draft, number in numbers.items():
            draft.manifest = number

    def commit(self, batch: Batch, operations: Sequence[Operation]) -> int:
        """Make the operations visible, in their order, all or none; the number of names deleted.

        Raises NameNotFound, NameExists, PacksVanished: nothing was published; CommitUnknown.
        """
        return self._groups.commit(batch, operations)

    def _write_group(self, commits: Sequence[Commit]) -> None:
        def apply(tables: Tables) -> list[bytes]:
            entries: list[bytes] = []
            for each in commits:
                numbers = self._apply(tables, each.batch, entries, pending_owner=None)
                each.deleted = self._change_names(tables, each.operations, numbers, entries)
            return entries

        self._write(apply, rows=sum(len(each.batch.chunks) for each in commits))

    def _write(self, apply: Callable[[Tables], list[bytes]], *, rows: int) -> None:
        """One transaction, of so many new rows of chunks, and its block of the journal: the entries
        that `apply` gives."""
        index, place = self._index, None
        if rows >= RELEASE_ROWS_MIN:
            release_freed_pages(self._index)
        try:
            with index.write_gate, index.errors, index.begin() as txn, Tables(index, txn) as tables:
                place = self._journal.append(index, txn, apply(tables))
        except BaseException as error:
            self._journal.failed(place, error)
            raise
        self._journal.done(place)

    def bound_journal(self) -> None:
        """To be called after a commit, when nothing of it is held any more: it may take a while."""
        self._journal.bound(self._index)

    def change_names(self, tables: Tables, operations: Sequence[Operation]) -> int:
        """Apply operations inside a write transaction, as the last thing in it, change table and
        journal included; the number of names deleted."""
        entries: list[bytes] = []
        deleted = self._change_names(tables, operations, {}, entries)
        self._journal.append(self._index, tables.txn, entries)
        return deleted

    def _change_names(
        self,
        tables: Tables,
        operations: Sequence[Operation],
        numbers: dict[Draft, int],
        entries: list[bytes],
    ) -> int:
        """`numbers` are the manifests of the drafts that the operations publish; what belongs into
        the journal goes to `entries`."""
        names = NameChanges(tables.names, numbers)
        for operation in operations:
            names.apply(operation)
        tables.note_changes(names.changed)
        entries += [
            encode_drop(name) if row is None else encode_put(name, row)
            for name, row in names.changed.items()
        ]
        return names.deleted

    def _apply(
        self, tables: Tables, batch: Batch, entries: list[bytes], *, pending_owner: bytes | None
    ) -> dict[Draft, int]:
        """Everything but the names; the numbers of the drafts' manifests."""
        index, txn = self._index, tables.txn
        index.check_in_place()
        gc_seq = read_number(index, txn, GC_SEQ)
        gone = {pack_id for pack_id in batch.packs if pack_id not in tables.packs}
        gone |= {pack.pack_id for pack in batch.own if not pack.exists()}
        if gone:
            raise PacksVanished(gone)
        for pack, upto in batch.own.items():
            tables.packs.extend(pack.pack_id, pack.created_ns, upto)
        with tables.chunks.gathered():
            if batch.gc_seq is not None and batch.gc_seq != gc_seq:
                _restore_rows(tables, batch)
            for chunk_id, chunk in batch.chunks.items():
                _put_chunk(tables, chunk.stored(chunk_id), heals=chunk.heals)
            _put_bases(tables, batch)
        numbers: dict[Draft, int] = {}
        unnumbered = sum(not draft.manifest for draft in batch.drafts)
        new_numbers = iter(next_manifests(index, txn, unnumbered))
        for draft in batch.drafts:
            if draft.staged and segment_key(draft.manifest, 0) not in tables.pending:
                # Somebody removed the owner's file, and a collector took us for dead.
                raise StoreIOError("what a put had stored so far was collected: repeat the put")
            number = draft.manifest or next(new_numbers)
            numbers[draft] = number
            for end, raw in draft.segments:
                tables.segments.add(number, end, raw)
                entries.append(encode_piece(number, raw))
            if pending_owner is not None:
                if draft.segments:
                    tables.pending.put(segment_key(number, 0), pending_owner)
            elif draft.staged:
                tables.pending.delete(segment_key(number, 0))
        return numbers


def _restore_rows(tables: Tables, batch: Batch) -> None:
    for draft in batch.drafts:
        for _, raw in draft.segments:
            for chunk in decode_segment(raw).frames():
                _put_chunk(tables, chunk)


def _put_chunk(tables: Tables, chunk: StoredChunk, *, heals: bool = False) -> None:
    """Unless another writer was first: its frame serves the same."""
    row = ChunkRow.of(chunk)
    if not tables.chunks.add(chunk.chunk_id, row):
        known = tables.chunks.known(chunk.chunk_id)
        if known is None or heals or not _serves(tables, known):
            tables.chunks.put(chunk.chunk_id, row)


def _put_bases(tables: Tables, batch: Batch) -> None:
    """Those of the deltas: they are known by the segments of another object, and mostly by rows."""
    deltas = [chunk.location.bases for chunk in batch.chunks.values() if chunk.location.bases]
    bases = {base.chunk_id: base for each in deltas for base in each}
    for chunk_id, base in bases.items():
        tables.chunks.add(chunk_id, ChunkRow.of(base))


def _serves(tables: Tables, row: ChunkRow) -> bool:
    """Whether its pack is there and, of a delta, rows of all that it decodes with: a collector may
    have taken one of these only, and will take the row."""
    return row.location.pack_id in tables.packs and all(base in tables.chunks for base in row.bases)
