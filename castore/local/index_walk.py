"""Reading all of an index, with no trust in it: row by row, in order, each one counted.

The functions that take a Report run in a process of their own (`isolated`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from castore.errors import FormatError, fault_of
from castore.format.index import decode_chunk_row, decode_pack_row, decode_record, manifest_of
from castore.format.segment import decode_segment
from castore.system.fileio import descriptor
from castore.system.lmdb_env import TABLES, Index, open_index
from castore.system.lmdb_errors import LmdbError, damaged, typed
from castore.system.lmdb_files import is_in_use
from castore.system.lmdb_pages import IndexPages
from castore.system.lmdb_snapshot import Snapshot, Table, repeated
from castore.wording import counted

if TYPE_CHECKING:  # a put has no need of it
    from castore.system.isolated import Report

PAGE_ROWS_MAX = 4096
PAGE_BYTES_MAX = 16 << 20


def rows(index: Index, txn: Snapshot, table: Table) -> Iterator[tuple[bytes, bytes]]:
    """Every row of a table, in the order of the keys. Raises IndexCorrupt where a damaged page
    shows itself: keys out of order (as in a tree that leads round in circles), rows missing."""
    try:
        expected = txn.stat(table)["entries"]
        found, last = 0, b""
        with txn.cursor(db=table) as cursor:
            for raw_key, value in cursor:
                key = bytes(raw_key)
                if found and key <= last:
                    raise damaged(index.path, "its keys are not in order")
                last = key
                found += 1
                if found > expected:
                    break
                yield key, bytes(value)
        if found != expected:
            has = "more" if found > expected else f"{found:,}"
            raise damaged(index.path, f"a table of {counted(expected, 'row')} has {has}")
    except LmdbError as error:
        raise typed(error, index.path) from error


def pages(index: Index, table: Table) -> Iterator[list[tuple[bytes, bytes]]]:
    """All rows, some at a time, so that they may be changed in between."""
    after: bytes | None = None
    while True:
        with index.gate, index.snapshot() as txn, txn.cursor(db=table) as cursor:
            page: list[tuple[bytes, bytes]] = []
            size = 0
            if cursor.set_range(after + b"\0") if after is not None else cursor.first():
                for key, value in cursor:
                    page.append((bytes(key), bytes(value)))
                    size += len(value)
                    if len(page) >= PAGE_ROWS_MAX or size >= PAGE_BYTES_MAX:
                        break
        if not page:
            return
        yield page
        after = page[-1][0]


def durable_bytes(row: bytes | None) -> int:
    """What a pack's row says; 0 of none, or of a damaged one."""
    try:
        return 0 if row is None else decode_pack_row(row)[1]
    except FormatError:
        return 0


def check_pages(index: Index) -> None:
    """Raises IndexCorrupt if a page of the index is damaged, though LMDB may get along with it
    until something is written."""
    with descriptor(os.path.join(index.path, "data.mdb")) as fd:
        while True:
            with index.gate, index.snapshot() as txn:  # while it is there, its pages are kept
                found = IndexPages(fd, index.path)
                if found.meta.txn_id == txn.id():
                    fault = found.fault()
                    break
    if fault:
        raise damaged(index.path, fault)


def look_at_pages(report: Report, path: str) -> None:
    """`check_pages` of the index at `path`. Unless somebody uses it, no byte of it is touched: who
    looks may be another user, whose lock file would keep its owner out."""
    index = open_index(path, create=False, lock_free=not is_in_use(path))
    try:
        repeated(lambda: check_pages(index))
    finally:
        index.close()


def copy_index(report: Report, path: str, fd: int, read_only: bool) -> None:
    """LMDB's own copy of the index at `path`, to a descriptor."""
    index = open_index(path, create=False, lock_free=read_only and not is_in_use(path))
    try:
        index.copy_to(fd)
    finally:
        index.close()


def look_through(report: Report, path: str) -> None:
    """Read every row, and decode those that have a format of their own; report how many names there
    are, and how many rows do not decode."""
    index = open_index(path, create=False)
    names = undecodable = 0
    try:
        check_pages(index)
        with index.gate, index.snapshot() as txn:
            for table in TABLES:
                for key, value in rows(index, txn, getattr(index, table.decode())):
                    names += table == b"names"
                    undecodable += not _decodes(table, key, value)
    finally:
        index.close()
    report({"names": names, "damaged": undecodable})


def _decodes(table: bytes, key: bytes, value: bytes) -> bool:
    decoders: dict[bytes, Any] = {
        b"names": decode_record,
        b"segments": decode_segment,
        b"chunks": decode_chunk_row,
        b"packs": decode_pack_row,
    }
    if table in (b"segments", b"pending") and fault_of(manifest_of, key):
        return False
    return table not in decoders or not fault_of(decoders[table], value)
