"""S3 in memory, with a clock that tests set and requests that wait where tests want them to.

It stands in for `castore.s3.client.attempts.Attempts`, below everything that repeats and
reads back. Its requests are atomic and consistent, preconditions are honoured, and what was signed
more than 15 minutes before it arrives is refused, as S3 does.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any, NamedTuple

from castore.s3.client.attempts import Reply
from castore.s3.client.faults import Broken, Refused, Request, fault_of
from castore.s3.client.settings import S3Settings

SIGNED_S_MAX = 900
STEP_S = 20.0  # longer than any step takes


class Stored(NamedTuple):
    body: bytes
    etag: str
    modified: float


class Step(NamedTuple):
    """A request, before it arrives."""

    kind: str
    key: str


class Killed(BaseException):
    """The actor's process is gone: nothing of it runs any more."""


class MemoryS3:
    """One bucket, and the machines that use it."""

    def __init__(self) -> None:
        self.objects: dict[str, Stored] = {}
        self.clock = 1_800_000_000.0
        self.preconditions = True
        self.if_match_refusal: tuple[int, str] | None = None  # to whatever has If-Match
        self.quotes_refused = False  # of ETags in If-Match: 412, as if there were another
        self.refuse: Callable[[Step], tuple[int, str] | None] = lambda step: None
        self._late: list[tuple[Step, float, Callable[[], Any]]] = []
        self._lock = threading.Lock()
        self._opening = Actor("other")

    def attempts(self, settings: S3Settings) -> MemoryAttempts:
        """As `Attempts(settings)`, for the actor whose turn it is to open a store."""
        return MemoryAttempts(self, settings, self._opening)

    @contextmanager
    def opening(self, actor: Actor) -> Iterator[None]:
        before, self._opening = self._opening, actor
        try:
            yield
        finally:
            self._opening = before

    def keys(self, prefix: str) -> list[str]:
        with self._lock:
            return sorted(key for key in self.objects if key.startswith(prefix))

    def apply(self, step: Step, signed: float, change: Callable[[], Any]) -> Any:
        with self._lock:
            if self.clock - signed > SIGNED_S_MAX:
                raise Refused(403, "RequestTimeTooSkewed", "signed too long ago", {})
            refused = self.refuse(step)
            if refused is not None:
                raise Refused(*refused, "said the test", {})
            return change()

    def delay(self, step: Step, signed: float, change: Callable[[], Any]) -> None:
        self._late.append((step, signed, change))

    def land(self) -> None:
        """What was delayed arrives."""
        late, self._late = self._late, []
        for request in late:
            with suppress(Refused):
                self.apply(*request)


