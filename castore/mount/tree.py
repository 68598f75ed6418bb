"""A store as a tree of files and folders: paths in, answers out, and no kernel.

Paths begin with a slash. What goes wrong is raised: errors of castore, or OSErrors; `errnos` has
their numbers.

- A name is a file, and each part of it that a slash follows is a folder. Where an object and a
  folder have one name, the folder is there.
- An empty folder is nothing that a store has: one that was made, or that lost its last file, is
  there for as long as the mount is.
- A file that is written is a `Draft` of the process that opened it, and nobody else sees any of it
  until it is closed: others go on with the object that there is, and see a draft only where there
  is none. Each process has a draft of its own: the last that is closed is what stays. What is only
  appended to goes behind what is there by then.
- An open file is one version of an object to its end, however it is read; see `pages`. So what is
  opened while another version of it is open becomes another file for the kernel.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import NamedTuple, NoReturn

import castore
from castore.errors import NameNotFound
from castore.model import ObjectInfo
from castore.mount.callers import UNKNOWN, Caller
from castore.mount.draft import Attributes, Draft
from castore.mount.drafts import Drafts
from castore.mount.folders import Folders
from castore.mount.handles import Drafting, Handle, Reading
from castore.mount.names import Names, Roots, base
from castore.mount.pages import ASIDE, Pages, version_of

log = logging.getLogger("castore.mount")
RENAME_NOREPLACE = 1  # of Linux's renameat2
FRESH_ON_S3_S = 1.0


class Entry(NamedTuple):
    """What is in a folder."""

    name: str
    is_folder: bool


class Tree:
    """What a mount of a store answers. For several threads at once.

    - `roots`: where the paths begin, see `Roots`; by default the whole store.
    - `writable`: else whatever changes something raises EROFS.
    - `fresh_s`: for how many seconds an answer about a name is good, whatever others do meanwhile;
      by default 0, but on S3, where each costs a request, 1.
    """

    def __init__(
        self,
        store: castore.Store,
        roots: Mapping[str, str] | None = None,
        *,
        writable: bool,
        fresh_s: float | None = None,
    ) -> None:
        self._store = store
        self._roots = Roots({"": ""} if roots is None else roots)
        self._writable = writable
        self._on_s3 = store.path.startswith("s3://")
        if fresh_s is None:
            fresh_s = FRESH_ON_S3_S if self._on_s3 else 0.0
        self._names = Names(store, fresh_s)
        self._lock = threading.RLock()  # of these; never held while the store is asked
        self._pages = Pages(self._roots.path)
        self._folders = Folders()
        self._drafts = Drafts()

    @property
    def is_written(self) -> bool:
        """Whether files are being written: only then it matters who asks for attributes."""
        with self._lock:
            return bool(self._drafts)

    @property
    def pages(self) -> Pages:
        """What whoever serves the tree to a kernel gives the means to move files aside."""
        return self._pages

    # ------------------------------------------------------------ what is there

    def getattr(
        self, path: str, handle: Handle | None = None, caller: Caller = UNKNOWN
    ) -> Attributes:
        """What `stat` tells: of an open file as that is, else as the caller sees it."""
        if handle is not None:
            return handle.attributes
        self._pages.wait_for(path, caller)
        if path.startswith(ASIDE):
            aside = self._pages.aside(path)
            if aside is None or (aside.is_moving and caller.process == os.getpid()):
                fail(errno.ENOENT)  # to us, who move it there
            return aside.attributes
        path = path[1:]
        if self._roots.is_root(path):
            return self._folder(self._roots.folder_name(path))
        name = self._roots.name(path)
        with self._lock:
            draft = self._drafts.of(name, caller)
        if draft is not None:
            return draft.attributes
        info, is_folder = self._look(name)
        held = self._pages.in_use(name)
        if held is not None:
            if info is None or held.version != version_of(info):
                self._pages.move(held)
            return held.attributes  # the kernel still has the old file here
        if is_folder:
            return self._folder(name)
        if info is not None:
            return Attributes(False, info.mode, info.size, info.mtime_ns)
        with self._lock:
            drafts = self._drafts.at(name)
        if not drafts:
            fail(errno.ENOENT)
        return drafts[0].attributes

    def readdir(self, path: str) -> list[Entry]:
        """What is in the folder, without `.` and `..`."""
        path = path[1:]
        if not path and self._roots.are_folders:
            return [Entry(folder, True) for folder in self._roots.folders()]
        folder = self._roots.folder_name(path)
        if not self._roots.is_root(path):
            info, is_folder = self._look(folder)
            if not is_folder:
                fail(errno.ENOENT if info is None else errno.ENOTDIR)
        found = {base(each.name): each.is_folder for each in self._names.listing(folder)}
        with self._lock:
            found.update((base(name), True) for name in self._folders.made_in(folder))
            for name in self._drafts.names_in(folder):
                found.setdefault(base(name), False)
        return [Entry(name, is_folder) for name, is_folder in found.items()]

    def statfs(self) -> dict[str, int]:
        """Of the disk that a local store is on; on S3 there is no end of room."""
        fields = ("f_bsize", "f_frsize", "f_blocks", "f_bfree", "f_bavail")
        if self._on_s3:
            values = dict(zip(fields, (4096, 4096, *(1 << 38,) * 3), strict=True))
        else:
            disk = os.statvfs(self._store.path)
            values = {field: getattr(disk, field) for field in fields}
        return {**values, "f_namemax": self._roots.name_bytes_max}

    # ------------------------------------------------------------ files

    def open(self, path: str, flags: int, caller: Caller = UNKNOWN) -> Handle:
        """Open a file that is there; `flags` are those of the system's `open`."""
        name = self._name(path, caller)
        if flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC:
            self._check_writable()
            self._pages.begin_write(name, caller)
            try:
                return self._begin(name, flags, caller)
            finally:
                self._pages.end_write(name)
        with self._lock:
            draft = self._drafts.of(name, caller)
            if draft is not None:
                return Drafting(draft, writes=False)
        try:
            reader = self._store.open(name)
        except NameNotFound:
            with self._lock:
                for draft in self._drafts.at(name):
                    return Drafting(draft, writes=False)
            raise
        try:
            with self._lock:
                is_written = not all(draft.is_settled for draft in self._drafts.at(name))
            is_written |= path.startswith(ASIDE)
            held, is_same = self._pages.open(name, reader.info, caller, is_written=is_written)
        except OSError:
            reader.close()
            raise
        return Reading(reader, held, keeps_pages=is_same)

    def create(self, path: str, mode: int, flags: int, caller: Caller = UNKNOWN) -> Handle:
        """Make a file, and open it. It is published when it is closed, be it empty."""
        self._check_writable()
        name = self._roots.new_name(path[1:])
        info, is_folder = self._look(name)
        if is_folder:
            fail(errno.EISDIR)
        if info is not None:  # somebody else made it just now
            if flags & os.O_EXCL:
                fail(errno.EEXIST)
            return self._begin(name, flags, caller)
        return self._drafting(name, None, mode & 0o7777, flags, caller)

    def flush(self, handle: Handle, caller: Caller = UNKNOWN) -> None:
        """A descriptor was closed, see `Drafting`: what that publishes is durable when this
        returns, and what can't be published is raised."""
        with self._changing():
            handle.flush(caller)

    def fsync(self, handle: Handle) -> None:
        """Publish what was written until now: there is no other way for it to be durable."""
        with self._changing():
            handle.fsync()

    def path_of(self, draft: Draft) -> str:
        """Where a file that is being written is, now."""
        return self._roots.path(draft.name)

    def release(self, handle: Handle) -> None:
        """The last descriptor of the file is closed: publish what is not published yet, such as a
        file that is empty, or what a child of the process wrote that opened it.

        Nobody waits for it, so what goes wrong is logged.
        """
        if isinstance(handle, Reading):
            if handle.held is not None:
                self._pages.close(handle.held)
            handle.close()
        elif isinstance(handle, Drafting):
            with self._lock:
                is_last = handle.draft.handles == 1  # and stays so while it is published
                if not is_last:
                    handle.draft.handles -= 1
            if is_last:
                self._end(handle.draft)

    def truncate(
        self, path: str, size: int, handle: Handle | None = None, caller: Caller = UNKNOWN
    ) -> None:
        """Cut a file at `size` bytes, or fill it up with zeros; one that is not open is published
        when this returns."""
        self._check_writable()
        if handle is not None:
            handle.truncate(size)
            return
        opened = self.open(path, os.O_RDWR, caller)
        try:
            opened.truncate(size)
            self.fsync(opened)
        finally:
            self.release(opened)

    def close(self, *, publish: bool) -> None:
        """The end of the mount. With `publish`, what is left was closed, and only its release was
        not told any more; else it may be half written, and nothing of it is published."""
        with self._lock:
            drafts = list(self._drafts)
        for draft in drafts:
            draft.lost = draft.lost or not publish
            draft.handles = 1
            self._end(draft)

    # ------------------------------------------------------------ names

    def unlink(self, path: str) -> None:
        """Delete a file. Who has it open goes on with it, and publishes nothing."""
        self._check_writable()
        name = self._name(path)
        if self._look(name)[1]:
            fail(errno.EISDIR)
        with self._changing():
            try:
                self._store.delete(name)
                is_there = True
            except NameNotFound:
                is_there = False
            with self._lock:
                if not self._drafts.remove(name) and not is_there:
                    fail(errno.ENOENT)
                self._pages.remove(name)
                self._folders.touch(name)

    def mkdir(self, path: str, mode: int) -> None:
        """Make a folder, which is there for as long as the mount, or until it is removed."""
        self._check_writable()
        if self._roots.is_root(path[1:]):
            fail(errno.EEXIST)
        name = self._roots.new_name(path[1:])
        if self._exists(name):
            fail(errno.EEXIST)
        with self._changing(), self._lock:
            self._folders.make(name, mode & 0o7777)

    def rmdir(self, path: str) -> None:
        """Remove a folder with nothing in it."""
        self._check_writable()
        if self._roots.is_root(path[1:]):
            fail(errno.EBUSY)
        if self.readdir(path):
            fail(errno.ENOTEMPTY)
        name = self._roots.name(path[1:])
        with self._changing():
            if self._names.look(name)[1]:  # a marker keeps it, as some programs put them on S3
                with suppress(NameNotFound):
                    self._store.delete(name + "/")
                if self._store.kind(name).is_folder:  # what no path leads to
                    fail(errno.ENOTEMPTY)
            with self._lock:
                self._folders.remove(name)

    def rename(self, old: str, new: str, flags: int = 0) -> None:
        """Move a file, in one step, or a folder: in one step in a local store, else name by name.

        `flags` are those of Linux's `renameat2`, of which RENAME_NOREPLACE is known.
        """
        if new.startswith(ASIDE):  # what `set_aside` has the kernel do
            self._pages.put_aside(new)
            return
        self._check_writable()
        if flags & ~RENAME_NOREPLACE:
            fail(errno.EINVAL)
        if self._roots.is_root(old[1:]) or self._roots.is_root(new[1:]):
            fail(errno.EBUSY)
        source, target = self._name(old), self._roots.new_name(new[1:])
        if not self._exists(source):
            fail(errno.ENOENT)
        is_folder, onto_folder = self._look(source)[1], self._look(target)[1]
        if flags and self._exists(target):
            fail(errno.EEXIST)
        if source == target:
            return
        if is_folder and not onto_folder and self._exists(target):
            fail(errno.ENOTDIR)
        if onto_folder and not is_folder:
            fail(errno.EISDIR)
        if onto_folder and self.readdir(new):
            fail(errno.ENOTEMPTY)
        with self._changing():
            if is_folder:
                self._rename_folder(source, target)
            else:
                self._rename_file(source, target, if_absent=bool(flags))

    def chmod(self, path: str, mode: int, caller: Caller = UNKNOWN) -> None:
        """Give a file or a folder other permission bits; a folder has them as long as the mount."""
        self._set_attributes(path, caller, mode=mode & 0o7777)

    def utimens(self, path: str, mtime_ns: int, caller: Caller = UNKNOWN) -> None:
        """Give a file or a folder another time of modification, in nanoseconds since the epoch, the
        only time that there is; a folder has it as long as the mount."""
        self._set_attributes(path, caller, mtime_ns=mtime_ns)

    # ------------------------------------------------------------ parts of these

    def _name(self, path: str, caller: Caller = UNKNOWN) -> str:
        """The name of what the kernel has at a path. Raises ESTALE for what was moved aside: it is
        to look again at the path that it came from."""
        if not path.startswith(ASIDE):
            return self._roots.name(path[1:])
        aside = self._pages.aside(path)
        if aside is None:
            fail(errno.ESTALE)
        self._pages.look_again(aside.name, caller)
        return aside.name

    def _look(self, name: str) -> tuple[ObjectInfo | None, bool]:
        """(the object's info, whether it is a folder), with the folders that may be empty."""
        info, is_folder = self._names.look(name)
        with self._lock:
            return (None, True) if self._folders.is_made(name) else (info, is_folder)

    def _exists(self, name: str) -> bool:
        info, is_folder = self._look(name)
        with self._lock:
            return is_folder or info is not None or bool(self._drafts.at(name))

    def _folder(self, name: str) -> Attributes:
        with self._lock:
            return Attributes(True, self._folders.mode(name), 0, self._folders.mtime_ns(name))

    def _check_writable(self) -> None:
        if not self._writable:
            fail(errno.EROFS)

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """What was known of names may not be so afterwards."""
        try:
            yield
        finally:
            self._names.forget()

    def _begin(self, name: str, flags: int, caller: Caller) -> Handle:
        """Open a file that is there to write it."""
        emptied = bool(flags & os.O_TRUNC)
        with self._lock:
            own = self._drafts.of(name, caller)
            if own is not None and not emptied:
                return Drafting(own, writes=True)
        try:
            base_ = self._store.open(name)
        except NameNotFound:
            with self._lock:
                drafts = self._drafts.at(name)
            if not drafts:
                raise
            return self._drafting(name, None, drafts[0].mode, flags, caller)
        mode = base_.info.mode
        if emptied:
            base_.close()
        return self._drafting(name, None if emptied else base_, mode, flags, caller)

    def _drafting(
        self,
        name: str,
        base_: castore.ObjectReader | None,
        mode: int,
        flags: int,
        caller: Caller,
    ) -> Handle:
        draft = Draft(
            self._store,
            name,
            base=base_,
            mode=mode,
            process=caller.process,
            appends=bool(flags & os.O_APPEND),
            emptied=bool(flags & os.O_TRUNC),
        )
        with self._lock:
            handle = Drafting(draft, writes=True)
            self._drafts.add(draft)
            if base_ is None:
                self._folders.touch(name)
        return handle

    def _end(self, draft: Draft) -> None:
        """Nobody has it open."""
        try:
            if not (draft.is_settled or draft.lost or draft.failed):
                draft.publish()
        except Exception as error:
            log.error("%r is not published: %s", draft.name, error)
        finally:
            self._names.forget()
            with self._lock:
                draft.handles -= 1
                is_open = draft.handles > 0  # somebody came to look at it meanwhile
                if not is_open:
                    self._drafts.drop(draft)
            if not is_open:
                draft.close()

    def _rename_file(self, source: str, target: str, *, if_absent: bool) -> None:
        with self._lock:
            drafts = self._drafts.at(source)
        if drafts and self._names.look(source)[0] is None:
            drafts[0].publish()  # it has to be there to be moved
        self._store.rename(source, target, if_absent=if_absent)
        with self._lock:
            self._drafts.remove(target)
            self._drafts.rename(source, target)
            self._pages.rename(source, target)
            self._folders.touch(source)
            self._folders.touch(target)

    def _rename_folder(self, source: str, target: str) -> None:
        with self._store.transaction() as transaction:
            for name in self._store.names(source + "/"):
                transaction.rename(name, target + name[len(source) :])
        with self._lock:
            self._drafts.rename(source, target)
            self._pages.rename(source, target)
            self._folders.rename(source, target)

    def _set_attributes(
        self, path: str, caller: Caller, *, mode: int | None = None, mtime_ns: int | None = None
    ) -> None:
        self._check_writable()
        is_root = self._roots.is_root(path[1:])
        name = self._roots.folder_name(path[1:]) if is_root else self._name(path)
        info, is_folder = (None, True) if is_root else self._look(name)
        with self._lock:
            drafts = self._drafts.at(name) if info is None else []
            own = self._drafts.of(name, caller)
            if is_folder:
                if mode is not None:
                    self._folders.set_mode(name, mode)
                if mtime_ns is not None:
                    self._folders.set_time(name, mtime_ns)
                return
        draft = own or (drafts[0] if drafts else None)
        if draft is not None:
            if mode is not None:
                draft.set_mode(mode)
            if mtime_ns is not None:
                draft.set_time(mtime_ns)
            return
        with self._changing():
            self._store.set_attributes(name, mode=mode, mtime_ns=mtime_ns)


def fail(number: int) -> NoReturn:
    """Raise the system's error of that number."""
    raise OSError(number, os.strerror(number))
