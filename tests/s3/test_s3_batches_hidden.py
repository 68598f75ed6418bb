"""Objects of their own that a batch hides: large ones, decided before the batch came. They, and
their packs, go with time; and until then, and after it, they never count again."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from gc_races import Machine
from gc_stores import DAY, HOUR, World, collect, noise

import castore
from castore.errors import NameNotFound
from castore.s3.batches import Batches
from castore.s3.gc import batches as gc_batches
from castore.s3.gc.batches import BatchCollector
from castore.s3.namespace import writing
from castore.system.workers import Future, results_of

BATCH = {name: f"{name} in a batch".encode() for name in ("w", "x", "y", "z")}
HIDDEN = noise(70_000, 1)
Change = Callable[[castore.Store], "bytes | None"]


@pytest.fixture
def world(make_world: Callable[..., World], probed: None, monkeypatch: pytest.MonkeyPatch) -> World:
    """With a single, and what hides it."""
    monkeypatch.setattr(writing, "BATCH_NAMES_MIN", 2)
    world = make_world(batches=True)
    put_hidden(world, monkeypatch)
    assert packs(world)
    assert is_there(world)
    return world


def put_hidden(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The batch has found no single, and is named when this one has come."""
    put = Batches.put
    with world.open("first") as first, world.open("second") as second:

        def come(batches: Batches, *of: Any) -> None:
            second.puts("x", HIDDEN, if_absent=True)
            put(batches, *of)

        with monkeypatch.context() as patched:
            patched.setattr(Batches, "put", come)
            put_batch(first, BATCH)
        assert value(second) == BATCH["x"]


def put_batch(store: castore.Store, objects: dict[str, bytes]) -> None:
    with store.transaction() as t:
        for name, data in objects.items():
            t.puts(name, data)


def packs(world: World) -> list[str]:
    return list(world.server.keys("store/packs/"))


def is_there(world: World) -> bool:
    return "store/names/x" in world.server.keys("store/names/")


def value(store: castore.Store) -> bytes | None:
    try:
        return store.gets("x")
    except NameNotFound:
        return None


def test_it_goes_and_a_grace_later_its_pack(world: World) -> None:
    store = world.open("collects")
    world.pass_time(DAY + HOUR)
    assert collect(store, grace_s=DAY, dry_run=True).manifests_removed == 1
    assert is_there(world)
    assert collect(store, grace_s=DAY).manifests_removed == 1
    assert not is_there(world)
    assert collect(store, grace_s=DAY).packs_condemned == 1
    world.pass_time(DAY + HOUR)
    assert collect(store, grace_s=DAY).packs_removed == 1
    assert not packs(world)
    assert collect(store, grace_s=DAY).found_nothing
    for each in (store, world.open("new")):
        assert {name: each.gets(name) for name in each.names()} == BATCH
    report = store.check(read_data=True)
    assert not report.problems
    assert not report.garbage


def test_not_while_a_list_may_not_know_of_the_batch(world: World) -> None:
    store = world.open("collects")
    world.pass_time(DAY - HOUR)
    assert collect(store).found_nothing
    assert is_there(world)


