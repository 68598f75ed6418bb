"""What puts cost that processes of their own make, one after the other on one machine."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from asked import requests
from fault_proxy import FaultProxy
from s3_stores import Open, make_store
from servers import Server

import castore
from castore.s3 import untold
from castore.s3.cache.store import StoreCache
from castore.s3.store import S3Store
from castore.system.lmdb_env import Index, Txn

pytestmark = pytest.mark.usefixtures("aws_environment", "quick")

FIRST = [
    "GET castore.json",
    "LIST hints",
    "POST delete",
    "PUT hints",
    "PUT names",
    "PUT packs",
    "PUT pins",
]
NEXT = ["GET castore.json", "POST delete", "PUT names", "PUT packs", "PUT pins"]


def noise(size: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(size)


@pytest.fixture
def put(open_proxied: Open, proxy: FaultProxy, moto_server: Server) -> Callable[..., list[str]]:
    """Have a process of a machine put an object; what it asked."""
    make_store(moto_server, chunk_bytes_avg=64 << 10)

    def put(machine: int, seed: int, size: int = 300_000) -> list[str]:
        proxy.clear()
        with open_proxied(machine) as store:
            store.puts(f"{machine}/{seed}", noise(size, seed))
        return requests(proxy)

    return put


@pytest.mark.plain("bases are asked for as well")
def test_those_that_follow_neither_listen_nor_tell(put: Callable[..., list[str]]) -> None:
    assert put(1, 0) == FIRST  # it may be the only one that this cache ever sees
    assert put(1, 1) == NEXT
    assert put(1, 2) == NEXT
    prices = castore.Prices()
    assert prices.requests(puts=3, gets=1) < 0.65 * prices.requests(puts=5, gets=1)


def test_one_of_them_tells_of_all(
    put: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(4):
        put(1, seed)
    monkeypatch.setattr(untold, "UNTOLD_S", 0)
    assert "PUT hints" in put(1, 4)
    monkeypatch.setattr(untold, "UNTOLD_S", 600)
    assert "PUT hints" not in put(1, 5)  # they wait anew
    for seed in range(5):
        assert "PUT packs" not in put(2, seed)
    assert "PUT packs" in put(2, 5)


def test_much_is_told_at_once(
    put: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    put(1, 0)
    monkeypatch.setattr(untold, "UNTOLD_FRAMES_MAX", 12)  # of some 4 each
    asked = [put(1, seed) for seed in range(1, 5)]
    assert ["PUT hints" in each for each in asked] == [False, False, True, False]
    assert "PUT hints" in put(1, 5, size=3_000_000)
    for seed in range(5):
        assert "PUT packs" not in put(2, seed)


def test_who_looks_many_chunks_up_listens_first(put: Callable[..., list[str]]) -> None:
    put(1, 0)
    put(2, 7, size=8_000_000)  # told at once: the machine is new
    asked = put(1, 7, size=8_000_000)
    assert "LIST hints" in asked
    assert "PUT packs" not in asked


def test_it_is_listened_again_after_a_while(
    put: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    put(1, 0)
    put(2, 7)
    asked = put(1, 1)
    assert "LIST hints" not in asked
    monkeypatch.setattr(untold, "LISTED_S", 0)
    asked = put(1, 2)
    assert "LIST hints" in asked
    assert "PUT packs" not in put(1, 7)


def test_what_is_collected_before_is_not_told(
    open_proxied: Open, put: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    put(1, 0)
    put(1, 1)
    with open_proxied(1) as store:
        backend = store._backend
        assert isinstance(backend, S3Store)
        assert len(backend._hints._untold.packs()) == 1
        store.delete("1/1")
        for _ in range(2):
            store.gc(grace_s=0)
        assert backend._hints._untold.packs() == []


def test_a_rebuilt_index_tells_of_it(open_proxied: Open, put: Callable[..., list[str]]) -> None:
    put(1, 0)
    put(1, 1)
    with open_proxied(1) as store:
        store.rebuild_index()
    assert "PUT packs" not in put(2, 1)
    with open_proxied(1) as store:
        backend = store._backend
        assert isinstance(backend, S3Store)
        assert backend._hints._untold.packs() == []


def test_damaged_rows_are_no_packs(open_proxied: Open, put: Callable[..., list[str]]) -> None:
    put(1, 0)
    put(1, 1)
    with open_proxied(1) as store:
        backend = store._backend
        assert isinstance(backend, S3Store)
        cache, left = backend._cache, backend._hints._untold
        [(pack_id, _)] = left.packs()

        def damage(index: Index, txn: Txn) -> None:
            key = b"untold " + pack_id
            raw = bytearray(txn.get(key, db=index.meta))
            raw[-3] ^= 1
            txn.put(key, bytes(raw), db=index.meta)

        cache.write(damage)
        assert left.packs() == []
    assert "PUT packs" in put(1, 2)


def test_without_a_cache_all_is_told_at_once(
    put: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("castore.s3.store.cache_folder", lambda store_id, place: None)
    assert put(1, 0) == FIRST
    assert put(2, 1) == [*FIRST[:1], "GET hints", *FIRST[1:]]


def test_with_a_cache_that_takes_nothing_all_is_told_at_once(
    put: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a disk that is full: what fails there is left out without a word."""
    put(1, 0)
    monkeypatch.setattr(StoreCache, "write", lambda cache, use: None)
    assert "PUT hints" in put(1, 1)
