"""Staging something large on S3: what it takes in memory, and what an interrupt leaves."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import oracle
import pytest
from proxy import Proxy
from servers import Server

import castore
from castore.s3.uploads import PACK_BYTES_FIRST, PACK_BYTES_MAX

pytest_plugins = ["servers"]
needs_proc = pytest.mark.skipif(
    not os.path.exists("/proc/self/status"), reason="this needs Linux's /proc"
)

ANONYMOUS_BYTES_MAX = 256 << 20
BLOCK_BYTES = 1 << 20


def write_random(path: Path, size: int) -> Path:
    source = random.Random(size)
    with open(path, "wb") as file:
        for _ in range(size // BLOCK_BYTES):
            file.write(source.randbytes(BLOCK_BYTES))
    return path


@pytest.fixture
def link(rclone_server: Server) -> Iterator[Callable[[float], Proxy]]:
    """A link to rclone of so many megabytes per second each way."""
    opened: list[Proxy] = []

    def open_link(megabytes_s: float) -> Proxy:
        opened.append(Proxy(rclone_server.endpoint_url, bytes_per_s=megabytes_s * 1e6))
        return opened[-1]

    yield open_link
    for each in opened:
        each.close()


def start(url: str, cache: Path, *words: str) -> subprocess.Popen[bytes]:
    """A command on the store; what it prints goes nowhere."""
    return subprocess.Popen(
        [sys.executable, "-m", "castore", "-r", url, *words],
        env={**oracle.environment(), "CASTORE_CACHE_DIR": str(cache)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def start_put(url: str, cache: Path, file: Path, name: str) -> subprocess.Popen[bytes]:
    return start(url, cache, "put", str(file), name)


def finish(process: subprocess.Popen[bytes], status: int = 0) -> bytes:
    _, errors = process.communicate(timeout=300)
    assert process.returncode == status, errors.decode()
    return errors


class Peak:
    """The highest RssAnon of a process, read every few milliseconds until it is gone."""

    def __init__(self, pid: int) -> None:
        self.bytes = self.readings = 0
        self._thread = threading.Thread(target=self._watch, args=(pid,), daemon=True)
        self._thread.start()

    def join(self) -> int:
        self._thread.join(10)
        assert self.readings > 10
        return self.bytes

    def _watch(self, pid: int) -> None:
        with open(f"/proc/{pid}/status", "rb", buffering=0) as status:
            while True:
                fields = dict(line.split(b":", 1) for line in status.read().splitlines())
                if b"RssAnon" not in fields:  # a zombie has no memory
                    return
                self.bytes = max(self.bytes, int(fields[b"RssAnon"].split()[0]) * 1024)
                self.readings += 1
                time.sleep(0.005)
                status.seek(0)


def stage_twice_at_once(server: Server, folder: Path, size: int) -> None:
    """Two machines; the same bytes, all new to both."""
    source = write_random(folder / "source", size)
    castore.open(server.url()).close()  # rclone can't tell which of two made it first
    running = [
        start_put(server.url(), folder / f"cache-{i}", source, f"staged/{i}") for i in range(2)
    ]
    peaks = [Peak(process.pid) for process in running]
    for process in running:
        finish(process)
    found = [peak.join() for peak in peaks]
    print(f"anonymous, MiB: {[round(peak / 2**20) for peak in found]}")
    assert max(found) <= ANONYMOUS_BYTES_MAX
    with castore.open(server.url(), create=False, disk_cache_bytes=0) as store:
        for i in range(2):
            store.get(f"staged/{i}", folder / "read-back")
            subprocess.run(["cmp", source, folder / "read-back"], check=True)
        assert size <= store.stats().pack_bytes < 2.01 * size
    for words in (["get", "staged/0", str(folder / "read-back")], ["cat", "staged/1"]):
        process = start(server.url(), folder / f"cache-{words[0]}", *words)
        peak = Peak(process.pid)
        finish(process)
        print(f"{words[0]}: {round(peak.join() / 2**20)} MiB")
        assert peak.bytes <= ANONYMOUS_BYTES_MAX
    # Each told the others of its packs: a third machine uploads none.
    with Proxy(server.endpoint_url) as counting:
        url = f"s3://{server.bucket}/store?endpoint_url={counting.url}"
        finish(start_put(url, folder / "cache-third", source, "staged/third"))
        assert counting.count("PUT", "/packs/") == 0


@needs_proc
@pytest.mark.long
def test_two_processes_stage_the_same_file(
    rclone_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CASTORE_CACHE_DIR", str(tmp_path / "cache"))
    stage_twice_at_once(rclone_server, tmp_path, 96 << 20)


@needs_proc
@pytest.mark.long
@pytest.mark.timeout(900)
def test_two_processes_stage_the_same_gigabyte(
    rclone_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CASTORE_CACHE_DIR", str(tmp_path / "cache"))
    stage_twice_at_once(rclone_server, tmp_path, 1 << 30)


def interrupt_midway(server: Server, proxy: Proxy, folder: Path, source: Path, packs: int) -> int:
    """SIGINT a put once so many packs of it are uploaded; the bytes of those that are there."""
    url = f"s3://{server.bucket}/store?endpoint_url={proxy.url}"
    process = start_put(url, folder / "cache", source, "one")
    while uploaded(proxy) < packs:
        assert process.poll() is None, process.communicate()[1].decode()
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    errors = finish(process, 130)
    assert errors.splitlines()[-1].endswith(b"interrupted")
    listed = server.client().list_objects_v2(Bucket=server.bucket, Prefix="store/")
    keys = {entry["Key"]: entry["Size"] for entry in listed["Contents"]}
    assert not any(key.startswith("store/names/") for key in keys)
    assert not any(key.startswith("store/pins/") for key in keys), "a session that ended"
    return sum(size for key, size in keys.items() if key.startswith("store/packs/"))


def uploaded(proxy: Proxy) -> int:
    return sum(1 for exchange in proxy.matching("PUT", "/packs/") if exchange.ended)


def put_again(server: Server, proxy: Proxy, cache: Path, source: Path) -> int:
    """Put the file; the bytes of packs that it uploads."""
    proxy.clear()
    url = f"s3://{server.bucket}/store?endpoint_url={proxy.url}"
    finish(start_put(url, cache, source, "one"))
    return sum(exchange.sent_bytes for exchange in proxy.matching("PUT", "/packs/"))


@pytest.mark.parametrize(
    ("cache", "size", "packs"),
    [
        pytest.param("another-cache", 80 << 20, 1, id="another-machine"),
        pytest.param("cache", 128 << 20, 3, id="large", marks=pytest.mark.long),
        pytest.param("another-cache", 128 << 20, 3, id="large-other", marks=pytest.mark.long),
    ],
)
def test_an_interrupted_put_leaves_nothing_visible_and_goes_on_where_it_was(
    rclone_server: Server,
    link: Callable[[float], Proxy],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cache: str,
    size: int,
    packs: int,
) -> None:
    """On the same machine and on another: what was uploaded is known to both."""
    monkeypatch.setenv("CASTORE_CACHE_DIR", str(tmp_path / "own"))
    source = write_random(tmp_path / "source", size)
    proxy = link(size / 2 / 1e6)
    there = interrupt_midway(rclone_server, proxy, tmp_path, source, packs)
    least = sum(min(PACK_BYTES_FIRST << i, PACK_BYTES_MAX) for i in range(packs))
    assert least <= there < size
    again = put_again(rclone_server, proxy, tmp_path / cache, source)
    print(f"{there:,} bytes were there, {again:,} uploaded again, of {size:,}")
    # A pack that is not full when the put is interrupted, and the seams.
    assert again <= size - there + (1 << 20)
    with castore.open(rclone_server.url(), create=False) as store:
        store.get("one", tmp_path / "read-back")
    subprocess.run(["cmp", source, tmp_path / "read-back"], check=True)
