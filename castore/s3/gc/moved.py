"""Where the frames of packs are that were moved to other packs."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Collection, Sequence
from typing import NamedTuple

import xxhash

from castore.model import FrameKind, Location, StoredChunk


class _Pack(NamedTuple):
    """Of each of its frames: offset, the hash of its kind, the number of the pack and the offset
    where it is now, and its bytes there."""

    offsets: array[int]
    kinds: array[int]
    places: array[int]
    sizes: array[int]


class MovedFrames:
    """24 bytes for each."""

    def __init__(self, packs: Collection[bytes]) -> None:
        """`packs` are those that are to be emptied, whether or not any frame of theirs is moved."""
        self.packs = frozenset(packs)
        self._moved: dict[bytes, _Pack] = {}
        self._ids: list[bytes] = []
        self._numbers: dict[bytes, int] = {}

    def add(
        self, pack_id: bytes, frames: Sequence[tuple[int, FrameKind]], places: Sequence[Location]
    ) -> None:
        """The pack's frames, given with their offsets in order, are at these places now."""
        self._moved[pack_id] = _Pack(
            array("I", [offset for offset, _ in frames]),
            array("Q", [_hash(kind) for _, kind in frames]),
            array("Q", [self._number(at.pack_id) << 32 | at.offset for at in places]),
            array("I", [at.stored_bytes for at in places]),
        )

    def find(self, chunk: StoredChunk) -> Location | None:
        """Where the chunk is now; what it decodes with stays where it was. None if it was not
        moved: there is another frame at its place, or its pack was left."""
        at = chunk.location
        pack = self._moved.get(at.pack_id)
        if pack is None:
            return None
        i = bisect_left(pack.offsets, at.offset)
        if i == len(pack.offsets) or pack.offsets[i] != at.offset:
            return None
        if pack.kinds[i] != _hash(chunk.kind):
            return None
        place = pack.places[i]
        return Location(self._ids[place >> 32], place & 0xFFFFFFFF, pack.sizes[i], at.bases)

    def _number(self, pack_id: bytes) -> int:
        number = self._numbers.setdefault(pack_id, len(self._ids))
        if number == len(self._ids):
            self._ids.append(pack_id)
        return number


def _hash(kind: FrameKind) -> int:
    """It tells a frame from another one at the same place, where a manifest is wrong."""
    chunk_id, bases = kind
    return xxhash.xxh3_64_intdigest(b"".join((chunk_id, *bases)))
