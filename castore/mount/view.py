"""What is in a store as a tree, and what all that changes it has in common: see `tree`."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import castore
from castore.model import ObjectInfo
from castore.mount.callers import UNKNOWN, Caller
from castore.mount.draft import Attributes
from castore.mount.drafts import Drafts
from castore.mount.errnos import fail
from castore.mount.folders import Folders
from castore.mount.names import Names, Roots, base
from castore.mount.pages import ASIDE, Pages, version_of
from castore.system.locks import Lock

if TYPE_CHECKING:
    from castore.mount.handles import Handle

FRESH_ON_S3_S = 1.0


class Entry(NamedTuple):
    """What is in a folder."""

    name: str
    is_folder: bool


class View:
    """See `Tree`."""

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
        self._lock = Lock()  # of these; never held while the store is asked
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
        """What `stat` tells: of an open file as that is, else as the caller sees it. Raises ESTALE
        where the kernel has to look again, as it may still take a file for a folder."""
        if handle is not None:
            return handle.attributes
        found = self._attributes(path, caller)
        self._pages.check_kind(path, found)
        return found

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

    # ------------------------------------------------------------ parts of these

    def _attributes(self, path: str, caller: Caller) -> Attributes:
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
        self._wait_for_ends(name)
        info, is_folder = self._look(name)
        held = self._pages.in_use(name)
        if held is not None and (info is None or held.version != version_of(info)):
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

    def _wait_for_ends(self, name: str) -> None:
        """Of those who emptied the file, and have closed it."""
        with self._lock:
            drafts = self._drafts.at(name)
        for draft in drafts:
            draft.wait_for_end()

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
