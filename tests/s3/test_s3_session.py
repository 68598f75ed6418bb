"""The writer's half of the protocol that keeps collectors from deleting what names refer to."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from fault_proxy import FaultProxy, reset
from proxy import Connection, Exchange
from s3_stores import Open
from servers import QUICK, Server
from threads import in_threads

import castore
from castore.errors import CommitUnknown, FormatError, StoreIOError
from castore.format.s3 import new_pack_id, new_session_id
from castore.format.s3_gc import GcState, decode_pin, encode_condemned, encode_state
from castore.s3 import lease as session
from castore.s3.client.bucket import Bucket
from castore.s3.client.put_once import Landed
from castore.s3.condemned import CondemnedPacks
from castore.s3.keys import pack_key, pin_key
from castore.s3.lease import SESSION_S_MAX, WriterLease
from castore.system.workers import Workers

STORE = bytes(range(16))


@pytest.fixture
def requests() -> Iterator[Workers]:
    workers = Workers(4)
    yield workers
    workers.close()


@pytest.fixture
def via(moto_server: Server, proxy: FaultProxy, quick: None) -> Iterator[Bucket]:
    """A bucket through the proxy."""
    with Bucket(moto_server.settings(endpoint_url=proxy.url), backoff=QUICK) as bucket:
        yield bucket


@pytest.fixture
def writing(via: Bucket, requests: Workers) -> WriterLease:
    return WriterLease(via, STORE, requests, CondemnedPacks(via, STORE))


def foreign_packs(bucket: Bucket, count: int) -> list[bytes]:
    """Of another session, and there."""
    other = new_session_id()
    found = [new_pack_id(other) for _ in range(count)]
    for pack_id in found:
        bucket.put(pack_key(pack_id), b"pack", idempotent=True)
    return found


def pins_of(bucket: Bucket, writing: WriterLease) -> list[set[bytes]]:
    """What each pin lists, in order."""
    found = []
    for number, entry in enumerate(bucket.list(f"pins/{writing.id.hex()}/")):
        assert entry.key == pin_key(writing.id, number)
        reply = bucket.get(entry.key)
        assert reply is not None
        store_id, owner, packs = decode_pin(reply.body)
        assert (store_id, owner) == (STORE, writing.id)
        found.append(set(packs))
    return found


def state_is(bucket: Bucket, phase: str, packs: list[bytes], version: int = 1) -> None:
    key = f"gc/condemned/{version}"
    bucket.put(key, encode_condemned(STORE, bytes(16), packs), idempotent=True)
    state = GcState(version, phase, os.urandom(16), None if phase == "idle" else key)
    bucket.put("gc/state", encode_state(state), idempotent=True)


def test_the_first_pin_precedes_the_first_pack(via: Bucket, writing: WriterLease) -> None:
    assert pins_of(via, writing) == []
    first, second = writing.new_pack(), writing.new_pack()
    assert first != second
    assert pins_of(via, writing) == [set()]
    assert writing.rely_on([first, second]) == set()  # its own need no pin
    assert pins_of(via, writing) == [set()]


def test_reuse_is_pinned_then_the_plans_are_read_then_the_packs_are_looked_for(
    via: Bucket, writing: WriterLease, proxy: FaultProxy
) -> None:
    one, two, three = foreign_packs(via, 3)
    proxy.clear()
    assert writing.rely_on([one, two]) == set()
    order = [(exchange.kind, exchange.key.split("/")[3]) for exchange in proxy.exchanges]
    assert order == [("PUT", "pins"), ("GET", "gc"), ("HEAD", "packs"), ("HEAD", "packs")]
    assert "if-none-match" in proxy.exchanges[0].headers
    proxy.clear()
    assert writing.rely_on([two, one]) == set()
    assert proxy.exchanges == []
    assert writing.rely_on([one, three]) == set()
    assert pins_of(via, writing) == [{one, two}, {three}]


def test_names_are_put_while_packs_are_looked_for(
    via: Bucket, writing: WriterLease, proxy: FaultProxy, requests: Workers
) -> None:
    """By the same threads that look for them: none of them is to wait for who waits for it."""
    one, two = foreign_packs(via, 2)

    def put_name() -> None:
        with writing.naming():
            pass

    def put_many(exchange: Exchange, connection: Connection) -> None:
        for _ in range(requests.threads):
            requests.submit(put_name)
        connection.relay(exchange)

    for key in ("/pins/", "/gc/state"):
        proxy.inject("", key, put_many)
    in_threads(lambda: writing.rely_on([one, two]))
    assert proxy.count("HEAD", "/packs/") == 2


@pytest.mark.parametrize("phase", ["condemned", "sweeping"])
def test_what_is_condemned_or_gone_is_not_relied_on(
    phase: str, via: Bucket, writing: WriterLease
) -> None:
    doomed, gone, good = foreign_packs(via, 3)
    state_is(via, phase, [doomed, gone])
    via.delete_many([pack_key(gone)])
    lost = foreign_packs(via, 1)[0]
    via.delete_many([pack_key(lost)])
    assert writing.rely_on([doomed, gone, good, lost]) == {doomed, gone, lost}
    # They are asked for again: the round may have ended without them.
    state_is(via, "idle", [])
    assert writing.rely_on([doomed, good, lost]) == {lost}
    assert pins_of(via, writing) == [{doomed, gone, good, lost}, {doomed, lost}]


def test_a_list_that_is_gone_belongs_to_a_round_that_ended(
    via: Bucket, writing: WriterLease, proxy: FaultProxy
) -> None:
    [pack] = foreign_packs(via, 1)
    state_is(via, "condemned", [pack])
    via.delete_many(["gc/condemned/1"])
    with pytest.raises(FormatError, match="gc/state refers to 'gc/condemned/1'"):
        writing.rely_on([pack])

    def ends(exchange: Exchange, connection: Connection) -> None:
        """Between the reading of the state and of the list."""
        state_is(via, "idle", [], version=2)
        connection.relay(exchange)

    proxy.inject("GET", "/gc/condemned/1", ends)
    assert writing.rely_on([pack]) == set()


def test_a_list_of_another_store_is_an_error(via: Bucket, requests: Workers) -> None:
    [pack] = foreign_packs(via, 1)
    state_is(via, "condemned", [pack])
    with pytest.raises(FormatError, match="another store"):
        WriterLease(via, bytes(16), requests, CondemnedPacks(via, bytes(16))).rely_on([pack])


def test_a_pin_that_failed_is_not_tried_under_its_number(
    via: Bucket, writing: WriterLease, proxy: FaultProxy
) -> None:
    rule = proxy.inject("PUT", "/pins/.*/0", reset(applied=True), times=99)
    proxy.inject("GET", "/pins/.*/0", reset(), times=99)
    with pytest.raises(StoreIOError, match=r"a pin could not be written .*: repeat the put"):
        writing.new_pack()
    assert rule.applied
    proxy.rules.clear()
    assert writing.rely_on(foreign_packs(via, 1)) == set()
    assert [len(packs) for packs in pins_of(via, writing)] == [0, 1]
    writing.close()  # what may have landed, or may yet, keeps them
    assert len(pins_of(via, writing)) == 2


def test_pins_go_when_the_last_put_has_ended(via: Bucket, writing: WriterLease) -> None:
    writing.join()
    writing.join()
    writing.new_pack()
    writing.leave()
    writing.close()
    assert pins_of(via, writing) == [set()]
    writing.leave()
    assert pins_of(via, writing) == []


def test_a_session_lasts_a_day(
    via: Bucket, writing: WriterLease, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = session.boot_clock()
    for age, usable, may_sign in (
        (SESSION_S_MAX / 2 - 5, True, True),
        (SESSION_S_MAX / 2 + 5, False, True),
        (SESSION_S_MAX - 60, False, True),
        (SESSION_S_MAX + 1, False, False),
    ):
        monkeypatch.setattr(session, "boot_clock", lambda age=age: began + age)
        assert writing.usable == usable
        if may_sign:
            writing.check_age()
        else:
            with pytest.raises(StoreIOError, match="longer than a day"):
                writing.check_age()


def test_a_day_by_the_server_s_clock_counts_too(via: Bucket, writing: WriterLease) -> None:
    writing.new_pack()
    began = writing._server_began
    assert began is not None
    writing.check_time(Landed(b"", "", 0, began + SESSION_S_MAX - 1, any_unknown=False))
    with pytest.raises(CommitUnknown, match="server's clock"):
        writing.check_time(Landed(b"", "", 0, began + SESSION_S_MAX, any_unknown=False))


def test_a_pin_whose_reply_has_no_date_does_not_make_a_put_late(
    writing: WriterLease, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = session.put_once

    def undated(*arguments: Any, **options: Any) -> Landed:
        return put(*arguments, **options)._replace(date=0.0)

    monkeypatch.setattr(session, "put_once", undated)
    writing.new_pack()
    monkeypatch.setattr(session, "put_once", put)
    writing.check_time(Landed(b"", "", 0, 1_800_000_000.0, any_unknown=False))


def test_a_store_begins_another_session_in_time(
    open_proxied: Open, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a day after the first, whose pins then go; a put that takes a day is refused."""
    store = open_proxied()
    store.puts("a", bytes(range(256)) * 1000)
    assert len(sessions(proxy)) == 1
    clock = session.boot_clock
    monkeypatch.setattr(session, "boot_clock", lambda: clock() + SESSION_S_MAX * 0.6)
    proxy.clear()
    store.puts("b", bytes(range(255, -1, -1)) * 1000)
    store.puts("a again", bytes(range(256)) * 1000)
    assert len(sessions(proxy)) == 1
    assert proxy.count("HEAD", "/packs/") == 1  # its pack is another session's by now
    assert proxy.count("POST") == 1
    writer = store.open("c", "wb")
    writer.write(bytes(300_000))
    monkeypatch.setattr(session, "boot_clock", lambda: clock() + SESSION_S_MAX * 1.7)
    with pytest.raises(StoreIOError, match="longer than a day"):
        writer.close()
    assert sorted(store.names()) == ["a", "a again", "b"]


