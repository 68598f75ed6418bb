"""Bytes of the layouts that only S3 has."""

from __future__ import annotations

import random
from typing import Any

from castore.format.index import Record
from castore.format.pack import StoreConfig
from castore.format.s3 import encode_manifest
from castore.format.segment import SegmentBuilder
from castore.model import Location
from castore.stream.codec import CODEC_RAW

STORE, NONCE = bytes(range(16)), bytes(range(16, 32))


CONFIG = StoreConfig(STORE, 1 << 63, 704, 2816, 11_264, "sha256")


def manifest(segments: int = 3, extents: int = 4) -> tuple[bytes, Record, list[bytes], list[Any]]:
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
    raw = encode_manifest(CONFIG, NONCE, record, pack_ids, encoded)
    return raw, record, pack_ids, encoded


def inline(data: bytes) -> tuple[bytes, Record]:
    record = Record(len(data), 5, 0o600, bytes(16), len(data), codec=CODEC_RAW, inline=data)
    return encode_manifest(CONFIG, NONCE, record, [], []), record
