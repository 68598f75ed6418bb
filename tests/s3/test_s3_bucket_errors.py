"""What users are told of what a server answers."""

from __future__ import annotations

import pickle
import re
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
from fault_proxy import (
    Fault,
    FaultProxy,
    answer,
)
from proxied import IDEMPOTENT, ONCE, READS
from servers import QUICK, Server

from castore.errors import (
    AccessDenied,
    BucketNotFound,
    CastoreError,
    CredentialsError,
    RemoteError,
    StoreFull,
    WrongRegion,
)
from castore.s3.client.bucket import Bucket, KeyAbsent
from castore.s3.client.settings import S3Settings

ALL: dict[str, Callable[[Bucket], object]] = {
    **READS,
    **{f"{name} again": request for name, request in IDEMPOTENT.items()},
    **ONCE,
}


def test_a_bucket_is_not_taken_to_be_there_where_the_server_is_busy(
    moto_server: Server, proxy: FaultProxy
) -> None:
    """Whether it is, is asked again."""
    proxy.inject("HEAD", "bucket$", answer(503))
    settings = S3Settings("no-such-bucket", "p", proxy.url)
    with Bucket(settings, backoff=QUICK) as gone, pytest.raises(BucketNotFound):
        gone.head("key")
    assert not [rule for rule in proxy.rules if not rule.applied]


def test_no_such_bucket(s3_server: Server) -> None:
    settings = S3Settings("no-such-bucket", "p", s3_server.endpoint_url)
    for request in ALL.values():
        gone = Bucket(settings, backoff=QUICK)
        with gone, pytest.raises(BucketNotFound, match="create it") as caught:
            request(gone)
        assert caught.value.bucket == "no-such-bucket"
        assert isinstance(caught.value, FileNotFoundError)


def test_an_absent_key_costs_one_look_at_the_bucket(moto_server: Server, proxy: FaultProxy) -> None:
    with Bucket(moto_server.settings(endpoint_url=proxy.url)) as bucket:
        for _ in range(2):
            with pytest.raises(KeyAbsent):
                bucket.head("absent")
        assert proxy.count("HEAD", "absent") == 2
        assert proxy.count() == 3


@pytest.mark.parametrize(
    ("request_", "action", "key"),
    [
        ("GET", "s3:GetObject", "/there"),
        ("HEAD", "s3:GetObject", "/there"),
        ("LIST", "s3:ListBucket", ""),
        ("PUT", "s3:PutObject", "/new"),
        ("DELETE", "s3:DeleteObject", "/there"),
        ("POST again", "s3:DeleteObject", ""),
    ],
)
def test_access_denied(
    request_: str, action: str, key: str, proxied: Bucket, proxy: FaultProxy
) -> None:
    proxy.inject("", "", answer(403, "AccessDenied", "not authorised"), times=99)
    with pytest.raises(AccessDenied) as caught:
        ALL[request_](proxied)
    assert proxy.count() == (2 if request_ == "HEAD" else 1)
    error = pickle.loads(pickle.dumps(caught.value))
    assert (error.action, error.url) == (action, proxied.settings.url + key)
    assert action in str(error)
    assert "not authorised" in str(error)
    assert isinstance(error, PermissionError)


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (400, "ExpiredToken", "expired"),
        (403, "InvalidAccessKeyId", "does not know the access key"),
        (403, "SignatureDoesNotMatch", "secret key"),
        (400, "InvalidToken", "token"),
    ],
)
def test_credentials_that_do_not_work(
    status: int, code: str, words: str, proxied: Bucket, proxy: FaultProxy
) -> None:
    proxy.inject("", "", answer(status, code), times=99)
    for request in ("GET", "HEAD", "LIST", "PUT"):
        proxy.clear()
        with pytest.raises(CredentialsError, match=words):
            ALL[request](proxied)
        assert proxy.count() == (2 if request == "HEAD" else 1)


