"""Copies of what a repair replaces or takes away, below `quarantine/`."""

from __future__ import annotations

from itertools import count

from castore.s3.client.bucket import Bucket, KeyAbsent
from castore.s3.keys import quarantine_key


def keep_copy(bucket: Bucket, key: str, raw: bytes) -> str:
    """Keep `raw`, which was at this key; where. Other bytes that an earlier repair kept of the same
    key stay: the new ones go beside them, under a number."""
    for number in count():
        target = quarantine_key(key) + (f".{number}" if number else "")
        try:
            there = bucket.get(target).body
        except KeyAbsent:
            bucket.put(target, raw, idempotent=True)
            return target
        if there == raw:
            return target
    raise AssertionError("unreachable")
