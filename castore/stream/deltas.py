"""A chunk as a delta of others: which of the bases that were found are worth it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import zstandard

from castore.format.pack import BASES_MAX
from castore.model import StoredChunk
from castore.stream.codec import Frame, as_delta

LEVEL = 3  # level 1 stores half as much again
KEPT_SHARE = 0.5  # of the plain frame, at most; else a full frame begins the next generation
FEWER_BASES_SHARE = 1.2  # of the smallest: what one with fewer bases may take
FEWER_BASES_BYTES = 200


class Base(NamedTuple):
    """A chunk whose frame is no delta, and its bytes."""

    chunk: StoredChunk
    raw: bytes | memoryview


def smallest_delta(
    plain: Frame, raw: bytes, bases: Sequence[Base]
) -> tuple[Frame, tuple[StoredChunk, ...]] | None:
    """The frame as a delta of as few of the `bases`, the best of which comes first, as serve; None
    where that does not halve it."""
    found: list[tuple[Frame, tuple[StoredChunk, ...]]] = []
    for count in (1, 2, BASES_MAX):
        if count > len(bases) and count // 2 >= len(bases):
            break
        used = [*reversed(bases[:count])]  # the nearest bytes are the cheapest to refer to
        dictionary = zstandard.ZstdCompressionDict(
            b"".join(each for _, each in used), dict_type=zstandard.DICT_TYPE_RAWCONTENT
        )
        payload = zstandard.ZstdCompressor(level=LEVEL, dict_data=dictionary).compress(raw)
        chunks = tuple(chunk for chunk, _ in used)
        found.append((as_delta(plain, payload, [chunk[:2] for chunk in chunks]), chunks))
    if not found:
        return None
    smallest = min(frame.stored_bytes for frame, _ in found)
    enough = smallest * FEWER_BASES_SHARE + FEWER_BASES_BYTES
    delta = next(each for each in found if each[0].stored_bytes <= enough)
    return delta if delta[0].stored_bytes <= plain.stored_bytes * KEPT_SHARE else None
