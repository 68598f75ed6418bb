"""The frames of a pack in columns, 28 bytes for each, and more for a delta: those of a whole store
fit in memory."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterator, Set

from castore.format.frame import CHUNK_ID_BYTES
from castore.format.pack import PackEntry


class Frames:
    """Sorted by their offsets in the pack; they are appended in that order."""

    __slots__ = ("_bases", "_ids", "_offsets", "_raw", "_stored")

    def __init__(self) -> None:
        self._offsets = array("I")
        self._stored = array("I")
        self._raw = array("I")
        self._ids = bytearray()
        self._bases: dict[int, tuple[bytes, ...]] = {}  # by the offsets of deltas

    def __len__(self) -> int:
        return len(self._offsets)

    def __iter__(self) -> Iterator[PackEntry]:
        return (self._entry(i) for i in range(len(self._offsets)))

    def append(self, entry: PackEntry) -> None:
        self._offsets.append(entry.offset)
        self._stored.append(entry.stored_bytes)
        self._raw.append(entry.raw_bytes)
        self._ids += entry.chunk_id
        if entry.bases:
            self._bases[entry.offset] = entry.bases

    def at(self, offset: int) -> PackEntry | None:
        """The frame that begins at this offset."""
        i = bisect_left(self._offsets, offset)
        return self._entry(i) if i < len(self._offsets) and self._offsets[i] == offset else None

    def of(self, chunk_ids: Set[bytes]) -> Iterator[PackEntry]:
        """Those of these chunks."""
        if chunk_ids:
            ids = bytes(self._ids)
            for i in range(len(self)):
                if ids[i * CHUNK_ID_BYTES : (i + 1) * CHUNK_ID_BYTES] in chunk_ids:
                    yield self._entry(i)

    def _entry(self, i: int) -> PackEntry:
        at = i * CHUNK_ID_BYTES
        chunk_id = bytes(self._ids[at : at + CHUNK_ID_BYTES])
        offset = self._offsets[i]
        bases = self._bases.get(offset, ())
        return PackEntry(chunk_id, offset, self._stored[i], self._raw[i], bases)
