"""A server that is broken, or means harm: no reply takes more memory or time than it may, and what
can't be understood is one of castore's errors."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fault_proxy import Connection, Exchange, Fault, FaultProxy, answer
from servers import QUICK, Server

from castore.errors import CastoreError, RemoteError
from castore.s3.client import attempts, connection
from castore.s3.client.bucket import Bucket, KeyAbsent, OutcomeUnknown
from castore.s3.client.retries import Backoff

ONCE = Backoff(attempts=1)
SLOWLY = {"connect_timeout_s": 0.5, "read_timeout_s": 0.5}


@pytest.fixture
def bucket(moto_server: Server, proxy: FaultProxy) -> Iterator[Bucket]:
    with Bucket(moto_server.settings(endpoint_url=proxy.url), backoff=QUICK) as bucket:
        bucket.put("key", b"0123456789")
        yield bucket


def raw(head: bytes, body: bytes = b"") -> Fault:
    """Say exactly this."""

    def fault(exchange: Exchange, connection: Connection) -> None:
        for _ in connection.request_blocks(exchange):
            """It is not passed on."""
        exchange.status = 200
        connection.send(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n\r\n" + body)

    return fault


def drip(text: bytes) -> Fault:
    """A byte, and another one just before the socket's timeout is over."""

    def fault(exchange: Exchange, connection: Connection) -> None:
        for _ in connection.request_blocks(exchange):
            """It is not passed on."""
        for i in range(len(text)):
            connection.send(text[i : i + 1])
            time.sleep(0.2)

    return fault


OPERATIONS: dict[str, Callable[[Bucket], Any]] = {
    "GET": lambda bucket: bucket.get("key"),
    "HEAD": lambda bucket: bucket.head("key"),
    "LIST": lambda bucket: list(bucket.list()),
    "PUT": lambda bucket: bucket.put("key", b"x", idempotent=True),
    "POST": lambda bucket: bucket.delete_many(["key"]),
}


# ---------------------------------------------------------------- time


@pytest.mark.parametrize("kind", OPERATIONS)
@pytest.mark.parametrize("part", ["head", "body", "last body"])
def test_a_drip_ends(part: str, kind: str, moto_server: Server, proxy: FaultProxy) -> None:
    close = b"Connection: close\r\n" if part == "last body" else b""
    head = b"HTTP/1.1 200 OK\r\nETag: x\r\n" + close + b"Content-Length: 500\r\n\r\n"
    text = b"HTTP/1.1 200 OK\r\nX-A: " + b"a" * 500 if part == "head" else head + b"<" * 500
    if kind == "HEAD" and part != "head":
        pytest.skip("it has none")
    fault, ended = drip(text), threading.Event()

    def until_it_ends(exchange: Exchange, connection: Connection) -> None:
        try:
            fault(exchange, connection)
        finally:
            ended.set()

    settings = moto_server.settings(endpoint_url=proxy.url, **SLOWLY)
    with Bucket(moto_server.settings()) as direct:
        direct.put("key", b"0123456789")
    with Bucket(settings, backoff=ONCE) as bucket:
        proxy.inject(kind, "", until_it_ends, times=99)
        began = time.monotonic()
        with pytest.raises(RemoteError, match="given up"):
            OPERATIONS[kind](bucket)
        assert time.monotonic() - began < 10
        assert ended.wait(20), "nobody goes on reading"
        proxy.rules.clear()
        bucket.backoff = QUICK  # a busy machine may be slower than the time-out
        assert bucket.get("key").body == b"0123456789", "the next request is answered"


def test_what_is_slow_but_moves_is_waited_for(moto_server: Server, proxy: FaultProxy) -> None:
    body = b"x" * 200_000

    def fault(exchange: Exchange, connection: Connection) -> None:
        connection.send(b"HTTP/1.1 200 OK\r\nETag: x\r\nContent-Length: 200000\r\n\r\n")
        for i in range(0, len(body), 20_000):
            connection.send(body[i : i + 20_000])
            time.sleep(0.2)

    settings = moto_server.settings(endpoint_url=proxy.url, **SLOWLY)
    with Bucket(settings, backoff=ONCE) as bucket:
        proxy.inject("GET", "", fault)
        assert bucket.get("key").body == body


# ---------------------------------------------------------------- memory


