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
import errno
import glob
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from castore.check.config import config_anew
from castore.errors import (
    ConfigLost,
    FormatError,
    IndexCorrupt,
    StoreFull,
    StoreIOError,
    StoreNotFound,
    UnsupportedFormat,
)
from castore.format.config import StoreConfig
from castore.format.journal import Entry, JournalPlace
from castore.local import meta
from castore.local.folder import (
    CONFIG,
    INDEX_BYTES_MIN,
    alone,
    read_config,
    write_new,
)
from castore.local.folder import find_config as config_in_place
from castore.local.journal.files import FOLDER, generations, log_path
from castore.local.journal.log import PLACE, Journal, read_unclaimed
from castore.local.journal.replay import clear_names, drop_unnamed, fill, replay
from castore.local.journal.scan import JournalReading, read_journal
from castore.local.rebuild_rows import RowRebuild
from castore.local.transplant import Transplanted, transplant_file
from castore.model import Progress
from castore.stream.config import parse_config
from castore.stream.reports import RebuildReport
from castore.system.fileio import adopt, descriptor, follow, sync_folder, typed_errors
from castore.system.lmdb_env import Index, open_index
from castore.system.lmdb_pages import IndexPages

DRAFT = "index.new-"
ASIDE = "index.before-"


@dataclass(frozen=True, slots=True)
class Sources:
    """Where the names of a new index come from. `take_rows` puts those of an index or of a backup
    into it, None if there is no index; `journal` is None if what it says is not wanted. A backup,
    and what counts as one, may be of long before what is in the packs."""

    take_rows: Callable[[Index], Transplanted] | None
    journal: JournalReading | None
    is_backup: bool = False


def rebuild_local(root: str, *, progress: Progress | None = None) -> RebuildReport:
    """Make the index of the store in the folder anew, with all names that can be read, and
    castore.json if it is lost. Raises StoreLocked while anybody has the store open; IndexCorrupt if
    none of its names can be read, so that only a backup helps; UnsupportedFormat if a later castore
    put one, with nothing changed; StoreFull, StoreIOError."""
    with typed_errors(root):
        return _rebuild(root, progress)


def _rebuild(root: str, progress: Progress | None) -> RebuildReport:
    if not os.path.isdir(root):
        raise StoreNotFound(errno.ENOENT, f"there is no store at {root}: check the path")
    found = find_config(root)
    if found is None:
        raise StoreNotFound(errno.ENOENT, f"there is no store at {root}: check the path")
    raw_config, config = found
    with alone(root):
        last, is_old = _last_index(root)
        journal = read_journal(root)  # not before: who had the store open may have put more
        there = has_index(last)
        if not there and not journal.is_there:
            raise IndexCorrupt(
                f"the index of the store {root} is gone, and it has no journal: restore it from a "
                "backup (castore restore)"
            )
        # Without a journal it is the index that says of which page its names are lost.
        there = there and (_has_names(last) or not journal.is_there)
        take_rows = partial(transplant_file, last) if there else None
        sources = Sources(take_rows, journal, is_old)
        report = replace_index(root, config, sources, progress)
        put_config(root, raw_config)
    return report


def has_index(folder: str) -> bool:
    """Whether there is anything to be read of one in the folder."""
    try:
        with descriptor(os.path.join(folder, "data.mdb")) as fd:
            return os.fstat(fd).st_size >= INDEX_BYTES_MIN and bool(IndexPages(fd, folder).meta)
    except (FileNotFoundError, IndexCorrupt):
        return False


def _has_names(folder: str) -> bool:
    """Whether the table of names can be found in an index: one page lists all tables."""
    with descriptor(os.path.join(folder, "data.mdb")) as fd:
        return b"names" in IndexPages(fd, folder).tables()


def replace_index(
    root: str, config: StoreConfig, sources: Sources, progress: Progress | None = None
) -> RebuildReport:
    """Put an index in place with the names that the sources have. For who has the store `alone`."""
    for left in glob.glob(os.path.join(glob.escape(root), DRAFT + "*")):
        shutil.rmtree(left)  # a draft of a run that was killed: copies of what is elsewhere
    draft = os.path.join(root, DRAFT + os.urandom(6).hex())
    os.mkdir(draft, 0o700)
    try:
        index = open_index(draft, sync=False)
        try:
            report, anew = _fill_draft(index, root, config, sources, progress)
            index.flush()
        finally:
            index.close()
        report.kept = take_place(root, draft)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
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


