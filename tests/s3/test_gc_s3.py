"""Collecting a store on S3: what is garbage, what is refused, what is remembered."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from itertools import count
from typing import Any

import pytest
from gc_races import Machine
from gc_stores import DAY, HOUR, World, collect, noise
from memory_s3 import Actor, MemoryAttempts, Step

import castore
from castore.errors import (
    ClockSkewed,
    CollectionRefused,
    FormatError,
    ManifestUnreadable,
    PreconditionsIgnored,
    StateWentBackwards,
    StoreBusy,
    UnpublishedResourceWarning,
)
from castore.format.s3 import new_session_id
from castore.format.s3_gc import GcState, decode_state, encode_pin, encode_state
from castore.format.s3_told import decode_hints
from castore.s3.client.bucket import Bucket
from castore.s3.gc import server
from castore.s3.gc.collect import SCRATCH_S
from castore.s3.gc.mark import PIN_S, S3Marker
from castore.s3.keys import name_key, pack_key, pin_key

pytestmark = pytest.mark.plain("a pack goes with the name that has it")

SIZE = 100_000  # in a pack, and not inline


@pytest.fixture
def store(world: World) -> castore.Store:
    return world.open()


def packs(world: World) -> list[str]:
    return world.server.keys("store/packs/")


def state(world: World) -> GcState:
    return decode_state(world.server.objects["store/gc/state"].body)


def fill(store: castore.Store, *names: str) -> None:
    """Each in a pack of its own."""
    for name in names:
        store.puts(name, noise(SIZE, sum(name.encode())))


def packs_of(store: castore.Store, name: str) -> set[str]:
    return {f"store/{pack_key(i)}" for i in store._catalog.current(name.encode()).head.packs}


# ---------------------------------------------------------------- what goes


@pytest.mark.parametrize(
    "drop",
    [
        lambda store: store.delete("b"),
        lambda store: store.puts("b", b"inline"),
        lambda store: store.puts("b", noise(SIZE, 7)),
        lambda store: store.copy("a", "b"),
        lambda store: store.rename("a", "b"),
        lambda store: store.delete_prefix("b", unbounded=True),
    ],
    ids=["delete", "put inline", "put", "copy", "rename", "delete prefix"],
)
def test_what_no_name_leads_to_goes(
    drop: Callable[[castore.Store], object], store: castore.Store, world: World
) -> None:
    fill(store, "a", "b", "c")
    before = set(packs(world))
    garbage = packs_of(store, "b")
    drop(store)
    kept = {name: store.gets(name) for name in store.names()}
    sizes = {key: len(stored.body) for key, stored in world.server.objects.items()}
    report = collect(store)
    assert report.packs_removed == 1
    assert report.bytes_freed == sum(sizes[pack] for pack in garbage)
    assert before - set(packs(world)) == garbage
    assert {name: store.gets(name) for name in store.names()} == kept
    assert state(world).phase == "idle"
    assert world.server.keys("store/gc/") == ["store/gc/state"]
    assert collect(store).found_nothing


def test_what_names_share_stays(store: castore.Store, world: World) -> None:
    fill(store, "a")
    store.puts("b", store.gets("a") + b"more")
    store.delete("a")
    assert collect(store).found_nothing
    assert store.gets("b") == noise(SIZE, 97) + b"more"
    store.delete("b")
    assert collect(store).packs_removed == 2
    assert packs(world) == []


def test_a_writer_at_work_keeps_its_packs_and_those_that_it_reuses(world: World) -> None:
    one, two = world.open("one"), world.open("two")
    fill(one, "a")
    one.close()
    collector = world.open("three")
    with two.transaction() as transaction:
        transaction.puts("b", noise(SIZE, 97) + noise(SIZE, 5))  # half of it is known
        collector.delete("a")
        assert collect(collector).found_nothing
    assert collect(collector).found_nothing
    assert collector.gets("b") == noise(SIZE, 97) + noise(SIZE, 5)
    two.delete("b")
    assert collect(collector).found_nothing  # the session of `two` is still pinned
    two.close()
    assert collect(collector).packs_removed == 2


def test_a_store_s_own_session_ends_with_its_collection(store: castore.Store, world: World) -> None:
    """Else what a process wrote and removed would stay for as long as it has the store open."""
    fill(store, "a")
    open_file = store.open("b", "wb")
    open_file.write(noise(2 * SIZE, 1))
    store.delete("a")
    assert collect(store).packs_removed == 0  # a put is under way
    open_file.close()
    assert collect(store).packs_removed == 1
    assert store.gets("b") == noise(2 * SIZE, 1)


def test_what_is_dropped_asks_for_nothing_until_a_store_is_used(world: World) -> None:
    """Python may let go of it in any thread at any moment: in one that serves us, for instance."""
    store = world.open("dropping", actor := Actor("dropping"))
    file = store.open("never", "wb")
    file.write(noise(SIZE, 3))
    fill(store, "kept")
    store._backend._end_session()  # type: ignore[union-attr]
    assert world.server.keys("store/pins/")
    asked = len(actor.steps)
    with pytest.warns(UnpublishedResourceWarning):
        del file
    assert len(actor.steps) == asked
    world.open("other")
    assert len(actor.steps) > asked
    assert world.server.keys("store/pins/") == []


def test_pins_of_the_dead_expire_after_a_week(world: World) -> None:
    one, dead = world.open("one"), world.open("dead", actor := Actor("dead"))
    writer = dead.open("never", "wb")
    writer.write(noise(SIZE, 3))
    writer.flush()
    dead._session()._uploads.finish()
    fill(dead, "kept")
    actor.kill()
    writer._writer = None  # nothing of it runs any more, as its process is gone
    writer.close()
    world.pass_time(PIN_S - 60)
    assert collect(one).found_nothing
    world.pass_time(120)
    one.delete("kept")
    report = collect(one)
    assert (report.pins_expired, report.packs_removed) == (1, 1)
    assert world.server.keys("store/pins/") == []
    assert packs(world) == []


def test_what_is_no_pack_is_left(store: castore.Store, world: World) -> None:
    strange = ["packs/readme", f"packs/{'0' * 32}-{'1' * 16}", f"packs/{'0' * 32}", "other/thing"]
    with world.bucket() as bucket:
        for key in strange:
            bucket.put(key, b"something", idempotent=True)
    assert collect(store).found_nothing
    assert {f"store/{key}" for key in strange} <= set(world.server.objects)


# ---------------------------------------------------------------- the two phases


def test_the_grace_is_the_server_s(store: castore.Store, world: World) -> None:
    fill(store, "a", "b")
    store.delete("a")
    condemned_at = world.server.clock
    report = collect(store, grace_s=DAY)
    assert (report.packs_condemned, report.packs_removed) == (1, 0)
    assert report.bytes_condemned > SIZE
    assert report.next_run_at == condemned_at + DAY
    assert state(world).phase == "condemned"
    world.pass_time(DAY - 10)
    before = dict(world.server.objects)
    again = collect(store, grace_s=DAY)
    assert (again.packs_condemned, again.next_run_at) == (1, condemned_at + DAY)
    assert {k for k in before if "probe/" not in k} == set(world.server.objects)
    world.pass_time(10)
    last = collect(store, grace_s=DAY)
    assert (last.packs_condemned, last.packs_removed, last.next_run_at) == (0, 1, None)
    assert state(world).phase == "idle"


def test_a_round_that_is_finished_is_followed_by_the_next(
    store: castore.Store, world: World
) -> None:
    fill(store, "a", "b")
    store.delete("a")
    collect(store, grace_s=DAY)
    store.delete("b")
    world.pass_time(DAY)
    report = collect(store, grace_s=DAY)
    assert (report.packs_removed, report.packs_condemned) == (1, 1)
    assert len(packs(world)) == 1
    world.pass_time(DAY)
    assert collect(store, grace_s=DAY).packs_removed == 1


def test_who_reuses_what_is_condemned_uploads_it_again(world: World) -> None:
    one, two = world.open("one"), world.open("two")
    fill(one, "a")
    [first] = packs(world)
    one.delete("a")
    collect(one, grace_s=DAY)
    two.puts("b", noise(SIZE, 97))
    assert len(packs(world)) == 2
    world.pass_time(DAY)
    assert collect(one, grace_s=DAY).packs_removed == 1
    assert first not in packs(world)
    assert one.gets("b") == noise(SIZE, 97)


def test_what_came_to_be_needed_before_it_was_condemned_stays(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    with world.open("writer") as writer:
        fill(writer, "a", "z")
    one, two = world.open("one"), world.open("two")
    one.delete("a")
    names = S3Marker.references

    def meanwhile(marker: S3Marker) -> object:
        """Between the listing of the pins and the condemning."""
        monkeypatch.setattr(S3Marker, "references", names)
        yield from names(marker)
        two.puts("b", noise(SIZE, 97))

    monkeypatch.setattr(S3Marker, "references", meanwhile)
    assert collect(one, grace_s=DAY).packs_condemned == 1
    assert len(packs(world)) == 2  # all of it was known
    two.close()
    world.pass_time(DAY)
    assert collect(one, grace_s=DAY).packs_removed == 0
    assert one.gets("b") == noise(SIZE, 97)
    assert state(world).phase == "idle"


def test_a_dry_run_changes_nothing(store: castore.Store, world: World) -> None:
    fill(store, "a", "b")
    store.delete("a")
    store._backend._end_session()
    world.pass_time(PIN_S + 1)
    with world.bucket() as bucket:
        bucket.put(pin_key(new_session_id(), 0), b"", idempotent=True)
    world.pass_time(PIN_S + 1)
    before = dict(world.server.objects)
    report = collect(store, dry_run=True, repack_below=0.5)
    assert (report.packs_condemned, report.pins_expired, report.packs_removed) == (0, 1, 1)
    assert report.bytes_freed > SIZE
    assert world.server.objects == before
    assert collect(store).bytes_freed == report.bytes_freed


DONE = (
    *("objects", "pins_expired", "packs_rewritten", "packs_removed", "packs_condemned"),
    *("bytes_rewritten", "bytes_freed", "bytes_condemned", "bytes_left"),
)


@pytest.mark.plain("what one is a delta of would stay")
@pytest.mark.parametrize("hours", [1, 30])
@pytest.mark.parametrize("grace_s", [0.0, 23 * HOUR])
def test_a_dry_run_foretells_each_of_daily_runs(world: World, hours: float, grace_s: float) -> None:
    """Also one that comes before the grace is over, and only waits."""
    waited = removed = rewritten = 0
    for day in range(8):
        with world.open() as store, store.transaction() as transaction:
            for i, name in enumerate(("kept", "gone", "gone too")):
                transaction.puts(f"{name} {day}", noise(SIZE, i + 10 * day))
            if day:
                transaction.delete(f"gone {day - 1}")
                transaction.delete(f"gone too {day - 1}")
            if day > 1:
                transaction.delete(f"kept {day - 2}")
        with world.open("collector") as store:
            before = dict(world.server.objects)
            foretold = store.gc(dry_run=True, repack_below=0.5, grace_s=grace_s)
            assert world.server.objects == before
            report = store.gc(repack_below=0.5, grace_s=grace_s)
        for each in DONE:
            assert getattr(foretold, each) == getattr(report, each), (day, each)
        waited += foretold.next_run_at is not None
        assert foretold.next_run_at in (None, report.next_run_at)
        removed += report.packs_removed
        rewritten += report.packs_rewritten
        world.pass_time(hours * HOUR)
    assert waited == (6 if grace_s and hours == 1 else 0)
    assert (removed > 0) == (waited == 0)
    assert rewritten > 0


def test_each_of_daily_runs_removes_what_the_one_before_condemned(
    store: castore.Store, world: World
) -> None:
    """Begun at the same time each day, though the list of what is condemned is written later."""
    took_s = 600.0
    for day in range(4):
        fill(store, "a", "b")
        store.delete("a")
        store._backend._end_session()
        world.pass_time(took_s)
        report = store.gc(repack_below=0)
        assert (report.packs_removed, report.packs_condemned) == (int(day > 0), 1)
        world.pass_time(DAY - took_s - took_s)


@pytest.mark.damages_store("a pin is damaged")
def test_a_pin_that_can_not_be_read_is_named(store: castore.Store, world: World) -> None:
    key = pin_key(new_session_id(), 0)
    with world.bucket() as bucket:
        bucket.put(key, b"CPIN", idempotent=True)
    for dry_run in (True, False):
        with pytest.raises(FormatError, match=f"{key}.*cut short.*remove it once"):
            collect(store, dry_run=dry_run)


@pytest.mark.damages_store("a pin is another's")
def test_a_pin_of_another_store_or_session_is_named(store: castore.Store, world: World) -> None:
    """What it protects would be looked for here, and what its session relies on would go."""
    session = new_session_id()
    key = pin_key(session, 0)
    for store_id, owner in (
        (bytes(16), session),
        (world.config.store_id, new_session_id()),
    ):
        with world.bucket() as bucket:
            bucket.put(key, encode_pin(store_id, owner, bytes(16), []), idempotent=True)
        with pytest.raises(FormatError, match=f"{key}.* is of another store or session: remove it"):
            collect(store)
        assert not store.check().clean


def test_a_dry_run_foretells_what_a_run_takes_of_what_this_store_has_put(
    store: castore.Store, world: World
) -> None:
    fill(store, "a", "b")
    store.delete("a")
    before = dict(world.server.objects)
    foretold = store.gc(dry_run=True)
    assert world.server.objects == before
    assert store.gc().packs_condemned == foretold.packs_condemned == 1
    with store.open("c", "wb") as writing:  # what is being put would stay
        writing.write(noise(SIZE, 5))
        assert not store._backend._lease.idle
    assert store._backend._lease.idle


def test_a_run_that_only_waits_counts_what_is_there(store: castore.Store, world: World) -> None:
    fill(store, "a", "b", "c")
    store.delete("a")
    store._backend._end_session()
    assert store.gc().objects == 2
    waits = store.gc()
    assert (waits.packs_condemned, waits.objects) == (1, 2)


# ---------------------------------------------------------------- hints and lists


def test_hints_of_what_is_gone_go(world: World) -> None:
    for name in "abc":
        with world.open(name) as store:
            fill(store, name)
    assert len(world.server.keys("store/hints/")) == 3
    collector = world.open("collector")
    collector.delete("b")
    collect(collector)
    told = [
        pack_id.hex()
        for key in world.server.keys("store/hints/")
        for pack_id, _ in decode_hints(world.server.objects[key].body)[1]
    ]
    assert sorted(told) == sorted(key[12:44] for key in packs(world))
    reader = world.open("reader")
    reader.puts("again", noise(SIZE, 97))
    assert len(packs(world)) == 2


def test_many_small_hints_become_one(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    from castore.s3 import hints

    for name in "abcde":
        with world.open(name) as store:
            fill(store, name)
    monkeypatch.setattr(hints, "SMALL_MAX", 3)
    collector = world.open("collector")
    collector.delete("b")
    collect(collector)
    assert len(world.server.keys("store/hints/")) == 1


def test_damaged_hints_and_other_stores_do_no_harm(store: castore.Store, world: World) -> None:
    with world.bucket() as bucket:
        bucket.put("hints/aa/damaged", b"CHNT and so on", idempotent=True)
    fill(store, "a")
    store.delete("a")
    assert collect(store).packs_removed == 1


def test_lists_that_crashes_left_go(store: castore.Store, world: World) -> None:
    fill(store, "a")
    collect(store)  # no list is written before there is a state
    store.delete("a")
    with world.bucket() as bucket:
        bucket.put("gc/condemned/1", b"left", idempotent=True)
        bucket.put("gc/condemned/99", b"not yet of a state", idempotent=True)
    assert collect(store).packs_removed == 1
    assert world.server.keys("store/gc/") == ["store/gc/condemned/99", "store/gc/state"]


def test_what_a_probe_left_goes_after_a_day(store: castore.Store, world: World) -> None:
    with world.bucket() as bucket:
        bucket.put("probe/0123/left", b"scratch", idempotent=True)
        world.pass_time(SCRATCH_S - 60)
        bucket.put("probe/4567/new", b"scratch", idempotent=True)
    collect(store)
    assert len(world.server.keys("store/probe/")) == 2
    world.pass_time(120)
    collect(store)
    assert world.server.keys("store/probe/") == ["store/probe/4567/new"]


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize("skew_s", [301.0, -301.0])
def test_clocks_too_far_apart(skew_s: float, store: castore.Store, world: World) -> None:
    attempts = store._backend._bucket._attempts
    attempts.skew_s = skew_s
    where = "ahead of" if skew_s > 0 else "behind"
    with pytest.raises(ClockSkewed, match=f"301 s {where}") as caught:
        collect(store)
    assert pickle.loads(pickle.dumps(caught.value)).skew_s == skew_s
    attempts.skew_s = skew_s * 0.99
    collect(store)


def test_a_state_that_went_backwards(store: castore.Store, world: World) -> None:
    fill(store, "a")
    collect(store)
    collect(store)
    before = dict(world.server.objects)
    for older in (GcState(1, "idle", bytes(16)), None):
        if older is None:
            del world.server.objects["store/gc/state"]
        else:
            stored = before["store/gc/state"]._replace(body=encode_state(older))
            world.server.objects["store/gc/state"] = stored
        with pytest.raises(StateWentBackwards, match="this machine has seen 2") as caught:
            collect(store)
        copied = pickle.loads(pickle.dumps(caught.value))
        assert (copied.version, copied.seen) == (0 if older is None else 1, 2)
    collect(world.open("another"))  # has seen nothing


def test_two_collectors_on_one_machine(
    store: castore.Store, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that has read the state when the other moves it on has lost the lead, and nothing went
    backwards."""
    fill(store, "a")
    store.delete("a")
    other = world.open("one")
    get = Bucket.get

    def meanwhile(bucket: Bucket, key: str, **options: Any) -> Any:
        reply = get(bucket, key, **options)
        if key == "gc/state":
            monkeypatch.setattr(Bucket, "get", get)
            assert collect(other).packs_removed == 1
        return reply

    collect(store)
    fill(store, "b")
    store.delete("b")
    monkeypatch.setattr(Bucket, "get", meanwhile)
    with pytest.raises(StoreBusy, match="has taken over"):
        collect(store)
    assert collect(store).found_nothing
    world.close()


