"""The threads of a store: frames are encoded, fetched and decoded in batches on them.

Where no thread can be started, the caller does the work: at the end of the interpreter, when
stores are closed that nobody closed before, and at the system's limit of threads.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Generic, ParamSpec, TypeVar

from castore import forks
from castore.errors import StoreClosed
from castore.forks import ForkLock, Rank

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

P = ParamSpec("P")
T = TypeVar("T")


def usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Workers:
    """A thread pool that starts on first use, and anew in a forked child (threads do not survive
    a fork, and a pool that lost its threads waits forever)."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._pool: ThreadPoolExecutor | None = None
        self._closed = False
        self._pid = os.getpid()
        self._lock = ForkLock(Rank.LEAF)
        forks.register(self)

    @property
    def closed(self) -> bool:
        return self._closed

    def submit(self, task: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Raises StoreClosed once closed."""
        job = _Job(partial(task, *args, **kwargs))
        try:
            # Not under the lock: the pool takes one of its own, which is also taken before a fork.
            self._started().submit(job.run)
        except RuntimeError as error:
            if self._closed:
                raise StoreClosed("the store was closed meanwhile") from error
            job.run()
        return job.future

    def close(self) -> None:
        """Finish what was submitted, and take no more."""
        with self._lock:
            self._closed = True
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=True)

    def _started(self) -> ThreadPoolExecutor:
        # Loads logging: a store that needs no threads does without.
        from concurrent.futures import ThreadPoolExecutor

        with self._lock:
            if self._closed:
                raise StoreClosed("the store was closed meanwhile")
            if self._pid != os.getpid():
                self.after_fork_in_child()  # of a fork that ran no hooks
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="castore")
            return self._pool

    def after_fork_in_child(self) -> None:
        self._pool = None
        self._pid = os.getpid()


class _Job(Generic[T]):
    """A task that is run once, whoever comes first: a pool that fails to start a thread has
    queued it nevertheless, for the threads that it has."""

    def __init__(self, task: Callable[[], T]) -> None:
        from concurrent.futures import Future  # loads logging

        self.future: Future[T] = Future()
        self._left = [task]

    def run(self) -> None:
        try:
            task = self._left.pop()
        except IndexError:
            return
        future = self.future
        if not future.set_running_or_notify_cancel():
            return
        try:
            result = task()
        except BaseException as error:
            future.set_exception(error)
            if not isinstance(error, Exception):
                raise  # an interrupt, in the caller's thread
        else:
            future.set_result(result)
        finally:
            del future, self  # an error leads to this frame: no cycle that keeps what the task had
