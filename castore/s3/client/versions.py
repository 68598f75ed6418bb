"""Versions that a versioned bucket keeps of what was overwritten or deleted.

castore never reads them. The current version is never touched: what is removed was not it when it
was listed, and can't become it again by anything that castore does.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache

from castore.errors import CastoreError
from castore.s3.client.bucket import DELETE_MANY_MAX, NOT_XML
from castore.s3.client.connection import Connection
from castore.s3.client.faults import Broken, Refused
from castore.s3.client.identity import chosen_by
from castore.s3.client.settings import S3Settings


def is_versioned(settings: S3Settings) -> bool:
    """Whether the bucket keeps versions, or has kept some. Asked once per process; False where the
    server or the policy does not say."""
    with suppress(Refused, Broken, CastoreError):
        return _is_versioned(replace(settings, prefix=""), chosen_by())
    return False  # and it is asked again


def remove_old_versions(settings: S3Settings, key: str, *, below: bool = False) -> int:
    """Remove what a versioned bucket keeps of older versions of the key, relative to the prefix;
    with `below`, of all keys that begin with it. How many are gone.

    On other buckets it costs nothing. A best effort: what can't be removed, for want of rights or
    because the server fails, stays; a lifecycle rule gets it some day.
    """
    removed = 0
    if is_versioned(settings):
        with suppress(Refused, Broken, CastoreError):
            connection = _connection(replace(settings, prefix=""), chosen_by(), os.getpid())
            # Listed to the end first: not every server goes on from a version that is gone.
            old = list(_old_versions(connection, settings.key(key), below))
            together = [each for each in old if NOT_XML.search(each["Key"]) is None]
            for start in range(0, len(together), DELETE_MANY_MAX):
                doomed = {"Objects": together[start : start + DELETE_MANY_MAX]}
                answer = connection.call("delete_objects", Delete=doomed)
                removed += len(answer.get("Deleted", ()))
            for each in old:
                if NOT_XML.search(each["Key"]) is not None:
                    connection.call("delete_object", **each)
                    removed += 1
    return removed


def _old_versions(connection: Connection, prefix: str, below: bool) -> Iterator[dict[str, str]]:
    marker: dict[str, str] = {}
    while True:
        page = connection.call("list_object_versions", Prefix=prefix, **marker)
        found = [*page.get("Versions", ()), *page.get("DeleteMarkers", ())]
        for version in found:
            if not version["IsLatest"] and (below or version["Key"] == prefix):
                yield {"Key": version["Key"], "VersionId": version["VersionId"]}
        # Keys come in order, and the one that is the prefix itself comes first.
        beyond = not below and any(version["Key"] != prefix for version in found)
        if beyond or not page.get("IsTruncated"):
            return
        following = {"KeyMarker": page["NextKeyMarker"]}
        if page.get("NextVersionIdMarker"):
            following["VersionIdMarker"] = page["NextVersionIdMarker"]
        if following == marker:
            return
        marker = following


@lru_cache(maxsize=64)
def _is_versioned(bucket: S3Settings, credentials: tuple[str | None, ...]) -> bool:
    try:
        answer = _connection(bucket, credentials, os.getpid()).call("get_bucket_versioning")
        return bool(answer.get("Status"))  # "Enabled" or "Suspended"
    except Refused as refused:
        if refused.status in (403, 501):
            return False  # and so it will be the next time
        raise


@lru_cache(maxsize=8)
def _connection(bucket: S3Settings, credentials: tuple[str | None, ...], pid: int) -> Connection:
    """A forked child's own: it never uses its parent's sockets."""
    return Connection(bucket)
