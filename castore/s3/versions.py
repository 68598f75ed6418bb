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
from typing import Any

from castore.errors import CastoreError
from castore.s3.bucket import DELETE_MANY_MAX
from castore.s3.connection import Connection, _converted
from castore.s3.faults import Broken, Refused
from castore.s3.identity import chosen_by
from castore.s3.settings import S3Settings


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
            for start in range(0, len(old), DELETE_MANY_MAX):
                removed += connection.delete_versions(old[start : start + DELETE_MANY_MAX])
    return removed


class VersionsConnection(Connection):
    """The calls that only versioned buckets have a use for."""

    def versioning(self) -> str:
        """ "Enabled", "Suspended", or "" for a bucket that never kept versions."""
        with _converted(self._settings, "GetBucketVersioning"):
            answer = self._client.get_bucket_versioning(Bucket=self._settings.bucket)
            return str(answer.get("Status", ""))

    def list_versions(self, prefix: str, **marker: str) -> dict[str, Any]:
        with _converted(self._settings, "ListObjectVersions"):
            page: dict[str, Any] = self._client.list_object_versions(
                Bucket=self._settings.bucket, Prefix=prefix, **marker
            )
            return page

    def delete_versions(self, versions: list[dict[str, str]]) -> int:
        with _converted(self._settings, "DeleteObjects"):
            answer = self._client.delete_objects(
                Bucket=self._settings.bucket, Delete={"Objects": versions}
            )
            return len(answer.get("Deleted", ()))


def _old_versions(
    connection: VersionsConnection, prefix: str, below: bool
) -> Iterator[dict[str, str]]:
    marker: dict[str, str] = {}
    while True:
        page = connection.list_versions(prefix, **marker)
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
        return _connection(bucket, credentials, os.getpid()).versioning() != ""
    except Refused as refused:
        if refused.status in (403, 501):
            return False  # and so it will be the next time
        raise


@lru_cache(maxsize=8)
def _connection(
    bucket: S3Settings, credentials: tuple[str | None, ...], pid: int
) -> VersionsConnection:
    """A forked child's own: it never uses its parent's sockets."""
    return VersionsConnection(bucket)
