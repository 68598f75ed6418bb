"""A repair of a store on S3 that is killed, or whose cache's disk is full."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from damaged_s3 import (
    DAMAGES,
    VALUES,
    bucket,
    change,
    cut_manifest,
    flip_pack,
    flipped,
    garble_manifest,
    garble_segment,
    keys,
    read,
    remote,
)
from gc_stores import World
from memory_s3 import MemoryAttempts
from s3_stores import Open
from stores import fill

import castore
from castore.check.plan import plan
from castore.errors import RepairRefused, StoreFull
from castore.format.s3_told import encode_hints, encode_listing
from castore.s3.client.attempts import Attempts
from castore.s3.client.bucket import Bucket
from castore.system.lmdb_env import Index

__all__ = ["bucket", "remote"]  # fixtures

WRITES = {"put_object", "delete_object", "delete_objects"}


class Killed(BaseException):
    """Nothing that handles errors handles this."""


class Steps:
    """Counts the requests that change a store; from the one to die at on, none is sent."""

    def __init__(self, die_at: int) -> None:
        self.count = 0
        self.die_at = die_at
        self._lock = threading.Lock()

    def install(self, patched: pytest.MonkeyPatch) -> None:
        patched.setattr(Attempts, "_called", self._counted(Attempts._called))
        patched.setattr(MemoryAttempts, "call", self._counted(MemoryAttempts.call))

    def _counted(self, whole: Callable[..., Any]) -> Callable[..., Any]:
        def called(attempts: Any, *asked: str, **parameters: Any) -> Any:
            with self._lock:
                self.count += asked[-1] in WRITES
                dead = self.die_at and self.count >= self.die_at
            if dead:
                raise Killed
            return whole(attempts, *asked, **parameters)

        return called


def restore(bucket: Bucket, objects: dict[str, bytes]) -> None:
    """Have the store be what it was."""
    bucket.delete_many([key for key in keys(bucket, "") if key not in objects])
    for key, raw in objects.items():
        change(bucket, key, raw)


def repaired_until(
    remote: Open, monkeypatch: pytest.MonkeyPatch, die_at: int
) -> tuple[Steps, castore.Store]:
    """What is left of a machine that dies at this step of a repair, or never for 0."""
    store, steps = remote(), Steps(die_at)
    with monkeypatch.context() as patched:
        steps.install(patched)
        try:
            store.check(repair=True)
        except Killed:
            with contextlib.suppress(Killed):
                store.close()
    return steps, store


def judge(remote: Open, bucket: Bucket, before: dict[str, bytes]) -> None:
    """What could be read can be read, byte for byte, and what could not is kept."""
    after = read(remote())
    assert {name: after[name] for name in before} == before
    assert {name: VALUES[name] for name in after} == after
    kept = [*keys(bucket, "quarantine/"), *keys(bucket, "names/quarantine/")]
    for name in VALUES.keys() - after.keys():
        assert any(key.endswith(name) for key in [*kept, *keys(bucket, "names/")]), name


def kill_at_steps(
    remote: Open,
    bucket: Bucket,
    monkeypatch: pytest.MonkeyPatch,
    damage: Callable[[Bucket], None],
    kills: int | None,
) -> None:
    """At so many steps, or at all."""
    damage(bucket)
    before = read(remote())
    damaged = {key: bucket.get(key).body for key in keys(bucket, "")}
    steps = repaired_until(remote, monkeypatch, 0)[0].count
    assert steps >= 1
    judge(remote, bucket, before)
    stride = 1 if kills is None else -(-steps // kills)
    for at in range(1 + stride // 2, steps + 1, stride):
        restore(bucket, damaged)
        assert repaired_until(remote, monkeypatch, at)[0].count >= at
        judge(remote, bucket, before)
        report = remote().check(repair=True)
        assert {problem.kind for problem in report.problems} <= {"object"}, at
        assert remote().check(True).exit_code == 0, at
        judge(remote, bucket, before)
        missing = VALUES.keys() - read(remote()).keys()
        kept = [*keys(bucket, "quarantine/"), *keys(bucket, "names/quarantine/")]
        assert all(any(key.endswith(name) for key in kept) for name in missing), at
    fill(store := remote(), VALUES)
    assert {name: store.gets(name) for name in VALUES} == VALUES


@pytest.mark.damages_store("a check is all that looks at it")
@pytest.mark.parametrize(
    "damage",
    [each for each in DAMAGES if each is not garble_manifest],  # of what may be in a batch
    ids=lambda damage: damage.__name__,
)
def test_the_command_would_do_something_about_it(
    remote: Open, bucket: Bucket, damage: Callable[[Bucket], None]
) -> None:
    damage(bucket)
    assert plan(remote().check(True))


@pytest.mark.parametrize("at", [10, 20, 90, -100])
def test_a_flipped_bit_in_a_large_manifest(
    remote: Open, bucket: Bucket, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """In its header, its head, or a segment: each is put right by itself."""
    monkeypatch.setattr("castore.s3.check.repair_manifests.RAW_BYTES_MAX", 0)
    raw = bucket.get("names/big/0").body
    change(bucket, "names/big/0", flipped(raw, 8 * (at % len(raw))))
    report = remote().check(repair=True)
    assert report.problems == []
    assert bucket.get("names/big/0").body == raw
    assert "one bit flipped" in report.repaired[0]


@pytest.mark.parametrize("damage", [garble_segment, cut_manifest])
def test_of_a_manifest_with_a_damaged_segment_the_rest_is_saved(
    remote: Open, bucket: Bucket, damage: Callable[[Bucket], None]
) -> None:
    value = random.Random(5).randbytes(8_000_000)
    remote().puts("big/0", value)
    damage(bucket)
    store = remote()
    report = store.check(repair=True)
    assert report.damaged_names == ["big/0"]
    [target] = [name for name in store.names("quarantine/") if name.endswith("big/0")]
    saved, told = store.gets(target), json.loads(store.gets(f"{target}.json"))
    assert len(saved) == len(value)
    assert 0 < told["lost_bytes"] < len(value) // 2  # no more than what is in one segment
    assert "kept as quarantine/names/big/0" in told["why"]
    at = 0
    for begin, end in [*told["lost_ranges"], (len(value), len(value))]:
        assert saved[at:begin] == value[at:begin]
        assert saved[begin:end] == bytes(end - begin)
        at = end


def test_hints_and_listings_of_another_store_go(remote: Open, bucket: Bucket) -> None:
    change(bucket, keys(bucket, "hints/")[0], encode_hints(bytes(16), []))
    change(bucket, f"listings/{'0' * 32}", encode_listing(bytes(16), []))
    kinds = [problem.kind for problem in remote().check().problems]
    assert sorted(kinds) == ["hints", "listing"]
    assert remote().check(repair=True).problems == []
    assert len(keys(bucket, "quarantine/")) == 2


def test_nothing_is_repaired_while_most_packs_are_missing(remote: Open, bucket: Bucket) -> None:
    packs = {key: bucket.get(key).body for key in keys(bucket, "packs/")}
    bucket.delete_many(list(packs))
    before = keys(bucket, "")
    with pytest.raises(RepairRefused, match="and has 0: bring packs/ back"):
        remote().check(repair=True)
    assert keys(bucket, "") == before
    for key, raw in packs.items():
        change(bucket, key, raw)
    assert remote().check(True).problems == []
    assert read(remote()) == VALUES


def test_what_was_kept_once_is_not_replaced_another_time(remote: Open, bucket: Bucket) -> None:
    store, lost = remote(), []
    for i in range(2):
        store.puts("twice", random.Random(i).randbytes(100_000))  # too large for a batch
        raw = bucket.get("names/twice").body
        lost.append(raw[:60] + bytes(len(raw) - 60))
        bucket.put("names/twice", lost[-1], idempotent=True)
        assert store.check(repair=True).damaged_names == ["twice"]
    copies = [bucket.get(key).body for key in keys(bucket, "quarantine/names/twice")]
    assert copies == lost
    told = [json.loads(store.gets(name)) for name in store.names("quarantine/")]
    assert sorted(each["manifest"] for each in told) == keys(bucket, "quarantine/names/twice")


def test_killed_amid_it(remote: Open, bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    kill_at_steps(remote, bucket, monkeypatch, flip_pack, 1)


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_killed_at_every_step(
    world: World, monkeypatch: pytest.MonkeyPatch, damage: Callable[[Bucket], None]
) -> None:
    """On a server in memory: there are hundreds of repairs."""

    def new_machine() -> castore.Store:
        world.forget_machines()  # a thousand open stores would have all threads that there may be
        return world.open("another")

    with world.open("first") as store:
        fill(store, VALUES)
    with world.bucket() as in_memory:
        kill_at_steps(new_machine, in_memory, monkeypatch, damage, None)


def test_a_full_disk_of_the_cache(
    remote: Open, bucket: Bucket, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache is no part of the store: a repair does without it."""
    flip_pack(bucket)
    before = read(remote())
    store = remote()
    failed = []

    def failing(call: str) -> Callable[..., Any]:
        whole = getattr(os, call)

        def fails(*args: Any, **options: Any) -> Any:
            is_read = call == "open" and not args[1] & os.O_CREAT
            if is_read or not str(args[0]).startswith(str(cache_dir)):
                return whole(*args, **options)
            failed.append(call)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        return fails

    def no_commit(*_: Any) -> Any:
        failed.append("commit")
        raise StoreFull("no space left")

    with monkeypatch.context() as patched:
        patched.setattr(Index, "begin", no_commit)
        for call in ("open", "mkdir", "rename", "replace"):
            patched.setattr(os, call, failing(call))
        report = store.check(repair=True)
    assert "commit" in failed
    assert {problem.kind for problem in report.problems} <= {"object"}
    assert report.repaired
    judge(remote, bucket, before)
    assert remote().check(repair=True).repaired == []