def sessions(proxy: FaultProxy) -> set[str]:
    found = [re.search("/pins/([0-9a-f]+)/", each.key) for each in proxy.matching("PUT", "/pins/")]
    return {match[1] for match in found if match is not None}


def test_closing_waits_for_what_relies_on_the_pins(open_proxied: Open, proxy: FaultProxy) -> None:
    store = open_proxied()
    store.puts("a", bytes(range(256)) * 1000)
    landing, go = threading.Event(), threading.Event()

    def slow(exchange: Exchange, connection: Connection) -> None:
        landing.set()
        go.wait(20)
        connection.relay(exchange)

    proxy.inject("PUT", "/names/b", slow)
    failed: list[BaseException] = []

    def put() -> None:
        try:
            store.puts("b", bytes(range(255, -1, -1)) * 1000)
        except castore.errors.CastoreError as error:
            failed.append(error)

    closing = threading.Thread(target=store.close)
    putting = threading.Thread(target=put)
    putting.start()
    assert landing.wait(10)
    closing.start()
    closing.join(0.5)
    assert proxy.count("POST") == 0
    go.set()
    putting.join()
    closing.join()
    order = [each.kind for each in proxy.exchanges if "/names/b" in each.key or each.kind == "POST"]
    assert order[-2:] == ["PUT", "POST"]
    if not failed:
        assert open_proxied(2).gets("b") == bytes(range(255, -1, -1)) * 1000


def test_an_interrupted_commit_keeps_its_pins(
    open_proxied: Open, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_proxied()

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    store.puts("a", bytes(range(256)) * 1000)
    monkeypatch.setattr(Bucket, "put_attempt", interrupt)
    with pytest.raises(KeyboardInterrupt):
        store.puts("b", b"b")
    monkeypatch.undo()
    store.close()
    assert proxy.count("POST") == 0
