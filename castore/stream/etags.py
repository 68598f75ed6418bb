"""Chunk ids, and the etags that are made of them: the same for equal bytes in one store, however
they were put.

The etag of an object whose bytes are in its record is of these bytes, and else of the ids of its
chunks. Of one that is in its record only as it was put alone, it is of the chunks that it would
have.
"""

from __future__ import annotations

from collections.abc import Iterator

from castore.format.config import StoreConfig
from castore.stream.chunker import Chunker, ChunkSizes
from castore.stream.codec import ChunksEtag, chunk_id_of, guarded_id, sha256_of


def etag_of_chunks(raw: bytes, config: StoreConfig, chunker: Chunker) -> bytes:
    """That of the chunks of all these bytes."""
    etag = ChunksEtag(config.seed)
    for _, _, chunk_id in chunks_in(raw, config, chunker):
        etag.update(chunk_id)
    return etag.digest()


def is_etag_of(raw: bytes, etag: bytes, config: StoreConfig) -> bool:
    """Whether an object that has these bytes in its record has this etag."""
    if chunk_id_of(raw, config.seed) == etag:
        return True
    sizes = ChunkSizes(config.chunk_bytes_min, config.chunk_bytes_avg, config.chunk_bytes_max)
    return etag_of_chunks(raw, config, Chunker(sizes)) == etag


def have_etag(
    raw: bytes, etag: bytes, *, inline: bool, config: StoreConfig, chunker: Chunker
) -> bool:
    """Whether an object of these bytes, `inline` in its record or in chunks, has this etag."""
    if inline:
        return is_etag_of(raw, etag, config)
    return etag_of_chunks(raw, config, chunker) == etag


def chunk_id_in(raw: bytes | memoryview, config: StoreConfig) -> bytes:
    """The id that a chunk of these bytes has in the store."""
    if config.collision_guard is None:
        return chunk_id_of(raw, config.seed)
    return guarded_id(sha256_of(raw), config.seed)


def chunks_in(
    raw: bytes, config: StoreConfig, chunker: Chunker
) -> Iterator[tuple[int, int, bytes]]:
    """The begin, end and id of each chunk of all these bytes."""
    begin = 0
    view = memoryview(raw)
    for end in chunker.cuts(view, 0, True):
        yield begin, end, chunk_id_in(view[begin:end], config)
        begin = end
