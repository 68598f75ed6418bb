"""What the probe says of servers that honour, ignore, refuse or lose."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from fault_proxy import Connection, Exchange, FaultProxy, answer, reset
from servers import QUICK, Server

from castore.errors import AccessDenied, BucketNotFound, RemoteError
from castore.s3.bucket import Bucket
from castore.s3.probe import ServerFeatures, probe
from castore.s3.settings import S3Settings

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
        honoured = s3_server.preconditions
        assert probe(bucket) == ServerFeatures(
            if_none_match=honoured,
            if_match_put=honoured,
            if_match_delete=honoured,
            ranges=True,
            list_consistent=True,
        )
        assert [entry.key for entry in bucket.list()] == ["mine"], "it cleans up"


def test_it_takes_few_requests(proxied: Bucket, proxy: FaultProxy) -> None:
    assert probe(proxied) == EVERYTHING
    assert proxy.count() <= 25
    assert proxy.count("", "/store/probe/[0-9a-f]{32}/") + proxy.count("LIST") == (
        proxy.count() - proxy.count("POST")
    )


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
@pytest.mark.parametrize("how", ["ignored", "501", "400"])
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
    assert [name for name in found.__slots__ if not getattr(found, name)] == [feature]
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
    assert probe(proxied) == ServerFeatures(False, False, False, True, True)


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


@pytest.mark.parametrize("applied", [False, True])
@pytest.mark.parametrize("nth", range(1, 9))
def test_lost_replies_do_not_change_the_answer(
    nth: int, applied: bool, proxied: Bucket, proxy: FaultProxy
) -> None:
    proxy.inject("", "", reset(applied=applied), nth=nth)
    proxy.inject("PUT", "", reset(applied=applied), nth=nth)
    assert probe(proxied) == EVERYTHING
    proxy.rules.clear()
    assert list(proxied.list()) == []


def test_errors_come_through(proxied: Bucket, proxy: FaultProxy, moto_server: Server) -> None:
    gone = S3Settings("no-such-bucket", "p", moto_server.endpoint_url)
    with Bucket(gone, backoff=QUICK) as bucket, pytest.raises(BucketNotFound):
        probe(bucket)
    proxy.inject("PUT", "", answer(403, "AccessDenied"), times=999)
    with pytest.raises(AccessDenied, match="s3:PutObject"):
        probe(proxied)
    proxy.rules.clear()
    proxy.inject("PUT", "", answer(500, "InternalError"), times=999)
    with pytest.raises(RemoteError):
        probe(proxied)
