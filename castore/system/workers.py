"""The threads of a store: frames are encoded, fetched and decoded in batches on them.

A signal handler that raises (Ctrl-C, a soft time limit) does so between any two instructions of the
thread that waits here, and what it leaves locked stays locked: `concurrent.futures` and `threading`
build on locks that Python code takes and lets go of, so that a future, or the pool itself, is then
out of order for good, and so is all that waits for it. So the waiting is done on C's own locks and
queues, in one step each.

Where no thread can be started, the caller does the work: at the end of the interpreter, when
stores are closed that nobody closed before, and files by a `__del__`; and at the system's limit of
threads.
"""

from __future__ import annotations

import _thread
import atexit
import os
import sys
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, Generic, ParamSpec, TypeVar

from castore.errors import StoreClosed
from castore.system import forks
from castore.system.forks import ForkLock, Rank
from castore.system.locks import Latch

P = ParamSpec("P")
S = TypeVar("S")
T = TypeVar("T")

CLOSED = "the store was closed meanwhile: open it again"


def usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Future(Latch, Generic[T]):
    """What a task comes to. It is run once, or cancelled before."""

    __slots__ = ("_callbacks", "_cancelled", "_error", "_left", "_result")
    _result: T

    def __init__(self, task: Callable[[], T]) -> None:
        super().__init__()  # it is open once there is a result
        self._left = [task]  # who takes it out runs it, or cancels it
        self._callbacks: list[Callable[[Future[T]], object]] = []
        self._cancelled = False
        self._error: BaseException | None = None

    def result(self) -> T:
        """Wait for it. Raises what the task raised."""
        error = self.exception()
        if error is None:
            return self._result
        try:
            raise error
        finally:
            del self, error  # the error leads to this frame: no cycle that keeps what the task had

    def exception(self) -> BaseException | None:
        """Wait for it; what the task raised."""
        self.wait()
        return self._error

    def done(self) -> bool:
        """Whether it has been run, or cancelled."""
        return self._opened

    def cancelled(self) -> bool:
        return self._cancelled

    def cancel(self) -> bool:
        """Do not run it; False if that has begun."""
        try:
            self._left.pop()
        except IndexError:
            return self._cancelled
        self._cancelled = True
        self._error = RuntimeError("it was cancelled")
        self._end()
        return True

    def add_done_callback(self, callback: Callable[[Future[T]], object]) -> None:
        """Called with this future once it is done: at once if it is."""
        self._callbacks.append(callback)
        if self._opened:
            self._call_back()

    def run(self) -> None:
        try:
            task = self._left.pop()
        except IndexError:
            return
        try:
            self._result = task()
        except BaseException as error:
            self._error = error
        del task
        self._end()
        del self  # what was raised leads to this frame, too

    def _end(self) -> None:
        self.open()
        self._call_back()

    def _call_back(self) -> None:
        while self._callbacks:
            try:
                callback = self._callbacks.pop(0)
            except IndexError:  # another thread was faster
                return
            callback(self)


def results_of(futures: Sequence[Future[T]]) -> list[T]:
    """Wait for all; what they came to. Raises what the first that failed did, once all have
    ended."""
    for future in futures:
        future.exception()
    return [future.result() for future in futures]


