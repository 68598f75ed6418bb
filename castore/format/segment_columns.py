"""The columns of a segment: little endian in its bytes, and the machine's own in memory."""

from __future__ import annotations

import sys
from array import array

from castore.errors import FormatError
from castore.format import CHUNK_BYTES_LIMIT
from castore.format.frame import BASES_MAX, CHUNK_ID_BYTES
from castore.model import Location, StoredChunk


class BaseColumns:
    """The frames that the deltas of a segment decode with, each once, in columns; and for each
    extent which of them: of `_used`, those from `_used_ends[i - 1]` to `_used_ends[i]`."""

    __slots__ = (
        "_ids",
        "_raw",
        "_stored",
        "_used",
        "_used_ends",
        "offsets",
        "pack_of",
    )

    def __init__(self, columns: list[memoryview]) -> None:
        used_ends, used, raw, ids, offsets, stored, pack_of = columns
        self._used_ends = native(used_ends, "H")
        self._used = native(used, "H")
        self._raw = native(raw, "I")
        self._ids = ids
        self.offsets = native(offsets, "I")
        self._stored = native(stored, "I")
        self.pack_of = native(pack_of, "H")

    def __len__(self) -> int:
        return len(self._raw)

    @property
    def deltas(self) -> int:
        """How many extents are deltas."""
        ends = self._used_ends
        return sum(end != (ends[i - 1] if i else 0) for i, end in enumerate(ends))

    def of(self, i: int, packs: list[bytes]) -> tuple[StoredChunk, ...]:
        """Those of extent i. Raises FormatError."""
        begin, end = self._used_ends[i - 1] if i else 0, self._used_ends[i]
        if not begin <= end <= min(begin + BASES_MAX, len(self._used)):
            raise FormatError(f"segment has an extent with bases [{begin}, {end})")
        if begin == end:
            return ()
        return tuple([self.at(base, packs) for base in self._used[begin:end]])

    def at(self, base: int, packs: list[bytes]) -> StoredChunk:
        try:
            raw_bytes, pack_id = self._raw[base], packs[self.pack_of[base]]
        except IndexError:
            raise FormatError(f"segment has no base {base}, or it is in no pack") from None
        if not 0 < raw_bytes <= CHUNK_BYTES_LIMIT + 256:
            raise FormatError(f"segment has a base of {raw_bytes} bytes")
        place = Location(pack_id, self.offsets[base], self._stored[base])
        at = base * CHUNK_ID_BYTES
        return StoredChunk(self._ids[at : at + CHUNK_ID_BYTES].tobytes(), raw_bytes, place)


def little(column: array[int]) -> bytes:
    if sys.byteorder == "big":
        column = array(column.typecode, column)
        column.byteswap()
    return column.tobytes()


def native(column: memoryview, typecode: str) -> memoryview:
    if sys.byteorder == "big":
        swapped = array(typecode, column.tobytes())
        swapped.byteswap()
        return memoryview(swapped)
    return column.cast(typecode)  # type: ignore[call-overload, no-any-return]
