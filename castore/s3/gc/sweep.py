"""Removing packs of a store on S3, and what probing left."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice

from castore.model import Stages
from castore.s3.client.bucket import DELETE_MANY_MAX, Bucket
from castore.s3.keys import PROBE, pack_key


def remove_packs(
    bucket: Bucket, packs: Mapping[bytes, int], stages: Stages
) -> dict[bytes, Exception]:
    """Remove packs, which are given with their bytes. Those that are not known to be gone, and
    why."""
    stages.begin_stage("deleting", sum(packs.values()))
    left = {}
    remaining = iter(sorted(packs))
    while batch := list(islice(remaining, DELETE_MANY_MAX)):
        keys = {pack_key(pack_id): pack_id for pack_id in batch}
        for key, error in bucket.delete_many(list(keys)):
            left[keys[key]] = error
        stages.relative_update(sum(packs[pack_id] for pack_id in batch))
    return left


def remove_scratch(bucket: Bucket, *, before: float) -> None:
    """Remove what a process that died while it probed the server left, if it is from before that
    time in seconds by the server's clock."""
    scratch = [entry.key for entry in bucket.list(PROBE) if entry.modified < before]
    if scratch:
        bucket.delete_many(scratch)
