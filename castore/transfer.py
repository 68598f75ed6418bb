"""Objects to plain files and back: nobody is locked in.

Both ways go entry by entry: one that can't be written, read or named is left out and named, and the
others go on. Only what concerns all of them ends it: a full disk, no more descriptors, the store
itself. Repeating one that was interrupted goes on with it, as what is the same is skipped."""

from __future__ import annotations

import errno
import os
import re
import stat
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Literal, NamedTuple, Protocol, TypeVar

from castore.errors import (
    CastoreError,
    ChunkCorrupt,
    FormatError,
    IndexCorrupt,
    InvalidName,
    NameExists,
    NameNotFound,
    NotAStore,
    PackMissing,
    SourceChanged,
    TimeOutOfRange,
)
from castore.model import ObjectInfo, Progress, as_prefix, encode_name, sort_key
from castore.system.fileio import of_file
from castore.system.outfolder import FILE_BITS, InTheWay, OutFolder, replacing, status_in
from castore.system.walk import FoundFile, reason, walk
from castore.system.workers import Workers
from castore.transaction import Transaction

BATCH_FILES_MAX = 500
BATCH_BYTES_MAX = 256 << 20
THREADS_MAX = 4  # each may hold the buffers of a put
SAME_TIME_NS = 1000  # file systems round
DRAFT = re.compile(r"\.castore-[0-9a-f]{16}")
NO_MORE_FILES = {
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
}  # of this process or system, for any file
NO_MORE_WRITES = NO_MORE_FILES | {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS}

T = TypeVar("T")
R = TypeVar("R")
Fault = Literal["", "on purpose", "name", "damaged", "missing", "other"]


class Objects(Protocol):
    """What is asked of a Store."""

    path: str

    def names(self, prefix: str = "") -> Iterator[str]: ...

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]: ...

    def info(self, name: str) -> ObjectInfo: ...

    def get_into(self, name: str, fd: int, *, progress: Progress | None = None) -> ObjectInfo: ...

    def has_content(self, info: ObjectInfo, fd: int) -> bool: ...

    def transaction(self) -> Transaction: ...


class Source(NamedTuple):
    """A file and the name it goes under."""

    path: str
    name: str
    size: int
    is_regular: bool = True


class Outcome(NamedTuple):
    """What became of a file or of an object: `what` is its path or its name. `info` is that of the
    object that was written or put, or is the same already; without one it was left out, for the
    reason given."""

    what: str
    info: ObjectInfo | None = None
    same: bool = False
    reason: str = ""
    fault: Fault = ""


class TransferReport:
    """Files that were written (or put), and those that were the same already; sizes in bytes.
    `left_out` says for each that was not: its name or path, and why. `failures` is how many of
    these are missing from the result (all but what nobody wants in it: the store itself, the
    remains of an interrupted get). Of these, `damaged` and `missing` are objects whose data is
    damaged or gone; `refused` are files whose name no object can have."""

    def __init__(self) -> None:
        self.files = 0
        self.bytes = 0
        self.same_files = 0
        self.same_bytes = 0
        self.failures = 0
        self.damaged = 0
        self.missing = 0
        self.refused = 0
        self.left_out: list[tuple[str, str]] = []

    def add(self, outcome: Outcome) -> None:
        info, fault = outcome.info, outcome.fault
        if info is None:
            self.left_out.append((outcome.what, outcome.reason))
            self.failures += fault != "on purpose"
            self.damaged += fault == "damaged"
            self.missing += fault == "missing"
            self.refused += fault == "name"
        elif outcome.same:
            self.same_files += 1
            self.same_bytes += info.size
        else:
            self.files += 1
            self.bytes += info.size


def report_of(outcomes: Iterable[Outcome]) -> TransferReport:
    report = TransferReport()
    for outcome in outcomes:
        report.add(outcome)
    return report


# ---------------------------------------------------------------- objects to files


def export_folder(
    store: Objects,
    prefix: str,
    folder: str,
    *,
    keep_time: bool,
    skip_same: bool,
    past_damage: bool = False,
    threads: int,
    progress: Progress | None,
) -> Iterator[Outcome]:
    """Write every object below `prefix` + "/" (all for "") to a file below the folder, several at a
    time. With `keep_time` a file has its object's time; with `skip_same` those of the same size,
    mode, time and content are left as they are. With `past_damage` an object of which the index
    lacks something is left out, and the others go on.

    Raises IndexCorrupt without that; NameNotFound if there is nothing; OSError for a folder that
    can't be written to.
    """
    below = as_prefix(prefix)
    found = _objects(store, below)
    first = next(found, None)
    if first is None and below:
        raise NameNotFound(below)  # before there is a folder for nothing
    shared = _Shared(progress)
    if progress is not None:
        shared.fix_size(_listed_bytes(store, below))
    out = OutFolder(folder)
    try:

        def export(entry: tuple[str, ObjectInfo | None]) -> Outcome:
            name, info = entry
            with shared.entry(info.size if info else 0) as counted:
                try:
                    return _export(
                        store,
                        name,
                        info if skip_same else None,
                        out,
                        name[len(below) :],
                        keep_time=keep_time,
                        progress=counted,
                    )
                except IndexCorrupt as error:
                    if not past_damage:
                        raise
                    return Outcome(name, reason=f"it is damaged: {error}", fault="damaged")

        entries = chain([] if first is None else [first], found)
        yield from _ahead(export, entries, min(threads, THREADS_MAX), shared.stop)
    finally:
        out.close()


def _objects(store: Objects, below: str) -> Iterator[tuple[str, ObjectInfo | None]]:
    """Names and what they map to; without it from where on a listing can't be read."""
    last = b""
    try:
        for info in store.list(below):
            yield info.name, info
            last = sort_key(info.name)
    except FormatError:  # one of them is damaged: the others come one by one
        for name in store.names(below):
            if sort_key(name) > last:
                yield name, None


def _listed_bytes(store: Objects, below: str) -> int:
    return sum(info.size for _, info in _objects(store, below) if info is not None)


def _export(
    store: Objects,
    name: str,
    old: ObjectInfo | None,
    out: OutFolder,
    inner: str,
    *,
    keep_time: bool,
    progress: Progress,
) -> Outcome:
    try:
        *folders, leaf = out.claim(inner)
        with out.opened(folders) as folder:
            status = status_in(folder, leaf)
            if status is not None and stat.S_ISDIR(status.st_mode):
                raise InTheWay(f"{os.path.join(out.path, inner)} is a folder")
            if old is not None and _is_same(store, old, status, folder, leaf):
                return Outcome(name, old, same=True)
            # One version of it, which may be a newer one than was listed; a symlink in the file's
            # place is replaced, and not followed.
            with replacing(leaf, folder=folder) as draft:
                info = store.get_into(name, draft.fd, progress=progress)
                draft.finish(info.mode, info.mtime_ns if keep_time else None)
        return Outcome(name, info)
    except InTheWay as error:
        return Outcome(name, reason=str(error), fault="other")
    except NameNotFound:
        return Outcome(name, reason="it was deleted meanwhile", fault="other")
    except PackMissing as error:
        return Outcome(name, reason=str(error), fault="missing")
    except (ChunkCorrupt, FormatError) as error:
        return Outcome(name, reason=f"it is damaged: {error}", fault="damaged")
    except OSError as error:
        if isinstance(error, CastoreError):
            raise
        path = os.path.join(out.path, inner)
        if isinstance(error, IsADirectoryError):  # of a name that was written at the same time
            return Outcome(name, reason=f"{path} is a folder", fault="other")
        if error.errno in NO_MORE_WRITES:
            raise of_file(error, path) from error  # and not of the draft
        return Outcome(name, reason=f"{path}: {error.strerror}", fault="other")


