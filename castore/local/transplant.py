"""The rows of an index that may be damaged, taken over into a new one.

Pages are read without LMDB (see `lmdb_pages`): what a damaged one held is left out, and said;
everything else comes along. So this can be done in the process itself, to a backup of unknown
origin as well.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field

from castore.errors import FormatError, IndexCorrupt, fault_of
from castore.format.index import decode_record
from castore.format.journal import JournalPlace
from castore.format.segment import decode_segment
from castore.local.journal.log import read_place
from castore.system.fileio import descriptor
from castore.system.lmdb_env import TABLES, Index
from castore.system.lmdb_pages import IndexPages, Lost, PageTable

BATCH_ROWS = 4096
BATCH_BYTES = 16 << 20


@dataclass(slots=True)
class Transplanted:
    """What came along, and what did not: the ranges of names that can't be read, in words, and
    whether segments are among what was left out, or names and segments do not decode. `place` is
    how far the journal was, if the index says so."""

    names: int = 0
    lost_names: list[str] = field(default_factory=list)
    lost_segments: bool = False
    undecodable: bool = False
    has_packs: bool = False
    place: JournalPlace | None = None

    @property
    def whole(self) -> bool:
        return not (self.lost_names or self.lost_segments or self.undecodable)


def transplant(fd: int, path: str, target: Index, size: int | None = None) -> Transplanted:
    """Copy the rows of the index in the first `size` bytes of a descriptor, called `path` in what
    is raised and said. Raises IndexCorrupt if there is no table of names."""
    pages = IndexPages(fd, path, size)
    tables = pages.tables()
    if b"names" not in tables:
        reason = pages.lost[0].reason if pages.lost else "it has no table of names"
        raise IndexCorrupt(
            f"the names of the index {path} can't be read ({reason}): restore it from a backup "
            "(castore restore)"
        )
    report = Transplanted()
    for name in TABLES:
        if name not in tables:
            report.lost_segments |= name == b"segments"
            continue
        before = len(pages.lost)
        count = _copy(pages, name, tables[name], target, report)
        lost = [found for found in pages.lost[before:] if found.begin != found.end]
        if name == b"names":
            report.names = count
            report.lost_names = [_said(found) for found in lost]
        elif name == b"packs":
            report.has_packs = count > 0
        elif name == b"segments":
            report.lost_segments = bool(lost)
    with target.gate, target.snapshot() as txn, contextlib.suppress(FormatError):
        report.place = read_place(target, txn)
    return report


def transplant_file(folder: str, target: Index) -> Transplanted:
    """`transplant` of the index in a folder."""
    with descriptor(os.path.join(folder, "data.mdb")) as fd:
        return transplant(fd, folder, target)


def _copy(
    pages: IndexPages, name: bytes, rows: PageTable, target: Index, report: Transplanted
) -> int:
    table, count = getattr(target, name.decode()), 0
    decoders: dict[bytes, Callable[[bytes], object]] = {
        b"names": decode_record,
        b"segments": decode_segment,
    }
    decode = decoders.get(name)
    batch: list[tuple[bytes, bytes]] = []
    size = 0

    def flush() -> None:
        with target.write_gate, target.errors, target.begin() as txn:
            for key, value in batch:
                txn.put(key, value, db=table)
        batch.clear()

    for key, value in pages.rows(rows):
        batch.append((key, value))
        size += len(value)
        count += 1
        report.undecodable |= decode is not None and bool(fault_of(decode, value))
        if len(batch) >= BATCH_ROWS or size >= BATCH_BYTES:
            flush()
            size = 0
    flush()
    return count


def _said(lost: Lost) -> str:
    begin = lost.begin.decode(errors="backslashreplace")
    if lost.end is None:
        return f"names from {begin!r} on ({lost.reason})"
    end = lost.end.decode(errors="backslashreplace")
    return f"names from {begin!r} up to {end!r} ({lost.reason})"
