"""Versions that a versioned bucket keeps of what was overwritten or deleted.

castore never reads them. The current version is never touched: what is removed was not it when it
was listed, and can't become it again by anything that castore does.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from typing import Any

from castore.errors import AccessDenied, CastoreError, RemoteError
from castore.s3.client.attempts import Attempts
from castore.s3.client.bucket import DELETE_MANY_MAX, NOT_XML
from castore.s3.client.faults import Fault
from castore.s3.client.identity import chosen_by
from castore.s3.client.settings import S3Settings


def is_versioned(settings: S3Settings) -> bool:
    """Whether the bucket keeps versions, or has kept some. Asked once per process; False where the
    server or the policy does not say."""
    with suppress(CastoreError):
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
        attempts = _attempts(replace(settings, prefix=""), chosen_by())
        with suppress(CastoreError):
            # Listed to the end first: not every server goes on from a version that is gone.
            old = list(_old_versions(attempts, settings.key(key), below))
            together = [each for each in old if NOT_XML.search(each["Key"]) is None]
            for start in range(0, len(together), DELETE_MANY_MAX):
                doomed = {"Objects": together[start : start + DELETE_MANY_MAX]}
                answer = _ask(attempts, "DeleteObjectVersion", "delete_objects", Delete=doomed)
                removed += len(answer.get("Deleted", ()))
            for each in old:
                if NOT_XML.search(each["Key"]) is not None:
                    _ask(attempts, "DeleteObjectVersion", "delete_object", **each)
                    removed += 1
    return removed


def _old_versions(attempts: Attempts, prefix: str, below: bool) -> Iterator[dict[str, str]]:
    marker: dict[str, str] = {}
    while True:
        asked = {"Prefix": prefix, **marker}
        page = _ask(attempts, "ListBucketVersions", "list_object_versions", **asked)
        found = [*page.get("Versions", ()), *page.get("DeleteMarkers", ())]
        for version in found:
            key, number = version.get("Key"), version.get("VersionId")
            is_old = version.get("IsLatest") is False
            if is_old and key and number and (below or key == prefix):
                yield {"Key": key, "VersionId": number}
        # Keys come in order, and the one that is the prefix itself comes first.
        beyond = not below and any(version.get("Key") != prefix for version in found)
        if beyond or not page.get("IsTruncated") or not page.get("NextKeyMarker"):
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
        attempts = _attempts(bucket, credentials)
        answer = _ask(attempts, "GetBucketVersioning", "get_bucket_versioning")
    except AccessDenied:
        return False  # and so it will be the next time
    except RemoteError as refused:
        if refused.status == 501:
            return False
        raise
    return bool(answer.get("Status"))  # "Enabled" or "Suspended"


def _ask(attempts: Attempts, action: str, operation: str, **parameters: Any) -> dict[str, Any]:
    """Once: who put something waits for it. Raises CastoreError."""
    try:
        return attempts.call(f"s3:{action}", "", operation, **parameters)
    except Fault as fault:
        raise fault.error from fault


@lru_cache(maxsize=8)
def _attempts(bucket: S3Settings, _: tuple[str | None, ...]) -> Attempts:
    return Attempts(bucket)
