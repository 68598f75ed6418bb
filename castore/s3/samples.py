"""Which objects of hints tell of a chunk, found without reading them all.

Where there are more hints than a machine should read before its first put, samples of them lead on:
of the chunks of a stream a few are looked up, and what tells of one of them is read as a whole, so
the chunks around it are known as well (see `format.s3_samples`). Whoever has read hints that no
samples cover writes some, and a collection puts them together, so that a look-up asks few of them.
Like hints, they are only ever hints: what is missing or damaged costs deduplication.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from castore.errors import FormatError, UnsupportedFormat
from castore.format.pack import PackEntry
from castore.format.s3_samples import (
    Samples,
    decode_bucket,
    decode_samples,
    encode_samples,
    encode_shard,
    find,
    hints_of,
    is_sampled,
    part_of,
    record,
    records_of,
    shape,
)
from castore.s3.client.bucket import Bucket, KeyAbsent
from castore.s3.keys import (
    SAMPLES,
    hints_id_of,
    hints_key,
    is_samples_head,
    new_samples_key,
    samples_of_shard,
    shard_key,
)
from castore.s3.told import decoded, undamaged
from castore.system.workers import Workers

GENERATIONS_MAX = 4  # before they are put together
GROWTH = 4  # one of so many times the records of those before is left as it is
ORPHAN_S = 86_400  # a shard without a head is put by somebody who is at it, or was


class Generation(NamedTuple):
    """Samples that were written at once, under one key; where their buckets are."""

    key: str
    samples: Samples
    places: Sequence[tuple[int, int, int]]

    @property
    def hints(self) -> list[str]:
        """The keys of the objects of hints that they cover."""
        return [hints_key(each) for each in self.samples.hints]


class Sampled:
    """All samples of a store. Thread-safe once they are read."""

    def __init__(self, bucket: Bucket, store_id: bytes, requests: Workers) -> None:
        self._bucket = bucket
        self._store_id = store_id
        self._requests = requests
        self._generations: list[Generation] = []

    def read(self) -> set[str]:
        """Learn what samples there are; the keys of the objects of hints that they cover."""
        heads = [entry.key for entry in self._bucket.list(SAMPLES) if is_samples_head(entry.key)]
        reading = [
            self._requests.submit(read_generation, self._bucket, self._store_id, key)
            for key in heads
        ]
        self._generations = []
        for future in reading:
            with contextlib.suppress(UnsupportedFormat):
                self._generations += [each for each in [future.result()] if each is not None]
        return {key for each in self._generations for key in each.hints}

    def __bool__(self) -> bool:
        return bool(self._generations)

    def telling_of(self, chunk_ids: Collection[bytes]) -> set[str]:
        """The keys of the objects of hints that tell of these chunks, which are sampled, or of
        others whose ids begin alike."""
        asked = [(each, chunk_id) for chunk_id in chunk_ids for each in self._generations]
        reading = [self._requests.submit(self._look_up, *pair) for pair in asked]
        return {key for future in reading for key in future.result()}

    def _look_up(self, generation: Generation, chunk_id: bytes) -> list[str]:
        number = part_of(chunk_id, len(generation.samples.buckets))
        try:
            bucket = read_bucket(self._bucket, generation, number)
        except DamagedSamples:
            return []
        hints = generation.samples.hints
        return [hints_key(hints[i]) for i in find(bucket, chunk_id) if i < len(hints)]


class DamagedSamples(Exception):
    """A part of the generation is gone, or not what its head says."""

    def __init__(self, generation: Generation) -> None:
        super().__init__(generation.key)
        self.generation = generation


def read_generation(bucket: Bucket, store_id: bytes, key: str) -> Generation | None:
    """None if it is gone, damaged, or another store's. Raises UnsupportedFormat."""
    try:
        owner, samples = undamaged(lambda: decode_samples(bucket.get(key).body))
    except (KeyAbsent, FormatError):
        return None
    return Generation(key, samples, samples.places()) if owner == store_id else None


def read_bucket(bucket: Bucket, generation: Generation, number: int) -> bytes:
    """Its records. Raises DamagedSamples."""
    shard, begin, end = generation.places[number]
    if begin == end:
        return b""
    key, told = shard_key(generation.key, shard), generation.samples.buckets[number]
    try:
        return undamaged(lambda: decode_bucket(bucket.get(key, byte_range=(begin, end)).body, told))
    except (KeyAbsent, FormatError) as error:
        raise DamagedSamples(generation) from error


def write_samples(
    bucket: Bucket,
    store_id: bytes,
    told: Mapping[str, Iterable[tuple[bytes, Sequence[PackEntry]]]],
) -> None:
    """Write samples of what these objects of hints, by their keys, tell of."""
    records = [
        record(entry.chunk_id, number)
        for number, packs in enumerate(told.values())
        for _, entries in packs
        for entry in entries
        if is_sampled(entry.chunk_id)
    ]
    _write(bucket, store_id, [hints_id_of(key) for key in told], len(records), [records])


