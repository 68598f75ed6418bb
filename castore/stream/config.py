"""What is fixed when a store is made: chosen and validated here, for both kinds of stores."""

from __future__ import annotations

import os

from castore.errors import FormatError, UnsupportedFormat
from castore.format.config import StoreConfig, decode_config
from castore.stream.chunker import ChunkSizes

CHUNK_BYTES_AVG_MAX = 4 << 20  # so that a writer's window holds several of the largest chunks


def new_config(chunk_bytes_avg: int, collision_guard: str | None) -> StoreConfig:
    """For a new store, with an id and a seed of its own. Raises ValueError for what no store may
    have; it is asked before anything is written."""
    if collision_guard not in (None, "sha256"):
        raise ValueError(f"collision_guard is None or 'sha256', not {collision_guard!r}")
    if (
        not isinstance(chunk_bytes_avg, int)
        or isinstance(chunk_bytes_avg, bool)
        or chunk_bytes_avg > CHUNK_BYTES_AVG_MAX
    ):
        raise ValueError(
            f"chunk_bytes_avg is a whole number of bytes, at most {CHUNK_BYTES_AVG_MAX}, not "
            f"{chunk_bytes_avg!r}"
        )
    sizes = ChunkSizes.for_average(chunk_bytes_avg)
    return StoreConfig(
        store_id=os.urandom(16),
        seed=int.from_bytes(os.urandom(8), "little"),
        chunk_bytes_min=sizes.min,
        chunk_bytes_avg=sizes.norm,
        chunk_bytes_max=sizes.max,
        collision_guard=collision_guard,
    )


def parse_config(raw: bytes, where: str) -> StoreConfig:
    """What a castore.json says. Raises FormatError naming the store, UnsupportedFormat."""
    try:
        config = decode_config(raw)
        ChunkSizes(config.chunk_bytes_min, config.chunk_bytes_avg, config.chunk_bytes_max)
    except UnsupportedFormat:
        raise
    except ValueError as error:
        raise FormatError(f"{where}: {error}") from error
    return config
