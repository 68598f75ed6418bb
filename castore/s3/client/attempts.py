"""One attempt at one request: it raises KeyAbsent, PreconditionFailed, a Fault that says whether to
go on, or an error that ends it. `bucket` repeats them.

A forked child makes a connection of its own, on its first request.

The SDK's pools and caches are guarded by locks that Python code takes: a signal handler that raises
while a thread is in there leaves them locked, and every later request waits for good. So requests
are sent by threads of their own, and who asks only waits.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from castore.errors import BucketNotFound, RemoteError
from castore.s3.client.deadline import Deadline
from castore.s3.client.faults import Broken, Fault, KeyAbsent, Refused, Request, fault_of
from castore.s3.client.settings import S3Settings
from castore.system import forks
from castore.system.forks import ForkLock, Rank
from castore.system.workers import Future, Workers

if TYPE_CHECKING:
    from castore.s3.client.connection import Connection

T = TypeVar("T")

WHOLE_BYTES_MAX = 256 << 20  # of an object whose size is not known: most are read by ranges
ETAG_MAX = 1024
GIVE_UP_S = 5.0  # for a request to end whose connection was shut down

_SAYS_ENOUGH = (301, 307, 408, 412, 429)
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,19})-([0-9]{1,19})/([0-9]{1,19})")


class Reply(NamedTuple):
    """What a GET or a HEAD brought; `body` is the part that was asked for."""

    body: bytes
    etag: str  # with its quotes
    size: int  # of the whole object
    date: float  # by the server's clock, whole seconds since the epoch


class Attempts:
    """Thread-safe: `settings.max_concurrency` at a time, and more wait their turn."""

    def __init__(self, settings: S3Settings) -> None:
        self.settings = settings
        self.skew_s: float | None = None
        self.refuses_past_end = False  # ranges that end behind the last byte
        self._bucket_seen = False
        self._connection: Connection | None = None
        self._pid = os.getpid()
        # What a server does not answer, nobody who gave it up is to wait for.
        self._threads = Workers(settings.max_concurrency, abandon=True)
        self._lock = ForkLock(Rank.LEAF)
        forks.register(self)

    def get(
        self, key: str, byte_range: tuple[int, int] | None, if_none_match: str | None
    ) -> Reply | None:
        try:
            return self._get(key, byte_range, if_none_match)
        except _RangeRefused:
            assert byte_range is not None
            return self._get_clamped(key, byte_range, if_none_match)

    def _get(
        self, key: str, byte_range: tuple[int, int] | None, if_none_match: str | None
    ) -> Reply | None:
        headers = {}
        if byte_range is not None:
            headers["Range"] = f"bytes={byte_range[0]}-{byte_range[1] - 1}"
        if if_none_match is not None:
            headers["If-None-Match"] = if_none_match
        path = self.settings.key(key)
        most = WHOLE_BYTES_MAX if byte_range is None else byte_range[1] - byte_range[0]
        try:
            (status, found, body), began = self._answered(
                lambda there: there.get(path, headers, most)
            )
        except (Refused, Broken) as failure:
            if isinstance(failure, Refused) and byte_range is not None and _is_of_range(failure):
                raise _RangeRefused from failure
            raise self._fault_of(failure, "s3:GetObject", key) from failure
        self._bucket_seen = True
        date = self._note_date(found.get("date"), began)
        if status == 304 and if_none_match is not None:
            return None
        if status == 304 or not found.get("etag"):
            # Not the store's: a page of something in between, say.
            error = RemoteError(f"GET of {key!r} was answered with {status} and no object", status)
            raise Fault(error, repeat=True)
        etag = quoted(found["etag"])
        if byte_range is None:
            return Reply(body, etag, len(body), date)
        part = found.get("content-range", "")
        size = _size_of_part(part, byte_range, len(body))
        if size is None:
            said = f"answers {headers['Range']} with {part or 'no Content-Range'}"
            endpoint = self._connected().endpoint
            error = RemoteError(f"{endpoint} {said}: it has to honour Range", status)
            raise Fault(error, repeat=bool(part))
        return Reply(body, etag, size, date)

    def head(self, key: str) -> Reply:
        try:
            found = self._called("head_object", Key=self.settings.key(key))
        except (Refused, Broken) as failure:
            if isinstance(failure, Refused) and not failure.code and failure.status < 500:
                raise self._in_words(failure, key) from failure
            raise self._fault_of(failure, "s3:GetObject", key) from failure
        size = found.get("ContentLength")
        if not isinstance(size, int) or size < 0:  # its head was cut
            raise Fault(RemoteError(f"HEAD of {key!r} was answered without a size"), repeat=True)
        return reply_of(found, size)

    def head_bucket(self) -> None:
        """Raises BucketNotFound."""
        try:
            self._called("head_bucket")
        except (Refused, Broken) as failure:
            if isinstance(failure, Refused) and failure.status == 404:
                endpoint = self._connected().endpoint
                raise BucketNotFound(self.settings.bucket, endpoint) from failure
            raise self._fault_of(failure, "s3:ListBucket", "") from failure

    def call(
        self, action: str, key: str, operation: str, *, decided: bool = False, **parameters: Any
    ) -> dict[str, Any]:
        """What the client's method of this name does; `action` is IAM's name for it. The answer,
        with the server's `Date` in seconds. `decided`: not if it is signed long after now."""
        try:
            return self._called(operation, decided=decided, **parameters)
        except (Refused, Broken) as failure:
            conditional = "IfNoneMatch" in parameters or "IfMatch" in parameters
            raise self._fault_of(failure, action, key, conditional=conditional) from failure

    def request(self, action: str, key: str, *, conditional: bool = False) -> Request:
        connection, settings = self._connected(), self.settings
        return Request(
            action=action,
            key=key,
            url=f"{settings.url}/{key}" if key else settings.url,
            bucket=settings.bucket,
            endpoint=connection.endpoint,
            region=connection.region,
            conditional=conditional,
        )

    def close(self) -> None:
        """Drop the connections; another request makes new ones."""
        with self._lock:
            connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    # ------------------------------------------------------------ what an answer tells

    def _called(
        self, operation: str, *, decided: bool = False, **parameters: Any
    ) -> dict[str, Any]:
        answer, began = self._answered(
            lambda there: there.call(operation, **parameters), decided=decided
        )
        self._bucket_seen = True
        headers = answer["ResponseMetadata"]["HTTPHeaders"]
        answer["Date"] = self._note_date(headers.get("date"), began)
        return answer

    def _answered(
        self, ask: Callable[[Connection], T], *, decided: bool = False
    ) -> tuple[T, float]:
        """What is answered, and when it was asked for. Raises Refused, Broken."""
        began = time.time()

        timeout_s = self.settings.connect_timeout_s + self.settings.read_timeout_s
        deadline = Deadline(timeout_s, decided=decided)

        def send() -> T:
            nonlocal began
            connection = self._connected()
            began = time.time()
            with deadline:
                return ask(connection)

        try:
            return _result(self._threads.submit(send), deadline), began
        except (Refused, Broken) as failure:
            self._learn(failure, began)
            raise

    def _fault_of(
        self, failure: Refused | Broken, action: str, key: str, *, conditional: bool = False
    ) -> Exception:
        return fault_of(failure, self.request(action, key, conditional=conditional))

    def _learn(self, failure: Refused | Broken, began: float) -> None:
        if isinstance(failure, Refused):
            self._note_date(failure.headers.get("date"), began)
            self._bucket_seen = self._bucket_seen or failure.code == "NoSuchKey"

    def _note_date(self, date: str | None, began: float) -> float:
        try:
            at = parsedate_to_datetime(date or "").timestamp()
        except (ValueError, TypeError, OverflowError, OSError):
            return 0.0
        # Dates are cut off to seconds, and were written between the sending and now.
        self.skew_s = at + 0.5 - (began + time.time()) / 2
        return at

    def _get_clamped(
        self, key: str, byte_range: tuple[int, int], if_none_match: str | None
    ) -> Reply | None:
        """The range begins behind the last byte: an empty part. Or the server refuses one that only
        ends there: it is asked for what there is."""
        begin, end = byte_range
        there = self.head(key)
        if there.size <= begin:
            return there
        try:
            if there.size < end:
                reply = self._get(key, (begin, there.size), if_none_match)
                self.refuses_past_end = True
                return reply
        except _RangeRefused:
            """As below."""
        error = RemoteError(f"{self.settings.url}/{key} changed while it was read", 416)
        raise Fault(error, repeat=True)

    def _in_words(self, refused: Refused, key: str) -> Exception:
        """A refused HEAD has no body, so no code: what it means takes another request."""
        if refused.status == 404:
            if not self._bucket_seen:
                self._see_bucket()
            return KeyAbsent(key)
        plain = self._fault_of(refused, "s3:GetObject", key)
        if refused.status in _SAYS_ENOUGH:
            return plain
        try:
            path = self.settings.key(key)
            self._answered(lambda there: there.get(path, {"Range": "bytes=0-0"}, 1))
        except Refused as words:
            return plain if _is_of_range(words) else self._fault_of(words, "s3:GetObject", key)
        except Broken:
            return plain
        return plain

    def _see_bucket(self) -> None:
        try:
            self.head_bucket()
        except Fault as fault:
            if fault.repeat:
                raise
        self._bucket_seen = True  # refused for another reason, it is there

    # ------------------------------------------------------------ the connection

    def _connected(self) -> Connection:
        if self._pid != os.getpid():  # a fork that ran no hooks
            self._lock.reset_in_child()
            self.after_fork_in_child()
        connection = self._connection
        if connection is not None:
            return connection
        from castore.s3.client.connection import Connection

        with self._lock:
            if self._connection is None:
                self._connection = Connection(self.settings)
            return self._connection

    def after_fork_in_child(self) -> None:
        self._connection = None  # its sockets are the parent's to use; ours of them are closed
        self._pid = os.getpid()