class Actor:
    """What one machine asks for, step by step."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.steps: list[Step] = []
        self.lose_at: int | None = None  # this request arrives late, and no reply to it ever
        self._stop_at: int | None = None
        self._killed = False
        self._waiting = 0
        self._changed = threading.Condition()

    def stop_at(self, number: int | None) -> None:
        """Let its requests wait from this one on (from 0); None: let all go."""
        with self._changed:
            self._stop_at = number
            self._changed.notify_all()

    def kill(self) -> None:
        """Its requests never arrive, and nothing that waits for them goes on."""
        with self._changed:
            self._killed = True
            self._changed.notify_all()

    def await_stop(self, thread: threading.Thread) -> bool:
        """True once it waits; False if it came to its end before."""
        with self._changed:
            while not self._waiting:
                if not thread.is_alive():
                    return False
                self._changed.wait(0.002)
            return True

    def before(self, step: Step) -> bool:
        """False if the request is to arrive late."""
        with self._changed:
            number = len(self.steps)
            self.steps.append(step)
            self._waiting += 1
            self._changed.notify_all()
            try:
                while self._stop_at is not None and number >= self._stop_at and not self._killed:
                    if not self._changed.wait(STEP_S):
                        raise AssertionError(f"{self.name} waits for ever at {step}")
            finally:
                self._waiting -= 1
            if self._killed:
                raise Killed
            return number != self.lose_at


class Losing(Actor):
    """The first request of one kind at one key arrives late, or `all` of them, and no reply ever.
    `lost` is how many that were."""

    def __init__(self, name: str, kind: str, key: str, *, all: bool = False) -> None:
        super().__init__(name)
        self.lost = 0
        self._to_lose, self._all = Step(kind, key), all

    def before(self, step: Step) -> bool:
        arrives = super().before(step)
        if step != self._to_lose or (self.lost and not self._all):
            return arrives
        self.lost += 1
        return False


class MemoryAttempts:
    def __init__(self, server: MemoryS3, settings: S3Settings, actor: Actor) -> None:
        self.settings = settings
        self.skew_s: float | None = 0.0
        self.refuses_past_end = False
        self.actor = actor
        self._server = server

    def get(
        self, key: str, byte_range: tuple[int, int] | None, if_none_match: str | None
    ) -> Reply | None:
        def found() -> Reply | None:
            stored = self._stored(key)
            if stored.etag == if_none_match:
                return None
            begin, end = byte_range or (0, len(stored.body))
            return Reply(stored.body[begin:end], stored.etag, len(stored.body), self._date())

        reply: Reply | None = self._ask("GET", "s3:GetObject", key, found)
        return reply

    def head(self, key: str) -> Reply:
        def found() -> Reply:
            stored = self._stored(key)
            return Reply(b"", stored.etag, len(stored.body), self._date())

        reply: Reply = self._ask("HEAD", "s3:GetObject", key, found)
        return reply

    def head_bucket(self) -> None:
        self._ask("HEAD", "s3:ListBucket", "", lambda: None)

    def call(
        self, action: str, key: str, operation: str, *, decided: bool = False, **parameters: Any
    ) -> dict[str, Any]:
        kind, work = {
            "put_object": ("PUT", self._put),
            "delete_object": ("DELETE", self._delete),
            "delete_objects": ("POST", self._delete_many),
            "list_objects_v2": ("LIST", self._list),
        }[operation]
        conditional = "IfNoneMatch" in parameters or "IfMatch" in parameters
        answer: dict[str, Any] = self._ask(
            kind, action, key, lambda: work(key, **parameters), conditional=conditional
        )
        return {**answer, "Date": self._date()}

    def request(self, action: str, key: str, *, conditional: bool = False) -> Request:
        url = f"{self.settings.url}/{key}"
        return Request(action, key, url, self.settings.bucket, "memory", "here", conditional)

    def close(self) -> None:
        """There are no connections."""

    # ------------------------------------------------------------ what the server does

    def _ask(
        self,
        kind: str,
        action: str,
        key: str,
        work: Callable[[], Any],
        *,
        conditional: bool = False,
    ) -> Any:
        signed, step = self._server.clock, Step(kind, key)
        if not self.actor.before(step):
            self._server.delay(step, signed, work)
            raise fault_of(Broken("lost"), self.request(action, key))
        try:
            return self._server.apply(step, signed, work)
        except Refused as refused:
            raise fault_of(refused, self.request(action, key, conditional=conditional)) from refused

    def _date(self) -> float:
        return float(int(self._server.clock))

    def _stored(self, key: str) -> Stored:
        stored = self._server.objects.get(self.settings.key(key))
        if stored is None:
            raise Refused(404, "NoSuchKey", "", {})
        return stored

    def _check(self, key: str, parameters: dict[str, Any]) -> None:
        if "IfMatch" in parameters and self._server.if_match_refusal is not None:
            raise Refused(*self._server.if_match_refusal, "said the test", {})
        if not self._server.preconditions:
            return
        there = self._server.objects.get(self.settings.key(key))
        if "IfNoneMatch" in parameters and there is not None:
            raise Refused(412, "PreconditionFailed", "", {})
        if "IfMatch" in parameters:
            if there is None:
                raise Refused(404, "NoSuchKey", "", {})
            etag = there.etag.strip('"') if self._server.quotes_refused else there.etag
            if etag != parameters["IfMatch"]:
                raise Refused(412, "PreconditionFailed", "", {})

    def _put(self, key: str, **parameters: Any) -> dict[str, Any]:
        self._check(key, parameters)
        body = parameters["Body"]
        raw = body if isinstance(body, bytes) else body.read()
        etag = f'"{hashlib.md5(raw, usedforsecurity=False).hexdigest()}"'
        self._server.objects[self.settings.key(key)] = Stored(raw, etag, self._date())
        return {"ETag": etag}

    def _delete(self, key: str, **parameters: Any) -> dict[str, Any]:
        self._check(key, parameters)
        self._server.objects.pop(self.settings.key(key), None)
        return {}

    def _delete_many(self, key: str, **parameters: Any) -> dict[str, Any]:
        deleted, errors = [], []
        for entry in parameters["Delete"]["Objects"]:
            refused = self._server.refuse(Step("DELETE", entry["Key"]))
            if refused is not None:
                errors.append({"Key": entry["Key"], "Code": refused[1], "Message": "said the test"})
                continue
            there = self._server.objects.get(entry["Key"])
            etag = entry.get("ETag") if self._server.preconditions else None
            if etag is not None and there is not None and there.etag != etag:
                errors.append({"Key": entry["Key"], "Code": "PreconditionFailed"})
                continue
            self._server.objects.pop(entry["Key"], None)
            deleted.append({"Key": entry["Key"]})
        return {"Deleted": deleted, "Errors": errors}

    def _list(self, key: str, **parameters: Any) -> dict[str, Any]:
        prefix = parameters["Prefix"]
        after = parameters.get("ContinuationToken", parameters.get("StartAfter", ""))
        found = sorted(
            key
            for key in self._server.objects
            if key.startswith(prefix) and key.encode() > after.encode()
        )
        delimiter = parameters.get("Delimiter")
        folders: dict[str, None] = {}
        if delimiter:
            ends = [key.find(delimiter, len(prefix)) for key in found]
            folders = dict.fromkeys(
                key[: end + 1] for key, end in zip(found, ends, strict=True) if end >= 0
            )
            found = [key for key, end in zip(found, ends, strict=True) if end < 0]
            found = sorted([*found, *folders])
        page = found[: self.page_keys]
        contents = [
            {
                "Key": key,
                "Size": len(self._server.objects[key].body),
                "ETag": self._server.objects[key].etag,
                "LastModified": datetime.fromtimestamp(self._server.objects[key].modified, UTC),
            }
            for key in page
            if key not in folders
        ]
        truncated = len(found) > len(page)
        answer: dict[str, Any] = {"Contents": contents, "IsTruncated": truncated}
        if folders:
            answer["CommonPrefixes"] = [{"Prefix": key} for key in page if key in folders]
        if truncated:
            # Behind all that a folder has.
            last = page[-1]
            answer["NextContinuationToken"] = f"{last}\U0010ffff" if last in folders else last
        return answer

    page_keys = 1000
