"""Names in batches: many small objects in one, beside names that are objects of their own."""

from __future__ import annotations

import io
import os
import random
import re
import tempfile
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pytest
from gc_stores import DAY, HOUR, World, collect, noise
from memory_s3 import Actor, MemoryAttempts
from oracle import in_child

import castore
from castore.errors import (
    FormatError,
    InvalidName,
    InvalidRange,
    NameExists,
    NameNotFound,
    StoreIOError,
)
from castore.format.s3_batches import BatchIndex, Root
from castore.s3 import catalog
from castore.s3.client.bucket import Bucket
from castore.s3.gc import batches as gc_batches
from castore.s3.keys import BATCHES
from castore.s3.namespace import writing
from castore.s3.namespace.look import READ_S
from castore.s3.namespace.writing import Namespace
from castore.system.workers import Future
from castore.testing.contents import Told

NAMES = [f"{folder}{n}" for folder in ("", "a/", "a/b/", "c/") for n in range(4)]


@pytest.fixture
def world(make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(writing, "BATCH_NAMES_MIN", 2)
    return make_world(batches=True)


def large(seed: int) -> bytes:
    """That does not lie in its manifest."""
    return noise(70_000, seed)


def agree(store: castore.Store, expected: dict[str, bytes]) -> None:
    """Every way to ask gives the same."""
    assert list(store.names()) == sorted(expected)
    assert {name: store.gets(name) for name in expected} == expected
    assert {info.name: info.size for info in store.list()} == {
        name: len(data) for name, data in expected.items()
    }
    for name in NAMES:
        assert store.exists(name) == (name in expected), name
        if name not in expected:
            with pytest.raises(NameNotFound):
                store.gets(name)
    for prefix in ("", "a/", "a/b/", "c/"):
        below = [name.removeprefix(prefix) for name in expected if name.startswith(prefix)]
        level = {rest.split("/")[0] for rest in below}
        shown = {entry.name.removeprefix(prefix).strip("/") for entry in store.scandir(prefix)}
        assert shown == level, prefix
    assert store.stats().objects == len(expected)


FORETOLD = (
    *("objects", "packs_rewritten", "packs_removed", "packs_condemned", "bytes_freed"),
    *("batches_rewritten", "batches_removed", "tombstones_removed", "manifests_removed"),
)


def collect_as_foretold(world: World, store: castore.Store) -> None:
    """A dry run tells what the run behind it does, and does nothing."""
    before = dict(world.server.objects)
    foretold = collect(store, repack_below=0.5, dry_run=True)
    assert world.server.objects == before
    done = collect(store, repack_below=0.5)
    told = {each: (getattr(foretold, each), getattr(done, each)) for each in FORETOLD}
    assert {each: both for each, both in told.items() if both[0] != both[1]} == {}


def test_more_names_at_once_than_one_batch_may_have(world: World) -> None:
    data = {f"{n:05}": b"%d" % n for n in range(writing.BATCH_NAMES_MAX + 2)}
    with world.open("writer") as store:
        store.puts_many(data)
    assert len(world.server.keys("store/batches/")) == 2 + 1  # and the root
    with world.open("reader") as store:
        assert list(store.names()) == [*data]
        last = next(reversed(data))
        assert store.gets(last) == data[last]


def put_together(store: castore.Store, data: dict[str, bytes]) -> None:
    with store.transaction() as t:
        for name, value in data.items():
            t.puts(name, value)


def root_of(store: castore.Store) -> Root:
    batches = store._backend._names.batches  # type: ignore[attr-defined]
    root: Root = batches.fresh().root
    return root


def test_a_batch_has_so_many_bytes_and_no_more(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "BATCH_BYTES_MAX", 10_000)
    data = {f"{n:03}": noise(1000, n) for n in range(50)}
    with world.open("writer") as store:
        put_together(store, data)
        entries = root_of(store).entries
    assert {name: world.open("reader").gets(name) for name in data} == data
    assert 6 <= len(entries) <= 8
    assert all(entry.size - entry.index_bytes <= 10_000 for entry in entries)


def test_a_root_that_tells_of_many_batches_tells_of_no_more(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until a collection wrote them together: it is read again and again."""
    first, second = [dict.fromkeys((f"{c}{n}" for n in range(4)), c.encode()) for c in "ab"]
    store = world.open("writer")
    put_together(store, first)
    monkeypatch.setattr(writing, "ENTRIES_MAX", 1)
    put_together(store, second)
    assert {name: store.gets(name) for name in store.names()} == first | second
    with store.transaction() as t:
        for name in first:
            t.delete(name)
    assert [*world.open("reader").names()] == [*second]
    assert len(root_of(store).entries) == 1
    assert store.check(read_data=True).problems == []


def test_folders_that_are_deleted_again_and_again_are_remembered_once(world: World) -> None:
    store = world.open("writer")
    put_together(store, dict.fromkeys(NAMES, b"x"))
    for prefix in ("a/b/", "a/b/", "a/", "c/", "c/"):
        store.delete_prefix(prefix)
    assert [drop.prefix for drop in root_of(store).drops] == [b"a/", b"c/"]
    assert [*store.names()] == [*world.open("reader").names()] == NAMES[:4]


def test_a_machine_that_slept_puts_nothing_by_what_it_saw_before(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the root said of the name may be forgotten by then."""
    store, look, slept = world.open("sleeps"), Namespace.look, 0.0

    def look_and_sleep(names: Namespace, *of: Any, **options: Any) -> Any:
        nonlocal slept
        now = look(names, *of, **options)
        slept += READ_S + 1
        return now

    with monkeypatch.context() as patched:
        patched.setattr(writing, "boot_clock", lambda: slept)
        patched.setattr(Namespace, "look", look_and_sleep)
        with pytest.raises(StoreIOError, match="took too long to put 'a'"):
            store.puts("a", b"small", if_absent=True)
    assert list(store.names()) == []
    store.puts("a", b"small", if_absent=True)
    assert store.gets("a") == b"small"


def test_what_is_deleted_anew_after_a_look_is_put_all_the_same(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For who puts if nothing is there: another object than the one that was seen says that the
    name is deleted."""
    store, other = world.open("one"), world.open("other")
    put_together(store, dict.fromkeys(NAMES, b"x"))
    store.delete("a/1")
    look, looks = Namespace.look, 0

    def look_and_wait(names: Namespace, *of: Any, **options: Any) -> Any:
        nonlocal looks
        now = look(names, *of, **options)
        if names is store._backend._names and options.get("decisive"):  # type: ignore[attr-defined]
            looks += 1
            if looks == 1:
                other.puts("a/1", b"for a moment")
                other.delete("a/1")
        return now

    monkeypatch.setattr(Namespace, "look", look_and_wait)
    store.puts("a/1", b"new", if_absent=True)
    assert looks == 2
    assert world.open("reader").gets("a/1") == b"new"
    assert store.check(read_data=True).problems == []


def test_a_root_that_comes_with_the_first_batch_is_not_gone(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a store that was made by who was killed before the root was put."""
    data = dict.fromkeys(NAMES, b"x")
    with world.open("writer") as writer, world.open("reader") as reader:
        world.server.objects.pop("store/batches/root")
        look = Bucket.list
        looks = []

        def list_late(bucket: Bucket, prefix: str = "", **options: Any) -> Any:
            if prefix == BATCHES and not looks:
                looks.append(prefix)
                writer.puts_many(data)
            return look(bucket, prefix, **options)

        monkeypatch.setattr(Bucket, "list", list_late)
        assert list(reader.names()) == sorted(data)
        assert looks


def test_the_root_is_made_before_the_first_batch(world: World) -> None:
    """Who finds a batch and no root takes the root for lost."""
    writer = Actor("writer")
    with world.open("writer", writer) as store:
        world.server.objects.pop("store/batches/root")
        store.puts_many(dict.fromkeys(NAMES, b"x"))
        keys = [s.key for s in writer.steps if s.kind == "PUT" and s.key.startswith("batches/")]
        assert len(keys) == 3
        assert keys[0] == keys[2] == "batches/root"


def test_what_lands_below_a_deletion_by_batch_stays_deleted(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A change that was decided before it, and hidden by it: a collection that writes batches anew
    keeps what hides it."""
    late, put_once = NAMES[0], writing.put_once
    with world.open("deleter") as deleter, world.open("changer") as changer:
        deleter.puts_many(dict.fromkeys(NAMES, b"x"))
        deletions = []

        def put_late(bucket: Bucket, key: str, *given: Any, **options: Any) -> Any:
            if not deletions:
                deletions.append(key)
                with deleter.transaction() as transaction:
                    for name in NAMES:
                        transaction.delete(name)
            return put_once(bucket, key, *given, **options)

        monkeypatch.setattr(writing, "put_once", put_late)
        changer.set_attributes(late, mode=0o600)
        assert deletions == [f"names/{late}"]
        agree(deleter, {})
        for _ in range(3):
            world.pass_time(2 * HOUR)
            collect(deleter, repack_below=0.5)
            with world.open("reader") as reader:
                agree(reader, {})


def test_what_has_chunks_is_in_no_batch(world: World) -> None:
    """Of a commit with both: its record is of no manifest yet, as that of a small object is."""
    expected = {f"c/{n}": large(n) if n % 2 else noise(100, n) for n in range(8)}
    one = world.open("one")
    with one.transaction() as t:
        for name, data in expected.items():
            t.puts(name, data)
    for store in (one, world.open("two")):
        agree(store, expected)
    singles = [key for key in world.server.objects if "/names/" in key]
    assert len(singles) == len(expected) // 2


@pytest.mark.parametrize("seed", range(6))
def test_any_order_of_verbs(world: World, seed: int) -> None:
    rng = random.Random(seed)
    machines = [world.open("one"), world.open("two")]
    expected: dict[str, bytes] = {}
    for step in range(60):
        store = rng.choice(machines)
        name = rng.choice(NAMES)
        data = f"{step} {name}".encode() * rng.randrange(1, 4)
        match rng.randrange(12):
            case 0 | 1 | 2:
                many = rng.sample(NAMES, rng.randrange(2, 9))
                with store.transaction() as t:
                    for each in many:
                        t.puts(each, data + each.encode())
                        expected[each] = data + each.encode()
            case 3:
                store.puts(name, data)
                expected[name] = data
            case 4:
                if name in expected:
                    with pytest.raises(NameExists):
                        store.puts(name, data, if_absent=True)
                else:
                    store.puts(name, data, if_absent=True)
                    expected[name] = data
            case 5:
                gone = rng.sample(sorted(expected), rng.randrange(len(expected) + 1))
                with store.transaction() as t:
                    for each in gone:
                        t.delete(each)
                        del expected[each]
            case 6:
                if name in expected:
                    store.delete(name)
                    del expected[name]
                else:
                    with pytest.raises(NameNotFound):
                        store.delete(name)
            case 7:
                prefix = rng.choice(["a", "a/b", "c"])
                gone = [each for each in expected if each.startswith(prefix + "/")]
                assert store.delete_prefix(prefix) == len(gone)
                for each in gone:
                    del expected[each]
            case 8:
                target = rng.choice(NAMES)
                if name in expected and target != name:
                    store.rename(name, target)
                    expected[target] = expected.pop(name)
            case 9:
                if name in expected:
                    with store.open(name, "ab") as file:
                        file.write(b"more")
                    expected[name] += b"more"
            case 10:
                store.puts(name, large(step))
                expected[name] = large(step)
            case 11:
                world.pass_time(rng.choice([60, 2 * HOUR, 2 * DAY]))
                collect_as_foretold(world, store)
        agree(rng.choice(machines), expected)
    world.forget_machines()
    store = world.open("new")
    agree(store, expected)
    for _ in range(4):  # everything that nothing needs
        world.pass_time(2 * DAY)
        collect_as_foretold(world, store)
        agree(store, expected)
    report = store.check(read_data=True)
    assert not report.problems
    assert report.names == len(expected)
    assert not report.garbage


MANY = [f"many/{n:04}" for n in range(1000)]


@pytest.fixture
def many(make_world: Callable[..., World]) -> World:
    """A thousand objects of 100 bytes each, put by one commit."""
    world = make_world(batches=True)
    with world.open("first") as store, store.transaction() as t:
        for name in MANY:
            t.puts(name, name.encode() * 10)
    return world


def asked(world: World, machine: str, work: Callable[[castore.Store], object]) -> list[str]:
    """The requests that it takes, but for what opening and closing do."""
    actor = Actor(machine)
    with world.open(machine, actor) as store:
        before = len(actor.steps)
        work(store)
        steps = actor.steps[before:]
    return [f"{step.kind} {step.key.split('/')[0]}" for step in steps]


def test_a_put_if_absent_looks_twice(many: World) -> None:
    """Before anything is read of what is to be put, and for what decides."""
    asked(many, "puts", lambda store: store.info(MANY[0]))

    def put(store: castore.Store) -> None:
        store.puts("new", b"x", if_absent=True)
        with pytest.raises(NameExists):
            store.puts("new", b"y", if_absent=True)

    steps = asked(many, "puts", put)
    assert [sorted(steps[:2]), sorted(steps[2:4]), steps[4]] == [
        *2 * [["GET batches", "GET names"]],
        "PUT names",
    ]
    assert len(steps) <= 7


def test_what_was_just_seen_in_a_batch_is_not_looked_for_again(many: World) -> None:
    """Its single is none, or the condition of the put finds out."""
    asked(many, "changes", lambda store: store.info(MANY[0]))
    changes: list[Callable[[castore.Store], object]] = [
        lambda store: store.set_attributes(MANY[0], mode=0o600),
        lambda store: store.rename(MANY[1], "moved"),
        lambda store: store.delete(MANY[2]),
    ]
    steps = [asked(many, "changes", change) for change in changes]
    assert [each.count("PUT names") for each in steps] == [1, 2, 1]
    assert all(len(each) <= most for each, most in zip(steps, (5, 6, 4), strict=True)), steps
    assert all(each.count("GET names") + each.count("HEAD names") == 1 for each in steps)


def test_many_small_objects_are_few_requests(many: World) -> None:
    def put(store: castore.Store) -> None:
        with store.transaction() as t:
            for name in MANY:
                t.puts(name.replace("many", "more"), name.encode() * 10)

    # The root, whether any is there, the batch, the swap, whether any came; and the last alone.
    assert asked(many, "second", put) == [
        "GET batches",
        "LIST names",
        "PUT batches",
        "GET batches",
        "PUT batches",
        "LIST names",
        "PUT names",
    ]
    assert len(many.server.keys("store/names/")) == 2


def test_they_are_listed_by_few_requests(many: World) -> None:
    def names(store: castore.Store) -> None:
        assert list(store.names()) == MANY

    def infos(store: castore.Store) -> None:
        assert [info.size for info in store.list("many/")] == [90] * len(MANY)

    listed = [
        "GET batches",
        "LIST names",
        "GET batches",
    ]  # the root, the singles, the batch's names
    assert sorted(asked(many, "new", names)) == sorted(listed)
    assert asked(many, "new", names) == ["GET batches", "LIST names"]
    assert len(asked(many, "newer", infos)) <= len(listed) + 1  # one is no batch's


def test_one_of_them_is_read_at_once(many: World) -> None:
    """From a batch that is known: the single, the root, and, once, the bytes."""

    def read(store: castore.Store) -> None:
        assert store.gets(MANY[5]) == MANY[5].encode() * 10

    asked(many, "reads", read)
    assert sorted(asked(many, "reads", read)) == ["GET batches", "GET names"]


def test_all_of_them_are_deleted_by_one_swap(many: World) -> None:
    def delete(store: castore.Store) -> None:
        assert store.delete_prefix("many") == len(MANY)

    steps = asked(many, "deletes", delete)
    assert steps.count("PUT batches") == 1
    assert len(steps) <= 8, steps


@pytest.mark.parametrize("count", [64, 999])
def test_many_of_them_are_deleted_by_few_requests(many: World, count: int) -> None:
    """However many they are: not by a request, or more, for each."""

    def delete(store: castore.Store) -> None:
        with store.transaction() as t:
            for name in MANY[:count]:
                t.delete(name)
        assert t.deleted == count

    # The root and the batch's names, whether any is a single, the batch that says so, the swap.
    assert asked(many, "deletes", delete) == [
        "GET batches",
        "LIST names",
        "GET batches",
        "GET batches",
        "PUT batches",
        "GET batches",
        "PUT batches",
    ]
    left = MANY[count:]
    for machine in ("deletes", "new"):
        with many.open(machine) as store:
            assert list(store.names()) == left
            assert not store.exists(MANY[0])


def test_many_of_them_are_changed_and_moved_by_a_request_for_each_put(many: World) -> None:
    """Of all of them one root tells, and a list that none is a single."""
    some = MANY[:300]

    def change(store: castore.Store) -> None:
        with store.transaction() as t:
            for name in some:
                t.set_attributes(name, mode=0o600)

    def move(store: castore.Store) -> None:
        with store.transaction() as t:
            for name in MANY[300:600]:
                t.rename(name, f"moved/{name}")

    def move_singles(store: castore.Store) -> None:
        with store.transaction() as t:
            for name in MANY[300:600]:
                t.rename(f"moved/{name}", f"moved/again/{name}")

    for work, puts, deletes in (change, 300, 0), (move, 600, 0), (move_singles, 300, 300):
        steps = Counter(asked(many, "changes", work))
        # The last is a group of its own, and asks for itself; others are 128 at a time.
        assert (steps.pop("PUT names"), steps.pop("DELETE names", 0)) == (puts, deletes)
        assert steps.total() <= 16, steps
    with many.open("reads") as store:
        assert [info.mode for info in store.list("many/")][:300] == [0o600] * 300
        assert list(store.names("many/")) == [*some, *MANY[600:]]
        assert store.gets(f"moved/again/{MANY[310]}") == MANY[310].encode() * 10


def test_what_deletes_is_collected_with_what_it_deletes(many: World) -> None:
    """And not before: else that would be there again."""
    store = many.open("one")
    for few in (MANY[:100], MANY[200:300]):
        with store.transaction() as t:
            for name in few:
                t.delete(name)
    left = [*MANY[100:200], *MANY[300:]]
    many.pass_time(2 * DAY)
    assert collect(store).batches_rewritten == 0
    assert list(many.open("new").names()) == left
    with store.transaction() as t:
        for name in left[:-1]:
            t.delete(name)
    many.pass_time(2 * DAY)
    assert collect(store).batches_rewritten == 4
    for _ in range(2):
        assert list(many.open("newer").names()) == left[-1:]
        many.pass_time(2 * DAY)
        collect(store)
    assert many.server.keys("store/batches/") == ["store/batches/root"]
    assert list(many.open("newest").names()) == left[-1:]


def test_a_collection_rests_where_many_batches_say_that_names_are_deleted(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is small, whatever it deletes: of those that are full, none has room for another."""
    for module in (writing, gc_batches):
        monkeypatch.setattr(module, "BATCH_NAMES_MAX", 8)
    monkeypatch.setattr(gc_batches, "SMALL_BYTES", 2000)
    names = [f"{n:03}" for n in range(400)]
    left = [name for n, name in enumerate(names) if n % 5 > 1]
    store = world.open("one")
    store.puts_many({name: noise(600, n) for n, name in enumerate(names)})
    with store.transaction() as t:
        for name in {*names} - {*left}:
            t.delete(name)
    assert len(world.server.keys("store/batches/")) == 50 + 20 + 1  # and the root
    rewritten = []
    for _ in range(3):
        world.pass_time(2 * DAY)
        rewritten.append(collect(store).batches_rewritten)
    assert rewritten[-1] == 0
    with world.open("new") as new:
        assert list(new.names()) == left


def test_what_was_put_and_deleted_again_and_again_is_collected_in_one_look(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not in one at each batch for each name of each: a day has many rounds."""
    rounds, find, looks = 16, BatchIndex.find, Counter[bytes]()
    store = world.open("one")
    for n in range(rounds):
        put_all_and_delete_them(store, b"%d" % n)
    world.pass_time(2 * DAY)

    def counted(index: BatchIndex, name: bytes) -> object:
        looks[name] += 1
        return find(index, name)

    monkeypatch.setattr(BatchIndex, "find", counted)
    assert collect(store).batches_rewritten == 2 * rounds
    assert max(looks.values(), default=0) <= 2 * rounds
    assert not list(world.open("new").names())


def put_all_and_delete_them(store: castore.Store, data: bytes) -> None:
    store.puts_many(dict.fromkeys(NAMES, data))
    with store.transaction() as t:
        for name in NAMES:
            t.delete(name)


def test_all_of_them_are_exported_by_few_requests(many: World, tmp_path: Path) -> None:
    def export(store: castore.Store) -> None:
        store.export_folder("many", tmp_path / "out")

    steps = asked(many, "exports", export)
    assert len(steps) < 30, steps
    assert {path.name for path in (tmp_path / "out").iterdir()} == {n[5:] for n in MANY}
    assert (tmp_path / "out/0007").read_bytes() == b"many/0007" * 10


def test_what_is_read_of_a_batch_is_told_as_progress(many: World, tmp_path: Path) -> None:
    with many.open("one") as store, open(tmp_path / "into", "wb") as into:
        listed = next(store.list(MANY[3]))
        for get in (
            lambda told: store.get(MANY[3], tmp_path / "out", progress=told, listed=listed),
            lambda told: store.get(MANY[3], io.BytesIO(), progress=told, listed=listed),
            lambda told: store.get_into(MANY[3], into.fileno(), progress=told, listed=listed),
        ):
            told = Told()
            assert get(told) == listed
            assert (told.size, sum(told.steps)) == (listed.size, listed.size)
    assert (
        (tmp_path / "out").read_bytes() == (tmp_path / "into").read_bytes() == MANY[3].encode() * 10
    )


def fs_over(store: castore.Store) -> Any:
    fs = pytest.importorskip("castore.fs").CastoreFileSystem(
        "s3://bucket/store", skip_instance_cache=True
    )
    fs._store = store
    return fs


def test_a_folder_is_imported_again_by_a_new_machine_by_few_requests(
    many: World, tmp_path: Path
) -> None:
    """It has to know of each whether it changed: not by two requests for each."""
    for name in MANY:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(name.encode() * 10)
    with many.open("first") as store:
        store.import_folder(tmp_path / "many", "many")

    def again(store: castore.Store) -> None:
        assert store.import_folder(tmp_path / "many", "many").same_files == len(MANY)

    steps = asked(many, "new", again)
    assert len(steps) <= 8, Counter(steps)


def test_all_of_them_are_counted_by_few_requests(many: World) -> None:
    def count(store: castore.Store) -> None:
        stats = store.stats()
        assert (stats.objects, stats.logical_bytes) == (len(MANY), len(MANY) * 90)

    assert sorted(asked(many, "new", count)) == [
        "GET batches",
        "GET batches",
        "GET names",  # the one that is in no batch
        "LIST names",
        "LIST packs",
    ]


def test_all_of_them_are_got_by_fsspec_by_few_requests(many: World, tmp_path: Path) -> None:
    with many.open("one") as store:
        store.puts(MANY[4], b"newer")
        store.set_attributes(MANY[3], mode=0o600)
        store.puts("many/large", noise(200_000, 1))
    expected = {name: name.encode() * 10 for name in MANY}
    expected |= {MANY[4]: b"newer", "many/large": noise(200_000, 1)}
    for number, machine in enumerate(("new", "new", "newer")):
        out = tmp_path / str(number)

        def get(store: castore.Store, out: str = str(out)) -> None:
            fs_over(store).get("many", out, recursive=True)

        steps = asked(many, machine, get)
        assert len(steps) < 40, steps
        assert {f"many/{path.name}": path.read_bytes() for path in out.iterdir()} == expected
        assert (out / "0003").stat().st_mode & 0o777 == 0o600


def as_folder(names: list[str]) -> dict[str, Any]:
    return {"path": "many", "recursive": True}


def as_glob(names: list[str]) -> dict[str, Any]:
    return {"path": "many/*"}


def as_list(names: list[str]) -> dict[str, Any]:
    return {"path": names}


WAYS = pytest.mark.parametrize("way", [as_folder, as_glob, as_list])


@WAYS
def test_all_of_them_are_read_by_fsspec_by_few_requests(
    many: World, way: Callable[[list[str]], dict[str, Any]]
) -> None:
    with many.open("one") as store:
        store.puts(MANY[4], b"newer")
        store.set_attributes(MANY[3], mode=0o600)
        store.puts("many/large", noise(200_000, 1))
        store.delete(MANY[5])
    expected = {name: name.encode() * 10 for name in MANY if name != MANY[5]}
    expected |= {MANY[4]: b"newer", "many/large": noise(200_000, 1)}
    for machine in ("new", "new", "newer"):

        def cat(store: castore.Store) -> None:
            assert fs_over(store).cat(**way([*expected])) == expected

        steps = asked(many, machine, cat)
        assert len(steps) < 40, steps


def test_of_many_that_are_read_by_fsspec_some_are_not_there(many: World) -> None:
    """By each of the ways that fsspec has to say so."""
    with many.open("one") as store:
        store.delete(MANY[5])
        fs, there = fs_over(store), [name for name in MANY if name != MANY[5]]
        expected = {name: name.encode() * 10 for name in there}
        with pytest.raises(NameNotFound, match=MANY[5]):
            fs.cat(MANY)
        assert fs.cat(MANY, on_error="omit") == expected
        found = fs.cat(MANY, on_error="return")
        assert isinstance(found.pop(MANY[5]), NameNotFound)
        assert found == expected
        assert fs.cat(MANY[4]) == expected[MANY[4]]


def test_what_lies_among_many_others_is_not_looked_for_for_long(many: World) -> None:
    """A list of all would take longer than to ask for each."""
    with many.open("one") as store:
        pages = store._backend.catalog.pages

        def counted(prefix: bytes) -> Any:
            for count, entry in enumerate(chain.from_iterable(pages(prefix))):
                assert count < 4 * 64
                yield [entry]

        store._backend.catalog.pages = counted  # type: ignore[method-assign]
        names = [*MANY[:32], *MANY[-32:]]
        assert fs_over(store).cat(names) == {name: name.encode() * 10 for name in names}


def test_those_that_gets_ranges_is_asked_for_take_few_requests(many: World) -> None:
    with many.open("one") as store:
        store.puts(MANY[4], b"newer")
        store.delete(MANY[5])

    def gets(store: castore.Store) -> None:
        wanted = [*((name, None) for name in MANY), (MANY[4], (1, 3)), ("no//../name", None)]
        wanted += [(MANY[7], (3, 6)), (MANY[8], (5, 3))]
        found = dict(zip(wanted, store.gets_ranges(wanted), strict=True))
        assert isinstance(found.pop((MANY[5], None)), NameNotFound)
        assert isinstance(found.pop(("no//../name", None)), InvalidName)
        assert found.pop((MANY[7], (3, 6))) == MANY[7].encode()[3:6]
        for byte_range in (None, (5, 3)):  # what is wrong with one is so of its object
            assert isinstance(found.pop((MANY[8], byte_range)), InvalidRange)
        assert (found.pop((MANY[4], (1, 3))), found.pop((MANY[4], None))) == (b"ew", b"newer")
        left = [*MANY[:4], *MANY[6:8], *MANY[9:]]
        assert found == {(name, None): name.encode() * 10 for name in left}

    assert len(asked(many, "new", gets)) < 40


def test_what_can_not_be_read_with_others_is_asked_for_by_itself(
    many: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it is damaged, or the list ends with an error: of that no other has to suffer."""
    names = MANY[:100]
    with many.open("one") as store:
        catalog: Any = store._backend.catalog
        pages, at_hand = catalog.pages, store._reader.at_hand

        def fails(prefix: bytes) -> Any:
            yield list(islice(chain.from_iterable(pages(prefix)), 50))
            raise StoreIOError("the server is away")

        def damaged(listed: castore.ObjectInfo) -> Any:
            if listed.name == names[3]:
                raise FormatError("not what it was")
            return at_hand(listed)

        monkeypatch.setattr(catalog, "pages", fails)
        monkeypatch.setattr(store._reader, "at_hand", damaged)
        found = store.gets_ranges([(name, None) for name in names])
        assert found == [name.encode() * 10 for name in names]


def test_ranges_and_sizes_of_them_take_few_requests_by_fsspec_too(many: World) -> None:
    """A new machine's, and with some that were put since, or are not there."""
    with many.open("one") as store:
        store.puts(MANY[4], b"newer")
        store.delete(MANY[5])

    def ranges(store: castore.Store) -> None:
        paths = [*MANY, MANY[7], MANY[8]]
        starts = [*range(len(MANY)), 5, -1]
        ends = [at + 4 for at in starts[:-2]] + [3, None]
        found = fs_over(store).cat_ranges(paths, starts, ends)
        assert isinstance(found[5], NameNotFound)
        assert found[4] == b"r"
        assert found[-2:] == [b"", b"8"]
        for at in range(6, len(MANY)):
            assert found[at] == (MANY[at].encode() * 10)[at : at + 4]

    def sizes(store: castore.Store) -> None:
        fs = fs_over(store)
        with pytest.raises(NameNotFound):
            fs.sizes(MANY)
        left = [*MANY[:5], *MANY[6:]]
        assert fs.sizes([*left, "many"])[-2:] == [90, fs.size("many")]
        assert fs.sizes(left) == [90] * 4 + [5] + [90] * 994
        assert fs.sizes([]) == []

    for work in (ranges, sizes):
        assert len(asked(many, f"new {work}", work)) < 50


@WAYS
def test_those_that_are_meant_are_got_by_fsspec_by_few_requests(
    many: World, way: Callable[[list[str]], dict[str, Any]], tmp_path: Path
) -> None:
    def get(store: castore.Store) -> None:
        meant = way(MANY)
        fs_over(store).get(meant.pop("path"), f"{tmp_path}/", **meant)

    steps = asked(many, "new", get)
    assert len(steps) < 40, steps
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {f"many/{path.name}": path.read_bytes() for path in files} == {
        name: name.encode() * 10 for name in MANY
    }


def test_what_was_changed_since_it_was_listed_is_as_it_is(many: World) -> None:
    """A single over what is in a batch is not taken for it: same bytes, other mode."""
    with many.open("one") as store:
        store.set_attributes(MANY[3], mode=0o600)
        [info] = list(store.list(MANY[3]))
        assert info.mode == 0o600
        assert store.info(MANY[3]).mode == 0o600
        store.puts(MANY[4], b"newer")
    with many.open("two") as store, tempfile.TemporaryDirectory() as folder:
        store.export_folder("many", folder)
        assert (Path(folder) / "0003").stat().st_mode & 0o777 == 0o600
        assert (Path(folder) / "0004").read_bytes() == b"newer"


class Crossing:
    """Who comes waits until eight wait, at one time."""

    def __init__(self) -> None:
        self._waiting = 0
        self._lock = threading.Lock()
        self._open = threading.Event()

    def wait(self) -> None:
        with self._lock:
            self._waiting += 1
            if self._waiting == 8:
                self._open.set()
        assert self._open.wait(20)


class Distant:
    """What is asked for takes 20 ms; and how many asked at once, at most."""

    def __init__(self) -> None:
        self.most = 0
        self._asking = 0
        self._lock = threading.Lock()

    def wait(self) -> None:
        with self._lock:
            self._asking += 1
            self.most = max(self.most, self._asking)
        time.sleep(0.02)
        with self._lock:
            self._asking -= 1


def names(store: castore.Store) -> list[str]:
    return list(store.names())


def level(store: castore.Store) -> list[str]:
    return [entry.name for entry in store.scandir("many", details=False)]


def those_wanted(store: castore.Store) -> list[str]:
    backend: Any = store._backend
    found = backend._names.etags({name.encode() for name in MANY}, backend._requests)
    return sorted(name.decode() for name in found)


@pytest.mark.parametrize("ask", [names, level, those_wanted])
def test_what_says_that_names_are_deleted_is_read_many_at_once(
    many: World, ask: Callable[[castore.Store], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten thousand would take minutes, one after the other."""
    gone = MANY[100:300]
    with many.open("one") as store:
        for name in gone:
            store.delete(name)
    distant = Distant()
    get = MemoryAttempts.get
    read: list[str] = []

    def together(self: MemoryAttempts, key: str, *rest: Any) -> Any:
        if key.startswith("names/many/"):
            read.append(key)
            distant.wait()
        return get(self, key, *rest)

    with many.open("two") as store:
        monkeypatch.setattr(MemoryAttempts, "get", together)
        assert ask(store) == [name for name in MANY if name not in gone]
    assert len(read) == len(gone)
    assert distant.most >= 8


def test_folders_are_looked_into_many_at_once(
    make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether there is anything but what says that names are deleted, by the root as it was when
    the folders were listed."""
    world = make_world(batches=True)
    folders = [f"{n:02}" for n in range(80)]
    with world.open("one") as store:
        store.puts_many({f"{folder}/a": b"a" for folder in folders})
        for folder in folders[:16]:
            store.delete(f"{folder}/a")
        store.puts_many({f"{folder}/b": b"b" for folder in folders[:8]})
    crossing = Crossing()
    call = MemoryAttempts.call

    def together(self: MemoryAttempts, *given: Any, **parameters: Any) -> Any:
        if re.fullmatch("store/names/../", parameters.get("Prefix", "")):
            crossing.wait()
        return call(self, *given, **parameters)

    actor = Actor("two")
    with world.open("two", actor) as store:
        list(store.names())  # and what is deleted is known
        monkeypatch.setattr(MemoryAttempts, "call", together)
        before = len(actor.steps)
        shown = [entry.name for entry in store.scandir("", details=False)]
        steps = [step.kind for step in actor.steps[before:]]
    assert shown == [*folders[:8], *folders[16:]]
    assert (steps.count("GET"), steps.count("LIST")) == (1, 1 + 1 + 8)


def test_small_folders_of_singles_are_few_lists(make_world: Callable[..., World]) -> None:
    """However many there are, beside names in batches; without any they are one list."""
    world = make_world(batches=True)
    folders = [f"a/{n:03}" for n in range(300)]

    def look(store: castore.Store) -> None:
        shown = [entry.name for entry in store.scandir("a", details=False)]
        assert sorted(shown) == sorted([*folders, "a/000-", "a/0"])
        assert store.kind("a/0") == (True, False)
        assert store.kind("a/005") == (False, True)

    with world.open("one") as store:
        for folder in folders:
            store.puts(f"{folder}/b", b"b")
            store.puts(f"{folder}/c", b"c")
        store.puts("a/000-", b"a file")  # sorts in between
        store.puts("a/0", b"a file")
    assert sorted(asked(world, "two", look)) == ["GET batches"] * 3 + ["LIST names"] * 3
    with world.open("one") as store:
        store.puts_many({f"a/{n:03}/a": b"a" for n in range(100)})
        store.delete_prefix("a/299")
        folders.remove("a/299")
        for name in ("a/050/a", "a/050/b", "a/050/c", "a/098/a"):
            store.delete(name)
        folders.remove("a/050")
    steps = asked(world, "two", look)
    assert len(steps) < 20, steps


@pytest.fixture
def paged(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    """A store with six batches of twenty names, one behind the other, which are listed by ten."""
    monkeypatch.setattr(catalog, "PAGE_NAMES", 10)
    with world.open("one") as store:
        for folder in range(6):
            store.puts_many(dict.fromkeys(in_folder(folder), b"data"))
    return world


def in_folder(folder: int) -> list[str]:
    return [f"{folder}/{n:02}" for n in range(20)]


def batches_read(actor: Actor) -> set[str]:
    return {step.key for step in actor.steps if re.match("batches/.{32}", step.key)}


class Rows(list[Any]):
    """What can be referred to weakly."""


def test_a_batch_is_read_when_a_list_comes_to_it(
    paged: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    below = BatchIndex.below
    seen: list[weakref.ref[Rows]] = []

    def noted(self: BatchIndex, *args: Any) -> Rows:
        rows = Rows(below(self, *args))
        seen.append(weakref.ref(rows))
        return rows

    monkeypatch.setattr(BatchIndex, "below", noted)
    actor = Actor("two")
    with paged.open("two", actor) as store:
        listed, read, held = [], [], []
        for name in store.names():
            listed.append(name)
            read.append(len(batches_read(actor)))
            held.append(sum(ref() is not None for ref in seen))
    assert listed == [name for folder in range(6) for name in in_folder(folder)]
    assert read[0] == 1
    assert read[-1] == 6
    assert max(held) <= 2


def test_who_goes_by_one_root_reads_all_batches_first(paged: World) -> None:
    """As they may be collected before the list comes to them, and that root tells of no others."""
    actor = Actor("two")
    with paged.open("two", actor) as store:
        backend: Any = store._backend
        names = backend._names
        next(names.listed(by=names.batches.fresh()))
        assert len(batches_read(actor)) == 6


def test_a_list_goes_on_where_batches_were_collected_meanwhile(paged: World) -> None:
    """Who reads it may rest for days between two names."""
    listing = paged.open("two").names()
    first = next(listing)
    one = paged.open("one")
    with one.transaction() as t:
        for folder in (3, 4):
            for name in in_folder(folder)[:15]:
                t.delete(name)
    before = set(paged.server.keys("store/batches/"))
    for _ in range(4):
        paged.pass_time(2 * DAY)
        collect(one)
    assert len(before - set(paged.server.keys("store/batches/"))) == 3  # and what deleted them
    expected = [
        name for folder in range(6) for name in in_folder(folder)[15 if folder in (3, 4) else 0 :]
    ]
    assert [first, *listing] == expected


@pytest.fixture
def folders(make_world: Callable[..., World]) -> tuple[World, list[str]]:
    """Twenty folders with two singles each, and the names of these."""
    world = make_world(batches=True)
    names = [f"a/{folder:02}/{n}" for folder in range(20) for n in range(2)]
    with world.open("one") as store:
        for name in names:
            store.puts(name, name.encode())
    return world, names


def test_a_walk_asks_for_lists_alone(folders: tuple[World, list[str]]) -> None:
    """Without `detail` nothing has to be known of a file but that it is there."""
    world, names = folders

    def walk(store: castore.Store) -> None:
        assert [f"{at}/{n}" for at, _, files in fs_over(store).walk("a") for n in files] == names

    assert Counter(asked(world, "two", walk)) == {"GET batches": 21, "LIST names": 21}


@pytest.mark.parametrize("pattern", ["a/*/*", "a/**/[01]"])
@pytest.mark.parametrize("verb", ["glob", "expand_path"])
def test_a_glob_asks_for_lists_alone(
    folders: tuple[World, list[str]], pattern: str, verb: str
) -> None:
    world, names = folders

    def glob(store: castore.Store) -> None:
        assert getattr(fs_over(store), verb)(pattern) == names

    # Whether the pattern itself is there, is asked for first.
    assert set(asked(world, "two", glob)) == {"GET batches", "LIST names"}


def test_a_forked_child_waits_for_nothing_of_its_parents(many: World) -> None:
    with many.open("parent") as store:
        expected = {name: name.encode() * 10 for name in MANY[:40]}
        assert {name: store.gets(name) for name in MANY[:40]} == expected
        catalog: Any = store._catalog
        batches = catalog._names.batches
        assert batches._spans
        on_its_way: Future[bytes] = Future(lambda: b"")  # whoever runs it is the parent
        batches._spans = dict.fromkeys(batches._spans, on_its_way)

        def read(answer: int) -> None:
            for name in MANY[40:80]:
                assert store.gets(name) == name.encode() * 10
            os.write(answer, b"read")

        assert in_child(read, seconds=20) == (b"read", 0)
        batches._spans.clear()
