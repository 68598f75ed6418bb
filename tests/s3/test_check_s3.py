"""Checking and mending a store on S3, and the index made anew there. Thousands of flipped bits are
in test_check_s3_flips.py, on a server in memory."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from damaged_s3 import (
    DAMAGES,
    VALUES,
    bucket,
    change,
    flip_footer,
    flip_hints,
    flip_list,
    flip_manifest,
    flip_pack,
    flip_segment,
    flip_state,
    flipped,
    keys,
    read,
    remote,
    remove_list,
    remove_list_and_pack,
    remove_pack,
)
from s3_stores import Open
from servers import Server
from stores import fill

import castore
from castore.errors import CastoreError, NotLocal
from castore.format.s3_gc import encode_pin
from castore.s3.cache.folder import cache_root
from castore.s3.client.bucket import Bucket

__all__ = ["bucket", "remote"]  # fixtures


def test_a_whole_store_is_clean(remote: Open) -> None:
    for read_data in (False, True, 0.2):
        report = remote().check(read_data)
        assert report.problems == []
        assert report.names == len(VALUES)
        assert report.packs >= 4
    assert remote().check(True).read_frames == report.frames


def test_what_a_local_store_alone_can_do(remote: Open, tmp_path: Path) -> None:
    with pytest.raises(NotLocal, match="names are in S3"):
        remote().backup(tmp_path / "backup")


def test_what_is_deleted_is_counted_until_it_is_collected(remote: Open) -> None:
    remote().delete("big/1")
    for grace, garbage in ((None, {"packs": 1}), (3600.0, {"packs": 1}), (0.0, {})):
        if grace is not None:
            remote().gc(grace_s=grace)
        report = remote().check()
        assert (report.exit_code, report.problems, report.garbage) == (0, [], garbage)
        assert (report.garbage_bytes > 90_000) == bool(garbage)


@pytest.mark.damages_store("packs or lists are removed")
def test_missing_packs_and_lists(remote: Open, bucket: Bucket) -> None:
    gone = keys(bucket, "packs/")[0]
    bucket.delete_many([gone])
    report = remote().check()
    assert report.exit_code == 14
    assert set(report.damaged_names) == VALUES.keys() - read(remote()).keys() != set()
    change(bucket, "gc/state", b"no json")
    report = remote().check()
    assert report.exit_code == 13
    assert "gc state" in {problem.kind for problem in report.problems}


def test_pins_and_hints(remote: Open, bucket: Bucket) -> None:
    change(bucket, "pins/0123456789abcdef/0", b"CPIN")
    other = encode_pin(bytes(16), bytes(8), bytes(16), [])
    change(bucket, "pins/0000000000000000/0", other)
    report = remote().check()
    assert sorted(problem.what[:27] for problem in report.problems) == [
        "pins/0000000000000000/0: it",
        "pins/0123456789abcdef/0: li",
    ]
    assert report.exit_code == 13
    bucket.delete_many(keys(bucket, "pins/"))
    hint = keys(bucket, "hints/")[0]
    change(bucket, hint, flipped(bucket.get(hint).body, 99))
    report = remote().check()
    assert (report.exit_code, [p.kind for p in report.problems]) == (1, ["hints"])


def flip_and_look(remote: Open, bucket: Bucket, count: int, seed: int) -> None:
    """Every flip in a pack, a manifest, the config or a pin is found; no read gives wrong bytes."""
    choose = random.Random(seed)
    with remote() as store:
        store.puts("pinned", random.Random(99).randbytes(70_000))
        store._session().place([])  # its session is open: there are pins
        pins = keys(bucket, "pins/")
        places = [
            keys(bucket, "packs/"),
            keys(bucket, "names/"),
            pins,
            ["castore.json"],
            keys(bucket, "packs/"),
        ]
        for i in range(count):
            key = choose.choice(places[i % len(places)])
            raw = bucket.get(key).body
            change(bucket, key, flipped(raw, choose.randrange(8 * len(raw))))
            judge(remote, key)
            change(bucket, key, raw)


def judge(remote: Open, key: str, truncated: bool = False) -> None:
    try:
        store = remote(create=False)
    except CastoreError:
        assert key == "castore.json"
        return
    with store:
        # The last byte of castore.json, or the case of a digit: it says the same.
        harmless = truncated or key == "castore.json"
        assert store.check(True).exit_code in ((1, 13, 14) if harmless else (13, 14)), key
        for name, value in read(store).items():
            assert value == VALUES.get(name, random.Random(99).randbytes(70_000)), (key, name)


def test_flipped_bits(remote: Open, bucket: Bucket) -> None:
    flip_and_look(remote, bucket, 5, 1)


def truncate_and_look(remote: Open, bucket: Bucket, count: int, seed: int) -> None:
    choose = random.Random(seed)
    places = [keys(bucket, "packs/"), keys(bucket, "names/"), ["castore.json"]]
    for i in range(count):
        key = choose.choice(places[i % len(places)])
        raw = bucket.get(key).body
        change(bucket, key, raw[: choose.randrange(len(raw))])
        judge(remote, key, truncated=True)
        change(bucket, key, raw)


def test_truncations(remote: Open, bucket: Bucket) -> None:
    truncate_and_look(remote, bucket, 3, 1)


# ---- mending ------------------------------------------------------------------------------------


# None of these takes anything from a name that can't be put right.
HARMLESS = {
    flip_footer,
    flip_manifest,
    flip_segment,
    flip_hints,
    flip_state,
    flip_list,
    remove_list,
}


def some_are_long(damage: Callable[[Bucket], None]) -> Any:
    quick = damage in (flip_pack, remove_list_and_pack)
    return pytest.param(damage, id=damage.__name__, marks=() if quick else pytest.mark.long)


@pytest.mark.parametrize("damage", [some_are_long(damage) for damage in DAMAGES])
def test_repair(remote: Open, bucket: Bucket, damage: Callable[[Bucket], None]) -> None:
    damage(bucket)
    before = read(remote())
    report = remote().check(repair=True)
    assert report.repaired
    after = read(remote())
    # What could not be read in full is said to be gone, by the repair that moved it.
    assert set(report.damaged_names) == VALUES.keys() - after.keys()
    assert report.exit_code == (14 if report.damaged_names else 0), report.problems
    assert {name: after[name] for name in before} == before
    assert {name: VALUES[name] for name in after} == after
    if damage in HARMLESS:
        assert after == VALUES
    for name in VALUES.keys() - after.keys():
        assert any(kept.endswith(name) for kept in keys(bucket, "quarantine/")) or any(
            kept.endswith(name) for kept in keys(bucket, "names/quarantine/")
        )
    again = remote().check(repair=True)
    assert (again.repaired, again.problems) == ([], [])
    fill(store := remote(), VALUES)
    assert {name: store.gets(name) for name in VALUES} == VALUES
    assert store.check(True).exit_code == 0
    store.gc(grace_s=0.0)
    assert {name: store.gets(name) for name in VALUES} == VALUES
    assert (store.check(True).exit_code, store.check().garbage) == (0, {})


# ---- an index made anew -------------------------------------------------------------------------


def cached(store: castore.Store) -> dict[str, dict[bytes, bytes]]:
    """What the cache of this machine knows."""
    [folder] = Path(cache_root() or "").iterdir()
    index = store._backend._cache._index  # type: ignore[union-attr]
    assert folder.name in index.path
    with index.gate, index.snapshot() as txn:
        return {
            table: {bytes(key): bytes(value) for key, value in txn.cursor(db=getattr(index, table))}
            for table in ("names", "segments", "chunks")
        }


def test_a_rebuilt_index_is_what_it_was(remote: Open, bucket: Bucket) -> None:
    store = remote()
    for name, value in VALUES.items():
        assert store.gets(name) == value
    store._session().look_up([bytes(16)])  # reads the hints
    before = cached(store)
    assert len(before["chunks"]) > 50
    told = keys(bucket, "hints/")
    report = store.rebuild_index()
    assert (report.names, report.lost) == (len(VALUES), [])
    assert cached(store) == before
    assert not set(keys(bucket, "hints/")) & set(told)
    for name, value in VALUES.items():
        assert store.gets(name) == value
    with remote() as other:  # to which the new hints are told
        packs = len(keys(bucket, "packs/"))
        other.puts("again", VALUES["big/2"])
    assert len(keys(bucket, "packs/")) == packs


@pytest.mark.damages_store("packs or lists are removed")
def test_names_whose_packs_are_gone_are_told_of(
    remote: Open, bucket: Bucket, moto_server: Server
) -> None:
    remove_pack(bucket)
    report = castore.rebuild_index(moto_server.url())
    assert set(report.lost) == VALUES.keys() - read(remote()).keys() != set()
