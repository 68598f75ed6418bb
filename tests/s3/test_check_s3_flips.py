"""Bits that flip, and objects that are cut short, in a store on S3 in memory that has every kind of
object: a check finds them, no read gives wrong bytes, and no put or collection makes it worse."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from gc_stores import DAY, HOUR, World, collect, noise
from memory_s3 import Stored
from stores import contents, fill, read

from castore.errors import CastoreError
from castore.format.s3_gc import decode_pin
from castore.s3.client.probe import ServerFeatures
from castore.s3.keys import pack_key

VALUES = {**contents(names=6), "large inline": bytes(range(256)) * 40}
VALUES |= {f"big/{i}": noise(90_000, i) for i in range(2)}
VALUES["big/shared"] = VALUES["big/0"] + b"and more" * 200
CONDEMNED, PINNED = noise(80_000, 10), noise(80_000, 11)  # no name leads to them
KINDS = ("packs/", "names/", "castore.json", "pins/", "gc/state", "gc/condemned/", "hints/")


@dataclass(frozen=True)
class Prepared:
    """A store's objects, and those of its packs that no name needs."""

    world: World
    objects: dict[str, Stored]
    condemned: frozenset[str]
    pinned: frozenset[str]

    def keys(self, kind: str) -> list[str]:
        return [key for key in self.objects if key.startswith(f"store/{kind}")]

    def change(self, key: str, raw: bytes) -> None:
        self.world.server.objects.clear()
        self.world.server.objects.update(self.objects)
        modified = self.objects[key].modified
        self.world.server.objects[key] = Stored(raw, f'"{hash(raw):x}"', modified)


@pytest.fixture
def prepared(world: World, monkeypatch: pytest.MonkeyPatch) -> Prepared:
    """VALUES; a pack that is condemned; a writer at work, who relies on a pack that nothing else
    needs; hints that tell of all of them."""
    honours = ServerFeatures(True, True, True, True, True)
    monkeypatch.setattr("castore.s3.gc.server.probe", lambda bucket: honours)
    with world.open("first") as store:
        fill(store, VALUES)
    for name, data in (("condemned", CONDEMNED), ("pinned", PINNED)):
        with world.open(name) as store:
            store.puts(name, data)
    writer = world.open("writer")
    writer.puts("again", PINNED)
    for name in ("condemned", "pinned", "again"):
        writer.delete(name)
    with world.open("collector") as store:
        assert collect(store, grace_s=DAY).packs_condemned == 1
    objects = dict(world.server.objects)
    pinned = frozenset(
        f"store/{pack_key(pack_id)}"
        for key, stored in objects.items()
        if key.startswith("store/pins/")
        for pack_id in decode_pin(stored.body)[2]
    )
    with world.open("other") as store:
        needed = {
            f"store/{pack_key(pack_id)}"
            for version in store._backend.catalog.versions(b"")  # type: ignore[union-attr]
            for pack_id in version.head.packs
        }
    found = Prepared(world, objects, frozenset(), pinned)
    garbage = frozenset(found.keys("packs/")) - needed - pinned
    assert (len(pinned), len(garbage)) == (1, 1)
    assert all(found.keys(kind) for kind in KINDS)
    return Prepared(world, objects, garbage, pinned)


def test_undamaged(prepared: Prepared) -> None:
    """What `judge` tells from damage: a pack that is garbage."""
    with prepared.world.open("reader") as store:
        report = store.check(True)
        assert report.problems == []
        assert report.garbage["packs"] == 1
        assert read(store) == VALUES


def judge(prepared: Prepared, key: str) -> None:
    """Of one object that is not what it was."""
    try:
        look(prepared, key)
        put(prepared, key)
        collects(prepared)
    finally:
        prepared.world.forget_machines()


