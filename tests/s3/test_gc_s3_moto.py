"""Collecting a store on a server: every request of it fails in every way, and many at once."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from fault_proxy import Fault, FaultProxy, answer, cut, reset, twice
from s3_stores import Open
from servers import Server

import castore
from castore.errors import CastoreError, NameNotFound, PreconditionsIgnored

SIZE = 70_000

FAULTS: dict[str, Callable[[], Fault]] = {
    "500": lambda: answer(500, "InternalError"),
    "500, applied": lambda: answer(500, "InternalError", applied=True),
    "503": lambda: answer(503, "SlowDown"),
    "reset": reset,
    "reset, applied": lambda: reset(applied=True),
    "cut": cut,
    "twice": twice,
}
REQUESTS = [
    ("GET", "/gc/state"),
    ("PUT", "/gc/state"),
    ("PUT", "/gc/condemned/"),
    ("GET", "/gc/condemned/"),
    ("GET", "/names/"),
    ("PUT", "/names/"),
    ("PUT", "/packs/"),
    ("PUT", "/pins/"),
    ("GET", "/pins/"),
    ("GET", "/hints/"),
    ("PUT", "/hints/"),
    ("LIST", ""),
    ("POST", ""),
]


def noise(size: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(size)


def test_both_phases(open_moto: Open) -> None:
    with open_moto(0) as store:
        for i in range(4):
            store.puts(f"n{i}", noise(SIZE, i))
        store.delete("n1")
    with open_moto(1) as collector:
        report = collector.gc(grace_s=0.0, repack_below=0.5)
        assert (report.packs_removed, report.objects) == (1, 3)
        assert collector.gc(grace_s=0.0, repack_below=0.5).found_nothing
        for i in (0, 2, 3):
            assert collector.gets(f"n{i}") == noise(SIZE, i)
        waiting = collector.gc(grace_s=3600.0, dry_run=True)
        assert waiting.packs_condemned == 0
        collector.delete("n2")
        first = collector.gc(grace_s=3600.0)
        assert first.packs_condemned == 1
        assert first.next_run_at is not None
        assert abs(first.next_run_at - time.time() - 3600) < 60
        assert collector.gc(grace_s=3600.0).packs_removed == 0


@pytest.mark.plain("what one is a delta of would stay")
def test_a_server_that_ignores_preconditions(rclone_server: Server, cache_dir: object) -> None:
    if rclone_server.preconditions:
        pytest.skip("needs a server that does not honour all preconditions")
    with castore.open(rclone_server.url()) as store:
        store.puts("a", noise(SIZE, 1))
        store.puts("b", noise(SIZE, 2))
        store.delete("a")
        with pytest.raises(PreconditionsIgnored):
            store.gc(grace_s=0.0)
        assert store.gc(grace_s=0.0, alone=True).packs_removed == 1
        assert store.gets("b") == noise(SIZE, 2)


def fail_at(
    kind: str, key: str, fault: Fault, times: int, open_proxied: Open, proxy: FaultProxy
) -> None:
    writer, collector = open_proxied(0), open_proxied(1)
    with writer.transaction() as transaction:
        for name in "abc":
            transaction.puts(name, noise(SIZE, ord(name)))
    writer.puts("d", noise(SIZE, 4))
    writer.puts("f", noise(SIZE, 6))  # its hint stays, when those beside it go
    for name in "abd":
        writer.delete(name)
    writer.close()
    pinned = open_proxied(2)
    pinned.puts("e", noise(SIZE, 5))
    rule = proxy.inject(kind, key, fault, times=times)
    with contextlib.suppress(CastoreError):
        collector.gc(grace_s=0.0, repack_below=0.5)
    assert rule.applied
    proxy.rules.clear()
    collector.gc(grace_s=0.0, repack_below=0.5)
    pinned.close()
    collector.close()
    with open_proxied(3) as last:
        last.gc(grace_s=0.0)
        assert last.gets("c") == noise(SIZE, ord("c"))
        assert last.gets("e") == noise(SIZE, 5)
        assert last.gets("f") == noise(SIZE, 6)
        # What was uploaded to be moved, and is pinned for a week as a put of it may land.
        assert last.stats().packs <= 5


@pytest.mark.parametrize(("kind", "key"), REQUESTS)
@pytest.mark.sampled(9)
def test_a_reply_that_is_lost(
    kind: str, key: str, open_proxied: Open, proxy: FaultProxy, probed: None
) -> None:
    fail_at(kind, key, reset(applied=True), 1, open_proxied, proxy)


@pytest.mark.long
@pytest.mark.parametrize("times", [1, 99])
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(("kind", "key"), REQUESTS)
def test_every_fault(
    kind: str,
    key: str,
    fault: str,
    times: int,
    open_proxied: Open,
    proxy: FaultProxy,
    probed: None,
) -> None:
    fail_at(kind, key, FAULTS[fault](), times, open_proxied, proxy)


@pytest.mark.parametrize("seconds", [2, pytest.param(180, marks=pytest.mark.long)])
@pytest.mark.timeout(400)
def test_many_at_once(open_moto: Open, seconds: float, probed: None) -> None:
    """Writers whose objects share chunks, deleters, and collectors with no grace at all. Each
    writer has names of its own, and knows what they hold."""
    until = time.monotonic() + seconds
    kept: dict[str, bytes] = {}
    failed: list[BaseException] = []
    stores = [open_moto(i) for i in range(4)]
    collectors = [open_moto(10 + i) for i in range(2)]

    def write(number: int) -> None:
        rng, store = random.Random(number), stores[number % 4]
        while time.monotonic() < until:
            name = f"w{number}/{rng.randrange(4)}"
            data = noise(SIZE, rng.randrange(6)) + noise(5000, rng.randrange(100))
            kept.pop(name, None)
            store.puts(name, data)
            kept[name] = data

    def delete(number: int) -> None:
        rng, store = random.Random(-number), stores[number % 4]
        while time.monotonic() < until:
            name = f"d{number}/{rng.randrange(4)}"
            store.puts(name, noise(SIZE, rng.randrange(6)))
            with contextlib.suppress(NameNotFound):
                store.delete(name)

    def collect(number: int) -> None:
        while time.monotonic() < until:
            with contextlib.suppress(BlockingIOError):
                collectors[number].gc(grace_s=0.0, repack_below=0.3 * number)

    def run(work: Any, number: int) -> None:
        try:
            work(number)
        except BaseException as error:
            failed.append(error)

    jobs = [(write, i) for i in range(8)] + [(delete, i) for i in range(4)]
    jobs += [(collect, i) for i in range(2)]
    threads = [threading.Thread(target=run, args=job) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(seconds + 120)
    assert failed == []
    for store in (*stores, *collectors):
        store.close()
    with open_moto(20) as last:
        last.gc(grace_s=0.0)
        for name, data in kept.items():
            assert last.gets(name) == data
        assert sorted(last.names()) == sorted(kept)
    assert kept
