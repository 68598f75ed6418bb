"""A collection of a store on S3 comes to rest: another one finds nothing, whatever the store."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from gc_stores import DAY, World, collect, noise

import castore
from castore.s3 import uploads
from castore.s3.gc import repack as s3_repacking
from castore.s3.gc import survey
from castore.s3.keys import listed_packs, pack_key

SIZE = 70_000


def nothing(store: castore.Store) -> None:
    """Is put."""


def zeros(store: castore.Store) -> None:
    store.puts("zeros", bytes(1_000_000))


def one_by_one(store: castore.Store) -> None:
    for i in range(150):
        store.puts(f"n{i}", noise(3000, i) + bytes(SIZE))


def half_deleted(store: castore.Store) -> None:
    one_by_one(store)
    for i in range(0, 150, 2):
        store.delete(f"n{i}")


def copies(store: castore.Store) -> None:
    """Many names of the same few frames, and a pack that is mostly dead."""
    with store.transaction() as transaction:
        transaction.puts("a", noise(SIZE, 1))
        transaction.puts("b", noise(300_000, 2))
    for i in range(100):
        store.copy("a", f"copy {i}")
    store.delete("b")


def repetitive(store: castore.Store) -> None:
    """Manifests that are larger than what they lead to."""
    for i in range(40):
        store.puts(f"n{i}", (noise(500, i) + bytes(20_000)) * 60)


def edited(store: castore.Store) -> None:
    data = bytearray(noise(400_000, 1))
    for i in range(20):
        data[20_000 * i] ^= 1
        store.puts(f"version {i % 4}", bytes(data))


def mixed(store: castore.Store) -> None:
    choose = random.Random(1)
    for i in range(60):
        size = choose.choice([100, 66_000, 90_000, 200_000])
        store.puts(f"n{choose.randrange(25)}", noise(size, i) + bytes(choose.randrange(90_000)))
        if not i % 7:
            store.delete_prefix(f"n{choose.randrange(10)}", unbounded=True)


SHAPES = [nothing, zeros, one_by_one, half_deleted, copies, repetitive, edited, mixed]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packs, and what is done at once, so that there are many of each."""
    monkeypatch.setattr(uploads, "PACK_BYTES_FIRST", 50_000)
    monkeypatch.setattr(uploads, "PACK_BYTES_MAX", 200_000)
    monkeypatch.setattr("castore.s3.session.PACK_BYTES_MAX", 200_000)
    monkeypatch.setattr(survey, "SMALL_PACK_BYTES", 20_000)
    monkeypatch.setattr(survey, "SMALL_PACKS_MAX", 7)
    monkeypatch.setattr(s3_repacking, "BATCH_BYTES", 5_000)
    monkeypatch.setattr(s3_repacking, "FRAMES_MAX", 150)
    monkeypatch.setattr(survey, "FRAMES_MAX", 150)


def at_rest(world: World, contents: dict[str, bytes], **options: object) -> None:
    """And as it should be: for all verbs, and other machines."""
    store = world.open("another")
    report = store.gc(**{"grace_s": 0.0, "repack_below": 0.5, **options})  # type: ignore[arg-type]
    assert (report.bytes_rewritten, report.found_nothing) == (0, True), report
    assert {name: store.gets(name) for name in store.names()} == contents
    checked = store.check(True)
    assert (checked.exit_code, checked.problems, checked.garbage) == (0, [], {})
    with world.bucket() as bucket:
        sizes = listed_packs(bucket)
    assert store.stats().pack_bytes == sum(sizes.values())
    assert world.server.keys("store/pins/") == []


@pytest.mark.parametrize("repack_below", [0.5, 1.0])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.__name__)
@pytest.mark.sampled(3)
def test_another_finds_nothing(
    world: World, small: None, shape: Callable[[castore.Store], None], repack_below: float
) -> None:
    with world.open("writer") as store:
        shape(store)
        contents = {name: store.gets(name) for name in store.names()}
    collect(world.open("collector"), repack_below=repack_below)
    at_rest(world, contents, repack_below=repack_below)
    with world.bucket() as bucket:
        sizes = listed_packs(bucket).values()
    assert sum(size < survey.SMALL_PACK_BYTES for size in sizes) <= survey.SMALL_PACKS_MAX


def test_with_a_grace_it_takes_two_rounds(world: World, small: None) -> None:
    with world.open("writer") as store:
        half_deleted(store)
        contents = {name: store.gets(name) for name in store.names()}
    store = world.open("collector")
    first = store.gc(repack_below=0.5)
    assert first.packs_rewritten
    world.pass_time(DAY + 1)
    second = store.gc(repack_below=0.5)
    assert (second.packs_rewritten, second.packs_removed) == (0, first.packs_condemned)
    at_rest(world, contents)


