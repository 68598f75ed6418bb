"""The journal of a local store against its index."""

from __future__ import annotations

import contextlib
from itertools import islice

from castore.check.findings import Findings
from castore.errors import FormatError, fault_of
from castore.format.index import segment_key
from castore.format.journal import Entry, JournalPlace, Piece, Put
from castore.local.journal.log import PLACE, UNCLAIMED, Journal
from castore.local.journal.scan import JournalReading
from castore.local.journal.state import judge
from castore.stream.reports import Severity
from castore.system.lmdb_env import Index
from castore.system.lmdb_snapshot import Snapshot

ENTRIES_PER_READ = 1000


def check_journal(root: str, index: Index, findings: Findings) -> None:
    """What a commit that was cut off left in the journal is nothing to tell of; what is missing
    from it is, and what is missing from the index."""
    with contextlib.suppress(FormatError):  # of a row of `meta`, which has a finding of its own
        state = judge(root, index)
        if state.refusal:
            severity: Severity = (
                "warning" if state.unclaimed and state.unclaimed.chunks else "missing"
            )
            findings.add("journal", severity, state.refusal)
        if state.gaps:
            what = f"the journal of names has a gap ({state.gaps[0]}): the next gc writes it anew"
            findings.add("journal", "warning", what)


def mend_journal(root: str, index: Index, journal: Journal) -> list[str]:
    """Put the row right that says how far the journal is; what was done. Where nothing can be read
    of it, the journal begins anew, if the index has what was done last: else the index may be the
    older one, and a collection asks first."""
    with index.gate, index.snapshot() as txn:
        row = txn.get(PLACE, db=index.meta)
        row = None if row is None else bytes(row)
    if row is None or not fault_of(JournalPlace.decode, row):
        return []
    with contextlib.suppress(FormatError):
        _replace(index, row, JournalPlace.mended(row))
        return ["the row of the journal had one bit flipped: it is put right"]
    reading = judge(root, index).reading
    if not _has_newest(index, reading):
        _replace(index, row, None)
        return ["the row of the journal is damaged, and the journal newer than the index"]
    # A number that it lacks, until it is begun anew.
    _replace(index, row, JournalPlace(reading.generation, reading.seq + 1, 0))
    journal.rotate(index)
    return ["the row of the journal was damaged: the journal is begun anew"]


def _replace(index: Index, row: bytes, place: JournalPlace | None) -> None:
    """Unless somebody has put it anew."""
    with index.write_gate, index.errors, index.begin() as txn:
        if txn.get(PLACE, db=index.meta) != row:
            return
        if place is None:
            txn.delete(PLACE, db=index.meta)
        else:
            txn.put(PLACE, place.encode(), db=index.meta)


def _has_newest(index: Index, reading: JournalReading) -> bool:
    """Whether the index has what was done last, so that it is not older than the journal."""
    entries, count = reading.newest_entries(), 0
    while batch := list(islice(entries, ENTRIES_PER_READ)):
        with index.gate, index.snapshot() as txn:
            if txn.get(UNCLAIMED, db=index.meta) is not None:
                return False
            if not all(_has(index, txn, entry) for entry in batch):
                return False
            count += len(batch)
    with index.gate, index.snapshot() as txn:
        return reading.has_newest or count == txn.stat(index.names)["entries"]


def _has(index: Index, txn: Snapshot, entry: Entry) -> bool:
    if isinstance(entry, Piece):
        key = segment_key(entry.manifest, entry.extents[-1][0])
        return txn.get(key, db=index.segments) is not None
    found = txn.get(entry.name, db=index.names)
    wanted = entry.record if isinstance(entry, Put) else None
    return (None if found is None else bytes(found)) == wanted
