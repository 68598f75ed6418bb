"""The requests about files: opened, read, written, and closed."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import castore
from castore.errors import NameNotFound
from castore.mount.callers import UNKNOWN, Caller
from castore.mount.draft import Draft
from castore.mount.errnos import fail
from castore.mount.handles import Drafting, Handle, Reading
from castore.mount.view import View

log = logging.getLogger("castore.mount")


class FileRequests(View):
    """See `Tree`."""

    def open(self, path: str, flags: int, caller: Caller = UNKNOWN) -> Handle:
        """Open a file that is there; `flags` are those of the system's `open`."""
        name = self._name(path, caller)
        aside = self._pages.aside(path)
        if flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC:
            self._check_writable()
            self._pages.begin_write(name, caller, aside)
            try:
                return self._begin(name, flags, caller)
            finally:
                self._pages.end_write(name)
        with self._lock:
            draft = self._drafts.of(name, caller)
            if draft is not None:
                return Drafting(draft, writes=False)
        self._wait_for_ends(name)
        try:
            reader = self._store.open(name)
        except NameNotFound:
            with self._lock:
                for draft in self._drafts.at(name):
                    return Drafting(draft, writes=False)
            self._pages.check_missing()
            raise
        try:
            opened = self._pages.open(name, reader.info, caller, aside)
            # Asked once nobody begins to write it any more, who has not met these pages.
            with self._lock:
                is_written = not all(draft.is_over for draft in self._drafts.at(name))
            if is_written:
                opened = self._pages.open_past(name, opened)
        except OSError:
            reader.close()
            raise
        return Reading(reader, opened)

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
            return self.open(path, flags, caller)
        self._pages.set_kind(path, is_folder=False)
        return self._drafting(name, None, mode & 0o7777, flags, caller)

    def flush(self, handle: Handle, caller: Caller = UNKNOWN) -> None:
        """A descriptor was closed, see `Drafting`: what that publishes is durable when this
        returns, and what can't be published is raised."""
        if isinstance(handle, Drafting):
            with self._changing(), self._in_order(handle.draft):
                handle.flush(caller)

    def fsync(self, handle: Handle) -> None:
        """Publish what was written until now: there is no other way for it to be durable."""
        if isinstance(handle, Drafting):
            with self._changing(), self._in_order(handle.draft):
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
            self._pages.close(handle.opened)
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

    # ------------------------------------------------------------ parts of these

    def _begin(self, name: str, flags: int, caller: Caller) -> Handle:
        """Open a file that is there to write it."""
        emptied = bool(flags & os.O_TRUNC)
        with self._lock:
            own = self._drafts.of(name, caller)
            if own is not None and not emptied:
                return Drafting(own, writes=True, appends=bool(flags & os.O_APPEND))
            closed = [draft for draft in self._drafts.at(name) if draft.closed]
        self._settle(closed)
        try:
            base_ = self._store.open(name)
        except NameNotFound:
            with self._lock:
                drafts = self._drafts.at(name)
            if not drafts:
                self._pages.check_missing()
                raise
            return self._drafting(name, None, drafts[0].mode, flags, caller)
        found = base_.info
        if emptied:
            base_.close()
        kept = None if emptied else base_
        return self._drafting(name, kept, found.mode, flags, caller, found=found.etag)

    def _drafting(
        self,
        name: str,
        base_: castore.ObjectReader | None,
        mode: int,
        flags: int,
        caller: Caller,
        *,
        found: str | None = None,
    ) -> Handle:
        appends = bool(flags & os.O_APPEND)
        draft = Draft(
            self._store,
            name,
            base=base_,
            mode=mode,
            process=caller.process,
            appends=appends,
            emptied=bool(flags & os.O_TRUNC),
            found=found,
        )
        with self._lock:
            handle = Drafting(draft, writes=True, appends=appends)
            self._drafts.add(draft)
            if base_ is None:
                self._folders.touch(name)
        return handle

    @contextmanager
    def _in_order(self, draft: Draft) -> Iterator[None]:
        """If it is published meanwhile, that comes after what others have closed of the file, and
        stays when they close what they have written nothing to."""
        if draft.is_settled:
            yield
            return
        with self._lock:
            same = self._drafts.at(draft.name)
            others = [each for each in same if each is not draft and not each.changed]
        with ExitStack() as held:
            for each in sorted([draft, *others], key=id):  # for all in one order
                held.enter_context(each.lock)
            self._settle([each for each in others if each.closed])
            yield
            if draft.is_settled:
                for each in others:
                    each.give_way()

    def _settle(self, drafts: list[Draft]) -> None:
        """Publish what is not yet. Nobody waits for that, so what goes wrong is logged."""
        for draft in reversed(drafts):
            try:
                draft.settle()
            except Exception as error:
                log.error("%r is not published: %s", draft.name, error)
            finally:
                self._names.forget()

    def _end(self, draft: Draft) -> None:
        """Nobody has it open."""
        try:
            with self._in_order(draft):
                self._settle([draft])
        finally:
            with self._lock:
                draft.handles -= 1
                is_open = draft.handles > 0  # somebody came to look at it meanwhile
                if not is_open:
                    self._drafts.drop(draft)
            draft.ended.set()
            if not is_open:
                draft.close()
