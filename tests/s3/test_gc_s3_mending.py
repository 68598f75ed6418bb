"""A list of condemned packs that is lost: what fails until it is repaired, and that the repair is
safe beside writers who began before and collectors who go on removing what the list had."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count

import pytest
from gc_races import SHARED, WRITERS, Machine, Work, collects, losses, prepare, settle
from gc_stores import DAY, HOUR, World, collect, noise
from memory_s3 import Losing

from castore.errors import CastoreError, FormatError, StoreBusy
from castore.format.s3_gc import decode_condemned, decode_state
from castore.s3.check import repair_condemned
from castore.s3.client.probe import ServerFeatures
from castore.s3.gc.mark import Pins
from castore.s3.gc.state import CollectorState
from castore.s3.keys import pack_key

Make = Callable[[], World]
STATE = "store/gc/state"
HELD = "held by the pins of writers"


@pytest.fixture(autouse=True)
def probed(monkeypatch: pytest.MonkeyPatch) -> None:
    honours = ServerFeatures(True, True, True, True, True)
    monkeypatch.setattr("castore.s3.gc.server.probe", lambda bucket, **_: honours)


@pytest.fixture
def condemned(world: World) -> World:
    """What has been deleted is condemned, and the grace is not over."""
    prepare(world)
    with world.open("collector") as store:
        assert collect(store, grace_s=DAY).packs_condemned == 1
    return world


def lose_list(world: World) -> bool:
    """False if there is none."""
    lists = world.server.keys("store/gc/condemned/")
    for key in lists:
        del world.server.objects[key]
    return bool(lists)


def change(world: World, key: str, raw: bytes) -> None:
    with world.bucket() as bucket:
        bucket.put(key.removeprefix("store/"), raw, idempotent=True)


def repairs(world: World) -> list[str]:
    """What is left to do after a repair, warnings of garbage aside."""
    with world.open("repairer") as store:
        report = store.check(repair=True)
    return [problem.what for problem in report.problems if problem.kind != "orphan"]


def test_what_fails_and_what_mends_it(condemned: World) -> None:
    world = condemned
    before = decode_state(world.server.objects[STATE].body)
    assert lose_list(world)
    remedy = r"'gc/condemned/2', which is not there.*\(castore check --repair\)"
    with world.open("writer") as writer:
        with pytest.raises(FormatError, match=remedy):
            writer.puts("again", SHARED)
        writer.puts("new", noise(70_000, 50))  # relies on nothing
    with world.open("collector") as store:
        with pytest.raises(FormatError, match=remedy):
            collect(store, grace_s=DAY)
        report = store.check()
        assert report.exit_code == 14
        assert "'gc/condemned/2', which is not there" in report.problems[0].what
    with world.open("repairer") as store:
        mended = store.check(repair=True)
        assert (mended.problems, mended.garbage) == ([], {"packs": 1})
        assert mended.repaired == [
            "gc/condemned/2 is lost: 1 pack, all that no name has, condemned anew"
        ]
        assert store.check(repair=True).repaired == []
    after = decode_state(world.server.objects[STATE].body)
    assert (after.phase, after.condemned) == ("condemned", f"gc/condemned/{after.version}")
    assert after.version > before.version
    raw = world.server.objects[f"store/{after.condemned}"].body
    condemned = decode_condemned(raw, world.config.store_id)
    assert condemned.carried == condemned.packs != []
    with world.open("writer") as writer:
        writer.puts("again", SHARED)
    with world.open("collector") as store:
        assert collect(store, grace_s=DAY).packs_removed == 0  # the grace began anew
        world.pass_time(DAY + HOUR)
        assert collect(store, grace_s=DAY).packs_removed == 1
        assert store.gets("again") == SHARED
    assert losses(world) == []


def test_nothing_was_condemned_that_is_still_there(condemned: World) -> None:
    world = condemned
    with world.bucket() as bucket:
        raw = world.server.objects["store/gc/condemned/2"].body
        [pack_id] = decode_condemned(raw, world.config.store_id).packs
        bucket.delete_many([f"packs/{pack_id.hex()}-{pack_id[:8].hex()}"])
    lose_list(world)
    assert repairs(world) == []
    assert decode_state(world.server.objects[STATE].body).phase == "idle"


@pytest.mark.parametrize("key", [STATE, "store/gc/condemned/2"])
def test_a_flipped_bit(condemned: World, key: str) -> None:
    world = condemned
    before = world.server.objects[key].body
    change(world, key, before[:40] + bytes([before[40] ^ 16]) + before[41:])
    with world.open("writer") as writer, pytest.raises(FormatError, match="castore check --repair"):
        writer.puts("again", SHARED)
    with world.open("other") as store, pytest.raises(FormatError, match="castore check --repair"):
        collect(store)
    assert repairs(world) == []
    assert world.server.objects[key].body == before
    assert len(world.server.keys("store/quarantine/gc/")) == 1


def test_a_state_that_may_not_have_been_written(condemned: World) -> None:
    """What is there is as it was: the repair says what to do, and ends."""
    world = condemned
    before = world.server.objects[STATE].body
    change(world, STATE, before[:40] + bytes([before[40] ^ 16]) + before[41:])
    actor = Losing("repairer", "PUT", "gc/state")
    with world.open("repairer", actor) as store:
        left = [problem.what for problem in store.check(repair=True).problems]
    assert actor.lost
    assert "whether gc/state was written is not known: repeat the repair" in "\n".join(left)
    assert repairs(world) == []
    assert world.server.objects[STATE].body == before
    world.server.land()
    assert world.server.objects[STATE].body == before


def test_a_list_of_a_collector_that_died_is_in_nobodys_way(condemned: World) -> None:
    """It had written the next one, and no state names that."""
    world = condemned
    raw = world.server.objects["store/gc/condemned/2"].body
    lose_list(world)
    change(world, "store/gc/condemned/3", raw)
    assert repairs(world) == []
    assert losses(world) == []


@pytest.mark.parametrize("raw", [b"garbled", b""])
def test_a_garbled_list(condemned: World, raw: bytes) -> None:
    world = condemned
    change(world, "store/gc/condemned/2", raw)
    assert repairs(world) == []
    assert world.server.objects["store/quarantine/gc/condemned/2"].body == raw
    assert decode_state(world.server.objects[STATE].body).phase == "condemned"


@pytest.mark.parametrize("raw", [b"garbled", b"", None])
def test_a_state_that_is_garbled_or_gone(condemned: World, raw: bytes | None) -> None:
    """What its version was is not known, nor what is condemned: all that no name has is."""
    world = condemned
    before = decode_state(world.server.objects[STATE].body)
    if raw is None:
        del world.server.objects[STATE]
    else:
        change(world, STATE, raw)
    for machine in ("another", "collector"):  # the second has seen the state before
        with world.open(machine) as store:
            report = store.check()
            assert report.exit_code == (14 if raw is None else 13)
            assert "gc/state" in report.problems[0].what
            for dry_run in (True, False):
                with pytest.raises(FormatError, match=r"\(castore check --repair\)"):
                    collect(store, grace_s=DAY, dry_run=dry_run)
    with world.open("repairer") as store:
        repaired = store.check(repair=True).repaired
    first = "gc/state is gone: it is made again" if raw is None else "gc/state is copied to "
    assert repaired[0].startswith(first)
    assert repairs(world) == []
    after = decode_state(world.server.objects[STATE].body)
    assert (after.phase, after.version > before.version) == ("condemned", True)
    with world.open("writer") as writer:
        writer.puts("again", SHARED)
    world.pass_time(DAY + HOUR)
    with world.open("collector") as store:  # which has seen the state before
        assert collect(store, grace_s=DAY).packs_removed == 1
        assert store.gets("again") == SHARED
    assert losses(world) == []


@pytest.mark.damages_store("the state, its list or a pack is damaged or gone")
def test_a_garbled_state_on_a_server_without_preconditions(
    condemned: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    honours = ServerFeatures(True, False, True, True, True)
    monkeypatch.setattr("castore.s3.gc.server.probe", lambda bucket, **_: honours)
    change(condemned, STATE, b"garbled")
    left = repairs(condemned)
    assert (
        "no collector and no writer is at work, remove gc/state and all below gc/condemned/"
        in left[1]
    )
    assert condemned.server.objects[STATE].body == b"garbled"


@pytest.mark.damages_store("the state, its list or a pack is damaged or gone")
def test_a_server_without_preconditions(condemned: World, monkeypatch: pytest.MonkeyPatch) -> None:
    honours = ServerFeatures(True, False, True, True, True)
    monkeypatch.setattr("castore.s3.gc.server.probe", lambda bucket, **_: honours)
    lose_list(condemned)
    left = repairs(condemned)
    assert (
        "ignores If-Match: when no collector and no writer is at work, remove gc/state" in left[1]
    )


def test_writers_at_work_come_first(condemned: World) -> None:
    """What they rely on and no name has yet can't be told from what may yet be removed."""
    world = condemned
    one = Machine(world, "one")
    assert one.start(WRITERS["reuse"], 8)
    assert world.server.keys("store/pins/")
    lose_list(world)
    left = repairs(world)
    assert [HELD in what for what in left] == [False, True]
    one.kill()
    assert HELD in repairs(world)[1]
    world.pass_time(8 * DAY)
    assert repairs(world) == []
    settle(world)
    assert losses(world, one) == []


