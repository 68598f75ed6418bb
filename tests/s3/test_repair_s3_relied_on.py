"""What a repair of a store on S3 found damaged is relied on by nobody from then on; and what it
mends, or what is put meanwhile, it does not take away."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from gc_stores import DAY, HOUR, World, collect, noise
from memory_s3 import Actor, Step

from castore.errors import StoreIOError
from castore.s3 import reliance
from castore.s3.check.repair import S3Repair
from castore.s3.check.repair_manifests import ManifestRepair
from castore.s3.client.bucket import Bucket
from castore.s3.keys import DAMAGED_ANY, HINTS, PACKS

DATA = noise(300_000, 1)


def packs(bucket: Bucket) -> list[str]:
    return [entry.key for entry in bucket.list(PACKS)]


def cut(raw: bytes) -> bytes:
    return raw[:100_000]


def flip(raw: bytes) -> bytes:
    return raw[:100_000] + bytes([raw[100_000] ^ 4]) + raw[100_001:]


def lose(raw: bytes) -> bytes:
    return b""


def damage(world: World, how: Callable[[bytes], bytes]) -> None:
    with world.bucket() as bucket:
        for key in packs(bucket):
            if how is lose:
                bucket.delete_many([key])
            else:
                bucket.put(key, how(bucket.get(key).body), idempotent=True)


def is_whole(world: World) -> None:
    report = world.open("judge").check(True)
    assert (report.exit_code, report.problems) == (0, [])


@pytest.mark.parametrize(
    ("how", "named"), [(cut, True), (flip, True), (lose, True), (cut, False), (flip, False)]
)
def test_the_next_put_of_the_bytes_stores_them_anew(
    world: World, how: Callable[[bytes], bytes], named: bool
) -> None:
    """By whoever knew them: the session that stored them, one that had relied on them, other
    machines with and without a cache, and after an index made anew."""
    own, relied, cached = world.open("own"), world.open("relied"), world.open("cached")
    own.puts("a", DATA)
    with world.open("told") as told:  # so that hints tell of them
        told.puts("told", noise(300_000, 2))
    relied.puts("relied", DATA)
    cached.puts("cached", DATA)
    cached.close()
    if not named:
        for name in ("a", "relied", "cached", "told"):
            own.delete(name)
    damage(world, how)
    with world.open("repairer") as repairer:
        report = repairer.check(repair=True, packs_are_lost=True)
    assert report.exit_code == (14 if named else 0)
    is_whole(world)
    stores = {
        "own": own,
        "relied": relied,
        "cached": world.open("cached"),
        "repairer": world.open("repairer"),
        "new": world.open("new"),
    }
    rebuilt = stores["rebuilt"] = world.open("rebuilt")
    rebuilt.rebuild_index()
    for name, store in stores.items():
        store.puts(name, DATA)
        assert store.gets(name) == DATA, name
        store.puts(f"{name} 2", noise(300_000, 2))
        assert world.open("reader").gets(f"{name} 2") == noise(300_000, 2), name
    for name in stores:
        assert world.open("reader").gets(name) == DATA, name
    is_whole(world)


@pytest.mark.parametrize("slow", [True, False])
def test_a_put_of_hours_does_not_rely_on_what_was_marked_meanwhile(
    world: World, monkeypatch: pytest.MonkeyPatch, slow: bool
) -> None:
    """Its bytes were let go of when they were known. One that is quick asks once."""
    monkeypatch.setattr(reliance, "boot_clock", lambda: world.server.clock)
    with world.open("own") as own:
        own.puts("a", DATA)
    actor = Actor("other")
    other = world.open("other", actor)
    writing = other.open("b", "wb")
    writing.write(DATA + noise(9_000_000, 2))
    asked = actor.steps.count(Step("HEAD", DAMAGED_ANY))
    assert asked == 1
    if not slow:
        writing.close()
        assert actor.steps.count(Step("HEAD", DAMAGED_ANY)) == asked
        return
    damage(world, flip)
    world.open("repairs").check(repair=True)
    world.pass_time(HOUR)
    with pytest.raises(StoreIOError, match="repeat the put"):
        writing.close()
    assert "b" not in world.open("judge").names()


def marks(world: World) -> list[str]:
    """The last key is what says that there may be any."""
    return world.server.keys("store/damaged/")[:-1]


def test_that_there_are_marks_is_said_before_and_said_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    with world.open("writer") as store:
        store.puts("a", DATA)
    damage(world, flip)
    assert world.server.keys("store/damaged/") == []
    put, written = Bucket.put, []

    def noted(bucket: Bucket, key: str, *arguments: Any, **options: Any) -> Any:
        written.append(key)
        return put(bucket, key, *arguments, **options)

    monkeypatch.setattr(Bucket, "put", noted)
    with world.open("repairer") as store:
        store.check(repair=True)
        assert written[0] == DAMAGED_ANY
        assert written[1].startswith("damaged/")
        assert len(marks(world)) == 1
        del world.server.objects[f"store/{DAMAGED_ANY}"]
        collect(store)
    assert f"store/{DAMAGED_ANY}" in world.server.objects


def test_marks_and_hints_go_with_the_packs(world: World) -> None:
    with world.open("writer") as store:
        store.puts("a", DATA)
    damage(world, flip)
    with world.open("repairer") as store:
        store.check(repair=True)
        store.delete_prefix("quarantine/")
        assert len(marks(world)) == 1
        collect(store)
        # A session from before may still know the pack.
        assert len(marks(world)) == 1
        world.pass_time(2 * DAY)
        store.puts("b", noise(70_000, 3))
        store.delete("b")
        collect(store)
    assert marks(world) == []
    assert world.server.keys("store/packs/") == []
    with world.bucket() as bucket:
        assert sum(entry.size for entry in bucket.list(HINTS)) == 0
    is_whole(world)


def test_a_pack_that_is_brought_back_is_relied_on_again(world: World) -> None:
    with world.open("writer") as store:
        store.puts("a", DATA)
        store.puts("kept", noise(300_000, 2))
    with world.bucket() as bucket:
        whole = {key: bucket.get(key).body for key in packs(bucket)}
        damage(world, flip)
        world.open("repairer").check(repair=True)
        assert len(marks(world)) == 2
        for key, raw in whole.items():
            bucket.put(key, raw, idempotent=True)
    with world.open("repairer") as repairer:
        assert repairer.check(repair=True).repaired == []
        assert marks(world) == []
        repairer.rebuild_index()
        before = len(world.server.keys("store/packs/"))
        repairer.puts("again", DATA)
    assert len(world.server.keys("store/packs/")) == before
    is_whole(world)


@pytest.mark.parametrize("moment", ["after a check", "during the repair"])
def test_a_mark_that_came_after_a_pack_was_read_as_whole_stays(
    world: World, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Of a pack of which the server keeps the ETag while its bytes rot."""
    with world.open("writer") as store:
        store.puts("a", DATA)
    [key] = packs(world.bucket())
    stored = world.server.objects[f"store/{key}"]

    def rot() -> None:
        world.server.objects[f"store/{key}"] = stored._replace(body=flip(stored.body))
        world.open("other").check(repair=True)
        assert len(marks(world)) == 1

    repairer = world.open("repairer")
    found = repairer.check(True)
    if moment == "after a check":
        rot()
    else:
        step = S3Repair.mark_packs

        def meanwhile(repair: S3Repair, *given: Any) -> None:
            monkeypatch.setattr(S3Repair, "mark_packs", step)
            rot()
            step(repair, *given)

        monkeypatch.setattr(S3Repair, "mark_packs", meanwhile)
    repairer.check(repair=found)
    assert len(marks(world)) == 1


@pytest.mark.parametrize("moment", ["before it looks", "between its requests"])
@pytest.mark.parametrize("preconditions", [True, False])
def test_a_mark_that_came_in_the_same_second_as_an_older_one_stays(
    world: World, monkeypatch: pytest.MonkeyPatch, moment: str, preconditions: bool
) -> None:
    """The older one goes: its pack was brought back, and read as whole after it was seen."""
    world.server.preconditions = preconditions
    with world.open("writer") as store:
        store.puts("a", DATA)
    [key] = packs(world.bucket())
    stored = world.server.objects[f"store/{key}"]
    damage(world, flip)
    world.open("repairer").check(repair=True)
    [older] = marks(world)
    world.server.objects[f"store/{key}"] = stored

    def rot() -> None:
        world.server.objects[f"store/{key}"] = stored._replace(body=flip(stored.body))
        world.open("other").check(repair=True)
        for mark in marks(world):  # a LIST shows whole seconds
            at = world.server.objects[older].modified if older in marks(world) else 1e9
            world.server.objects[mark] = world.server.objects[mark]._replace(modified=at)

    step = S3Repair.mark_packs
    delete = Bucket.delete_many

    def meanwhile(repair: S3Repair, *given: Any) -> None:
        monkeypatch.setattr(S3Repair, "mark_packs", step)
        if moment == "before it looks":
            rot()
        else:

            def later(bucket: Bucket, keys: Any) -> Any:
                monkeypatch.setattr(Bucket, "delete_many", delete)
                rot()
                return delete(bucket, keys)

            monkeypatch.setattr(Bucket, "delete_many", later)
        step(repair, *given)

    monkeypatch.setattr(S3Repair, "mark_packs", meanwhile)
    world.open("repairer").check(repair=True)
    assert len(marks(world)) == 1
    assert older not in marks(world)
    reader = world.open("reader")
    reader.puts("again", DATA)
    assert reader.gets("again") == DATA


