"""A collection leaves no space that nothing needs, and a second one finds nothing: stores of many
shapes. After each, stats are what a recount says, and what is on the disk."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from driver_count import count_local
from stores import contents, descriptors_to_spare, fill, small

import castore
from castore.local.gc.repack import SMALL_PACK_BYTES, SMALL_PACKS_MAX
from castore.local.gc.sweep import PACKS_MAX

R = random.Random(5)


def agree(store: castore.Store) -> None:
    """stats, a recount from the rows, the files, and a check of all data."""
    count, stats = count_local(store), store.stats()
    assert {name: getattr(stats, name) for name in count.expected_stats()} == count.expected_stats()
    files = {path: path.stat().st_size for path in Path(store.path, "packs").rglob("*.pack")}
    assert (stats.packs, stats.pack_bytes) == (len(files), sum(files.values()))
    report = store.check(True)
    assert report.problems == []
    assert (report.names, report.packs) == (stats.objects, stats.packs)


def nothing_is_left(store: castore.Store, repack_below: float) -> None:
    count = count_local(store)
    assert count.packs.keys() == count.live.keys() == count.pack_rows
    assert count.chunks.keys() == count.live_chunks
    assert not count.orphan_segments
    assert all(count.live_share(pack) >= repack_below for pack in count.packs)
    small_ones = [pack for pack, size in count.packs.items() if size < SMALL_PACK_BYTES]
    assert len(small_ones) <= SMALL_PACKS_MAX
    report = store.check(True)
    assert (report.problems, report.garbage, report.garbage_bytes) == ([], {}, 0)


# ---- shapes -------------------------------------------------------------------------------------


def nothing(folder: Path) -> None:
    small(folder).close()


def inline_only(folder: Path) -> None:
    with small(folder) as store:
        for i in range(60):
            store.puts(f"n{i}", bytes([i]) * 40 * i)
            if i % 3:
                store.delete(f"n{i}")


def zeros(folder: Path) -> None:
    with small(folder) as store:
        store.puts("zeros", bytes(3_000_000))


def many_small_objects(folder: Path) -> None:
    with small(folder) as store, store.transaction() as transaction:
        for i in range(500):
            transaction.puts(f"n{i}", R.randbytes(4500))


def a_pack_for_each_object(folder: Path) -> None:
    for i in range(2 * SMALL_PACKS_MAX + 3):
        with small(folder) as store:
            store.puts(f"n{i}", R.randbytes(5000 + i))


def tiny_packs_half_dead(folder: Path) -> None:
    for i in range(SMALL_PACKS_MAX):
        with small(folder) as store:
            store.puts(f"kept{i}", R.randbytes(4200))
            store.puts(f"gone{i}", R.randbytes(4200))
            store.delete(f"gone{i}")


def all_deleted(folder: Path) -> None:
    with small(folder) as store:
        fill(store, contents())
        store.delete_prefix("", unbounded=True)


def overwritten_again_and_again(folder: Path) -> None:
    with small(folder) as store:
        data = bytearray(R.randbytes(300_000))
        for i in range(12):
            data[i * 20_000 : i * 20_000 + 500] = R.randbytes(500)
            store.puts("same", bytes(data))
            store.copy("same", f"copy{i}")
            if i > 2:
                store.delete(f"copy{i - 2}")


def failed_puts(folder: Path) -> None:
    with small(folder) as store:
        fill(store, contents(3, 5))
        for i in range(3):
            file = store.open("half", "wb")
            file.write(R.randbytes(250_000))
            file.abort()
            store.puts(f"between{i}", R.randbytes(9000))


def twice_at_once(folder: Path) -> None:
    """Each of two writers stores the same chunks, at levels that differ."""
    text = "".join(f"{i} {i * i % 977}\n" for i in range(9000)).encode()
    with small(folder, compression_level=1) as one, small(folder, compression_level=15) as other:
        files = [one.open("one", "wb"), other.open("other", "wb")]
        for file in files:
            file.write(text)
        for file in files:
            file.close()


def one_frame_left_of_many(folder: Path) -> None:
    with small(folder) as store:
        store.puts("large", R.randbytes(2_000_000))
        piece = store.gets("large", (700_000, 712_000))
        store.puts("piece", piece)
        store.delete("large")


SHAPES = [
    nothing,
    inline_only,
    zeros,
    many_small_objects,
    a_pack_for_each_object,
    tiny_packs_half_dead,
    all_deleted,
    overwritten_again_and_again,
    failed_puts,
    twice_at_once,
    one_frame_left_of_many,
]


@pytest.mark.parametrize("repack_below", [0.5, 1.0])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.__name__)
def test_a_second_collection_finds_nothing(
    tmp_path: Path, shape: Callable[[Path], None], repack_below: float
) -> None:
    folder = tmp_path / "store"
    shape(folder)
    with small(folder) as store:
        expected = {name: store.gets(name) for name in store.names()}
        agree(store)
        foretold = store.gc(dry_run=True, repack_below=repack_below)
        report = store.gc(repack_below=repack_below)
        assert foretold.found_nothing == report.found_nothing
        agree(store)
        nothing_is_left(store, repack_below)
        assert store.gc(dry_run=True, repack_below=repack_below).found_nothing
        assert store.gc(repack_below=repack_below).found_nothing
        assert {name: store.gets(name) for name in store.names()} == expected
        store.puts("more", R.randbytes(20_000))
        agree(store)


@pytest.mark.parametrize("moment", ["swept", "rewritten"])
def test_more_packs_are_removed_than_there_are_descriptors(tmp_path: Path, moment: str) -> None:
    """A script that puts one object makes a pack: nobody collected for a long time."""
    kept = {f"n{i}": R.randbytes(4200) for i in range(2 * PACKS_MAX)}
    for name, data in kept.items():
        with small(tmp_path / "store") as store:
            store.puts(name, data)
    with small(tmp_path / "store") as store:
        if moment == "swept":
            store.delete_prefix("", unbounded=True)
            kept = {}
        with descriptors_to_spare(PACKS_MAX + 16):
            report = store.gc()
        assert (report.packs_removed, store.stats().packs) == (2 * PACKS_MAX, bool(kept))
        nothing_is_left(store, 0.5)
        assert {name: store.gets(name) for name in store.names()} == kept
