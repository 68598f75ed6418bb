"""Lists that cost no request a name: what writers and collections tell of what names map to."""

from __future__ import annotations

import random
from contextlib import closing
from typing import Any

import pytest
from fault_proxy import FaultProxy, answer
from hypothesis import given
from hypothesis import strategies as st
from proxy import Connection, Exchange
from s3_stores import Open
from servers import Server
from threads import in_threads

import castore
from castore.errors import FormatError, UnsupportedFormat
from castore.format.index import Record
from castore.format.s3_told import NameFacts, decode_listing, encode_listing
from castore.s3 import listings
from castore.s3.client.bucket import Bucket
from castore.system.workers import Workers

pytestmark = pytest.mark.usefixtures("aws_environment")

STORE = bytes(range(16))
FACTS = st.lists(
    st.builds(
        NameFacts.of,
        st.binary(min_size=1, max_size=50),
        st.text(max_size=40),
        st.builds(
            Record,
            st.integers(0, 1 << 63),
            st.integers(-(1 << 63), (1 << 63) - 1),
            st.integers(0, 0o7777),
            st.binary(min_size=16, max_size=16),
            st.integers(0, 1 << 63),
            st.integers(0, 1 << 63),
            deltas=st.sampled_from([0, 0, 7, 1 << 63]),
        ),
    ),
    max_size=20,
)


@given(FACTS)
def test_they_come_back(facts: list[NameFacts]) -> None:
    assert decode_listing(encode_listing(STORE, facts)) == (STORE, facts)


@given(FACTS, st.data())
def test_damage_is_a_format_error(facts: list[NameFacts], data: st.DataObject) -> None:
    raw = bytearray(encode_listing(STORE, facts))
    bit = data.draw(st.integers(0, 8 * len(raw) - 1))
    raw[bit >> 3] ^= 1 << (bit & 7)
    with pytest.raises((FormatError, UnsupportedFormat)):
        decode_listing(bytes(raw))
    with pytest.raises((FormatError, UnsupportedFormat)):
        decode_listing(bytes(raw[: data.draw(st.integers(0, len(raw) - 1))]))


def asked(proxy: FaultProxy) -> dict[str, int]:
    """How often each kind of request was made for names and listings since it was asked last."""
    found: dict[str, int] = {}
    for exchange in proxy.exchanges:
        for what in ("names/", "listings/"):
            if what in exchange.query.replace("%2F", "/") or what in exchange.key:
                kind = f"{exchange.kind} {what}"
                found[kind] = found.get(kind, 0) + 1
    proxy.clear()
    return found


def test_a_cold_list_of_what_one_writer_put(open_proxied: Open, proxy: FaultProxy) -> None:
    with open_proxied(1) as store:
        for i in range(60):
            store.puts(f"a/{i:03}", random.Random(i).randbytes(50 + i), mode=0o640)
        expected = list(store.list())
    reader = open_proxied(2)
    proxy.clear()
    assert list(reader.list()) == expected
    assert asked(proxy) == {"LIST names/": 1, "LIST listings/": 1, "GET listings/": 1}
    assert [entry.info for entry in reader.scandir("a")] == expected
    assert asked(proxy) == {"LIST names/": 1}
    assert reader.gets("a/007") == random.Random(7).randbytes(57)


def test_what_changed_since_is_asked_for(open_proxied: Open, proxy: FaultProxy) -> None:
    with open_proxied(1) as store:
        for i in range(60):
            store.puts(f"a/{i:03}", b"1" * i)
    with open_proxied(2) as store:
        store.puts("a/001", b"another")
        store.delete("a/002")
        store.copy("a/003", "a/new")
        expected = list(store.list())
    reader = open_proxied(3)
    proxy.clear()
    assert list(reader.list()) == expected
    assert asked(proxy)["GET names/"] == 2
    assert [info.size for info in reader.list("a/00")][:3] == [0, 7, 3]


def test_few_names_are_not_told_of(open_proxied: Open, proxy: FaultProxy) -> None:
    with open_proxied(1) as store:
        for i in range(listings.TELL_MIN - 1):
            store.puts(f"{i}", b"")
        proxy.clear()
    assert asked(proxy) == {}


