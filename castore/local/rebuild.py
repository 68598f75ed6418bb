"""A local store's index, made anew: names that are known, and rows from what the packs hold.

The names and their segments come from the index that is there, as far as its pages can be read, or
from a backup; and from the journal what that lacks. What the journal says comes after a backup, if
it reaches as far; an index that is there is newer than it, or as new, and only what can't be read
of it is filled in. If the index turns out to be older than the journal (somebody put an old copy
back), the journal is what counts. Where neither has everything, what may be missing is said, and
chunks that no name leads to are marked as unclaimed: no collection takes them until it is told to.

The new index is made beside the old one, and takes its place in one step, durably: a crash before
it leaves the store as it was. The old one is kept aside, for a month.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from castore.errors import FormatError, IndexCorrupt, StoreFull, StoreIOError
from castore.format.config import StoreConfig
from castore.format.journal import Entry, JournalPlace
from castore.local.config_repair import known_config, put_config
from castore.local.folder import alone, no_store
from castore.local.index_place import (
    drafts,
    has_index,
    has_names,
    index_draft,
    kept_aside,
    last_index,
    meta_row,
    take_place,
)
from castore.local.journal.files import FOLDER, generations, log_path
from castore.local.journal.log import PLACE, Journal, read_unclaimed
from castore.local.journal.replay import clear_names, drop_unnamed, fill, replay
from castore.local.journal.scan import JournalReading, read_journal
from castore.local.rebuild_rows import RowRebuild
from castore.local.transplant import Transplanted, transplant_file
from castore.model import Progress
from castore.stream.reports import RebuildReport
from castore.system.fileio import typed_errors
from castore.system.lmdb_env import Index, open_index


@dataclass(frozen=True, slots=True)
class Sources:
    """Where the names of a new index come from. `take_rows` puts those of an index or of a backup
    into it, None if there is no index; `journal` is None if what it says is not wanted. A backup,
    and what counts as one, may be of long before what is in the packs."""

    take_rows: Callable[[Index], Transplanted] | None
    journal: JournalReading | None
    is_backup: bool = False


def rebuild_local(root: str, *, progress: Progress | None) -> RebuildReport:
    """Make the index of the store in the folder anew, with all names that can be read, and
    castore.json if it is lost. Raises StoreLocked while anybody has the store open; IndexCorrupt if
    none of its names can be read, so that only a backup helps; UnsupportedFormat if a later castore
    put one, or wrote castore.json, with nothing changed; StoreFull, StoreIOError."""
    with typed_errors(root):
        return _rebuild(root, progress)


def _rebuild(root: str, progress: Progress | None) -> RebuildReport:
    found = known_config(root) if os.path.isdir(root) else None
    if found is None:
        raise no_store(root)
    raw_config, config = found
    with alone(root):
        last, is_old = last_index(root)
        journal = read_journal(root)  # not before: who had the store open may have put more
        there = has_index(last)
        if not there and not journal.is_there:
            raise IndexCorrupt(
                f"the index of the store {root} is gone, and it has no journal: restore it from a "
                "backup (castore restore)"
            )
        # Without a journal it is the index that says of which page its names are lost.
        there = there and (has_names(last) or not journal.is_there)
        take_rows = partial(transplant_file, last) if there else None
        sources = Sources(take_rows, journal, is_old)
        report = replace_index(root, config, sources, progress)
        put_config(root, raw_config)
    return report


def replace_index(
    root: str, config: StoreConfig, sources: Sources, progress: Progress | None
) -> RebuildReport:
    """Put an index in place with the names that the sources have. For who has the store `alone`."""
    for left in drafts(root):
        shutil.rmtree(left)  # a draft of a run that was killed: copies of what is elsewhere
    with index_draft(root) as draft:
        index = open_index(draft, sync=False)
        try:
            report, anew = _fill_draft(index, root, config, sources, progress)
            index.flush()
        finally:
            index.close()
        report.kept = take_place(root, draft)
    if anew:
        # It is done, whatever comes of this: the next collection begins a journal that lacks
        # something anew, as this one is known to.
        with contextlib.suppress(StoreFull, StoreIOError):
            _begin_journal(root, config)
    return report


def _fill_draft(
    index: Index, root: str, config: StoreConfig, sources: Sources, progress: Progress | None
) -> tuple[RebuildReport, bool]:
    """The report, and whether the journal has to begin anew."""
    taken = None if sources.take_rows is None else sources.take_rows(index)
    is_backup = sources.is_backup and taken is not None and taken.whole
    had_unclaimed = _has_unclaimed(index)
    rows = RowRebuild(index, root, config, progress)
    rows.make_rows()
    journal = sources.journal or JournalReading(gaps=["it is not wanted"])
    complete, replayed, missing = _join(index, taken, journal, is_backup=is_backup)
    unclaimed = "" if complete else "since" if is_backup else "all"
    if had_unclaimed or journal.unclaimed:
        unclaimed = "all"  # which chunks they were, neither index nor journal tells
    report = rows.finish(unclaimed)
    report.replayed = replayed
    report.lost_names = missing
    consistent = taken is not None and taken.whole and not is_backup and not replayed
    anew = not (consistent and (journal.complete or not journal.is_there))
    anew |= journal.unclaimed != bool(report.unclaimed_chunks)
    if anew:
        numbers = [journal.seq, taken.place.seq if taken and taken.place else 0]
        _set_place(index, root, max(*numbers, _last_number(root, journal)))
    return report, anew


class _Joined(NamedTuple):
    """Whether all names are in the draft, how many changes of names of the journal's that took, and
    what may be missing."""

    complete: bool
    replayed: int
    missing: list[str]


def _join(
    index: Index, taken: Transplanted | None, journal: JournalReading, *, is_backup: bool
) -> _Joined:
    """Put what the journal knows better into the draft."""
    if taken is None:
        return _from_journal(index, journal)
    if is_backup:
        return _onto_backup(index, taken.place, journal)
    if _is_older(index, taken, journal):
        return _from_journal(index, journal)
    if taken.whole:
        return _Joined(True, 0, [])
    return _fill_in(index, taken, journal)


def _from_journal(index: Index, journal: JournalReading) -> _Joined:
    if journal.complete:
        clear_names(index)
    replayed = replay(_all(journal), index, index)
    drop_unnamed(index)
    return _Joined(journal.complete, replayed, _lacking(journal))


def _onto_backup(index: Index, place: JournalPlace | None, journal: JournalReading) -> _Joined:
    # One that ends before the backup is a copy of then, or lost its end: what it says is old.
    if not journal.is_there or (place is not None and journal.seq < place.seq):
        return _Joined(False, 0, [])
    if journal.complete:
        return _from_journal(index, journal)
    replayed = replay(journal.changes(after=place.seq if place else 0), index, index)
    drop_unnamed(index)
    complete = place is not None and journal.has_from(place.seq)
    return _Joined(complete, replayed, [] if complete else _lacking(journal))


def _fill_in(index: Index, taken: Transplanted, journal: JournalReading) -> _Joined:
    """Names and segments that the index lost."""
    place = taken.place
    complete = journal.complete and (place is None or journal.seq >= place.seq)
    replayed = _filled(index, journal) if journal.is_there else 0
    if complete:
        return _Joined(True, replayed, [])
    return _Joined(not (taken.lost_names or taken.lost_segments), replayed, taken.lost_names)


def _filled(index: Index, journal: JournalReading) -> int:
    """How many names came of the journal, which is replayed beside the draft."""
    beside = os.path.join(index.path, "journal")
    os.mkdir(beside, 0o700)
    source = open_index(beside, sync=False)
    try:
        replay(_all(journal), source, index)
        drop_unnamed(source)
        filled = fill(source, index)
    finally:
        source.close()
        shutil.rmtree(beside)
    drop_unnamed(index)
    return filled


def _lacking(journal: JournalReading) -> list[str]:
    return [f"names that the journal lacks ({journal.gaps[0]})"] if journal.gaps else []


def _is_older(index: Index, taken: Transplanted, journal: JournalReading) -> bool:
    with index.gate, index.snapshot() as txn, contextlib.suppress(FormatError):
        return read_unclaimed(index, txn) is not None or journal.is_ahead_of(taken.place)
    return True


def _has_unclaimed(index: Index) -> bool:
    """Whether it says that names of chunks were given up, or lost, that nothing is to collect. One
    that only says that its journal knows more has counted none."""
    with index.gate, index.snapshot() as txn, contextlib.suppress(FormatError):
        unclaimed = read_unclaimed(index, txn)
        return unclaimed is not None and unclaimed.chunks > 0
    return False


def _all(journal: JournalReading) -> Iterator[Entry]:
    yield from journal.state()
    yield from journal.changes()


def _last_number(root: str, journal: JournalReading) -> int:
    """Of the transactions that the store has had, also of those that are given up: who compares
    what is kept of then with what comes from now on goes by their numbers."""
    last = journal.seq if journal.is_there else read_journal(root).seq
    for folder in (os.path.join(root, "index"), *kept_aside(root)):
        with contextlib.suppress(FormatError):
            row = meta_row(folder, PLACE)
            last = max(last, JournalPlace.mended(row).seq if row else 0)
    return last


def _set_place(index: Index, root: str, seq: int) -> None:
    """So that until the journal begins anew the one that is there is known to lack something."""
    folder = os.path.join(root, FOLDER)
    generation, end = 0, 0
    for each in generations(folder):
        if os.path.exists(log_path(folder, each)):
            generation, end = each, os.path.getsize(log_path(folder, each))
    with index.write_gate, index.errors, index.begin() as txn:
        txn.put(PLACE, JournalPlace(generation, seq + 1, end).encode(), db=index.meta)


def _begin_journal(root: str, config: StoreConfig) -> None:
    index = open_index(os.path.join(root, "index"), create=False)
    journal = Journal(root, config)
    try:
        journal.rotate(index)
    finally:
        journal.close(index)
        index.close()
