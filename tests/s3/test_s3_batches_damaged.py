"""Batches that are damaged: a check says so, and a repair brings back all but what is lost."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from typing import Any

import pytest
from cli_runs import Result
from gc_races import Machine
from gc_stores import HOUR, URL, World, collect
from memory_s3 import Losing, MemoryAttempts, Stored

import castore
from castore.check.plan import plan
from castore.errors import (
    CastoreError,
    CommitUnknown,
    ManifestUnreadable,
    NameNotFound,
    StoreIOError,
)
from castore.format.s3_batches import decode_root, encode_root
from castore.s3.client.attempts import Reply
from castore.s3.client.probe import ServerFeatures
from castore.s3.namespace import writing

ROOT = "store/batches/root"
NAMES = [f"n/{i}" for i in range(12)]
VALUES = {name: name.encode() * 30 for name in NAMES} | {"single": b"x", "weak": b"y"}
DELETED = "n/3"
OVER = "n/5"
VALUES[OVER] += b"more"


@pytest.fixture
def world(make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(writing, "BATCH_NAMES_MIN", 2)
    for module in ("castore.s3.gc.server", "castore.s3.check.outcome"):
        monkeypatch.setattr(
            f"{module}.probe", lambda bucket: ServerFeatures(True, True, True, True, True)
        )
    world = make_world(batches=True)
    with world.open("writer") as store:
        with store.transaction() as t:
            for name in NAMES:
                t.puts(name, VALUES[name].removesuffix(b"more"))
            t.puts("z", b"the last is put by itself")
        store.delete("z")
        store.puts("single", b"x")
        store.puts("weak", b"y", if_absent=True)
        with store.open(OVER, "ab") as file:  # a weak single over what is in the batch
            file.write(b"more")
        store.delete(DELETED)
        assert sorted(store.names()) == sorted(set(VALUES) - {DELETED})
    return world


def change(world: World, key: str, raw: bytes) -> None:
    """A disk or a user changes what is there."""
    stored = world.server.objects[key]
    world.server.objects[key] = Stored(raw, f'"{hash(raw):x}"', stored.modified)


def flip(world: World, key: str, at: int, bit: int = 4) -> None:
    raw = bytearray(world.server.objects[key].body)
    raw[at] ^= bit
    change(world, key, bytes(raw))


def batch(world: World) -> str:
    [key] = [k for k in world.server.keys("store/batches/") if k != ROOT]
    return key


def garble(world: World, key: str, begin: int, end: int) -> None:
    raw = bytearray(world.server.objects[key].body)
    raw[begin:end] = b"garbled!" * (end - begin)
    change(world, key, bytes(raw[: len(world.server.objects[key].body)]))


def root_of_another(world: World) -> bytes:
    _, root = decode_root(world.server.objects[ROOT].body)
    return encode_root(bytes(16), root)


def size(world: World, key: str) -> int:
    return len(world.server.objects[key].body)


# Each with the names that it takes for good.
DAMAGES: dict[str, tuple[Callable[[World], object], set[str]]] = {
    "a bit of the root": (lambda w: flip(w, ROOT, 70), set()),
    "the root is garbled": (lambda w: garble(w, ROOT, 40, 60), set()),
    "the root is another store's": (lambda w: change(w, ROOT, root_of_another(w)), set()),
    "the root is gone": (lambda w: w.server.objects.pop(ROOT), set()),
    "a bit of a batch's names": (lambda w: flip(w, batch(w), 70), set()),
    "a batch's names are garbled": (lambda w: garble(w, batch(w), 60, 90), set(NAMES) - {OVER}),
    "a batch is gone": (lambda w: w.server.objects.pop(batch(w)), set(NAMES) - {OVER}),
    "a bit of a manifest": (lambda w: flip(w, batch(w), size(w, batch(w)) - 40), set()),
    "a manifest is garbled": (
        lambda w: garble(w, batch(w), size(w, batch(w)) - 60, size(w, batch(w)) - 50),
        {"n/9"},
    ),
    "a bit of a tombstone": (lambda w: flip(w, f"store/names/{DELETED}", 20), set()),
    "a tombstone is garbled": (
        lambda w: garble(w, f"store/names/{DELETED}", 20, 40),
        set(),
    ),
    "a bit of a number": (lambda w: flip(w, f"store/names/{OVER}", 60, 1), set()),
    "a bit of a weak single": (lambda w: flip(w, "store/names/weak", 63), set()),
    "the root is gone, and a bit of a weak single": (
        lambda w: (w.server.objects.pop(ROOT), flip(w, "store/names/weak", 63)),
        set(),
    ),
    "the root is gone, and a tombstone is garbled": (
        lambda w: (w.server.objects.pop(ROOT), garble(w, f"store/names/{DELETED}", 20, 40)),
        set(),
    ),
}


@pytest.mark.damages_store("that is what it is about")
@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_damaged_is_found_and_repaired(world: World, damage: str) -> None:
    work, taken = DAMAGES[damage]
    work(world)
    with world.open("checks") as store:
        found = store.check(read_data=True)
        assert found.problems, damage
        assert found.garbage == {}
        assert plan(found)  # or the command would do nothing
        report = store.check(repair=True)
        assert report.repaired
        assert store.check(read_data=True).problems == []
    if damage == "a manifest is garbled":  # it may be of use, and its batch goes some day
        assert world.server.keys("store/quarantine/names/") == ["store/quarantine/names/n/9"]
    with world.open("reads") as store:
        names = {name for name in store.names() if not name.startswith("quarantine/")}
        assert names == set(VALUES) - {DELETED} - taken
        assert {name: store.gets(name) for name in names} == {n: VALUES[n] for n in names}
        with store.transaction() as t:
            for name in NAMES:
                t.puts(name, b"again")
        assert all(store.gets(name) == b"again" for name in NAMES)
        assert store.check(read_data=True).problems == []


@pytest.mark.damages_store("that is what it is about")
def test_the_command_repairs_the_root(
    world: World, bare: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    DAMAGES["the root is garbled"][0](world)
    monkeypatch.setenv("CASTORE_CACHE_DIR", str(world.cache_of("command")))
    asked = bare("-r", URL, "check", "--repair")
    assert (asked.code, "garbage" in asked.text) == (13, False)
    assert "to do: put right, or make anew, what says which names are in batches" in asked.err
    done = bare("-r", URL, "check", "--repair", "--yes")
    assert (done.code, "done: batches/root is made again" in done.err) == (0, True)
    with world.open("reads") as store:
        assert store.gets(NAMES[0]) == VALUES[NAMES[0]]


@pytest.mark.damages_store("that is what it is about")
@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_damaged_is_no_other_value(world: World, damage: str) -> None:
    """A read gives what was put, or says that it can't; never that there is nothing."""
    DAMAGES[damage][0](world)
    with world.open("reads") as store:
        for name in VALUES:
            found: object
            try:
                found = store.gets(name)
            except CastoreError as error:
                found = type(error)
            assert found == VALUES[name] or (
                (found is not NameNotFound and isinstance(found, type)) or name == DELETED
            ), name


