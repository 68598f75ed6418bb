"""Removing packs of a store on S3, and what probing left."""

from __future__ import annotations

from collections.abc import Mapping

from castore.model import Stages
from castore.s3.client.bucket import DELETE_MANY_MAX, Bucket
from castore.s3.keys import PROBE, pack_key
from castore.system.workers import Workers, results_of


def remove_packs(
    bucket: Bucket, requests: Workers, packs: Mapping[bytes, int], stages: Stages
) -> dict[bytes, Exception]:
    """Remove packs, which are given with their bytes, a thousand in a request and many requests at
    once. Those that are not known to be gone, and why. Raises what a Bucket does once none of the
    requests is under way any more."""
    stages.begin_stage("deleting", sum(packs.values()))
    left = {}
    ordered = sorted(packs)
    batches = [
        {pack_key(pack_id): pack_id for pack_id in ordered[i : i + DELETE_MANY_MAX]}
        for i in range(0, len(ordered), DELETE_MANY_MAX)
    ]
    deleting = [requests.submit(bucket.delete_many, list(keys)) for keys in batches]
    for keys, kept in zip(batches, results_of(deleting), strict=True):
        for key, error in kept:
            left[keys[key]] = error
        stages.relative_update(sum(packs[pack_id] for pack_id in keys.values()))
    return left


def remove_scratch(bucket: Bucket, *, before: float) -> None:
    """Remove what a process that died while it probed the server left, if it is from before that
    time in seconds by the server's clock."""
    scratch = [entry.key for entry in bucket.list(PROBE) if entry.modified < before]
    if scratch:
        bucket.delete_many(scratch)