def test_a_server_without_preconditions(store: castore.Store, world: World) -> None:
    world.server.preconditions = False
    fill(store, "a")
    store.delete("a")
    before = dict(world.server.objects)
    with pytest.raises(PreconditionsIgnored, match=r"ignores If-None-Match.*alone"):
        collect(store)
    assert packs(world) == [key for key in before if "/packs/" in key]
    assert world.server.keys("store/gc/") == []
    assert collect(store, dry_run=True).packs_removed == 1
    assert collect(store, alone=True, repack_below=0.5).packs_removed == 1


@pytest.mark.parametrize("times", [1, 99])
@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("0", "ignores If-None-Match"),
        ("[0-9]+-race", "If-None-Match is honoured one after the other; of several at once more"),
    ],
)
def test_a_precondition_that_is_not_honoured_is_asked_for_again(
    store: castore.Store, monkeypatch: pytest.MonkeyPatch, key: str, said: str, times: int
) -> None:
    """As a busy server may let two through once; and it is said which of the two it is."""
    check, left = MemoryAttempts._check, times

    def careless(attempts: MemoryAttempts, at: str, parameters: dict[str, Any]) -> None:
        nonlocal left
        there = attempts.settings.key(at) in attempts._server.objects
        if left and there and re.fullmatch(f"probe/[0-9a-f]+/{key}", at):
            left -= 1
        else:
            check(attempts, at, parameters)

    monkeypatch.setattr(MemoryAttempts, "_check", careless)
    fill(store, "a")
    store.delete("a")
    if times == 1:
        assert collect(store).packs_removed == 1
        assert not left
        return
    with pytest.raises(PreconditionsIgnored, match=said) as caught:
        collect(store)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.instead) == (str(caught.value), caught.value.instead)
    assert store.check(True).garbage == {"packs": 1}


