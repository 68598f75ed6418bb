"""A write that happens once, or not at all, whatever becomes of the replies.

For names/, pins/ and gc/, where a hidden earlier attempt could land after everything that it relied
on is gone. Each attempt's body carries a nonce of its own, so no two are alike: reading the key
back tells which attempt, if any, is there. (In the body, not the metadata: metadata does not change
an ETag, and the ETags of like bodies repeat.)
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import NamedTuple

from castore.errors import RemoteError
from castore.s3.client.bucket import Bucket, KeyAbsent, OutcomeUnknown, PreconditionFailed, Reply
from castore.s3.client.faults import Fault
from castore.s3.client.retries import Retrier

NONCE_BYTES = 16


class Landed(NamedTuple):
    """A Reply, of the attempt that is there."""

    body: bytes
    etag: str
    size: int
    date: float
    any_unknown: bool  # an attempt may land again or yet, as long as its signature is good


def put_once(
    bucket: Bucket,
    key: str,
    make_body: Callable[[bytes], bytes],
    *,
    if_none_match: bool = False,
    if_match: str | None = None,
) -> Landed:
    """Put `make_body(nonce)` until one attempt is seen to be there.

    `make_body` is called before each attempt is signed, and by raising stops it. A server that
    refuses the ETag that is there is asked in turns without its quotes, which some want. Raises
    PreconditionFailed when something else is there than the precondition allows (`any_unknown`:
    ours may have been, and been replaced), and OutcomeUnknown whenever it ends otherwise after an
    attempt that may have landed. Without a precondition, the last to land is what stays.
    """
    bodies: list[bytes] = []
    retrier = Retrier(bucket.backoff)
    unknown = False
    wanted = if_match
    while True:
        try:
            bodies.append(make_body(secrets.token_bytes(NONCE_BYTES)))
            put = bucket.put_attempt(key, bodies[-1], if_none_match=if_none_match, if_match=wanted)
            return Landed(*put, any_unknown=unknown)
        except (PreconditionFailed, KeyAbsent) as refusal:
            # Something in between may have sent our request twice: look whether it is ours.
            fault = Fault(_refused(key, refusal, if_match), repeat=True)
            fault.__cause__ = refusal
        except Fault as failure:
            fault = failure
            unknown = unknown or fault.unknown
            if not fault.unknown:
                bodies.pop()
        except Exception as error:
            if unknown:
                raise OutcomeUnknown(key) from error
            raise
        if bodies:
            there = _read_back(bucket, key, max(map(len, bodies)))
            if there is not None and there.body in bodies and there.size == len(there.body):
                return Landed(b"", *there[1:], any_unknown=True)
            if not _allowed(there, if_none_match=if_none_match, if_match=if_match):
                raise PreconditionFailed(key, any_unknown=unknown) from fault
            if if_match is not None and isinstance(fault.__cause__, PreconditionFailed):
                wanted = if_match.strip('"') if wanted == if_match else if_match
        if not retrier.wait(fault):
            if unknown:
                raise OutcomeUnknown(key) from fault.error
            raise fault.error from fault.__cause__


def put_over(bucket: Bucket, key: str, body: bytes, etag: str, *, conditional: bool) -> bool:
    """Put `body`, once, over the version that has this ETag; False if it is not there any more.
    Where the server does not honour If-Match (not `conditional`) the version is looked for just
    before: what is put in between is lost. Raises OutcomeUnknown."""
    try:
        if conditional:
            bucket.put(key, body, if_match=etag)
            return True
        if bucket.head(key).etag != etag:
            return False
        bucket.put(key, body)
    except (PreconditionFailed, KeyAbsent):
        return False
    return True


def _refused(key: str, refusal: Exception, if_match: str | None) -> RemoteError:
    """What the user reads if it is refused to the end, though what is there allows it."""
    conflict = isinstance(refusal, PreconditionFailed) and refusal.conflict
    if if_match is None or conflict:
        return RemoteError(f"{key!r} kept changing: repeat it")
    return RemoteError(
        f"{key!r} can't be replaced: the server refuses If-Match, whatever is there: run castore "
        "doctor"
    )


def _read_back(bucket: Bucket, key: str, size: int) -> Reply | None:
    try:
        return bucket.get(key, byte_range=(0, size))  # of what is larger, enough to tell
    except KeyAbsent:
        return None
    except Exception as error:
        raise OutcomeUnknown(key) from error


def _allowed(there: Reply | None, *, if_none_match: bool, if_match: str | None) -> bool:
    """Whether another attempt could succeed on what is there."""
    if if_none_match:
        return there is None
    if if_match is not None:
        return there is not None and there.etag == if_match
    return True
