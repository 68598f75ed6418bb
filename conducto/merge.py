"""Moving an unpacked archive into a folder that may already hold things.

Every step goes down one component at a time from an open folder, without following links: what
is swapped in meanwhile can make it fail, never leave the folder.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from conducto.errors import CacheRefused
from conducto.staging import entered

IMPLIED_FOLDER_MODE = 0o755


class Folder:
    """A folder of the archive: its (mode, mtime in ns), or None where it only follows from a name;
    the folders in it; and whether it was in the target before."""

    __slots__ = ("attributes", "inside", "was_there")

    def __init__(self) -> None:
        self.attributes: tuple[int, int] | None = None
        self.inside: dict[str, Folder] = {}
        self.was_there = False


class Merge:
    """From `source_fd`, which is ours alone, into `target_fd`. Call `scan`, then `move`."""

    def __init__(self, source_fd: int, target_fd: int, root: Folder) -> None:
        self._source_fd = source_fd
        self._target_fd = target_fd
        self._root = root

    def scan(self) -> None:
        """Raises CacheRefused if something in the target is in the way; changes nothing."""
        _look(self._source_fd, self._target_fd, self._root, "")

    def move(self) -> None:
        """Put everything in its place. Files and links replace files and links; folders that are
        there stay as they are, others get their mode and time."""
        _move(self._source_fd, self._target_fd, self._root, "")
        _finish(self._target_fd, self._root)


def _look(source_fd: int, target_fd: int, folder: Folder, above: str) -> None:
    names = os.listdir(source_fd)
    if names and os.fstat(source_fd).st_dev != os.fstat(target_fd).st_dev:
        # Nothing can be renamed into it: say so before half of the archive is in its place.
        raise _in_the_way(above.rstrip("/"), "another file system is mounted there")
    for name in names:
        try:
            there = os.stat(name, dir_fd=target_fd, follow_symlinks=False)
        except FileNotFoundError:
            continue
        path, inner = above + name, folder.inside.get(name)
        if inner is None:
            if stat.S_ISDIR(there.st_mode):
                raise _in_the_way(path, "a folder is in the place of a file")
        elif stat.S_ISLNK(there.st_mode):
            raise _in_the_way(path, "a symbolic link is in the place of a folder")
        elif not stat.S_ISDIR(there.st_mode):
            raise _in_the_way(path, "a file is in the place of a folder")
        else:
            inner.was_there = True
            with entered(name, source_fd) as source, entered(name, target_fd) as target:
                _look(source, target, inner, path + "/")


def _move(source_fd: int, target_fd: int, folder: Folder, above: str) -> None:
    for name in os.listdir(source_fd):
        inner = folder.inside.get(name)
        if inner is None:
            _rename(name, source_fd, target_fd, above)
            continue
        if not inner.was_there:
            try:
                _rename(name, source_fd, target_fd, above)
                continue
            except OSError:  # someone else restores here at the same time, perhaps
                if not _is_folder(name, target_fd):
                    raise
        with (
            entered(name, source_fd) as source,
            entered(name, target_fd) as target,
            _writable(target),
        ):
            _move(source, target, inner, f"{above}{name}/")


@contextmanager
def _writable(folder_fd: int) -> Iterator[None]:
    """What is ours can be written to meanwhile: of a folder that was restored without that bit, the
    content can be restored once more."""
    info = os.fstat(folder_fd)
    mode = stat.S_IMODE(info.st_mode)
    if mode & stat.S_IWUSR or info.st_uid != os.geteuid():
        yield
        return
    os.fchmod(folder_fd, mode | stat.S_IWUSR)
    try:
        yield
    finally:
        os.fchmod(folder_fd, mode)


def _is_folder(name: str, folder_fd: int) -> bool:
    try:
        return stat.S_ISDIR(os.stat(name, dir_fd=folder_fd, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return False


def _finish(target_fd: int, folder: Folder) -> None:
    """The folders' modes and times, of the innermost first: they could keep us from the others."""
    for name, inner in folder.inside.items():
        with entered(name, target_fd) as fd:
            _finish(fd, inner)
            if inner.was_there:
                continue
            mode, mtime_ns = inner.attributes or (IMPLIED_FOLDER_MODE, None)
            os.fchmod(fd, mode)
            if mtime_ns is not None:
                os.utime(fd, ns=(mtime_ns, mtime_ns))


def _rename(name: str, source_fd: int, target_fd: int, above: str) -> None:
    try:
        os.rename(name, name, src_dir_fd=source_fd, dst_dir_fd=target_fd)
    except OSError as error:
        error.filename, error.filename2 = above + name, None
        raise


def _in_the_way(path: str, why: str) -> CacheRefused:
    return CacheRefused(f"{path!r} can't be restored: {why}")