def _is_same(
    store: Objects, info: ObjectInfo, status: os.stat_result | None, folder: int, leaf: str
) -> bool:
    """Size, mode and time are looked at first, and then the content: they are the same, too, where
    another version has the time of this one."""
    if (
        status is None
        or not stat.S_ISREG(status.st_mode)
        or status.st_size != info.size
        or stat.S_IMODE(status.st_mode) != info.mode & FILE_BITS
        or abs(status.st_mtime_ns - info.mtime_ns) >= SAME_TIME_NS
    ):
        return False
    try:
        fd = os.open(leaf, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    except OSError:  # it can't be read, but may be replaced
        return False
    try:
        return store.has_content(info, fd)
    finally:
        os.close(fd)


# ---------------------------------------------------------------- files to objects


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportOptions:
    """`skip_same` does not read files that are in the state in which they were put; `checksum`
    reads these, too. `keep_time` gives an object its file's time. `if_absent` leaves out what has a
    name that is taken."""

    keep_time: bool = True
    skip_same: bool = True
    checksum: bool = False
    if_absent: bool = False


def import_folder(
    store: Objects,
    folder: str,
    prefix: str,
    options: ImportOptions,
    *,
    threads: int,
    progress: Progress | None,
) -> Iterator[Outcome]:
    """Put every regular file below the folder as `prefix` + "/" and its path in it, in batches that
    are each published whole, several at a time.

    Raises FileNotFoundError, NotADirectoryError.
    """
    if not os.path.isdir(folder):
        os.listdir(folder)  # says which error it is
    shared = _Shared(progress)
    if progress is not None:
        found = walk(folder, leave_out=store.path)
        shared.fix_size(sum(each.size for each in found if isinstance(each, FoundFile)))

    def put(batch: list[Source]) -> list[Outcome]:
        return put_files(store, batch, options, shared)

    left_out: list[Outcome] = []
    sources = _sources(folder, as_prefix(prefix), store.path, left_out)
    for outcomes in _ahead(put, batches(sources), min(threads, THREADS_MAX), shared.stop):
        yield from _drained(left_out)
        yield from outcomes
    yield from _drained(left_out)


def batches(sources: Iterable[Source]) -> Iterator[list[Source]]:
    """`sources` in order, in groups that are each small enough for one transaction."""
    batch: list[Source] = []
    batch_bytes = 0
    for source in sources:
        if batch and (len(batch) >= BATCH_FILES_MAX or batch_bytes + source.size > BATCH_BYTES_MAX):
            yield batch
            batch, batch_bytes = [], 0
        batch.append(source)
        batch_bytes += source.size
    if batch:
        yield batch


def _sources(
    folder: str, prefix: str, store_path: str, left_out: list[Outcome]
) -> Iterator[Source]:
    for found in walk(folder, leave_out=store_path):
        path = found.path
        if not isinstance(found, FoundFile):
            fault: Fault = "on purpose" if found.on_purpose else "other"
            left_out.append(Outcome(path, reason=found.reason, fault=fault))
            continue
        if DRAFT.fullmatch(os.path.basename(path)):
            why = "it is what an interrupted get left"
            left_out.append(Outcome(path, reason=why, fault="on purpose"))
            continue
        try:
            encode_name(prefix + found.inner)
        except InvalidName as error:
            left_out.append(Outcome(path, reason=str(error), fault="name"))
            continue
        yield Source(path, prefix + found.inner, found.size)


def put_files(
    store: Objects, batch: list[Source], options: ImportOptions, shared: _Shared
) -> list[Outcome]:
    """Put these regular files in one commit, all but those that can't be read."""
    outcomes = []
    with store.transaction() as transaction:
        for source in batch:
            with shared.entry(source.size) as progress:
                outcomes.append(_put_file(transaction, source, options, progress))
    return outcomes


def _put_file(
    transaction: Transaction, source: Source, options: ImportOptions, progress: Progress
) -> Outcome:
    path = source.path
    try:
        info, same = transaction.put_file(
            source.name,
            path,
            if_absent=options.if_absent,
            keep_time=options.keep_time,
            skip_same=options.skip_same,
            checksum=options.checksum,
            progress=progress,
        )
        return Outcome(path, info, same)
    except (SourceChanged, NameExists, NotAStore, TimeOutOfRange) as error:
        return Outcome(path, reason=str(error), fault="other")
    except OSError as error:
        # An error of the store's own files is another one's, or a CastoreError.
        if error.filename != path or error.errno in NO_MORE_FILES:
            raise
        return Outcome(path, reason=reason(error), fault="other")


# ---------------------------------------------------------------- both


class _Stopped(Exception):
    """Another entry failed, or the user interrupted: the rest is given up."""


class _Shared:
    """The progress of many entries at once, and the way to stop all of them. An entry counts its
    size in the end, whatever of it was moved."""

    def __init__(self, progress: Progress | None) -> None:
        self.stop = threading.Event()
        self._progress = progress
        self._lock = threading.Lock()

    def fix_size(self, size: int) -> None:
        if self._progress is not None:
            self._progress.set_size(size)

    def entry(self, size: int) -> _Entry:
        return _Entry(self, size)

    def advance(self, done: int) -> None:
        if self._progress is not None and done > 0:
            with self._lock:
                self._progress.relative_update(done)


class _Entry:
    def __init__(self, shared: _Shared, size: int) -> None:
        self._shared = shared
        self._left = size

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._shared.advance(self._left)

    def set_size(self, size: int) -> None:
        pass

    def relative_update(self, inc: int = 1) -> None:
        if self._shared.stop.is_set():
            raise _Stopped
        self._left -= inc
        self._shared.advance(inc)


def _drained(outcomes: list[Outcome]) -> Iterator[Outcome]:
    while outcomes:
        yield outcomes.pop(0)


def _ahead(
    work: Callable[[T], R], items: Iterable[T], threads: int, stop: threading.Event
) -> Iterator[R]:
    """`work` on each, some at once; in order. The first error ends it."""
    workers = Workers(threads)  # not the store's, on which what `work` waits for is done
    try:
        yield from workers.map_ahead(work, items)
    except BaseException:
        stop.set()
        raise
    finally:
        workers.close()
