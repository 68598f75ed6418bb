"""What a server honours of what castore relies on, found out on scratch keys.

A server that ignores a precondition answers as if it had honoured it: only a request that must fail
tells them apart.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass

from castore.errors import RemoteError
from castore.s3.bucket import Bucket, KeyAbsent, OutcomeUnknown, PreconditionFailed

TRIES = 3
_NO_ETAG = '"00000000000000000000000000000000"'
_OLD, _NEW = b"the first bytes", b"other bytes, and more of them"


@dataclass(frozen=True, slots=True)
class ServerFeatures:
    if_none_match: bool  # PUT only where there is nothing
    if_match_put: bool  # PUT only over a version
    if_match_delete: bool  # DELETE only that version
    ranges: bool
    list_consistent: bool  # a listing shows what was written, and not what was deleted


def probe(bucket: Bucket) -> ServerFeatures:
    """Takes about 20 requests under `probe/<random>/`, and removes what they leave."""
    scratch = _Scratch(bucket)
    try:
        return ServerFeatures(
            if_none_match=scratch.settled(_if_none_match),
            if_match_put=scratch.settled(_if_match_put),
            if_match_delete=scratch.settled(_if_match_delete),
            ranges=scratch.settled(_ranges),
            list_consistent=scratch.settled(_list_consistent),
        )
    finally:
        bucket.delete_many(scratch.keys)


class _Scratch:
    def __init__(self, bucket: Bucket) -> None:
        self.bucket = bucket
        self.folder = f"probe/{secrets.token_hex(16)}"
        self.keys: list[str] = []

    def settled(self, check: Callable[[Bucket, str], bool]) -> bool:
        """The check's answer, on a fresh key each time that a reply is lost."""
        for left in reversed(range(TRIES)):
            key = f"{self.folder}/{len(self.keys)}"
            self.keys.append(key)
            try:
                return check(self.bucket, key)
            except OutcomeUnknown as lost:
                if not left:
                    cause = lost.__cause__
                    raise cause if isinstance(cause, Exception) else lost from lost
        raise AssertionError("unreachable")


def _if_none_match(bucket: Bucket, key: str) -> bool:
    return _refused(lambda: bucket.put(key, _OLD, if_none_match=True)) is None and _holds(
        lambda: bucket.put(key, _NEW, if_none_match=True), bucket, key
    )


def _if_match_put(bucket: Bucket, key: str) -> bool:
    etag = bucket.put(key, _OLD, idempotent=True).etag
    return (
        _holds(lambda: bucket.put(key, _NEW, if_match=_NO_ETAG), bucket, key)
        and _refused(lambda: bucket.put(key, _NEW, if_match=etag)) is None
        and _body(bucket, key) == _NEW
    )


def _if_match_delete(bucket: Bucket, key: str) -> bool:
    etag = bucket.put(key, _OLD, idempotent=True).etag
    return (
        _holds(lambda: bucket.delete(key, if_match=_NO_ETAG), bucket, key)
        and _refused(lambda: bucket.delete(key, if_match=etag)) is None
        and _body(bucket, key) is None
    )


def _ranges(bucket: Bucket, key: str) -> bool:
    bucket.put(key, _OLD, idempotent=True)
    try:
        part = bucket.get(key, byte_range=(4, 9))
    except RemoteError:
        return False
    return part.body == _OLD[4:9] and part.size == len(_OLD)


def _list_consistent(bucket: Bucket, key: str) -> bool:
    def listed() -> dict[str, str]:
        return {entry.key: entry.etag for entry in bucket.list(key)}

    first = bucket.put(key, _OLD, idempotent=True).etag
    if listed() != {key: first}:
        return False
    second = bucket.put(key, _NEW, idempotent=True).etag
    if listed() != {key: second}:
        return False
    bucket.delete(key)
    return not listed()


def _holds(write: Callable[[], object], bucket: Bucket, key: str) -> bool:
    """True if the write was refused for its precondition, and did nothing."""
    return isinstance(_refused(write), PreconditionFailed) and _body(bucket, key) == _OLD


def _refused(write: Callable[[], object]) -> Exception | None:
    """Why the server refused the write; None if it did not. A server that does not know the header
    may say so (400, 501)."""
    try:
        write()
    except (PreconditionFailed, KeyAbsent) as refusal:
        return refusal
    except RemoteError as error:
        if error.status in (400, 501):
            return error
        raise
    return None


def _body(bucket: Bucket, key: str) -> bytes | None:
    try:
        return bucket.get(key).body
    except KeyAbsent:
        return None