# ---- everybody at every step -------------------------------------------------------------------


def after(machine: Machine) -> None:
    """By one who knows nothing yet: what may be removed is not relied on."""
    machine.puts("after", SHARED + noise(3000, 51))
    machine.store.close()


def amid(make: Make, work: Work, *, first: bool) -> Iterator[tuple[World, Machine, list[str]]]:
    """The list is lost at each step of `work`, mended, and SHARED put anew; then `work` goes on,
    and what is condemned by then is removed. `first`: a collector has condemned SHARED before."""
    for step in count():
        world = make()
        prepare(world)
        if first:
            with world.open("first") as store:
                collect(store, grace_s=DAY)
        one = Machine(world, "one")
        waits = one.start(work, step)
        left = []
        if lose_list(world):
            left = repairs(world)
            two = Machine(world, "two")
            two.run(after)
            two.store.close()
            assert isinstance(two.error, FormatError) == any(HELD in what for what in left)
            one.acknowledged.update(two.acknowledged)
        one.finish()
        one.store.close()
        assert repairs(world) == []
        with world.open("last") as store:
            collect(store)
        yield world, one, left
        world.close()
        if not waits:
            break
    assert step > 5


def test_collectors_that_go_on(make_world: Make) -> None:
    mended = 0
    for world, one, left in amid(make_world, collects, first=False):
        assert one.error is None or isinstance(one.error, (StoreBusy, FormatError))
        assert losses(world, one) == []
        mended += "after" in one.acknowledged and not left
    assert mended > 10


