"""The server of bench_s3, the links to it, and the processes that use them.

The server is `rclone serve s3` over a folder of this run's. A link is the way there: straight, or
through the proxy of proxy.py, which adds round-trip time, caps megabytes per second in each
direction, and counts. Each contender runs in a process of its own (s3_client.py), which takes its
own time: what it costs to talk to it is not in any figure, and no contender's threads are in
another's way.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measure import castore_environment
from processes import await_port, free_port, rclone
from proxy import ProxyProcess

ACCESS_KEY = "bench-access-key"
SECRET_KEY = "bench-secret-key"
STORES, PLAIN = "stores", "plain"  # the buckets: of castore, and of everybody else
CLIENT = Path(__file__).with_name("s3_client.py")
FS_CLIENT = Path(__file__).with_name("fs_client.py")


@dataclass(frozen=True, slots=True)
class Traffic:
    """What passed the proxy: requests, and the bytes of bodies each way."""

    requests: int = 0
    sent: int = 0
    received: int = 0

    @classmethod
    def of(cls, totals: Mapping[str, Mapping[str, int]]) -> Traffic:
        rows = totals.values()
        return cls(*(sum(row[key] for row in rows) for key in ("requests", "sent", "received")))

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(
            self.requests + other.requests,
            self.sent + other.sent,
            self.received + other.received,
        )


class Link:
    """A way to the server, open until it is closed."""

    def __init__(self, server: str, rtt_s: float, megabytes_s: float | None) -> None:
        self.rtt_s = rtt_s
        self.megabytes_s = megabytes_s
        self._proxy = None
        if rtt_s or megabytes_s is not None:
            rate = None if megabytes_s is None else megabytes_s * 1e6
            self._proxy = ProxyProcess(server, rtt_s=rtt_s, bytes_per_s=rate)
        self.endpoint = f"http://{server}" if self._proxy is None else self._proxy.url

    @property
    def name(self) -> str:
        if self._proxy is None:
            return "straight"
        rate = "" if self.megabytes_s is None else f"/{self.megabytes_s:g}MBs"
        return f"{self.rtt_s * 1000:g}ms{rate}"

    @property
    def counts(self) -> bool:
        return self._proxy is not None

    def clear(self) -> Traffic:
        """What passed since the last call."""
        return Traffic() if self._proxy is None else Traffic.of(self._proxy.clear())

    def store_url(self, prefix: str) -> str:
        return f"s3://{STORES}/{prefix}?endpoint_url={self.endpoint}"

    def close(self) -> None:
        if self._proxy is not None:
            self._proxy.close()


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """`rclone serve s3` over the folder; its host:port."""
    program = rclone()
    assert program is not None
    for bucket in (STORES, PLAIN):
        (folder / bucket).mkdir(parents=True)
    port = free_port()
    command = [program, "serve", "s3", str(folder), "--addr", f"127.0.0.1:{port}"]
    # Else a range that begins within the first pages waits 20 ms for what comes before it.
    command += ["--auth-key", f"{ACCESS_KEY},{SECRET_KEY}", "--vfs-read-wait", "0s"]
    process = subprocess.Popen(
        command,
        env={**os.environ, "RCLONE_CONFIG": os.devnull},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        await_port(port, process)
        yield f"127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def rclone_version() -> str:
    program = rclone()
    assert program is not None
    done = subprocess.run([program, "version"], capture_output=True, text=True, check=True)
    return done.stdout.split("\n")[0]


class ClientFailed(RuntimeError):
    """What a contender's process said of its error."""


class Client:
    """One contender in its process. `client(verb, ...)` runs a verb of its script's."""

    def __init__(self, kind: str, python: str = sys.executable, script: Path = CLIENT) -> None:
        self.kind = kind
        self._process = subprocess.Popen(
            [python, str(script), kind],
            env=_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, verb: str, **arguments: Any) -> tuple[float, Any]:
        """(seconds that it took there, what it gave)."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([verb, arguments]) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise ClientFailed(f"{self.kind} {verb}: the process is gone")
        answer = json.loads(line)
        if "error" in answer:
            raise ClientFailed(f"{self.kind} {verb}: {answer['error']}")
        return answer["seconds"], answer["gave"]

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()


@contextmanager
def clients(
    kinds: Sequence[str], s3fs_python: str, script: Path = CLIENT
) -> Iterator[dict[str, Client]]:
    """A process for each kind."""
    running = {
        kind: Client(kind, s3fs_python if kind == "s3fs" else sys.executable, script)
        for kind in kinds
    }
    try:
        yield running
    finally:
        for client in running.values():
            client.close()


def s3fs_version(python: str) -> str | None:
    """Of the s3fs that this Python has."""
    asked = "import s3fs, botocore; print(s3fs.__version__, 'on botocore', botocore.__version__)"
    try:
        done = subprocess.run([python, "-c", asked], capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _environment() -> dict[str, str]:
    """Nothing of the machine's own configuration of AWS."""
    kept = {
        name: value
        for name, value in castore_environment().items()
        if not name.startswith(("AWS_", "CASTORE_"))
    }
    return {
        **kept,
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
    }
