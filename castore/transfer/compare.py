"""Which files are the same as the objects that they are to be written from: of many by few calls.

Threads that make a system call for each of many small files wait for each other's Python at every
call, so small files of one folder are read by one call, on one thread.
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from itertools import groupby, islice
from typing import NamedTuple, TypeAlias

from castore.model import ObjectInfo
from castore.stream.small import SMALL_BYTES_MAX
from castore.stream.sourcefile import read_together
from castore.system.outfolder import FILE_BITS, InTheWay, OutFolder, status_if_new, status_in
from castore.system.statuses import Status
from castore.transfer.outcomes import Objects, ahead

SAME_TIME_NS = 1000  # file systems round
COARSEST_TIME_NS = 2 * 10**9  # of FAT; sshfs and others have whole seconds
SAME_TOGETHER = 64  # files of a folder

Listed: TypeAlias = tuple[str, ObjectInfo | None]  # a name, and what was listed of it


class Entry(NamedTuple):
    """One of them, and whether what it goes to is the same already, if that is known."""

    name: str
    info: ObjectInfo | None
    is_same: bool | None


class Comparison(NamedTuple):
    """Of the objects whose names begin with `below` with the files of a folder."""

    store: Objects
    below: str
    out: OutFolder

    def compared(
        self, listed: Iterable[Listed], stop: threading.Event
    ) -> Generator[Entry, None, None]:
        """Each with whether its file is the same, where that can be told of many by one call.

        By a thread of its own: an interrupt, which strikes in the main one, would leave open what
        it opened, and what it made to try."""
        for entries in ahead(self._entries, self._runs(listed), 1, stop):
            yield from entries

    def is_same(
        self, info: ObjectInfo, status: os.stat_result | None, folder: int, leaf: str
    ) -> bool:
        """Of one by itself, and of what is in its file's place in the open folder. Size, mode and
        time are looked at first, and then the content: they are the same, too, where another
        version has the time of this one."""
        if status is None or not _looks_same(info, status, folder):
            return False
        try:
            fd = os.open(leaf, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
        except OSError:  # it can't be read, but may be replaced
            return False
        try:
            return self.store.has_content(info, fd)
        finally:
            os.close(fd)

    def _runs(self, listed: Iterable[Listed]) -> Iterator[list[Listed]]:
        """In their order, so many of one folder at most."""
        for _, run in groupby(listed, lambda each: each[0].rpartition("/")[0]):
            while some := list(islice(run, SAME_TOGETHER)):
                yield some

    def _entries(self, listed: Sequence[Listed]) -> list[Entry]:
        same = self._same(listed) if len(listed) > 1 else {}
        return [Entry(name, info, same.get(name)) for name, info in listed]

    def _same(self, listed: Sequence[Listed]) -> Mapping[str, bool]:
        """By name, as far as it can be told by one call, all of one folder; of none if there is no
        file for the first, as there is most likely for none then."""
        below = len(self.below)
        try:
            *folders, first = self.out.claim(listed[0][0][below:])
            # Not made yet: what comes before may be a file of this name.
            with self.out.opened(folders, make=False) as folder:
                if status_in(folder, first) is None:
                    return {}
                files = [
                    (info, self.out.claim(name[below:])[-1])
                    for name, info in listed
                    if info is not None and info.size <= SMALL_BYTES_MAX
                ]
                return _same_files(self.store, folder, files)
        except (InTheWay, OSError):
            return {}


def _same_files(
    store: Objects, folder: int, files: Sequence[tuple[ObjectInfo, str]]
) -> dict[str, bool]:
    """Whether each of these small objects is the same as the file of its leaf in the open folder.
    What can't be told of many by one call is for who looks at one by itself."""
    read = read_together([leaf for _, leaf in files], SMALL_BYTES_MAX, folder=folder)
    return {
        info.name: _looks_same(info, status, folder) and store.has_content(info, raw)
        for (info, _), (raw, status) in [
            (file, found) for file, found in zip(files, read, strict=True) if found is not None
        ]
    }


def _looks_same(info: ObjectInfo, status: Status, folder: int) -> bool:
    """Whether it is a file of the object's size, and its mode and time are the object's, or what
    its file system makes of them: many have coarser times, and those of USB sticks no modes."""
    if not stat.S_ISREG(status.st_mode) or status.st_size != info.size:
        return False
    mode = stat.S_IMODE(status.st_mode)
    off_ns = abs(status.st_mtime_ns - info.mtime_ns)
    if mode == info.mode & FILE_BITS and off_ns < SAME_TIME_NS:
        return True
    if off_ns >= COARSEST_TIME_NS:
        return False
    new = status_if_new(folder, info.mode, info.mtime_ns)
    return new is not None and (stat.S_IMODE(new.st_mode), new.st_mtime_ns) == (
        mode,
        status.st_mtime_ns,
    )
