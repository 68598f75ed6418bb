"""Bases are read, and sampled, once."""

from __future__ import annotations

import random

from castore.model import Location, StoredChunk
from castore.stream import anchored
from castore.stream.anchored import AnchoredBases
from castore.stream.anchors import ReferenceAnchors

RAWS = [random.Random(i).randbytes(8192) for i in range(8)]


def base(i: int) -> StoredChunk:
    return StoredChunk(bytes([i]) * 16, len(RAWS[i]), Location(bytes(16), i, 100))


class Read:
    def __init__(self) -> None:
        self.asked: list[int] = []
        self.lost: set[int] = set()

    def __call__(self, chunk: StoredChunk) -> bytes | None:
        i = chunk.chunk_id[0]
        self.asked.append(i)
        return None if i in self.lost else RAWS[i]


def test_a_base_is_read_once_for_its_anchors():
    read = Read()
    bases = AnchoredBases(read)
    for _ in range(3):
        for i in (0, 1):
            found = bases.of_base(base(i))
            assert found is not None
            assert found.positions() == ReferenceAnchors(RAWS[i]).positions() != {}
    assert read.asked == [0, 1]


def test_one_that_is_not_to_be_had_is_asked_for_again():
    read = Read()
    bases = AnchoredBases(read)
    read.lost.add(2)
    assert bases.of_base(base(2)) is None
    read.lost.clear()
    assert bases.of_base(base(2)) is not None
    assert read.asked == [2, 2]


def test_those_used_last_are_kept(monkeypatch):
    monkeypatch.setattr(anchored, "BASES_MAX", 3)
    read = Read()
    bases = AnchoredBases(read)
    for i in (0, 1, 2, 0, 3, 0, 1):
        bases.of_base(base(i))
    assert read.asked == [0, 1, 2, 3, 1]


def test_the_anchors_of_a_chunk_at_hand_are_found_once():
    bases = AnchoredBases(Read())
    first = bases.of_new(RAWS[0])
    assert bases.of_new(RAWS[0]) is first
    assert bases.of_new(RAWS[1]).positions() == ReferenceAnchors(RAWS[1]).positions()
    assert bases.of_new(RAWS[0]).positions() == first.positions()