def test_a_manifest_that_can_t_be_read(store: castore.Store, world: World) -> None:
    fill(store, "a", "b")
    store.delete("a")
    key = f"store/{name_key(b'b')}"
    good = world.server.objects[key]
    for bad in (b"", good.body[:50], good.body[:90] + b"?" + good.body[91:], b"?" * 500):
        world.server.objects[key] = good._replace(body=bad, etag=f'"{len(bad)}"')
        with pytest.raises(ManifestUnreadable, match="manifest of 'b'") as caught:
            collect(store)
        assert isinstance(caught.value, FormatError)
        assert pickle.loads(pickle.dumps(caught.value)).name == "b"
    assert len(packs(world)) == 2
    world.server.objects[key] = good
    assert collect(store).packs_removed == 1


def test_what_is_of_another_store(make_world: Callable[[], World]) -> None:
    world = make_world()
    store = world.open()
    fill(store, "a")
    for key in (name_key(b"a"), pin_key(store._session()._lease.id, 0)):
        good = world.server.objects[f"store/{key}"]
        other = good.body.replace(bytes(range(16)), bytes(range(1, 17)))
        world.server.objects[f"store/{key}"] = good._replace(body=other, etag='"x"')
        with pytest.raises(FormatError):
            collect(world.open("collector"))
        world.server.objects[f"store/{key}"] = good


