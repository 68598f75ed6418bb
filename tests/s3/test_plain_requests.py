"""Requests past botocore's client are those that it would send, and are understood as by it."""

from __future__ import annotations

import base64
import hashlib
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from botocore.awsrequest import AWSResponse
from servers import Server

from castore.s3.client.body import Buffers
from castore.s3.client.connection import Connection, _client, session_for
from castore.s3.client.faults import Broken, Refused
from castore.s3.client.settings import S3Settings

PLAIN = S3Settings("bucket-1", endpoint_url="http://127.0.0.1:1", region="eu-west-3")
AWS = S3Settings("bucket-1", region="eu-west-3")
KEYS = ["a b/\xfc&<~+%", "names//x/..", "-_.~*'()!"]
ETAG = '"e"'
OF_THE_SDK = {"amz-sdk-invocation-id", "amz-sdk-request", "user-agent", "x-amz-date"}
CHECKSUMS = {"content-md5", "x-amz-checksum-crc32", "x-amz-sdk-checksum-algorithm"}


pytestmark = pytest.mark.usefixtures("aws_environment")

Sent = tuple[str, str, bytes, dict[str, str]]


class Body:
    def __init__(self, body: bytes) -> None:
        self._body = body

    def stream(self) -> list[bytes]:
        return [self._body]


def reply(status: int, headers: dict[str, str], body: bytes) -> Callable[..., AWSResponse]:
    return lambda request, *_, **__: AWSResponse(request.url, status, headers, Body(body))


def sent(request: Any) -> Sent:
    body = request.body
    raw = body.read() if hasattr(body, "read") else body or b""
    headers = {
        name.lower(): value.decode() if isinstance(value, bytes) else value
        for name, value in request.headers.items()
    }
    return request.method, request.url, raw, headers


def by_the_client(settings: S3Settings, operation: str, parameters: dict[str, Any]) -> Sent:
    client = _client(session_for(settings), settings)
    seen: list[Sent] = []

    def note(request: Any, **_: Any) -> AWSResponse:
        seen.append(sent(request))
        return AWSResponse(request.url, 200, {"etag": ETAG}, Body(b""))

    client.meta.events.register_first("before-send.s3", note)
    method = getattr(client, operation)
    try:
        method(Bucket=settings.bucket, **parameters)
    except client.exceptions.ClientError:
        assert operation == "delete_objects"  # the answer is none
    client.close()
    return seen[0]


def by_us(
    settings: S3Settings,
    operation: str,
    parameters: dict[str, Any],
    patch: pytest.MonkeyPatch,
    *,
    client: bool = False,
) -> Sent:
    """`client`: its URL is asked of botocore's."""
    connection = Connection(settings)
    seen: list[Sent] = []

    def note(request: Any, _: int) -> AWSResponse:
        seen.append(sent(request))
        return AWSResponse(request.url, 200, {"etag": ETAG}, Body(b"<x/>"))

    patch.setattr(connection._http, "send_whole", note)
    connection.call(operation, **parameters)
    assert (connection._made is not None) == client
    connection.close()
    return seen[0]


def plainly(headers: dict[str, str], *, but: set[str] = OF_THE_SDK) -> dict[str, str]:
    """What differs by the moment is left out of them, and of what is signed its name is left."""
    signed = headers["authorization"].split("SignedHeaders=")[1].split(",")[0].split(";")
    found = {name: value for name, value in headers.items() if name not in but}
    found["authorization"] = ";".join(name for name in signed if name not in but)
    return found


