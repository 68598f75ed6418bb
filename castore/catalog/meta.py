"""The counters, flags and sums in a local store's `meta` table."""

from __future__ import annotations

from castore.format_index import Totals
from castore.index import Index, Snapshot, Txn

STORE_ID = b"store_id"
GC_SEQ = b"gc_seq"  # raised by every transaction that takes rows of chunks or packs
MARKING = b"marking"  # there while a collector reads the change table
CHANGE_SEQ = b"change_seq"
NEXT_MANIFEST = b"next_manifest"  # the last number that was given out
TOTALS = b"totals"


def read_number(index: Index, txn: Snapshot | Txn, key: bytes) -> int:
    raw = txn.get(key, db=index.meta)
    return 0 if raw is None else int.from_bytes(raw, "little")


def next_number(index: Index, txn: Txn, key: bytes) -> int:
    number = read_number(index, txn, key) + 1
    txn.put(key, number.to_bytes(8, "little"), db=index.meta)
    return number


def read_totals(index: Index, txn: Snapshot | Txn) -> Totals:
    raw = txn.get(TOTALS, db=index.meta)
    return Totals() if raw is None else Totals.decode(raw)


def write_totals(index: Index, txn: Txn, totals: Totals) -> None:
    txn.put(TOTALS, totals.encode(), db=index.meta)
