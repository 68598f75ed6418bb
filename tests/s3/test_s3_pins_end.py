"""A session that ends leaves no pin, and what was uploaded for nothing is garbage at once, however
it ends: unless a request may land yet that relies on it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any

import pytest
from gc_stores import World, collect, noise
from memory_s3 import Losing, Step

import castore
from castore.errors import CastoreError, NameExists, StoreClosed
from castore.s3 import uploads
from castore.s3.names import NameWriter
from castore.s3.session import S3Session
from castore.system.workers import Future, Workers

SIZE = 200_000


def pins(world: World) -> list[str]:
    return world.server.keys("store/pins/")


def refused_at_once(store: castore.Store) -> None:
    with pytest.raises(NameExists):
        store.open("there", "xb")


def refused_at_the_end(store: castore.Store) -> None:
    file = store.open("late", "xb")
    file.write(noise(SIZE, 1))
    store.copy("there", "late")
    with pytest.raises(NameExists):
        file.close()


def a_put_that_is_refused(store: castore.Store) -> None:
    with pytest.raises(NameExists):
        store.puts("there", noise(SIZE, 2), if_absent=True)


def a_block_that_raises(store: castore.Store) -> None:
    with contextlib.suppress(ZeroDivisionError), store.open("new", "wb") as file:
        file.write(noise(SIZE, 3))
        raise ZeroDivisionError


def a_transaction_that_raises(store: castore.Store) -> None:
    with contextlib.suppress(ZeroDivisionError), store.transaction() as transaction:
        transaction.puts("new", noise(SIZE, 4))
        raise ZeroDivisionError


def a_source_that_fails(store: castore.Store) -> None:
    class Source:
        left = 4

        def read(self, size: int) -> bytes:
            self.left -= 1
            if not self.left:
                raise OSError("the source failed")
            return noise(SIZE // 2, self.left)

    with pytest.raises(OSError, match="the source failed"):
        store.put("new", Source())


WAYS = [
    refused_at_once,
    refused_at_the_end,
    a_put_that_is_refused,
    a_block_that_raises,
    a_transaction_that_raises,
    a_source_that_fails,
]


@pytest.fixture
def store(world: World, monkeypatch: pytest.MonkeyPatch) -> castore.Store:
    monkeypatch.setattr(uploads, "PACK_BYTES_FIRST", 30_000)
    monkeypatch.setattr(uploads, "PACK_BYTES_MAX", 60_000)
    monkeypatch.setattr("castore.stream.writer.BATCH_BYTES", 50_000)
    store = world.open("writer")
    store.puts("there", noise(SIZE, 9))
    return store


def is_tidy(world: World) -> None:
    """Once another machine has collected, while the first still has its store open."""
    collect(world.open("collector"))
    assert collect(world.open("collector")).found_nothing
    report = world.open("judge").check(True)
    assert (report.exit_code, report.garbage) == (0, {})
    assert world.open("judge").stats().pack_bytes < 1.1 * SIZE


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_whatever_becomes_of_a_put(
    world: World, store: castore.Store, way: Callable[[castore.Store], None]
) -> None:
    way(store)
    with contextlib.suppress(castore.errors.NameNotFound):
        store.delete("late")
    is_tidy(world)
    store.puts("goes on", noise(SIZE, 9))
    assert store.gets("goes on") == noise(SIZE, 9)
    store.close()
    assert pins(world) == []


def test_a_store_that_is_closed_with_a_put_under_way(world: World, store: castore.Store) -> None:
    transaction = store.transaction()
    transaction.puts("new", noise(SIZE, 5))
    file = store.open("file", "wb")
    file.write(noise(SIZE, 6))
    store.close()
    assert pins(world) == []
    with pytest.raises(StoreClosed):
        transaction.commit()
    with pytest.raises(CastoreError):
        file.close()
    is_tidy(world)
    assert list(world.open("reader").names()) == ["there"]


def test_a_pin_that_is_refused_is_no_unknown_outcome(world: World, store: castore.Store) -> None:
    store.close()
    store = world.open("writer")
    refused: list[Step] = []

    def refuse(step: Step) -> tuple[int, str] | None:
        if step.kind == "PUT" and step.key.startswith("pins/") and not refused:
            refused.append(step)
            return 403, "AccessDenied"
        return None

    world.server.refuse = refuse
    with pytest.raises(CastoreError):
        store.puts("new", noise(SIZE, 7))
    store.puts("new", noise(SIZE, 7))
    assert refused
    store.close()
    assert pins(world) == []
    assert world.open("reader").gets("new") == noise(SIZE, 7)


def another_comes_first(world: World) -> None:
    """The name is not there when the commit looks, and is when it is put."""

    def came(step: Step) -> None:
        if step == ("PUT", "names/new"):
            objects = world.server.objects
            objects["store/names/new"] = objects["store/names/there"]
            world.server.refuse = lambda step: None

    world.server.refuse = came


def test_a_name_that_another_came_to_first_leaves_no_pin(
    world: World, store: castore.Store
) -> None:
    """That is no unknown outcome: what was refused does not land any more."""
    another_comes_first(world)
    with pytest.raises(NameExists):
        store.puts("new", noise(SIZE, 2), if_absent=True)
    store.close()
    assert pins(world) == []
    is_tidy(world)


@pytest.mark.parametrize("batches", [False, True])
def test_a_name_that_may_land_yet_keeps_its_pins_whoever_came_first(
    make_world: Callable[..., World], batches: bool
) -> None:
    """Of the first attempt nothing was heard, and the second one is refused. When the other is
    deleted the first one lands, and what it leads to is to be there."""
    world = make_world(batches=batches)
    store = world.open("one")
    store.puts("there", noise(SIZE, 1))
    writer = world.open("another writer", Losing("another writer", "PUT", "names/new"))
    another_comes_first(world)
    with pytest.raises(NameExists):
        writer.puts("new", noise(SIZE, 2), if_absent=True)
    writer.close()
    store.delete("new")
    collect(world.open("collector"))
    world.server.land()
    assert world.open("reader").gets("new") == noise(SIZE, 2)
    assert world.open("judge").check(True).problems == []


def test_a_put_after_one_whose_pin_failed_has_a_pin(world: World, store: castore.Store) -> None:
    """Or a collector that comes by before its name is there takes what it has uploaded."""
    store.close()
    store = world.open("writer")
    world.server.refuse = lambda step: (
        (403, "AccessDenied") if step.kind == "PUT" and step.key.startswith("pins/") else None
    )
    with pytest.raises(CastoreError):
        store.puts("new", noise(SIZE, 7))
    world.server.refuse = lambda step: None
    with store.transaction() as transaction:
        transaction.puts("new", noise(SIZE, 7))
        transaction._session._uploads.finish()  # type: ignore[attr-defined]
        collect(world.open("collector"))
    assert world.open("reader").gets("new") == noise(SIZE, 7)


def test_a_put_that_begins_while_another_fails_does_not_rely_on_its_pins(
    world: World, store: castore.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They go with it, whatever thread it is in."""
    store.close()
    store = world.open("writer")
    failing = store.transaction()
    failing.puts("failing", noise(SIZE, 9) + noise(SIZE, 8))
    failing._session._uploads.finish()  # type: ignore[attr-defined]
    made = S3Session.__init__

    def meanwhile(*arguments: Any, **options: Any) -> None:
        failing.abort()
        made(*arguments, **options)

    monkeypatch.setattr(S3Session, "__init__", meanwhile)
    with store.transaction() as transaction:
        transaction.puts("new", noise(SIZE, 9))
        world.open("another").delete("there")
        collect(world.open("collector"))
    assert world.open("reader").gets("new") == noise(SIZE, 9)


