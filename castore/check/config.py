"""Whether a config is as castore writes it."""

from __future__ import annotations

from castore.format.config import StoreConfig, encode_config, has_checksum
from castore.stream.chunker import ChunkSizes

OTHER_BYTES = "is not as castore writes it"


def config_fault(raw: bytes, config: StoreConfig) -> str:
    """What is odd about a config that decodes: castore always writes the same bytes for it."""
    try:
        usual = ChunkSizes.for_average(config.chunk_bytes_avg)
    except ValueError as error:
        return f"has chunk sizes that castore would not choose: {error}"
    if (usual.min, usual.max) != (config.chunk_bytes_min, config.chunk_bytes_max):
        return "has chunk sizes that castore would not choose"
    known = encode_config(config), encode_config(config, checksum=False)
    return "" if raw in known else OTHER_BYTES


def config_anew(raw: bytes, config: StoreConfig) -> bytes | None:
    """What castore would write, where a config says the same in other bytes, as after an editor.
    None where nothing is odd, or no checksum tells that all of it is as it was."""
    if config_fault(raw, config) != OTHER_BYTES or not has_checksum(raw):
        return None
    return encode_config(config)
