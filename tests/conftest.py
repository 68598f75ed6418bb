"""What all tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import castore

pytest_plugins = ["servers", "s3_stores", "stores", "gc_stores", "whole"]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[castore.Store]:
    """A new store whose chunks are as small as they come (704 to 11,264 bytes), so that small
    objects have many."""
    with castore.open(tmp_path / "store", chunk_bytes_avg=2816, threads=2) as store:
        yield store


@pytest.fixture(params=["local", "s3"])
def any_store(request: pytest.FixtureRequest) -> Any:
    """A store of each kind."""
    if request.param == "s3":
        return request.getfixturevalue("open_moto")()
    return request.getfixturevalue("store")
