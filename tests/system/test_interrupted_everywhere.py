"""What a signal handler raises, at each place where one can: the store goes on, and is whole.

Each verb is interrupted at the first and the last time that it comes by each such place."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from gc_stores import World
from interrupted import Soft, Step, steps_of, strike
from memory_s3 import MemoryAttempts
from threads import in_threads

import castore
from castore.local import folder
from castore.local.store import LocalStore
from castore.s3 import uploads
from castore.system.lockfile import LockFile
from castore.system.locks import CalledLock
from castore.system.workers import Workers

# The error of a file that is dropped unclosed, as by an interrupt right behind its opening.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


def in_time(action: Callable[[], Any], step: Step) -> None:
    """Do it in a thread of its own, which must come to its end."""
    try:
        in_threads(action)
    except BaseException as error:
        raise AssertionError(f"after {step}") from error


class Verbs:
    """What is done to a store, under the name that a test has for it."""

    def __init__(self, store: castore.Store) -> None:
        self.store = store
        self.large, self.small = os.urandom(60_000), os.urandom(500)
        self.counted = 0
        store.puts("kept", self.large)

    def puts(self) -> None:
        self.store.puts("struck", os.urandom(20_000))

    def transaction(self) -> None:
        with self.store.transaction() as transaction:
            transaction.puts("struck", self.small)
            transaction.puts("struck/2", self.large[:30_000])

    def write(self) -> None:
        with self.store.open("struck", "wb") as file:
            file.write(self.large)

    def copy(self) -> None:
        self.store.copy("kept", "struck")

    def delete(self) -> None:
        self.store.delete_prefix("struck")

    def read(self) -> None:
        assert self.store.gets("kept") == self.large
        with self.store.open("kept") as file:
            file.read(7_000)

    def look(self) -> None:
        list(self.store.list())
        self.store.stats()

    def collect(self) -> None:
        self.store.gc(grace_s=0.0)

    def go_on(self) -> None:
        """What others do meanwhile."""
        self.counted += 1
        count = b"%d" % self.counted
        self.store.puts("other", self.small + count)
        assert self.store.gets("other") == self.small + count
        assert self.store.gets("kept") == self.large


LOCKING = CalledLock.__enter__.__code__
VERBS = ["puts", "transaction", "write", "copy", "delete", "read", "look", "collect"]
EVERY = 25  # by default; each step in the long run


@pytest.fixture(
    params=[EVERY, pytest.param(1, marks=[pytest.mark.long, pytest.mark.timeout(1800)])]
)
def every(request: pytest.FixtureRequest) -> int:
    return int(request.param)


def strikes(verbs: Verbs, name: str, every: int) -> Iterator[Step]:
    """Interrupt the verb at every so many of its steps; see each time that others go on. Then the
    error is let go of, and its step is given."""
    verb = getattr(verbs, name)
    verb()
    steps = steps_of(verb)
    assert len(steps) > 50
    struck = 0
    for step in steps[sum(map(ord, name)) % every :: every]:
        error = strike(verb, step)
        struck += isinstance(error, Soft)
        assert error is None or isinstance(error, Soft), (step, error)
        in_time(verbs.go_on, step)
        in_time(verbs.collect, step)
        del error
        yield step
    assert struck > len(steps) / every / 2


def locked(root: Path) -> list[Path]:
    """Of the store's files that are locked while they are in use: those that still are."""
    found = []
    for path in [*root.glob("packs/*/*"), root / "castore.gc"]:
        if path.exists():
            with LockFile(str(path), os.O_RDWR) as file:
                if not file.take():
                    found.append(path)
    return found


@pytest.mark.parametrize("name", VERBS)
def test_a_local_store(tmp_path: Path, name: str, every: int) -> None:
    root = tmp_path / "store"
    store = castore.open(root, chunk_bytes_avg=2816, threads=2)
    verbs = Verbs(store)
    for step in strikes(verbs, name, every):
        verbs.go_on()  # it lets go of what only the error had kept
        verbs.collect()  # and this, of the open pack
        assert not locked(root), step
    store.close()
    with castore.open(root) as again:
        again.gc()
        report = again.check(read_data=True)
        assert report.clean, report.problems
        assert not [p for p in root.glob("packs/*/*") if p.suffix != ".pack"]


