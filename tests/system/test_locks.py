"""Locks and latches, interrupted at each place where a signal handler can be run."""

from __future__ import annotations

import _thread
import re
import threading
from functools import partial
from pathlib import Path

import pytest
from interrupted import Soft, steps_of, strike
from threads import in_threads

import castore
import conducto
from castore.system.locks import CalledLock, Latch, Lock

needs_count = pytest.mark.skipif(
    not hasattr(_thread.RLock, "_recursion_count"), reason="before Python 3.11.7 or so"
)


@pytest.fixture(params=[pytest.param(CalledLock, marks=needs_count), Lock])
def lock(request: pytest.FixtureRequest) -> _thread.RLock:
    made: _thread.RLock = request.param()
    return made


def taken(lock: _thread.RLock) -> None:
    with lock:
        pass


def test_an_interrupt_leaves_no_lock_taken(lock: _thread.RLock) -> None:
    take = partial(taken, lock)
    steps = steps_of(take)
    assert steps
    for step in steps:
        assert isinstance(strike(take, step), Soft)
        assert free_for_others(lock)


def test_an_interrupt_leaves_what_was_taken_before(lock: _thread.RLock) -> None:
    take = partial(taken, lock)
    for step in steps_of(take):
        with lock:
            assert isinstance(strike(take, step), Soft)
            assert free_for_others(lock) is False
        assert free_for_others(lock) is True


def free_for_others(lock: _thread.RLock) -> bool:
    found = []

    def look() -> None:
        found.append(lock.acquire(blocking=False))
        if found[0]:
            lock.release()

    in_threads(look)
    return found[0]


@pytest.mark.skipif(Lock is not CalledLock, reason="a `with` is one step here")
def test_a_signal_leaves_no_lock_taken() -> None:
    """Of one of C's, every second of these is."""
    import signal

    def handler(*_: object) -> None:
        raise Soft

    def loop(lock: _thread.RLock) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0.0002)
        while True:
            taken(lock)

    lock, before = Lock(), signal.signal(signal.SIGALRM, handler)
    try:
        for _ in range(500):
            with pytest.raises(Soft):
                loop(lock)
            assert free_for_others(lock)
    finally:
        signal.signal(signal.SIGALRM, before)


def test_a_latch_that_is_waited_for_and_interrupted_lets_others_pass() -> None:
    latch = Latch()
    threading.Timer(0.01, latch.open).start()
    steps = steps_of(latch.wait)
    struck = 0
    for step in steps:
        latch = Latch()
        threading.Timer(0.01, latch.open).start()
        struck += isinstance(strike(latch.wait, step), Soft)
        in_threads(latch.wait, latch.wait)
        assert latch._closed.acquire(blocking=False), step
    assert struck


def test_a_latch_is_open_for_good_to_all() -> None:
    latch = Latch()
    assert latch.wait(0.001) is False
    waiting = [lambda: results.append(latch.wait()) for _ in range(5)]
    results: list[bool] = []
    in_threads(*waiting, latch.open)
    assert results == [True] * 5
    latch.open()
    assert latch.wait(0) is True


def test_every_lock_is_one_of_these() -> None:
    """Of others the `with` is no one step from Python 3.14 on."""
    named = re.compile(r"threading\.(R?Lock|Semaphore)\(|_thread\.RLock\(\)")
    found = {
        path.name
        for package in (castore, conducto)
        for path in Path(package.__file__).parent.rglob("*.py")
        if "testing" not in path.parts and named.search(path.read_text())
    }
    assert found == set()