def look(prepared: Prepared, key: str) -> None:
    """It is found, whether it is opened for that or not; what can be read is right."""
    needed = key not in prepared.condemned | prepared.pinned
    try:
        with prepared.world.open("reader") as store:
            report = store.check(True)
            found = read(store)
    except CastoreError:
        assert key == "store/castore.json"
        return
    told = [problem for problem in report.problems if problem.kind != "orphan"]
    assert told or key in prepared.condemned, "nothing was found"
    if key.startswith("store/hints/"):
        # Hints: what they do not tell of is only stored again.
        assert {(problem.kind, problem.severity) for problem in told} == {("hints", "warning")}
    elif not needed:
        assert all(problem.pack in key for problem in told)
    elif key == "store/castore.json":  # the case of a digit: it says the same
        assert {(problem.kind, problem.severity) for problem in told} <= {
            ("config", "warning"),
            ("config", "corrupt"),
        }
    else:
        assert report.exit_code in (13, 14)
    assert {name: VALUES[name] for name in found} == found
    if not needed or not key.startswith(("store/packs/", "store/names/", "store/castore.json")):
        assert found == VALUES


def put(prepared: Prepared, key: str) -> None:
    """What is stored already, or no more, is put on a machine that knows nothing, and read on
    another: all that is acknowledged is there. That a frame is whole is not looked at again when
    its chunk is put: that is what a check is for."""
    if key.startswith("store/packs/"):
        return
    acknowledged = {}
    data = {"new/condemned": CONDEMNED, "new/pinned": PINNED, "new/big": VALUES["big/1"]}
    try:
        with prepared.world.open("writer") as store:
            for name, value in data.items():
                try:
                    store.puts(name, value)
                except CastoreError:
                    assert not key.startswith("store/hints/")
                else:
                    acknowledged[name] = value
    except CastoreError:
        assert key == "store/castore.json"
        return
    with prepared.world.open("after") as store:
        if key != "store/castore.json":
            assert acknowledged.items() <= read(store).items()


def collects(prepared: Prepared) -> None:
    """A collection refuses, or takes nothing that is needed."""
    world = prepared.world
    before = dict(world.server.objects)
    world.pass_time(DAY + HOUR)
    try:
        with world.open("collector") as store:
            collect(store, repack_below=0.5)
    except CastoreError:
        pass
    world.pass_time(-DAY - HOUR)
    after = world.server.objects
    for kept in prepared.keys("packs/"):
        assert kept in after or kept in prepared.condemned, f"{kept} is gone"
    assert {k for k in before if k.startswith("store/names/")} <= after.keys()


def damages(
    prepared: Prepared, damage: Callable[[random.Random, bytes], bytes], count: int, seed: int
) -> Iterator[str]:
    """So many damaged objects, of each kind in turn."""
    choose = random.Random(seed)
    for i in range(count):
        key = choose.choice(prepared.keys(KINDS[i % len(KINDS)]))
        prepared.change(key, damage(choose, prepared.objects[key].body))
        yield key


def flip(choose: random.Random, raw: bytes) -> bytes:
    return flipped(raw, choose.randrange(8 * len(raw)))


def flipped(raw: bytes, bit: int) -> bytes:
    changed = bytearray(raw)
    changed[bit >> 3] ^= 1 << (bit & 7)
    return bytes(changed)


def cut(choose: random.Random, raw: bytes) -> bytes:
    return raw[: choose.randrange(len(raw))]


@pytest.mark.damages_store("what was damaged last is not mended")
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("count", [28, pytest.param(5000, marks=pytest.mark.long)])
def test_flipped_bits(prepared: Prepared, count: int) -> None:
    for key in damages(prepared, flip, count, seed=count):
        judge(prepared, key)


@pytest.mark.damages_store("what was damaged last is not mended")
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("count", [14, pytest.param(500, marks=pytest.mark.long)])
def test_truncations(prepared: Prepared, count: int) -> None:
    for key in damages(prepared, cut, count, seed=count):
        judge(prepared, key)


@pytest.mark.damages_store("what was damaged last is not mended")
@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", ["castore.json", "pins/", "gc/"])
def test_every_bit(prepared: Prepared, kind: str) -> None:
    """Of what is small."""
    for key in prepared.keys(kind):
        raw = prepared.objects[key].body
        for bit in range(8 * len(raw)):
            prepared.change(key, flipped(raw, bit))
            judge(prepared, key)
