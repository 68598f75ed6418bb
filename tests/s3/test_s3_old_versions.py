"""What a versioned bucket keeps of older versions is removed, whatever the names are."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from fault_proxy import Connection, Exchange, FaultProxy, answer
from s3_stores import Open
from servers import Server

from castore.errors import RemoteError
from castore.s3.client import versions
from castore.s3.client.faults import Fault
from castore.s3.client.settings import S3Settings


@pytest.fixture
def versioned(moto_server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    moto_server.client().put_bucket_versioning(
        Bucket=moto_server.bucket, VersioningConfiguration={"Status": "Enabled"}
    )
    monkeypatch.setattr(versions, "is_versioned", lambda _: True)
    return moto_server


def test_a_name_that_xml_can_not_hold_keeps_no_other_from_going(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As S3 has it, which refuses a request for many of which one can't be named in it."""
    kept = {(f"p/names/{name}", id) for name in ("a", "b\x01", "c\r", "d") for id in "12"}
    latest = {(key, "3") for key, _ in kept}

    class Server:
        def call(self, action: str, _: str, operation: str, **given: Any) -> dict[str, Any]:
            if operation == "list_object_versions":
                found = [
                    {"Key": key, "VersionId": id, "IsLatest": (key, id) in latest}
                    for key, id in sorted(kept | latest)
                    if key.startswith(given["Prefix"])
                ]
                return {"Versions": [*found, {"VersionId": "1", "IsLatest": False}]}
            if operation == "delete_object":
                kept.remove((given["Key"], given["VersionId"]))
                return {}
            doomed = [(each["Key"], each["VersionId"]) for each in given["Delete"]["Objects"]]
            if any(character < " " for key, _ in doomed for character in key):
                raise Fault(RemoteError("refused", 400, "MalformedXML"), repeat=False)
            kept.difference_update(doomed)
            return {"Deleted": given["Delete"]["Objects"]}

    monkeypatch.setattr(versions, "is_versioned", lambda _: True)
    monkeypatch.setattr(versions, "_attempts", lambda *_: Server())
    assert versions.remove_old_versions(S3Settings("bucket", "p"), "names/c\r") == 2
    assert versions.remove_old_versions(S3Settings("bucket", "p"), "names/", below=True) == 6
    assert kept == set()


def page(fields: bytes) -> bytes:
    entry = b"<Version><Key>store/names/a</Key>" + fields + b"</Version>"
    return b"<ListVersionsResult>" + entry + b"</ListVersionsResult>"


@pytest.mark.parametrize(
    "listed",
    [
        page(b"<VersionId>1</VersionId>"),
        page(b"<IsLatest>false</IsLatest>"),
        b"<ListVersionsResult><IsTruncated>true</IsTruncated></ListVersionsResult>",
        b"<ListVersionsResult><Version><IsLatest>false</IsLatest></Version></ListVersionsResult>",
        b"<html>",
    ],
    ids=range(5),
)
def test_a_list_that_says_too_little_fails_no_put(
    listed: bytes, versioned: Server, proxy: FaultProxy, open_proxied: Open
) -> None:
    with open_proxied() as store:
        store.puts("a", b"1")
        store.puts("a", b"2")
        proxy.inject("GET", f"^/{versioned.bucket}$", answer(200, body=listed))
        assert store.remove_old_versions("a") == 0
        assert store.remove_old_versions("a") == 1


def test_a_put_does_not_wait_for_ever_for_what_is_kept(
    versioned: Server, proxy: FaultProxy, open_proxied: Open
) -> None:
    """Each byte comes within the socket's timeout."""
    ended = threading.Event()

    def drip(_: Exchange, connection: Connection) -> None:
        try:
            connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n")
            while True:
                connection.send(b"<")
                time.sleep(0.1)
        finally:
            ended.set()

    with open_proxied(connect_timeout_s=0.5, read_timeout_s=0.5) as store:
        store.puts("a", b"1")
        store.puts("a", b"2")
        proxy.inject("GET", f"^/{versioned.bucket}$", drip)
        assert store.remove_old_versions("a") == 0
        assert ended.wait(20), "the connection is shut down"
