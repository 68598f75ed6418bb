"""Which of many names are singles: by LISTs where they lie near each other, else one by one."""

from __future__ import annotations

from collections.abc import Collection

from castore.s3.client.bucket import Bucket, KeyAbsent, Listed
from castore.s3.keys import NAMES, name_key, name_of
from castore.system.workers import Workers

# A page of 1,000 keys takes some 20 ms of a core, and a HEAD 2 ms: a LIST of which fewer are wanted
# is not worth it.
LIST_MIN = 16
PAGE_KEYS = 1000


def singles_of(bucket: Bucket, requests: Workers, names: Collection[bytes]) -> dict[bytes, Listed]:
    """Those that are there."""
    found: dict[bytes, Listed] = {}
    left = sorted(names)
    if len(left) >= LIST_MIN:
        done = _list(bucket, left, found)
        left = left[done:]
    return found | heads_of(bucket, requests, left)


def heads_of(bucket: Bucket, requests: Workers, names: Collection[bytes]) -> dict[bytes, Listed]:
    """The same, each asked for by itself, many at once."""
    looking = [(name, requests.submit(_head, bucket, name_key(name))) for name in names]
    return {name: single for name, future in looking if (single := future.result()) is not None}


def _head(bucket: Bucket, key: str) -> Listed | None:
    try:
        reply = bucket.head(key)
    except KeyAbsent:
        return None
    return Listed(key, reply.size, reply.etag, 0.0)


def _list(bucket: Bucket, names: list[bytes], found: dict[bytes, Listed]) -> int:
    """Look for the sorted `names` in a list; how many of them were decided before too few were
    found for what it costs."""
    prefix = _common(names[0], names[-1]).decode(errors="ignore")  # no part of a character
    before = names[0].decode()[:-1]  # what sorts in between is little
    start_after = f"{NAMES}{before}" if before.startswith(prefix) else ""
    decided = 0
    for listed, entry in enumerate(bucket.list(NAMES + prefix, start_after=start_after), 1):
        name = name_of(entry)
        if name is not None:
            while decided < len(names) and names[decided] < name:
                decided += 1
            if decided < len(names) and names[decided] == name:
                found[name] = entry
                decided += 1
            if decided == len(names):
                return decided
        # Before the next page is asked for.
        if listed % PAGE_KEYS == 0 and decided < listed // PAGE_KEYS * LIST_MIN:
            return decided
    return len(names)


def _common(one: bytes, other: bytes) -> bytes:
    """What both begin with."""
    for i, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return one[:i]
    return min(one, other, key=len)
