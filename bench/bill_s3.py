"""A simulated S3 that keeps accounts: requests and bytes by who asked, of what kind, and for what.

It stands in for `castore.s3.client.attempts.Attempts`, below all that retries and reads back, so
that what runs above it is the real code. It has a clock that is set by hand. Bodies are files of a
folder; the rest is in memory."""

from __future__ import annotations

import hashlib
import os
import threading
from bisect import bisect_left, bisect_right, insort
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from castore.s3 import lease, untold
from castore.s3.client import bucket
from castore.s3.client.attempts import Reply
from castore.s3.client.faults import Refused, Request, fault_of
from castore.s3.client.settings import S3Settings

PAGE_KEYS = 1000
IN_MEMORY_BYTES = 16 << 10


class Stored(NamedTuple):
    body: bytes | str | Callable[[int, int], bytes]  # or the file that has it, or what makes it
    size: int
    etag: str
    modified: float

    def read(self, begin: int, end: int) -> bytes:
        """Bytes `[begin, end)` of it."""
        if isinstance(self.body, bytes):
            return self.body[begin:end]
        if not isinstance(self.body, str):
            return self.body(begin, end)
        with open(self.body, "rb") as file:
            return os.pread(file.fileno(), end - begin, begin)


@dataclass(slots=True)
class Tally:
    """Requests of one kind; `keys` are those that LISTs showed, `size` the bytes that moved."""

    requests: int = 0
    size: int = 0
    keys: int = 0


@dataclass
class Accounts:
    """`asked` by (who, kind of request, area); `byte_days` by area. An area is a key's first
    part."""

    asked: dict[tuple[str, str, str], Tally] = field(default_factory=lambda: defaultdict(Tally))
    byte_days: dict[str, float] = field(default_factory=lambda: defaultdict(float))


