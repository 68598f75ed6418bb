"""The proxy that benches and tests put before a server: it counts right, and shapes as told."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import proxy as proxy_module
import pytest
from proxy import Proxy, ProxyProcess, _Throttle, parse_seconds
from servers import Server

from castore.s3.client.bucket import Bucket


def test_it_counts(s3_server: Server) -> None:
    with (
        Proxy(s3_server.endpoint_url) as proxy,
        Bucket(s3_server.settings(endpoint_url=proxy.url)) as bucket,
    ):
        bucket.put("a/1", b"x" * 1000)
        bucket.put("b/1", b"x" * 70_000)
        bucket.get("a/1", byte_range=(10, 30))
        bucket.get("b/1")
        bucket.head("b/1")
        list(bucket.list())
        bucket.delete("a/1")
        assert proxy.totals()["PUT"] == {
            "requests": 2,
            "sent": 71_000,
            "received": proxy.totals()["PUT"]["received"],
        }
        assert proxy.totals()["GET"] == {"requests": 2, "sent": 0, "received": 70_020}
        assert {kind: row["requests"] for kind, row in proxy.totals().items()} == {
            "PUT": 2, "GET": 2, "HEAD": 1, "LIST": 1, "DELETE": 1,
        }  # fmt: skip
        [ranged] = proxy.matching("GET", "/a/1$")
        assert ranged.headers["range"] == "bytes=10-29"
        assert ranged.key == f"/{s3_server.bucket}/store/a/1"
        assert ranged.status in (200, 206)
        assert ranged.ended > ranged.began
        proxy.clear()
        assert proxy.totals() == {}


def test_round_trip_time_and_bandwidth(rclone_server: Server) -> None:
    size = 2_000_000
    with (
        Proxy(rclone_server.endpoint_url, rtt_s=0.1, bytes_per_s=10e6) as proxy,
        Bucket(rclone_server.settings(endpoint_url=proxy.url)) as bucket,
    ):
        took = []
        requests: list[Callable[[], object]] = [
            lambda: bucket.put("warm", b""),
            lambda: bucket.get("warm"),
            lambda: bucket.put("k", b"x" * size),
            lambda: bucket.get("k"),
        ]
        for request in requests:
            began = time.monotonic()
            request()
            took.append(time.monotonic() - began)
        assert took[0] > 0.2, "a new connection is a round trip more"
        assert 0.1 < took[2] - 0.2 < 1.5
        assert 0.1 < took[3] - 0.2 < 1.5
        with ThreadPoolExecutor(4) as pool:
            began = time.monotonic()
            list(pool.map(lambda _: bucket.get("k"), range(4)))
            assert time.monotonic() - began > 0.8, "the bandwidth is that of all together"


class Clock:
    """Time that only passes as told, and in sleeps, which end late."""

    def __init__(self, late_s: float) -> None:
        self.now = 100.0
        self._late_s = late_s

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds + self._late_s


def test_one_connection_gets_the_bandwidth_that_was_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Though each sleep ends late and each block takes time to be sent, and though nothing is
    saved up in a pause."""
    clock = Clock(late_s=0.0007)
    monkeypatch.setattr(proxy_module, "time", clock)
    link = _Throttle(100e6)
    size = 10_000_000

    def send() -> float:
        began = clock.now
        for _ in range(size // 65_536):
            link.take(65_536)
            clock.now += 0.0004
        return clock.now - began

    assert 0.098 < send() < 0.11
    clock.now += 5
    assert 0.098 < send() < 0.11


def test_in_a_process_of_its_own(rclone_server: Server) -> None:
    proxy = ProxyProcess(rclone_server.endpoint_url, rtt_s=0.001, bytes_per_s=50e6)
    try:
        with Bucket(rclone_server.settings(endpoint_url=proxy.url)) as bucket:
            bucket.put("k", b"x" * 100)
        assert proxy.totals()["PUT"]["sent"] == 100
        assert proxy.clear()["PUT"]["requests"] == 1
        assert proxy.totals() == {}
    finally:
        proxy.close()


def test_times() -> None:
    assert parse_seconds("20ms") == 0.02
    assert parse_seconds("1.5s") == 1.5
    with pytest.raises(Exception, match="is not a time"):
        parse_seconds("20")