class Workers:
    """A thread pool that starts on first use, and anew in a forked child (threads do not survive
    a fork, and a pool that lost its threads waits forever). With `abandon`, neither `close` nor
    the end of the interpreter waits for what is under way."""

    def __init__(self, threads: int, *, abandon: bool = False) -> None:
        self.threads = threads
        self._abandon = abandon
        self._pool: _Pool | None = None
        self._closed = False
        self._pid = os.getpid()
        self._lock = ForkLock(Rank.LEAF)
        forks.register(self)

    @property
    def closed(self) -> bool:
        return self._closed

    def submit(self, task: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Raises StoreClosed once closed."""
        future = Future(partial(task, *args, **kwargs))
        with self._lock:
            if self._closed:
                raise StoreClosed(CLOSED)
            if self._pid != os.getpid():
                self.after_fork_in_child()  # of a fork that ran no hooks
            if self._pool is None or self._pool.over:
                self._pool = _Pool(self.threads)
                if not self._abandon:
                    _pools.add(self._pool)
            taken = self._pool.take(future)
        if not taken:
            _run_here(future)
        return future

    def run_here(self, task: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """As `submit`, done by the caller: for what takes less time than to hand it over."""
        if self._closed:
            raise StoreClosed(CLOSED)
        future = Future(partial(task, *args, **kwargs))
        _run_here(future)
        return future

    def map_ahead(
        self, work: Callable[[S], T], items: Iterable[S], *, ahead: int | None = None
    ) -> Iterator[T]:
        """What `work` makes of each item, in their order; `ahead` of them, or two for each thread,
        are begun before they are asked for. Once this is closed, the caller does the work. Raises
        what `work` does; then, or if nobody asks any more, what has not begun is left."""
        ahead = 2 * self.threads if ahead is None else ahead
        running: deque[Future[T]] = deque()
        try:
            for item in items:
                try:
                    future = self.submit(work, item)
                except StoreClosed:
                    future = Future(partial(work, item))
                    future.run()
                running.append(future)
                if len(running) > ahead:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            for future in running:
                future.cancel()

    def close(self) -> None:
        """Finish what was submitted, and take no more."""
        with self._lock:
            self._closed = True
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.let_go()
            if not self._abandon:
                pool.join()

    def after_fork_in_child(self) -> None:
        self._pool = None
        self._pid = os.getpid()

    def __del__(self) -> None:
        pool = getattr(self, "_pool", None)
        if pool is not None:
            pool.let_go()


def _run_here(future: Future[T]) -> None:
    future.run()
    error = future.exception()
    if error is not None and not isinstance(error, Exception):
        raise error  # an interrupt, in the caller's thread


def map_at_once(work: Callable[[S], T], items: Iterable[S], *, threads: int) -> Iterator[T]:
    """What `work` makes of each item, in their order, on as many threads of their own: for work
    that itself waits for others. Without any, the caller does it. Raises what `work` does, once
    what has begun has ended; what has not is left then."""
    if not threads:
        yield from map(work, items)
        return
    workers = Workers(threads)
    try:
        yield from workers.map_ahead(work, items)
    finally:
        workers.close()


class _Pool:
    """Threads that take what is queued until they find the end of the queue."""

    def __init__(self, threads_max: int) -> None:
        self.over = False
        self.pid = os.getpid()
        self._threads_max = threads_max
        self._queue: SimpleQueue[Future[object] | None] = SimpleQueue()
        self._idle: SimpleQueue[None] = SimpleQueue()  # an entry for each thread that waits
        self._running: list[Latch] = []  # each is opened by a thread as it ends

    def take(self, future: Future[T]) -> bool:
        """Have it run; False if there is no thread, and none can be started. Not for several
        threads at once."""
        if sys.is_finalizing():  # before Python 3.12 one is started nevertheless, and does nothing
            return False
        try:
            self._idle.get_nowait()
        except Empty:
            if len(self._running) < self._threads_max:
                try:
                    self._start()
                except RuntimeError:
                    if not self._running:
                        return False
        self._queue.put(future)  # type: ignore[arg-type]
        return True

    def let_go(self) -> None:
        """The threads end when they have done all that is queued."""
        self.over = True
        self._queue.put(None)

    def join(self) -> None:
        """Wait for that. When Python is being taken apart, they have ended already, and did not say
        so."""
        if sys.is_finalizing():
            return
        for running in self._running:
            running.wait()

    def _start(self) -> None:
        running = Latch()
        _thread.start_new_thread(_work, (self._queue, self._idle, running))
        self._running.append(running)


def _work(
    queue: SimpleQueue[Future[object] | None], idle: SimpleQueue[None], running: Latch
) -> None:
    # Knows nothing of the pool, which can be dropped while this waits.
    try:
        while (future := queue.get()) is not None:
            future.run()
            del future
            idle.put(None)
        queue.put(None)  # for the next
    finally:
        running.open()


_pools: weakref.WeakSet[_Pool] = weakref.WeakSet()  # that the end of the interpreter waits for


def _end_all() -> None:
    """A thread that is at work when the interpreter is taken apart finds its objects gone."""
    for pool in list(_pools):
        if pool.pid == os.getpid():
            pool.let_go()
            pool.join()


atexit.register(_end_all)


class InFlight:
    """Futures under way, of which there are to be so many at most. No count is kept that an
    interrupt could leave wrong: those that are done are done."""

    def __init__(self, futures_max: int) -> None:
        self._futures_max = futures_max
        self._futures: deque[Future[Any]] = deque()

    def wait_for_room(self) -> None:
        while len(self._futures) >= self._futures_max:
            under_way = [future for future in self._futures.copy() if not future.done()]
            if len(under_way) >= self._futures_max:
                under_way[0].exception()
            for future in self._futures.copy():
                if future.done():
                    with suppress(ValueError):  # another thread was faster
                        self._futures.remove(future)

    def add(self, future: Future[Any]) -> None:
        self._futures.append(future)
