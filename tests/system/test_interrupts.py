"""What a signal handler raises (Ctrl-C, a soft time limit) ends the verb that it strikes, and no
more: wherever it strikes, the store goes on, for other threads too, and is whole."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from gc_stores import World
from memory_s3 import MemoryAttempts
from places import ROOT
from threads import in_threads

import castore
from castore.system.fileio import is_interrupt
from castore.system.workers import InFlight, Workers


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
            try:
                signal.setitimer(signal.ITIMER_REAL, choose.uniform(1e-6, longest))
                strike()
            finally:  # or what else it raises is followed by an alarm in pytest itself
                signal.setitimer(signal.ITIMER_REAL, 0)
        except Soft as error:
            interrupted += 1
            kept = [error]
        if interrupted % 16 == 0:
            in_threads(after)
    in_threads(after)
    del kept
    return interrupted


# ---------------------------------------------------------------- these tests


@pytest.mark.long
def test_ctrl_c_is_heard_where_the_tests_are_begun_in_the_background() -> None:
    """What is begun by a process that ignores it does, too: so all that the tests begin would."""
    test = "tests/system/test_cli.py::test_an_interrupted_put_publishes_nothing"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", test],
        cwd=ROOT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout.decode()


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
    in_threads(workers.close)


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
                store._backend.packs.retire()  # the next put makes a pack
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


class Handler:
    def __call__(self, number: int, frame: FrameType | None) -> None:
        raise TimeUp(110, "time is up")

    def method(self, number: int, frame: FrameType | None) -> None:
        self(number, frame)


def handle(why: str, number: int, frame: FrameType | None) -> None:
    raise TimeUp(110, why)


@pytest.mark.parametrize(
    "handler",
    [partial(handle, "late"), partial(partial(handle), "late"), Handler(), Handler().method],
)
def test_what_a_handler_of_any_kind_raises_is_an_interrupt(handler: Any) -> None:
    before = signal.signal(signal.SIGALRM, handler)
    try:
        with pytest.raises(TimeUp) as caught:
            signal.raise_signal(signal.SIGALRM)
        assert is_interrupt(caught.value)
        with pytest.raises(TimeUp) as another:
            raise TimeUp(110, "the disk's")
        assert not is_interrupt(another.value)
    finally:
        signal.signal(signal.SIGALRM, before)


# ---------------------------------------------------------------- the verbs


# An iterator of a folder is closed when its traceback goes, and Python warns of it.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def use(store: castore.Store, seconds: float, longest: float) -> None:
    """Every verb that takes locks, interrupted; what others put meanwhile is there."""
    choose = random.Random(3)
    large, small = os.urandom(400_000), os.urandom(500)
    done = 0

    def write() -> None:
        match choose.randrange(5):
            case 0:
                store.puts("struck", os.urandom(80_000))
            case 1:
                with store.transaction() as transaction:
                    transaction.puts("struck", small)
                    transaction.puts("struck/2", large[: choose.randrange(100_000)])
            case 2:
                with store.open("struck", "wb") as file:
                    file.write(large)
            case 3:
                store.copy("kept", "struck")
            case 4:
                store.delete_prefix("struck")

    def read() -> None:
        assert store.gets("kept") == large
        with store.open("kept") as file:
            file.read(70_000)
        store.exists("struck")
        list(store.list())
        store.stats()

    def after() -> None:
        nonlocal done
        done += 1
        store.puts("other", small + b"%d" % done)
        assert store.gets("other") == small + b"%d" % done
        assert store.gets("kept") == large

    store.puts("kept", large)
    assert storm(write, after, seconds=seconds, longest=longest) > 10
    assert storm(read, after, seconds=seconds / 2, longest=longest) > 10
    assert storm(lambda: store.gc(grace_s=0.0), after, seconds=seconds / 2, longest=longest) > 2
    in_threads(lambda: store.gc(grace_s=0.0))


@pytest.mark.long
def test_a_local_store(tmp_path: Path, alarm: None) -> None:
    store = castore.open(tmp_path / "store", chunk_bytes_avg=2816, threads=2)
    use(store, seconds=3, longest=8e-3)
    in_threads(store.close)
    with castore.open(tmp_path / "store") as again:
        again.gc()
        report = again.check(read_data=True)
        assert report.clean, report.problems
        assert not [p for p in (tmp_path / "store").glob("packs/*/*") if p.suffix != ".pack"]


@pytest.mark.long
def test_a_store_on_s3(world: World, alarm: None, monkeypatch: pytest.MonkeyPatch) -> None:
    # The server in memory has locks that Python code takes. Attempts asks a server so, too.
    senders, ask = Workers(8, abandon=True), MemoryAttempts._ask

    def sent(attempts: MemoryAttempts, *asked: Any, **options: Any) -> Any:
        return senders.submit(ask, attempts, *asked, **options).result()

    monkeypatch.setattr(MemoryAttempts, "_ask", sent)
    store = world.open()
    use(store, seconds=3, longest=8e-3)
    in_threads(store.close)
    report = world.open("two").check(read_data=True)
    assert all(p.severity == "warning" for p in report.problems), report.problems