@pytest.mark.parametrize("bytes_max", [50_000, 150_000])
def test_with_a_bound_it_does_after_some(world: World, small: None, bytes_max: int) -> None:
    with world.open("writer") as store:
        one_by_one(store)
        contents = {name: store.gets(name) for name in store.names()}
    before = len(world.server.keys("store/packs/"))
    for _ in range(60):
        report = collect(world.open("collector"), repack_below=0.5, max_repack_bytes=bytes_max)
        assert report.bytes_rewritten <= bytes_max
        after = len(world.server.keys("store/packs/"))
        assert after < before or report.found_nothing
        before = after
        if report.found_nothing:
            break
    at_rest(world, contents, max_repack_bytes=bytes_max)


def test_many_frames_of_which_early_ones_recur(
    world: World, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than are remembered of those placed last, within one segment."""
    with world.open("writer") as store, store.transaction() as transaction:
        parts = noise(150_000, 1)
        transaction.puts("a", parts + noise(250_000, 2) + parts + noise(250_000, 3) + parts)
        transaction.puts("b", noise(900_000, 4))
        transaction.delete("b")
    store = world.open("collector")
    contents = {"a": store.gets("a")}
    monkeypatch.setattr(uploads, "PLACED_MAX", 20)
    report = collect(store, repack_below=1.0)
    assert report.bytes_rewritten
    at_rest(world, contents)


def test_what_is_damaged_is_not_moved_again(world: World, small: None) -> None:
    with world.open("writer") as store, store.transaction() as transaction:
        for name in "abcd":
            transaction.puts(name, noise(90_000, ord(name)))
    [*_, at] = [e.location for e in world.open("x")._catalog.cover(b"a", [None]).parts[0][2]]
    key = f"store/{pack_key(at.pack_id)}"
    stored = world.server.objects[key]
    raw = bytearray(stored.body)
    raw[at.offset + at.stored_bytes - 1] ^= 1
    world.server.objects[key] = stored._replace(body=bytes(raw))
    with world.open("deleter") as store:
        store.delete("b")
        store.delete("d")
    first = collect(world.open("collector"), repack_below=0.9)
    assert [damage.chunk_id for damage in first.damaged]
    second = collect(world.open("another"), repack_below=0.9)
    assert (second.bytes_rewritten, second.packs_condemned) == (0, 0)
    assert world.open("reader").gets("c") == noise(90_000, ord("c"))
    with world.open("again") as store:  # and no put relies on it
        store.puts("anew", noise(90_000, ord("a")))
        assert store.gets("anew") == noise(90_000, ord("a"))
        report = store.check(repair=True)
    assert report.damaged_names == []  # there is another copy by now
    collect(world.open("collector"))
    assert collect(world.open("another")).found_nothing
    assert world.open("judge").check(True).exit_code == 0


@pytest.mark.damages_store("a pack is missing")
def test_what_a_missing_pack_keeps_is_not_moved_again(world: World, small: None) -> None:
    with world.open("first") as store:
        store.puts("x", noise(90_000, 1))
    with world.open("second") as store, store.transaction() as transaction:
        transaction.puts("y", noise(90_000, 1) + noise(40_000, 2))
        transaction.puts("z", noise(90_000, 3))
    with world.open("second") as store:
        store.delete("z")
    [lost, *_] = [e.location for e in world.open("w")._catalog.cover(b"x", [None]).parts[0][2]]
    del world.server.objects[f"store/{pack_key(lost.pack_id)}"]
    collect(world.open("collector"), repack_below=0.9)
    report = collect(world.open("another"), repack_below=0.9)
    assert (report.bytes_rewritten, report.packs_removed) == (0, 0)
    assert report.missing == (lost.pack_id.hex(),)
    assert world.open("x").gc(dry_run=True).missing == report.missing


def test_a_manifest_says_what_its_frames_take(world: World, small: None) -> None:
    """Two machines put the same bytes, compressed by levels of their own, and a collection takes
    one frame for both."""
    text = b"".join(b"%d: some text, and a number\n" % (i * i) for i in range(20_000))
    with world.open("one") as one:
        two = castore.open("s3://memory/store", compression_level=19)
        for store, name in ((one, "a"), (two, "b")):
            with store.transaction() as transaction:
                transaction.puts(name, text)
                transaction.puts(f"{name} garbage", noise(500_000, ord(name)))
                transaction.delete(f"{name} garbage")
        two.close()
    assert one is not two
    assert collect(world.open("collector"), repack_below=1.0).bytes_rewritten
    at_rest(world, {"a": text, "b": text})