@pytest.mark.damages_store("a pin can't be read")
def test_pins_that_can_t_be_read(store: castore.Store, world: World) -> None:
    with world.bucket() as bucket:
        bucket.put(pin_key(new_session_id(), 0), b"not a pin", idempotent=True)
    with pytest.raises(FormatError):
        collect(store)


def test_another_collector_that_leads(
    store: castore.Store, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store, "a")
    store.delete("a")
    other = world.open("two")
    names = S3Marker.references

    def meanwhile(marker: S3Marker) -> object:
        monkeypatch.setattr(S3Marker, "references", names)
        collect(other)
        return names(marker)

    monkeypatch.setattr(S3Marker, "references", meanwhile)
    with pytest.raises(StoreBusy, match="has taken over"):
        collect(store)
    assert packs(world) == []
    assert collect(store).found_nothing


def test_a_name_that_goes_before_it_is_read_refers_to_nothing(
    store: castore.Store, world: World
) -> None:
    fill(store, "a", "b")
    store.close()

    def goes(step: Step) -> None:
        if step == ("GET", "names/a"):
            world.server.objects.pop("store/names/a", None)

    world.server.refuse = goes
    with world.open("two") as other:
        assert collect(other).packs_removed == 1
        assert other.gets("b") == noise(SIZE, ord("b"))