@pytest.mark.damages_store("that is what it is about")
@pytest.mark.parametrize("damage", ["gone", "garbled", "a bit"])
def test_a_slow_repair_of_the_root_takes_nothing_away(
    make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    """Of two at once, while the other one's root is in use already."""
    monkeypatch.setattr(writing, "BATCH_NAMES_MIN", 2)
    monkeypatch.setattr(
        "castore.s3.check.outcome.probe",
        lambda bucket: ServerFeatures(True, True, True, True, True),
    )
    for j in itertools.count(step=3):
        world = make_world(batches=True)
        writer = world.open("writer")
        put_all(writer, NAMES, b"first")
        slow = Machine(world, "slow")
        slow.begin()
        match damage:
            case "gone":
                world.server.objects.pop(ROOT)
            case "garbled":
                garble(world, ROOT, 40, 60)
            case _:
                flip(world, ROOT, 70)
        waits = slow.start(lambda m: m.store.check(repair=True), stop_at=j)
        with world.open("other") as other:
            other.check(repair=True)
            put_all(other, [f"late/{i}" for i in range(4)], b"late")
        slow.finish()
        assert slow.error is None
        with world.open("reads") as store:
            assert [*store.names()] == sorted([*NAMES, *(f"late/{i}" for i in range(4))]), j
            assert not store.check(read_data=True).problems
        world.close()
        if not waits:
            assert j > 10
            break


@pytest.mark.damages_store("that is what it is about")
@pytest.mark.parametrize("damage", ["a bit", "garbled", "gone"])
@pytest.mark.parametrize("newer", [False, True])
def test_of_two_batches_of_the_same_names_one_is_damaged(
    world: World, damage: str, newer: bool
) -> None:
    """As where a folder is imported again: the other one is looked into as ever."""
    first = batch(world)
    with world.open("again") as store:
        put_all(store, [*NAMES, "z"], b"again")
    [second] = {*world.server.keys("store/batches/")} - {first, ROOT}
    damaged = second if newer else first
    match damage:
        case "a bit":
            flip(world, damaged, 70)
        case "garbled":
            garble(world, damaged, 60, 90)
        case _:
            world.server.objects.pop(damaged)
    with world.open("checks") as store:
        [problem] = store.check(read_data=True).problems
        assert problem.kind == "batches"
        assert store.check(repair=True).repaired
        assert not store.check(read_data=True).problems


@pytest.mark.damages_store("that is what it is about")
@pytest.mark.parametrize("damage", ["a bit", "garbled", "gone", "the root is gone"])
def test_what_says_that_names_are_deleted_is_repaired_or_they_are_there_again(
    world: World, damage: str
) -> None:
    """And the report says so."""
    there, gone = batch(world), {NAMES[7], NAMES[8]}
    with world.open("deletes") as store, store.transaction() as t:
        for name in gone:
            t.delete(name)
    [deletes] = {*world.server.keys("store/batches/")} - {there, ROOT}
    match damage:
        case "a bit":
            flip(world, deletes, 60)
        case "garbled":
            garble(world, deletes, 60, 70)
        case "gone":
            world.server.objects.pop(deletes)
        case _:
            world.server.objects.pop(ROOT)
    with world.open("repairs") as store:
        found = [problem.what for problem in store.check().problems]
        report = store.check(repair=True)
        assert not store.check(read_data=True).problems
    with world.open("reads") as store:
        are_back = gone <= {*store.names()}
        assert are_back == (damage in ("garbled", "gone"))
    if are_back:
        assert any("2 deleted names" in what for what in found)
        assert any("what it hid is there again" in what for what in report.repaired)


def put_all(store: castore.Store, names: list[str], value: bytes) -> None:
    with store.transaction() as t:
        for name in names:
            t.puts(name, value)


# ---------------------------------------------------------------- on its way


class Damaging:
    """Damages the next `left` replies with what is at a key that begins with `key` and has `part`
    in it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left, self.key, self.part = 0, "batches/", b"CMAN"
        get = MemoryAttempts.get

        def damaged(attempts: MemoryAttempts, key: str, *of: Any) -> Reply | None:
            reply = get(attempts, key, *of)
            applies = reply is not None and key.startswith(self.key) and self.part in reply.body
            if reply is None or not self.left or not applies:
                return reply
            self.left -= 1
            return reply._replace(body=reply.body.replace(self.part, self.part[:-1] + b"?"))

        monkeypatch.setattr(MemoryAttempts, "get", damaged)


@pytest.fixture
def damaging(monkeypatch: pytest.MonkeyPatch) -> Damaging:
    return Damaging(monkeypatch)


def test_what_was_damaged_on_its_way_is_not_what_a_reader_finds_again(
    world: World, damaging: Damaging
) -> None:
    """Much of a batch is fetched at once, and kept in memory."""
    with world.open("reader") as store:
        in_batch = [name for name in NAMES if name not in (DELETED, OVER)]
        assert store.gets(in_batch[0]) == VALUES[in_batch[0]]
        damaging.left = 1
        for name in in_batch:
            assert store.gets(name) == VALUES[name]
        damaging.left = 0
    damaging.left = 1
    with world.open("another") as store:
        assert not store.check().problems


@pytest.mark.parametrize("replies", [1, 2])
def test_a_collection_writes_no_batch_of_what_was_damaged_on_its_way(
    replies: int, world: World, damaging: Damaging
) -> None:
    hidden = [name for name in NAMES if name not in (DELETED, OVER)][:6]
    with world.open("writer") as store:
        for name in hidden:
            store.puts(name, VALUES[name])
    world.pass_time(2 * HOUR)
    damaging.left = replies
    with world.open("collector") as store:
        try:
            assert collect(store).batches_rewritten == 1
        except ManifestUnreadable:
            assert replies > 1
        damaging.left = 0
        for _ in range(3):  # until what was before is gone
            world.pass_time(30 * HOUR)
            collect(store)
    with world.open("reader") as store:
        assert {name: store.gets(name) for name in VALUES if name != DELETED} == {
            name: data for name, data in VALUES.items() if name != DELETED
        }
        assert not store.check(read_data=True).problems


@pytest.mark.parametrize(
    ("key", "part"),
    [
        ("castore.json", b"seed"),
        ("batches/root", b"CROT"),
        ("batches/", b"CBAT"),
        ("gc/state", b"version"),
        ("gc/condemned/", b"CCON"),
    ],
)
def test_what_was_damaged_on_its_way_is_asked_for_once_more(
    key: str, part: bytes, world: World, damaging: Damaging
) -> None:
    """And is not said to be damaged in the store."""
    data = random.Random(1).randbytes(300_000)
    with world.open("new") as store:  # which tells others at once of what it stored
        store.puts("large", data)
        store.puts("garbage", data[::-1])
        store.delete("garbage")
    with world.open("collector") as store:
        assert collect(store, grace_s=HOUR).packs_condemned
    damaging.key, damaging.part = key, part
    damaging.left = 1
    with world.open("another") as store:
        assert store.gets(NAMES[0]) == VALUES[NAMES[0]]
        store.puts("again", data)
    assert damaging.left == 0
    world.pass_time(2 * HOUR)
    damaging.left = 1
    with world.open("another collector") as store:
        assert collect(store, grace_s=HOUR).packs_removed
    assert damaging.left == 0
    with world.open("reader") as store:
        assert store.gets("again") == data


@pytest.mark.damages_store("a manifest in a batch")
def test_a_collection_leaves_a_batch_that_is_damaged_as_it_is(world: World) -> None:
    """What a repair may bring back from it, and what says that it is damaged."""
    hidden = [name for name in NAMES if name not in (DELETED, OVER)][:6]
    with world.open("writer") as store:
        for name in hidden:
            store.puts(name, VALUES[name])
        assert store.gets(NAMES[-1]) == VALUES[NAMES[-1]]
    key = batch(world)
    at = world.server.objects[key].body.rindex(NAMES[-1].encode())
    flip(world, key, at)
    world.pass_time(2 * HOUR)
    with world.open("collector") as store, pytest.raises(ManifestUnreadable, match=NAMES[-1]):
        collect(store)
    assert batch(world) == key
    with world.open("repairer") as store:
        store.check(repair=True)
        assert store.gets(NAMES[-1]) == VALUES[NAMES[-1]]


# ---------------------------------------------------------------- replies that are lost


def loses_a_pack(world: World) -> None:
    del world.server.objects[world.server.keys("store/packs/")[0]]


@pytest.mark.parametrize(
    ("damage", "kind", "key"),
    [
        (loses_a_pack, "DELETE", "names/large"),
        (DAMAGES["a tombstone is garbled"][0], "PUT", f"names/{DELETED}"),
        (DAMAGES["a batch is gone"][0], "PUT", "batches/root"),
        (lambda w: flip(w, batch(w), size(w, batch(w)) - 40), "PUT", "names/n/9"),
    ],
    ids=["an object", "a tombstone", "the root", "a manifest of a batch"],
)
def test_a_repair_whose_replies_are_lost_says_so_and_is_repeated(
    world: World, damage: Callable[[World], object], kind: str, key: str
) -> None:
    with world.open("writer") as store:
        store.puts("large", random.Random(1).randbytes(300_000))
    damage(world)
    actor = Losing("repairer", kind, key, all=True)
    with world.open("repairer", actor) as store, pytest.raises(CommitUnknown, match="repeat the"):
        store.check(repair=True, packs_are_lost=True)
    assert actor.lost
    with world.open("another") as store:
        store.check(repair=True, packs_are_lost=True)
        assert not store.check(read_data=True).problems


@pytest.mark.parametrize(
    ("kind", "key"), [("PUT", "batches/root"), ("DELETE", f"names/{DELETED}")], ids=["root", "name"]
)
def test_a_collection_whose_replies_are_lost_says_so_and_is_repeated(
    world: World, kind: str, key: str
) -> None:
    with world.open("writer") as store:
        for name in VALUES:
            if name != DELETED:
                store.puts(name, VALUES[name])
    world.pass_time(2 * HOUR)
    told = 0
    for _ in range(4):
        actor = Losing("collector", kind, key, all=True)
        with world.open("collector", actor) as store:
            try:
                collect(store)
            except StoreIOError as error:
                told += "collect again" in str(error)
        world.pass_time(30 * HOUR)
        if actor.lost:
            break
        # What it was to do comes up once what it did before is an hour old.
    assert told == 1
    for _ in range(4):
        with world.open("another") as store:
            collect(store)
        world.pass_time(30 * HOUR)
    with world.open("reader") as store:
        assert {name: store.gets(name) for name in store.names()} == {
            name: data for name, data in VALUES.items() if name != DELETED
        }
