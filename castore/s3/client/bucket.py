"""Requests on a bucket, each with an outcome that can be relied on.

- Absent is a definite 404 for the key, never an error of another kind.
- What may be applied any number of times (reads, and writes that the caller declares idempotent) is
  repeated on every fault that may pass, a body cut midway among them.
- Any other write is repeated only while it is certain that it was not applied; otherwise the caller
  gets OutcomeUnknown, and finds out by reading back (`outcomes`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple, TypeAlias, overload

from castore.errors import CastoreError, RemoteError
from castore.s3.client import retries
from castore.s3.client.attempts import Attempts, Reply, quoted, reply_of
from castore.s3.client.body import Body, payload
from castore.s3.client.faults import (
    Fault,
    KeyAbsent,
    OutcomeUnknown,
    PreconditionFailed,
    Refused,
    fault_of,
)
from castore.s3.client.retries import Backoff, retry, retry_once
from castore.s3.client.settings import S3Settings

__all__ = ["Bucket", "KeyAbsent", "Listed", "OutcomeUnknown", "PreconditionFailed", "Reply"]

DELETE_MANY_MAX = 1000  # keys per request, of S3

Undeleted: TypeAlias = "list[tuple[str, Exception]]"

NOT_XML = re.compile("[\x00-\x1f\ufffe\uffff]")  # keys that no request for many can name
_NO_BATCHES = ("MissingContentMD5", "MethodNotAllowed", "NotImplemented")
_STATUS_OF_ENTRY = {"AccessDenied": 403, "InternalError": 500, "SlowDown": 503}


class Listed(NamedTuple):
    """A key that is there, its bytes, and when it was put, in seconds since the epoch by the
    server's clock."""

    key: str
    size: int
    etag: str
    modified: float


