"""Work is done where no thread can be started, and once; and an interrupt leaves nothing taken."""

from __future__ import annotations

import _thread
import contextlib
import gc
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator

import pytest

from castore.errors import StoreClosed
from castore.system import workers as workers_module
from castore.system.workers import (
    Future,
    InFlight,
    Workers,
    map_at_once,
    results_of,
    usable_cores,
)

AT_EXIT = """
import atexit, sys
from castore.system.workers import Workers

def end():
    print([future.result() for future in [workers.submit(pow, 2, i) for i in range(3)]])
    try:
        workers.submit(int, "x").result()
    except ValueError as error:
        print(type(error).__name__)
    workers.close()

atexit.register(end)
workers = Workers(2)
if sys.argv[1] == "used":
    workers.submit(pow, 2, 1).result()
"""


TAKEN_APART = """
import atexit, sys

def end():
    workers.submit(pow, 2, 3).result()  # when the threads of before were waited for already

atexit.register(end)
from castore.system.workers import Workers

class Last:
    def __del__(self):
        print([future.result() for future in [workers.submit(pow, 2, i) for i in range(3)]])
        workers.close()

workers, last = Workers(2), Last()
last.itself = last
if sys.argv[1] == "used":
    workers.submit(pow, 2, 1).result()
"""


@pytest.mark.parametrize("at", [AT_EXIT, TAKEN_APART], ids=["at_exit", "taken_apart"])
@pytest.mark.parametrize("before", ["used", "unused"])
def test_the_end_of_the_interpreter(at: str, before: str) -> None:
    """It starts no threads by then, or none that do anything; nor can their pool be imported."""
    done = subprocess.run(
        [sys.executable, "-c", at, before], capture_output=True, text=True, check=True, timeout=60
    )
    said = "[1, 2, 4]\nValueError\n" if at is AT_EXIT else "[1, 2, 4]\n"
    assert (done.stdout, done.stderr) == (said, "")


WAITS = """
import sys, time
from castore.system.workers import Workers

def work():
    time.sleep(0.1)
    print("done", flush=True)

workers, abandoned = Workers(1), Workers(1, abandon=True)
abandoned.submit(time.sleep, 60)
workers.submit(work)
"""


def test_the_end_of_the_interpreter_waits_but_for_what_was_abandoned() -> None:
    done = subprocess.run([sys.executable, "-c", WAITS], capture_output=True, text=True, timeout=30)
    assert (done.stdout, done.stderr, done.returncode) == ("done\n", "", 0)


def test_the_limit_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller does what no thread can be started for, and later ones do not do it again."""
    done: list[int] = []
    start = _thread.start_new_thread

    def refuse(*_: object) -> int:
        raise RuntimeError("can't start new thread")

    workers = Workers(2)
    monkeypatch.setattr(_thread, "start_new_thread", refuse)
    refused = [workers.submit(done.append, i) for i in range(3)]
    assert done == [0, 1, 2]
    monkeypatch.setattr(_thread, "start_new_thread", start)
    refused.append(workers.submit(done.append, 3))
    workers.close()
    assert [future.result() for future in refused] == [None] * 4
    assert done == [0, 1, 2, 3]


def test_what_is_cancelled_is_not_begun() -> None:
    workers = Workers(1)
    goes_on = threading.Event()
    busy = workers.submit(goes_on.wait, 10)
    waiting: Future[None] = workers.submit(pytest.fail, "it was begun")
    assert waiting.cancel()
    goes_on.set()
    assert busy.result()
    workers.close()
    assert waiting.cancelled()
    with pytest.raises(StoreClosed):
        workers.submit(int)


def test_what_is_read_ahead_comes_in_order_whatever_is_closed_meanwhile() -> None:
    """The results of before come before those of the caller's own work."""
    workers = Workers(2)
    begun = threading.Event()

    def square(i: int) -> int:
        if i == 0:
            begun.wait(10)
        return i * i

    squares = workers.map_ahead(square, iter(range(9)), ahead=3)
    threading.Timer(0.2, begun.set).start()
    assert next(squares) == 0
    workers.close()
    assert list(squares) == [i * i for i in range(1, 9)]


