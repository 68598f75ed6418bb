"""The contract of every verb, on a kind of store that is written against the documented interfaces
alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from memory_store import MemoryStore, make_place, open_memory

import castore
from castore.testing import StoreContract


class TestMemory(StoreContract):
    @pytest.fixture
    def store(self) -> Iterator[castore.Store]:
        self.place = make_place(2816)
        with open_memory(self.place, threads=2) as store:
            yield store
            assert MemoryStore(self.place).check(fraction=1, progress=None).problems == []

    def reopen(self, store: castore.Store, **options: Any) -> castore.Store:
        return open_memory(self.place, **options)
