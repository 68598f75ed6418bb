"""Machines that meet on one store, at every pair of their steps."""

from __future__ import annotations

import itertools
import shutil
import tempfile
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import forced_deltas
from gc_stores import DAY, World, collect, edited, noise
from memory_s3 import Actor, Killed, Stored

from castore.errors import CastoreError, NameNotFound
from castore.format.s3 import decode_manifest_head

SIZE = 70_000  # in a pack, and not inline
SHARED, KEPT = noise(SIZE, 1), noise(SIZE, 2)
Work = Callable[["Machine"], None]


@dataclass
class Machine:
    """A store that is open on a machine, what it is doing, and what was acknowledged to it."""

    world: World
    name: str
    actor: Actor = field(init=False)
    acknowledged: dict[str, bytes | None] = field(default_factory=dict)
    error: BaseException | None = None
    thread: threading.Thread = field(init=False)

    def __post_init__(self) -> None:
        self.actor = Actor(self.name)
        self.store = self.world.open(self.name, self.actor)
        self._opened = len(self.actor.steps)

    def begin(self) -> None:
        """Count its requests from here on."""
        self._opened = len(self.actor.steps)

    def start(self, work: Work, stop_at: int | None = None) -> bool:
        """Run it up to its n-th request, which then waits; False if it has ended before."""
        self.actor.stop_at(None if stop_at is None else self._opened + stop_at)

        def run() -> None:
            try:
                work(self)
            except (CastoreError, Killed) as error:
                self.error = error

        self.thread = threading.Thread(target=run, daemon=True)
        self.thread.start()
        if stop_at is not None:
            return self.actor.await_stop(self.thread)
        self.thread.join(60)
        return False

    def run(self, work: Work, *, lose: int | None = None) -> bool:
        """All of it; the n-th request arrives late, and its reply is lost. False if there was none
        such."""
        self.actor.lose_at = None if lose is None else self._opened + lose
        self.start(work)
        return lose is None or len(self.actor.steps) > self._opened + lose

    def finish(self) -> None:
        self.actor.stop_at(None)
        self.thread.join(60)
        assert not self.thread.is_alive()

    def kill(self) -> None:
        self.actor.kill()
        self.thread.join(60)

    def remember(self) -> None:
        """Open the store anew, with a cache that has what `shared` was."""
        self.store.close()
        cache = self.world.cache_of(f"{self.name} that remembers")
        shutil.copytree(_made().remembered.name, cache)
        self.store = self.world.open(cache.name, self.actor)

    # ------------------------------------------------------------ what it does

    def puts(self, name: str, data: bytes) -> None:
        self.acknowledged.pop(name, None)
        self.store.puts(name, data)
        self.acknowledged[name] = data

    def delete(self, name: str) -> None:
        self.acknowledged.pop(name, None)
        try:
            self.store.delete(name)
        except NameNotFound:
            return
        self.acknowledged[name] = None


def reuse(machine: Machine) -> None:
    """Puts of what a name that is gone had, and of new bytes, twice in one session."""
    machine.puts("new", SHARED + noise(3000, 3))
    machine.puts("newer", SHARED[:35_000] + KEPT)
    machine.store.close()


def copy(machine: Machine) -> None:
    machine.store.copy("kept", "copied")
    machine.acknowledged["copied"] = KEPT
    machine.delete("kept")
    machine.store.close()


def rename(machine: Machine) -> None:
    """To a name that a listing has passed by then, and back."""
    machine.store.rename("kept", "a")
    machine.acknowledged.update({"a": KEPT, "kept": None})
    machine.store.rename("a", "zzz")
    machine.acknowledged.update({"zzz": KEPT, "a": None})
    machine.store.close()


def overwrite(machine: Machine) -> None:
    machine.puts("kept", noise(SIZE, 5))
    machine.puts("kept", KEPT[::-1])
    machine.store.close()


def deltas(machine: Machine) -> None:
    """Puts of what has chunks as bases that a name had that is gone, twice in one session."""
    machine.remember()
    machine.puts("shared 2", edited(SHARED, 1, every=500))
    machine.puts("shared 3", edited(SHARED, 2, every=500))
    machine.store.close()


def collects(machine: Machine) -> None:
    collect(machine.store)


def repacks(machine: Machine) -> None:
    collect(machine.store, repack_below=1.0)


WRITERS: dict[str, Work] = {
    "reuse": reuse,
    "copy": copy,
    "rename": rename,
    "overwrite": overwrite,
    "deltas": deltas,
}


@dataclass
class _Made:
    """What `prepare` makes once; and the cache of a machine that has what `shared` was."""

    objects: dict[str, Stored] = field(default_factory=dict)
    remembered: tempfile.TemporaryDirectory[str] = field(
        default_factory=tempfile.TemporaryDirectory
    )


_made_once: defaultdict[bool, _Made] = defaultdict(_Made)