@pytest.mark.plain("what has a base there is held by its name, and seldom by a pin alone")
@pytest.mark.parametrize("writer", WRITERS)
def test_writers_that_go_on(make_world: Make, writer: str) -> None:
    """They may find the list gone and fail; what is acknowledged is there."""
    held = mended = 0
    for world, one, left in amid(make_world, WRITERS[writer], first=True):
        assert one.error is None or isinstance(one.error, CastoreError)
        assert losses(world, one) == []
        held += any(HELD in what for what in left)
        mended += not left
    assert mended > 2
    assert held > 2 or writer in ("copy", "rename")  # whose packs have names


def test_requests_of_collectors_that_come_late(make_world: Make) -> None:
    """A removal that was sent before lands after what it removes has been put anew, and the round
    that condemned it anew is over."""
    for step in count():
        world = make_world()
        prepare(world)
        one = Machine(world, "one")
        there = one.run(collects, lose=step)
        one.store.close()
        if lose_list(world):
            assert repairs(world) == []
        two = Machine(world, "two")
        two.run(after)
        assert two.error is None
        world.server.land()
        assert losses(world, two) == []
        settle(world)
        assert losses(world, two) == []
        world.close()
        if not there:
            break
    assert step > 20


def idle(patch: pytest.MonkeyPatch) -> None:
    """Nothing is condemned instead."""
    patch.setattr(CollectorState, "condemn", lambda state, packs, carried: state.retire())


