"""Deleting one version of what is at a key, so that a lost reply is not passed on to the user.

With If-Match, as no two versions of a name have one ETag, a request that lands late deletes nothing
that was put meanwhile. A server that ignores it deletes what is there.
"""

from __future__ import annotations

from castore.errors import RemoteError
from castore.s3.bucket import Bucket, KeyAbsent, OutcomeUnknown, PreconditionFailed
from castore.s3.faults import Fault
from castore.s3.retries import Patience


def etag_at(bucket: Bucket, key: str) -> str | None:
    """What is there now."""
    try:
        return bucket.head(key).etag
    except KeyAbsent:
        return None


def delete_version(bucket: Bucket, key: str, etag: str) -> bool:
    """Have what was just seen to have this ETag deleted; False if it was overwritten since. That it
    is gone is success: another deleted it, or something on the way sent our request twice.

    Raises OutcomeUnknown if it is still there after some attempts that may land yet.
    """
    patience = Patience(bucket.backoff)
    unknown: OutcomeUnknown | None = None
    while True:
        try:
            bucket.delete(key, if_match=etag)
            return True
        except KeyAbsent:
            return True
        except PreconditionFailed as refusal:
            if not refusal.conflict:
                return False
            fault = Fault(RemoteError(f"{key!r} kept changing: repeat it"), repeat=True)
        except OutcomeUnknown as lost:
            unknown = lost
            fault = Fault(RemoteError(f"{key!r} was not deleted"), repeat=True, unknown=True)
        there = etag_at(bucket, key)
        if there != etag:
            return there is None
        if not patience.wait(fault):
            if unknown is not None:
                raise unknown
            raise fault.error
