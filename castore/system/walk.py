"""The regular files below a folder, in a fixed order, in bounded memory."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from castore.system.statuses import Status, lstat_all

LOOKED_AT_ONCE = 512  # entries of a folder


class FoundFile(NamedTuple):
    """A regular file, or a symlink to one."""

    path: str
    inner: str  # its path inside the folder, with '/' between the parts
    size: int


class Skipped(NamedTuple):
    """What is left out, and why. `on_purpose`: nobody misses it."""

    path: str
    reason: str
    on_purpose: bool = False


def walk(folder: str, *, leave_out: str | None = None) -> Iterator[FoundFile | Skipped]:
    """What is below `folder`, sorted by bytes within each folder, hidden files included.

    Symlinks to files count as the file; symlinks to folders are skipped, so that a loop can't
    trap the walk. `leave_out` is a folder to skip: the store, where it lies inside. What can't be
    looked at, or vanishes meanwhile, is skipped. Raises OSError for `folder` itself.
    """
    left_out = _identity(leave_out) if leave_out else None
    # One open listing for each level of the path, not one for the whole tree.
    pending = [_entries(folder, "")]
    while pending:
        found = next(pending[-1], None)
        if found is None:
            pending.pop()
            continue
        path, inner, status = found
        try:
            if isinstance(status, OSError):
                raise status
            if stat.S_ISDIR(status.st_mode):
                # Looked at together with those before it, whatever has come in its place since.
                status = os.lstat(path)
            if not stat.S_ISDIR(status.st_mode):
                yield _classify(path, inner, status)
            elif (status.st_dev, status.st_ino) == left_out:
                yield Skipped(path, "it is the store itself", on_purpose=True)
            else:
                pending.append(_entries(path, inner + "/"))
        except OSError as error:
            yield Skipped(path, reason(error))


def reason(error: OSError) -> str:
    """Why something is left out that the system did not let us have."""
    if isinstance(error, FileNotFoundError):
        return "it vanished meanwhile"
    return f"{error.strerror}"


def describe_kind(mode: int) -> str:
    """What a mode's file type is called."""
    names = {
        stat.S_IFIFO: "a named pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
        stat.S_IFDIR: "a folder",
    }
    return names.get(stat.S_IFMT(mode), "not a regular file")


def _entries(folder: str, inner: str) -> Iterator[tuple[str, str, Status | OSError]]:
    """Raises OSError at once if it can't be listed."""
    return _looked_at(os.path.join(folder, ""), inner, sorted(os.listdir(folder), key=os.fsencode))


def _looked_at(
    folder: str, inner: str, names: Sequence[str]
) -> Iterator[tuple[str, str, Status | OSError]]:
    for first in range(0, len(names), LOOKED_AT_ONCE):
        some = names[first : first + LOOKED_AT_ONCE]
        paths = [folder + name for name in some]
        for name, path, status in zip(some, paths, lstat_all(paths), strict=True):
            yield path, inner + name, status


def _classify(path: str, inner: str, status: Status) -> FoundFile | Skipped:
    if stat.S_ISLNK(status.st_mode):
        try:
            status = os.stat(path)
        except FileNotFoundError:
            return Skipped(path, "it is a symlink to nothing")
        except OSError as error:
            return Skipped(path, f"it is a symlink that leads nowhere ({error.strerror})")
        if stat.S_ISDIR(status.st_mode):
            return Skipped(path, "it is a symlink to a folder")
    if not stat.S_ISREG(status.st_mode):
        return Skipped(path, f"it is {describe_kind(status.st_mode)}")
    return FoundFile(path, inner, status.st_size)


def _identity(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino
