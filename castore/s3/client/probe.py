"""What a server honours of what castore relies on, found out on scratch keys.

A server that ignores a precondition answers as if it had honoured it: only a request that must fail
tells them apart. One that refuses every request that has it looks like one that honours it: only a
request that must not fail tells. And one that looks first and writes later honours it, but for
several at once.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from castore.errors import CastoreError, RemoteError
from castore.s3.client.bucket import Bucket, KeyAbsent, OutcomeUnknown, PreconditionFailed
from castore.s3.client.faults import Fault, Late
from castore.s3.client.retries import Retrier
from castore.s3.keys import PROBE
from castore.system.workers import Workers

RACES, RACERS = 2, 4  # puts of one key at once, by as many
RACES_AGAIN = 8  # where two of them have won
RACE_BYTES = 64 << 10
RACE_S = 5.0
_NO_ETAG = '"00000000000000000000000000000000"'
T = TypeVar("T")
_OLD, _NEW = b"the first bytes", b"other bytes, and more of them"


IGNORED = "ignored"
REFUSED = "always refused"
UNQUOTED = "always refused, but for an ETag without its quotes, which HTTP does not have"
UNKNOWN = "not known to the server"
DONE_ANYWAY = "refused, and done all the same"
BOTH_WIN = "honoured one after the other; of several at once more than one may win"


@dataclass(frozen=True, slots=True)
class ServerFeatures:
    """What a server honours of what collectors and writers ask of it."""

    if_none_match: bool  # PUT only where there is nothing, also of several at once
    if_match_put: bool  # PUT only over a version
    if_match_delete: bool  # DELETE only that version
    ranges: bool
    list_consistent: bool  # a listing shows what was written, and not what was deleted
    ranges_past_end: bool = True  # a range that ends behind the last byte is cut off there
    # Of the preconditions above that are False: what the server does with them instead.
    instead: dict[str, str] = field(default_factory=dict, compare=False)


def probe(bucket: Bucket, *, races: int = RACES) -> ServerFeatures:
    """Takes about 35 requests under `probe/<random>/`, and removes what they leave. So many
    `races` are run, each of several puts of one key at once."""
    scratch = _Scratch(bucket)
    try:
        found = _features(scratch, races)
    except BaseException:
        with contextlib.suppress(CastoreError):  # else it would be told in the place of the first
            bucket.delete_many(scratch.keys)
        raise
    bucket.delete_many(scratch.keys)
    return found


def _features(scratch: _Scratch, races: int) -> ServerFeatures:
    preconditions = {
        "if_none_match": scratch.settled(_if_none_match) or _of_races(scratch, races),
        "if_match_put": scratch.settled(_if_match_put),
        "if_match_delete": scratch.settled(_if_match_delete),
    }
    return ServerFeatures(
        **{name: not instead for name, instead in preconditions.items()},
        ranges=scratch.settled(_ranges),
        list_consistent=scratch.settled(_list_consistent),
        ranges_past_end=scratch.settled(_ranges_past_end),
        instead={name: instead for name, instead in preconditions.items() if instead},
    )


class _Scratch:
    """Keys of one probing, below a folder of its own."""

    def __init__(self, bucket: Bucket) -> None:
        self.bucket = bucket
        self.folder = f"{PROBE}{secrets.token_hex(16)}"
        self.keys: list[str] = []

    def settled(self, check: Callable[[Bucket, str], T], mark: str = "") -> T:
        """The check's answer, on a fresh key each time that a reply is lost, or a request not sent
        in time: a conditional write that was repeated by itself might meet itself. `mark` ends
        the key."""
        retrier = Retrier(self.bucket.backoff)
        while True:
            key = f"{self.folder}/{len(self.keys)}{mark}"
            self.keys.append(key)
            try:
                return check(self.bucket, key)
            except OutcomeUnknown as lost:
                cause = lost.__cause__
                error = cause if isinstance(cause, Exception) else lost
                if not retrier.wait(Fault(error, repeat=True)):
                    raise error from lost
            except RemoteError as error:
                late = isinstance(error.__cause__, Late)
                if not late or not retrier.wait(Fault(error, repeat=True)):
                    raise


# ---------------------------------------------------------------- each: what is done instead, or ""


def _if_none_match(bucket: Bucket, key: str) -> str:
    refusal = _refused(lambda: bucket.put(key, _OLD, if_none_match=True))
    if refusal is not None:
        return _why(refusal)
    return _must_fail(lambda: bucket.put(key, _NEW, if_none_match=True), bucket, key)


def _of_races(scratch: _Scratch, races: int) -> str:
    return BOTH_WIN if any(scratch.settled(_winners, "-race") > 1 for _ in range(races)) else ""


def _winners(bucket: Bucket, key: str) -> int:
    """How many of several puts at once are told that they were the first."""
    together = threading.Barrier(RACERS)

    def put(i: int) -> bool:
        with contextlib.suppress(threading.BrokenBarrierError):  # no thread for it, or a slow one
            together.wait(RACE_S)
        with contextlib.suppress(PreconditionFailed):
            bucket.put(key, bytes([i]) * RACE_BYTES, if_none_match=True)
            return True
        return False

    racers = Workers(RACERS)
    try:
        return sum([future.result() for future in [racers.submit(put, i) for i in range(RACERS)]])
    finally:
        racers.close()


def _if_match_put(bucket: Bucket, key: str) -> str:
    etag = bucket.put(key, _OLD, idempotent=True).etag
    return _must_fail(lambda: bucket.put(key, _NEW, if_match=_NO_ETAG), bucket, key) or _must_do(
        lambda etag: bucket.put(key, _NEW, if_match=etag), etag, _NEW, bucket, key
    )


def _if_match_delete(bucket: Bucket, key: str) -> str:
    etag = bucket.put(key, _OLD, idempotent=True).etag
    return _must_fail(lambda: bucket.delete(key, if_match=_NO_ETAG), bucket, key) or _must_do(
        lambda etag: bucket.delete(key, if_match=etag), etag, None, bucket, key
    )


def _must_fail(write: Callable[[], object], bucket: Bucket, key: str) -> str:
    refusal = _refused(write)
    if refusal is None:
        return IGNORED
    if _body(bucket, key) != _OLD:
        return DONE_ANYWAY
    return "" if isinstance(refusal, PreconditionFailed) else _why(refusal)


def _must_do(
    write: Callable[[str], object], etag: str, then: bytes | None, bucket: Bucket, key: str
) -> str:
    refusal = _refused(lambda: write(etag))
    if refusal is None:
        return "" if _body(bucket, key) == then else IGNORED
    if _refused(lambda: write(etag.strip('"'))) is None and _body(bucket, key) == then:
        return UNQUOTED
    return _why(refusal)


def _why(refusal: Exception) -> str:
    return REFUSED if isinstance(refusal, (PreconditionFailed, KeyAbsent)) else UNKNOWN


# ---------------------------------------------------------------- reading


def _ranges(bucket: Bucket, key: str) -> bool:
    bucket.put(key, _OLD, idempotent=True)
    try:
        part = bucket.get(key, byte_range=(4, 9))
    except (RemoteError, KeyAbsent):
        return False
    return part.body == _OLD[4:9] and part.size == len(_OLD)


def _ranges_past_end(bucket: Bucket, key: str) -> bool:
    bucket.put(key, _OLD, idempotent=True)
    try:
        part = bucket.get(key, byte_range=(4, len(_OLD) + 1000))
    except (RemoteError, KeyAbsent):
        return False
    return part.body == _OLD[4:] and not bucket.refuses_ranges_past_end


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