@pytest.mark.parametrize("settings", [PLAIN, AWS], ids=["plain", "aws"])
@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize(
    ("operation", "parameters"),
    [
        ("head_object", {}),
        ("head_object", {"IfMatch": ETAG}),
        ("delete_object", {}),
        ("delete_object", {"IfMatch": ETAG}),
        ("delete_object", {"VersionId": "a b/+~"}),
        ("put_object", {"Body": b"123", "IfNoneMatch": "*", "StorageClass": "STANDARD_IA"}),
        ("put_object", {"Body": b"", "IfMatch": ETAG}),
        (
            "put_object",
            {"Body": b"1", "ServerSideEncryption": "aws:kms", "SSEKMSKeyId": "arn:x:y"},
        ),
    ],
)
def test_what_is_sent_is_what_the_client_sends(
    settings: S3Settings,
    key: str,
    operation: str,
    parameters: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parameters = {"Key": key, **parameters}
    ours = by_us(settings, operation, parameters, monkeypatch)
    if operation == "put_object":  # which takes the checksum that it is given
        md5, crc = ours[3].get("content-md5"), ours[3].get("x-amz-checksum-crc32")
        assert (md5 is None) == (settings is AWS)
        parameters |= {"ContentMD5": md5} if md5 else {"ChecksumCRC32": crc}
    theirs = by_the_client(settings, operation, parameters)
    assert ours[:3] == theirs[:3]
    ours_named, theirs_named = plainly(ours[3]), plainly(theirs[3])
    if settings is AWS and operation == "put_object":  # as it does with a checksum of its own
        assert ours_named.pop("x-amz-content-sha256") == "UNSIGNED-PAYLOAD"
        theirs_named.pop("x-amz-content-sha256")
    assert ours_named == theirs_named


@pytest.mark.parametrize("settings", [PLAIN, AWS], ids=["plain", "aws"])
def test_a_list_is_asked_for_as_the_client_does(
    settings: S3Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With keys encoded, too: XML can't have all that a key may."""
    parameters = {"Prefix": KEYS[0], "Delimiter": "/", "MaxKeys": 7, "StartAfter": KEYS[1]}
    parameters["ContinuationToken"] = "a+/="
    (method, ours, *_), (other, theirs, *_) = (
        by_us(settings, "list_objects_v2", parameters, monkeypatch),
        by_the_client(settings, "list_objects_v2", parameters),
    )
    assert (method, ours.partition("?")[0]) == (other, theirs.partition("?")[0])
    assert parse_qsl(urlsplit(ours).query) == sorted(parse_qsl(urlsplit(theirs).query))


@pytest.mark.parametrize("settings", [PLAIN, AWS], ids=["plain", "aws"])
def test_many_deletions_are_what_the_client_sends(
    settings: S3Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects = [{"Key": key, "ETag": ETAG} for key in KEYS] + [{"Key": "x", "VersionId": "v<1>"}]
    parameters = {"Delete": {"Objects": objects}}
    ours = by_us(settings, "delete_objects", parameters, monkeypatch)
    theirs = by_the_client(settings, "delete_objects", parameters)
    assert ours[:3] == theirs[:3]
    but = OF_THE_SDK | CHECKSUMS
    assert plainly(ours[3], but=but) == plainly(theirs[3], but=but)
    assert not CHECKSUMS.isdisjoint(ours[3])


@pytest.mark.parametrize("settings", [PLAIN, AWS], ids=["plain", "aws"])
@pytest.mark.parametrize("enabled", ["true", "false", None])
@pytest.mark.parametrize("large", [False, True])
def test_a_profile_says_whether_bodies_are_signed(
    settings: S3Settings,
    enabled: str | None,
    large: bool,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """As the client does it, which has the same configuration."""
    says = "" if enabled is None else f"s3 =\n  payload_signing_enabled = {enabled}\n"
    (tmp_path / "config").write_text(f"[default]\n{says}")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    raw = b"1" * 70_000 if large else b"123"
    parameters = {"Key": "k", "Body": Buffers([raw]) if large else raw}
    ours = by_us(settings, "put_object", parameters, monkeypatch, client=enabled is not None)
    signed = enabled == "true" or (enabled is None and settings.endpoint_url is not None)
    expected = hashlib.sha256(raw).hexdigest() if signed else "UNSIGNED-PAYLOAD"
    assert ours[2] == raw
    assert ours[3]["x-amz-content-sha256"] == expected
    if enabled is not None:
        theirs = by_the_client(settings, "put_object", {"Key": "k", "Body": raw})
        assert theirs[3]["x-amz-content-sha256"] == expected


def test_a_checksum_is_of_all_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    body = Buffers([b"one", bytearray(b"two"), memoryview(b"three")])
    *_, raw, headers = by_us(AWS, "put_object", {"Key": "k", "Body": body}, monkeypatch)
    assert raw == b"onetwothree"
    crc = zlib.crc32(raw).to_bytes(4, "big")
    assert headers["x-amz-checksum-crc32"] == base64.b64encode(crc).decode()
    assert headers["content-length"] == str(len(raw))


# ---- what is answered ----------------------------------------------------------------------------

ERROR = (
    b"<?xml version='1.0'?><Error><Code>InternalError</Code><Message>Try  again</Message></Error>"
)
SPACED = b'<DeleteResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">%b</DeleteResult>'


@pytest.fixture
def connection(aws_environment: None) -> Connection:
    return Connection(PLAIN)


def answered(
    connection: Connection, patch: pytest.MonkeyPatch, operation: str, *said: Any, **parameters: Any
) -> dict[str, Any]:
    patch.setattr(connection._http, "send_whole", reply(*said))
    return connection.call(operation, **parameters)


PUT = {"Key": "k", "Body": b"x"}
MANY = {"Delete": {"Objects": [{"Key": "a"}]}}


@pytest.mark.parametrize(
    ("operation", "parameters"), [("put_object", PUT), ("delete_objects", MANY)]
)
def test_an_error_that_comes_as_a_success_is_one(
    connection: Connection,
    monkeypatch: pytest.MonkeyPatch,
    operation: str,
    parameters: dict[str, Any],
) -> None:
    with pytest.raises(Refused) as caught:
        answered(connection, monkeypatch, operation, 200, {"etag": ETAG}, ERROR, **parameters)
    assert (caught.value.status, caught.value.code) == (500, "InternalError")
    assert caught.value.message == "Try again"
    for odd in (ERROR[:40], b"<html>", b"<?xml version='1.0' encoding='x'?><DeleteResult/>"):
        with pytest.raises(Broken):
            answered(connection, monkeypatch, operation, 200, {"etag": ETAG}, odd, **parameters)


@pytest.mark.parametrize("space", [b"", b' xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'])
def test_an_error_that_comes_as_a_success_may_say_little(
    space: bytes, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    headers = {"retry-after": "7"}
    for fields, code, message in (
        (b"", "", ""),
        (b"<Code/><Message/>", "", ""),
        (b"<Code>SlowDown</Code>", "SlowDown", ""),
        (b"<Message>words</Message>", "", "words"),
    ):
        body = b"<Error%b>%b</Error>" % (space, fields)
        with pytest.raises(Refused) as caught:
            answered(connection, monkeypatch, "put_object", 200, headers, body, **PUT)
        found = caught.value
        assert (found.status, found.code, found.message) == (500, code, message)
        assert found.headers["retry-after"] == "7"


@pytest.mark.parametrize("page", [b"<html><body/></html>", b"<HTML/>"])
@pytest.mark.parametrize(
    ("operation", "parameters"),
    [("put_object", PUT), ("delete_objects", MANY), ("list_objects_v2", {})],
)
def test_a_web_page_is_no_answer(
    page: bytes,
    operation: str,
    parameters: dict[str, Any],
    connection: Connection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nor where it is well-formed: something in between wants a login, and nothing was done."""
    with pytest.raises(Broken, match="web page"):
        answered(connection, monkeypatch, operation, 200, {"etag": ETAG}, page, **parameters)


def test_what_was_deleted_and_what_was_not(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = SPACED % (
        b"<Deleted><Key>a&amp;b</Key></Deleted><Deleted><Key>c</Key><VersionId>v</VersionId>"
        b"</Deleted><Error><Key>d</Key><Code>AccessDenied</Code><Message>No</Message></Error>"
    )
    for body in (said, said.replace(b' xmlns="http://s3.amazonaws.com/doc/2006-03-01/"', b"")):
        found = answered(connection, monkeypatch, "delete_objects", 200, {}, body, **MANY)
        assert found["Deleted"] == [{"Key": "a&b"}, {"Key": "c", "VersionId": "v"}]
        assert found["Errors"] == [{"Key": "d", "Code": "AccessDenied", "Message": "No"}]
    odd = b"<RequestCharged/><Deleted><Key>e</Key><VersionId/></Deleted>"  # what is new, or empty
    found = answered(connection, monkeypatch, "delete_objects", 200, {}, SPACED % odd, **MANY)
    assert (found["Deleted"], found["Errors"]) == ([{"Key": "e", "VersionId": ""}], [])
    for odd in (b"", SPACED % b"<Deleted/>", SPACED % b"<Error><Code>AccessDenied</Code></Error>"):
        with pytest.raises(Broken):
            answered(connection, monkeypatch, "delete_objects", 200, {}, odd, **MANY)


@pytest.mark.parametrize("encoded", [True, False])
@pytest.mark.parametrize("space", [b"", b' xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'])
def test_a_page(
    space: bytes, encoded: bool, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that was asked to encode keys need not."""
    body = b"<ListBucketResult%b>%b<IsTruncated>%b</IsTruncated>%b</ListBucketResult>" % (
        space,
        b"<EncodingType>url</EncodingType>" if encoded else b"",
        b"true",
        b"<NextContinuationToken>a+%20</NextContinuationToken>"
        b"<Contents><Key>a+%20b</Key><ETag>e</ETag><Size>7</Size>"
        b"<LastModified>2026-01-01T00:00:00.5+01:00</LastModified></Contents>"
        b"<CommonPrefixes><Prefix>c+%20/</Prefix></CommonPrefixes><KeyCount>2</KeyCount>",
    )
    page = answered(connection, monkeypatch, "list_objects_v2", 200, {}, body)
    [entry] = page["Contents"]
    assert entry.pop("LastModified").timestamp() == 1767222000.5
    assert entry == {"Key": "a  b" if encoded else "a+%20b", "ETag": "e", "Size": 7}
    assert page["CommonPrefixes"] == [{"Prefix": "c  /" if encoded else "c+%20/"}]
    assert (page["IsTruncated"], page["NextContinuationToken"]) == (True, "a+%20")
    page = answered(
        connection,
        monkeypatch,
        "list_objects_v2",
        200,
        {},
        b"<x><IsTruncated>false</IsTruncated></x>",
    )
    assert (page["IsTruncated"], page["Contents"], page["CommonPrefixes"]) == (False, [], [])


def test_a_page_has_no_more_than_was_said(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who goes through it finds what is missing; a default would hide it."""
    body = (
        b"<x><IsTruncated>%b</IsTruncated><NextContinuationToken/><Contents><Owner/></Contents>"
        b"<Contents><Key/><ETag/></Contents>"
        b"<CommonPrefixes><Prefix/><Other>o</Other></CommonPrefixes></x>"
    )
    for said in (b"", b"maybe", b"True"):
        page = answered(connection, monkeypatch, "list_objects_v2", 200, {}, body % said)
        assert page["Contents"] == [{}, {"Key": "", "ETag": ""}]
        assert page["CommonPrefixes"] == [{"Prefix": ""}]
        assert (page["IsTruncated"], page["NextContinuationToken"]) == (None, "")
    encoded = b"<x><EncodingType>url</EncodingType><CommonPrefixes><Prefix/></CommonPrefixes></x>"
    page = answered(connection, monkeypatch, "list_objects_v2", 200, {}, encoded)
    assert page["CommonPrefixes"] == [{"Prefix": ""}]
    assert "IsTruncated" not in page


@pytest.mark.parametrize(
    "field",
    [
        b"<LastModified>2026-01-01T00:00:00</LastModified>",  # in which zone?
        b"<LastModified>today</LastModified>",
        b"<LastModified/>",
        b"<Size/>",
        b"<Size>1.5</Size>",
    ],
)
def test_a_page_that_is_not_understood_is_none(
    field: bytes, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = b"<x><IsTruncated>false</IsTruncated><Contents><Key>k</Key>%b</Contents></x>" % field
    with pytest.raises(Broken, match="can't be understood"):
        answered(connection, monkeypatch, "list_objects_v2", 200, {}, body)


def test_a_head(connection: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    headers = {"etag": ETAG, "content-length": "12"}
    found = answered(connection, monkeypatch, "head_object", 200, headers, b"", Key="k")
    assert (found["ETag"], found["ContentLength"]) == (ETAG, 12)
    assert "ContentLength" not in answered(
        connection, monkeypatch, "head_object", 200, {"etag": ETAG}, b"", Key="k"
    )
    wrong = {"etag": ETAG, "content-length": "12a"}
    with pytest.raises(Broken):
        answered(connection, monkeypatch, "head_object", 200, wrong, b"", Key="k")


@pytest.mark.parametrize("status", [301, 304, 403, 404, 412, 500, 503])
def test_what_is_refused(
    connection: Connection, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    headers = {"X-Amz-Bucket-Region": "eu-north-1"}
    with pytest.raises(Refused) as caught:
        answered(connection, monkeypatch, "put_object", status, headers, ERROR, **PUT)
    assert (caught.value.status, caught.value.code) == (status, "InternalError")
    assert caught.value.headers["x-amz-bucket-region"] == "eu-north-1"
    with pytest.raises(Refused) as caught:
        answered(connection, monkeypatch, "head_object", status, {}, b"", Key="k")
    assert (caught.value.status, caught.value.code) == (status, "")


def test_who_writes_makes_no_client(moto_server: Server) -> None:
    connection = Connection(moto_server.settings())
    for key in KEYS:
        connection.call("put_object", Key=key, Body=b"x" * 100)
        assert connection.call("head_object", Key=key)["ContentLength"] == 100
    connection.call("delete_object", Key=KEYS[0])
    gone = connection.call("delete_objects", Delete={"Objects": [{"Key": key} for key in KEYS[1:]]})
    assert {entry["Key"] for entry in gone["Deleted"]} == {*KEYS[1:]}
    assert connection.call("list_objects_v2", Prefix="")["Contents"] == []
    assert connection._made is None
    connection.close()
