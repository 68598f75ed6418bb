"""Where requests go, and what signs them: as botocore's own client has it."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import pytest
from botocore.awsrequest import AWSResponse

from castore.s3.client.address import Address, address_of, plain_address
from castore.s3.client.connection import Connection, _client, session_for
from castore.s3.client.settings import S3Settings

ENDPOINTS = ("http://127.0.0.1:9000", "https://minio.example.com", "https://s3.amazonaws.com")


@pytest.fixture(autouse=True)
def nothing_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, os.devnull)


class Body(io.BytesIO):
    def stream(self) -> Any:
        return iter(())


def asked_by_the_client(settings: S3Settings) -> tuple[Address, Address]:
    """By its own GET, which is sent nowhere, and as `address_of` has it."""
    client = _client(session_for(settings), settings)
    sent = []

    def note(request: Any, **_: Any) -> AWSResponse:
        sent.append(request)
        return AWSResponse(request.url, 200, {}, Body())

    client.meta.events.register_first("before-send.s3", note)
    client.get_object(Bucket=settings.bucket, Key="x")
    scope = sent[0].headers["Authorization"].decode().split("Credential=")[1].split("/")
    told = address_of(client, settings.bucket)
    endpoint = client.meta.endpoint_url
    client.close()
    return Address(endpoint, sent[0].url.removesuffix("x"), scope[2]), told


def regions() -> list[str]:
    session = session_for(S3Settings("bucket"))
    partitions = session.get_available_partitions()
    return [
        region
        for partition in partitions
        for region in session.get_available_regions("s3", partition)
    ]


@pytest.mark.parametrize("step", [6, pytest.param(1, marks=pytest.mark.long)])
def test_what_is_plain_is_what_the_client_does(step: int) -> None:
    """In each of AWS's regions, by default in every sixth, and wherever a server is."""
    plain, all_regions = 0, regions()
    assert {"us-east-1", "eu-west-3", "cn-north-1", "us-gov-west-1"} <= {*all_regions}
    some = all_regions[::step]
    settings = [S3Settings("bucket-1", region=region) for region in (None, *some)]
    settings += [
        S3Settings(bucket, endpoint_url=endpoint, region=region, addressing_style=style)
        for bucket in ("bucket-1", "a.b", "Old_Bucket")
        for endpoint in (*ENDPOINTS, f"{ENDPOINTS[0]}/below", None)
        for region, style in ((None, "auto"), ("eu-west-3", "path"), ("eu-west-3", "virtual"))
    ]
    for each in settings:
        done, told = asked_by_the_client(each)
        assert told == done, each
        known = plain_address(session_for(each), each)
        assert known in (None, done), each
        plain += known is not None
    assert plain >= (30 if step == 1 else 12)


@pytest.mark.parametrize("endpoint", [None, ENDPOINTS[0]])
def test_what_is_configured_is_asked_of_the_client(
    endpoint: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = S3Settings("bucket-1", endpoint_url=endpoint)
    assert plain_address(session_for(settings), settings) is not None
    for name in ("AWS_USE_DUALSTACK_ENDPOINT", "AWS_USE_FIPS_ENDPOINT", "AWS_DEFAULTS_MODE"):
        with monkeypatch.context() as patch:
            patch.setenv(name, "true")
            assert plain_address(session_for(settings), settings) is None, name
    config = tmp_path / "config"
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    for line in ("use_dualstack_endpoint = true", "s3 =\n  use_accelerate_endpoint = true"):
        config.write_text(f"[default]\n{line}\n")
        assert plain_address(session_for(settings), settings) is None, line
    config.write_text("[default]\nregion = eu-west-3\noutput = json\n")
    address = plain_address(session_for(settings), settings)
    assert address is not None
    assert address.region == "eu-west-3"


@pytest.mark.parametrize("endpoint", [None, "https://minio.example.com"])
@pytest.mark.parametrize("given", ["auto", "path", "virtual"])
@pytest.mark.parametrize("profiles", ["auto", "path", "virtual"])
def test_the_profile_says_how_buckets_are_addressed_unless_somebody_else_does(
    endpoint: str | None,
    given: str,
    profiles: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    (tmp_path / "config").write_text(f"[default]\ns3 =\n  addressing_style = {profiles}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    settings = S3Settings(
        "bucket-1", endpoint_url=endpoint, region="eu-west-3", addressing_style=given
    )
    connection = Connection(settings)
    style = given if given != "auto" else profiles
    if style == "auto":
        style = "virtual" if endpoint is None else "path"
    host = "s3.eu-west-3.amazonaws.com" if endpoint is None else "minio.example.com"
    expected = f"https://bucket-1.{host}/" if style == "virtual" else f"https://{host}/bucket-1/"
    assert connection._base == expected
    connection.close()


def test_dual_stack_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_USE_DUALSTACK_ENDPOINT", "true")
    connection = Connection(S3Settings("bucket-1", region="eu-west-3"))
    assert connection._base == "https://bucket-1.s3.dualstack.eu-west-3.amazonaws.com/"
    connection.close()


def test_who_only_reads_makes_no_client() -> None:
    connection = Connection(S3Settings("bucket-1", region="eu-west-3"))
    assert connection._base == "https://bucket-1.s3.eu-west-3.amazonaws.com/"
    assert connection._made is None
    connection.close()