def test_a_collection_tells_of_all(
    open_proxied: Open, proxy: FaultProxy, moto_server: Server
) -> None:
    for machine in range(5):
        with open_proxied(machine) as store:
            for i in range(15):
                store.puts(f"{machine}/{i}", b"%d" % i)
    with open_proxied(8) as store:
        store.gc()
        expected = list(store.list())
        store.gc()
        assert store.check(True).clean
    with Bucket(moto_server.settings("store")) as bucket:
        [key] = listings.listed_listings(bucket)
        assert len(decode_listing(bucket.get(key).body)[1]) == 75
    reader = open_proxied(9)
    proxy.clear()
    assert list(reader.list()) == expected
    assert asked(proxy) == {"LIST names/": 1, "LIST listings/": 1, "GET listings/": 1}
    with open_proxied(10) as store:
        store.delete_prefix("1")
        for _ in range(3):
            store.gc()
        assert len(list(store.list())) == 60


def test_a_folder_with_many_names_costs_one_request_more(
    open_proxied: Open, proxy: FaultProxy, moto_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many listings there are, from its writer as from a collection."""
    monkeypatch.setattr(listings, "GUESS_MIN", 20)
    monkeypatch.setattr(listings, "FOLDER_MIN", 30)
    with open_proxied(1) as store, store.transaction() as transaction:
        for folder in "abc":
            for i in range(40):
                transaction.puts(f"{folder}/{i:03}", b"1" * i)
    for machine in (2, 3):
        reader = open_proxied(machine)
        for folder in "bac":
            proxy.clear()
            found = [entry.info for entry in reader.scandir(folder)]
            assert [info and info.size for info in found] == list(range(40))
            assert asked(proxy) == {"LIST names/": 1, "GET listings/": 1}
        proxy.clear()
        assert len(list(open_proxied(machine + 10).list())) == 120
        assert asked(proxy) == {"LIST names/": 1, "GET listings/": 3}
        with Bucket(moto_server.settings("store")) as bucket:
            bucket.delete_many(list(listings.listed_listings(bucket)))
        with open_proxied(machine + 20) as store:
            store.gc()  # which tells of all anew


def test_a_listing_that_could_not_be_read_once_is_asked_for_again(
    open_proxied: Open, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listings, "GUESS_MIN", 20)
    monkeypatch.setattr(listings, "ASK_MIN", 1000)  # no other way to learn of it
    with open_proxied(1) as store, store.transaction() as transaction:
        for i in range(30):
            transaction.puts(f"{i:03}", b"1" * i)
    backend: Any = open_proxied(2)._backend
    [listed] = backend.catalog.listed(b"")
    told = listings.Listings(backend._bucket, backend.config.store_id, backend._requests)
    refused = proxy.inject("GET", "listings/", answer(403, "AccessDenied"))
    assert told.records(listed) == {}
    assert refused.applied == 1
    assert len(told.records(listed)) == 30
    others = [(b"x" + name, etag) for name, etag in listed]
    proxy.clear()
    assert told.records(others) == told.records(others) == {}
    assert asked(proxy) == {"GET listings/": 1}  # of one that is not there, once


def test_what_is_put_while_others_are_listed_is_told_of(
    open_proxied: Open, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the same threads that read: none of them is to wait for who waits for it."""
    monkeypatch.setattr(listings, "TELL_MIN", 1)
    with open_proxied(1) as store, store.transaction() as transaction:
        for i in range(30):
            transaction.puts(f"{i:03}", b"1" * i)
    backend: Any = open_proxied(2)._backend
    [listed] = backend.catalog.listed(b"")
    with closing(Workers(1)) as requests:
        told = listings.Listings(backend._bucket, backend.config.store_id, requests)
        record = Record(0, 0, 0, bytes(16), 0, 0)

        def put(exchange: Exchange, connection: Connection) -> None:
            requests.submit(told.tell, b"new", "etag", record)
            connection.relay(exchange)

        proxy.inject("LIST", "", put)
        in_threads(lambda: told.records(listed))
        assert len(told.records(listed)) == 30
    proxy.clear()
    told.close()
    assert asked(proxy) == {"PUT listings/": 1}


def test_parts_begin_with_folders_of_many_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listings, "NAMES_MAX", 10)
    monkeypatch.setattr(listings, "FOLDER_MIN", 4)
    record = Record(0, 0, 0, bytes(16), 0, 0)
    names = [
        *(f"{i}" for i in range(3)),
        *(f"a/{i}" for i in range(3)),
        *(f"b/{i}" for i in range(12)),
    ]
    names += [*(f"c/{i}" for i in range(4)), "d", "e/x"]
    facts = [NameFacts.of(name.encode(), "e", record) for name in names]
    found = [[each.name.decode() for each in part] for part in listings.parts(facts)]
    assert [name for part in found for name in part] == names
    assert [(part[0], len(part)) for part in found] == [
        ("0", 6),
        ("b/0", 10),
        ("b/10", 2),
        ("c/0", 6),
    ]


