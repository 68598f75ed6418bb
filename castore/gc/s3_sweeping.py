"""Removing packs of a store on S3, and what tells of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import islice

from castore.errors import FormatError, UnsupportedFormat
from castore.format import PackEntry
from castore.format_s3 import decode_hints, encode_hints, new_hints_key, pack_key
from castore.gc import Meter
from castore.s3.bucket import DELETE_MANY_MAX, Bucket, KeyAbsent
from castore.s3.hints import FRAMES_MAX, SMALL_BYTES, SMALL_MAX, Pack, in_parts


def remove_packs(
    bucket: Bucket, packs: Mapping[bytes, int], meter: Meter
) -> dict[bytes, Exception]:
    """Remove packs, which are given with their bytes. Those that are not known to be gone, and
    why."""
    meter.expect(sum(packs.values()))
    left = {}
    remaining = iter(sorted(packs))
    while batch := list(islice(remaining, DELETE_MANY_MAX)):
        keys = {pack_key(pack_id): pack_id for pack_id in batch}
        for key, error in bucket.delete_many(list(keys)):
            left[keys[key]] = error
        meter.advance(sum(packs[pack_id] for pack_id in batch))
    return left


def remove_scratch(bucket: Bucket, *, before: float) -> None:
    """Remove what a process that died while it probed the server left, if it is from before that
    time in seconds by the server's clock."""
    scratch = [entry.key for entry in bucket.list("probe/") if entry.modified < before]
    if scratch:
        bucket.delete_many(scratch)


def rewrite_hints(bucket: Bucket, store_id: bytes, gone: Collection[bytes]) -> None:
    """Take packs that are gone out of the hints, and put small objects of hints together. Those
    that replace others are there before the others go: a reader may be told twice, never less."""
    listed = {entry.key: entry.size for entry in bucket.list("index/")}
    small = {key for key, size in listed.items() if size < SMALL_BYTES}
    merged = small if len(small) > SMALL_MAX else set()
    kept: dict[bytes, Sequence[PackEntry]] = {}
    replaced: list[str] = []

    def put() -> None:
        """Write what is kept, and drop what it replaces."""
        for part in in_parts(kept.items()):
            bucket.put(new_hints_key(), encode_hints(store_id, part), idempotent=True)
        if replaced:
            bucket.delete_many(replaced)
        kept.clear()
        replaced.clear()

    for key in listed:
        packs = _read(bucket, store_id, key)
        if packs is None or (key not in merged and not any(i in gone for i, _ in packs)):
            continue
        kept.update((i, entries) for i, entries in packs if i not in gone)
        replaced.append(key)
        if sum(map(len, kept.values())) >= FRAMES_MAX:
            put()
    put()


def _read(bucket: Bucket, store_id: bytes, key: str) -> list[Pack] | None:
    """None for what is not ours to rewrite: gone, or of a later format. What is damaged tells of
    nothing."""
    for last in (False, True):
        try:
            owner, packs = decode_hints(bucket.get(key).body)
            return [*packs] if owner == store_id else []
        except (KeyAbsent, UnsupportedFormat):
            return None
        except FormatError:
            if last:
                return []
    raise AssertionError("unreachable")
