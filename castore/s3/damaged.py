"""Packs that are known to be damaged, or to be missing: marks below `damaged/`, for all machines.

A repair leads names to intact copies, but the pack stays until a collector takes it, as a writer
elsewhere may be relying on the rest of it. Meanwhile any machine may remember, or be told by hints,
what it had; and a session knows its own packs without asking. So before a put relies on anything
that it did not store itself, it asks what is marked: that is stored anew.

A mark is written before the repair puts anything, and stays until the pack is gone and no session
that could know of it from before is left. Each has a key of its own, and is taken away by that: one
that another puts meanwhile, for the same pack and in the same second, stays.

Most stores never have one, and a LIST costs as much as a dozen other requests. So `damaged/marked`
is put before the first mark, and never taken away: who does not find it had no mark to miss.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from castore.s3.client.bucket import Bucket, KeyAbsent, Listed
from castore.s3.keys import DAMAGED, DAMAGED_ANY, damaged_pack_of, new_damage_key
from castore.s3.lease import SESSION_S_MAX


def mark_damaged(bucket: Bucket, packs: Collection[bytes]) -> None:
    if packs:
        bucket.put(DAMAGED_ANY, b"", idempotent=True)
    for pack_id in packs:
        bucket.put(new_damage_key(pack_id), b"", idempotent=True)


def unmark(
    bucket: Bucket, packs: Collection[bytes], marked: Mapping[bytes, Collection[str]]
) -> None:
    """Take away the marks of these packs that are among those `marked`, and no later ones: the
    packs are whole, as damaged on its way, a frame looked as if it were; or have newer marks."""
    keys = [key for pack_id in packs for key in marked.get(pack_id, ())]
    if keys:
        bucket.delete_many(keys)


def to_avoid(bucket: Bucket) -> set[bytes]:
    """As `damaged_packs`; of a store where nothing was ever marked, for one HEAD."""
    try:
        bucket.head(DAMAGED_ANY)
    except KeyAbsent:
        return set()
    return damaged_packs(bucket)


def damaged_packs(bucket: Bucket) -> set[bytes]:
    return {pack_id for pack_id, _ in _marks(bucket)}


def marks_of_packs(bucket: Bucket) -> dict[bytes, list[str]]:
    """The keys of the marks of each."""
    keys: dict[bytes, list[str]] = {}
    for pack_id, entry in _marks(bucket):
        keys.setdefault(pack_id, []).append(entry.key)
    return keys


def remove_marks(bucket: Bucket, there: Collection[bytes], *, now: float) -> None:
    """Those of packs that are not `there` any more; `now` is the server's time, in seconds."""
    marks = list(_marks(bucket))
    if marks:  # also if somebody took it away
        bucket.put(DAMAGED_ANY, b"", idempotent=True)
    void = [
        entry.key
        for pack_id, entry in marks
        if pack_id not in there and now - entry.modified > SESSION_S_MAX
    ]
    if void:
        bucket.delete_many(void)


def _marks(bucket: Bucket) -> Iterator[tuple[bytes, Listed]]:
    for entry in bucket.list(DAMAGED):
        pack_id = damaged_pack_of(entry.key)
        if pack_id is not None:
            yield pack_id, entry