def test_a_mark_of_an_earlier_snapshot_counts_and_goes(world: World) -> None:
    """It has its pack's id alone for a name."""
    with world.open("writer") as store:
        store.puts("a", DATA)
    [key] = packs(world.bucket())
    mark = f"damaged/{key.removeprefix(PACKS).partition('-')[0]}"
    with world.bucket() as bucket:
        bucket.put(DAMAGED_ANY, b"", idempotent=True)
        bucket.put(mark, b"", idempotent=True)
    with world.open("other") as store:
        store.puts("again", DATA)
    assert len(world.server.keys("store/packs/")) == 2
    world.open("repairer").check(repair=True)
    assert marks(world) == []


def test_marks_that_are_put_anew_take_the_place_of_older_ones(world: World) -> None:
    with world.open("writer") as store:
        store.puts("a", DATA)
    damage(world, flip)
    seen = set()
    for _ in range(3):
        world.open("repairer").check(repair=True)
        [mark] = marks(world)
        seen.add(mark)
    assert len(seen) == 3


def test_a_damaged_pack_that_nobody_needs_is_told_of_until_it_is_marked(world: World) -> None:
    with world.open("writer") as store:
        store.puts("a", DATA)
        store.delete("a")
    damage(world, flip)
    store = world.open("judge")
    report = store.check(True)
    assert (report.exit_code, {p.severity for p in report.problems}) == (1, {"warning"})
    assert store.check(repair=True).exit_code == 0
    assert store.check(True).exit_code == 0
    assert store.check(True).garbage == {"packs": 1}


def flip_bit(world: World, key: str, bit: int) -> None:
    stored = world.server.objects[f"store/{key}"]
    raw = bytearray(stored.body)
    raw[bit >> 3] ^= 1 << (bit & 7)
    with world.bucket() as bucket:
        bucket.put(key, bytes(raw), idempotent=True)


@pytest.mark.parametrize("if_match", ["honoured", "ignored", "refused"])
def test_an_inline_object_is_mended_and_stays(world: World, if_match: str) -> None:
    if if_match == "refused":
        world.server.if_match_refusal = (412, "PreconditionFailed")
    world.server.preconditions = if_match != "ignored"
    values = {"inline": b"x" * 1000, "empty": b"", "noise": noise(5000, 9)}
    store = world.open()
    choose = random.Random(1)
    for name, value in values.items():
        store.puts(name, value)
        size = len(world.server.objects[f"store/names/{name}"].body)
        for _ in range(3):
            flip_bit(world, f"names/{name}", choose.randrange(8 * size))
            assert store.check(True).damaged_names == [name]
            report = store.check(repair=True)
            assert report.repaired == [f"the manifest of {name!r} had one bit flipped"]
            assert report.exit_code == 0
            assert store.gets(name) == value
    assert {name: store.gets(name) for name in store.names()} == values
    is_whole(world)


@pytest.mark.parametrize("size", [1000, 90_000])
@pytest.mark.parametrize(
    ("of", "moment"),
    [(S3Repair, "mark_packs"), (ManifestRepair, "run"), (S3Repair, "_find_elsewhere")],
)
def test_what_is_put_anew_during_the_repair_stays(
    world: World, monkeypatch: pytest.MonkeyPatch, of: type, moment: str, size: int
) -> None:
    with world.open("writer") as store:
        store.puts("a", DATA)
        store.puts("b", b"x" * 1000)
    damage(world, cut)
    flip_bit(world, "names/b", 0)
    other = world.open("other")
    step = getattr(of, moment)

    def meanwhile(repair: object, *given: object) -> object:
        for name in "ab":
            other.puts(name, noise(size, ord(name)))
        return step(repair, *given)

    monkeypatch.setattr(of, moment, meanwhile)
    world.open("repairer").check(repair=True)
    for name in "ab":
        assert world.open("reader").gets(name) == noise(size, ord(name))
    assert world.open("repairer").check(repair=True).repaired == []
    is_whole(world)


@pytest.mark.plain("bases are read for their deltas as well")
def test_a_repair_reads_the_data_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    with world.open("writer") as store:
        for i in range(3):
            store.puts(f"n{i}", noise(400_000, i))
    damage(world, flip)
    fetched = 0
    get = Bucket.get

    def counted(bucket: Bucket, key: str, **options: object) -> object:
        nonlocal fetched
        reply = get(bucket, key, **options)  # type: ignore[call-overload]
        fetched += len(reply.body) if key.startswith(PACKS) else 0
        return reply

    monkeypatch.setattr(Bucket, "get", counted)
    stored = sum(entry.size for entry in world.bucket().list(PACKS))
    with world.open("repairer") as repairer:
        found = repairer.check(True)
        read, fetched = fetched, 0
        assert stored < read < 1.05 * stored
        report = repairer.check(repair=found)
    # Each damaged pack to be copied, what it has to be stored anew, and that to be checked.
    assert fetched < 3.2 * stored
    assert report.read_bytes > stored
    fetched = 0
    assert world.open("judge").check(repair=True).repaired == []
    assert fetched < 2.05 * stored  # of the damaged packs and the new ones, once
