"""Two machines that change one name, of which one puts it into a batch, and that come between any
two requests of each other: whatever they saw could have happened one after the other."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from gc_races import Machine
from gc_stores import DAY, HOUR, World, collect
from linearizability import Call, Value, are_explained
from memory_s3 import Step

import castore
from castore.errors import NameExists, NameNotFound, ObjectChanged, StoreBusy, StoreIOError
from castore.format.s3 import NUMBERED_BYTES
from castore.s3 import versions
from castore.s3.batch_root import SeenRoot
from castore.s3.batches import Batches
from castore.s3.client.probe import ServerFeatures
from castore.s3.gc.batches import BatchCollector
from castore.s3.namespace import look as namespace_look
from castore.s3.namespace import writing
from castore.stream.codec import chunk_id_of
from castore.system.workers import Future

Make = Callable[..., World]
Verb = Callable[["Client"], None]
Effects = Callable[[Value], list[tuple[object, Value]]]


@pytest.fixture(autouse=True)
def small(probed: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "BATCH_NAMES_MIN", 2)


class Client:
    """What one machine does to the name x, and what came of it."""

    def __init__(self, machine: Machine, history: list[Call], clock: itertools.count[int]) -> None:
        self.store = machine.store
        self.name = machine.name
        self._history = history
        self._clock = clock
        self._seed = machine.world.config.seed
        self._made = 0

    def call(self, what: str, do: Callable[[], object], *effects: Effects) -> None:
        """With several effects: it may have each, one after the other."""
        began = next(self._clock)
        calls = [Call(f"{self.name} {what}", each, began) for each in effects]
        self._history += calls
        result, ended = do(), next(self._clock)
        for call in calls:
            call.result, call.ended = result, ended

    def etag_of(self, value: bytes | str) -> str:
        assert isinstance(value, bytes)
        return chunk_id_of(value, self._seed).hex()

    def value(self) -> bytes:
        self._made += 1
        return f"{self.name}{self._made}".encode()


def batch(c: Client) -> None:
    value = c.value()

    def do() -> None:
        with c.store.transaction() as t:
            for name in ("w", "x", "y", "z"):
                t.puts(name, value)

    c.call(f"batch {value!r}", do, lambda there: [(None, value)])


def put(c: Client) -> None:
    value = c.value()

    def do() -> None:
        c.store.puts("x", value)

    c.call(f"put {value!r}", do, lambda there: [(None, value)])


def put_if_absent(c: Client) -> None:
    value = c.value()

    def do() -> str:
        try:
            c.store.puts("x", value, if_absent=True)
        except NameExists:
            return "exists"
        return "done"

    def effects(there: Value) -> list[tuple[object, Value]]:
        return [("done", value)] if there is None else [("exists", there)]

    c.call(f"put if absent {value!r}", do, effects)


def add(c: Client) -> None:
    value = c.value()

    def do() -> str:
        try:
            with c.store.open("x", "ab") as file:
                file.write(value)
        except (ObjectChanged, NameExists):
            return "changed"
        return "done"

    def effects(there: Value) -> list[tuple[object, Value]]:
        assert not isinstance(there, str)
        return [("done", (there or b"") + value), ("changed", there)]

    c.call(f"append {value!r}", do, effects)


def remove(c: Client) -> None:
    """Of two that delete at once, both may say that they did."""

    def do() -> str:
        try:
            c.store.delete("x")
        except NameNotFound:
            return "absent"
        return "done"

    def effects(there: Value) -> list[tuple[object, Value]]:
        return [("done", None), *([("absent", None)] if there is None else [])]

    c.call("delete", do, effects)


def remove_prefix(c: Client) -> None:
    """It looks at batches, and then at what else there is: what comes in between may be deleted,
    too."""

    def do() -> None:
        c.store.delete_prefix("", unbounded=True)

    def once(there: Value) -> list[tuple[object, Value]]:
        return [(None, None)]

    def perhaps_again(there: Value) -> list[tuple[object, Value]]:
        return [(None, None), (None, there)]

    c.call("delete prefix", do, once, perhaps_again)


def look(c: Client) -> None:
    def do() -> bytes | None:
        try:
            return c.store.gets("x")
        except NameNotFound:
            return None

    c.call("read", do, lambda there: [(there, there)])


def look_at_list(c: Client) -> None:
    """What a list shows of it is of one moment while it is at it."""

    def do() -> str | None:
        return next((info.etag for info in c.store.list() if info.name == "x"), None)

    def effects(there: Value) -> list[tuple[object, Value]]:
        return [(None if there is None else c.etag_of(there), there)]

    c.call("list", do, effects)


def look_at_folder(c: Client) -> None:
    def do() -> bool:
        return any(entry.name == "x" for entry in c.store.scandir(details=False))

    c.call("folder", do, lambda there: [(there is not None, there)])


def change(c: Client) -> None:
    """It is put once more, over itself and nothing newer."""

    def do() -> str:
        try:
            c.store.set_attributes("x", mode=0o600)
        except NameNotFound:
            return "absent"
        return "done"

    c.call("change", do, lambda there: [("absent" if there is None else "done", there)])


def move(c: Client) -> None:
    """It is read, and then deleted if it still is that."""
    target = f"moved by {c.name} {c.value().decode()}"

    def do() -> bytes | str | None:
        try:
            c.store.rename("x", target)
        except NameNotFound:
            return None
        try:
            return c.store.gets(target)
        except NameNotFound:  # all was deleted since
            return "moved"

    def effects(there: Value) -> list[tuple[object, Value]]:
        if there is None:
            return [(None, None)]
        return [(result, value) for result in (there, "moved") for value in (None, there)]

    c.call("move", do, effects)


def remove_and_put(c: Client) -> None:
    """By one commit, which looks first whether it is there."""

    def do() -> str:
        try:
            with c.store.transaction() as t:
                t.puts(f"of {c.name}", b"other")
                t.delete("x")
        except NameNotFound:
            return "absent"
        return "done"

    def effects(there: Value) -> list[tuple[object, Value]]:
        return [("done", None), *([("absent", None)] if there is None else [])]

    c.call("delete with others", do, effects)


def remove_many(c: Client) -> None:
    """By a batch that says so, if x is in one, as the other name is."""

    def do() -> str:
        try:
            with c.store.transaction() as t:
                t.delete("x")
                t.delete("y" if c.name == "a" else "z")
        except NameNotFound:
            return "absent"  # one of them
        return "done"

    c.call("delete many", do, lambda there: [("done", None), ("absent", there)])


def change_many(c: Client) -> None:
    """By one root, if x is in a batch, as the other name is."""

    def do() -> str:
        try:
            with c.store.transaction() as t:
                t.set_attributes("x", mode=0o600)
                t.set_attributes("w", mode=0o600)
        except NameNotFound:
            return "absent"  # one of them
        return "done"

    def effects(there: Value) -> list[tuple[object, Value]]:
        return [("absent", there)] if there is None else [("done", there), ("absent", there)]

    c.call("change many", do, effects)


def move_many(c: Client) -> None:
    """The same; each is deleted only if it still is what was copied."""
    target = f"moved by {c.name} {c.value().decode()}"

    def do() -> bytes | str | None:
        try:
            with c.store.transaction() as t:
                t.rename("x", target)
                t.rename("w", f"{target} too")
                t.puts(f"{target} at last", b"")
        except NameNotFound:
            return "absent"  # one of them
        try:
            return c.store.gets(target)
        except NameNotFound:  # all was deleted since
            return "moved"

    def effects(there: Value) -> list[tuple[object, Value]]:
        if there is None:
            return [("absent", None)]
        return [("absent", there)] + [
            (result, value) for result in (there, "moved") for value in (None, there)
        ]

    c.call("move many", do, effects)


def gc(c: Client) -> None:
    collect(c.store)


PROGRAMS: dict[str, list[Verb]] = {
    "puts": [look, put, look, put, look],
    "deletes": [look, remove, look],
    "puts and deletes": [put, look, remove, look, put_if_absent, look],
    "if absent": [put_if_absent, look, remove, look, put_if_absent],
    "appends": [look, add, look, add, look],
    "reads": [look, look, look],
    "deletes all": [put, look, remove_prefix, look],
    "batches": [batch, look, remove, look, batch, look],
    "lists": [look_at_list, look_at_list, look_at_list],
    "folders": [look_at_folder, put, look_at_folder, remove, look_at_folder],
    "changes": [change, look, put_if_absent, change, look],
    "moves": [look, move, look, put_if_absent, move, look],
    "deletes many": [remove_many, look, batch, look, remove_many, look],
    "changes many": [change_many, look, batch, look, change_many, look],
    "moves many": [look, move_many, look, batch, move_many, look],
    "deletes with others": [remove_and_put, look, put, look_at_list, remove_and_put, look],
}
BEGINNINGS: dict[str, list[Verb]] = {
    "nothing": [],
    "a single": [put],
    "a batch": [batch],
    "a weak single": [batch, add],
    "a tombstone": [batch, remove],
    "all deleted": [batch, remove_prefix],
    "deleted by a batch": [batch, remove_many],
    "a single over a batch": [batch, put],
}
OTHERS: dict[str, list[Verb]] = {
    "batch": [batch, look],
    "delete all": [remove_prefix, look],
    "collect": [gc, look],
    "delete": [look, remove, look],
    "delete many": [look, remove_many, look],
    "append": [look, add, look],
    "if absent": [put_if_absent, look],
    "change": [look, change, look],
    "move": [look, move, look],
}


def run_one(client: Client, program: list[Verb], _: Machine) -> None:
    run_all(client, program)


def run_all(client: Client, program: list[Verb]) -> None:
    for verb in program:
        verb(client)


def meet(
    make_world: Make, beginning: str, one: list[Verb], other: list[Verb], i: int, j: int | None
) -> tuple[bool, bool]:
    """The other runs up to its i-th request, the one up to its j-th, or the end, then the other,
    then the one. Whether each had as many."""
    world = make_world(batches=True)
    history: list[Call] = []
    clock = itertools.count()
    run_all(Client(Machine(world, "first"), history, clock), BEGINNINGS[beginning])
    a, b = Machine(world, "a"), Machine(world, "b")
    clients = {m.name: Client(m, history, clock) for m in (a, b)}
    for machine in (a, b):  # caches know what there was
        look(clients[machine.name])
        machine.begin()
    a_stopped = a.start(lambda m: run_all(clients[m.name], other), stop_at=i)
    b_stopped = b.start(lambda m: run_all(clients[m.name], one), stop_at=j)
    a.finish()
    b.finish()
    assert (a.error, b.error) == (None, None), (i, j)
    last = Client(Machine(world, "last"), history, clock)
    look(last)
    world.pass_time(2 * DAY)
    collect(last.store)
    look(last)
    told = [(call.what, call.began, call.ended, call.result) for call in history]
    assert are_explained(history, None), (i, j, told)
    assert not last.store.check(read_data=True).problems
    world.close()
    return a_stopped, b_stopped


def check_meetings(make_world: Make, beginning: str, one: str, other: str, every: int) -> None:
    """What asks for the root and the single at once gets the root first every other time."""
    programs = PROGRAMS[one], OTHERS[other]
    for i in itertools.count():
        for j in itertools.count(i % every, every):
            with pytest.MonkeyPatch.context() as patched:
                if (i + j // every) % 2:
                    patched.setattr(Batches, "begin", root_first)
                a_stopped, b_stopped = meet(make_world, beginning, *programs, i, j)
            if not b_stopped:
                break
        if not a_stopped:
            assert i > 0
            break


@pytest.mark.parametrize("beginning", ["nothing", "a batch", "a tombstone"])
def test_what_was_decided_before_a_batch_came_before_it(make_world: Make, beginning: str) -> None:
    """Its put waits while a batch is put, and lands after that was acknowledged."""
    program = [add if beginning == "a batch" else put_if_absent]
    for i in range(12):
        world = make_world(batches=True)
        history: list[Call] = []
        clock = itertools.count()
        run_all(Client(Machine(world, "first"), history, clock), BEGINNINGS[beginning])
        slow = Machine(world, "slow")
        client = Client(slow, history, clock)
        stopped = slow.start(partial(run_one, client, program), stop_at=i)
        if not stopped:
            assert i > 1
            break
        if slow.actor.steps[-1].kind == "PUT":
            quick = Client(Machine(world, "quick"), history, clock)
            batch(quick)
            slow.finish()
            look(quick)
            assert history[-1].result == b"quick1", i
            assert are_explained(history, None)
        else:
            slow.finish()
        world.close()


def root_first(batches: Batches) -> Future[SeenRoot]:
    """As `Batches.begin`, whose thread may be the faster one at any time."""
    seen = Future(batches.fresh)
    seen.run()
    return seen


def test_a_name_that_is_deleted_meanwhile_stays_so_or_has_what_is_put(
    make_world: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A put if absent reads the root; then a batch is put and its name deleted; then it reads what
    says so. What it puts counts, and not what the batch had."""

    monkeypatch.setattr(Batches, "begin", root_first)
    for i in itertools.count():
        world = make_world(batches=True)
        history: list[Call] = []
        clock = itertools.count()
        slow, quick = (Machine(world, name) for name in ("slow", "quick"))
        stopped = slow.start(
            partial(run_one, Client(slow, history, clock), [put_if_absent, look]), stop_at=i
        )
        run_all(Client(quick, history, clock), [batch, remove, look])
        slow.finish()
        look(Client(quick, history, clock))
        told = [(call.what, call.began, call.ended, call.result) for call in history]
        assert are_explained(history, None), (i, told)
        world.close()
        if not stopped:
            assert i > 2
            break


