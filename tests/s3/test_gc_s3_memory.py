"""What a collection lists at once, and what it remembers from one run to the next."""

from __future__ import annotations

from array import array
from collections.abc import Iterator

import pytest
from gc_stores import DAY, World, collect, noise
from memory_s3 import Actor

import castore
from castore.format.pack import PACK_HEADER_BYTES, footer_bytes
from castore.format.s3 import new_pack_id, new_session_id
from castore.format.s3_gc import References
from castore.model import Location, StoredChunk
from castore.s3.client.bucket import Listed
from castore.s3.gc import listing, mark, memory
from castore.s3.gc.listing import list_names, list_packs
from castore.s3.gc.live import LiveFrames
from castore.s3.gc.memory import CollectorMemory, Kept
from castore.s3.gc.moved import MovedFrames
from castore.s3.keys import NAMES, pack_key
from castore.system.workers import Workers

SIZE = 70_000


@pytest.fixture
def requests() -> Iterator[Workers]:
    workers = Workers(4)
    yield workers
    workers.close()


@pytest.mark.parametrize("count", [0, 4, 5, 6, 300])
def test_packs_are_listed_in_parts(
    count: int, world: World, requests: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "PAGE_KEYS", 5)
    world.server.page_keys = 5
    packs = {new_pack_id(new_session_id()) for _ in range(count)}
    with world.bucket() as bucket:
        for pack_id in packs:
            bucket.put(pack_key(pack_id), b"pack", idempotent=True)
        bucket.put("packs/", b"", idempotent=True)
        found = list(list_packs(bucket, requests))
        assert len(found) == count
        assert {pack_id for pack_id, _ in found} == packs
        for key in world.server.keys("store/packs/"):
            bucket.delete(key.removeprefix("store/"))


NAMES_THERE = sorted(
    [*(f"{i:03}" for i in range(40)), "a", "a/b", "a0", "é", "\uffff", "\U0001f600/x", "z" * 400],
    key=str.encode,
)


