"""What a store's URL, or path, means."""

from __future__ import annotations


def local_folder(url: str) -> str | None:
    """The folder that a store's URL or path names; None if it is on S3. Raises ValueError for what
    names neither."""
    scheme, separator, rest = url.partition("://")
    if separator and scheme == "s3":
        return None
    if separator and scheme != "file":
        raise ValueError(f"{scheme}:// is not a kind of store: use s3://bucket/prefix or a path")
    path = rest if separator else url
    if not path:
        raise ValueError("a store's path must not be empty")
    if path.startswith("s3:"):
        raise ValueError(f"{path!r} is no URL: use s3://bucket/prefix, or ./{path} for a folder")
    return path