class BilledS3:
    """One bucket. Its requests are atomic, and it honours preconditions."""

    def __init__(self, folder: Path) -> None:
        self.clock = 1_800_000_000.0
        self.accounts = Accounts()
        self._folder = folder
        self._objects: dict[str, Stored] = {}
        self._keys: list[str] = []  # sorted
        self._sizes: dict[str, int] = defaultdict(int)  # by area
        self._files = 0
        self._who = ""
        self._lock = threading.Lock()

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Stores that are opened meanwhile are here, and its clock is theirs."""
        before = bucket.Attempts, lease.boot_clock, untold._now
        bucket.Attempts = self._attempts  # type: ignore[assignment,misc]
        lease.boot_clock = untold._now = lambda: self.clock
        try:
            yield
        finally:
            bucket.Attempts, lease.boot_clock, untold._now = before  # type: ignore[misc]

    @contextmanager
    def asked_by(self, who: str) -> Iterator[None]:
        """Of stores that are opened meanwhile."""
        before, self._who = self._who, who
        try:
            yield
        finally:
            self._who = before

    def pass_time(self, seconds: float) -> None:
        self.clock += seconds
        for area, size in self._sizes.items():
            self.accounts.byte_days[area] += size * seconds / 86_400

    def count(self, area: str) -> tuple[int, int]:
        """How many objects there are, and of how many bytes."""
        return sum(_area(key) == area for key in self._keys), self._sizes[area]

    def page(self, prefix: str, after: str) -> tuple[list[str], bool]:
        """The keys of one LIST, and whether more follow."""
        keys = self._keys
        begin = bisect_right(keys, after) if after >= prefix else bisect_left(keys, prefix)
        page = [key for key in keys[begin : begin + PAGE_KEYS + 1] if key.startswith(prefix)]
        return page[:PAGE_KEYS], len(page) > PAGE_KEYS

    def _attempts(self, settings: S3Settings) -> _Attempts:
        return _Attempts(self, settings, self._who)

    # ------------------------------------------------------------ objects

    def _put(self, key: str, raw: bytes) -> Stored:
        self._remove(key)
        body: bytes | str = raw
        if len(raw) > IN_MEMORY_BYTES:
            self._files += 1
            body = str(self._folder / str(self._files))
            Path(body).write_bytes(raw)
        etag = f'"{hashlib.md5(raw, usedforsecurity=False).hexdigest()}"'
        stored = self._objects[key] = Stored(body, len(raw), etag, float(int(self.clock)))
        insort(self._keys, key)
        self._sizes[_area(key)] += stored.size
        return stored

    def _remove(self, key: str) -> None:
        stored = self._objects.pop(key, None)
        if stored is not None:
            del self._keys[bisect_left(self._keys, key)]
            self._sizes[_area(key)] -= stored.size
            if isinstance(stored.body, str):
                os.unlink(stored.body)


def _area(key: str) -> str:
    return key.split("/", 2)[1]  # behind the store's own prefix


class _Attempts:
    def __init__(self, server: BilledS3, settings: S3Settings, who: str) -> None:
        self.settings = settings
        self.skew_s: float | None = 0.0
        self.refuses_past_end = False
        self._server = server
        self._who = who

    def get(
        self, key: str, byte_range: tuple[int, int] | None, if_none_match: str | None
    ) -> Reply | None:
        server = self._server
        with server._lock:
            tally = self._tally("GET", key)
            stored = self._stored(key)
            if stored.etag == if_none_match:
                return None
            begin, end = byte_range or (0, stored.size)
            body = stored.read(begin, end)
            tally.size += len(body)
            return Reply(body, stored.etag, stored.size, self._date())

    def head(self, key: str) -> Reply:
        with self._server._lock:
            self._tally("HEAD", key)
            stored = self._stored(key)
            return Reply(b"", stored.etag, stored.size, self._date())

    def head_bucket(self) -> None:
        with self._server._lock:
            self._tally("HEAD", "")

    def call(
        self, action: str, key: str, operation: str, *, decided: bool = False, **parameters: Any
    ) -> dict[str, Any]:
        kind, work = {
            "put_object": ("PUT", self._put),
            "delete_object": ("DELETE", self._delete),
            "delete_objects": ("DELETE", self._delete_many),
            "list_objects_v2": ("LIST", self._list),
        }[operation]
        with self._server._lock:
            if kind == "DELETE" and "Delete" in parameters:
                # AWS counts none; here each key is one.
                for entry in parameters["Delete"]["Objects"]:
                    self._tally(kind, entry["Key"].removeprefix(self.settings.key("")))
                tally = Tally()
            else:
                tally = self._tally(kind, key or parameters.get("Prefix", "").partition("/")[2])
            try:
                return {**work(key, tally, parameters), "Date": self._date()}
            except Refused as refused:
                conditional = "IfNoneMatch" in parameters or "IfMatch" in parameters
                raise fault_of(
                    refused, self.request(action, key, conditional=conditional)
                ) from None

    def request(self, action: str, key: str, *, conditional: bool = False) -> Request:
        url = f"{self.settings.url}/{key}"
        return Request(action, key, url, self.settings.bucket, "simulated", "here", conditional)

    def close(self) -> None:
        """There are no connections."""

    # ------------------------------------------------------------ what the server does

    def _tally(self, kind: str, key: str) -> Tally:
        tally = self._server.accounts.asked[self._who, kind, key.partition("/")[0]]
        tally.requests += 1
        return tally

    def _date(self) -> float:
        return float(int(self._server.clock))

    def _stored(self, key: str) -> Stored:
        stored = self._server._objects.get(self.settings.key(key))
        if stored is None:
            refused = Refused(404, "NoSuchKey", "", {})
            raise fault_of(refused, self.request("s3:GetObject", key))
        return stored

    def _check(self, key: str, parameters: dict[str, Any]) -> None:
        there = self._server._objects.get(self.settings.key(key))
        if "IfNoneMatch" in parameters and there is not None:
            raise Refused(412, "PreconditionFailed", "", {})
        if "IfMatch" in parameters:
            if there is None:
                raise Refused(404, "NoSuchKey", "", {})
            if there.etag != parameters["IfMatch"]:
                raise Refused(412, "PreconditionFailed", "", {})

    def _put(self, key: str, tally: Tally, parameters: dict[str, Any]) -> dict[str, Any]:
        self._check(key, parameters)
        body = parameters["Body"]
        raw = body if isinstance(body, bytes) else body.read()
        tally.size += len(raw)
        return {"ETag": self._server._put(self.settings.key(key), raw).etag}

    def _delete(self, key: str, tally: Tally, parameters: dict[str, Any]) -> dict[str, Any]:
        self._check(key, parameters)
        self._server._remove(self.settings.key(key))
        return {}

    def _delete_many(self, key: str, tally: Tally, parameters: dict[str, Any]) -> dict[str, Any]:
        deleted, errors = [], []
        for entry in parameters["Delete"]["Objects"]:
            there = self._server._objects.get(entry["Key"])
            if entry.get("ETag") is not None and there and there.etag != entry["ETag"]:
                errors.append({"Key": entry["Key"], "Code": "PreconditionFailed"})
                continue
            self._server._remove(entry["Key"])
            deleted.append({"Key": entry["Key"]})
        return {"Deleted": deleted, "Errors": errors}

    def _list(self, key: str, tally: Tally, parameters: dict[str, Any]) -> dict[str, Any]:
        if parameters.get("Delimiter"):
            raise NotImplementedError("nothing that is measured lists folders")
        after = parameters.get("ContinuationToken", parameters.get("StartAfter", ""))
        page, truncated = self._server.page(parameters["Prefix"], after)
        tally.keys += len(page)
        contents = [
            {
                "Key": key,
                "Size": stored.size,
                "ETag": stored.etag,
                "LastModified": datetime.fromtimestamp(stored.modified, UTC),
            }
            for key in page
            if (stored := self._server._objects[key])
        ]
        more = {"NextContinuationToken": page[-1]} if truncated else {}
        return {"Contents": contents, "IsTruncated": truncated, **more}
