"""Which version of a file the kernel has pages of.

The kernel knows a file by its path: it keeps its pages, whatever object was read to fill them, and
one size, which is whatever was told of any of the files that are open there: past it, who has it
mapped dies of SIGBUS, and up to it, who reads through pages gets zeros. So as long as files are
open through the pages of a path (`Held`), they are of one version, nobody writes it, and no other
version is open there, if it can be helped not even past the pages (`Past`).

Who comes with another version, or to write, is told to look again (ESTALE, upon which the kernel
walks the path once more), while the old file is moved aside: renamed to a path that nobody looks
up, where those who have it open keep it. A writer first waits a moment for readers to end, as most
do. Who looks again and meets pages that are in the way still, waits for those who read them. In the
end it reads past the pages; a writer, as it might cut the file, is told that it is busy (EBUSY).
"""

from __future__ import annotations

import errno
import threading
import time
from collections import Counter
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
READ_S = 1.0  # by when nearly all have
MOVE_S = 5.0  # how long is waited for what is moved aside; and by writers, for those who read it


class Version(NamedTuple):
    """What tells the bytes of an object from others."""

    etag: str
    size: int


def version_of(info: ObjectInfo) -> Version:
    return Version(info.etag, info.size)


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


class Past:
    """The versions that are open at one path past its pages, and by how many files."""

    def __init__(self) -> None:
        self.versions: Counter[Version] = Counter()

    def has_other_than(self, version: Version) -> bool:
        return any(other != version for other in self.versions)