def test_what_is_read_ahead_ends_with_the_first_error() -> None:
    workers = Workers(1)
    seen = list[int]()

    def work(i: int) -> int:
        seen.append(i)
        return 6 // (2 - i)

    results = workers.map_ahead(work, range(1000), ahead=2)
    assert [next(results), next(results)] == [3, 6]
    with pytest.raises(ZeroDivisionError):
        next(results)
    workers.close()
    assert len(seen) <= 5  # and what had been read ahead


def counted(items: range, taken: list[int]) -> Iterator[int]:
    for item in items:
        taken.append(item)
        yield item


@pytest.mark.parametrize(("ahead", "taken_first"), [(0, 1), (2, 3), (None, 5)])
def test_so_many_are_read_ahead(ahead: int | None, taken_first: int) -> None:
    """Or two for each thread."""
    taken = list[int]()
    workers = Workers(2)
    results = workers.map_ahead(str, counted(range(9), taken), ahead=ahead)
    assert taken == []
    assert next(results) == "0"
    assert len(taken) == taken_first
    assert [*results] == [*"12345678"]
    workers.close()


def test_what_nobody_asks_for_any_more_is_left() -> None:
    workers, goes_on, seen = Workers(1), threading.Event(), list[int]()

    def work(i: int) -> None:
        seen.append(i)
        if i == 1:
            goes_on.wait(10)

    results = workers.map_ahead(work, range(9), ahead=4)
    next(results)
    results.close()  # type: ignore[attr-defined]
    goes_on.set()
    workers.close()
    assert seen in ([0], [0, 1])


