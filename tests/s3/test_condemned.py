"""What is condemned, as writers read it: the state each time, its list once."""

from __future__ import annotations

import pytest
from gc_stores import DAY, World, collect, noise
from memory_s3 import Actor

import castore
from castore.format.s3 import new_pack_id, new_session_id
from castore.format.s3_gc import GcState, encode_condemned, encode_state
from castore.s3.condemned import CondemnedPacks
from castore.s3.keys import condemned_key

pytestmark = pytest.mark.plain("a pack goes with the name that has it")

SIZE = 100_000


def lists_read(actor: Actor) -> list[str]:
    return [key for kind, key in actor.steps if kind == "GET" and key.startswith("gc/condemned/")]


def fill(store: castore.Store, *names: str) -> None:
    for name in names:
        store.puts(name, noise(SIZE, ord(name)))


def test_a_list_is_read_once_however_often_packs_are_reused(world: World) -> None:
    writer = world.open("writer", actor := Actor("writer"))
    with world.open("one") as one:
        fill(one, *"abcdefgh")
    collector = world.open("collector")
    for name in "ab":
        collector.delete(name)
    collect(collector, grace_s=DAY)
    before = len(world.server.keys("store/packs/"))
    for name in "abcd":
        writer.puts(f"again {name}", noise(SIZE, ord(name)))
    states = [key for kind, key in actor.steps if (kind, key) == ("GET", "gc/state")]
    assert len(states) >= 4  # each reuse asks what collectors are at
    assert len(lists_read(actor)) == 1
    assert len(world.server.keys("store/packs/")) == before + 2  # of what is condemned, anew


def test_the_next_round_s_list_is_read(world: World) -> None:
    writer = world.open("writer", actor := Actor("writer"))
    with world.open("one") as one:
        fill(one, *"abcd")
    collector = world.open("collector")
    collector.delete("a")
    collect(collector, grace_s=DAY)
    writer.puts("again b", noise(SIZE, ord("b")))
    collector.delete("c")
    world.pass_time(DAY)
    collect(collector, grace_s=DAY)  # condemns what "c" had
    before = len(world.server.keys("store/packs/"))
    writer.puts("again c", noise(SIZE, ord("c")))
    assert len(lists_read(actor)) == 2
    assert len(world.server.keys("store/packs/")) == before + 1
    world.pass_time(DAY)
    collect(collector, grace_s=DAY)
    assert world.open("reader").gets("again c") == noise(SIZE, ord("c"))


def test_another_state_of_the_same_list_s_key_has_another_list(world: World) -> None:
    """As where the state was lost, and a repair begins to count anew."""
    first, second = (new_pack_id(new_session_id()) for _ in range(2))
    store_id = world.config.store_id
    with world.bucket() as bucket:
        condemned = CondemnedPacks(bucket, store_id)
        for nonce, pack_id in ((b"1" * 16, first), (b"2" * 16, second)):
            key = condemned_key(1)
            raw = encode_condemned(store_id, nonce, [pack_id])
            bucket.put(key, raw, idempotent=True)
            state = encode_state(GcState(1, "condemned", nonce, key))
            bucket.put("gc/state", state, idempotent=True)
            assert condemned.among([first, second]) == {pack_id}
        bucket.put("gc/state", encode_state(GcState(2, "idle", b"3" * 16)), idempotent=True)
        assert condemned.among([first, second]) == set()


def test_a_list_of_many_is_searched(world: World) -> None:
    session = new_session_id()
    packs = [new_pack_id(session) for _ in range(70_000)]
    store_id = world.config.store_id
    with world.bucket() as bucket:
        raw = encode_condemned(store_id, bytes(16), packs)
        bucket.put(condemned_key(1), raw, idempotent=True)
        state = encode_state(GcState(1, "condemned", bytes(16), condemned_key(1)))
        bucket.put("gc/state", state, idempotent=True)
        other = new_pack_id(session)
        asked = [packs[0], packs[69_999], packs[33_333], other, bytes(16), b"\xff" * 16]
        assert CondemnedPacks(bucket, store_id).among(asked) == {*asked[:3]}


def test_one_round_takes_all_that_there_is(world: World) -> None:
    store = world.open()
    for name in "abcde":
        fill(store, name)
    store.delete_prefix("", unbounded=True)
    assert collect(store).packs_removed == 5


def test_packs_go_by_many_requests_at_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    from castore.s3.gc import sweep

    monkeypatch.setattr(sweep, "DELETE_MANY_MAX", 2)
    store = world.open()
    fill(store, *"abcde")
    store.delete_prefix("", unbounded=True)
    refused = world.server.keys("store/packs/")[3]
    world.server.refuse = lambda step: (403, "AccessDenied") if step.key == refused else None
    report = collect(store)
    world.server.refuse = lambda step: None
    assert (report.packs_removed, len(report.undeletable)) == (4, 1)
    assert world.server.keys("store/packs/") == [refused]
    assert collect(store).packs_removed == 1
