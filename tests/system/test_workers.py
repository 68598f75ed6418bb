"""Work is done where no thread can be started, and once; and an interrupt leaves nothing taken."""

from __future__ import annotations

import _thread
import contextlib
import gc
import subprocess
import sys
import threading
import weakref

import pytest

from castore.errors import StoreClosed
from castore.system.workers import Future, Workers

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