# ---------------------------------------------------------------- what can't be removed


def test_what_can_t_be_removed_is_said_and_carried(store: castore.Store, world: World) -> None:
    fill(store, "a", "b", "c")
    held = packs_of(store, "a")
    store.delete("a")

    def refuse(step: Step) -> tuple[int, str] | None:
        return (403, "AccessDenied") if step.kind == "DELETE" and step.key in held else None

    world.server.refuse = refuse
    report = collect(store)
    assert [each.reason for each in report.undeletable] == [
        "s3:DeleteObject is denied on s3://memory/store/"
        f"packs/{report.undeletable[0].pack_id}-{report.undeletable[0].pack_id[:16]} "
        "(said the test): allow it in the IAM or bucket policy"
    ]
    assert state(world).phase == "sweeping"
    store.delete("b")
    assert len(collect(store).undeletable) == 1  # and nothing else is begun
    carried = collect(store, carry_undeletable=True)
    assert carried.packs_removed == 1
    assert len(carried.undeletable) == 1
    assert state(world).phase == "sweeping"
    # It is condemned in every state from then on: who has its chunks uploads them again.
    waiting = collect(store, carry_undeletable=True, grace_s=DAY)
    assert (waiting.packs_condemned, state(world).phase) == (1, "condemned")
    store.puts("again", noise(SIZE, 97))
    held = set()
    world.pass_time(DAY)
    assert collect(store).packs_removed == 1
    assert state(world).phase == "idle"
    assert store.gets("again") == noise(SIZE, 97)
    assert store.gets("c") == noise(SIZE, 99)


