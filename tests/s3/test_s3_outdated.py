"""A machine's cache lets go of names and packs that other machines removed: it grows with what
there is, and not with all that ever was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from gc_stores import DAY, World, collect, edited, noise
from memory_s3 import Step

from castore.format.pack import PackEntry
from castore.s3 import outdated
from castore.s3.cache import store as store_cache
from castore.s3.cache.folder import cache_folder
from castore.s3.cache.store import StoreCache
from castore.system.lmdb_env import Index, Txn

pytestmark = pytest.mark.usefixtures("probed")
DAYS = 24
KEPT = 3


def cache(world: World, machine: str, monkeypatch: pytest.MonkeyPatch) -> StoreCache:
    monkeypatch.setenv("CASTORE_CACHE_DIR", str(world.cache_of(machine)))
    with world.bucket() as bucket:
        path = cache_folder(world.config.store_id, bucket.place)
    return StoreCache(path, frames_bytes_max=0)


def known(world: World, machine: str, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int, int]:
    """How many names, packs and bytes its cache has."""
    one = cache(world, machine, monkeypatch)
    try:
        names = one.names_behind(b"", 10**6)
        return len(names), len(one.known_packs()), one.remembered_bytes()
    finally:
        one.close()


@pytest.mark.parametrize("batches", [False, True])
def test_what_others_removed_is_forgotten(
    make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch, batches: bool
) -> None:
    monkeypatch.setattr(outdated, "LOOK_BYTES_MIN", 1 << 16)
    monkeypatch.setattr(outdated, "NAMES_AT_ONCE", 50)
    world = make_world(batches=batches)
    data = noise(400_000, 1)
    for day in range(DAYS):
        data = edited(data, 1 + day % 8, every=20_000)
        small = {f"small/{day:02}/{i:02}": noise(200, i + day) for i in range(70)}
        with world.open("writer") as store:
            store.puts(f"dumps/{day:02}", data)
            store.puts_many(small)
        with world.open("reader") as store:
            assert store.gets(f"dumps/{day:02}") == data
            assert store.gets_ranges([(name, None) for name in small]) == [*small.values()]
            assert store.stats().objects == 71 * min(day + 1, KEPT + 1)
        with world.open("deleter") as store:
            if day >= KEPT:
                store.delete(f"dumps/{day - KEPT:02}")
                store.delete_prefix(f"small/{day - KEPT:02}/")
            collect(store, repack_below=0.5)
        world.pass_time(DAY)
    live = KEPT * 71
    for machine in ("writer", "reader"):
        names, packs, size = known(world, machine, monkeypatch)
        # Of what is in batches these tell, and who reads it need not remember it.
        assert (KEPT if batches else live) <= names < 4 * live
        assert size < DAYS * 30_000
        assert packs <= 2 * len(world.server.keys("store/packs/")) + KEPT
    with world.open("reader") as store:
        assert store.gets(f"dumps/{DAYS - 1:02}") == data
        assert store.check(True).clean


def test_who_ends_asks_once_each_time_that_it_has_doubled(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the server does not tell, which is no reason for the closing to fail."""
    monkeypatch.setattr(outdated, "LOOK_BYTES_MIN", 1 << 14)
    asked: list[Step] = []

    def refuse(step: Step) -> tuple[int, str] | None:
        if step.kind == "LIST" and step.key.startswith("packs/"):
            asked.append(step)
            return 403, "AccessDenied"
        return None

    world.server.refuse = refuse
    for i in range(12):
        with world.open() as store:
            store.puts_many({f"n{i}/{j}": noise(1000, j) for j in range(10)})
    assert 2 <= len(asked) <= 5
    world.server.refuse = lambda step: None
    with world.open() as store:
        assert store.check(True).clean


def test_chunks_are_forgotten_with_their_packs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_cache, "ROWS_MAX", 7)  # looked at at a time
    one = StoreCache(str(tmp_path / "cache"), frames_bytes_max=0)
    packs = {bytes([i]) * 16: [noise(16, 10 * i + j) for j in range(10)] for i in range(5)}
    for pack_id, chunk_ids in packs.items():
        one.add_chunks([(pack_id, [PackEntry(each, 64, 9, 9) for each in chunk_ids])])
    assert one.known_packs() == packs.keys()
    gone = set(list(packs)[1:4])
    one.drop_packs(gone)
    assert one.known_packs() == packs.keys() - gone
    for pack_id, chunk_ids in packs.items():
        assert len(one.known(chunk_ids)) == (0 if pack_id in gone else 10)
    one.close()


def test_a_number_that_is_damaged_is_none(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is too high would keep a machine from ever looking again."""
    one = cache(world, "one", monkeypatch)
    try:
        one.note_looked(5_000)
        assert one.looked_at_bytes() == 5_000

        def damage(index: Index, txn: Txn) -> None:
            raw = bytearray(bytes(txn.get(store_cache._LOOKED, db=index.meta)))
            raw[-1] ^= 0x40
            txn.put(store_cache._LOOKED, bytes(raw), db=index.meta)

        one.write(damage)
        assert one.looked_at_bytes() == 0
    finally:
        one.close()