def _join(
    index: Index, taken: Transplanted | None, journal: JournalReading, *, is_backup: bool
) -> tuple[bool, int, list[str]]:
    """Put what the journal knows better into the draft; whether all names are there then, how many
    changes of names that took, and what may be missing."""
    lost = [] if taken is None else taken.lost_names
    may_be_missing = [f"names that the journal lacks ({journal.gaps[0]})"] if journal.gaps else []
    place = taken.place if taken is not None else None
    if taken is None or (not is_backup and _is_older(index, taken, journal)):
        if journal.complete:
            clear_names(index)
        replayed = replay(_all(journal), index, index)
        drop_unnamed(index)
        return journal.complete, replayed, may_be_missing
    if is_backup:
        # One that ends before the backup is a copy of then, or lost its end: what it says is old.
        if not journal.is_there or (place is not None and journal.seq < place.seq):
            return False, 0, []
        if journal.complete:
            clear_names(index)
            replayed = replay(_all(journal), index, index)
        else:
            replayed = replay(journal.changes(after=place.seq if place else 0), index, index)
        drop_unnamed(index)
        complete = journal.complete or (place is not None and journal.has_from(place.seq))
        return complete, replayed, [] if complete else may_be_missing
    if taken.whole:
        return True, 0, []
    complete = journal.complete and (place is None or journal.seq >= place.seq)
    replayed = _fill_in(index, journal)
    if complete:
        return True, replayed, []
    return not (lost or taken.lost_segments), replayed, lost


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


def _fill_in(index: Index, journal: JournalReading) -> int:
    """Names and segments that the index lost."""
    if not journal.is_there:
        return 0
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


def _last_number(root: str, journal: JournalReading) -> int:
    """Of the transactions that the store has had, also of those that are given up: who compares
    what is kept of then with what comes from now on goes by their numbers."""
    last = journal.seq if journal.is_there else read_journal(root).seq
    at = glob.escape(root)
    for folder in [
        *glob.glob(os.path.join(at, "index")),
        *glob.glob(os.path.join(at, ASIDE + "*")),
    ]:
        with contextlib.suppress(FormatError):
            row = _meta_row(folder, PLACE)
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


# ---------------------------------------------------------------- castore.json


def find_config(root: str) -> tuple[bytes, StoreConfig] | None:
    """castore.json, and what it says; where it is lost or damaged, from what has a copy of it."""
    with contextlib.suppress(FormatError, UnsupportedFormat):
        config = read_config(root)
        if config is not None:
            with open(os.path.join(root, CONFIG), "rb") as file:
                return file.read(1 << 17), config
    for text in read_journal(root).configs:
        with contextlib.suppress(FormatError, UnsupportedFormat):
            raw = text.encode()
            return raw, parse_config(raw, root)
    return _config_of_index(root)


def repair_config(root: str) -> str:
    """Make castore.json again if it is lost or damaged; what was done, "" for nothing. Raises
    ConfigLost where neither the journal nor the index says what it was; StoreLocked while anybody
    has the store open; UnsupportedFormat, StoreFull, StoreIOError."""
    with typed_errors(root):
        try:
            config_in_place(root)
            return ""
        except ConfigLost as lost:
            with alone(root):
                found = find_config(root)
                if found is None:
                    raise lost
                put_config(root, found[0])
    return "castore.json was lost, and is made again from what the journal or the index says"


def _config_of_index(root: str) -> tuple[bytes, StoreConfig] | None:
    raw = _meta_row(os.path.join(root, "index"), meta.CONFIG)
    with contextlib.suppress(FormatError, UnsupportedFormat):
        return None if raw is None else (raw, parse_config(raw, root))
    return None