def test_the_lock_of_a_folder(tmp_path: Path) -> None:
    """Nobody could have the store to itself, were it not let go of."""
    castore.open(tmp_path / "store").close()
    root = str(tmp_path / "store")

    def hold() -> None:
        lock = folder.share(root)
        assert lock is not None
        lock.close_unless_replaced()

    steps = steps_of(hold)
    assert len(steps) > 20
    struck = 0
    for step in steps:
        struck += isinstance(strike(hold, step), Soft)
        with folder.alone(root):
            pass
    assert struck > 20


def test_a_store_that_is_being_closed(tmp_path: Path) -> None:
    """It is let go of: nobody could have it to itself else, nor close it again."""
    root = tmp_path / "store"

    def written() -> castore.Store:
        store = castore.open(root, chunk_bytes_avg=2816, threads=2)
        store.puts("name", os.urandom(20_000))
        return store

    steps = steps_of(written().close)
    assert len(steps) > 50
    struck = 0
    for step in steps:
        if step[0][0] is LocalStore.close.__code__ and step[0][2] == "call":
            continue  # nothing of it was done
        store = written()
        struck += isinstance(strike(store.close, step), Soft)
        # Of the first step, and as its lock was being taken, nothing was done.
        nothing_done = step == steps[0] or (step[0][0] is LOCKING and step[1] == 0)
        assert store.closed or nothing_done, step
        store.close()
        with folder.alone(str(root)):
            pass
    assert struck > 50
    report = castore.check_store(root, read_data=True)
    assert not [p for p in report.problems if p.severity != "warning"], report.problems


def goes_on(store: castore.Store, every: int) -> None:
    """A transaction in which a put is interrupted, and that is committed nevertheless, has all that
    was put before it and after."""

    def puts(transaction: castore.Transaction) -> None:
        transaction.puts("struck", os.urandom(100_000))

    with store.transaction() as transaction:
        transaction.puts("before", os.urandom(70_000))
        steps = steps_of(lambda: puts(transaction))
    struck = 0
    for step in steps[:: max(1, every // 5)]:
        with store.transaction() as transaction:
            transaction.puts("before", before := os.urandom(70_000))
            struck += isinstance(strike(partial(puts, transaction), step), Soft)
            transaction.puts("after", after := os.urandom(70_000))
        assert store.gets("before") == before, step
        assert store.gets("after") == after, step
    assert struck > 50


def test_a_transaction_that_goes_on(tmp_path: Path, every: int) -> None:
    with castore.open(tmp_path / "store", chunk_bytes_avg=2816, threads=2) as store:
        goes_on(store, every)


@pytest.fixture
def asked_by_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server in memory has locks that Python code takes. Attempts asks a server so, too."""
    senders, ask = Workers(8, abandon=True), MemoryAttempts._ask

    def sent(attempts: MemoryAttempts, *asked: Any, **options: Any) -> Any:
        return senders.submit(ask, attempts, *asked, **options).result()

    monkeypatch.setattr(MemoryAttempts, "_ask", sent)


def test_a_transaction_on_s3_that_goes_on(
    world: World, asked_by_others: None, monkeypatch: pytest.MonkeyPatch, every: int
) -> None:
    monkeypatch.setattr(uploads, "PACK_BYTES_FIRST", 90_000)  # filled while the second is put
    goes_on(world.open(), every)


@pytest.mark.parametrize("name", VERBS)
def test_a_store_on_s3(world: World, asked_by_others: None, name: str, every: int) -> None:
    store = world.open()
    verbs = Verbs(store)
    for step in strikes(verbs, name, every):
        assert store.gets("kept") == verbs.large, step
    store.close()
    report = world.open("two").check(read_data=True)
    assert all(p.severity == "warning" for p in report.problems), report.problems


def test_the_pins_of_a_store_on_s3_that_is_being_closed(
    world: World, asked_by_others: None
) -> None:
    """They go, also if the wait for its threads is interrupted: for a week they would keep what it
    put."""

    def written() -> castore.Store:
        store = world.open()
        store.puts("name", os.urandom(100_000))
        return store

    def pins() -> list[str]:
        with world.bucket() as bucket:
            return [entry.key for entry in bucket.list("pins/")]

    close = Workers.close.__code__
    steps = [step for step in steps_of(written().close) if step[0][0] is close]
    assert pins() == []
    struck = 0
    for step in steps:
        store = written()
        assert pins()
        struck += isinstance(strike(store.close, step), Soft)
        assert pins() == [], step
    assert struck >= 4
