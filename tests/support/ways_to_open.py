"""A folder with a store in it, and the ways to open one."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

import castore

WAYS_TO_OPEN: list[dict[str, Any]] = [{}, {"create": False}, {"read_only": True}]


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A store that is closed, with an object inline and one in a pack."""
    with castore.open(tmp_path / "store", chunk_bytes_avg=2816) as store:
        store.puts("inline", b"inline")
        store.puts("packed", noise(50_000))
    return tmp_path / "store"
