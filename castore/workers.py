"""The threads of a store: frames are encoded and decoded in batches on them."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from castore import forks
from castore.errors import StoreClosed
from castore.forks import ForkLock, Rank

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
        forks.register(self, Rank.LEAF)

    @property
    def closed(self) -> bool:
        return self._closed

    def submit(self, task: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        with self._lock:
            if self._closed:
                raise StoreClosed("the store was closed meanwhile")
            if self._pid != os.getpid():
                self.after_fork_in_child()  # of a fork that ran no hooks
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="castore")
            return self._pool.submit(task, *args, **kwargs)

    def close(self) -> None:
        """Finish what was submitted, and take no more."""
        with self._lock:
            self._closed = True
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=True)

    def before_fork(self) -> None:
        """Its lock, which is held by now, is what there is to wait for."""

    def after_fork_in_parent(self) -> None:
        """Nothing was stopped."""

    def after_fork_in_child(self) -> None:
        self._pool = None
        self._pid = os.getpid()
