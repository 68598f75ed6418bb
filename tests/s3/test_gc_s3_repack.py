"""Moving what is alive out of packs that are mostly dead, or small, on S3."""

from __future__ import annotations

import pytest
from gc_stores import DAY, World, collect, noise
from memory_s3 import Actor
from threads import in_threads

import castore
from castore.model import Location
from castore.s3.gc import repack as s3_repacking
from castore.s3.gc import survey
from castore.s3.gc.live import LiveFrames
from castore.s3.keys import pack_key
from castore.s3.uploads import UPLOADS_MAX
from castore.stream.repack_choice import PackFacts
from castore.stream.reports import GcReport
from castore.system.workers import Future

SIZE = 70_000


def packs(world: World) -> set[str]:
    return set(world.server.keys("store/packs/"))


def in_one_pack(store: castore.Store, *names: str) -> None:
    with store.transaction() as transaction:
        for name in names:
            transaction.puts(name, noise(SIZE, sum(name.encode())))


def test_a_pack_that_is_mostly_dead_is_rewritten(world: World) -> None:
    store = world.open()
    in_one_pack(store, "a", "b", "c")
    [old] = packs(world)
    store.copy("a", "copy of a")
    before = store.info("a")
    store.delete("b")
    store.delete("c")
    assert collect(store, repack_below=0.3).found_nothing
    foretold = collect(store, repack_below=0.5, dry_run=True)
    report = collect(store, repack_below=0.5)
    assert (report.packs_rewritten, report.packs_removed) == (1, 1)
    assert report.bytes_rewritten == foretold.bytes_rewritten
    assert SIZE < report.bytes_rewritten < 1.1 * SIZE
    assert old not in packs(world)
    assert len(packs(world)) == 1
    assert store.gets("a") == store.gets("copy of a") == noise(SIZE, 97)
    assert store.info("a") == before
    assert world.open("another").gets("copy of a") == noise(SIZE, 97)
    assert world.server.keys("store/pins/") == []
    assert collect(store, repack_below=0.5).found_nothing


def test_many_small_packs_become_one(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey, "SMALL_PACKS_MAX", 9)
    store = world.open()
    for i in range(12):
        store.puts(f"n{i}", noise(SIZE, i))
    assert len(packs(world)) == 12
    report = collect(store, repack_below=0.01)
    assert (report.packs_rewritten, report.packs_removed) == (12, 12)
    assert len(packs(world)) == 1
    for i in range(12):
        assert store.gets(f"n{i}") == noise(SIZE, i)
    assert collect(store, repack_below=0.01).found_nothing


@pytest.mark.plain("what is deleted is needed as bases")
def test_what_is_copied_is_bounded(world: World) -> None:
    store = world.open()
    in_one_pack(store, "a", "b", "c")
    in_one_pack(store, "d", "e", "f")
    for name in ("b", "c", "e", "f"):
        store.delete(name)
    report = collect(store, repack_below=0.5, max_repack_bytes=int(1.2 * SIZE))
    assert report.packs_rewritten == 1
    assert report.bytes_rewritten <= 1.2 * SIZE
    assert collect(store, repack_below=0.5, max_repack_bytes=0).packs_rewritten == 0
    assert collect(store, repack_below=0.5).packs_rewritten == 1


def test_batches_and_large_objects(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_repacking, "BATCH_BYTES", 4096)
    monkeypatch.setattr(s3_repacking, "FRAMES_MAX", 100)
    monkeypatch.setattr(survey, "FRAMES_MAX", 100)
    store = world.open()
    large = noise(1_000_000, 1)
    with store.transaction() as transaction:
        transaction.puts("large", large)
        transaction.puts("garbage", noise(1_500_000, 2))
    for i in range(5):
        store.copy("large", f"copy {i}")
    store.delete("garbage")
    assert collect(store, repack_below=0.5).packs_rewritten == 1
    for name in store.names():
        assert store.gets(name) == large
    assert store.stats().pack_bytes < 1_100_000


def test_packs_of_writers_at_work_are_left(world: World) -> None:
    writer, store = world.open("writer"), world.open("collector")
    in_one_pack(writer, "a", "b", "c")
    writer.delete("b")
    writer.delete("c")
    assert collect(store, repack_below=1.0).found_nothing
    writer.close()
    assert collect(store, repack_below=0.5).packs_rewritten == 1


@pytest.mark.damages_store("a frame is damaged")
def test_what_is_damaged_stays_where_it_is(world: World) -> None:
    store = world.open()
    in_one_pack(store, "a", "b", "c")
    [location] = {e.location for e in store._catalog.cover(b"a", [(0, 1)]).parts[0][2]}
    key = f"store/{pack_key(location.pack_id)}"
    stored = world.server.objects[key]
    raw = bytearray(stored.body)
    raw[location.offset + 40] ^= 1
    world.server.objects[key] = stored._replace(body=bytes(raw))
    store.delete("b")
    store.delete("c")
    store.close()
    report = collect(world.open("collector"), repack_below=0.5)
    [damage] = report.damaged
    assert (damage.pack_id, damage.offset) == (location.pack_id.hex(), location.offset)
    assert report.packs_removed == 0
    assert key in packs(world)


def test_a_name_that_changes_meanwhile_is_not_put_back(world: World) -> None:
    store, actor = world.open(), Actor("collector")
    in_one_pack(store, "a", "b", "c", "d")
    store.delete("c")
    store.delete("d")
    store.close()
    collector, other = world.open("collector", actor), world.open("other")
    before = actor.before

    def meanwhile(step: object) -> bool:
        if getattr(step, "kind", "") == "PUT" and getattr(step, "key", "").startswith("names/a"):
            actor.before = before  # type: ignore[method-assign]
            other.puts("a", b"newer")
            other.delete("b")
        return before(step)  # type: ignore[arg-type]

    actor.before = meanwhile  # type: ignore[method-assign]
    collect(collector, repack_below=0.9)
    assert list(other.names()) == ["a"]
    assert other.gets("a") == b"newer"
    other.close()
    world.pass_time(8 * DAY)
    collect(collector)
    assert packs(world) == set()


def test_live_frames_are_counted_once() -> None:
    frames = LiveFrames()
    for _ in range(5):
        for i in range(3000):
            frames.add(Location(b"p", i * 100, 100))
    assert frames.facts(b"p", 7) == PackFacts(b"p", 0, 7, 300_000, 3000)
    assert frames.facts(b"q", 7) == PackFacts(b"q", 0, 7, 0, 0)
    assert len(frames._frames[b"p"]) == 3000


def test_a_forked_child_does_not_wait_for_its_parents_uploads(world: World) -> None:
    with world.open() as before:
        in_one_pack(before, "a", "b", "c")
        before.delete("b")
        before.delete("c")
    store = world.open()
    backend = store._backend
    for _ in range(UPLOADS_MAX):
        backend._budget.add(Future(int))  # type: ignore[attr-defined]
    backend._pid = 0  # type: ignore[attr-defined]
    reports: list[GcReport] = []
    in_threads(lambda: reports.append(collect(store, repack_below=0.5)))
    assert reports[0].packs_rewritten == 1
    assert store.gets("a") == noise(SIZE, 97)
