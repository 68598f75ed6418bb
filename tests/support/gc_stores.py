"""Stores on S3 in memory, several machines on each, as fixtures."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
from memory_s3 import Actor, Killed, MemoryS3
from servers import QUICK

import castore
from castore.format.config import StoreConfig, encode_config
from castore.s3 import lease as session
from castore.s3.batch_root import create_root
from castore.s3.batches import Batches
from castore.s3.client import bucket, retries
from castore.s3.client.probe import ServerFeatures
from castore.s3.client.settings import S3Settings, parse_settings
from castore.stream.chunker import ChunkSizes
from castore.stream.reports import GcReport

URL = "s3://memory/store"
HOUR = 3600.0
DAY = 24 * HOUR


def noise(size: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(size)


def edited(data: bytes, version: int, *, every: int = 1500) -> bytes:
    """A later version: of nearly every chunk a byte is another one, or of really every one."""
    changed = bytearray(data)
    for at in range(100 * version, len(data), every):
        changed[at] ^= 0xFF
    return bytes(changed)


class World:
    """A store on a server in memory, and the machines that use it."""

    def __init__(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, *, batches: bool | None = None
    ) -> None:
        """With `batches`, many small objects may share one."""
        self.server = MemoryS3()
        self._folder = folder
        self._monkeypatch = monkeypatch
        self._opened = ExitStack()
        monkeypatch.setattr(bucket, "Attempts", self.server.attempts)
        monkeypatch.setattr(session, "boot_clock", lambda: self.server.clock)
        monkeypatch.setattr(Batches, "now", lambda _: int(self.server.clock))
        sizes = ChunkSizes.for_average(2816)
        config = StoreConfig(
            store_id=bytes(range(16)),
            seed=7,
            chunk_bytes_min=sizes.min,
            chunk_bytes_avg=sizes.norm,
            chunk_bytes_max=sizes.max,
            collision_guard=None,
            **({} if batches is None else {"batches": batches}),
        )
        self.config = config
        with bucket.Bucket(self.settings()) as made:
            made.put("castore.json", encode_config(config), idempotent=True)
            if config.batches:
                create_root(made, config.store_id)

    def settings(self) -> S3Settings:
        return parse_settings(URL)

    def bucket(self) -> bucket.Bucket:
        """Of nobody in particular."""
        return bucket.Bucket(self.settings())

    def cache_of(self, machine: str) -> Path:
        return self._folder / machine

    def open(
        self, machine: str = "one", actor: Actor | None = None, **options: Any
    ) -> castore.Store:
        self._monkeypatch.setenv("CASTORE_CACHE_DIR", str(self.cache_of(machine)))
        with self.server.opening(actor or Actor(machine)):
            store = castore.open(URL, create=False, **options)
        self._opened.callback(_close, store)
        return store

    def forget_machines(self) -> None:
        """Close all that are open; with nothing cached, the next are new ones."""
        self.close()
        for machine in self._folder.iterdir():
            shutil.rmtree(machine)

    def pass_time(self, seconds: float) -> None:
        self.server.clock += seconds

    def close(self) -> None:
        self._opened.close()


def _close(store: castore.Store) -> None:
    with suppress(Killed, castore.CastoreError):
        store.close()


@pytest.fixture
def probed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Collectors take the server for one that honours all preconditions, and do not try it."""
    monkeypatch.setattr(
        "castore.s3.gc.server.probe", lambda bucket: ServerFeatures(True, True, True, True, True)
    )


@pytest.fixture
def make_world(
    monkeypatch: pytest.MonkeyPatch,
    aws_environment: None,
) -> Iterator[Callable[..., World]]:
    """Each call makes another one, which is then the one that is opened."""
    monkeypatch.setattr(retries, "BACKOFF", QUICK)
    in_memory = "/dev/shm" if os.path.isdir("/dev/shm") else None  # nothing here is about fsync
    with tempfile.TemporaryDirectory(dir=in_memory) as folder, ExitStack() as made:

        def make(**options: bool) -> World:
            world = World(Path(tempfile.mkdtemp(dir=folder)), monkeypatch, **options)
            made.callback(world.close)
            return world

        yield make


@pytest.fixture
def world(make_world: Callable[[], World]) -> World:
    return make_world()


def collect(store: castore.Store, **options: Any) -> GcReport:
    """At once, and without moving anything, unless it is said otherwise."""
    return store.gc(**{"grace_s": 0.0, "repack_below": 0.0, **options})
