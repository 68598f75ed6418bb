"""Objects to plain files: several at a time, and what is the same already is left as it is."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from itertools import chain

from castore.errors import (
    CastoreError,
    ChunkCorrupt,
    FormatError,
    IndexCorrupt,
    NameNotFound,
    PackMissing,
)
from castore.model import ObjectInfo, Progress, as_prefix, sort_key
from castore.stream.fileputs import NO_MORE_FILES
from castore.system.fileio import of_file
from castore.system.outfolder import FILE_BITS, InTheWay, OutFolder, replacing, status_in
from castore.transfer.outcomes import Objects, Outcome, Shared, ahead

SAME_TIME_NS = 1000  # file systems round
NO_MORE_WRITES = NO_MORE_FILES | {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS}
EXPORTS_MAX = 16  # at once; each waits for a server, or for the threads that decode


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
    time; `threads` are those that decode. With `keep_time` a file has its object's time; with
    `skip_same` those of the same size, mode, time and content are left as they are. With
    `past_damage` an object of which the index lacks something is left out, and the others go on.

    Raises IndexCorrupt without that; NameNotFound if there is nothing; OSError for a folder that
    can't be written to.
    """
    below = as_prefix(prefix)
    found = _objects(store, below)
    first = next(found, None)
    if first is None and below:
        raise NameNotFound(below)  # before there is a folder for nothing
    shared = Shared(progress)
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
                        info,
                        out,
                        name[len(below) :],
                        keep_time=keep_time,
                        skip_same=skip_same,
                        progress=counted,
                    )
                except IndexCorrupt as error:
                    if not past_damage:
                        raise
                    return Outcome(name, reason=f"it is damaged: {error}", fault="damaged")

        entries = chain([] if first is None else [first], found)
        yield from ahead(export, entries, min(2 * threads, EXPORTS_MAX), shared.stop)
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
    listed: ObjectInfo | None,
    out: OutFolder,
    inner: str,
    *,
    keep_time: bool,
    skip_same: bool,
    progress: Progress,
) -> Outcome:
    try:
        *folders, leaf = out.claim(inner)
        with out.opened(folders) as folder:
            status = status_in(folder, leaf)
            if status is not None and stat.S_ISDIR(status.st_mode):
                raise InTheWay(f"{os.path.join(out.path, inner)} is a folder")
            if skip_same and listed and _is_same(store, listed, status, folder, leaf):
                return Outcome(name, listed, same=True)
            # One version of it, which may be a newer one than was listed; a symlink in the file's
            # place is replaced, and not followed.
            with replacing(leaf, folder=folder) as draft:
                info = store.get_into(
                    name,
                    draft.fd,
                    progress=progress,
                    listed=listed,
                )
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