def a_commit(store: castore.Store) -> None:
    store.puts("new", noise(SIZE, 7))


def a_collection(store: castore.Store) -> None:
    store.gc(grace_s=0.0, repack_below=1.0)


@pytest.mark.parametrize("verb", [a_commit, a_collection], ids=lambda verb: verb.__name__)
def test_a_name_that_is_put_after_an_interrupt_has_its_pins(
    world: World,
    store: castore.Store,
    monkeypatch: pytest.MonkeyPatch,
    verb: Callable[[castore.Store], None],
) -> None:
    """It was handed to a thread that had not come to it."""
    store.puts("there", noise(SIZE, 9)[: SIZE // 2])  # of what is in packs, half is garbage
    go = threading.Event()
    put, exception = NameWriter.put, Future.exception

    def late(*arguments: Any, **options: Any) -> None:
        go.wait()
        names_late.append(threading.current_thread())
        put(*arguments, **options)

    def interrupted(future: Future[Any]) -> BaseException | None:
        if not future.wait(0.5):
            raise KeyboardInterrupt
        return exception(future)

    names_late: list[threading.Thread] = []
    monkeypatch.setattr(NameWriter, "put", late)
    monkeypatch.setattr(Future, "exception", interrupted)
    with pytest.raises(KeyboardInterrupt):
        verb(store)
    monkeypatch.setattr(Future, "exception", exception)
    collect(world.open("collector"))
    go.set()
    store._backend._requests.close()  # type: ignore[union-attr]
    assert names_late
    reader = world.open("reader")
    assert [len(reader.gets(name)) for name in reader.names()]


def test_a_name_that_comes_after_the_store_is_closed_is_not_put(
    world: World, store: castore.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its thread had begun, and not come to the name: the pins are gone by then."""
    put = NameWriter.put

    def late(*arguments: Any, **options: Any) -> None:
        store._backend._lease.abandon()  # type: ignore[union-attr]
        collect(world.open("collector"))
        put(*arguments, **options)

    monkeypatch.setattr(NameWriter, "put", late)
    with pytest.raises(StoreClosed):
        store.puts("new", noise(SIZE, 7))
    assert list(world.open("reader").names()) == ["there"]


def test_a_name_that_is_put_while_the_store_is_closed_has_its_pins(
    world: World, store: castore.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was handed to a thread, and the next one could not be."""
    go, requests, handed = threading.Event(), store._backend._requests, 0  # type: ignore[union-attr]
    put, submit = NameWriter.put, Workers.submit

    def late(*arguments: Any, **options: Any) -> None:
        go.wait()
        put(*arguments, **options)

    def closing(workers: Workers, task: Callable[..., Any], *given: Any, **named: Any) -> Any:
        nonlocal handed
        handed += getattr(task, "__name__", "") == "publish"
        if handed == 2:
            raise StoreClosed("the store was closed meanwhile")
        return submit(workers, task, *given, **named)

    monkeypatch.setattr(NameWriter, "put", late)
    transaction = store.transaction()
    for name in ("one", "two", "three"):
        transaction.puts(name, noise(SIZE, len(name)))
    monkeypatch.setattr(Workers, "submit", closing)
    with pytest.raises(StoreClosed):
        transaction.commit()
    monkeypatch.setattr(Workers, "submit", submit)
    collect(world.open("collector"))
    go.set()
    requests.close()
    reader = world.open("reader")
    assert [len(reader.gets(name)) for name in reader.names()] == [SIZE, SIZE]
