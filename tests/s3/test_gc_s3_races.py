"""Collectors and writers that come between any two steps of each other; that die, or sleep, at any
step."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
from gc_races import (
    KEPT,
    SHARED,
    WRITERS,
    Machine,
    broken,
    collects,
    late,
    losses,
    meetings,
    prepare,
    repacks,
    settle,
    sleeps,
)
from gc_stores import DAY, HOUR, World, collect

from castore.errors import CastoreError, StoreBusy
from castore.s3.session import S3Session

Make = Callable[[], World]
COLLECTORS = {"collects": collects, "repacks": repacks}


pytestmark = pytest.mark.usefixtures("probed")


def check_meetings(make_world: Make, writer: str, collector: str, every: int) -> None:
    count = 0
    meeting = meetings(make_world, WRITERS[writer], COLLECTORS[collector], every=every)
    for world, one, two, where in meeting:
        assert one.error is None, where
        assert two.error is None, where
        assert losses(world, one) == [], where
        count += 1
        if not count % 10:
            settle(world)
            assert losses(world, one) == [], where
    assert count > 20


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.sampled(6)
def test_a_writer_and_a_collector(make_world: Make, writer: str) -> None:
    check_meetings(make_world, writer, "collects", every=12)


def test_a_put_of_deltas_makes_them(make_world: Make) -> None:
    """Of bases in a pack that nothing else needs any more."""
    world = make_world()
    prepare(world)
    one = Machine(world, "one")
    one.start(WRITERS["deltas"])
    assert one.error is None
    with world.open("reader") as store:
        assert store.stats().deltas > 10
        assert len(store._catalog.current(b"shared 2").head.packs) == 2  # type: ignore[attr-defined]
    settle(world)
    assert losses(world, one) == []


@pytest.mark.parametrize("collector", COLLECTORS)
def test_a_put_of_deltas_and_a_collector(make_world: Make, collector: str) -> None:
    check_meetings(make_world, "deltas", collector, every=50)


@pytest.mark.long
@pytest.mark.damages_store("bases are not pinned")
def test_a_put_that_pins_no_bases_loses_them(
    make_world: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(S3Session, "reliable", lambda self, bases: {base: base for base in bases})
    found = (
        losses(world, one)
        for world, one, _, _ in meetings(make_world, WRITERS["deltas"], collects, every=5)
    )
    assert any(found)


def test_a_writer_and_a_collector_that_repacks(make_world: Make) -> None:
    check_meetings(make_world, "overwrite", "repacks", every=24)


@pytest.mark.long
def test_what_is_deleted_does_not_come_back_repacked(make_world: Make) -> None:
    def deletes(machine: Machine) -> None:
        machine.delete("kept")
        machine.store.close()

    for world, one, _, where in meetings(make_world, deletes, repacks):
        assert losses(world, one) == [], where


@pytest.mark.long
@pytest.mark.parametrize("collector", COLLECTORS)
@pytest.mark.parametrize("writer", WRITERS)
def test_each_step_and_each_step(make_world: Make, writer: str, collector: str) -> None:
    check_meetings(make_world, writer, collector, every=1)


@pytest.mark.parametrize("every", [60, pytest.param(1, marks=pytest.mark.long)])
def test_two_collectors(make_world: Make, every: int) -> None:
    for world, one, two, where in meetings(make_world, collects, collects, every=every):
        for machine in (one, two):
            assert machine.error is None or isinstance(machine.error, StoreBusy), where
        assert one.error is None or two.error is None, where
        assert losses(world) == [], where
        settle(world)
        assert losses(world) == [], where


@pytest.mark.parametrize("collector", COLLECTORS)
@pytest.mark.sampled(4)
def test_a_collector_that_dies_at_any_step(make_world: Make, collector: str) -> None:
    for step in itertools.count():
        world = make_world()
        prepare(world)
        one = Machine(world, "one")
        waits = one.start(COLLECTORS[collector], step)
        one.kill()
        assert losses(world) == []
        with world.open("two") as other:
            collect(other)
            assert collect(other).packs_removed == 0
        assert losses(world) == []
        settle(world)
        assert losses(world) == []
        world.close()
        if not waits:
            break
    assert step > 20


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.sampled(4)
def test_a_writer_that_dies_at_any_step(make_world: Make, writer: str) -> None:
    for step in itertools.count():
        world = make_world()
        prepare(world)
        one = Machine(world, "one")
        waits = one.start(WRITERS[writer], step)
        one.kill()
        with world.open("two") as other:
            collect(other)
        assert losses(world, one) == []
        settle(world)
        assert losses(world, one) == []
        world.close()
        if not waits:
            break
    assert step > 5


@pytest.mark.parametrize("seconds", [DAY + HOUR, 8 * DAY], ids=["a day", "a week"])
@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.sampled(6)
def test_a_writer_that_sleeps_at_any_step(make_world: Make, writer: str, seconds: float) -> None:
    for world, one in sleeps(make_world, WRITERS[writer], seconds):
        assert one.error is None or isinstance(one.error, CastoreError)
        assert losses(world, one) == []
        settle(world)
        assert losses(world, one) == []


@pytest.mark.parametrize("collector", COLLECTORS)
@pytest.mark.sampled(4)
def test_a_collector_that_sleeps_at_any_step(make_world: Make, collector: str) -> None:
    for step in itertools.count():
        world = make_world()
        prepare(world)
        one, two = Machine(world, "one"), Machine(world, "two")
        waits = one.start(COLLECTORS[collector], step)
        two.puts("new", SHARED)
        with world.open("three") as other:
            collect(other, repack_below=1.0)
        world.pass_time(8 * DAY)
        two.puts("newer", SHARED + KEPT)
        one.finish()
        assert one.error is None or isinstance(one.error, CastoreError)
        two.store.close()
        assert losses(world, two) == []
        settle(world)
        assert losses(world, two) == []
        world.close()
        if not waits:
            break


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.sampled(4)
def test_requests_that_arrive_late(make_world: Make, writer: str) -> None:
    for world, one in late(make_world, WRITERS[writer]):
        assert one.error is None or isinstance(one.error, CastoreError)
        # An earlier put of a name may be there again: it is the last to land that stays.
        assert broken(world) == []
        settle(world)
        assert broken(world) == []


@pytest.mark.parametrize("collector", COLLECTORS)
@pytest.mark.sampled(4)
def test_requests_of_collectors_that_arrive_late(make_world: Make, collector: str) -> None:
    for world, one in late(make_world, COLLECTORS[collector]):
        assert one.error is None or isinstance(one.error, CastoreError)
        assert losses(world) == []
        with world.open("three") as other:
            other.puts("newest", SHARED)
        settle(world)
        assert losses(world) == []