@pytest.mark.parametrize("other", ["batch", "append"])
def test_a_deletion_finds_what_is_put_meanwhile(make_world: Make, other: str) -> None:
    """The name is there all the time: as a single, and then in a batch, or as another single."""
    for j in range(20):
        meet(make_world, "all deleted", PROGRAMS["if absent"], OTHERS[other], 1, j)


def test_a_prefix_that_is_deleted_counts_what_it_deleted(make_world: Make) -> None:
    """Also where a batch comes after it looked whether there are any."""
    for j in range(20):
        world = make_world(batches=True)
        client = Client(Machine(world, "first"), [], itertools.count())
        put(client)
        deletes, counts = Machine(world, "deletes"), list[int]()
        deletes.begin()

        def delete_all(machine: Machine, counts: list[int] = counts) -> None:
            counts.append(machine.store.delete_prefix("", unbounded=True))

        stopped = deletes.start(delete_all, stop_at=j)
        with client.store.transaction() as t:
            for name in ("a", "b", "c", "z"):
                t.puts(name, b"comes meanwhile")
        deletes.finish()
        left = list(client.store.names())
        assert deletes.error is None
        assert counts == [5 - len(left)], (j, left)
        world.close()
        if not stopped:
            assert j > 2
            return
    raise AssertionError("it takes more requests than that")


