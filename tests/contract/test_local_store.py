"""The contract of every verb, on a local store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import castore
from castore.testing import SharedStoreContract


class TestLocal(SharedStoreContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[castore.Store]:
        with castore.open(tmp_path / "anywhere", chunk_bytes_avg=2816, threads=2) as store:
            yield store
