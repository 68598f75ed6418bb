"""The stateful model of the local store's tests, with two machines on one bucket."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import initialize
from s3_stores import make_store
from servers import Server

import castore
from castore.testing.stateful import StoreAndDict, run_machine


class MachinesAndDict(StoreAndDict):
    """Two Stores with a cache each: what one writes, the other sees at once."""

    INLINE_BYTES_MAX = 64 << 10
    server: ClassVar[Server]
    made: ClassVar[int] = 0

    def __init__(self) -> None:
        super().__init__()
        os.environ["CASTORE_CACHE_DIR"] = os.path.join(self.folder, "cache")
        type(self).made += 1
        self.prefix = f"stateful-{self.made}"
        self.path = self.server.url(self.prefix)

    @initialize(
        guard=st.sampled_from([None, None, None, "sha256"]),
        cache=st.sampled_from([0, 1 << 20]),
        disk=st.sampled_from([0, 100_000, 1 << 30]),
    )
    def make(self, guard: str | None, cache: int, disk: int) -> None:
        self.options: dict[str, Any] = {
            "threads": 2,
            "cache_bytes": cache,
            "disk_cache_bytes": disk,
        }
        self.store = self.create(guard, **self.options)
        os.environ["CASTORE_CACHE_DIR"] = os.path.join(self.folder, "other-cache")
        self.other = self.open_again(cache_bytes=0, threads=1)

    def create(self, guard: str | None, **options: Any) -> castore.Store:
        make_store(self.server, prefix=self.prefix, guard=guard)
        return castore.open(self.path, **options)

    def open_again(self, **options: Any) -> castore.Store:
        return castore.open(self.path, create=False, **options)


def run(server: Server, examples: int, steps: int) -> None:
    MachinesAndDict.server = server
    run_machine(MachinesAndDict, examples, steps)


def test_a_store_on_s3_is_a_dict(moto_server: Server, quick: None, cache_dir: Path) -> None:
    run(moto_server, 5, 12)


@pytest.mark.deltas
def test_a_store_of_deltas_on_s3_is_a_dict(
    moto_server: Server, quick: None, cache_dir: Path
) -> None:
    run(moto_server, 4, 12)


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_a_store_on_s3_is_a_dict_300_times(
    moto_server: Server, quick: None, cache_dir: Path
) -> None:
    run(moto_server, 300, 30)
