"""Anchors: a sample of the places in some bytes, chosen by what stands there.

So the same bytes have the same anchors, wherever they are. Position i is one if

    (LE32(b + i) + 5 * LE32(b + i + 4)) * 0x9E3779B1 >= 0xFF800000    (mod 2^32)

which is so at one position in 512 of random bytes, and at none of a run of zeros. An anchor's hash
is of the 24 bytes from there on, as three little-endian words. Nothing of it is ever stored.

`castore/native/anchors.c` does this at 6 GB/s; what is here is its reference, at 5 MB/s.
Without the C extension no deltas are made, and no anchors looked for.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from castore._native import Anchors

try:
    from castore import _native
except ImportError:
    _native = None  # type: ignore[assignment]

ANCHOR_BYTES = 24
_MULTIPLIER = 0x9E3779B1
_THRESHOLD = 0xFF800000
_MIX_1 = 0x9E3779B97F4A7C15
_MIX_2 = 0xC2B2AE3D27D4EB4F
_WORDS = struct.Struct("<3Q")


def anchors_of(buffer: Buffer) -> Anchors:
    """The buffer's, as it is now."""
    if _native is None:
        return cast("Anchors", ReferenceAnchors(buffer))
    return _native.Anchors(buffer)


class ReferenceAnchors:
    """The same as C's Anchors."""

    def __init__(self, buffer: Buffer) -> None:
        with memoryview(buffer) as view:
            self._positions = _positions(bytes(view))

    def __len__(self) -> int:
        return len(self._positions)

    def positions(self) -> dict[int, int]:
        """Their hashes, each with the last position where it is."""
        return self._positions


def _positions(data: bytes) -> dict[int, int]:
    end = len(data) - ANCHOR_BYTES + 1
    if end <= 0:
        return {}
    products: list[int] = [0] * (len(data) // 4 * 4)
    for phase in range(4):
        count = (len(data) - phase) // 4
        words = struct.unpack_from(f"<{count}I", data, phase)
        products[phase : 4 * (count - 1) + phase : 4] = [
            (near + 5 * far) * _MULTIPLIER & 0xFFFFFFFF
            for near, far in zip(words, words[1:], strict=False)
        ]
    return {
        _hash(data, position): position
        for position, product in enumerate(products[:end])
        if product >= _THRESHOLD
    }


def _hash(data: bytes, position: int) -> int:
    state = 0
    for word in _WORDS.unpack_from(data, position):
        state = (state ^ word) * _MIX_1 & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 29
    return (state * _MIX_2 & 0xFFFFFFFFFFFFFFFF) >> 4
