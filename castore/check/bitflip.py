"""Bytes with one bit flipped, as bad memory or a bad disk leaves them, put right by trying each
bit."""

from __future__ import annotations

from collections.abc import Callable

from castore.errors import FormatError, UnsupportedFormat

BITS_MAX = 1 << 19  # of what is tried: a segment has 290,000


def corrected(raw: bytes, decode: Callable[[bytes], object]) -> bytes | None:
    """The one variant of `raw`, in a single bit, that decodes, checksum and all; None if there is
    none, or more than one."""
    if 8 * len(raw) > BITS_MAX:
        return None
    found = None
    draft = bytearray(raw)
    for bit in range(8 * len(raw)):
        draft[bit >> 3] ^= 1 << (bit & 7)
        try:
            decode(bytes(draft))
        except (FormatError, UnsupportedFormat):
            pass
        else:
            if found is not None:
                return None
            found = bytes(draft)
        draft[bit >> 3] ^= 1 << (bit & 7)
    return found
