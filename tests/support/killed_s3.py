"""Processes at a store on S3 that are killed at random, and what must be true then.

They reach the server through a proxy: what they had sent when they died is answered before anyone
looks at what came of it.
"""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Self

import gc_s3_oracle
import oracle
import pytest
from fault_proxy import FaultProxy
from gc_s3_oracle import Child, Expected, ForkServer
from servers import Server

import castore
from castore.format.s3 import decode_manifest_head
from castore.s3.client.bucket import Bucket

# Who knows how long a pin is one.
PIN_S = [f"castore.s3.{of}.PIN_S" for of in ("gc.collect", "check.check", "check.repair")]

PAUSE_S = 1.0  # a collector comes round in less


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    with oracle.fast_folder(tmp_path) as folder:
        yield folder


@pytest.fixture
def forks(folder: Path, aws_environment: None) -> Iterator[ForkServer]:
    (folder / "said").mkdir()
    with ForkServer(folder / "said") as forks:
        yield forks


@contextmanager
def opened(url: str, cache: Path) -> Iterator[castore.Store]:
    """On a machine that has nothing in its cache, nor keeps it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CASTORE_CACHE_DIR", str(cache))
        with castore.open(url, create=False, threads=2) as store:
            yield store
    shutil.rmtree(cache)


def behind(proxy: FaultProxy, server: Server, prefix: str = "store") -> str:
    """The store's URL through the proxy."""
    return replace(server, endpoint_url=proxy.url).url(prefix)


def collect_all(server: Server, store: castore.Store, expected: Expected) -> None:
    """When every process is dead, and their pins are as old as they must be: all that is garbage
    goes, all that is expected stays."""
    with pytest.MonkeyPatch.context() as patch:
        for of in PIN_S:
            patch.setattr(of, -60)  # servers tell times in seconds
        gc_s3_oracle.collect(store)
        expected.check(store)
        gc_s3_oracle.assert_whole(store.check(read_data=True))
    with Bucket(server.settings()) as bucket:
        assert_no_space_is_lost(bucket)


def assert_no_space_is_lost(bucket: Bucket) -> None:
    """Right after a collection: every pack is needed."""
    needed: set[str] = set()
    for entry in bucket.list("names/"):
        head = decode_manifest_head(bucket.get(entry.key).body)
        needed.update(pack_id.hex() for pack_id in head.packs)
    assert {entry.key[6:38] for entry in bucket.list("packs/")} == needed
    for nothing in ("pins/", "gc/condemned/", "quarantine/"):
        assert [entry.key for entry in bucket.list(nothing)] == []


@dataclass
class _Member:
    """One process, and the one that takes its place."""

    place: str
    proxy: FaultProxy
    collects: bool
    expected: Expected = field(default_factory=Expected)
    child: Child | None = None


class Crowd:
    """Writers, each with names of its own, and collectors, all at one store at once. Whoever is
    killed is looked into, and replaced, while the others go on. Caches live on."""

    def __init__(
        self, server: Server, forks: ForkServer, folder: Path, *, writers: int, collectors: int
    ) -> None:
        self.kills = 0
        self._server = server
        self._forks = forks
        self._folder = folder
        self._turns = count(1)
        with ExitStack() as stack:
            self._members = [
                _Member(f"{i}", stack.enter_context(FaultProxy(server.endpoint_url)), i >= writers)
                for i in range(writers + collectors)
            ]
            self._proxies = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for member in self._members:
            if member.child is not None and member.child.status is None:
                member.child.kill()
        self._proxies.close()

    @property
    def acknowledged(self) -> int:
        return sum(member.expected.acknowledged for member in self._members)

    def run(self, seconds: float, choose: random.Random) -> None:
        """Until then; at its end everybody is dead."""
        for member in self._members:
            self._start(member)
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            time.sleep(choose.random() * 1.5)
            member = choose.choice(self._members)
            self._kill(member)
            self._start(member)
        for member in self._members:
            self._kill(member)

    def check(self) -> None:
        """Everybody is dead: all that was acknowledged is there, and nothing else is kept."""
        expected = Expected()
        for member in self._members:
            expected.settled.update(member.expected.settled)
        with opened(self._server.url(), self._folder / "all") as store:
            expected.check(store)
            collect_all(self._server, store, expected)

    def _start(self, member: _Member) -> None:
        url, cache = behind(member.proxy, self._server), str(self._folder / f"of-{member.place}")
        turn = next(self._turns)
        if member.collects:
            member.child = self._forks.start("keep_collecting", url, cache, turn)
        else:
            threads = 1 + turn % 2
            member.child = self._forks.start(
                "keep_writing", url, cache, turn, threads, f"w{member.place}", PAUSE_S
            )

    def _kill(self, member: _Member) -> None:
        child = member.child
        assert child is not None
        child.kill()
        assert (child.wait(), child.errors()) == (-9, "")
        self.kills += 1
        member.proxy.await_clients()
        if member.collects:
            return
        member.expected.follow(child.said())
        assert member.expected.absent == []
        with opened(self._server.url(), self._folder / f"after-{member.place}") as store:
            member.expected.check_below(f"w{member.place}/", store)