def test_what_was_carried_stays_condemned_whoever_pins_it(world: World) -> None:
    """A removal may land late: a pin of a writer that has yet to read the state changes nothing
    about that, whichever collector leads by then."""
    store = world.open("one")
    fill(store, "a", "b")
    [pack_id] = store._catalog.current(b"a").head.packs
    held = packs_of(store, "a")
    store.delete("a")
    world.server.refuse = lambda step: (
        (403, "AccessDenied") if step.kind == "DELETE" and step.key in held else None
    )
    collect(store)
    collect(store, carry_undeletable=True, grace_s=DAY)
    assert state(world).phase == "condemned"
    writer = new_session_id()
    pin = encode_pin(world.config.store_id, writer, bytes(16), [pack_id])
    world.bucket().put(pin_key(writer, 0), pin, idempotent=True)
    world.pass_time(DAY)
    assert len(collect(world.open("two")).undeletable) == 1
    assert state(world).phase == "sweeping"


def test_what_could_not_be_removed_is_carried_on_from_wherever_that_ended(world: World) -> None:
    """By whoever collects next: what the one that died had written is in nobody's way."""
    store = world.open("one")
    fill(store, "a", "b")
    held = packs_of(store, "a")
    store.delete("a")

    def refuse(step: Step) -> tuple[int, str] | None:
        return (403, "AccessDenied") if step.kind == "DELETE" and step.key in held else None

    def carries(machine: Machine) -> None:
        collect(machine.store, carry_undeletable=True, grace_s=DAY)

    world.server.refuse = refuse
    collect(store)
    assert state(world).phase == "sweeping"
    before = dict(world.server.objects)
    for step in count():
        world.forget_machines()
        world.server.refuse, world.server.objects = refuse, dict(before)
        one = Machine(world, "one")
        waits = one.start(carries, step)
        one.kill()
        with world.open("two") as other:
            collect(other, carry_undeletable=True, grace_s=DAY)
            assert state(world).phase == "condemned"
            world.pass_time(DAY)
            world.server.refuse = lambda step: None
            assert collect(other, grace_s=DAY).packs_removed == 1
            assert (state(world).phase, world.server.keys("store/gc/condemned/")) == ("idle", [])
        if not waits:
            break
    assert step > 10


