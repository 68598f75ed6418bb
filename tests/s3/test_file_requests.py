"""What reads through file objects cost, in requests and bytes, counted by a proxy."""

from __future__ import annotations

import random

import pytest
from fault_proxy import FaultProxy
from s3_stores import Open

pytestmark = pytest.mark.usefixtures("aws_environment")

MIB = 1 << 20
SIZE = 20_000_000  # in packs of 4, 8 and 16 MiB
DATA = random.Random(1).randbytes(SIZE)


@pytest.fixture
def opened(open_proxied: Open, proxy: FaultProxy) -> Open:
    """Stores that another machine put the object into."""
    open_proxied(1).puts("a", DATA)
    proxy.clear()
    return open_proxied


def asked(proxy: FaultProxy) -> tuple[int, int, int]:
    """Requests for manifests, for packs, and the bytes of these, since it was asked last."""
    packs = proxy.matching("GET", "/packs/")
    found = (
        proxy.count("GET", "/names/"),
        len(packs),
        sum(exchange.received_bytes for exchange in packs),
    )
    proxy.clear()
    return found


def test_a_large_read_is_a_request_for_each_pack(opened: Open, proxy: FaultProxy) -> None:
    with opened(2).open("a") as file:
        assert file.read(8 * MIB) == DATA[: 8 * MIB]
    manifests, requests, received = asked(proxy)
    assert (manifests, requests) == (1, 2)
    assert received <= 8 * MIB + (256 << 10) + 10_000, "a chunk more, and headers of frames"
    with opened(2).open("a") as file:
        assert file.read(8 * MIB) == DATA[: 8 * MIB]
    assert asked(proxy) == (1, 0, 0), "the disk has it"


@pytest.mark.parametrize(("step", "requests"), [(MIB, 9), (256 << 10, 10), (64 << 10, 10)])
def test_reads_that_follow_each_other_are_few_requests(
    opened: Open, proxy: FaultProxy, step: int, requests: int
) -> None:
    with opened(2).open("a") as file:
        assert b"".join(iter(lambda: file.read(step), b"")) == DATA
    manifests, asked_of_packs, received = asked(proxy)
    assert (manifests, asked_of_packs) == (1, requests)
    assert received <= SIZE * 1.02, "nothing is fetched twice"


def test_reads_here_and_there_fetch_nothing_ahead(opened: Open, proxy: FaultProxy) -> None:
    with opened(2).open("a") as file:
        asked(proxy)
        for at in (15 * MIB, 3 * MIB, 9 * MIB):
            file.seek(at)
            assert file.read(100_000) == DATA[at : at + 100_000]
            assert not file.raw._bytes._window.tasks  # type: ignore[attr-defined]
            manifests, requests, received = asked(proxy)
            assert (manifests, requests) == (0, 1)
            assert received <= 100_000 + 2 * (256 << 10)


def test_little_is_fetched_in_vain(opened: Open, proxy: FaultProxy) -> None:
    """Two reads in a row, and no third: 2 MiB more than was asked for, at most."""
    with opened(2).open("a") as file:
        file.seek(5 * MIB)
        for _ in range(2):
            file.read(100_000)
    _, _, received = asked(proxy)
    assert received <= 200_000 + 2 * MIB + 2 * (256 << 10)
