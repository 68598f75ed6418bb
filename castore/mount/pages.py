"""Which version of a file the kernel has pages of.

The kernel knows a file by its path: it keeps its pages, whatever object was read to fill them, and
one size, past which who has it mapped dies of SIGBUS. So the pages of a path are of one version for
as long as files are open through them (`Held`), and nobody writes a file that has pages in use.

Who comes with another version, or to write, is told to look again (ESTALE, upon which the kernel
walks the path once more), while the old file is moved aside: renamed to a path that nobody looks
up, where those who have it open keep it. A writer first waits a moment for readers to end, as most
do. Where all that does not help, what is opened is read past the pages.
"""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from castore.model import ObjectInfo
from castore.mount.callers import Caller
from castore.mount.draft import Attributes
from castore.mount.errnos import fail
from castore.mount.names import RESERVED

ASIDE = f"/{RESERVED}"  # and a number
REMEMBERED_MAX = 10_000  # paths that nobody has open
SOON_S = 0.1  # by when most readers have ended
MOVE_S = 1.0  # how long is waited for what is moved aside


class Version(NamedTuple):
    """What tells one state of an object from another."""

    etag: str
    size: int
    mtime_ns: int


def version_of(info: ObjectInfo) -> Version:
    return Version(info.etag, info.size, info.mtime_ns)


class Held:
    """The pages of one path, through which `count` files are open.

    `is_used`: something was read through them, so the kernel has dropped what it had before.
    `aside`: where it is moved to, once that has begun; `moved` is set when that is over.
    """

    def __init__(self, name: str, info: ObjectInfo) -> None:
        self.name = name
        self.count = 0
        self.aside: str | None = None
        self.moved = threading.Event()
        self.set(info)

    @property
    def is_moving(self) -> bool:
        return self.aside is not None and not self.moved.is_set()

    def set(self, info: ObjectInfo) -> None:
        self.is_used = False
        self.version = version_of(info)
        self.attributes = Attributes(False, info.mode, info.size, info.mtime_ns)


class _Told(NamedTuple):
    """Who looks again at what, until when, once what is moved."""

    name: str
    until: float
    moved: threading.Event | None