def _meta_row(folder: str, key: bytes) -> bytes | None:
    """Of the index in the folder, which may be damaged, or none."""
    lost = (FormatError, UnsupportedFormat, IndexCorrupt, FileNotFoundError)
    with contextlib.suppress(*lost), descriptor(os.path.join(folder, "data.mdb")) as fd:
        pages = IndexPages(fd, folder)
        table = pages.tables().get(b"meta")
        return dict(pages.rows(table)).get(key) if table else None
    return None


def put_config(root: str, raw: bytes) -> None:
    """castore.json, where the folder has none that is the same; a damaged one is kept aside."""
    path = os.path.join(root, CONFIG)
    with contextlib.suppress(FileNotFoundError):
        with open(path, "rb") as file:
            found = file.read(1 << 17)
        if found == raw:
            return
        os.rename(path, f"{path}.before-{os.urandom(3).hex()}")
    _put_in_place(root, path, raw)


def rewrite_config(root: str) -> list[str]:
    """Write castore.json as castore does, where it says the same in other bytes; what was done. The
    store may be in use: at no moment there is none."""
    path = os.path.join(root, CONFIG)
    with open(path, "rb") as file:
        found = file.read(1 << 17)
    anew = config_anew(found, parse_config(found, root))
    if anew is None:
        return []
    kept = f"{path}.before-{os.urandom(3).hex()}"
    write_new(kept, found)
    _put_in_place(root, path, anew)
    return [f"castore.json is written anew, as castore does; the old one is {kept}"]


def _put_in_place(root: str, path: str, raw: bytes) -> None:
    draft = f"{path}.{os.urandom(8).hex()}"
    write_new(draft, raw)
    index = _status_at(os.path.join(root, "index/data.mdb"))
    if index is not None:
        follow(draft, index)
    os.rename(draft, path)
    sync_folder(root)


# ---------------------------------------------------------------- taking its place


def take_place(root: str, draft: str) -> str:
    """The draft becomes the index; where the old one is then. Where the second of the two renames
    fails, as on a full disk, the first is taken back. Who is killed between them leaves a store
    that says that its index is gone, and another rebuild or restore goes on from there."""
    path = os.path.join(root, "index")
    _share(draft, path)
    sync_folder(draft)
    now = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    kept = os.path.join(root, f"{ASIDE}{now}-{os.urandom(3).hex()}")
    try:
        os.rename(path, kept)
    except FileNotFoundError:
        kept = ""
    try:
        os.rename(draft, path)
    except BaseException:
        if kept:
            os.rename(kept, path)
        raise
    sync_folder(root)
    return kept


def _share(draft: str, index: str) -> None:
    """The draft is for those whom the index was for that it takes the place of: others who share
    the store could read nothing of it any more. Where that is gone, for those whom castore.json is
    for; to write to if they may write to the store."""
    root = os.path.dirname(index)
    data, config = (
        _status_at(each) for each in (os.path.join(index, "data.mdb"), os.path.join(root, CONFIG))
    )
    for made in (draft, *glob.glob(os.path.join(glob.escape(draft), "*.mdb"))):
        like = _status_at(index) if made == draft else data
        if like is not None:
            follow(made, like)
        elif config is not None and config.st_mode & 0o044:
            with descriptor(made) as fd:
                adopt(fd, root, as_lock=True)
        elif os.geteuid() == 0:
            store = os.stat(root)
            os.chown(made, store.st_uid, store.st_gid)


def _status_at(path: str) -> os.stat_result | None:
    """None where nothing is. Raises OSError."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        return os.stat(path)
    return None


def _last_index(root: str) -> tuple[str, bool]:
    """The folder of the index, or of the last one that there was; whether it may be of weeks ago.

    If the last rebuild was killed between its two renames, the index is where the first put it, and
    its draft is there as well: it is put back. Without one, what was kept aside is older than the
    index that took its place, and is lost."""
    path = os.path.join(root, "index")
    kept = glob.glob(os.path.join(glob.escape(root), ASIDE + "*"))
    if not kept or os.path.exists(path):
        return path, False
    if not glob.glob(os.path.join(glob.escape(root), DRAFT + "*")):
        return max(kept), True
    os.rename(max(kept), path)
    sync_folder(root)
    return path, False
