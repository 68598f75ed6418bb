"""Whether a config is as castore writes it."""

from __future__ import annotations

from castore.format.config import StoreConfig, encode_config
from castore.stream.chunker import ChunkSizes


def config_fault(raw: bytes, config: StoreConfig) -> str:
    """What is odd about a config that decodes: castore always writes the same bytes for it."""
    try:
        usual = ChunkSizes.for_average(config.chunk_bytes_avg)
    except ValueError as error:
        return f"has chunk sizes that castore would not choose: {error}"
    if (usual.min, usual.max) != (config.chunk_bytes_min, config.chunk_bytes_max):
        return "has chunk sizes that castore would not choose"
    known = encode_config(config), encode_config(config, checksum=False)
    return "" if raw in known else "is not as castore writes it"