def test_more_than_was_asked_for(bucket: Bucket, proxy: FaultProxy) -> None:
    reply = answer(
        206,
        body=b"x" * 5_000_000,
        headers={"ETag": "x", "Content-Range": "bytes 0-3/10"},
    )
    proxy.inject("GET", "", reply, times=99)
    with pytest.raises(RemoteError, match="5000000 bytes, and 4 at most"):
        bucket.get("key", byte_range=(0, 4))


@pytest.mark.parametrize("said", [b"99999999999999", b"-5", b"1e9", b"", b"9" * 5000])
def test_sizes_that_are_not_believed(said: bytes, bucket: Bucket, proxy: FaultProxy) -> None:
    proxy.inject("", "", raw(b"ETag: x\r\nConnection: close\r\nContent-Length: " + said), times=99)
    for kind in ("GET", "LIST", "POST"):
        with pytest.raises(CastoreError):
            OPERATIONS[kind](bucket)


def test_no_end(bucket: Bucket, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "WHOLE_BYTES_MAX", 1 << 20)
    monkeypatch.setattr(connection, "REPLY_BYTES_MAX", 1 << 20)
    piece = b"10000\r\n" + b"<" * 65536 + b"\r\n"
    sent = []

    def fault(exchange: Exchange, connection: Connection) -> None:
        for _ in connection.request_blocks(exchange):
            """It is not passed on."""
        connection.send(b"HTTP/1.1 200 OK\r\nETag: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        for i in range(2000):  # 125 MiB
            connection.send(piece)
            sent.append(i)

    proxy.inject("", "", fault, times=99)
    for kind in ("GET", "LIST"):
        sent.clear()
        with pytest.raises(RemoteError, match="more than the 1048576 bytes"):
            OPERATIONS[kind](bucket)
        assert len(sent) < 1500


# ---------------------------------------------------------------- nonsense


def test_heads_that_are_cut(bucket: Bucket, proxy: FaultProxy) -> None:
    for lost in (b"ETag: x", b"Content-Length: 10", b"X: y"):
        proxy.rules.clear()
        proxy.inject("HEAD", "", raw(lost), times=99)
        with pytest.raises(CastoreError):
            bucket.head("key")
    proxy.rules.clear()
    proxy.inject("HEAD", "", raw(b"ETag: x"))
    assert bucket.head("key").size == 10, "it is asked again"


PAGE = b"<!DOCTYPE html><html><body>Back in a moment</body></html>"


@pytest.mark.parametrize("byte_range", [None, (2, 6)], ids=["whole", "range"])
@pytest.mark.parametrize(
    "page", [answer(200, body=PAGE), answer(200), answer(304, headers={"ETag": "x"})], ids=range(3)
)
def test_pages_of_something_in_between(
    page: Fault, byte_range: tuple[int, int] | None, bucket: Bucket, proxy: FaultProxy
) -> None:
    """They are neither the object, nor what a server without ranges answers."""
    proxy.inject("GET", "", page)
    begin, end = byte_range or (0, 10)
    assert bucket.get("key", byte_range=byte_range).body == b"0123456789"[begin:end]
    proxy.inject("GET", "", page, times=99)
    with pytest.raises(RemoteError, match="no object"):
        bucket.get("key", byte_range=byte_range)


@pytest.mark.parametrize("space", [b"", b' xmlns="http://www.w3.org/1999/xhtml"'], ids=range(2))
def test_pages_that_are_xml(space: bytes, bucket: Bucket, proxy: FaultProxy) -> None:
    """With a status and an ETag as of what was done."""
    body = b"<html" + space + b"><body>Please log in</body></html>"
    page = answer(200, headers={"ETag": '"x"'}, body=body)
    proxy.inject("DELETE", "", page)
    with pytest.raises(OutcomeUnknown):
        bucket.delete("key")
    proxy.inject("PUT", "", page)
    with pytest.raises(OutcomeUnknown):
        bucket.put("key", b"other")
    assert bucket.get("key").body == b"0123456789"
    proxy.inject("PUT", "", page)
    bucket.put("key", b"other", idempotent=True)
    assert bucket.get("key").body == b"other"


def test_a_head_that_is_cut_before_its_range(bucket: Bucket, proxy: FaultProxy) -> None:
    proxy.inject("GET", "", raw(b"ETag: x\r\nConnection: close"))
    began = time.monotonic()
    assert bucket.get("key", byte_range=(2, 6)).body == b"2345"
    assert time.monotonic() - began < 30, "what would follow is not waited for"


@pytest.mark.parametrize("kind", OPERATIONS)
@pytest.mark.parametrize(
    ("status", "code"), [(404, "NoSuchKey"), (412, "PreconditionFailed")], ids=["404", "412"]
)
def test_what_is_no_answer_to_the_request(
    status: int, code: str, kind: str, bucket: Bucket, proxy: FaultProxy
) -> None:
    """Nothing is conditional here, and only what reads one key asks whether something is there."""
    proxy.inject(kind, "", answer(status, code), times=99)
    absent = status == 404 and kind in ("GET", "HEAD")
    with pytest.raises(KeyAbsent if absent else RemoteError):
        OPERATIONS[kind](bucket)


ENTRY = (
    b"<Contents><Key>store/a</Key><Size>1</Size><ETag>x</ETag>"
    b"<LastModified>2026-01-01T00:00:00Z</LastModified></Contents>"
)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"<Key>store/a</Key>", b""),
        (b"<Size>1</Size>", b""),
        (b"<Size>1</Size>", b"<Size>many</Size>"),
        (b"<Size>1</Size>", b"<Size>" + b"9" * 5000 + b"</Size>"),
        (b"<ETag>x</ETag>", b"<ETag>" + b"x" * 100_000 + b"</ETag>"),
        (b"<ETag>x</ETag>", "<ETag>\u00fc</ETag>".encode()),
        (b"2026-01-01T00:00:00Z", b"yesterday"),
        (b"2026-01-01T00:00:00Z", b"2026-01-01T00:00:00"),  # where?
        (b"2026-01-01T00:00:00Z", b"99999-01-01T00:00:00Z"),
        (b"2026-01-01T00:00:00Z", b"0001-01-01T00:00:00+14:00"),
        (b"<LastModified>2026-01-01T00:00:00Z</LastModified>", b""),
        (b"store/a", b"elsewhere/a"),
        (b"store/a", b"store/%FF%ED%A0%80"),
        (b"</Contents>", b"</Contents><IsTruncated>maybe</IsTruncated>"),
        (b"<Contents>", b"<Contents><Contents>"),
    ],
    ids=range(15),
)
def test_listings(old: bytes, new: bytes, bucket: Bucket, proxy: FaultProxy) -> None:
    def page(entry: bytes) -> bytes:
        return (
            b"<ListBucketResult><IsTruncated>false</IsTruncated><EncodingType>url</EncodingType>"
            + entry
            + b"</ListBucketResult>"
        )

    proxy.inject("LIST", "", answer(200, body=page(ENTRY)), times=1)
    assert [entry.key for entry in bucket.list()] == ["a"]
    assert ENTRY.count(old) == 1
    proxy.inject("LIST", "", answer(200, body=page(ENTRY.replace(old, new))), times=99)
    harmless = new.startswith((b"store/%", b"0001"))
    with contextlib.nullcontext() if harmless else pytest.raises(CastoreError):
        assert len(list(bucket.list())) == 1


@pytest.mark.parametrize(
    "head",
    [
        b"ETag: " + b"x" * 50_000,
        b"ETag: \xc3\xbc",
        b"ETag: x\r\nDate: Mon, 01 Jan 0001 00:00:00 +2359",
        b"ETag: x\r\nDate: Mon, 99 Jan 99999999999 00:00:00 GMT",
        b"ETag: x\r\nLast-Modified: never",
        b"Content-Range: bytes 0-3/" + b"9" * 5000,
    ],
    ids=range(6),
)
def test_heads(head: bytes, bucket: Bucket, proxy: FaultProxy) -> None:
    proxy.inject("", "", raw(head + b"\r\nContent-Length: 4", b"0123"), times=99)
    for kind in ("GET", "PUT", "HEAD"):
        try:
            OPERATIONS[kind](bucket)
        except (CastoreError, OutcomeUnknown):
            continue
    for byte_range in ((0, 4), (4, 10)):
        with pytest.raises(CastoreError):
            bucket.get("key", byte_range=byte_range)