@pytest.mark.damages_store("a listing is damaged")
def test_one_that_is_damaged_costs_time(open_moto: Open, moto_server: Server) -> None:
    with open_moto(1) as store:
        for i in range(30):
            store.puts(f"{i:02}", b"1" * i)
    with Bucket(moto_server.settings("store")) as bucket:
        [key] = listings.listed_listings(bucket)
        raw = bucket.get(key).body
        bucket.put(key, raw[:-1] + bytes([raw[-1] ^ 1]), idempotent=True)
    with open_moto(2) as store:
        assert [info.size for info in store.list()] == list(range(30))
        report = store.check(True)
        assert [(p.kind, p.severity) for p in report.problems] == [("listing", "warning")]
        assert store.check(repair=True).clean
        assert store.check(True).problems == []


def test_another_store_s_tells_nothing(open_moto: Open, moto_server: Server) -> None:
    with open_moto(1) as store:
        for i in range(20):
            store.puts(f"{i:02}", b"1")
    with Bucket(moto_server.settings("store")) as bucket:
        [key] = listings.listed_listings(bucket)
        _, facts = decode_listing(bucket.get(key).body)
        lies = [each._replace(record=each.record._replace(size=99)) for each in facts]
        bucket.put(key, encode_listing(bytes(16), lies), idempotent=True)
    with open_moto(2) as store:
        assert {info.size for info in store.list()} == {1}
    with Bucket(moto_server.settings("store")) as bucket:
        bucket.delete_many([key])


def test_a_fork_tells_of_its_own(open_moto: Open) -> None:
    import os

    store: castore.Store = open_moto(1)
    for i in range(20):
        store.puts(f"parent/{i}", b"1")
    child = os.fork()
    if not child:
        try:
            store.puts("child", b"2")
            store.close()
        finally:
            os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    store.close()
    with open_moto(2) as store:
        assert len(list(store.list())) == 21


@pytest.mark.parametrize("kind", ["GET", "PUT"])
def test_who_may_not_use_them_lists_all_the_same(
    open_proxied: Open, proxy: FaultProxy, kind: str
) -> None:
    if kind == "PUT":
        proxy.inject("PUT", "listings/", answer(403, "AccessDenied"), times=100)
    with open_proxied(1) as store:
        for i in range(70):
            store.puts(f"{i:02}", b"1" * i)
    if kind != "PUT":
        proxy.inject(kind, "listings", answer(403, "AccessDenied"), times=100)
    with open_proxied(2) as store:
        assert [info.size for info in store.list()] == list(range(70))
        store.gc(repack_below=0)
    [rule] = [rule for rule in proxy.rules if rule.times == 100]
    proxy.rules.clear()
    assert rule.applied, "it was denied"


def test_who_may_not_list_them_asks_for_each(open_proxied: Open, proxy: FaultProxy) -> None:
    with open_proxied(1) as store:
        for i in range(20):
            store.puts(f"{i:02}", b"1" * i)
    reader = open_proxied(2)
    proxy.clear()
    rule = proxy.inject("LIST", "", answer(403, "AccessDenied"), nth=2)  # behind that of names
    assert [info.size for info in reader.list()] == list(range(20))
    assert rule.applied == 1
    assert asked(proxy)["GET names/"] == 20
