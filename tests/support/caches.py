"""Caches of stores on S3."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from castore.errors import StoreClosed
from castore.s3.cache.folder import cache_folder
from castore.s3.cache.frames import FrameCache
from castore.s3.cache.store import StoreCache

STORE = bytes(range(16))


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


@pytest.fixture
def here(cache_dir: Path) -> Iterator[StoreCache]:
    one = StoreCache(cache_folder(STORE, "a place"), frames_bytes_max=1 << 20)
    yield one
    one.close()


def settle(kept: FrameCache) -> None:
    """Wait until the frames that are queued are written."""
    with contextlib.suppress(StoreClosed):
        kept._writer.submit(int).result()
    assert not kept._queued
    assert not kept._batches
