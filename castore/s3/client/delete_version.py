"""Deleting one version of what is at each key, so that a lost reply is not passed on to the user.

With If-Match, as no two versions of a name have one ETag, a request that lands late deletes nothing
that was put meanwhile. A server that ignores it deletes what is there; so does one that refuses it
whatever is there, which is asked without it.
"""

from __future__ import annotations

from collections.abc import Sequence

from castore.errors import RemoteError
from castore.s3.client.bucket import Bucket, KeyAbsent, OutcomeUnknown, PreconditionFailed
from castore.s3.client.faults import Fault
from castore.s3.client.retries import Retrier
from castore.system.clock import boot_clock

UNKNOWN_HEADER = (400, 501)  # what servers answer that do not know If-Match


def etag_at(bucket: Bucket, key: str) -> str | None:
    """What is there now."""
    try:
        return bucket.head(key).etag
    except KeyAbsent:
        return None


def delete_version(bucket: Bucket, key: str, etag: str) -> bool:
    """Have what was just seen to have this ETag deleted; False if it was overwritten since. That it
    is gone is success: another deleted it, or something on the way sent our request twice.

    Raises OutcomeUnknown whenever it ends otherwise after an attempt that may have landed, or may
    yet.
    """
    lost: list[OutcomeUnknown] = []
    try:
        return _delete(bucket, key, etag, lost)
    except Exception as error:
        if not lost or error in lost:
            raise
        raise OutcomeUnknown(key) from error


def _delete(bucket: Bucket, key: str, etag: str, lost: list[OutcomeUnknown]) -> bool:
    """Adds to `lost` what is said of each attempt whose outcome is unknown."""
    retrier = Retrier(bucket.backoff, boot_clock)
    if_match: str | None = etag
    while True:
        try:
            bucket.delete(key, if_match=if_match)
            return True
        except KeyAbsent:
            return True
        except PreconditionFailed as refusal:
            if not refusal.conflict:
                if etag_at(bucket, key) != etag:
                    return False
                if_match = None  # or it would be refused for ever
                continue
            fault = Fault(RemoteError(f"{key!r} kept changing: repeat it"), repeat=True)
        except RemoteError as refusal:
            if if_match is None or refusal.status not in UNKNOWN_HEADER:
                raise
            if etag_at(bucket, key) != etag:
                return False
            if_match = None
            continue
        except OutcomeUnknown as error:
            lost.append(error)
            fault = Fault(error, repeat=True, unknown=True)
        there = etag_at(bucket, key)
        if there != etag:
            return there is None
        if not retrier.wait(fault):
            raise fault.error


def delete_versions(bucket: Bucket, versions: Sequence[tuple[str, str]]) -> set[str]:
    """Have up to 1,000 keys deleted in one request, each if it still has the ETag that it was just
    seen to have; those that are known to be gone. The others are to be looked at one by one: they
    were overwritten, or the server said nothing of them, or knows no such request."""
    try:
        return bucket.delete_if_match(versions)
    except OutcomeUnknown:
        return set()
    except RemoteError as refusal:
        if refusal.status not in (*UNKNOWN_HEADER, 405):
            raise
        return set()