def _made() -> _Made:
    """What was made with deltas that are forced is read by nobody who does not force them."""
    return _made_once[forced_deltas.are_forced()]


def prepare(world: World) -> None:
    """A name that is kept, chunks that only hints still tell of, and a pack that is half dead."""
    prepared = _made().objects
    if not prepared:
        _fill(world)
        prepared.update(world.server.objects)
    world.server.objects.update(prepared)


def _fill(world: World) -> None:
    with world.open("first") as store:
        store.puts("shared", SHARED)
    with world.open("remembers") as store:
        store.gets("shared")
    shutil.copytree(world.cache_of("remembers"), _made().remembered.name, dirs_exist_ok=True)
    with world.open("second") as store:
        store.puts("kept", KEPT)
        with store.transaction() as transaction:  # in one pack
            transaction.puts("half", noise(SIZE, 6))
            transaction.puts("other half", noise(SIZE, 7))
        store.delete("other half")
        store.delete("shared")


PREPARED = {"kept": KEPT, "half": noise(SIZE, 6), "other half": None, "shared": None}


def losses(world: World, *machines: Machine) -> list[str]:
    """What was acknowledged last, of each name that one machine alone changed, and is not there.
    A name whose change was not acknowledged may be either way, but whole."""
    expected: dict[str, bytes | None] = dict(PREPARED)
    for machine in machines:
        for name in ("kept", "half"):
            if machine.error is not None and name not in machine.acknowledged:
                expected.pop(name, None)
        expected.update(machine.acknowledged)
    lost = []
    with world.open(f"reader{world.server.clock}{len(world.server.keys(''))}") as reader:
        for name in reader.names():
            try:
                found: bytes | str = reader.gets(name)
            except CastoreError as error:
                found = f"{error}"
            if isinstance(found, str) or (name in expected and expected[name] != found):
                lost.append(f"{name}: {found!r:.80}")
        there = set(reader.names())
    lost += [f"{name} is gone" for name, data in expected.items() if data and name not in there]
    return lost


def broken(world: World) -> list[str]:
    """Names that can't be read."""
    found = []
    with world.open(f"reader{world.server.clock}{len(world.server.keys(''))}") as reader:
        for name in reader.names():
            try:
                reader.gets(name)
            except CastoreError as error:
                found.append(f"{name}: {error}")
    return found


def settle(world: World) -> None:
    """All that was dropped is collected once the dead are a week old."""
    world.pass_time(8 * DAY)
    with world.open("last") as store:
        collect(store)
        needed = {
            pack_id.hex()
            for key in world.server.keys("store/names/")
            for pack_id in decode_manifest_head(world.server.objects[key].body).packs
        }
    assert {key[12:44] for key in world.server.keys("store/packs/")} == needed
    assert world.server.keys("store/pins/") == []


Make = Callable[[], World]


def meetings(
    make: Make, left: Work, right: Work, *, every: int = 1
) -> Iterator[tuple[World, Machine, Machine, str]]:
    """Each way in which `right` comes between two requests of `left`, and `left` between two of
    `right`; or one in `every` of them, spread over both."""
    for left_first in (True, False):
        i, j = 0, 0
        while True:
            world = make()
            prepare(world)
            one, two = Machine(world, "one"), Machine(world, "two")
            if left_first:
                one_waits, two_waits = one.start(left, i), two.start(right, j)
                one.finish()
                two.finish()
            else:
                two_waits, one_waits = two.start(right, j), one.start(left, i)
                two.finish()
                one.finish()
            yield world, one, two, f"{i} {j} {left_first}"
            world.close()
            if two_waits:
                j += every
            elif one_waits:
                i, j = i + 1, (i + 1) * (every // 2 + 1) % every
            else:
                break


def sleeps(
    make: Make, work: Work, seconds: float, *, grace_s: float = DAY
) -> Iterator[tuple[World, Machine]]:
    """A writer that is stopped at each of its steps, past the grace, and goes on."""
    for step in itertools.count():
        world = make()
        prepare(world)
        one = Machine(world, "one")
        waits = one.start(work, step)
        with world.open("two") as other:
            collect(other, grace_s=grace_s)
            world.pass_time(seconds)
            collect(other, grace_s=grace_s)
            world.pass_time(grace_s)
            collect(other, grace_s=grace_s)
        one.finish()
        yield world, one
        world.close()
        if not waits:
            break
    assert step > 5


def late(make: Make, work: Work) -> Iterator[tuple[World, Machine]]:
    """Each request in turn arrives after all that it relied on was dropped and collected."""
    for step in itertools.count():
        world = make()
        prepare(world)
        one = Machine(world, "one")
        there = one.run(work, lose=step)
        one.store.close()
        with world.open("two") as other:
            other.delete_prefix("new", unbounded=True)
            collect(other)
            world.server.land()
        yield world, one
        world.close()
        if not there:
            break
    assert step > 5
