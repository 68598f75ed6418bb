"""Objects to plain files and back: nobody is locked in.

Both ways skip what is the same already (the size, the time and the mode of file and object agree),
so that one that was interrupted is gone on with by repeating it. A file keeps its mode and its time
through both."""

from __future__ import annotations

import os
import re
import stat
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar

from castore.errors import (
    CastoreError,
    ChunkCorrupt,
    FormatError,
    InvalidName,
    NameNotFound,
    PackMissing,
)
from castore.fileio import of_file
from castore.folders import FoundFile, walk
from castore.model import ObjectInfo, Progress, as_prefix, encode_name
from castore.transaction import Transaction
from castore.workers import Workers

if TYPE_CHECKING:
    from concurrent.futures import Future

BATCH_FILES_MAX = 500
BATCH_BYTES_MAX = 256 << 20
THREADS_MAX = 4  # each may hold the buffers of a put
SAME_TIME_NS = 1000  # a float of seconds is no finer
DRAFT = re.compile(r"\.castore-[0-9a-f]{16}")
DAMAGE = (ChunkCorrupt, FormatError, PackMissing)

T = TypeVar("T")
R = TypeVar("R")


class Objects(Protocol):
    """What is asked of a Store."""

    path: str

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]: ...

    def info(self, name: str) -> ObjectInfo: ...

    def get(self, name: str, file: str, *, progress: Progress | None = None) -> ObjectInfo: ...

    def transaction(self) -> Transaction: ...


class Source(NamedTuple):
    """A file and the name it goes under."""

    path: str
    name: str
    size: int
    is_regular: bool = True


class TransferReport:
    """Files that were written (or put), and those that were the same already; sizes in bytes.
    `left_out` says for each that was not: its name or path, and why; `damaged` is how many of these
    are objects that can't be read, `refused` how many are files whose name no object can have."""

    def __init__(self) -> None:
        self.files = 0
        self.bytes = 0
        self.same_files = 0
        self.same_bytes = 0
        self.damaged = 0
        self.refused = 0
        self.left_out: list[tuple[str, str]] = []


# ---------------------------------------------------------------- objects to files


def export_folder(
    store: Objects, prefix: str, folder: str, *, threads: int, progress: Progress | None = None
) -> TransferReport:
    """Write every object below `prefix` + "/" (all for "") to a file below the folder, several at a
    time. A name that can't be a path in it, or that leads through a symlink, is left out.

    Raises NameNotFound if there is nothing; OSError for a file that can't be written.
    """
    below = as_prefix(prefix)
    if progress is not None:
        progress.set_size(sum(info.size for info in store.list(below)))
    infos = store.list(below)
    first = next(infos, None)
    if first is None and below:
        raise NameNotFound(below)  # before there is a folder for nothing
    report = TransferReport()
    os.makedirs(folder, exist_ok=True)

    def export(info: ObjectInfo) -> tuple[ObjectInfo, str]:
        return info, _export(store, info, folder, info.name[len(below) :], progress)

    listed = chain([] if first is None else [first], infos)
    for info, what in _ahead(export, listed, min(threads, THREADS_MAX)):
        if what == "same":
            report.same_files += 1
            report.same_bytes += info.size
        elif what:
            report.left_out.append((info.name, what))
            report.damaged += what.startswith(_DAMAGED)
        else:
            report.files += 1
            report.bytes += info.size
    return report


_DAMAGED = "it is damaged: "


def _export(
    store: Objects, info: ObjectInfo, folder: str, inner: str, progress: Progress | None
) -> str:
    """Empty if the file was written, "same", or why it was left out."""
    parts = inner.split("/")
    if "" in parts:
        return "it has an empty part, which a file's path can't have"
    fault = _make_folders(folder, parts[:-1])
    if fault:
        return fault
    path = os.path.join(folder, *parts)
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        pass
    else:
        if stat.S_ISDIR(status.st_mode):
            return f"{path} is a folder"
        if stat.S_ISREG(status.st_mode) and _is_same(info, status):
            if progress is not None:
                progress.relative_update(info.size)
            return "same"
    draft = os.path.join(os.path.dirname(path), f".castore-{os.urandom(8).hex()}")
    try:
        # One version of it, which may be a newer one than was listed; a symlink is replaced, and
        # not followed.
        written = store.get(info.name, draft, progress=progress)
        os.utime(draft, ns=(_ns(written.mtime), _ns(written.mtime)))
        os.replace(draft, path)
    except NameNotFound:
        return "it was deleted meanwhile"
    except (IsADirectoryError, NotADirectoryError):  # by a name that is exported at the same time
        return f"{path} can't be a file and a folder"
    except DAMAGE as error:
        return f"{_DAMAGED}{error}"
    except OSError as error:
        if isinstance(error, CastoreError):
            raise
        raise of_file(error, path) from error  # and not of the draft
    finally:
        if os.path.lexists(draft):
            os.unlink(draft)
    return ""


