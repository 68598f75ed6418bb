"""Samples of what hints tell of: for one chunk in eight, the object of hints that tells of it, by
the chunks' ids, so that one record is found without reading the others (see FORMAT.md).

This is the sparse index of Lillibridge et al., FAST '09: chunks that were stored together are told
of together, so to find a few of them is to learn of nearly all.

Records are in buckets by the leading bits of the ids, buckets in shards, each an object. Ids are
hashes, so buckets are about equally large.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Final, NamedTuple

import xxhash

from castore.errors import FormatError
from castore.format.s3_told import decode_told, encode_told

SAMPLED_IN: Final = 8  # one chunk in so many
RECORD_BYTES: Final = 12
BUCKET_BYTES: Final = 16 << 10  # about: what is fetched to find a chunk
SHARD_BYTES: Final = 32 << 20  # at most, about: what a merge has in memory of each
SHARDS_MAX: Final = 1 << 16

_MAGIC: Final = b"CSMP"
_COUNTS = struct.Struct("<QII")  # records, buckets, shards
_BUCKET = struct.Struct("<IQ")
_PREFIX_BYTES: Final = 8
_checksum = xxhash.xxh3_64_intdigest


class Samples(NamedTuple):
    """What the head tells: `hints`, the 16 bytes that each object of hints is named by; of each
    bucket its records and their checksum; over how many shards the buckets are spread."""

    hints: Sequence[bytes]
    buckets: Sequence[tuple[int, int]]
    shards: int

    @property
    def records(self) -> int:
        return sum(records for records, _ in self.buckets)

    def places(self) -> Sequence[tuple[int, int, int]]:
        """(shard, begin, end) of each bucket: half-open, in bytes."""
        per_shard = len(self.buckets) // self.shards
        ends = [0, *accumulate(records * RECORD_BYTES for records, _ in self.buckets)]
        return [
            (i // per_shard, ends[i] - ends[first], ends[i + 1] - ends[first])
            for i in range(len(self.buckets))
            for first in [i - i % per_shard]
        ]


def is_sampled(chunk_id: bytes) -> bool:
    return chunk_id[-1] % SAMPLED_IN == 0


def record(chunk_id: bytes, hints: int) -> bytes:
    """That the object of hints of this number tells of the chunk."""
    return chunk_id[:_PREFIX_BYTES] + hints.to_bytes(RECORD_BYTES - _PREFIX_BYTES, "little")


def hints_of(each: bytes) -> int:
    """The number in a record."""
    return int.from_bytes(each[_PREFIX_BYTES:], "little")


def part_of(id_or_record: bytes, parts: int) -> int:
    """In which of `parts` equal parts of all ids it is, a power of two."""
    return (int.from_bytes(id_or_record[:_PREFIX_BYTES], "big") * parts) >> 64


def shape(records: int) -> tuple[int, int]:
    """(buckets, shards) for so many records."""
    stored = records * RECORD_BYTES
    shards = min(_power_of_two(-(-stored // SHARD_BYTES)), SHARDS_MAX)
    return max(_power_of_two(-(-stored // BUCKET_BYTES)), shards), shards


def encode_shard(
    records: Sequence[bytes], buckets: int, shard: int, shards: int
) -> tuple[bytes, list[tuple[int, int]]]:
    """(the shard, what the head is to tell of its buckets), of records in order."""
    per_shard = buckets // shards
    within: list[list[bytes]] = [[] for _ in range(per_shard)]
    for each in records:
        within[part_of(each, buckets) - shard * per_shard].append(each)
    parts = [b"".join(part) for part in within]
    told = [(len(part), _checksum(raw)) for part, raw in zip(within, parts, strict=True)]
    return b"".join(parts), told


def encode_samples(store_id: bytes, samples: Samples) -> bytes:
    """The head."""
    counts = _COUNTS.pack(samples.records, len(samples.buckets), samples.shards)
    buckets = (_BUCKET.pack(*bucket) for bucket in samples.buckets)
    body = b"".join([counts, *samples.hints, *buckets])
    return encode_told(_MAGIC, store_id, len(samples.hints), body)


def decode_samples(raw: bytes) -> tuple[bytes, Samples]:
    """(store id, what the head tells). Raises FormatError, UnsupportedFormat."""
    store_id, _, hints, body = decode_told(_MAGIC, raw, "head of samples")
    if len(body) < _COUNTS.size:
        raise FormatError(f"a head of samples is cut short at {len(raw)} bytes")
    records, buckets, shards = _COUNTS.unpack_from(body)
    body = body[_COUNTS.size :]
    if len(body) != 16 * hints + _BUCKET.size * buckets:
        raise FormatError(f"samples have {len(body)} bytes for {hints} hints, {buckets} buckets")
    if not _is_power_of_two(shards) or not _is_power_of_two(buckets) or shards > buckets:
        raise FormatError(f"samples have {buckets} buckets in {shards} shards")
    ids = [bytes(body[i : i + 16]) for i in range(0, 16 * hints, 16)]
    told = list(_BUCKET.iter_unpack(body[16 * hints :]))
    if sum(count for count, _ in told) != records:
        raise FormatError("samples have buckets of another number of records")
    return store_id, Samples(ids, told, shards)


def decode_bucket(raw: bytes, told: tuple[int, int]) -> bytes:
    """The bucket's records, if that is what they are. Raises FormatError."""
    records, checksum = told
    if len(raw) != records * RECORD_BYTES or _checksum(raw) != checksum:
        raise FormatError("a bucket of samples is damaged")
    return raw


def find(bucket: bytes, chunk_id: bytes) -> Iterator[int]:
    """The numbers in the records of the chunk."""
    prefix, at = chunk_id[:_PREFIX_BYTES], -1
    while (at := bucket.find(prefix, at + 1)) >= 0:
        if at % RECORD_BYTES == 0:
            yield hints_of(bucket[at : at + RECORD_BYTES])


def records_of(bucket: bytes) -> list[bytes]:
    return [bucket[i : i + RECORD_BYTES] for i in range(0, len(bucket), RECORD_BYTES)]


def _power_of_two(least: int) -> int:
    return 1 << max(least - 1, 0).bit_length()


def _is_power_of_two(number: int) -> bool:
    return number > 0 and not number & (number - 1)
