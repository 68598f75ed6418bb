"""What a user reads when it can't work, whatever they were doing."""

from __future__ import annotations

import json
import random
import socket
import time
from pathlib import Path

import pytest
from botocore.exceptions import HTTPClientError
from fault_proxy import FaultProxy, answer
from processes import free_port
from proxy import Connection, Exchange
from s3_stores import Open, make_store
from servers import Server
from urllib3 import HTTPConnectionPool
from urllib3.connection import HTTPConnection
from urllib3.exceptions import (
    ConnectTimeoutError,
    IncompleteRead,
    MaxRetryError,
    NameResolutionError,
    NewConnectionError,
    ProtocolError,
    ProxyError,
    ReadTimeoutError,
)

import castore
from castore.errors import (
    AccessDenied,
    BucketNotFound,
    CastoreError,
    CredentialsError,
    EndpointUnreachable,
    FormatError,
    NotAStore,
    ReadOnlyStore,
    RemoteError,
    StoreNotFound,
    UnsupportedFormat,
    WrongRegion,
)
from castore.format.config import StoreConfig, encode_config
from castore.s3.client.connection import converted
from castore.s3.client.faults import Broken
from castore.s3.client.settings import parse_settings

pytestmark = pytest.mark.usefixtures("quick", "cache_dir")


@pytest.fixture
def via_proxy(moto_server: Server, proxy: FaultProxy) -> str:
    """The URL of a store, through the proxy."""
    make_store(moto_server)
    return f"s3://{moto_server.bucket}/store?endpoint_url={proxy.url}"


def one_line(error: BaseException) -> str:
    text = str(error)
    assert text
    assert "\n" not in text
    assert "Traceback" not in text
    return text


def test_no_such_bucket(moto_server: Server) -> None:
    with pytest.raises(BucketNotFound) as caught:
        castore.open(f"s3://not-there-at-all/store?endpoint_url={moto_server.endpoint_url}")
    assert "there is no bucket 'not-there-at-all' at http://127.0.0.1" in one_line(caught.value)
    assert isinstance(caught.value, FileNotFoundError)


def test_no_store_there(moto_server: Server) -> None:
    for options in ({"create": False}, {"read_only": True}):
        with pytest.raises(StoreNotFound, match=r"there is no store at s3://.*make one with a put"):
            castore.open(moto_server.url(), **options)
    assert "Contents" not in moto_server.client().list_objects_v2(Bucket=moto_server.bucket)