def test_not_if_it_was_put_over_since_it_was_seen(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.pass_time(2 * DAY)
    other = world.open("other")
    forget = BatchCollector._forget

    def put_then_forget(collector: BatchCollector, *of: Any) -> None:
        other.puts("x", b"newer")
        forget(collector, *of)

    monkeypatch.setattr(BatchCollector, "_forget", put_then_forget)
    assert collect(world.open("collects")).manifests_removed == 0
    assert value(other) == b"newer"


@pytest.mark.parametrize("slept", [HOUR, 60.0])
def test_not_long_after_the_root_was_read(
    world: World, monkeypatch: pytest.MonkeyPatch, slept: float
) -> None:
    world.pass_time(2 * DAY)
    monkeypatch.setattr(gc_batches, "boot_clock", lambda: world.server.clock)
    delete_soon = BatchCollector._delete_soon

    def sleep(collector: BatchCollector, *of: Any) -> None:
        world.pass_time(slept)
        delete_soon(collector, *of)

    monkeypatch.setattr(BatchCollector, "_delete_soon", sleep)
    assert collect(world.open("collects")).manifests_removed == (slept < HOUR)


def test_batches_that_are_merged_each_time_hide_as_long_as_each_did(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gc_batches, "SMALL_MAX", 0)
    removed = 0
    for _ in range(4):
        world.pass_time(DAY / 2)
        report = collect(world.open("collects"))
        assert report.batches_rewritten == 1
        removed += report.manifests_removed
    assert removed == 1


# ------------------------------------------------------------ what comes after


def delete(store: castore.Store) -> None:
    store.delete("x")


def delete_prefix(store: castore.Store) -> None:
    store.delete_prefix("", unbounded=True)


def drop_only(store: castore.Store) -> None:
    """As by who dies then."""
    catalog: Any = store._catalog
    catalog._names.drop(b"x")


def put_over(store: castore.Store) -> bytes:
    store.puts("x", b"newer")
    return b"newer"


def put_over_and_delete(store: castore.Store) -> None:
    store.puts("x", b"newer")
    store.delete("x")


def batch_over(store: castore.Store) -> bytes:
    put_batch(store, dict.fromkeys(BATCH, b"newer"))
    return b"newer"


def batch_over_and_delete(store: castore.Store) -> None:
    batch_over(store)
    store.delete("x")


def put_over_the_others(store: castore.Store) -> bytes:
    for name in BATCH.keys() - {"x"}:
        store.puts(name, b"newer")
    return BATCH["x"]


def delete_all_one_by_one(store: castore.Store) -> None:
    for name in BATCH:
        store.delete(name)


CHANGES: list[Change] = [
    delete,
    delete_prefix,
    drop_only,
    put_over,
    put_over_and_delete,
    batch_over,
    batch_over_and_delete,
    put_over_the_others,
    delete_all_one_by_one,
]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("goes", [True, False])
@pytest.mark.parametrize("collected_first", [True, False])
def test_it_never_counts_again(
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    change: Change,
    goes: bool,
    collected_first: bool,
) -> None:
    """Whatever becomes of what hides it, in whatever steps, and whether it is gone or not."""
    if not goes:
        monkeypatch.setattr(BatchCollector, "_delete_hidden", lambda *of: None)
    store, collects = world.open("one"), world.open("collects")
    if collected_first:
        world.pass_time(2 * DAY)
        collect(collects)
        assert is_there(world) is not goes
    expected = change(store)
    for hours in (0, 2, 2, 2, 30, 30, 200, 2, 2):
        world.pass_time(hours * HOUR)
        assert value(store) == expected
        collect(collects)
        assert value(store) == expected
        assert ("x" in store.names()) == (expected is not None)
        assert value(world.open(f"new {world.server.clock}")) == expected
    report = collects.check(read_data=True)
    assert not report.problems
    if goes:
        assert not packs(world)
        assert not report.garbage
        assert collect(collects).found_nothing


# ------------------------------------------------------------ beside readers


def reading(world: World, stop_at: int, results: list[bytes | None]) -> tuple[Machine, bool]:
    reads = Machine(world, f"reads {stop_at}")
    return reads, reads.start(lambda m: results.append(value(m.store)), stop_at=stop_at)


@pytest.mark.parametrize("change", [delete, delete_prefix, drop_only, put_over])
def test_who_reads_meanwhile_sees_what_counted(
    make_world: Callable[..., World],
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    change: Change,
) -> None:
    """The collection, and then the change, come between any two requests."""
    for j in itertools.count():
        world = make_world(batches=True)
        put_hidden(world, monkeypatch)
        world.pass_time(2 * DAY)
        store, collects = world.open("one"), world.open("collects")
        results: list[bytes | None] = []
        reads, stopped = reading(world, j, results)
        collect(collects)
        assert not is_there(world)
        expected = change(store)
        reads.finish()
        assert reads.error is None
        assert results[0] in (BATCH["x"], expected)
        world.close()
        if not stopped:
            assert j > 2
            return


def test_a_drop_is_kept_until_nobody_reads_what_it_hid(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A collection dies when it has deleted that, and another comes at once."""
    store, collects = world.open("one"), world.open("collects")
    for name in BATCH.keys() - {"x"}:
        store.puts(name, b"newer")
    world.pass_time(2 * HOUR)
    drop_only(store)
    world.pass_time(HOUR / 2)
    assert collect(collects, grace_s=DAY).batches_rewritten == 1  # of which nothing is left
    world.pass_time(1.1 * HOUR)
    results: list[bytes | None] = []
    reads, stopped = reading(world, 1, results)
    assert stopped  # it has the single, and asks for the root

    def die(futures: Sequence[Future[bool]]) -> list[bool]:
        done = results_of(futures)
        if done:
            raise KeyboardInterrupt
        return done

    with monkeypatch.context() as patched:
        patched.setattr(gc_batches, "results_of", die)
        with pytest.raises(KeyboardInterrupt):
            collect(collects, grace_s=DAY)
    assert not is_there(world)
    collect(world.open("other"), grace_s=DAY)
    reads.finish()
    assert (reads.error, results) == (None, [None])
