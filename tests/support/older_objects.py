"""Objects that others may be later versions of, as what looks for bases sees them."""

from __future__ import annotations

import random
import secrets
from dataclasses import dataclass, field

from castore.format.segment import SegmentBuilder
from castore.model import SEGMENT_EXTENTS_MAX, Location, StoredChunk
from castore.stream.alignment import Alignment
from castore.stream.anchored import AnchoredBases
from castore.stream.segments import Manifest

CHUNK = 32 << 10
PACK = b"p" * 16


@dataclass
class Older:
    """An object of chunks of random bytes, whose bases are counted as they are read."""

    chunks: list[bytes]
    read_ids: list[bytes] = field(default_factory=list)

    @classmethod
    def of(cls, count: int, seed: int = 0) -> Older:
        made = random.Random(seed)
        return cls([made.randbytes(CHUNK) for _ in range(count)])

    @property
    def data(self) -> bytes:
        return b"".join(self.chunks)

    def id(self, i: int) -> bytes:
        return i.to_bytes(16, "big")

    def manifest(self, bases: bool = False) -> Manifest:
        """With `bases` its chunks are deltas, of those of this object."""
        raw_segments = []
        end = 0
        for first in range(0, len(self.chunks), SEGMENT_EXTENTS_MAX):
            builder = SegmentBuilder(end)
            for i in range(first, min(first + SEGMENT_EXTENTS_MAX, len(self.chunks))):
                end += len(self.chunks[i])
                at = Location(PACK, i, 100)
                if bases:
                    base = StoredChunk(self.id(i), CHUNK, at)
                    builder.append(end, secrets.token_bytes(16), at._replace(bases=(base,)))
                else:
                    builder.append(end, self.id(i), at)
            raw_segments.append(builder.encode())
        return Manifest(raw_segments, end)

    def read(self, base: StoredChunk) -> bytes:
        self.read_ids.append(base.chunk_id)
        raw = self.chunks[int.from_bytes(base.chunk_id, "big")]
        assert base.raw_bytes == len(raw)
        return raw

    def aligned(self) -> Alignment:
        return Alignment(self.manifest(), len(self.data), AnchoredBases(self.read))