@pytest.mark.parametrize("beginning", ["nothing", "all deleted", "a batch"])
def test_what_is_put_over_while_its_head_is_read_is_read_anew(
    make_world: Make, monkeypatch: pytest.MonkeyPatch, beginning: str
) -> None:
    """A large head takes two requests: in between the name is there, and older it never is."""
    monkeypatch.setattr(namespace_look, "LOOK_BYTES", NUMBERED_BYTES)
    monkeypatch.setattr(versions, "FIRST_BYTES", NUMBERED_BYTES)
    for j in range(20):
        world = make_world(batches=True)
        history: list[Call] = []
        clock = itertools.count()
        client = Client(Machine(world, "first"), history, clock)
        run_all(client, [*BEGINNINGS[beginning], add])
        reads = Machine(world, "reads")
        reader = Client(reads, history, clock)
        look(reader)  # it knows the root then
        reads.begin()
        stopped = reads.start(partial(run_one, reader, [look]), stop_at=j)
        add(client)
        reads.finish()
        assert reads.error is None
        told = [(call.what, call.began, call.ended, call.result) for call in history]
        assert are_explained(history, None), (j, told)
        world.close()
        if not stopped:
            assert j > 1
            return
    raise AssertionError("it takes more requests than that")


def test_who_reads_what_always_changes_is_told(
    make_world: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large head takes two requests: what is put over it between them is not read for ever."""
    monkeypatch.setattr(namespace_look, "LOOK_BYTES", NUMBERED_BYTES)
    monkeypatch.setattr(versions, "FIRST_BYTES", NUMBERED_BYTES)
    monkeypatch.setattr(namespace_look, "ATTEMPTS", 3)
    world = make_world(batches=True)
    client = Client(Machine(world, "first"), [], itertools.count())
    run_all(client, [batch, add])
    reads, left = Machine(world, "reads"), 20
    before = reads.actor.before

    def change(step: Step) -> bool:
        nonlocal left
        if step.key == "names/x" and left:
            left -= 1
            add(client)
        return before(step)

    monkeypatch.setattr(reads.actor, "before", change)
    with pytest.raises(StoreBusy, match="kept changing"):
        reads.store.gets("x")
    assert left > 10


@pytest.mark.parametrize("over", [put, add, batch], ids=["put", "append", "batch"])
def test_a_list_shows_what_is_put_over_meanwhile(make_world: Make, over: Verb) -> None:
    """The old one or the new one, and not neither."""
    for j in range(20):
        world = make_world(batches=True)
        client = Client(Machine(world, "first"), [], itertools.count())
        run_all(client, [batch, remove_prefix, put_if_absent])
        stopped, names = listed_beside(world, lambda c=client: over(c), j)
        assert "x" in names, j
        world.close()
        if not stopped:
            assert j > 2
            return
    raise AssertionError("it takes more requests than that")


def test_a_list_shows_no_older_version_of_what_is_deleted_meanwhile(make_world: Make) -> None:
    """The single, or nothing, and not what a batch had before that."""
    for j in range(20):
        world = make_world(batches=True)
        client = Client(Machine(world, "first"), [], itertools.count())
        run_all(client, [batch, add])
        size = client.store.size("x")
        stopped, sizes = listed_beside(world, lambda c=client: remove(c), j)
        assert sizes.get("x") in (None, size), j
        world.close()
        if not stopped:
            assert j > 2
            return
    raise AssertionError("it takes more requests than that")


@pytest.mark.parametrize("over", [put, add], ids=["put", "append"])
def test_a_list_shows_what_is_put_over_what_does_not_count(make_world: Make, over: Verb) -> None:
    """A tombstone that was decided before a batch came: the name is there all the time."""
    for j in range(20):
        world = make_world(batches=True)
        client = Client(Machine(world, "first"), [], itertools.count())
        batch(client)
        slow = Machine(world, "slow")
        slow.begin()
        slow.start(lambda m: batch(Client(m, [], itertools.count())), stop_at=4)
        assert slow.actor.steps[-1].kind == "PUT"  # of the batch: the names were looked for
        remove(client)
        slow.finish()
        assert client.store.gets("x") == b"slow1"
        stopped, names = listed_beside(world, lambda c=client: over(c), j)
        assert "x" in names, j
        world.close()
        if not stopped:
            assert j > 2
            return
    raise AssertionError("it takes more requests than that")


def listed_beside(
    world: World, change: Callable[[], None], stop_at: int
) -> tuple[bool, dict[str, int]]:
    """Whether a machine that lists has so many requests, and the names and sizes that it shows if
    there is a change before the next one."""
    listing, shown = Machine(world, "lists"), list[castore.ObjectInfo]()
    stopped = listing.start(lambda m: shown.extend(m.store.list()), stop_at=stop_at)
    change()
    listing.finish()
    assert listing.error is None
    return stopped, {info.name: info.size for info in shown}


def check(store: castore.Store) -> None:
    assert not store.check(read_data=True).problems


def repair(store: castore.Store) -> None:
    report = store.check(repair=True)
    assert (report.problems, report.repaired) == ([], [])


def delete_many(store: castore.Store) -> None:
    with store.transaction() as t:
        for name in ("single", *LEFT[:18]):
            t.delete(name)


LEFT = [f"left/{i}" for i in range(20)]
BESIDE_FORGETTING: dict[str, Callable[[castore.Store], object]] = {
    "delete": lambda store: store.delete(LEFT[0]),
    "delete a single": lambda store: store.delete("single"),
    "delete many": delete_many,
    "get": lambda store: store.gets(LEFT[0]),
    "exists": lambda store: store.exists(LEFT[0]),
    "list": lambda store: list(store.list()),
    "folder": lambda store: list(store.scandir("left")),
    "rename": lambda store: store.rename(LEFT[0], "renamed", if_absent=True),
    "check": check,
    "repair": repair,
}


@pytest.mark.parametrize("verb", BESIDE_FORGETTING)
def test_a_batch_may_be_forgotten_and_removed_at_any_time(
    make_world: Make, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    """Of an entry that was retired long ago, while a new machine is at it."""
    monkeypatch.setattr(
        "castore.s3.check.outcome.probe",
        lambda bucket: ServerFeatures(True, True, True, True, True),
    )
    for j in itertools.count(step=4 if verb == "repair" else 1):
        world = make_world(batches=True)
        first = world.open("first")
        with first.transaction() as t:
            for name in (*LEFT, *(f"over/{i}" for i in range(24)), "single"):
                t.puts(name, b"in a batch")
        for i in range(24):
            first.puts(f"over/{i}", b"a single")
        world.pass_time(2 * DAY)
        collect(first)  # it writes the batch anew
        world.pass_time(2 * DAY)
        new = Machine(world, "new")
        new.begin()
        stopped = new.start(lambda m: BESIDE_FORGETTING[verb](m.store), stop_at=j)
        removed = collect(first).batches_removed
        new.finish()
        assert new.error is None, (j, removed)
        world.close()
        if not stopped:
            assert j > 1
            break


@pytest.mark.parametrize("deleted", ["by itself", "with all"])
def test_a_collection_of_hours_lets_no_reader_see_what_was_deleted_before_it(
    make_world: Make, monkeypatch: pytest.MonkeyPatch, deleted: str
) -> None:
    """One that looks for two hours, and another behind it, between two requests of a read: what is
    retired, or is about to be forgotten, is so for an hour from then on."""
    world = make_world(batches=True)
    first = Client(Machine(world, "first"), [], itertools.count())
    batch(first)
    reads = Machine(world, "reads")
    if deleted == "by itself":  # the root is read, and then the single, which says so
        look(Client(reads, [], itertools.count()))
        monkeypatch.setattr(Batches, "begin", root_first)
        remove(first)
        first.store.delete("y")
    else:  # the single is read, and then the root, which says so
        add(first)
        world.pass_time(2 * DAY)
        remove_prefix(first)
        collect(first.store)  # the batch is retired, and the drop is too new for more
    world.pass_time(2 * DAY)
    reads.begin()
    history: list[Call] = []
    look_at_all = BatchCollector._look

    def slow(collector: BatchCollector, *of: Any) -> Any:
        found = look_at_all(collector, *of)
        if not history:
            world.pass_time(2 * HOUR)
            client = Client(reads, history, itertools.count())
            assert reads.start(partial(run_one, client, [look]), stop_at=1)
        return found

    monkeypatch.setattr(BatchCollector, "_look", slow)
    collect(first.store)
    collect(world.open("other"))
    reads.finish()
    assert [call.result for call in history] == [None]


def put_four(store: castore.Store) -> None:
    with store.transaction() as t:
        for name in ("a", "b", "c", "d"):
            t.puts(name, b"after")


@pytest.mark.parametrize("collects", [False, True])
def test_a_batch_that_was_written_a_day_ago_is_named_by_nobody(
    make_world: Make, monkeypatch: pytest.MonkeyPatch, collects: bool
) -> None:
    """Its writer, or who writes batches anew, slept since, and a collection has removed it."""
    world = make_world(batches=True)
    first = world.open("first")
    with first.transaction() as t:
        for name in ("w", "x", "y", "z"):
            t.puts(name, b"before")
    for name in ("x", "y"):
        first.puts(name, b"single")
    world.pass_time(2 * DAY)
    slow, other = world.open("slow"), world.open("other")
    put_batch = Batches.put

    def sleep(batches: Batches, *of: Any) -> None:
        put_batch(batches, *of)
        monkeypatch.setattr(Batches, "put", put_batch)
        world.pass_time(DAY + HOUR)
        if collects:
            monkeypatch.setattr(BatchCollector, "_compact", lambda *of: None)
        assert collect(other).batches_removed == 1

    for module in ("batch_root", "namespace.writing", "gc.batches"):
        monkeypatch.setattr(f"castore.s3.{module}.boot_clock", lambda: world.server.clock)
    monkeypatch.setattr(Batches, "put", sleep)
    with pytest.raises(StoreIOError, match="repeat it"):
        (collect if collects else put_four)(slow)
    assert sorted(first.names()) == ["w", "x", "y", "z"]
    assert first.gets("w") == b"before"
    assert not first.check(read_data=True).problems


CASES = list(itertools.product(BEGINNINGS, PROGRAMS, OTHERS))


@pytest.mark.parametrize(("beginning", "one", "other"), CASES)
@pytest.mark.sampled(127)
def test_meetings(make_world: Make, beginning: str, one: str, other: str) -> None:
    check_meetings(make_world, beginning, one, other, every=7)


@pytest.mark.parametrize(("beginning", "one", "other"), CASES)
@pytest.mark.long
def test_all_meetings(make_world: Make, beginning: str, one: str, other: str) -> None:
    check_meetings(make_world, beginning, one, other, every=2)
