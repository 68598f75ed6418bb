"""Bytes of the layouts that only S3 has."""

from __future__ import annotations

import random
from typing import Any

import xxhash
from format_cases import checksum

from castore.errors import FormatError, UnsupportedFormat
from castore.format.config import StoreConfig
from castore.format.index import Record
from castore.format.s3 import encode_manifest, manifest_head_bytes
from castore.format.s3_batches import (
    Drop,
    Root,
    RootEntry,
    ToBatch,
    encode_batch,
    encode_root,
    encode_tombstone,
    to_delete,
)
from castore.format.segment import SegmentBuilder
from castore.model import Location
from castore.stream.codec import CODEC_RAW

STORE, NONCE = bytes(range(16)), bytes(range(16, 32))


CONFIG = StoreConfig(STORE, 1 << 63, 704, 2816, 11_264, "sha256")
BATCHED = CONFIG._replace(batches=True)


def manifest(
    segments: int = 3, extents: int = 4, config: StoreConfig = CONFIG, number: int | None = None
) -> tuple[bytes, Record, list[bytes], list[Any]]:
    source = random.Random(segments)
    pack_ids = [source.randbytes(16) for _ in range(3)]
    encoded, end = [], 0
    for _ in range(segments):
        builder = SegmentBuilder(end)
        for i in range(extents):
            end += 1000
            builder.append(end, source.randbytes(16), Location(pack_ids[i % 3], i * 1000, 900))
        encoded.append((end, builder.encode()))
    record = Record(end, 5, 0o644, bytes(16), end, manifest=1, chunks=segments * extents)
    raw = encode_manifest(config, NONCE, record, pack_ids, encoded, number)
    return raw, record, pack_ids, encoded


def inline(
    data: bytes, config: StoreConfig = CONFIG, number: int | None = None
) -> tuple[bytes, Record]:
    record = Record(len(data), 5, 0o600, bytes(16), len(data), codec=CODEC_RAW, inline=data)
    return encode_manifest(config, NONCE, record, [], [], number), record


# ---------------------------------------------------------------- names in batches

TO_BATCH = [
    ToBatch(name, *inline(name * 9, BATCHED), number)
    for name, number in ((b"a/1", 0), (b"a/2", 6), ("é".encode(), 0))
]
BATCH, INDEX_BYTES = encode_batch(STORE, TO_BATCH, 7)
TO_DELETE = [to_delete(b"a/1"), to_delete(b"a/3", 6)]
DELETING, DELETING_BYTES = encode_batch(STORE, TO_DELETE, 8)
ROOT = Root(
    9,
    NONCE,
    (Drop(3, 1_700_000_000, b"a/"), Drop(8, 1_800_000_000, b"")),
    (
        RootEntry(NONCE, 2, 900, 1_700_000_000, 1_700_003_600, 300, 5, b"a", b"b"),
        RootEntry(STORE, 7, len(BATCH), 1_800_000_000, 0, INDEX_BYTES, 3, b"a/1", "é".encode()),
    ),
)
RAW_ROOT = encode_root(STORE, ROOT)
TOMBSTONE = encode_tombstone(STORE, NONCE, None)
WEAK_TOMBSTONE = encode_tombstone(STORE, NONCE, 7)


def repaired_told(raw: bytes) -> bytes:
    """With the checksum of what hints, listings and the root of batches begin with."""
    return raw[:28] + checksum(raw[36:], xxhash.xxh3_64_intdigest(raw[:28])) + raw[36:]


def repaired_batch(raw: bytes) -> bytes:
    packed = int.from_bytes(raw[12:16], "little")
    seed = xxhash.xxh3_64_intdigest(raw[:48])
    return raw[:48] + checksum(raw[56 : 56 + packed], seed) + raw[56:]


def repaired_tombstone(raw: bytes) -> bytes:
    return raw[:48] + checksum(raw[:48]) + raw[56:]


def repaired_manifest(raw: bytes) -> bytes:
    try:
        head = manifest_head_bytes(raw, whole=False)
    except (FormatError, UnsupportedFormat):
        return raw
    return raw[:52] + checksum(raw[60:head], xxhash.xxh3_64_intdigest(raw[:52])) + raw[60:]
