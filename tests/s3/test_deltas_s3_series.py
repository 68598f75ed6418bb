"""Versions of a few objects, put, copied, appended to and deleted by machines that each remember
something else, beside collectors that move what is there."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from gc_stores import DAY, World, collect, edited, noise

import castore
from castore.format.config import encode_config
from castore.s3 import uploads
from castore.s3.gc import survey

SIZE = 90_000
NAMES = [f"{folder}/{name}" for folder in ("v1", "v2", "v3") for name in ("a", "b")]


class Series:
    """What one seed does, and what there should be then."""

    def __init__(self, world: World, seed: int) -> None:
        self.there: dict[str, bytes] = {}
        self.made: Counter[str] = Counter()
        self._world = world
        self._choose = random.Random(seed)
        self._stores: dict[str, castore.Store] = {}

    def step(self) -> None:
        choose = self._choose
        verb = choose.choices(
            ["put", "append", "copy", "delete", "gc", "forget", "close"], [9, 2, 2, 2, 3, 1, 3]
        )[0]
        machine = choose.choice(["one", "two", "three"])
        store = self._stores.get(machine)
        if store is None or store.closed:
            store = self._stores[machine] = self._world.open(machine)
        name, source = choose.choice(NAMES), choose.choice(sorted(self.there) or [""])
        if verb == "put":
            data = self._next_version(source)
            store.puts(name, data)
            record = store._catalog.record(name.encode())
            assert record is not None
            self.made["deltas"] += record.deltas
            self.there[name] = data
        elif verb == "append" and source:
            with store.open(source, "ab") as file:
                file.write(more := noise(choose.randrange(9000), choose.randrange(99)))
            self.there[source] += more
        elif verb == "copy" and source:
            store.copy(source, name)
            self.there[name] = self.there[source]
        elif verb == "delete" and source:
            store.delete(source)
            del self.there[source]
        elif verb == "gc":
            self._world.pass_time(choose.choice([0, 8 * DAY]))
            report = collect(store, repack_below=choose.choice([0.0, 0.6, 0.95]))
            assert report.damaged == ()
            self.made["packs rewritten"] += report.packs_rewritten
        elif verb == "forget":
            store.close()
            self._stores[machine] = self._world.open(f"{machine} {choose.random()}")
        elif verb == "close":
            store.close()
        if source in self.there:
            assert store.closed or store.gets(source) == self.there[source]

    def _next_version(self, source: str) -> bytes:
        choose = self._choose
        before = self.there.get(source, noise(SIZE, choose.randrange(9)))
        after = edited(before, choose.randrange(9), every=choose.choice([500, 3000, 20_000]))
        at = choose.randrange(len(after))
        return after[:at] + noise(choose.randrange(2000), choose.randrange(99)) + after[at:]

    def judge(self) -> None:
        reader = self._world.open("reader")
        assert {name: reader.gets(name) for name in reader.names()} == self.there
        choose = self._choose
        for name, data in self.there.items():
            begin = choose.randrange(len(data))
            assert reader.gets(name, (begin, begin + 3000)) == data[begin : begin + 3000]


USUAL = range(3)
LONG = [pytest.param(seed, marks=pytest.mark.long) for seed in range(3, 200)]


@pytest.mark.parametrize("seed", [*USUAL, *LONG])
def test_a_series(world: World, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey, "SMALL_PACK_BYTES", 20_000)
    monkeypatch.setattr(survey, "SMALL_PACKS_MAX", 3)
    monkeypatch.setattr(uploads, "PACK_BYTES_FIRST", 30_000)
    monkeypatch.setattr(uploads, "PACK_BYTES_MAX", 60_000)
    if seed % 3 == 2:
        guarded = world.config._replace(collision_guard="sha256")
        with world.bucket() as bucket:
            bucket.put("castore.json", encode_config(guarded), idempotent=True)
    series = Series(world, seed)
    for _ in range(40):
        series.step()
    series.judge()
    if seed in USUAL:  # others may be dull
        assert series.made["deltas"] > 20
        assert series.made["packs rewritten"] > 0