def test_wrong_credentials_for_real(rclone_server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another-secret")
    with Bucket(rclone_server.settings()) as bucket:
        for request in ("GET", "HEAD", "LIST", "PUT"):
            with pytest.raises(CredentialsError, match="SignatureDoesNotMatch"):
                ALL[request](bucket)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "another-access-key")
    with Bucket(rclone_server.settings()) as bucket:
        for request in ("GET", "HEAD", "LIST", "PUT"):
            with pytest.raises(CredentialsError, match="InvalidAccessKeyId"):
                ALL[request](bucket)


def test_no_credentials(moto_server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(CredentialsError, match="set AWS_ACCESS_KEY_ID"):
        Bucket(moto_server.settings()).get("k")
    with pytest.raises(CredentialsError, match="nobody"):
        Bucket(moto_server.settings(profile="nobody")).get("k")


@pytest.mark.own_server("it takes any access key")
def test_credentials_are_asked_for_again_as_they_expire(
    moto_server: Server, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = tmp_path / "credentials.py"
    script.write_text(
        textwrap.dedent(f"""\
        import datetime, json, pathlib
        log = pathlib.Path({str(tmp_path / "log")!r})
        n = len(log.read_text()) if log.exists() else 0
        log.write_text("x" * (n + 1))
        soon = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=100)
        print(json.dumps({{"Version": 1, "AccessKeyId": f"key-number-{{n}}",
            "SecretAccessKey": "s" * 20, "SessionToken": "t", "Expiration": soon.isoformat()}}))
        """)
    )
    config = tmp_path / "config"
    config.write_text(f"[profile short]\ncredential_process = {sys.executable} {script}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    settings = moto_server.settings(endpoint_url=proxy.url, profile="short")
    with Bucket(settings) as bucket:
        bucket.put("k", b"x")
        bucket.get("k")
        bucket.get("k")
    keys = [
        re.findall(r"Credential=([^/]+)/", exchange.headers["authorization"])[0]
        for exchange in proxy.matching()
    ]
    assert len(set(keys)) == 3, "each request came with the credentials of its time"
    config.write_text("[profile short]\ncredential_process = false\n")
    with Bucket(settings) as bucket, pytest.raises(CredentialsError, match="credential"):
        bucket.get("k")


def test_a_role_that_is_refused_is_about_credentials(
    moto_server: Server, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = tmp_path / "config"
    config.write_text(
        "[profile base]\naws_access_key_id = a-key\naws_secret_access_key = a-secret\n"
        "[profile role]\nrole_arn = arn:aws:iam::123456789012:role/r\nsource_profile = base\n"
    )
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", proxy.url)
    words = (
        b"<ErrorResponse><Error><Type>Sender</Type><Code>AccessDenied</Code>"
        b"<Message>not your role</Message></Error></ErrorResponse>"
    )
    proxy.inject("POST", "^/$", answer(403, body=words), times=99)
    for request in ("GET", "HEAD", "PUT"):
        bucket = Bucket(moto_server.settings(profile="role"), backoff=QUICK)
        with bucket, pytest.raises(CredentialsError, match="not your role"):
            ALL[request](bucket)


@pytest.mark.parametrize(
    "redirect",
    [
        answer(301, "PermanentRedirect", headers={"x-amz-bucket-region": "eu-west-3"}),
        answer(
            400,
            body=b"<Error><Code>AuthorizationHeaderMalformed</Code><Message>the region "
            b"'us-east-1' is wrong; expecting 'eu-west-3'</Message><Region>eu-west-3</Region>"
            b"</Error>",
        ),
        answer(
            400,
            "IllegalLocationConstraintException",
            headers={"x-amz-bucket-region": "eu-west-3"},
        ),
    ],
    ids=["301", "400", "illegal location"],
)
def test_wrong_region(redirect: Fault, proxied: Bucket, proxy: FaultProxy) -> None:
    proxy.inject("", "", redirect, times=99)
    for request in ("GET", "HEAD", "LIST", "PUT", "DELETE"):
        proxy.clear()
        with pytest.raises(WrongRegion, match="set region=eu-west-3") as caught:
            ALL[request](proxied)
        assert (caught.value.region, caught.value.used) == ("eu-west-3", "us-east-1")
        most = 2 if request == "HEAD" else 1
        assert proxy.count() <= most, "the SDK followed the redirect"


def test_other_refusals(proxied: Bucket, proxy: FaultProxy) -> None:
    cases: list[tuple[Fault, type[CastoreError], str]] = [
        (answer(403, "RequestTimeTooSkewed", "The difference is large"), RemoteError, "clock"),
        (answer(507, "XMinioStorageFull"), StoreFull, "no space left"),
        (answer(501, "NotImplemented", "no such header"), RemoteError, "no such header"),
        (answer(404, body=b"<html>no such page</html>"), RemoteError, "404"),
        (answer(301, headers={"Location": "https://elsewhere/"}), RemoteError, "elsewhere"),
        (answer(403, "InvalidObjectState", "archived"), RemoteError, "archived"),
        (answer(400, "AuthorizationHeaderMalformed", "no key"), CredentialsError, "malformed"),
    ]
    for fault, kind, words in cases:
        for request in (READS["GET"], READS["LIST"], ONCE["PUT"]):
            proxy.clear()
            proxy.rules.clear()
            proxy.inject("", "", fault, times=9)
            with pytest.raises(kind, match=words):
                request(proxied)
            assert proxy.count() == 1


def test_one_key_of_many_that_may_not_be_deleted(proxied: Bucket, proxy: FaultProxy) -> None:
    prefix = proxied.settings.prefix
    body = (
        f"<DeleteResult><Deleted><Key>{prefix}/a</Key></Deleted>"
        f"<Error><Key>{prefix}/b</Key><Code>AccessDenied</Code><Message>no</Message></Error>"
        f"<Error><Key>{prefix}/c</Key><Code>InternalError</Code><Message>?</Message></Error>"
        "</DeleteResult>"
    )
    proxy.inject("POST", "", answer(200, body=body.encode()))
    [(key, error)] = proxied.delete_many(["a", "b", "c", "d"])
    assert key == "b"
    assert isinstance(error, AccessDenied)
    assert proxy.count("POST") == 2, "c and d, of which nothing was said, are asked for again"
    proxy.rules.clear()
    proxy.inject("POST", "", answer(200, body=body.encode()), times=99)
    failed = proxied.delete_many(["a", "b", "c"])
    assert [key for key, _ in failed] == ["b", "c"]
    assert isinstance(failed[1][1], RemoteError)


def test_a_server_without_batch_deletion(proxied: Bucket, proxy: FaultProxy) -> None:
    proxy.inject("POST", "", answer(501, "NotImplemented"), times=9)
    proxied.put("other", b"x")
    assert proxied.delete_many(["there", "other"]) == []
    assert list(proxied.list()) == []
    assert proxy.count("DELETE") == 2


def test_listings_that_can_not_be_trusted(proxied: Bucket, proxy: FaultProxy) -> None:
    def page(*keys: str, token: str = "") -> bytes:
        more = f"<NextContinuationToken>{token}</NextContinuationToken>" if token else ""
        entries = "".join(
            f"<Contents><Key>{key}</Key><Size>1</Size><ETag>x</ETag>"
            "<LastModified>2026-01-01T00:00:00Z</LastModified></Contents>"
            for key in keys
        )
        truncated = "true" if token else "false"
        return (
            "<ListBucketResult><Name>b</Name>"
            f"<IsTruncated>{truncated}</IsTruncated>{more}{entries}</ListBucketResult>"
        ).encode()

    for body, words in (
        (page("store/b", "store/a"), "out of order"),
        (page("store/a", token="t"), "out of order"),  # the same page again
        (page(token="t"), "for ever"),
        (page("elsewhere/a"), "which is not under the prefix"),
        (b"<ListBucketResult></ListBucketResult>", "no page"),
    ):
        proxy.rules.clear()
        proxy.inject("LIST", "", answer(200, body=body), times=99)
        with pytest.raises(RemoteError, match=words):
            list(proxied.list())
