"""What collectors announce, as those read it who are none."""

from __future__ import annotations

from castore.errors import FormatError
from castore.format.s3_gc import decode_condemned, decode_state
from castore.s3.client.bucket import Bucket, KeyAbsent
from castore.s3.keys import CONDEMNED_LISTS, GC_STATE_KEY, is_collectors


class ListGone(FormatError):
    """`gc/state` refers to a list that is not there."""


def read_condemned(bucket: Bucket, store_id: bytes) -> list[bytes]:
    """The packs that a collector is about to delete, if it is at it. Raises ListGone, FormatError,
    UnsupportedFormat."""
    before = None
    while True:
        try:
            state = decode_state(bucket.get(GC_STATE_KEY).body)
            if state.condemned is None:
                return []
            if state == before:
                raise ListGone(f"gc/state refers to {state.condemned!r}, which is not there")
            before = state
            return decode_condemned(bucket.get(state.condemned).body, store_id).packs
        except KeyAbsent as absent:
            if absent.key == GC_STATE_KEY:
                return []
            # The list: unless the round ended in between.


def list_without_state(bucket: Bucket) -> str | None:
    """The key of a list where `gc/state` is gone: none is written before there is a state, which
    nobody takes away."""
    lists = (entry.key for entry in bucket.list(CONDEMNED_LISTS) if is_collectors(entry.key))
    key = next(lists, None)
    if key is not None:
        try:
            bucket.head(GC_STATE_KEY)
        except KeyAbsent:
            return key
    return None
