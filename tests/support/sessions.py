"""Rows and small stages: what tests of sessions and collections share."""

from __future__ import annotations

import random

import pytest

import castore


def some_bytes(size: int, seed: int = 0) -> bytes:
    return random.Random(f"bytes {seed}").randbytes(size)


def small_batches(patch: pytest.MonkeyPatch) -> None:
    """Chunks are looked up a few at a time, and placed as soon as they are encoded."""
    patch.setattr("castore.stream.writer.BATCH_BYTES", 16_384)
    patch.setattr("castore.stream.writer.CUT_BYTES", 8192)
    patch.setattr("castore.stream.writer.BATCHES_MAX", 0)


def small_stages(patch: pytest.MonkeyPatch) -> None:
    """And their rows are in the index long before the object has a name."""
    small_batches(patch)
    patch.setattr("castore.format.segment.SEGMENT_EXTENTS_MAX", 4)
    patch.setattr("castore.local.session.SEGMENTS_MAX", 2)


def rows(store: castore.Store, table: str) -> dict[bytes, bytes]:
    index = store._catalog._index  # type: ignore[union-attr]
    with index.gate, index.snapshot() as txn:
        return {bytes(k): bytes(v) for k, v in txn.cursor(db=getattr(index, table))}
