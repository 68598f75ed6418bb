"""What a signal handler raises (Ctrl-C, a soft time limit) ends the verb that it strikes, and no
more: wherever it strikes, the store goes on, for other threads too, and is whole."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import castore
from castore.workers import InFlight, Workers

WAIT_SECONDS = 30.0  # until a thread counts as hanging


class Soft(Exception):
    """What a handler raises."""


def raise_soft(*_: object) -> None:
    raise Soft


@pytest.fixture
def alarm() -> Iterator[None]:
    before = signal.signal(signal.SIGALRM, raise_soft)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def in_time(action: Callable[[], Any]) -> None:
    """Do it in a thread of its own, which must come to its end."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            action()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(WAIT_SECONDS)
    assert not thread.is_alive(), "it hangs"
    assert not raised, raised


def storm(
    strike: Callable[[], Any], after: Callable[[], Any], *, seconds: float, longest: float
) -> int:
    """Interrupt `strike` at moments up to `longest` seconds from its begin, for so long, and see
    each time that others go on; how often it was interrupted. The exception is kept meanwhile, as
    a notebook keeps the last."""
    choose, interrupted = random.Random(7), 0
    kept: list[Soft] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            signal.setitimer(signal.ITIMER_REAL, choose.uniform(1e-6, longest))
            strike()
            signal.setitimer(signal.ITIMER_REAL, 0)
        except Soft as error:
            interrupted += 1
            kept = [error]
        if interrupted % 16 == 0:
            in_time(after)
    in_time(after)
    del kept
    return interrupted


# ---------------------------------------------------------------- threads


def test_workers(alarm: None) -> None:
    workers, flying = Workers(3), InFlight(2)

    def strike() -> None:
        futures = [workers.submit(pow, 3, i) for i in range(4)]
        for future in futures:
            flying.wait_for_room()
            flying.add(future)
        assert [future.result() for future in futures] == [1, 3, 9, 27]

    def after() -> None:
        assert workers.submit(pow, 2, 5).result() == 32
        flying.wait_for_room()

    assert storm(strike, after, seconds=1.5, longest=3e-4) > 50
    in_time(workers.close)


# ---------------------------------------------------------------- what the disk did not say


class TimeUp(TimeoutError):
    """An OSError, as that of many limits of time is."""


@pytest.mark.parametrize("call", ["fsync", "pwritev", "open", "mkdir", "stat"])
def test_a_handlers_error_is_not_the_disks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def late(number: int, frame: FrameType | None) -> None:
        raise TimeUp(110, "time is up") if call == "pwritev" else TimeUp("time is up")

    before = signal.signal(signal.SIGALRM, late)
    try:
        with castore.open(tmp_path / "store") as store:
            store.puts("before", os.urandom(9000))
            real = getattr(os, call)

            def slow(*arguments: Any, **options: Any) -> Any:
                monkeypatch.setattr(os, call, real)
                signal.raise_signal(signal.SIGALRM)
                return real(*arguments, **options)

            for i in range(3):
                store._local.packs.retire()  # the next put makes a pack
                monkeypatch.setattr(os, call, slow)
                with contextlib.suppress(TimeUp):
                    store.puts(f"{i}", os.urandom(9000))
                monkeypatch.setattr(os, call, real)
                data = os.urandom(9000)
                store.puts("after", data)
                assert store.gets("after") == data
            assert store.check(read_data=True).exit_code in (0, 1)
    finally:
        signal.signal(signal.SIGALRM, before)
