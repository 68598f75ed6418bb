"""What the probe says of servers that honour, ignore, refuse or lose."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

import pytest
from fault_proxy import Connection, Exchange, FaultProxy, answer, reset
from servers import QUICK, Server

import castore
from castore.errors import AccessDenied, BucketNotFound, RemoteError
from castore.s3.client.bucket import Bucket, Reply
from castore.s3.client.faults import Late, fault_of
from castore.s3.client.probe import (
    BOTH_WIN,
    IGNORED,
    REFUSED,
    UNKNOWN,
    UNQUOTED,
    ServerFeatures,
    probe,
)
from castore.s3.client.settings import S3Settings

EVERYTHING = ServerFeatures(
    if_none_match=True,
    if_match_put=True,
    if_match_delete=True,
    ranges=True,
    list_consistent=True,
)


@pytest.fixture
def proxied(moto_server: Server, proxy: FaultProxy) -> Iterator[Bucket]:
    with Bucket(moto_server.settings(endpoint_url=proxy.url), backoff=QUICK) as bucket:
        yield bucket


def test_both_servers(s3_server: Server) -> None:
    with Bucket(s3_server.settings(), backoff=QUICK) as bucket:
        bucket.put("mine", b"stays")
        found = probe(bucket)
        assert (found == EVERYTHING) == s3_server.preconditions
        assert found.ranges
        assert found.list_consistent
        assert found.ranges_past_end
        assert [entry.key for entry in bucket.list()] == ["mine"], "it cleans up"


@pytest.mark.preconditions_ignored
def test_preconditions_that_are_ignored(rclone_server: Server) -> None:
    with Bucket(rclone_server.settings(), backoff=QUICK) as bucket:
        found = probe(bucket)
    assert found == ServerFeatures(False, False, False, True, True)
    assert set(found.instead.values()) == {IGNORED}


def test_it_takes_few_requests(proxied: Bucket, proxy: FaultProxy) -> None:
    assert probe(proxied) == EVERYTHING
    assert proxy.count() <= 40
    assert proxy.count("", "/store/probe/[0-9a-f]{32}/") + proxy.count("LIST") == (
        proxy.count() - proxy.count("POST")
    )


UNSIGNED = pytest.mark.own_server("headers are taken away that were signed")


def without(*headers: str) -> object:
    """Pass the request on as if the server did not know these headers."""

    def fault(exchange: Exchange, connection: Connection) -> None:
        lines = exchange.head.split(b"\r\n")
        exchange.head = b"\r\n".join(
            line for line in lines if line.partition(b":")[0].lower().decode() not in headers
        )
        connection.relay(exchange)

    return fault


@pytest.mark.parametrize(
    ("kind", "header", "feature"),
    [
        ("PUT", "if-none-match", "if_none_match"),
        ("PUT", "if-match", "if_match_put"),
        ("DELETE", "if-match", "if_match_delete"),
        ("GET", "range", "ranges"),
    ],
)
@pytest.mark.parametrize("how", [pytest.param("ignored", marks=UNSIGNED), "501", "400"])
def test_one_feature_is_missing(
    how: str, kind: str, header: str, feature: str, proxied: Bucket, proxy: FaultProxy
) -> None:
    refuse = without(header) if how == "ignored" else answer(int(how), "NotImplemented")

    def fault(exchange: Exchange, connection: Connection) -> None:
        if header in exchange.headers:
            refuse(exchange, connection)  # type: ignore[operator]
        else:
            connection.relay(exchange)

    proxy.inject(kind, "", fault, times=999)
    found = probe(proxied)
    missing = [name for name in found.__slots__ if not getattr(found, name) and name != "instead"]
    assert missing == [feature, *(["ranges_past_end"] if feature == "ranges" else [])]
    if feature != "ranges":
        assert found.instead == {feature: IGNORED if how == "ignored" else UNKNOWN}
    proxy.rules.clear()
    assert list(proxied.list()) == []


def test_a_precondition_that_always_fails_is_not_honoured(
    proxied: Bucket, proxy: FaultProxy
) -> None:
    def fault(exchange: Exchange, connection: Connection) -> None:
        if "if-match" in exchange.headers or "if-none-match" in exchange.headers:
            answer(412, "PreconditionFailed")(exchange, connection)
        else:
            connection.relay(exchange)

    proxy.inject("", "", fault, times=999)
    found = probe(proxied)
    assert found == ServerFeatures(False, False, False, True, True)
    assert set(found.instead.values()) == {REFUSED}


def test_etags_that_are_only_known_without_quotes(proxied: Bucket, proxy: FaultProxy) -> None:
    def fault(exchange: Exchange, connection: Connection) -> None:
        if exchange.headers.get("if-match", "").startswith('"'):
            answer(412, "PreconditionFailed")(exchange, connection)
        else:
            connection.relay(exchange)

    proxy.inject("", "", fault, times=999)
    found = probe(proxied)
    assert found == ServerFeatures(True, False, False, True, True)
    assert set(found.instead.values()) == {UNQUOTED}


@UNSIGNED
def test_two_at_once_that_both_win(proxied: Bucket, proxy: FaultProxy) -> None:
    """It looks, and writes later: one after the other, all is well."""
    there: set[str] = set()
    many = threading.Lock()

    def fault(exchange: Exchange, connection: Connection) -> None:
        if "if-none-match" not in exchange.headers:
            connection.relay(exchange)
            return
        with many:
            seen = exchange.key in there
        if seen:
            answer(412, "PreconditionFailed")(exchange, connection)
            return
        time.sleep(0.2)
        with many:
            there.add(exchange.key)
        without("if-none-match")(exchange, connection)  # type: ignore[operator]

    proxy.inject("PUT", "", fault, times=999)
    found = probe(proxied)
    assert found == replace(EVERYTHING, if_none_match=False)
    assert found.instead == {"if_none_match": BOTH_WIN}
    proxy.rules.clear()
    assert list(proxied.list()) == []


@UNSIGNED
def test_two_of_many_at_once_are_enough(proxied: Bucket, proxy: FaultProxy) -> None:
    won: list[str] = []
    many = threading.Lock()

    def fault(exchange: Exchange, connection: Connection) -> None:
        with many:
            won.append(exchange.key)
            wins = won.count(exchange.key) <= 2
        if wins:
            without("if-none-match")(exchange, connection)  # type: ignore[operator]
        else:
            answer(412, "PreconditionFailed")(exchange, connection)

    proxy.inject("PUT", "/probe/.*-race$", fault, times=999)
    assert probe(proxied).instead == {"if_none_match": BOTH_WIN}


def test_a_deletion_that_is_not_done_is_not_honoured(proxied: Bucket, proxy: FaultProxy) -> None:
    """It is refused where it must be, and else answered as if it had been."""

    def fault(exchange: Exchange, connection: Connection) -> None:
        if exchange.headers.get("if-match", "").strip('"0'):
            answer(204)(exchange, connection)
        else:
            connection.relay(exchange)

    proxy.inject("DELETE", "", fault, times=999)
    found = probe(proxied)
    assert not found.if_match_delete
    assert found.instead["if_match_delete"] == IGNORED


def test_what_fails_in_the_middle_leaves_no_keys(proxied: Bucket, proxy: FaultProxy) -> None:
    proxy.inject("DELETE", "", answer(403, "AccessDenied"), times=999)
    with pytest.raises(AccessDenied, match="s3:DeleteObject"):
        probe(proxied)
    assert proxy.count("PUT") > 5
    proxy.rules.clear()
    assert list(proxied.list()) == []


@pytest.mark.usefixtures("cache_dir", "quick")
@pytest.mark.parametrize(
    ("status", "code"), [(416, "InvalidRange"), (416, "X"), (400, "InvalidRange")]
)
@pytest.mark.sampled(4)
def test_ranges_that_end_behind_the_last_byte(
    status: int, code: str, proxied: Bucket, proxy: FaultProxy, moto_server: Server
) -> None:
    """Whoever reads a name for the first time does not know its size."""
    client = moto_server.client()

    def size_of(key: str) -> int:
        listed = client.list_objects_v2(Bucket=moto_server.bucket, Prefix=key)
        return next((e["Size"] for e in listed.get("Contents", ()) if e["Key"] == key), 1 << 40)

    def fault(exchange: Exchange, connection: Connection) -> None:
        last = int(exchange.headers.get("range", "bytes=0-0").rpartition("-")[2])
        if last >= max(size_of(exchange.key.split("/", 2)[2]), 1):
            answer(status, code)(exchange, connection)
        else:
            connection.relay(exchange)

    proxied.put("ten", b"0123456789")
    proxied.put("none", b"")
    proxy.inject("GET", "", fault, times=999)
    etag = proxied.head("ten").etag
    assert proxied.get("ten", byte_range=(0, 10)).body == b"0123456789"
    assert not proxied.refuses_ranges_past_end
    reply = proxied.get("ten", byte_range=(4, 1000))
    assert (reply.body, reply.size, reply.etag) == (b"456789", 10, etag)
    assert proxied.get("ten", byte_range=(4, 1000), if_none_match=etag) is None
    assert proxied.get("ten", byte_range=(10, 11)).body == b""
    assert proxied.get("none", byte_range=(0, 11)).body == b""
    assert probe(proxied) == replace(EVERYTHING, ranges_past_end=False)
    with castore.open(Server(proxy.url, moto_server.bucket, True).url("store2")) as store:
        store.puts("inline", b"x")
        store.puts("large", bytes(range(256)) * 1000)
        assert store.check(read_data=True).problems == []
    with castore.open(Server(proxy.url, moto_server.bucket, True).url("store2")) as store:
        assert store.gets("large") == bytes(range(256)) * 1000


@UNSIGNED
def test_a_write_that_is_refused_and_done_is_not_honoured(
    proxied: Bucket, proxy: FaultProxy
) -> None:
    def fault(exchange: Exchange, connection: Connection) -> None:
        lines = exchange.head.split(b"\r\n")
        exchange.head = b"\r\n".join(line for line in lines if b"If-None-Match:" not in line)
        answer(412, "PreconditionFailed", applied=True)(exchange, connection)

    proxy.inject("PUT", "/probe/[0-9a-f]+/0$", fault, nth=2)
    assert probe(proxied) == replace(EVERYTHING, if_none_match=False)


def test_a_stale_listing(proxied: Bucket, proxy: FaultProxy) -> None:
    empty = b"<ListBucketResult><Name>b</Name><IsTruncated>false</IsTruncated></ListBucketResult>"
    proxy.inject("LIST", "", answer(200, body=empty))
    assert probe(proxied).list_consistent is False


@pytest.mark.parametrize("nth", [1, 2, 3])
def test_a_listing_that_is_one_write_late(
    nth: int, proxied: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Be it after a put, after another over it, or after the deletion."""
    listing = proxied.list
    seen: list[list[Any]] = [[]]

    def late(prefix: str = "") -> Iterator[Any]:
        seen.append(list(listing(prefix)))
        return iter(seen[-2] if len(seen) - 1 == nth else seen[-1])

    monkeypatch.setattr(proxied, "list", late)
    assert probe(proxied) == replace(EVERYTHING, list_consistent=False)