# ---------------------------------------------------------------- what is remembered


def test_a_second_run_reads_only_what_changed(world: World) -> None:
    writer = world.open("writer")
    for i in range(50):
        writer.puts(f"n{i:02}", noise(70_000, i))
    collector = world.open("collector", actor := Actor("collector"))

    def read() -> list[str]:
        del actor.steps[:]
        collect(collector)
        return sorted(key[6:] for kind, key in actor.steps if kind == "GET" and "names/" in key)

    assert read() == sorted(writer.names())
    assert read() == []
    writer.puts("n07", b"other")
    writer.puts("n99", b"new")
    writer.delete("n13")
    writer.copy("n01", "n20")
    assert read() == ["n07", "n20", "n99"]
    assert read() == []


def test_what_is_remembered_is_of_that_version(world: World) -> None:
    """A name that returns to an earlier ETag of another's is not mistaken, nor damage trusted."""
    store = world.open()
    fill(store, "a", "b")
    collect(store)
    index = store._backend._cache._index
    with index.write_gate, index.errors, index.begin() as txn:
        row = txn.get(b"a", None, index.references)
        txn.put(b"b", row, db=index.references)
        txn.put(b"a", row[:-16], db=index.references)
    store._backend._end_session()
    assert collect(store).found_nothing
    assert store.gets("a") == noise(SIZE, 97)
    assert store.gets("b") == noise(SIZE, 98)


def test_large_heads_are_read_whole(
    store: castore.Store, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    from castore.s3.gc import mark as s3_marking

    monkeypatch.setattr(s3_marking, "HEAD_BYTES", 100)
    fill(store, "a", "b")
    store.puts("inline", noise(60_000, 3))
    store.delete("a")
    report = collect(store)
    assert (report.packs_removed, report.objects) == (1, 2)
    assert store.gets("b") == noise(SIZE, 98)


def test_pages_of_names(store: castore.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from castore.s3.gc import mark as s3_marking

    monkeypatch.setattr(s3_marking, "PAGE_NAMES", 2)
    fill(store, *"abcdefg")
    store.delete("d")
    assert collect(store).packs_removed == 1
    store.delete_prefix("", unbounded=True)
    assert collect(store).packs_removed == 6
    assert collect(store).objects == 0


def test_progress_ends_at_its_size(store: castore.Store) -> None:
    class Bar:
        size = done = 0

        def set_size(self, size: int) -> None:
            self.size = size

        def relative_update(self, inc: int = 1) -> None:
            self.done += inc

    fill(store, "a", "b")
    store.delete("a")
    bar = Bar()
    collect(store, progress=bar)
    assert bar.done == bar.size > SIZE


def test_listings_that_can_t_be_relied_on(
    store: castore.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dataclasses

    probe = server.probe
    for field, said in (("list_consistent", "listing"), ("ranges", "Range")):
        monkeypatch.setattr(
            server,
            "probe",
            lambda b, field=field, **_: dataclasses.replace(probe(b), **{field: False}),
        )
        with pytest.raises(CollectionRefused, match=said):
            collect(store, alone=True)


def test_hours_of_the_clock_do_not_matter(store: castore.Store, world: World) -> None:
    fill(store, "a")
    store.delete("a")
    collect(store, grace_s=HOUR)
    world.pass_time(HOUR)
    assert collect(store, grace_s=HOUR).packs_removed == 1
