"""Stores in a folder and in memory side by side with a dict."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import oracle
import pytest
from memory_store import make_place, open_memory

import castore
from castore.testing.stateful import CollectedStoreAndDict, run_machine


class FolderAndDict(CollectedStoreAndDict):
    def create(self, guard: str | None, **options: Any) -> castore.Store:
        self.path = os.path.join(self.folder, "store")
        return castore.open(self.path, chunk_bytes_avg=2816, collision_guard=guard, **options)

    def open_again(self, **options: Any) -> castore.Store:
        return castore.open(self.path, create=False, **options)

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.gc()
            oracle.check_index(self.other)
        super().teardown()


class MemoryAndDict(CollectedStoreAndDict):
    def create(self, guard: str | None, **options: Any) -> castore.Store:
        self.place = make_place(2816, guard)
        return open_memory(self.place, **options)

    def open_again(self, **options: Any) -> castore.Store:
        return open_memory(self.place, **options)


@pytest.fixture(autouse=True)
def no_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CASTORE_CACHE_DIR", str(tmp_path))


def test_a_store_is_a_dict() -> None:
    run_machine(FolderAndDict, 25, 25)


@pytest.mark.deltas
def test_a_store_of_deltas_is_a_dict() -> None:
    run_machine(FolderAndDict, 12, 25)


def test_a_store_in_memory_is_a_dict() -> None:
    run_machine(MemoryAndDict, 15, 25)


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_a_store_is_a_dict_2_000_times() -> None:
    run_machine(FolderAndDict, 2000, 40)
