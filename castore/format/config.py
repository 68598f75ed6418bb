"""castore.json: what is fixed for a store's life (see FORMAT.md)."""

from __future__ import annotations

import json
from typing import Any, Final, NamedTuple

import xxhash

from castore.errors import FormatError, UnsupportedFormat
from castore.format import CHUNK_BYTES_LIMIT, VERSION

CONFIG_VERSION_BATCHES: Final = 2  # of a castore.json that says that there are batches


class StoreConfig(NamedTuple):
    """What is fixed for a store's life. The seed keeps outsiders from aiming collisions."""

    store_id: bytes
    seed: int
    chunk_bytes_min: int
    chunk_bytes_avg: int
    chunk_bytes_max: int
    collision_guard: str | None = None
    batches: bool = False  # names may share objects (on S3)


def encode_config(config: StoreConfig, *, checksum: bool = True) -> bytes:
    """`checksum` is False for what castore wrote before there was one."""
    fields = _config_fields(config)
    if checksum:
        fields["checksum"] = _config_checksum(config)
    return json.dumps(fields, indent=2).encode() + b"\n"


def _config_fields(config: StoreConfig) -> dict[str, Any]:
    fields = {
        "format": "castore",
        "version": CONFIG_VERSION_BATCHES if config.batches else VERSION,
        "store_id": config.store_id.hex(),
        "seed": f"{config.seed:016x}",
        "chunk_bytes": {
            "min": config.chunk_bytes_min,
            "avg": config.chunk_bytes_avg,
            "max": config.chunk_bytes_max,
        },
        "collision_guard": config.collision_guard,
    }
    return fields | {"batches": True} if config.batches else fields


def _config_checksum(config: StoreConfig) -> str:
    """Of what it means: with another seed nothing that is stored would be found again."""
    return xxhash.xxh3_64_hexdigest(json.dumps(_config_fields(config)).encode())


def has_checksum(raw: bytes) -> bool:
    """Of a config that decodes: whether it has the checksum that what it says was compared with."""
    return json.loads(raw).get("checksum") is not None


def decode_config(raw: bytes) -> StoreConfig:
    """Raises FormatError, or UnsupportedFormat for a store of a newer version."""
    if len(raw) > 65536:
        raise FormatError("castore.json is too large to be a store's config")
    try:
        fields = json.loads(raw)
        if fields["format"] != "castore":
            raise FormatError(f"castore.json is of format {fields['format']!r}")
        version = fields["version"]
        if not isinstance(version, int) or version < 1:
            raise FormatError(f"castore.json has version {version!r}")
        if version > CONFIG_VERSION_BATCHES:
            raise UnsupportedFormat(
                f"the store has format version {version}, this castore reads up to "
                f"{CONFIG_VERSION_BATCHES}: upgrade castore"
            )
        sizes = fields["chunk_bytes"]
        config = StoreConfig(
            bytes.fromhex(fields["store_id"]),
            int(fields["seed"], 16),
            sizes["min"],
            sizes["avg"],
            sizes["max"],
            fields["collision_guard"],
            fields.get("batches", False),
        )
        checksum = fields.get("checksum")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        if isinstance(error, (FormatError, UnsupportedFormat)):
            raise
        # Not its repr, in which a UnicodeDecodeError has all the bytes.
        reason = f"{type(error).__name__}: {error}"
        raise FormatError(f"castore.json does not parse: {reason}") from error
    sizes_ok = all(
        isinstance(n, int) and not isinstance(n, bool)
        for n in (config.chunk_bytes_min, config.chunk_bytes_avg, config.chunk_bytes_max)
    ) and (
        0
        < config.chunk_bytes_min
        <= config.chunk_bytes_avg
        <= config.chunk_bytes_max
        <= CHUNK_BYTES_LIMIT
    )
    if len(config.store_id) != 16 or not 0 <= config.seed < 1 << 64 or not sizes_ok:
        raise FormatError("castore.json has a store id, seed or chunk sizes out of range")
    if config.collision_guard not in (None, "sha256"):
        raise FormatError(f"castore.json has collision guard {config.collision_guard!r}")
    if config.batches is not (version == CONFIG_VERSION_BATCHES):
        raise FormatError(f"castore.json of version {version} has batches {config.batches!r}")
    if checksum is not None and checksum != _config_checksum(config):
        raise FormatError("castore.json is damaged: its checksum is another's")
    return config
