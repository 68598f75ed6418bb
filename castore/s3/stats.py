"""How much there is in a store on S3, counted."""

from __future__ import annotations

import contextlib
from itertools import chain

from castore.format.segment import decode_segment
from castore.model import StoreStats
from castore.s3.keys import listed_packs
from castore.s3.manifests import Overwritten
from castore.s3.parts import Parts


def count(parts: Parts) -> StoreStats:
    """By listing all packs and names, and reading the manifests of those that have chunks, and are
    not cached: of others a list tells all."""
    packs = listed_packs(parts.bucket).values()
    objects = logical = inline_raw = inline_stored = 0
    chunks: dict[bytes, tuple[int, int, int]] = {}  # raw and stored bytes, bases
    for page in parts.catalog.facts():
        inline = [record for *_, record in page if not record.chunks]
        others = [(name, etag) for name, etag, record in page if record.chunks]
        versions = parts.catalog.versions_of(others)
        for record in chain(inline, (version.head.record for version in versions)):
            objects += 1
            logical += record.size
            if not record.chunks:
                inline_raw += record.size
                inline_stored += record.stored_bytes
        for version in versions:
            with contextlib.suppress(Overwritten):  # meanwhile: it counts as it was, by half
                for raw in parts.catalog.raw_segments(version):
                    for chunk_id, raw_bytes, at in decode_segment(raw).frames():
                        if chunk_id not in chunks or not at.bases:
                            chunks[chunk_id] = raw_bytes, at.stored_bytes, len(at.bases)
    deltas = [each for each in chunks.values() if each[2]]
    return StoreStats(
        objects=objects,
        chunks=len(chunks),
        packs=len(packs),
        logical_bytes=logical,
        unique_bytes=inline_raw + sum(raw for raw, *_ in chunks.values()),
        stored_bytes=inline_stored + sum(stored for _, stored, _ in chunks.values()),
        pack_bytes=sum(packs),
        index_bytes=0,
        deltas=len(deltas),
        delta_raw_bytes=sum(raw for raw, *_ in deltas),
        delta_stored_bytes=sum(stored for _, stored, _ in deltas),
        delta_bases=sum(bases for *_, bases in deltas),
    )