class Spy:
    """A bucket with these names that tells where listings begin."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.listed = 0

    def list(self, prefix: str, *, start_after: str = "") -> Iterator[Listed]:
        self.begun.append(start_after)
        for name in NAMES_THERE:
            key = NAMES + name
            if key.encode() > start_after.encode():
                self.listed += 1
                yield Listed(key, 1, "", 0.0)


@pytest.mark.parametrize(
    "starts",
    [[], ["020"], ["000"], ["gone"], ["005", "010x", "a/b", "é", "\U0001f600/x"], ["\U0001f601"]],
)
def test_names_are_listed_from_several_places(starts: list[str], requests: Workers) -> None:
    spy = Spy()
    found = list(list_names(spy, requests, [start.encode() for start in starts]))  # type: ignore[arg-type]
    assert [entry.key for entry in found] == [NAMES + name for name in NAMES_THERE]
    assert sorted(spy.begun) == sorted(["", *(NAMES + start for start in starts)])
    assert spy.listed <= len(NAMES_THERE) + len(starts)  # of each part no more than its own


def test_places_to_begin_at_are_remembered(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mark, "PAGE_NAMES", 2)
    monkeypatch.setattr(mark, "START_EVERY", 4)
    store = world.open("one", actor := Actor("one"))
    for i in range(11):
        store.puts(f"n{i:02}", noise(SIZE, i))
    store.delete("n05")

    def lists() -> int:
        return sum(step == ("LIST", "names/") for step in actor.steps)

    assert collect(store).packs_removed == 1
    assert CollectorMemory(store._backend._cache).starts() == [b"n03", b"n08"]
    store.delete("n08")
    before = lists()
    assert collect(store).packs_removed == 1
    assert lists() - before >= 2 * 3  # two looks, each from three places
    assert sorted(store.names()) == [f"n{i:02}" for i in range(11) if i not in (5, 8)]


def test_a_warm_run_that_looks_for_packs_to_rewrite_reads_what_changed(world: World) -> None:
    writer = world.open("writer")
    for i in range(30):
        writer.puts(f"n{i:02}", noise(SIZE, i))
    for i in range(30):
        writer.puts(f"small {i:02}", b"inline")
    collector = world.open("collector", actor := Actor("collector"))

    def read() -> list[str]:
        del actor.steps[:]
        collector.gc(grace_s=0)
        return sorted(key[6:] for kind, key in actor.steps if kind == "GET" and "names/" in key)

    assert read() == sorted(writer.names())
    assert read() == []
    writer.copy("n01", "n02")
    writer.puts("small 03", b"other")
    assert read() == ["n02", "small 03"]


@pytest.mark.plain("a pack goes with the name that has it")
def test_a_bound_on_what_is_remembered(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "ROWS_BYTES_MAX", 1500)
    store = world.open("one", actor := Actor("one"))
    for i in range(40):
        store.puts(f"n{i:02}", noise(SIZE, i))
    store._backend._end_session()

    def read() -> int:
        del actor.steps[:]
        collect(store)
        return sum(kind == "GET" and "names/" in key for kind, key in actor.steps)

    read()
    left = read()
    assert 10 < left < 40  # twice, for two looks, or once: others are remembered
    for i in range(20):
        store.delete(f"n{i:02}")
    assert collect(store).packs_removed == 20
    collect(store)
    assert read() < left  # there is room for others now
    for i in range(20, 40):
        assert store.gets(f"n{i}") == noise(SIZE, i)


def test_what_is_remembered_of_garbage_outlives_no_damage(world: World) -> None:
    store = world.open()
    cache = store._backend._cache
    kept = CollectorMemory(cache)
    assert kept.kept() is None
    rows = {new_pack_id(new_session_id()): Kept(i, i * DAY) for i in range(100)}
    kept.keep(1e9, rows)
    assert kept.kept() == (1e9, rows)
    index = cache._index
    with index.write_gate, index.errors, index.begin() as txn:
        raw = bytearray(txn.get(b"gc garbage kept", None, index.meta))
        raw[40] ^= 1
        txn.put(b"gc garbage kept", bytes(raw), db=index.meta)
    assert kept.kept() is None


@pytest.mark.parametrize("how", ["flipped", "longer", "cut short"])
def test_what_is_remembered_as_numbers_outlives_no_damage(how: str, world: World) -> None:
    """Else no collection would begin any more, or none remember anything."""
    store = world.open("one", actor := Actor("one"))
    for i in range(10):
        store.puts(f"n{i}", noise(SIZE, i))
    collect(store)
    index = store._backend._cache._index
    for key in (memory._STATE_VERSION, memory._ROWS_BYTES):
        with index.write_gate, index.errors, index.begin() as txn:
            row = bytes(txn.get(key, None, index.meta))
            flipped = row[:-2] + bytes([row[-2] ^ 0x80]) + row[-1:]
            damaged = {"flipped": flipped, "longer": row + b"more", "cut short": row[:-3]}
            txn.put(key, damaged[how], db=index.meta)
    assert CollectorMemory(store._backend._cache).state_version() == 0
    store.puts("another", noise(SIZE, 10))
    collect(store)
    del actor.steps[:]
    collect(store)
    assert not [key for kind, key in actor.steps if kind == "GET" and "names/" in key]


def test_frames_are_remembered_and_heads_alone_are_not_taken_for_them(world: World) -> None:
    memory = CollectorMemory(world.open()._backend._cache)
    packs = tuple(new_pack_id(new_session_id()) for _ in range(3))
    frames = (array("Q", [1, 2, 1 << 63]), array("Q"), array("Q", range(1000)))
    fresh = {
        b"a": ("1", References(packs, frames)),
        b"b": ("2", References(packs)),
        b"c": ("3", References(())),
    }
    listed = [(name, etag) for name, (etag, _) in fresh.items()]
    memory.remember(b"", listed, fresh)
    heads = memory.references_of(listed, with_frames=False)
    assert {name: each.packs for name, each in heads.items()} == {
        b"a": packs,
        b"b": packs,
        b"c": (),
    }
    assert memory.references_of(listed, with_frames=True) == {
        b"a": References(packs, frames),
        b"c": References((), ()),
    }


def test_of_a_pack_that_is_all_alive_no_frames_are_kept() -> None:
    size = PACK_HEADER_BYTES + 1000 * 100 + footer_bytes(1000, 0)
    live = LiveFrames({b"p": size, b"q": size, b"small": size // 2}, small_bytes=size)
    for i in range(1000):
        for pack_id in (b"p", b"small"):
            live.add(Location(pack_id, PACK_HEADER_BYTES + 100 * i, 100))
        if i:
            live.add(Location(b"q", PACK_HEADER_BYTES + 100 * i, 100))
    assert (live.is_full(b"p"), live.is_full(b"q"), live.is_full(b"small")) == (True, False, False)
    live.add(Location(b"p", 7, 7))
    assert b"p" not in live._frames
    assert live.facts(b"q", size).live_frames == 999
    assert len(live.of(b"small")) == 1000


def test_many_manifests_are_put_anew_once_for_all_packs(world: World) -> None:
    """Whatever the packs that are rewritten at a time: it is what costs most."""
    store: castore.Store = world.open("one", actor := Actor("one"))
    data = noise(SIZE, 1) + noise(SIZE, 2) + noise(SIZE, 3)
    for i in range(3):
        with store.transaction() as transaction:
            transaction.puts(f"part {i}", data[i * SIZE : (i + 1) * SIZE])
            transaction.puts(f"garbage {i}", noise(3 * SIZE, 10 + i))
        store.delete(f"garbage {i}")
    for i in range(10):
        store.puts(f"n{i}", data)
    before = len(actor.steps)
    assert collect(store, repack_below=0.9).packs_rewritten >= 3
    put = [key for kind, key in actor.steps[before:] if kind == "PUT" and key.startswith("names/")]
    assert len(put) == len(set(put)) == 13


def test_where_a_frame_was_moved_is_told_of_that_frame_alone() -> None:
    old, new = b"o" * 16, b"n" * 16
    moved = MovedFrames([old, b"l" * 16])
    base = StoredChunk(b"b" * 16, 9, Location(b"x" * 16, 7, 7))
    delta = b"d" * 16, (base.chunk_id,)
    places = [Location(new, 500, 11), Location(new, 600, 22)]
    moved.add(old, [(64, (b"a" * 16, ())), (200, delta)], places)

    def find(chunk_id: bytes, at: Location) -> Location | None:
        return moved.find(StoredChunk(chunk_id, 1, at))

    assert find(b"a" * 16, Location(old, 64, 33)) == places[0]
    at = Location(old, 200, 44, (base,))
    assert find(b"d" * 16, at) == places[1]._replace(bases=(base,))
    assert find(b"c" * 16, Location(old, 64, 33)) is None  # another chunk's frame is there
    assert find(b"d" * 16, at._replace(bases=())) is None  # or none that is whole
    assert find(b"a" * 16, Location(old, 65, 33)) is None
    assert find(b"a" * 16, Location(old, 700, 33)) is None
    assert find(b"a" * 16, Location(b"l" * 16, 64, 33)) is None  # this pack was left
