"""The counters, flags and sums in a local store's `meta` table."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress

from xxhash import xxh3_64_intdigest

from castore.errors import CommitUnknown, FormatError, IndexCorrupt, fault_of
from castore.format.config import decode_config
from castore.format.index import (
    MANIFEST_ORDER_MAX,
    TOTALS_BYTES,
    Totals,
    manifest_number,
    manifest_of,
    manifest_order,
    segment_key,
)
from castore.format.journal import JournalPlace, Unclaimed
from castore.local.journal.log import PLACE, UNCLAIMED
from castore.system.lmdb_env import Index, Txn
from castore.system.lmdb_snapshot import Snapshot, Table
from castore.wording import counted

STORE_ID = b"store_id"
GC_SEQ = b"gc_seq"  # raised by every transaction that takes rows of chunks or packs
MARKING = b"marking"  # there while a collector reads the change table
NEXT_MANIFEST = b"next_manifest"  # the order of the last manifest that was made
TOTALS = b"totals"
CONFIG = b"config"  # castore.json, for when it is lost
MARKING_VALUE = b"\1"
CHANGE_KEY_BYTES = 8  # a number, big-endian
FORMER = b"change_seq"  # of earlier versions; nobody reads it


def release_freed_pages(index: Index) -> None:
    """Let the next transaction have the pages that the last one freed, by one between the two that
    changes nothing. LMDB gives out what the transaction before the last freed, or an earlier one:
    the last one's pages are of the state that a crash goes back to. So where two in a row each
    write most of a table anew, the index has it three times, and else twice. Raises as a commit,
    but no CommitUnknown: whether this one landed is no matter."""
    with suppress(CommitUnknown), index.write_gate, index.errors, index.begin() as txn:
        row = txn.get(STORE_ID, db=index.meta)
        if row is not None:
            txn.put(STORE_ID, row, db=index.meta)


def meta_faults(
    rows: Iterable[tuple[bytes, bytes]], store_id: bytes
) -> Iterator[tuple[bytes, str]]:
    """(row, what is wrong with it) of those that can't be; of the totals only the form is told."""
    for key, value in rows:
        if key == STORE_ID:
            fault = "" if value == store_id else "is of another store than castore.json"
        elif key == MARKING:
            fault = "" if value == MARKING_VALUE else "is not what a collector writes"
        elif key == TOTALS:
            fault = "" if len(value) in TOTALS_BYTES else f"has {counted(len(value), 'byte')}"
        elif key in (GC_SEQ, NEXT_MANIFEST):
            # Earlier versions wrote no checksum.
            whole = len(value) == 8 or (_is_order if key == NEXT_MANIFEST else _is_whole)(value)
            fault = "" if whole else "is damaged"
        elif key in (PLACE, UNCLAIMED):
            fault = fault_of(JournalPlace.decode if key == PLACE else Unclaimed.decode, value)
        elif key == CONFIG:
            fault = _config_fault(value, store_id)
        elif key == FORMER:
            fault = ""
        else:
            fault = "is none that castore writes"
        if fault:
            yield key, fault


def _config_fault(raw: bytes, store_id: bytes) -> str:
    fault = fault_of(decode_config, raw)
    if fault or decode_config(raw).store_id == store_id:
        return fault
    return "is another store's castore.json"


def is_damaged_id(found: bytes, right: bytes) -> bool:
    """Whether a store's id is not as it should be, and not another's: one bit, or its length."""
    difference = int.from_bytes(found, "big") ^ int.from_bytes(right, "big")
    return len(found) != len(right) or difference.bit_count() == 1


def last_manifest(index: Index, txn: Snapshot | Txn) -> int:
    """The highest number that is in use; 0 if none is. Raises IndexCorrupt if it can't be told."""
    try:
        return manifest_of(_last_key(txn, index.segments) or segment_key(0, 0))
    except FormatError as error:
        raise IndexCorrupt(
            f"a key in the index {index.path} is damaged ({error}): run castore check --repair"
        ) from None


def next_manifests(index: Index, txn: Txn, count: int) -> list[int]:
    """So many numbers behind all that were given out. The counter is only so that the order of one
    that was collected does not come again: whatever it says, what is in use is not given out.
    Raises IndexCorrupt if they are used up."""
    if not count:
        return []
    row = txn.get(NEXT_MANIFEST, db=index.meta)
    told = 0 if row is None or not _is_order(row) else _number(row)
    last = max(told, manifest_order(last_manifest(index, txn)))
    if last + count > MANIFEST_ORDER_MAX:
        raise IndexCorrupt(
            f"the index {index.path} has no numbers left for manifests: castore check --repair, or "
            "restore it from a backup (castore restore)"
        )
    txn.put(NEXT_MANIFEST, encode_number(last + count), db=index.meta)
    tags = os.urandom(3 * count)
    return [
        manifest_number(last + 1 + i, int.from_bytes(tags[3 * i : 3 * i + 3], "little"))
        for i in range(count)
    ]


def next_change(index: Index, txn: Txn) -> bytes:
    """The key behind the last one in the change table. Raises IndexCorrupt if there can be none."""
    key = _last_key(txn, index.changes)
    number = int.from_bytes(key, "big") + 1
    if len(key) not in (0, CHANGE_KEY_BYTES) or number.bit_length() > 8 * CHANGE_KEY_BYTES:
        raise IndexCorrupt(
            f"a row of what changed during a collection is damaged in the index {index.path}: run "
            "castore gc or castore check --repair"
        )
    return number.to_bytes(CHANGE_KEY_BYTES, "big")


def _last_key(txn: Snapshot | Txn, table: Table) -> bytes:
    with txn.cursor(db=table) as cursor:
        return bytes(cursor.key()) if cursor.last() else b""


def read_number(index: Index, txn: Snapshot | Txn, key: bytes) -> int:
    """Of one that is damaged, another than it was: counters that are compared need no more."""
    raw = txn.get(key, db=index.meta)
    return 0 if raw is None else _number(raw)


def next_number(index: Index, txn: Txn, key: bytes) -> None:
    number = (read_number(index, txn, key) + 1) % (1 << 64)
    txn.put(key, encode_number(number), db=index.meta)


def encode_number(number: int) -> bytes:
    raw = number.to_bytes(8, "little")
    return raw + xxh3_64_intdigest(raw).to_bytes(8, "little")


def _number(row: bytes) -> int:
    return int.from_bytes(row[:8], "little")


def _is_whole(row: bytes) -> bool:
    return row == encode_number(_number(row))


def _is_order(row: bytes) -> bool:
    return _is_whole(row) and _number(row) <= MANIFEST_ORDER_MAX


def read_totals(index: Index, txn: Snapshot | Txn) -> Totals:
    raw = txn.get(TOTALS, db=index.meta)
    return Totals() if raw is None else Totals.decode(raw)
