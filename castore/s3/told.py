"""What is read of a bucket with no trust in it: it may be damaged, or only have been on its way."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from castore.errors import FormatError, UnsupportedFormat
from castore.s3.client.bucket import Bucket, KeyAbsent

T = TypeVar("T")


def undamaged(read: Callable[[], T]) -> T:
    """What `read` gives; where it raises FormatError, or a wrong bit made a version of it that is
    not known, it is asked once more, and that counts."""
    try:
        return read()
    except (FormatError, UnsupportedFormat):
        return read()


def decoded(bucket: Bucket, key: str, raw: bytes, decode: Callable[[bytes], T]) -> T:
    """The same for what was just read of a key. Raises KeyAbsent if it is gone by then."""
    try:
        return decode(raw)
    except (FormatError, UnsupportedFormat):
        return decode(bucket.get(key).body)


def read_told(
    bucket: Bucket, store_id: bytes, key: str, decode: Callable[[bytes], tuple[bytes, list[T]]]
) -> list[T] | None:
    """What an object of hints, or a listing, tells: nothing if it is damaged, or another store's.
    None if it is gone, or a later castore's."""
    try:
        owner, told = undamaged(lambda: decode(bucket.get(key).body))
    except (KeyAbsent, UnsupportedFormat):
        return None
    except FormatError:
        return []
    return told if owner == store_id else []