class Pages:
    """For several threads at once. `path_of`: the path of a name.

    `set_aside` has the kernel rename the file at one path to another, without waiting for it, and
    calls what it is given when that is over; None where there is no kernel.
    """

    def __init__(self, path_of: Callable[[str], str]) -> None:
        self.set_aside: Callable[[str, str, Callable[[], None]], None] | None = None
        self._path_of = path_of
        self._changed = threading.Condition()
        self._held: dict[str, Held] = {}
        self._aside: dict[str, Held] = {}
        self._asides = 0
        self._told: dict[int, _Told] = {}  # by thread
        self._kinds: dict[str, bool] = {}  # by path: whether it is a folder; the latest comes last
        self._writers: dict[str, float] = {}  # who is about to write, until when

    def in_use(self, name: str) -> Held | None:
        """Those of the name, if files are open through them."""
        with self._changed:
            return self._in_use(name)

    def open(
        self, name: str, info: ObjectInfo, caller: Caller, *, is_written: bool
    ) -> tuple[Held | None, bool]:
        """What is to be closed, or None for a file that is to be read past the pages; and whether
        the pages that the kernel has are of this version. Raises ESTALE, see the module."""
        held = self.in_use(name)
        if held is not None and held.version != version_of(info):
            self._tell(held, caller)
            return None, False
        with self._changed:
            if is_written or self._writers.get(name, 0.0) > time.monotonic():
                return None, False
            held = self._held.get(name)
            if held is None:
                if len(self._held) >= REMEMBERED_MAX:
                    self._held = {name: held for name, held in self._held.items() if held.count}
                held = self._held[name] = Held(name, info)
            if held.version != version_of(info):
                if held.count:  # since just now
                    return None, False
                held.set(info)
            held.count += 1
            return held, held.is_used

    def close(self, held: Held) -> None:
        with self._changed:
            held.count -= 1
            self._changed.notify_all()

    def begin_write(self, name: str, caller: Caller) -> None:
        """The file will be opened to write it: nobody gets pages of it before that, and those who
        have some are waited for, or moved aside. Raises ESTALE, see the module."""
        held = self._wait_for_readers(name, SOON_S)
        if held is not None:
            self._tell(held, caller)
            self._wait_for_readers(name, MOVE_S)

    def end_write(self, name: str) -> None:
        """It is open, and known to be written; or that failed."""
        with self._changed:
            self._writers.pop(name, None)

    def remove(self, name: str) -> None:
        """The name leads to another file from now on, or to none."""
        with self._changed:
            self._held.pop(name, None)

    def rename(self, old: str, new: str) -> None:
        """A file, or what is in a folder, is at another path from now on."""
        below = old + "/"
        with self._changed:
            moved = {
                new + name[len(old) :]: self._held.pop(name)
                for name in list(self._held)
                if name == old or name.startswith(below)
            }
            self._held.pop(new, None)
            for name, held in moved.items():
                held.name = name
            self._held.update(moved)

    # ------------------------------------------------------------ aside

    def aside(self, path: str) -> Held | None:
        """What was moved to a path, or is being moved."""
        with self._changed:
            return self._aside.get(path)

    def put_aside(self, path: str) -> None:
        """The kernel has moved it there. Raises ESTALE where nobody has it open any more: it stays
        where it is."""
        with self._changed:
            held = self._aside.get(path)
            if held is None or not held.count:
                fail(errno.ESTALE)
            if self._held.get(held.name) is held:
                del self._held[held.name]

    def wait_for(self, path: str, caller: Caller) -> None:
        """Of a caller who was told to look again, the first request is most often whether it may
        enter the folder, at `path`: by the end of that the old file is to be out of the way. To
        hold up a later one would keep the kernel, or libfuse, from moving it."""
        with self._changed:
            told = self._told.get(caller.thread)
            if told is None or told.moved is None:
                return
            if self._path_of(told.name).rpartition("/")[0] != path.rstrip("/"):
                return
            self._told[caller.thread] = told._replace(moved=None)
        told.moved.wait(MOVE_S)

    def check_kind(self, path: str, found: Attributes) -> None:
        """Raises ESTALE where the kernel was last told of a file, and there is a folder now, or the
        other way round: it would take that answer for a broken one (EIO), unless it looks again."""
        with self._changed:
            before = self._kinds.pop(path, found.is_folder)
            self._kinds[path] = found.is_folder
            if len(self._kinds) > REMEMBERED_MAX:
                del self._kinds[next(iter(self._kinds))]
        if before != found.is_folder and self.set_aside is not None:
            fail(errno.ESTALE)

    def check_missing(self) -> None:
        """What is opened is not there. Raises ESTALE where there is a kernel, which thinks it is:
        it finds out when it looks again, and may have to make the file."""
        if self.set_aside is not None:
            fail(errno.ESTALE)

    def look_again(self, name: str, caller: Caller, moved: threading.Event | None = None) -> None:
        """Raise ESTALE, but not to who was told just now: the kernel asks only once more."""
        now = time.monotonic()
        with self._changed:
            told = self._told.pop(caller.thread, None)
            if told is not None and told.name == name and told.until > now:
                return
            self._told[caller.thread] = _Told(name, now + MOVE_S, moved)
        fail(errno.ESTALE)

    def _tell(self, held: Held, caller: Caller) -> None:
        if self.move(held) or held.is_moving:
            self.look_again(held.name, caller, held.moved)

    def move(self, held: Held) -> bool:
        """Move it aside; whether that is begun: not where it can't be, or was tried before."""
        with self._changed:
            if self.set_aside is None or held.aside is not None:
                return False
            self._asides += 1
            held.aside = f"{ASIDE}{self._asides}"
            if len(self._aside) >= REMEMBERED_MAX:
                self._aside = {path: held for path, held in self._aside.items() if held.count}
            self._aside[held.aside] = held
        self.set_aside(self._path_of(held.name), held.aside, held.moved.set)
        return True

    def _wait_for_readers(self, name: str, time_s: float) -> Held | None:
        """What is still in use afterwards."""
        with self._changed:
            self._writers[name] = time.monotonic() + time_s + MOVE_S
            self._changed.wait_for(lambda: self._in_use(name) is None, time_s)
            return self._in_use(name)

    def _in_use(self, name: str) -> Held | None:
        held = self._held.get(name)
        return held if held is not None and held.count else None
