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

Parts = tuple[str, ...]
# The archive's folders, each with (mode, mtime in ns), or None where it only follows from a name.
Folders = dict[Parts, tuple[int, int] | None]

IMPLIED_FOLDER_MODE = 0o755
_OPEN_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class Merge:
    """From `source`, which is ours alone, into `target`. Call `look`, then `move`."""

    def __init__(self, source: str, target: str, folders: Folders) -> None:
        self._folders = folders
        self._present: set[Parts] = set()  # folders that were in the target before
        self._source_fd = os.open(source, _OPEN_FOLDER)
        try:
            self._target_fd = os.open(target, _OPEN_FOLDER)
        except BaseException:
            os.close(self._source_fd)
            raise

    def __enter__(self) -> Merge:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._source_fd)
        os.close(self._target_fd)

    def look(self) -> None:
        """Raises CacheRefused if something in the target is in the way; changes nothing."""
        self._look(self._source_fd, self._target_fd, ())

    def move(self) -> None:
        """Put everything in its place. Files replace files and links; folders that are there
        stay as they are, others get their mode and time."""
        self._move(self._source_fd, self._target_fd, ())
        for parts in sorted(self._folders, key=len, reverse=True):
            if parts not in self._present:
                self._finish(parts, self._folders[parts])

    def _look(self, source_fd: int, target_fd: int, above: Parts) -> None:
        for name in os.listdir(source_fd):
            try:
                there = os.stat(name, dir_fd=target_fd, follow_symlinks=False)
            except FileNotFoundError:
                continue
            parts = (*above, name)
            if parts not in self._folders:
                if stat.S_ISDIR(there.st_mode):
                    raise _in_the_way(parts, "a folder is in the place of a file")
            elif stat.S_ISLNK(there.st_mode):
                raise _in_the_way(parts, "a symbolic link is in the place of a folder")
            elif not stat.S_ISDIR(there.st_mode):
                raise _in_the_way(parts, "a file is in the place of a folder")
            else:
                self._present.add(parts)
                with _below(source_fd, name) as source, _below(target_fd, name) as target:
                    self._look(source, target, parts)

    def _move(self, source_fd: int, target_fd: int, above: Parts) -> None:
        for name in os.listdir(source_fd):
            parts = (*above, name)
            if parts not in self._folders:
                _rename(parts, source_fd, target_fd)
                continue
            if parts not in self._present:
                try:
                    _rename(parts, source_fd, target_fd)
                    continue
                except OSError:  # someone else restores here at the same time, perhaps
                    there = os.stat(name, dir_fd=target_fd, follow_symlinks=False)
                    if not stat.S_ISDIR(there.st_mode):
                        raise
            with _below(source_fd, name) as source, _below(target_fd, name) as target:
                self._move(source, target, parts)

    def _finish(self, parts: Parts, attributes: tuple[int, int] | None) -> None:
        fd = os.dup(self._target_fd)
        try:
            for part in parts:
                fd, above = os.open(part, _OPEN_FOLDER | os.O_NOFOLLOW, dir_fd=fd), fd
                os.close(above)
            if attributes is None:
                os.fchmod(fd, IMPLIED_FOLDER_MODE)
            else:
                mode, mtime_ns = attributes
                os.fchmod(fd, mode)
                os.utime(fd, ns=(mtime_ns, mtime_ns))
        finally:
            os.close(fd)


def _rename(parts: Parts, source_fd: int, target_fd: int) -> None:
    try:
        os.rename(parts[-1], parts[-1], src_dir_fd=source_fd, dst_dir_fd=target_fd)
    except OSError as error:
        error.filename, error.filename2 = "/".join(parts), None
        raise


@contextmanager
def _below(folder_fd: int, name: str) -> Iterator[int]:
    fd = os.open(name, _OPEN_FOLDER | os.O_NOFOLLOW, dir_fd=folder_fd)
    try:
        yield fd
    finally:
        os.close(fd)


def _in_the_way(parts: Parts, why: str) -> CacheRefused:
    return CacheRefused(f"{'/'.join(parts)!r} can't be restored: {why}")
