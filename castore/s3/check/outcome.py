"""What a repair of a store on S3 does to what it found, and what it tells of that."""

from __future__ import annotations

from functools import cached_property

from castore.s3.client.bucket import Bucket
from castore.s3.client.probe import probe
from castore.s3.client.put_once import put_over
from castore.s3.etags import real
from castore.s3.keys import name_key
from castore.s3.quarantine import keep_copy
from castore.stream.reports import Problem


class Outcome:
    """`done` says what was done, `lost` which objects are below quarantine/ now."""

    def __init__(self, bucket: Bucket) -> None:
        self.done: list[str] = []
        self.lost: list[Problem] = []
        self._bucket = bucket

    @cached_property
    def conditional(self) -> bool:
        """Whether the server honours If-Match."""
        return probe(self._bucket).if_match_put

    def write_over(self, name: bytes, etag: str, body: bytes) -> bool:
        """Put a manifest; False if the name is not any more what was looked at, which had `etag`.
        Raises OutcomeUnknown."""
        return put_over(
            self._bucket, name_key(name), body, real(etag), conditional=self.conditional
        )

    def lose(self, name: bytes, what: str) -> None:
        """The name is gone; `what` goes on from it, as in "can't be read in full"."""
        self.done.append(f"{name.decode()} {what}")
        self.lost.append(Problem("object", "missing", self.done[-1], (name.decode(),)))

    def keep_copy(self, key: str) -> str:
        """A copy below quarantine/; where. Raises KeyAbsent."""
        return self.keep(key, self._bucket.get(key).body)

    def keep(self, key: str, raw: bytes) -> str:
        """The same of these bytes, which were there."""
        target = keep_copy(self._bucket, key, raw)
        self.done.append(f"{key} is copied to {target}")
        return target
