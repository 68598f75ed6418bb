"""Small objects, many at a time, where nothing has to be waited for: one look at the index for all,
and what they decode from in one go.

What can't be read like this is left to who reads it by itself, and is told why."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

from castore.errors import ChunkCorrupt, FormatError, PackMissing
from castore.format.index import Record
from castore.model import Extent
from castore.stream.backend import NOTHING_HELD, Cover, Packs
from castore.stream.codec import decode_frames
from castore.stream.decoding import Bytes, DecodedChunks, Decoder

BASES_BYTES = 4 << 20  # of what their deltas were decoded with last

SmallRead: TypeAlias = "tuple[Record, bytes] | None"


def read_small(
    covers: Sequence[Cover | None],
    packs: Packs,
    seed: int,
    inline: Callable[[Record], bytes],
) -> list[SmallRead]:
    """The record and the bytes of each object that is covered; None where there is nothing, or what
    there is can't be read. `inline` gives the bytes of one that has them in its record."""
    extents = [extent for cover in covers if cover is not None for extent in cover.parts[0][2]]
    chunks = _decoded(extents, packs, seed)
    if chunks is None:
        return [None] * len(covers)
    following = iter(chunks)
    return [None if cover is None else _joined(cover, following, inline) for cover in covers]


def _joined(
    cover: Cover, chunks: Iterator[bytes | None], inline: Callable[[Record], bytes]
) -> SmallRead:
    record, [(_, _, extents)], _ = cover
    if record.is_inline:
        try:
            return record, inline(record)
        except FormatError:
            return None
    parts = [part for _ in extents if (part := next(chunks)) is not None]
    return (record, b"".join(parts)) if len(parts) == len(extents) else None


def _decoded(extents: Sequence[Extent], packs: Packs, seed: int) -> list[bytes | None] | None:
    """The chunk of each, or None; None itself where a pack is gone."""
    try:
        if any(extent.location.bases for extent in extents):
            chunks = [extent.stored for extent in extents]
            kept = DecodedChunks(BASES_BYTES)
            decoded: list[Bytes | None] = [*Decoder(packs, seed, chunks, NOTHING_HELD, kept).all()]
        else:
            frames = packs.frames([extent.location for extent in extents], NOTHING_HELD)
            decoded = decode_frames(
                frames, [(chunk_id, end - begin) for begin, end, chunk_id, _ in extents], seed
            )
    except (ChunkCorrupt, FormatError, PackMissing):
        return None
    # A raw frame is a view of its pack, which may be cut short while it is used.
    own = [None if raw is None else bytes(raw) for raw in decoded]
    if any(isinstance(raw, memoryview) and getattr(raw.obj, "damaged", False) for raw in decoded):
        return None
    return own
