"""What reads through file objects cost, in requests, counted by a proxy."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Iterator

import pytest
from fault_proxy import FaultProxy
from proxy import Connection, Exchange
from s3_stores import make_store
from servers import Server

import castore

pytestmark = pytest.mark.usefixtures("aws_environment", "quick", "cache_dir")

MIB = 1 << 20
SIZE = 20_000_000
DATA = random.Random(1).randbytes(SIZE)


@pytest.fixture
def large(
    moto_server: Server, proxy: FaultProxy, cache_dir: object, monkeypatch: pytest.MonkeyPatch
) -> Iterator[castore.Store]:
    """A store with an object of 20 MB and chunks as they are, and nothing of it cached."""
    make_store(moto_server, prefix="large", chunk_bytes_avg=65536)
    with castore.open(moto_server.url("large")) as store:
        store.puts("a", DATA)
    monkeypatch.setenv("CASTORE_CACHE_DIR", f"{cache_dir}/cold")
    with castore.open(
        moto_server.url("large"), endpoint_url=proxy.url, disk_cache_bytes=0
    ) as store:
        proxy.clear()
        yield store


def asked(proxy: FaultProxy) -> Counter[str]:
    """How many requests for what, since it was asked last."""
    kinds = Counter(exchange.key.split("/")[3] for exchange in proxy.exchanges)
    proxy.clear()
    return kinds


@pytest.mark.parametrize(("begin", "size"), [(0, 8 * MIB), (5_000_001, 8 * MIB + 77), (9, 100_000)])
def test_a_large_read_is_one_plan(
    large: castore.Store, proxy: FaultProxy, begin: int, size: int
) -> None:
    with large.open("a") as file:
        file.seek(begin)
        assert file.read(size) == DATA[begin : begin + size]
    assert asked(proxy) == {"names": 1, "packs": {0: 2, 9: 1}.get(begin, 2)}


@pytest.mark.plain("bases are fetched again")
@pytest.mark.parametrize(("step", "packs"), [(MIB, 8), (256 << 10, 10), (10_000, 10)])
def test_reads_in_a_row_are_few_requests(
    large: castore.Store, proxy: FaultProxy, step: int, packs: int
) -> None:
    """A window begins with 2 MiB, doubles up to 16, and is filled up by 4."""
    with large.open("a") as file:
        assert b"".join(iter(lambda: file.read(step), b"")) == DATA
    received = sum(exchange.received_bytes for exchange in proxy.matching("GET", "/packs/"))
    assert asked(proxy) == {"names": 1, "packs": packs}
    assert received < SIZE * 1.01, "nothing is fetched twice"


@pytest.mark.plain("bases are fetched again")
def test_many_small_ranges_fetch_nothing_twice(large: castore.Store, proxy: FaultProxy) -> None:
    """In whatever order they are asked for."""
    begins = random.Random(2).choices(range(SIZE), k=2000)
    ranges = [(at, at + 10) for at in begins]
    assert large.gets_many("a", ranges) == [DATA[begin:end] for begin, end in ranges]
    received = sum(exchange.received_bytes for exchange in proxy.matching("GET", "/packs/"))
    assert received < SIZE * 1.01
    assert asked(proxy)["packs"] < 10


@pytest.mark.plain("bases are fetched with them")
def test_reads_here_and_there_fetch_what_they_ask_for(
    large: castore.Store, proxy: FaultProxy
) -> None:
    with large.open("a") as file:
        for begin in (12_000_000, 3_000_000, 18_000_000, 7_000_000):
            proxy.clear()
            file.seek(begin)
            assert file.read(100_000) == DATA[begin : begin + 100_000]
            assert not file.raw._bytes._window.tasks, "nothing is under way"  # type: ignore[attr-defined]
            [exchange] = proxy.exchanges
            assert exchange.received_bytes < 100_000 + 2 * 262_144 + 5_000


def test_little_is_fetched_in_vain(large: castore.Store, proxy: FaultProxy) -> None:
    """Two reads in a row, and no third: 2 MiB more than was asked for, at most."""
    with large.open("a") as file:
        file.seek(5 * MIB)
        for _ in range(2):
            file.read(100_000)
        large.close()  # when all that is under way has come
    received = sum(exchange.received_bytes for exchange in proxy.matching("GET", "/packs/"))
    assert 2 * MIB < received < 2 * MIB + 200_000 + 2 * 262_144


def test_readinto_and_readall_are_one_plan(large: castore.Store, proxy: FaultProxy) -> None:
    target = bytearray(8 * MIB)
    with large.open("a") as file:
        assert file.readinto(target) == 8 * MIB
        assert target == DATA[: 8 * MIB]
        assert asked(proxy) == {"names": 1, "packs": 2}
    with large.open("a") as file:
        assert file.read() == DATA
    assert asked(proxy)["packs"] <= 6


def test_ranges_of_several_objects_are_read_at_once(
    large: castore.Store, proxy: FaultProxy
) -> None:
    """A round trip for all manifests, and one for all frames."""
    names = [f"b{i}" for i in range(4)]
    for i, name in enumerate(names):
        large.puts(name, DATA[i * MIB : i * MIB + 300_000])
    proxy.clear()
    barrier = threading.Barrier(4)

    def meet(exchange: Exchange, connection: Connection) -> None:
        barrier.wait(20)
        connection.relay(exchange)

    proxy.inject("GET", "/packs/", meet, times=4)
    found = large.gets_ranges([(name, (1000, 5000)) for name in names])
    assert found == [DATA[i * MIB + 1000 : i * MIB + 5000] for i in range(4)]
    assert asked(proxy) == {"names": 4, "packs": 4}
