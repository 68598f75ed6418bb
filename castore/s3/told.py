"""What is read of a bucket with no trust in it: it may be damaged, or only have been on its way."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from castore.errors import FormatError, ManifestUnreadable, UnsupportedFormat
from castore.s3.client.bucket import Bucket, KeyAbsent
from castore.s3.keys import name_key
from castore.s3.manifests import Overwritten, read_head

T = TypeVar("T")


def undamaged(read: Callable[[], T]) -> T:
    """What `read` gives; where it raises FormatError, it is asked once more, and that counts."""
    try:
        return read()
    except FormatError:
        return read()


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


def read_manifest(
    bucket: Bucket,
    name: bytes,
    first_bytes: int,
    use: Callable[[str, bytes], T],
    *,
    unless: str | None = None,
) -> T | None:
    """What `use` makes of the ETag and the first bytes, with its whole head at least, of what the
    name maps to now; None if that has the ETag `unless`. Raises KeyAbsent; ManifestUnreadable where
    `use` raises FormatError, twice."""

    def read() -> T | None:
        while True:
            reply = bucket.get(name_key(name), byte_range=(0, first_bytes), if_none_match=unless)
            if reply is None:
                return None
            try:
                return use(reply.etag, read_head(bucket, name, reply))
            except Overwritten:
                continue

    try:
        return undamaged(read)
    except FormatError as error:
        raise ManifestUnreadable(name.decode(), str(error)) from error