def test_no_credentials(moto_server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(CredentialsError) as caught:
        castore.open(moto_server.url())
    text = one_line(caught.value)
    assert text.startswith(f"no AWS credentials for s3://{moto_server.bucket}/store")
    assert "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or choose a profile" in text
    assert isinstance(caught.value, PermissionError)


def test_wrong_credentials(rclone_server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody-else")
    with pytest.raises(CastoreError) as caught:
        castore.open(rclone_server.url())
    assert isinstance(caught.value, PermissionError)
    one_line(caught.value)


@pytest.mark.parametrize("while_", ["opening", "reading", "writing"])
def test_an_expired_token(while_: str, via_proxy: str, proxy: FaultProxy) -> None:
    def expire() -> None:
        proxy.inject(
            "", "", answer(400, "ExpiredToken", "The provided token has expired."), times=99
        )

    def work() -> None:
        if while_ == "opening":
            expire()
        with castore.open(via_proxy) as store:
            store.puts("a", bytes(200_000))
            expire()
            if while_ == "reading":
                store.gets("a")
            else:
                store.puts("b", b"b")

    with pytest.raises(CredentialsError) as caught:
        work()
    text = one_line(caught.value)
    assert "they have expired (ExpiredToken): renew them" in text
    assert "profile=" in text
    # Renewed, everything is as it was.
    proxy.rules.clear()
    with castore.open(via_proxy) as store:
        store.puts("b", b"b")
        assert list(store.names()) in (["b"], ["a", "b"])


def test_the_wrong_region(via_proxy: str, proxy: FaultProxy) -> None:
    body = (
        b"<Error><Code>PermanentRedirect</Code><Message>use another</Message>"
        b"<Endpoint>b.s3.eu-north-1.amazonaws.com</Endpoint></Error>"
    )
    headers = {"x-amz-bucket-region": "eu-north-1"}
    proxy.inject("", "", answer(301, headers=headers, body=body), times=99)
    with pytest.raises(WrongRegion) as caught:
        castore.open(via_proxy)
    assert "is in region eu-north-1, not in us-east-1: set region=eu-north-1" in one_line(
        caught.value
    )
    assert caught.value.region == "eu-north-1"


@pytest.mark.parametrize(
    ("folder", "kind", "operation"),
    [
        ("names", "PUT", "puts"),
        ("names", "GET", "gets"),
        ("names", "DELETE", "delete"),
        ("packs", "PUT", "puts"),
        ("packs", "GET", "gets"),
        ("pins", "PUT", "puts"),
    ],
)
def test_access_denied_on_one_prefix(
    folder: str, kind: str, operation: str, via_proxy: str, proxy: FaultProxy
) -> None:
    with castore.open(via_proxy, disk_cache_bytes=0) as store:
        store.puts("a", bytes(range(256)) * 1000)
    proxy.inject(kind, f"/{folder}/", answer(403, "AccessDenied", "Access Denied"), times=99)
    with castore.open(via_proxy, disk_cache_bytes=0) as store:
        arguments = ("b", bytes(range(255, -1, -1)) * 1000) if operation == "puts" else ("a",)
        with pytest.raises(AccessDenied) as caught:
            getattr(store, operation)(*arguments)
        text = one_line(caught.value)
        assert "is denied on s3://" in text
        assert f"/{folder}/" in text
        assert "(Access Denied): allow it in the IAM or bucket policy" in text
        proxy.rules.clear()
        assert list(store.names()) == ["a"]  # nothing half done
        assert store.gets("a") == bytes(range(256)) * 1000


def test_a_denied_clean_up_is_not_an_error(via_proxy: str, proxy: FaultProxy) -> None:
    """Pins expire, and hints are only hints."""
    proxy.inject("POST", "", answer(403, "AccessDenied"), times=99)
    proxy.inject("PUT", "/hints/", answer(403, "AccessDenied"), times=99)
    with castore.open(via_proxy) as store:
        store.puts("a", bytes(200_000))
    assert sum(rule.applied for rule in proxy.rules) == 2


def test_a_bucket_that_is_not_a_store(moto_server: Server) -> None:
    client = moto_server.client()
    client.put_object(Bucket=moto_server.bucket, Key="store/holiday.jpg", Body=b"jpg")
    with pytest.raises(NotAStore) as caught:
        castore.open(moto_server.url())
    text = one_line(caught.value)
    assert "is not empty and not a castore store ('holiday.jpg' is there)" in text
    assert "choose an empty prefix" in text
    assert client.list_objects_v2(Bucket=moto_server.bucket)["KeyCount"] == 1
    with castore.open(moto_server.url("store/beside")) as store:  # an empty prefix
        store.puts("a", b"a")
    with pytest.raises(StoreNotFound):
        castore.open(moto_server.url("sto"), create=False)


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"[]", b'{"format": "other"}', b"\xff" * 50, b"{" * 70000]
)
def test_a_config_that_is_none(raw: bytes, moto_server: Server) -> None:
    moto_server.client().put_object(Bucket=moto_server.bucket, Key="store/castore.json", Body=raw)
    with pytest.raises(FormatError) as caught:
        castore.open(moto_server.url())
    assert one_line(caught.value).startswith(f"s3://{moto_server.bucket}/store: ")


def test_a_store_of_a_newer_format(moto_server: Server) -> None:
    config = json.loads(encode_config(StoreConfig(bytes(16), 1, 16384, 65536, 262144)))
    config |= {"version": 3, "something": "new"}
    client = moto_server.client()
    client.put_object(
        Bucket=moto_server.bucket, Key="store/castore.json", Body=json.dumps(config).encode()
    )
    with pytest.raises(UnsupportedFormat) as caught:
        castore.open(moto_server.url())
    assert "has format version 3, this castore reads up to 2: upgrade castore" in one_line(
        caught.value
    )


