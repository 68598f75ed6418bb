"""Stores that libraries open by `castore://`: one of each kind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from s3_stores import make_store
from servers import Server

from castore.fs import CastoreFileSystem, opening
from castore.fs.links import StoreLink

KINDS = ("local", "s3")


@pytest.fixture(params=KINDS)
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a store is; the one on S3 is there already."""
    if request.param == "local":
        return str(tmp_path / "store")
    server: Server = request.getfixturevalue("moto_server")
    request.getfixturevalue("quick")
    request.getfixturevalue("cache_dir")
    make_store(server, chunk_bytes_avg=65_536)
    return server.url()


@pytest.fixture
def castore_urls() -> Iterator[None]:
    """`castore://` is known; the stores that it opened are closed."""
    fsspec.register_implementation("castore", CastoreFileSystem, clobber=True)
    fsspec.register_implementation("castore+s3", StoreLink, clobber=True)
    yield
    CastoreFileSystem.clear_instance_cache()
    for store in list(opening._stores.values()):
        store.close()


@pytest.fixture
def fs(store_url: str, castore_urls: None) -> CastoreFileSystem:
    """The file system that `castore://` is with `options`."""
    return CastoreFileSystem(store_url)


@pytest.fixture
def options(store_url: str) -> dict[str, Any]:
    """`storage_options`."""
    return {"store": store_url}