def _make_folders(folder: str, parts: list[str]) -> str:
    """Make the folders on the way to a file, and say what is in the way: a symlink there could lead
    out of the folder, or to what another name is."""
    path = folder
    for part in parts:
        path = os.path.join(path, part)
        try:
            os.mkdir(path)
        except NotADirectoryError:
            return f"{os.path.dirname(path)} is a file"
        except FileExistsError:
            status = os.lstat(path)
            if stat.S_ISLNK(status.st_mode):
                return f"{path} is a symlink"
            if not stat.S_ISDIR(status.st_mode):
                return f"{path} is a file"
    return ""


# ---------------------------------------------------------------- files to objects


def import_folder(
    store: Objects, folder: str, prefix: str, *, threads: int, progress: Progress | None = None
) -> TransferReport:
    """Put every regular file below the folder as `prefix` + "/" and its path in it, in batches that
    are each published whole, several at a time. What is neither a file nor a symlink to one is left
    out. An object's time is its file's.

    Raises FileNotFoundError, NotADirectoryError; OSError for a file that can't be read.
    """
    below = as_prefix(prefix)
    report = TransferReport()
    if not os.path.isdir(folder):
        os.listdir(folder)  # says which error it is
    if progress is not None:
        found = walk(folder, leave_out=store.path)
        progress.set_size(sum(each.size for each in found if isinstance(each, FoundFile)))

    def put(batch: list[Source]) -> tuple[list[Source], list[Source]]:
        return _import(store, batch, progress)

    sources = _sources(folder, below, store.path, report)
    for new, same in _ahead(put, batches(sources), min(threads, THREADS_MAX)):
        report.files += len(new)
        report.bytes += sum(source.size for source in new)
        report.same_files += len(same)
        report.same_bytes += sum(source.size for source in same)
    return report


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


def _sources(folder: str, prefix: str, store_path: str, report: TransferReport) -> Iterator[Source]:
    for found in walk(folder, leave_out=store_path):
        if not isinstance(found, FoundFile):
            report.left_out.append((found.path, found.reason))
            continue
        if DRAFT.fullmatch(os.path.basename(found.path)):
            report.left_out.append((found.path, "it is what an interrupted get left"))
            continue
        try:
            encode_name(prefix + found.inner)
        except InvalidName as error:
            report.left_out.append((found.path, str(error)))
            report.refused += 1
            continue
        yield Source(found.path, prefix + found.inner, found.size)


def _import(
    store: Objects, batch: list[Source], progress: Progress | None
) -> tuple[list[Source], list[Source]]:
    """(put, the same already)."""
    new, same = [], []
    with store.transaction() as transaction:
        for source in batch:
            status = os.stat(source.path)
            try:
                is_same = _is_same(store.info(source.name), status)
            except NameNotFound:
                is_same = False
            if is_same:
                same.append(source)
                if progress is not None:
                    progress.relative_update(source.size)
            else:
                transaction.put(
                    source.name, source.path, progress=progress, mtime_ns=status.st_mtime_ns
                )
                new.append(source)
    return new, same


# ---------------------------------------------------------------- both


def _is_same(info: ObjectInfo, status: os.stat_result) -> bool:
    return (
        info.size == status.st_size
        and info.mode == stat.S_IMODE(status.st_mode)
        and abs(_ns(info.mtime) - status.st_mtime_ns) < SAME_TIME_NS
    )


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)


def _ahead(work: Callable[[T], R], items: Iterable[T], threads: int) -> Iterator[R]:
    """`work` on each, some at once; in order. The first error ends it."""
    workers = Workers(threads)  # not the store's, on which what `work` waits for is done
    running: deque[Future[R]] = deque()
    try:
        for item in items:
            running.append(workers.submit(work, item))
            if len(running) > 2 * threads:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
    finally:
        for future in running:
            future.cancel()
        workers.close()
