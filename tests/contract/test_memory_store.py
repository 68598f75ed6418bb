"""The contract of every verb, on a kind of store that is written against the documented interfaces
alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from memory_store import MemoryStore, make_place, open_memory

import castore
from castore.stream.backend import Backend, Catalog, Packs
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


def test_it_has_all_that_a_kind_of_store_is_asked_for() -> None:
    """What only some stores come to ask, too, as those that make deltas."""
    store = MemoryStore(make_place())
    asked = [(store, Backend), (store.catalog, Catalog), (store.packs, Packs)]
    for supplied, protocol in asked:
        wanted = {*vars(protocol), *protocol.__annotations__} - set(vars(object))
        public = {name for name in wanted if not name.startswith("_")}
        assert public
        assert {name for name in public if not hasattr(supplied, name)} == set(), protocol