class Opened(NamedTuple):
    """How a file is open: through pages (`held`), or past them. `keeps_pages`: those that the
    kernel has are of this version."""

    version: Version
    held: Held | None
    past: Past | None
    keeps_pages: bool


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
        self._past: dict[str, Past] = {}
        self._aside: dict[str, Held] = {}
        self._asides = 0
        self._told: dict[int, _Told] = {}  # by thread
        self._kinds: dict[str, bool] = {}  # by path: whether it is a folder; the latest comes last
        self._opening: Counter[str] = Counter()  # by how many who are about to write
        self._expected: dict[str, float] = {}  # writers who look again, until when

    def in_use(self, name: str) -> Held | None:
        """Those of the name, if files are open through them."""
        with self._changed:
            return self._in_use(name)

    def open(
        self, name: str, info: ObjectInfo, caller: Caller, aside: Held | None = None
    ) -> Opened:
        """The object of the name is opened to read it. Raises ESTALE, see the module.

        `aside`: what is at the path that it is opened at, by who has looked again.
        Where there is no kernel, nothing is moved or waited for: it is read past the pages. So is
        what is empty, in any case.
        """
        version = version_of(info)
        if not info.size:
            # Nothing to keep. Where the kernel was told of the size of another version just now, by
            # answers that cross each other, it would fill its pages with zeros up to that.
            return Opened(version, None, None, keeps_pages=False)
        held = self._other(name, version)
        if aside is not None:
            with self._changed:
                self._changed.wait_for(lambda: not aside.count, READ_S)
        elif held is not None and self.set_aside is not None:
            self._tell(held, caller)
            with self._changed:
                self._changed.wait_for(lambda: not self._other(name, version), READ_S)
        with self._changed:
            self._told.pop(caller.thread, None)
            past = self._past.get(name)
            is_coming = self._expected.get(name, 0.0) > time.monotonic()
            if aside is not None or is_coming or self._opening[name] or self._other(name, version):
                return self._open_past(name, version)
            if past is not None and past.has_other_than(version):
                return self._open_past(name, version)
            held = self._held.get(name)
            if held is None or (held.aside is not None and not held.count):
                # One that was in the way before, and in the end was not moved, can be moved again.
                if len(self._held) >= REMEMBERED_MAX:
                    self._held = {name: held for name, held in self._held.items() if held.count}
                held = self._held[name] = Held(name, info)
            elif held.version != version:
                held.set(info)
            held.count += 1
            return Opened(version, held, None, held.is_used)

    def open_past(self, name: str, opened: Opened) -> Opened:
        """As it was opened, but past the pages."""
        if opened.held is None:
            return opened
        self.close(opened)
        with self._changed:
            return self._open_past(name, opened.version)

    def close(self, opened: Opened) -> None:
        with self._changed:
            if opened.held is not None:
                opened.held.count -= 1
            if opened.past is not None:
                versions = opened.past.versions
                versions[opened.version] -= 1
                if not versions[opened.version]:
                    del versions[opened.version]
                    self._past = {name: past for name, past in self._past.items() if past.versions}
            self._changed.notify_all()

    def begin_write(self, name: str, caller: Caller, aside: Held | None) -> None:
        """The file will be opened to write it: until `end_write` nobody gets pages of it, and those
        who have some are waited for, or moved aside. Raises ESTALE and EBUSY, see the module; then
        there is no `end_write`. `aside` as in `open`."""
        with self._changed:
            self._opening[name] += 1
        try:
            held = self._wait_for_readers(name, aside, SOON_S)
            if held is not None:
                if held is not aside:
                    self._tell(held, caller)
                if self._wait_for_readers(name, aside, MOVE_S) and self.set_aside is not None:
                    fail(errno.EBUSY)
        except OSError:
            now = time.monotonic()
            with self._changed:
                self._expected = {name: end for name, end in self._expected.items() if end > now}
                self._expected[name] = now + MOVE_S
            self.end_write(name)
            raise
        with self._changed:
            self._expected.pop(name, None)
            self._told.pop(caller.thread, None)

    def end_write(self, name: str) -> None:
        """It is open, and known to be written; or that failed."""
        with self._changed:
            self._opening[name] -= 1
            if not self._opening[name]:
                del self._opening[name]

    def remove(self, name: str) -> None:
        """The name leads to another file from now on, or to none."""
        with self._changed:
            self._held.pop(name, None)
            self._past.pop(name, None)

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
            self._past.pop(new, None)
            self._past = {
                new + name[len(old) :] if name == old or name.startswith(below) else name: past
                for name, past in self._past.items()
            }
            self._rename_kinds(self._path_of(old), self._path_of(new))

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
                self._past.pop(held.name, None)

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
        before = self.set_kind(path, is_folder=found.is_folder)
        if before != found.is_folder and self.set_aside is not None:
            fail(errno.ESTALE)

    def set_kind(self, path: str, *, is_folder: bool) -> bool:
        """What the kernel is told that is at the path, or has just had made there, where it had
        nothing. What it was told before, if anything."""
        with self._changed:
            before = self._kinds.pop(path, is_folder)
            self._kinds[path] = is_folder
            if len(self._kinds) > REMEMBERED_MAX:
                del self._kinds[next(iter(self._kinds))]
            return before

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

    def _rename_kinds(self, old: str, new: str) -> None:
        """The kernel takes what it was told of along, and has nothing there any more."""
        kinds, above = self._kinds, (old + "/", new + "/")
        gone = [path for path in kinds if path in (old, new) or path.startswith(above)]
        moved = {path: kinds.pop(path) for path in gone}
        for path, is_folder in moved.items():
            if path == old or path.startswith(above[0]):
                kinds[new + path[len(old) :]] = is_folder

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

    def _wait_for_readers(self, name: str, aside: Held | None, time_s: float) -> Held | None:
        """What is still in use afterwards."""

        def in_use() -> Held | None:
            return aside if aside is not None and aside.count else self._in_use(name)

        with self._changed:
            self._changed.wait_for(lambda: in_use() is None, time_s)
            return in_use()

    def _other(self, name: str, version: Version) -> Held | None:
        """Pages in use that are of another version."""
        held = self.in_use(name)
        return held if held is not None and held.version != version else None

    def _open_past(self, name: str, version: Version) -> Opened:
        past = self._past.setdefault(name, Past())
        past.versions[version] += 1
        return Opened(version, None, past, keeps_pages=False)

    def _in_use(self, name: str) -> Held | None:
        held = self._held.get(name)
        return held if held is not None and held.count else None