class Bucket:
    """What is under `settings.prefix`: keys are relative to it. Thread-safe; works after a fork.

    Besides KeyAbsent, PreconditionFailed and OutcomeUnknown, its methods raise castore's errors:
    RemoteError, AccessDenied, CredentialsError, BucketNotFound, WrongRegion, EndpointUnreachable.
    """

    def __init__(self, settings: S3Settings, *, backoff: Backoff | None = None) -> None:
        self.settings = settings
        self.backoff = retries.BACKOFF if backoff is None else backoff
        self._attempts = Attempts(settings)

    def __reduce__(self) -> tuple[type[Bucket], tuple[S3Settings]]:
        return type(self), (self.settings,)

    def __enter__(self) -> Bucket:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Drop the connections; another request makes new ones."""
        self._attempts.close()

    @property
    def place(self) -> str:
        """What tells these objects from those of any other endpoint, bucket or prefix."""
        endpoint = self._attempts.request("", "").endpoint
        return "\0".join((endpoint, self.settings.bucket, self.settings.prefix))

    @property
    def refuses_ranges_past_end(self) -> bool:
        """Whether the server was seen to refuse a range because it ends behind the last byte."""
        return self._attempts.refuses_past_end

    # ------------------------------------------------------------ reading

    @overload
    def get(
        self, key: str, *, byte_range: tuple[int, int] | None = None, if_none_match: None = None
    ) -> Reply: ...

    @overload
    def get(
        self, key: str, *, byte_range: tuple[int, int] | None = None, if_none_match: str | None
    ) -> Reply | None: ...

    def get(
        self,
        key: str,
        *,
        byte_range: tuple[int, int] | None = None,
        if_none_match: str | None = None,
    ) -> Reply | None:
        """The object, or the part of it in the half-open `byte_range`, which must not be empty and
        is clamped to the object. None if its ETag is still `if_none_match`. Raises KeyAbsent."""
        if byte_range is not None and not 0 <= byte_range[0] < byte_range[1]:
            raise ValueError(f"an empty or negative range: {byte_range}")
        return retry(lambda: self._attempts.get(key, byte_range, if_none_match), self.backoff)

    def head(self, key: str) -> Reply:
        """Its ETag and size, with no body. Raises KeyAbsent."""
        return retry(lambda: self._attempts.head(key), self.backoff)

    def list(self, prefix: str = "", *, start_after: str = "") -> Iterator[Listed]:
        """What begins with `prefix`, a plain string, in the order of the keys' UTF-8 bytes."""
        for page in self._pages(prefix, start_after):
            for entry in page.get("Contents", ()):
                yield self._listed(entry)

    def level(self, prefix: str = "", *, start_after: str = "") -> Iterator[Sequence[Listed | str]]:
        """What begins with `prefix`, a page at a time: keys, and in place of all that go on behind
        the next `/` the folder, with its slash, as a string. Each page is in no order."""
        for page in self._pages(prefix, start_after, Delimiter="/"):
            yield [
                *(self._listed(entry) for entry in page.get("Contents", ())),
                *(self._relative(entry["Prefix"]) for entry in page.get("CommonPrefixes", ())),
            ]

    def clock_skew(self) -> float:
        """Seconds that the server's clock is ahead of ours, within one, by its last answer. Asks
        only if there was none yet."""
        if self._attempts.skew_s is None:
            try:
                retry(self._attempts.head_bucket, self.backoff)
            except CastoreError:
                if self._attempts.skew_s is None:
                    raise
        if self._attempts.skew_s is None:
            raise RemoteError(f"{self.settings.url}: the server sends no Date: run castore doctor")
        return self._attempts.skew_s

    # ------------------------------------------------------------ writing

    def put(
        self,
        key: str,
        body: Body,
        *,
        if_none_match: bool = False,
        if_match: str | None = None,
        idempotent: bool = False,
    ) -> Reply:
        """Write the whole object, which may be in several buffers. `if_none_match`: only if there
        is none; `if_match`: only over that ETag. Raises PreconditionFailed (KeyAbsent for an
        `if_match` where there is none), and OutcomeUnknown unless `idempotent`: the same bytes
        again do no harm, whatever happened in between."""
        once = partial(
            self.put_attempt,
            key,
            body,
            if_none_match=if_none_match,
            if_match=if_match,
            decided=not idempotent,
        )
        if not idempotent:
            return retry_once(key, once, self.backoff)
        if if_none_match or if_match is not None:
            raise ValueError("a conditional put is not idempotent: it may meet itself")
        return retry(once, self.backoff)

    def put_attempt(
        self,
        key: str,
        body: Body,
        *,
        if_none_match: bool = False,
        if_match: str | None = None,
        decided: bool = True,
    ) -> Reply:
        """A put that is signed and sent once; if it was `decided` by what was seen before, not long
        after now. Raises Fault where `put` might go on."""
        settings = self.settings
        given = {
            "IfNoneMatch": "*" if if_none_match else None,
            "IfMatch": if_match,
            "ServerSideEncryption": settings.sse,
            "SSEKMSKeyId": settings.sse_kms_key_id,
            "StorageClass": settings.storage_class,
        }
        parameters = {name: value for name, value in given.items() if value is not None}
        sent, size = payload(body)
        written = self._attempts.call(
            "s3:PutObject",
            key,
            "put_object",
            decided=decided,
            Key=settings.key(key),
            Body=sent,
            **parameters,
        )
        return reply_of(written, size)

    def delete(self, key: str, *, if_match: str | None = None) -> None:
        """Fine if nothing is there, unless it had to be `if_match`: KeyAbsent then, where the
        server says so. Raises PreconditionFailed and OutcomeUnknown."""
        retry_once(key, partial(self._delete_attempt, key, if_match), self.backoff)

    def delete_many(self, keys: Sequence[str]) -> Undeleted:
        """Delete keys that are never written again, so that repeating it does no harm. Returns
        those that are not known to be gone, and why."""
        failed: Undeleted = []
        singly = [key for key in keys if NOT_XML.search(key) is not None]
        others = [key for key in keys if NOT_XML.search(key) is None]
        for start in range(0, len(others), DELETE_MANY_MAX):
            batch = others[start : start + DELETE_MANY_MAX]
            try:
                failed += self._delete_batch(batch)
            except RemoteError as error:
                if error.status != 501 and error.s3_code not in _NO_BATCHES:
                    raise
                singly += batch
        for key in singly:
            try:
                retry(partial(self._delete_attempt, key, None), self.backoff)
            except CastoreError as error:
                failed.append((key, error))
        return failed

    def delete_if_match(self, versions: Sequence[tuple[str, str]]) -> set[str]:
        """Delete up to 1,000 keys in one request, each if it has the ETag beside it; those that the
        server says are gone. A server that does not know the condition deletes what is there.
        Raises OutcomeUnknown."""
        entries = [
            {"Key": self.settings.key(key), "ETag": etag}
            for key, etag in versions
            if NOT_XML.search(key) is None
        ]
        if not entries:
            return set()

        def once() -> dict[str, Any]:
            return self._attempts.call(
                "s3:DeleteObject", "", "delete_objects", decided=True, Delete={"Objects": entries}
            )

        answer = retry_once(versions[0][0], once, self.backoff)
        return {self._relative(entry["Key"]) for entry in answer.get("Deleted", ())}

    # ------------------------------------------------------------ parts of these

    def _delete_attempt(self, key: str, if_match: str | None) -> None:
        parameters = {} if if_match is None else {"IfMatch": if_match}
        try:
            self._attempts.call(
                "s3:DeleteObject",
                key,
                "delete_object",
                decided=True,
                Key=self.settings.key(key),
                **parameters,
            )
        except KeyAbsent:
            if if_match is not None:
                raise

    def _delete_batch(self, keys: Sequence[str]) -> Undeleted:
        left = dict.fromkeys(keys)  # the answer names what it did: silence is not success
        failed: Undeleted = []

        def once() -> None:
            objects = [{"Key": self.settings.key(key)} for key in left]
            answer = self._attempts.call(
                "s3:DeleteObject", "", "delete_objects", decided=True, Delete={"Objects": objects}
            )
            for entry in answer.get("Deleted", ()):
                left.pop(self._relative(entry["Key"]), None)
            silent = RemoteError(f"{self.settings.url}: a deletion was left unanswered")
            again = Fault(silent, repeat=True)
            for entry in answer.get("Errors", ()):
                key = self._relative(entry["Key"])
                fault = self._fault_of_entry(key, entry)
                if fault.repeat:
                    again = fault
                elif key in left:
                    del left[key]
                    failed.append((key, fault.error))
            if left:
                raise again

        try:
            retry(once, self.backoff)
        except CastoreError as error:
            if len(left) == len(keys):
                raise
            failed += [(key, error) for key in left]
        return failed

    def _fault_of_entry(self, key: str, entry: dict[str, Any]) -> Fault:
        code = str(entry.get("Code", ""))
        refused = Refused(_STATUS_OF_ENTRY.get(code, 400), code, str(entry.get("Message", "")), {})
        fault = fault_of(refused, self._attempts.request("s3:DeleteObject", key))
        return fault if isinstance(fault, Fault) else Fault(fault, repeat=False)

    def _pages(self, prefix: str, start_after: str, **parameters: Any) -> Iterator[dict[str, Any]]:
        parameters["Prefix"] = self.settings.key(prefix)
        if start_after:
            parameters["StartAfter"] = self.settings.key(start_after)
        last = b""

        def once() -> dict[str, Any]:
            page = self._attempts.call("s3:ListBucket", prefix, "list_objects_v2", **parameters)
            if not isinstance(page.get("IsTruncated"), bool):
                # An answer that is cut off at its first byte reads like an empty page.
                raise Fault(RemoteError(f"no page of {self.settings.url} was sent"), repeat=True)
            try:
                keys = [last, *(entry["Key"].encode() for entry in page.get("Contents", ()))]
            except (KeyError, UnicodeEncodeError) as error:
                said = f"{self.settings.url}: the server lists a key that can't be: {error!r}"
                raise Fault(RemoteError(said), repeat=True) from error
            if any(key >= following for key, following in pairwise(keys)):
                # So do some while keys come and go.
                said = f"{self.settings.url}: the server lists keys out of order"
                raise Fault(RemoteError(said), repeat=True)
            return page

        while True:
            page = retry(once, self.backoff)
            for entry in page.get("Contents", ())[-1:]:
                last = entry["Key"].encode()
            yield page
            if not page["IsTruncated"]:
                return
            token = page.get("NextContinuationToken")
            if not token or token == parameters.get("ContinuationToken"):
                raise RemoteError(
                    f"{self.settings.url}: the server lists one page for ever: run castore doctor"
                )
            parameters["ContinuationToken"] = token

    def _listed(self, entry: dict[str, Any]) -> Listed:
        try:
            return Listed(
                self._relative(entry["Key"]),
                int(entry["Size"]),
                quoted(entry.get("ETag", "")),
                entry["LastModified"].timestamp(),
            )
        except Fault as fault:
            raise fault.error from None
        except (KeyError, ValueError, TypeError, AttributeError, OverflowError, OSError) as error:
            raise RemoteError(
                f"{self.settings.url}: the server's list can't be understood ({error!r}): run "
                "castore doctor"
            ) from error

    def _relative(self, key: str) -> str:
        base = self.settings.key("")
        if not key.startswith(base):
            raise RemoteError(
                f"{self.settings.url}: the server lists {key!r}, which is not under the prefix: "
                "run castore doctor"
            )
        return key[len(base) :]