@pytest.mark.damages_store("a manifest of another store is put in it")
def test_a_newer_or_foreign_manifest(open_moto: Open, moto_server: Server) -> None:
    store = open_moto()
    store.puts("a", b"a")
    client = moto_server.client()
    place = {"Bucket": moto_server.bucket, "Key": "store/names/a"}
    raw = client.get_object(**place)["Body"].read()
    client.put_object(**place, Body=raw[:4] + b"\x04" + raw[5:])
    with pytest.raises(UnsupportedFormat, match="upgrade castore"):
        store.gets("a")
    for wrong in (b"", b"a file of somebody's", raw[:50], raw[:-1] + bytes([raw[-1] ^ 1])):
        client.put_object(**place, Body=wrong)
        with pytest.raises(FormatError) as caught:
            store.gets("a")
        assert one_line(caught.value).startswith("the manifest of 'a' can't be read")
    other = Server(moto_server.endpoint_url, moto_server.bucket, preconditions=True)
    with castore.open(other.url("elsewhere")) as elsewhere:
        elsewhere.puts("a", b"a")
    copied = client.get_object(Bucket=moto_server.bucket, Key="elsewhere/names/a")["Body"].read()
    client.put_object(**place, Body=copied)
    with pytest.raises(FormatError, match="it belongs to another store"):
        store.gets("a")


_HTTP = HTTPConnection("10.1.2.3", 80)
_REFUSED = "Failed to establish a new connection: [Errno 111] Connection refused"
_POOL = HTTPConnectionPool("::1", 80)


@pytest.mark.parametrize(
    ("inner", "said"),
    [
        (NewConnectionError(_HTTP, _REFUSED), "10.1.2.3:80: Connection refused"),
        (
            NameResolutionError("x.test", _HTTP, socket.gaierror(-2, "Name not known")),
            "10.1.2.3:80: Failed to resolve 'x.test' (Name not known)",
        ),
        (
            ConnectTimeoutError(_HTTP, "Connection to 10.1.2.3 timed out."),
            "Connection to 10.1.2.3 timed out.",
        ),
        (ReadTimeoutError(_POOL, "/", "Read timed out."), "[::1]:80: Read timed out."),
        (
            ProtocolError("Connection aborted.", ConnectionResetError(104, "Reset by peer")),
            "Reset by peer",
        ),
        (
            MaxRetryError(_POOL, "/", ProxyError("No way", NewConnectionError(_HTTP, _REFUSED))),
            "10.1.2.3:80: Connection refused",
        ),
        (OSError("odd"), "odd"),
        (ValueError(), "ValueError"),
        (ProtocolError(IncompleteRead(5, 10)), "IncompleteRead(5 bytes read, 10 more expected)"),
    ],
    ids=lambda each: type(each).__name__,
)
def test_a_connection_that_breaks_off_is_told_in_words(inner: Exception, said: str) -> None:
    settings = parse_settings("s3://bucket/store")
    with pytest.raises(Broken) as caught, converted(settings):
        raise HTTPClientError(error=inner)
    assert caught.value.reason == said


def test_an_endpoint_that_is_down(moto_server: Server) -> None:
    port = free_port()
    url = f"s3://{moto_server.bucket}/store?endpoint_url=http://127.0.0.1:{port}"
    with pytest.raises(EndpointUnreachable) as caught:
        castore.open(url)
    text = one_line(caught.value)
    assert (
        f"http://127.0.0.1:{port} can't be reached (127.0.0.1:{port}: Connection refused)" in text
    )
    assert "check endpoint_url, and that the server is up" in text
    assert isinstance(caught.value, ConnectionError)


def test_an_endpoint_that_goes_down(via_proxy: str, proxy: FaultProxy) -> None:
    store = castore.open(via_proxy)
    store.puts("a", bytes(300_000))
    proxy.close()
    with pytest.raises(EndpointUnreachable):
        store.gets("a")
    with pytest.raises(EndpointUnreachable):
        store.puts("b", bytes(300))
    store.close()  # its pins are left to expire


