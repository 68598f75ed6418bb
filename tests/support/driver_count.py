"""What a store holds, counted from its index and packs themselves and not as its verbs say it."""

from __future__ import annotations

import os
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import castore
from castore.format.index import Record, Totals, decode_chunk_row, decode_record, manifest_of
from castore.format.pack import PACK_HEADER_BYTES, footer_bytes
from castore.format.s3 import decode_manifest_head
from castore.format.s3_batches import (
    Drop,
    decode_batch_head,
    decode_root,
    decode_tombstone,
    is_tombstone,
)
from castore.format.segment import decode_segment
from castore.s3.client.bucket import Bucket
from castore.s3.client.settings import parse_settings


@dataclass
class Count:
    """`chunks` has the bytes of each, raw and stored, and how many bases its frame has; `live` the
    frames that names need, as {offset: (bytes, bases)} of each pack; `packs` the bytes of each that
    is there."""

    objects: int = 0
    logical_bytes: int = 0
    inline_raw_bytes: int = 0
    inline_stored_bytes: int = 0
    chunks: dict[bytes, tuple[int, int, int]] = field(default_factory=dict)
    live_chunks: set[bytes] = field(default_factory=set)
    live: defaultdict[bytes, dict[int, tuple[int, int]]] = field(
        default_factory=lambda: defaultdict(dict)
    )
    packs: dict[bytes, int] = field(default_factory=dict)
    pack_rows: set[bytes] | None = None  # of a local store
    orphan_segments: int = 0

    def add(self, record: Record) -> None:
        self.objects += 1
        self.logical_bytes += record.size
        if record.is_inline:
            self.inline_raw_bytes += record.size
            self.inline_stored_bytes += record.stored_bytes

    def add_segment(self, raw: bytes, *, chunks: bool) -> None:
        """`chunks`: what is in segments is all that is known of chunks."""
        for chunk_id, raw_bytes, at in decode_segment(raw).frames():
            self.live_chunks.add(chunk_id)
            self.live[at.pack_id][at.offset] = at.stored_bytes, len(at.bases)
            # What is not a delta counts, where there are frames of both kinds.
            if chunks and (chunk_id not in self.chunks or not at.bases):
                self.chunks[chunk_id] = raw_bytes, at.stored_bytes, len(at.bases)

    def live_share(self, pack_id: bytes) -> float:
        """Of a pack's bytes, those that a pack of its live frames would take."""
        live = self.live.get(pack_id, {}).values()
        footer = footer_bytes(len(live), sum(bases for _, bases in live))
        needed = PACK_HEADER_BYTES + sum(stored for stored, _ in live) + footer
        return needed / max(self.packs[pack_id], 1)

    def expected_stats(self) -> dict[str, int]:
        deltas = [each for each in self.chunks.values() if each[2]]
        return {
            "objects": self.objects,
            "chunks": len(self.chunks),
            "packs": len(self.packs),
            "logical_bytes": self.logical_bytes,
            "unique_bytes": self.inline_raw_bytes + sum(raw for raw, *_ in self.chunks.values()),
            "stored_bytes": self.inline_stored_bytes
            + sum(stored for _, stored, _ in self.chunks.values()),
            "pack_bytes": sum(self.packs.values()),
            "deltas": len(deltas),
            "delta_raw_bytes": sum(raw for raw, *_ in deltas),
            "delta_stored_bytes": sum(stored for _, stored, _ in deltas),
            "delta_bases": sum(bases for *_, bases in deltas),
        }


def count_local(store: castore.Store) -> Count:
    count = Count(pack_rows=set())
    catalog: Any = store._catalog
    index = catalog.index
    with index.gate, index.snapshot() as txn:
        manifests = set()
        for _, raw in txn.cursor(db=index.names):
            record = decode_record(bytes(raw))
            count.add(record)
            manifests.add(record.manifest)
        for key, raw in txn.cursor(db=index.segments):
            if manifest_of(bytes(key)) in manifests:
                count.add_segment(bytes(raw), chunks=False)
            else:
                count.orphan_segments += 1
        for chunk_id, raw in txn.cursor(db=index.chunks):
            row = decode_chunk_row(bytes(raw))
            stored_bytes = row.location.stored_bytes
            count.chunks[bytes(chunk_id)] = row.raw_bytes, stored_bytes, len(row.bases)
        assert count.pack_rows is not None
        count.pack_rows.update(bytes(key) for key, _ in txn.cursor(db=index.packs))
        totals = txn.get(b"totals", db=index.meta)
    counted = Totals() if totals is None else Totals.decode(bytes(totals))
    assert counted.logical_bytes == count.logical_bytes, (counted, count.logical_bytes)
    for folder, _, files in os.walk(Path(store.path) / "packs"):
        for file in files:
            assert file.endswith(".pack"), f"{folder}/{file}"
            count.packs[bytes.fromhex(file[:32])] = os.stat(os.path.join(folder, file)).st_size
    return count


def count_remote(url: str) -> Count:
    count = Count()
    with Bucket(parse_settings(url)) as bucket:
        for entry in bucket.list("packs/"):
            pack_id, _, _ = entry.key.removeprefix("packs/").partition("-")
            count.packs[bytes.fromhex(pack_id)] = entry.size
        for raw in manifests_of(bucket):
            head = decode_manifest_head(raw)
            count.add(head.record)
            for place in head.segments:
                part = raw[place.offset : place.offset + place.length]
                count.add_segment(part, chunks=True)
    return count


def manifests_of(bucket: Bucket) -> list[bytes]:
    """Of each name the one that counts, worked out anew from FORMAT.md; in the order of names, as
    of a chunk's frames, where several are deltas, the first counts."""
    best: dict[bytes, tuple[float, bytes | None]] = {}  # number, manifest

    def take(name: bytes, number: float, raw: bytes | None) -> None:
        if number >= best.get(name, (-1.0, None))[0]:
            best[name] = number, raw

    drops: tuple[Drop, ...] = ()
    for entry in bucket.list("batches/root"):
        root = decode_root(bucket.get(entry.key).body)[1]
        drops = root.drops
        for each in root.entries:
            raw = bucket.get(f"batches/{each.batch_id.hex()}").body
            for row in decode_batch_head(raw).names.rows if not each.retired else ():
                take(row.name, row.number or each.number, raw[row.offset : row.end] or None)
    for name in best:
        for drop in drops:
            if name.startswith(drop.prefix):
                take(name, drop.number, None)
    for entry in bucket.list("names/"):
        raw = bucket.get(entry.key).body
        name = entry.key.removeprefix("names/").encode()
        if is_tombstone(len(raw)):
            number, there = decode_tombstone(raw)[1], None
        else:
            number, there = decode_manifest_head(raw).number, raw
        dropped = max((d.number for d in drops if name.startswith(d.prefix)), default=-1)
        if number is None or number >= dropped:
            take(name, float("inf") if number is None else number, there)
    return [raw for _, (_, raw) in sorted(best.items()) if raw is not None]


def count_of(store: castore.Store, url: str) -> Count:
    return count_remote(url) if url.startswith("s3://") else count_local(store)
