"""Stores on S3 for tests, as fixtures."""

from __future__ import annotations

import dataclasses
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from fault_proxy import FaultProxy
from servers import MOTO, QUICK, Server, client_of

import castore
from castore.format.config import StoreConfig, encode_config
from castore.s3.client import connection, retries
from castore.s3.client.settings import S3Settings
from castore.stream.chunker import ChunkSizes

Open = Callable[..., castore.Store]


def make_store(
    server: Server, *, prefix: str = "store", chunk_bytes_avg: int = 2816, guard: str | None = None
) -> None:
    """As `castore.open` does, but for the probing, which would take most of the tests' time."""
    sizes = ChunkSizes.for_average(chunk_bytes_avg)
    config = StoreConfig(
        store_id=secrets.token_bytes(16),
        seed=secrets.randbits(64),
        chunk_bytes_min=sizes.min,
        chunk_bytes_avg=sizes.norm,
        chunk_bytes_max=sizes.max,
        collision_guard=guard,
    )
    client_of(server).put_object(
        Bucket=server.bucket, Key=f"{prefix}/castore.json", Body=encode_config(config)
    )


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries without the waiting, and in each process one client of boto3's for all that are
    alike, of which making one takes longer than most tests do. A forked child that took its
    parent's would read its parent's answers."""
    monkeypatch.setattr(retries, "BACKOFF", QUICK)
    clients: dict[Any, Any] = {}
    make = connection._client

    def client_for(session: Any, settings: S3Settings) -> Any:
        key = os.getpid(), dataclasses.replace(settings, bucket="any", prefix="")
        kept = _clients if settings.endpoint_url in MOTO else clients
        if key not in kept:
            kept[key] = make(session, settings)
        return kept[key]

    monkeypatch.setattr(connection, "_client", client_for)


_clients: dict[Any, Any] = {}  # of the server that runs until the end


@pytest.fixture
def cache_dir(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where caches go."""
    path = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("CASTORE_CACHE_DIR", str(path))
    return path


@pytest.fixture
def open_moto(
    moto_server: Server, quick: None, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Open]:
    """Opens the store on moto, with chunks as small as they come; `machine=` is a number, each with
    a cache of its own; `endpoint_url=` that of a proxy, perhaps."""
    make_store(moto_server)
    with ExitStack() as opened:

        def open_store(machine: int = 0, **options: Any) -> castore.Store:
            monkeypatch.setenv("CASTORE_CACHE_DIR", str(cache_dir / str(machine)))
            return opened.enter_context(castore.open(moto_server.url(), **options))

        yield open_store


@pytest.fixture
def open_proxied(open_moto: Open, proxy: FaultProxy) -> Open:
    """The same, through the proxy."""

    def open_store(machine: int = 0, **options: Any) -> castore.Store:
        return open_moto(machine, endpoint_url=proxy.url, **options)

    return open_store