def _result(sending: Future[T], deadline: Deadline) -> T:
    """Raises Broken when its time is over."""
    while not sending.wait(max(deadline.left_s(), 0.01)):
        if deadline.left_s() > 0:
            continue
        if not deadline.expire() or not sending.wait(GIVE_UP_S):
            break  # whatever it is in, nobody waits for it any more
    if deadline.expired:
        raise Broken("it was given up, as less than 16 KiB a second went through")
    try:
        return sending.result()
    finally:
        del sending  # the error leads to this frame: no cycle that keeps what was sent


class _RangeRefused(Exception):
    """The server has no bytes in the range, or refuses it as it ends behind the last one."""


def _is_of_range(refused: Refused) -> bool:
    return refused.status == 416 or refused.code == "InvalidRange"


def reply_of(answer: dict[str, Any], size: int) -> Reply:
    etag = answer.get("ETag")
    if not etag:
        raise Fault(RemoteError("an answer without an ETag"), repeat=True, unknown=True)
    return Reply(b"", quoted(etag), size, answer["Date"])


def quoted(etag: str) -> str:
    """As If-Match wants it, also where a listing leaves the quotes out. Raises Fault for what no
    ETag can be: it is sent back in a header, and kept in the cache."""
    if len(etag) > ETAG_MAX or not all("\x20" < character < "\x7f" for character in etag):
        raise Fault(RemoteError(f"an ETag that can't be one: {etag[:40]!r}"), repeat=True)
    return etag if not etag or etag.startswith(('"', "W/")) else f'"{etag}"'


def _size_of_part(content_range: str, asked: tuple[int, int], found: int) -> int | None:
    """The whole object's size; None if the part is not what was asked for."""
    match = _CONTENT_RANGE.fullmatch(content_range)
    if match is None:
        return None
    first, last, size = (int(number) for number in match.groups())
    if first != asked[0] or last != min(asked[1], size) - 1 or found != last + 1 - first:
        return None
    return size