@pytest.mark.parametrize("other", [{"body": b"wrong"}, {"size": 1}])
def test_a_range_of_other_bytes_is_not_what_was_asked_for(
    other: dict[str, Any], proxied: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    get = proxied.get

    def wrong(key: str, **options: Any) -> Any:
        reply = get(key, **options)
        return reply._replace(**other) if "byte_range" in options else reply

    monkeypatch.setattr(proxied, "get", wrong)
    found = probe(proxied)
    assert not found.ranges
    assert found.ranges_past_end == ("size" in other)


@pytest.mark.parametrize("nth", range(1, 9))
@pytest.mark.sampled(5)  # the first, and that of a range
def test_a_key_that_is_not_found_right_after_it_was_put(
    nth: int, proxied: Bucket, proxy: FaultProxy
) -> None:
    """Or that somebody else has removed: a feature may be missing then, and nothing else."""
    proxy.inject("GET", "/probe/", answer(404, "NoSuchKey"), nth=nth)
    found = probe(proxied)
    missing = [name for name, there in asdict(found).items() if there is False]
    assert len(missing) <= 1


@pytest.mark.parametrize("applied", [False, True])
@pytest.mark.parametrize("nth", range(1, 9))
@pytest.mark.sampled(7)
def test_lost_replies_do_not_change_the_answer(
    nth: int, applied: bool, proxied: Bucket, proxy: FaultProxy
) -> None:
    proxy.inject("", "", reset(applied=applied), nth=nth)
    proxy.inject("PUT", "", reset(applied=applied), nth=nth)
    assert probe(proxied) == EVERYTHING
    proxy.rules.clear()
    assert list(proxied.list()) == []


@pytest.mark.parametrize("applied", [False, True])
@pytest.mark.parametrize("header", ["if-none-match", "if-match"])
def test_replies_that_are_lost_for_a_while_do_not_change_the_answer(
    header: str, applied: bool, proxied: Bucket, proxy: FaultProxy
) -> None:
    """A conditional write is not repeated by itself: its outcome would be its own."""
    lose, lost = reset(applied=applied), 0

    def fault(exchange: Exchange, connection: Connection) -> None:
        nonlocal lost
        if header in exchange.headers and lost < QUICK.attempts - 1:
            lost += 1
            lose(exchange, connection)
        else:
            connection.relay(exchange)

    proxy.inject("", "", fault, times=999)
    assert probe(proxied) == EVERYTHING
    assert lost == QUICK.attempts - 1
    proxy.rules.clear()
    assert list(proxied.list()) == []


def test_what_was_not_sent_in_time_is_looked_at_anew(
    proxied: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine slept, or was busy, before a conditional write was sent."""
    attempt, late = proxied.put_attempt, [Late()]

    def put_attempt(key: str, *arguments: Any, **options: Any) -> Reply:
        if options.get("if_none_match") and late:
            failure = late.pop()
            raise fault_of(failure, proxied._attempts.request("s3:PutObject", key)) from failure
        return attempt(key, *arguments, **options)

    monkeypatch.setattr(proxied, "put_attempt", put_attempt)
    assert probe(proxied) == EVERYTHING


def test_errors_come_through(proxied: Bucket, proxy: FaultProxy, moto_server: Server) -> None:
    gone = S3Settings("no-such-bucket", "p", moto_server.endpoint_url)
    with Bucket(gone, backoff=QUICK) as bucket, pytest.raises(BucketNotFound):
        probe(bucket)
    proxy.inject("PUT", "", answer(403, "AccessDenied"), times=999)
    proxy.inject("POST", "", answer(403, "AccessDenied"), times=999)  # nor may it be removed
    with pytest.raises(AccessDenied, match="s3:PutObject"):
        probe(proxied)
    proxy.rules.clear()
    proxy.inject("PUT", "", answer(500, "InternalError"), times=999)
    with pytest.raises(RemoteError):
        probe(proxied)
