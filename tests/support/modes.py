"""conducto's two modes, as a fixture: `pytest_plugins = ["modes"]`.

A test that takes `mode` runs in local mode and in cloud mode, on moto, each time as a new user who
runs pipeline `p1`.
"""

from __future__ import annotations

import http.client
import secrets
import uuid
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest

from castore.format.config import StoreConfig, encode_config
from conducto import context

pytest_plugins = ["servers"]

MODES = ("local", "cloud")
VARIABLES = (
    "CONDUCTO_AUTO_URL",
    "CONDUCTO_CONFIG",
    "CONDUCTO_EXECUTION_ENV",
    "CONDUCTO_IDENTITY_ID",
    "CONDUCTO_ORG_ID",
    "CONDUCTO_PROFILE",
    "CONDUCTO_S3_BUCKET",
    "CONDUCTO_SECRETS_KEY",
    "CONDUCTO_SECRETS_KMS_KEY_ID",
    "CONDUCTO_SECRETS_PATH",
)
CLOUD_BUCKET = "conducto-users"
# An access key in the request is all that moto wants of a signature.
SIGNED = {"Authorization": "AWS4-HMAC-SHA256 Credential=x/20200101/us-east-1/s3/aws4_request"}


@pytest.fixture(params=MODES)
def mode(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """A process that runs pipeline `p1` of a new user, in this mode. Its files are in
    `tmp_path / "base"`."""
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("CONDUCTO_BASE_DIR", str(tmp_path / "base"))
    monkeypatch.setenv("CONDUCTO_PIPELINE_ID", "p1")
    if request.param == "cloud":
        request.getfixturevalue("aws_environment")
        endpoint_url = request.getfixturevalue("users_bucket")
        identity = f"us-east-1:{uuid.uuid4()}"
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint_url)
        monkeypatch.setenv("CASTORE_CACHE_DIR", str(tmp_path / "base" / "cache"))
        monkeypatch.setenv("CONDUCTO_EXECUTION_ENV", "worker_cloud")
        monkeypatch.setenv("CONDUCTO_IDENTITY_ID", identity)
        monkeypatch.setenv("CONDUCTO_S3_BUCKET", CLOUD_BUCKET)
        _make_store(endpoint_url, f"{identity}/store")
    yield request.param
    context.close_stores()


@pytest.fixture(scope="session")
def users_bucket(running_moto: str) -> str:
    """The endpoint that has it."""
    _put(running_moto, CLOUD_BUCKET, b"")
    return running_moto


def _make_store(endpoint_url: str, prefix: str) -> None:
    """As `castore.open` does, but for the probing, which would take most of the tests' time."""
    config = StoreConfig(
        store_id=secrets.token_bytes(16),
        seed=secrets.randbits(64),
        chunk_bytes_min=16 << 10,
        chunk_bytes_avg=64 << 10,
        chunk_bytes_max=256 << 10,
        collision_guard=None,
    )
    _put(endpoint_url, f"{CLOUD_BUCKET}/{quote(prefix)}/castore.json", encode_config(config))


def _put(endpoint_url: str, path: str, body: bytes) -> None:
    connection = http.client.HTTPConnection(urlsplit(endpoint_url).netloc)
    try:
        connection.request("PUT", f"/{path}", body, SIGNED)
        reply = connection.getresponse()
        assert reply.status == 200, reply.read()
    finally:
        connection.close()
