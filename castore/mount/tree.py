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
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

from castore.errors import NameNotFound
from castore.mount.callers import UNKNOWN, Caller
from castore.mount.errnos import fail
from castore.mount.files import FileRequests
from castore.mount.pages import ASIDE
from castore.stream.operations import check_time

RENAME_NOREPLACE = 1  # of Linux's renameat2
MOVES_MAX = 5  # of what others put into a folder, or delete there, while it is renamed


class Tree(FileRequests):
    """What a mount of a store answers. For several threads at once.

    - `roots`: where the paths begin, see `Roots`; by default the whole store.
    - `writable`: else whatever changes something raises EROFS.
    - `fresh_s`: for how many seconds an answer about a name is good, whatever others do meanwhile;
      by default 0, but on S3, where each costs a request, 1.
    """

    # ------------------------------------------------------------ names

    def unlink(self, path: str) -> None:
        """Delete a file. Who has it open goes on with it, and publishes nothing."""
        self._check_writable()
        name = self._name(path)
        if self._look(name)[1]:
            fail(errno.EISDIR)
        with self._changing(), self._unpublished(name):
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
            self._pages.set_kind(path, is_folder=True)

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
        """Move a file, in one step, or a folder: in one step in a local store, else name by name;
        what others put into it meanwhile follows.

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
        with self._changing(), self._unpublished(source, target):
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

    @contextmanager
    def _unpublished(self, *names: str) -> Iterator[None]:
        """Nobody publishes a draft of the names, or of one below them, meanwhile: it would be there
        by the name that it had before, or over what has that name now."""
        with self._lock:
            drafts = [draft for name in names for draft in self._drafts.under(name)]
        with ExitStack() as held:
            for draft in sorted(drafts, key=id):  # for all in one order
                held.enter_context(draft.lock)
            yield

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
        for left in reversed(range(MOVES_MAX)):
            try:
                if not self._move_names(source, target):
                    break
            except NameNotFound:  # deleted by others since it was listed
                if not left:
                    raise
        with self._lock:
            self._drafts.rename(source, target)
            self._pages.rename(source, target)
            self._folders.rename(source, target)

    def _move_names(self, source: str, target: str) -> int:
        """How many there were below the source. What others put there meanwhile is left."""
        count = 0
        with self._store.transaction() as transaction:
            for name in self._store.names(source + "/"):
                transaction.rename(name, target + name[len(source) :])
                count += 1
        return count

    def _set_attributes(
        self, path: str, caller: Caller, *, mode: int | None = None, mtime_ns: int | None = None
    ) -> None:
        self._check_writable()
        if mtime_ns is not None:
            check_time(path, mtime_ns)  # now, and not when the file is closed, and lost for it
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
            with draft.lock:  # else it may be published just now, as it was
                if not draft.is_settled:
                    if mode is not None:
                        draft.set_mode(mode)
                    if mtime_ns is not None:
                        draft.set_time(mtime_ns)
                    return
        with self._changing(), self._unpublished(name):
            self._store.set_attributes(name, mode=mode, mtime_ns=mtime_ns)
            if mode is not None:
                with self._lock:
                    drafts = self._drafts.at(name)
                for draft in drafts:  # which began with the bits that the object had
                    draft.set_mode(mode)