def not_carried(patch: pytest.MonkeyPatch) -> None:
    condemn = CollectorState.condemn
    patch.setattr(CollectorState, "condemn", lambda state, packs, carried: condemn(state, packs))


def writers_ignored(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Pins, "protect", lambda pins, pack_id: False)


def sleeping_sweep(make: Make, step: int) -> list[str]:
    """A collector sleeps before the removal; meanwhile the list is mended, a writer pins in vain
    what it is about to remove, the next round ends, and another writer comes."""
    world = make()
    prepare(world)
    one, two, three = Machine(world, "one"), Machine(world, "two"), Machine(world, "three")
    one.start(collects, step)
    if not lose_list(world):
        one.finish()
        world.close()
        return []
    assert repairs(world) == []
    two.puts("in vain", SHARED)  # its pins stay: it is not closed
    with world.open("last") as store:
        collect(store)
    three.puts("after", SHARED)
    one.finish()
    lost = losses(world, two, three)
    world.close()
    return lost


SLEEPS = 60


def test_a_collector_that_sleeps_beside_writers(make_world: Make) -> None:
    for step in range(SLEEPS):
        assert sleeping_sweep(make_world, step) == [], step


@pytest.mark.damages_store("the state, its list or a pack is damaged or gone")
@pytest.mark.parametrize("guard", [idle, not_carried])
def test_what_is_lost_is_condemned_and_carried(
    make_world: Make, monkeypatch: pytest.MonkeyPatch, guard: Callable[[pytest.MonkeyPatch], None]
) -> None:
    """Without it, something is lost."""
    mend = repair_condemned.condemn_anew

    def unguarded(*arguments: object, **options: float) -> int | None:
        with pytest.MonkeyPatch.context() as patch:
            guard(patch)
            return mend(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(repair_condemned, "condemn_anew", unguarded)
    assert any(sleeping_sweep(make_world, step) for step in range(SLEEPS))


@pytest.mark.damages_store("the state, its list or a pack is damaged or gone")
def test_writers_are_waited_for(make_world: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it, what they rely on is removed."""
    mend = repair_condemned.condemn_anew

    def unguarded(*arguments: object, **options: float) -> int | None:
        with pytest.MonkeyPatch.context() as patch:
            writers_ignored(patch)
            return mend(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(repair_condemned, "condemn_anew", unguarded)
    lost = False
    for step in count():
        world = make_world()
        prepare(world)
        with world.open("first") as store:
            collect(store, grace_s=DAY)
        one = Machine(world, "one")
        waits = one.start(WRITERS["reuse"], step)
        lose_list(world)
        repairs(world)
        with world.open("last") as store:
            collect(store)
        one.finish()
        lost = lost or bool(losses(world, one))
        world.close()
        if lost or not waits:
            break
    assert lost


@pytest.mark.damages_store("the state, its list or a pack is damaged or gone")
def test_what_can_t_be_stored_anew_yet_is_left(condemned: World) -> None:
    """Nothing that is put can rely on a pack: a repair says so, and ends."""
    world = condemned
    one = Machine(world, "one")
    assert one.start(WRITERS["reuse"], 8)
    with world.open("other") as store:
        store.puts("hurt", noise(90_000, 77))
        [at] = {e.location for e in store._catalog.cover(b"hurt", [(0, 1)]).parts[0][2]}
    key = f"store/{pack_key(at.pack_id)}"
    raw = world.server.objects[key].body
    change(world, key, raw[:70] + bytes([raw[70] ^ 1]) + raw[71:])
    change(world, STATE, b"garbled")
    with world.open("repairer") as store:
        report = store.check(repair=True)
    assert "hurt" in report.damaged_names
    assert any("is held by the pins of writers" in problem.what for problem in report.problems)
    one.kill()
    world.pass_time(8 * DAY)
    with world.open("repairer") as store:
        assert store.check(repair=True).exit_code == 14
    assert world.open("judge").check(True).exit_code == 0
