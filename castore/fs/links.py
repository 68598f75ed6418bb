"""`castore+s3://bucket/prefix`, the place of a store behind the `::` of a chained URL.

fsspec asks the class of each link's protocol to take the link apart. That of `s3://` is in s3fs,
which castore has no other use for.
"""

from __future__ import annotations

from typing import Any

from fsspec.spec import AbstractFileSystem

from castore.fs.locations import STORE_LINK


class StoreLink(AbstractFileSystem):  # type: ignore[misc]  # fsspec is untyped
    """What only ever stands behind a `::`: made by itself it raises ValueError."""

    protocol = STORE_LINK
    cachable = False

    def __init__(self, *args: Any, **options: Any) -> None:
        raise ValueError(
            f"{STORE_LINK}://bucket/prefix is where a store is: chain a name before it, as "
            f"castore://NAME::{STORE_LINK}://bucket/prefix"
        )

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        return str(path).removeprefix(f"{STORE_LINK}://")
