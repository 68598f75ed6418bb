"""Where the settings of an S3 store come from, and what is refused."""

from __future__ import annotations

import os
import pickle
from typing import Any

import pytest

from castore.s3.client.settings import S3Settings, parse_settings


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("AWS_", "CASTORE_S3_")):
            monkeypatch.delenv(name)


def test_defaults() -> None:
    settings = parse_settings("s3://my-bucket/some/prefix")
    assert settings == S3Settings("my-bucket", "some/prefix")
    assert settings.endpoint_url is None
    assert settings.max_concurrency == 16
    assert pickle.loads(pickle.dumps(settings)) == settings


@pytest.mark.parametrize(
    ("url", "prefix", "canonical"),
    [
        ("s3://b-1", "", "s3://b-1"),
        ("s3://b-1/", "", "s3://b-1"),
        ("s3://b-1//a/b/", "a/b", "s3://b-1/a/b"),
        ("s3://b-1/a b#c%20/ü?region=eu-west-1", "a b#c%20/ü", "s3://b-1/a b#c%20/ü"),
    ],
)
def test_url(url: str, prefix: str, canonical: str) -> None:
    settings = parse_settings(url)
    assert settings.prefix == prefix
    assert settings.url == canonical
    assert settings.key("names/x") == (f"{prefix}/names/x" if prefix else "names/x")


def test_argument_before_query_before_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "env-1")
    assert parse_settings("s3://bkt").region == "env-1"
    monkeypatch.setenv("AWS_REGION", "env-2")
    assert parse_settings("s3://bkt").region == "env-2"
    monkeypatch.setenv("CASTORE_S3_REGION", "env-3")
    assert parse_settings("s3://bkt").region == "env-3"
    assert parse_settings("s3://bkt?region=query-1").region == "query-1"
    assert parse_settings("s3://bkt?region=query-1", region="argument-1").region == "argument-1"
    assert parse_settings("s3://bkt?region=query-1", region=None).region == "query-1"


def test_endpoint_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://any:1")
    assert parse_settings("s3://bkt").endpoint_url == "http://any:1"
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://s3:2/")
    assert parse_settings("s3://bkt").endpoint_url == "http://s3:2"


def test_every_setting_from_each_source(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {
        "endpoint_url": "http://localhost:9000",
        "region": "eu-west-1",
        "profile": "work",
        "addressing_style": "virtual",
        "sse": "aws:kms",
        "sse_kms_key_id": "arn:aws:kms:eu-west-1:111122223333:key/1234abcd",
        "storage_class": "STANDARD_IA",
        "upload_checksum": "crc32",
        "connect_timeout_s": 2.5,
        "read_timeout_s": 7.0,
        "max_concurrency": 3,
    }
    expected = S3Settings("bkt", "p", **given)
    assert parse_settings("s3://bkt/p", **given) == expected
    query = "&".join(f"{name}={value}" for name, value in given.items())
    assert parse_settings(f"s3://bkt/p?{query}") == expected
    for name, value in given.items():
        monkeypatch.setenv(f"CASTORE_S3_{name.upper()}", str(value))
    assert parse_settings("s3://bkt/p") == expected


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://bkt/p", "not an S3 URL"),
        ("bkt/p", "not an S3 URL"),
        ("s3://", "not a bucket"),
        ("s3:///p", "not a bucket"),
        ("s3://-x/p", "not a bucket"),
        ("s3://bkt:9000/p", "not a bucket"),
        ("s3://express--use1-az4--x-s3/p", "directory bucket"),
        ("s3://bkt/a//b", "empty, '.' or '..'"),
        ("s3://bkt/a/../b", "empty, '.' or '..'"),
        ("s3://bkt/" + "x" * 481, "480 bytes"),
        ("s3://bkt/a\0b", "NUL"),
        ("s3://bkt/\udc80", "not valid Unicode"),
        ("s3://bkt/p?colour=red", "'colour' is not a setting"),
        ("s3://bkt/p?prefix=q", "'prefix' is not a setting"),
        ("s3://bkt/p?region", "key=value"),
        ("s3://bkt/p?region=", "'region' is empty"),
        ("s3://bkt/p?region=a&region=b", "'region' is twice"),
        ("s3://bkt/p?region=eu west", "region in the URL is malformed"),
        ("s3://bkt/p?endpoint_url=localhost:9000", "endpoint_url in the URL must be http"),
        ("s3://bkt/p?endpoint_url=http://h:port", "endpoint_url in the URL is not a URL"),
        ("s3://bkt/p?addressing_style=dns", "auto, path or virtual"),
        ("s3://bkt/p?sse=none", "AES256 or aws:kms"),
        ("s3://bkt/p?sse_kms_key_id=1234", "needs sse='aws:kms'"),
        ("s3://bkt/p?sse=AES256&sse_kms_key_id=1234", "needs sse='aws:kms'"),
        ("s3://bkt/p?storage_class=GLACIER", "can't be read back"),
        ("s3://bkt/p?storage_class=cold", "not a storage class"),
        ("s3://bkt/p?read_timeout_s=0", "seconds above 0"),
        ("s3://bkt/p?read_timeout_s=nan", "seconds above 0"),
        ("s3://bkt/p?connect_timeout_s=soon", "seconds above 0"),
        ("s3://bkt/p?max_concurrency=0", "from 1 to 1024"),
        ("s3://bkt/p?max_concurrency=2.5", "from 1 to 1024"),
    ],
)
def test_refused(url: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_settings(url)


def test_refused_environment_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CASTORE_S3_MAX_CONCURRENCY", "many")
    with pytest.raises(ValueError, match="CASTORE_S3_MAX_CONCURRENCY"):
        parse_settings("s3://bkt")


@pytest.mark.parametrize("value", [True, 2.5, "x", None])
def test_refused_argument(value: Any) -> None:
    if value is None:
        assert parse_settings("s3://bkt", max_concurrency=None).max_concurrency == 16
    else:
        with pytest.raises(ValueError, match="max_concurrency"):
            parse_settings("s3://bkt", max_concurrency=value)
    with pytest.raises(TypeError, match="'colour' is not a setting"):
        parse_settings("s3://bkt", colour="red")
    with pytest.raises(ValueError, match="region must be text"):
        parse_settings("s3://bkt", region=5)


@pytest.mark.parametrize(
    "url",
    [
        "s3://key:secret-word@bkt/p",
        "s3://bkt/p?endpoint_url=http://key:secret-word@host",
        "s3://bkt/p?aws_secret_access_key=secret-word",
    ],
)
def test_secrets_in_a_url_are_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_settings(url)
    assert "secret-word" not in str(caught.value)