def test_a_server_error_that_stays(via_proxy: str, proxy: FaultProxy) -> None:
    proxy.inject("", "", answer(500, "InternalError", "We encountered an error"), times=99)
    with pytest.raises(RemoteError) as caught:
        castore.open(via_proxy)
    text = one_line(caught.value)
    assert "s3:GetObject of s3://" in text
    assert "was answered with 500 InternalError: We encountered an error" in text


def test_reading_only(open_moto: Open) -> None:
    open_moto(1).puts("a", b"a")
    store = open_moto(2, read_only=True)
    assert store.gets("a") == b"a"
    for change in (
        lambda: store.puts("b", b"b"),
        lambda: store.delete("a"),
        lambda: store.copy("a", "b"),
        lambda: store.delete_prefix("", unbounded=True),
    ):
        with pytest.raises(ReadOnlyStore):
            change()


@pytest.mark.damages_store("a pack is removed")
def test_packs_that_are_lost(open_moto: Open, moto_server: Server, tmp_path: Path) -> None:
    """Removed behind our back: a typed error that names one, and the same bytes can be put again,
    also by who thought that it knew them."""
    data = bytes(range(256)) * 2000
    first = open_moto(1)
    first.puts("a", data)
    first.close()
    client = moto_server.client()
    listed = client.list_objects_v2(Bucket=moto_server.bucket, Prefix="store/packs/")["Contents"]
    for entry in listed:
        client.delete_object(Bucket=moto_server.bucket, Key=entry["Key"])
    store = open_moto(2)
    with pytest.raises(castore.errors.PackMissing, match="is missing from the store"):
        store.gets("a")
    with pytest.raises(castore.errors.PackMissing):
        store.get("a", tmp_path / "a")
    assert not (tmp_path / "a").exists()
    with pytest.raises(castore.errors.PackMissing):
        store.copy("a", "b")
    assert not store.exists("b")
    for machine in (2, 1, 3):
        open_moto(machine).puts("again", data)
        assert open_moto(9).gets("again") == data


def test_a_deletion_that_fails_is_over(open_proxied: Open, proxy: FaultProxy) -> None:
    """None of its requests lands after it raised."""
    store = open_proxied()
    names = [f"a/{i}" for i in range(4)]
    for name in names:
        store.puts(name, b"")

    def slow(exchange: Exchange, connection: Connection) -> None:
        time.sleep(0.2)
        connection.relay(exchange)

    proxy.inject("DELETE", "/names/a/0", answer(403, "AccessDenied"))
    proxy.inject("DELETE", "/names/a/", slow, times=3)
    with pytest.raises(AccessDenied):
        store.delete_prefix("a/")
    assert list(store.names()) == ["a/0"]


@pytest.mark.inline_alone
@pytest.mark.damages_store("of an object that is inline a byte is changed, and it is cut short")
def test_damage_behind_the_head_of_an_inline_object(open_moto: Open, moto_server: Server) -> None:
    """A list, which does not read that far, is not in its way; whoever reads it is told."""
    open_moto(1).puts("a", random.Random(1).randbytes(100_000))
    client = moto_server.client()
    place = {"Bucket": moto_server.bucket, "Key": "store/names/a"}
    raw = client.get_object(**place)["Body"].read()
    for machine, wrong in enumerate((raw[:50_000] + b"?" + raw[50_001:], raw[:-1]), 2):
        client.put_object(**place, Body=wrong)
        store = open_moto(machine)
        for read in (store.gets, lambda name, store=store: store.copy(name, "b")):
            with pytest.raises(FormatError) as caught:
                read("a")
            assert one_line(caught.value).startswith("the manifest of 'a' can't be read")
        assert [problem.names for problem in store.check(True).problems] == [("a",)]
    client.put_object(**place, Body=raw[:50_000] + b"?" + raw[50_001:])
    store = open_moto(4)
    assert [(info.name, info.size) for info in store.list()] == [("a", 100_000)]
    with pytest.raises(FormatError):
        store.gets("a")
