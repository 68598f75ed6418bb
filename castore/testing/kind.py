"""What a kind of store supplies to the tests of the contract."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import pytest

import castore


class Kind:
    """See `castore.testing`."""

    inline_bytes_max: ClassVar[int] = 4096

    @pytest.fixture
    def store(self) -> Iterator[castore.Store]:
        """A new store whose chunks are as small as they come: `chunk_bytes_avg=2816`. Closed by the
        fixture that makes it."""
        raise NotImplementedError("a kind of store supplies a fixture `store`")

    def reopen(self, store: castore.Store, **options: Any) -> castore.Store:
        """Another Store on the same store, with these options of `castore.open`: `read_only`,
        `cache_bytes`, `threads`. Also where `store` is closed by now."""
        return castore.open(store.path, create=False, **options)