@pytest.mark.parametrize("threads", [0, 2])
def test_work_on_threads_of_its_own_ends_with_them(
    monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    """Also where not all that it makes is asked for."""
    made = list[Workers]()

    class Noted(Workers):
        def __init__(self, threads: int) -> None:
            super().__init__(threads)
            made.append(self)

    monkeypatch.setattr(workers_module, "Workers", Noted)
    found = [*map_at_once(lambda i: (i, threading.get_ident()), range(5), threads=threads)]
    assert [i for i, _ in found] == [*range(5)]
    assert (threading.get_ident() in {ident for _, ident in found}) == (threads == 0)
    some = map_at_once(str, range(5), threads=threads)
    assert next(some) == "0"
    some.close()  # type: ignore[attr-defined]
    assert [each.closed for each in made] == [True, True][:threads]


# ---- futures -------------------------------------------------------------------------------------


def test_a_future_tells_when_it_is_done_and_is_run_once() -> None:
    runs, told = list[int](), list[Future[None]]()
    future = Future(lambda: runs.append(1))
    future.add_done_callback(told.append)
    assert not future.done()
    assert not future.wait(0)
    assert told == []
    future.run()
    assert future.done()
    assert [future.wait(0), future.wait(0)] == [True, True]
    assert told == [future]
    future.add_done_callback(told.append)
    assert told == [future, future]
    future.run()
    assert runs == [1]
    assert not future.cancel()
    assert not future.cancelled()
    assert future.result() is None


def test_what_was_cancelled_is_done_and_stays_so() -> None:
    told = list[Future[None]]()
    future: Future[None] = Future(lambda: pytest.fail("it was begun"))
    future.add_done_callback(told.append)
    assert future.cancel()
    assert told == [future]
    future.run()
    assert future.cancel()
    assert future.done()
    assert future.wait(0)
    with pytest.raises(RuntimeError, match="cancelled"):
        future.result()


def test_the_first_error_of_some_is_raised_once_all_have_ended() -> None:
    workers, goes_on = Workers(3), threading.Event()
    assert results_of([workers.submit(pow, 2, i) for i in range(4)]) == [1, 2, 4, 8]
    assert results_of([]) == []
    last = workers.submit(goes_on.wait, 10)
    threading.Timer(0.05, goes_on.set).start()
    with pytest.raises(ValueError, match="first"):
        results_of([workers.submit(int, "first"), workers.submit(divmod, 1, 0), last])  # type: ignore[list-item]
    assert last.done()
    workers.close()


class Held:
    """What a task has."""


def fails(_: Held) -> None:
    raise ValueError


def test_a_task_that_failed_keeps_nothing_of_what_it_had() -> None:
    """A body of a request, for one, of which many fail. (Until the collector of cycles came by.)"""
    held, workers = Held(), Workers(1)
    seen = weakref.ref(held)
    future = workers.submit(fails, held)
    workers.close()
    del held
    gc.disable()
    try:
        with contextlib.suppress(ValueError):
            future.result()
        del future
        assert seen() is None
    finally:
        gc.enable()


def test_a_thread_that_waits_keeps_nothing_of_what_it_did() -> None:
    workers = Workers(1)
    future = workers.submit(Held)
    seen = weakref.ref(future.result())
    del future
    assert workers._pool is not None
    workers._pool._idle.get(timeout=10)  # it waits
    assert seen() is None
    workers.close()


# ---- who does the work ---------------------------------------------------------------------------


def test_the_caller_does_what_it_is_asked_to_until_all_is_closed() -> None:
    """What it raises is in the future, but for an interrupt, which is the caller's."""
    workers = Workers(1)
    assert workers.run_here(threading.get_ident).result() == threading.get_ident()
    assert isinstance(workers.run_here(int, "x").exception(), ValueError)
    with pytest.raises(KeyboardInterrupt):
        workers.run_here(_raise, KeyboardInterrupt())
    workers.close()
    with pytest.raises(StoreClosed):
        workers.run_here(int)


def _raise(error: BaseException) -> None:
    raise error


def test_one_thread_does_all_where_there_is_to_be_one() -> None:
    workers = Workers(1)
    here = threading.get_ident()
    threads = {workers.submit(threading.get_ident).result() for _ in range(4)}
    assert len(threads - {here}) == len(threads) == 1
    workers.close()


@pytest.mark.parametrize("abandon", [False, True])
def test_closing_waits_for_what_was_begun_unless_it_is_abandoned(abandon: bool) -> None:
    workers, goes_on = Workers(1, abandon=abandon), threading.Event()
    busy = workers.submit(goes_on.wait, 10)
    later = workers.submit(int, "7")
    if not abandon:
        threading.Timer(0.05, goes_on.set).start()
    assert not workers.closed
    workers.close()
    assert workers.closed
    assert busy.done() == later.done() == (not abandon)
    goes_on.set()
    assert busy.result()
    assert later.result() == 7
    workers.close()
    Workers(1).close()


def test_the_threads_of_what_is_dropped_end() -> None:
    workers = Workers(2)
    goes_on = threading.Event()
    busy = [workers.submit(goes_on.wait, 10) for _ in range(2)]
    assert workers._pool is not None
    running = [*workers._pool._running]
    assert len(running) == 2
    goes_on.set()
    assert all(results_of(busy))
    del workers
    assert all(each.wait(10) for each in running)


def test_there_is_room_once_one_in_flight_has_landed() -> None:
    flying, (first, second, third) = InFlight(2), [Future(int) for _ in range(3)]
    for future in (first, second):
        flying.wait_for_room()
        flying.add(future)
    second.run()
    flying.wait_for_room()
    assert not first.done()
    flying.add(third)
    threading.Timer(0.05, first.run).start()
    flying.wait_for_room()
    assert first.done()
    assert not third.done()


def test_the_cores_are_those_that_may_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 3}, raising=False)
    assert usable_cores() == 2
    monkeypatch.delattr(os, "sched_getaffinity")  # as on macOS
    for known, cores in ((7, 7), (None, 1)):
        monkeypatch.setattr(os, "cpu_count", lambda known=known: known)
        assert usable_cores() == cores