def damaged_samples(bucket: Bucket, store_id: bytes) -> Iterator[tuple[str, Exception]]:
    """The keys of heads and shards that do not decode, and why."""
    generation: Generation | None = None
    for entry in bucket.list(SAMPLES):
        is_head = is_samples_head(entry.key)
        if not is_head and (generation is None or samples_of_shard(entry.key) != generation.key):
            continue  # an odd key, or a shard whose head is not there, or not yet
        try:
            raw = bucket.get(entry.key).body
        except KeyAbsent:
            continue
        try:
            if is_head:
                generation = None
                owner, samples = decoded(bucket, entry.key, raw, decode_samples)
                if owner != store_id:
                    raise FormatError("it belongs to another store")
                generation = Generation(entry.key, samples, samples.places())
            elif generation is not None:
                decoded(bucket, entry.key, raw, partial(_check_shard, generation, entry.key))
        except KeyAbsent:
            continue
        except (FormatError, UnsupportedFormat) as error:
            yield entry.key, error


def _check_shard(generation: Generation, key: str, raw: bytes) -> None:
    """Raises FormatError."""
    told = zip(generation.places, generation.samples.buckets, strict=True)
    for (shard, begin, end), of_bucket in told:
        if shard_key(generation.key, shard) == key:
            decode_bucket(raw[begin:end], of_bucket)


def tidy_samples(
    bucket: Bucket, store_id: bytes, hints: Collection[str], *, now: float
) -> set[str]:
    """Put generations together where there are many, and remove what covers none of `hints`, all
    that there are; the keys of those of them that are covered. Generations grow in steps, so each
    record is written a few times however many there will be. `now`: the server's time."""
    entries = list(bucket.list(SAMPLES))
    heads = [entry.key for entry in entries if is_samples_head(entry.key)]
    left: list[Generation] = []
    kept = set()
    for key in heads:
        try:
            each = read_generation(bucket, store_id, key)
        except UnsupportedFormat:
            kept.add(key)
            continue
        if each is not None and not {*each.hints}.isdisjoint(hints):
            left.append(each)
    left.sort(key=lambda each: each.samples.records)
    merged: list[Generation] = []
    while not merged and (chosen := _to_merge(left, hints)):
        try:
            _merge(bucket, store_id, chosen, hints)
            merged = chosen
        except DamagedSamples as damaged:  # what it covers is sampled anew
            left.remove(damaged.generation)
    kept |= {each.key for each in left} - {each.key for each in merged}
    bucket.delete_many([key for key in heads if key not in kept])  # so nobody is led to the shards
    bucket.delete_many(
        [
            entry.key
            for entry in entries
            if (head := samples_of_shard(entry.key)) is not None
            and head not in kept
            and (head in heads or entry.modified < now - ORPHAN_S)
        ]
    )
    return {key for each in left for key in each.hints}


def _to_merge(generations: Sequence[Generation], hints: Collection[str]) -> list[Generation]:
    """Of these, the smallest first."""
    chosen: list[Generation] = []
    records = 0
    for each in generations:
        if len(chosen) > 1 and each.samples.records > GROWTH * records:
            break
        chosen.append(each)
        records += each.samples.records
    covered = [key for each in chosen for key in each.hints]
    are_stale = sum(key in hints for key in covered) < len(covered) // 2
    return chosen if len(chosen) > GENERATIONS_MAX or are_stale else []


def _merge(
    bucket: Bucket, store_id: bytes, merged: Sequence[Generation], hints: Collection[str]
) -> None:
    """Write one generation of what these have that leads to `hints`, a shard at a time."""
    kept = {key: i for i, key in enumerate(sorted({k for g in merged for k in g.hints} & {*hints}))}
    numbers = [[kept.get(key) for key in each.hints] for each in merged]
    total = sum(each.samples.records for each in merged)
    _, shards = shape(total)

    def records(shard: int) -> Iterator[bytes]:
        for each, renumbered in zip(merged, numbers, strict=True):
            buckets = len(each.samples.buckets)
            if buckets >= shards:
                wanted = range(shard * buckets // shards, (shard + 1) * buckets // shards)
            else:
                wanted = range(shard * buckets // shards, shard * buckets // shards + 1)
            for number in wanted:
                for one in records_of(read_bucket(bucket, each, number)):
                    before = hints_of(one)
                    after = renumbered[before] if before < len(renumbered) else None
                    if after is not None and part_of(one, shards) == shard:
                        yield record(one, after)

    ids = [hints_id_of(key) for key in kept]
    _write(bucket, store_id, ids, total, (records(shard) for shard in range(shards)))


def _write(
    bucket: Bucket,
    store_id: bytes,
    ids: Sequence[bytes],
    total: int,
    parts: Iterable[Iterable[bytes]],
) -> None:
    """Write about `total` records, in parts that are shards; the head comes last."""
    buckets, shards = shape(total)
    key, told = new_samples_key(), []
    if shards > 1 and isinstance(parts, list):
        [records] = parts
        split: list[list[bytes]] = [[] for _ in range(shards)]
        for each in records:
            split[part_of(each, shards)].append(each)
        parts = split
    for shard, records_ in enumerate(parts):
        raw, of_buckets = encode_shard(sorted(records_), buckets, shard, shards)
        told += of_buckets
        if raw:
            bucket.put(shard_key(key, shard), raw, idempotent=True)
    bucket.put(key, encode_samples(store_id, Samples(ids, told, shards)), idempotent=True)
