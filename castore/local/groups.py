"""Commits of many threads in one transaction of the index: a group commit.

A commit waits for the disk twice, whatever is in it, and the index takes one at a time. So who
comes to its write gate commits all that wait there as well. There is no thread for it, nothing
waits for company, and one commit by itself takes no step more.

A group has one outcome on disk, and each commit its own: if one of them can't be, none of the group
is published, and each is tried again by itself, which tells the one from the others. Where whoever
led was interrupted, the others can't know what came of it, and say so.
"""

from __future__ import annotations

import _thread
import os
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress

from castore.errors import CastoreError, CommitUnknown
from castore.local.batch import Batch
from castore.stream.operations import Operation
from castore.system import forks
from castore.system.lmdb_env import Index

GROUP_ROWS_MAX = 16_384  # of chunks and names: each may dirty a page of its own
WAIT_S = 0.05  # for who leads; then one looks for oneself, in case it was interrupted


class PacksVanished(Exception):
    """Packs that a commit refers to were collected since they were looked up. The writer places
    their chunks anew and commits again; callers of a Store never see this."""

    def __init__(self, pack_ids: set[bytes]) -> None:
        super().__init__(f"{len(pack_ids)} packs were collected before the commit")
        self.pack_ids = pack_ids


class Commit:
    """What one thread wants to be committed, and what came of it."""

    __slots__ = ("_woken", "alone", "batch", "deleted", "done", "operations", "taken")

    def __init__(self, batch: Batch, operations: Sequence[Operation]) -> None:
        self.batch = batch
        self.operations = operations
        self.deleted = 0  # names
        self.done = False  # it is committed
        self.taken = False  # another thread is committing it
        self.alone = False  # not in a group again
        self._woken = _thread.allocate_lock()  # free once there is reason to look
        self._woken.acquire()

    @property
    def rows(self) -> int:
        return len(self.batch.chunks) + len(self.operations)

    def wait(self, timeout_s: float) -> None:
        self._woken.acquire(timeout=timeout_s)

    def wake(self) -> None:
        with suppress(RuntimeError):  # it was woken before, and has not looked yet
            self._woken.release()


class GroupCommits:
    def __init__(self, index: Index, write: Callable[[Sequence[Commit]], None]) -> None:
        """`write` commits all of a group, in its order, and sets what each `deleted`; or none, and
        raises."""
        self._index = index
        self._write = write
        self._waiting: deque[Commit] = deque()
        self._led = False  # somebody commits, and will wake who waits
        self._pid = os.getpid()
        forks.register(self)

    def commit(self, batch: Batch, operations: Sequence[Operation]) -> int:
        """The number of names deleted. Raises what `write` does; CommitUnknown."""
        if self._pid != os.getpid():  # a fork that ran no hooks
            self.after_fork_in_child()
        mine = Commit(batch, operations)
        self._waiting.append(mine)
        try:
            if self._led:
                mine.wait(WAIT_S)
            if not mine.done:
                self._commit(mine)
            return mine.deleted
        except BaseException:
            try:
                self._waiting.remove(mine)
            except ValueError:  # another took it, maybe just now: packs are needed until it is over
                with self._index.write_gate:
                    pass
            raise

    def _commit(self, mine: Commit) -> None:
        with self._index.write_gate:
            if mine.taken and not mine.done:
                raise CommitUnknown(
                    "another thread that was committing this, too, was interrupted, and it may "
                    "have landed: look before you repeat it"
                )
            if mine.done:
                return
            self._led = True
            try:
                self._lead(mine)
            finally:
                self._led = bool(self._waiting)
                with suppress(IndexError):
                    self._waiting[0].wake()

    def _lead(self, mine: Commit) -> None:
        """Commit this one, with what waits."""
        with suppress(ValueError):
            self._waiting.remove(mine)
        others = [] if mine.alone else self._take(GROUP_ROWS_MAX - mine.rows)
        try:
            self._write([mine, *others])
        except (CastoreError, PacksVanished) as error:
            if not others or isinstance(error, CommitUnknown):
                raise
            mine.alone = True
            for other in others:
                other.alone, other.taken = True, False
            self._lead(mine)
        else:
            mine.done = True
            for other in others:
                other.done = True
        finally:
            for other in others:
                other.wake()

    def _take(self, rows_max: int) -> list[Commit]:
        """Those that waited the longest, up to so many rows."""
        taken: list[Commit] = []
        with suppress(IndexError):
            while True:
                other = self._waiting.popleft()
                rows_max -= other.rows
                if other.alone or rows_max < 0:
                    self._waiting.appendleft(other)
                    break
                other.taken = True
                taken.append(other)
        return taken

    def after_fork_in_child(self) -> None:
        self._waiting = deque()  # of threads that are not here
        self._led = False
        self._pid = os.getpid()
