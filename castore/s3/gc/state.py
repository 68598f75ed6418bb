"""`gc/state`: what the collectors of a store on S3 are at, moved by compare-and-swap alone.

idle -> condemned: a list says which packs are about to be removed, and writers rely on them no
more. condemned -> sweeping: a second look found those of them that nobody has come to rely on
before; they are being removed. sweeping -> idle: each removal was acknowledged. Each step raises
the version. Whoever leads has raised it last: all others fail at their next step.

A list is written before the state names it, under the number of the version that will, which only
the leader of the version before can write. So its time, by the server's clock, is when the names
had been looked at, and the grace counts from there.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress

from castore.errors import FormatError, StateWentBackwards, StoreBusy
from castore.format.s3_gc import (
    Condemned,
    GcState,
    decode_state,
    encode_condemned,
    encode_state,
)
from castore.s3.client.bucket import KeyAbsent, PreconditionFailed
from castore.s3.client.put_once import put_once
from castore.s3.condemned import list_without_state, read_list
from castore.s3.gc.memory import CollectorMemory
from castore.s3.keys import CONDEMNED_LISTS, GC_STATE_KEY, condemned_key, condemned_version
from castore.s3.parts import Parts
from castore.s3.told import undamaged

IDLE, CONDEMNED, SWEEPING = "idle", "condemned", "sweeping"
REPAIR = "repair the store (castore check --repair)"
_NOTHING_YET = GcState(0, IDLE, b"")


class CollectorState:
    """The state as one collector sees and moves it."""

    def __init__(self, parts: Parts, memory: CollectorMemory, *, conditional: bool) -> None:
        """`conditional`: whether the server honours preconditions; else nobody else may write."""
        self._bucket = parts.bucket
        self._store_id = parts.config.store_id
        self._memory = memory
        self._conditional = conditional
        self._etag: str | None = None
        self._now = _NOTHING_YET

    @property
    def phase(self) -> str:
        return self._now.phase

    def read(self) -> None:
        """Raises StateWentBackwards, FormatError."""
        seen = self._memory.state_version()  # before: another collector may be at work here, too
        try:
            self._now, self._etag = undamaged(self._read)
        except KeyAbsent:
            self._now, self._etag = _NOTHING_YET, None
            orphan = list_without_state(self._bucket)
            if orphan is not None:
                url = self._bucket.settings.url
                raise FormatError(
                    f"{url}/gc/state is gone, while {orphan} is there: {REPAIR}"
                ) from None
        except FormatError as error:
            raise FormatError(f"{error}: {REPAIR}") from error
        if self._now.version < seen:
            url = self._bucket.settings.url
            raise StateWentBackwards(url, self._now.version, seen, self._memory.path)
        self._memory.saw_state(self._now.version)

    def lead(self) -> None:
        """Raise the version, and change nothing else. Raises StoreBusy, OutcomeUnknown."""
        self._move(self._now.phase, self._now.condemned)

    def condemn(self, packs: Collection[bytes], carried: Collection[bytes] = ()) -> None:
        """`carried` are those of `packs` that could not be removed. Raises StoreBusy and
        OutcomeUnknown, as do the steps below."""
        self._move(CONDEMNED, self._write_list(packs, carried))

    def sweep(self, packs: Collection[bytes]) -> None:
        self._move(SWEEPING, self._write_list(packs, ()))

    def retire(self) -> None:
        self._move(IDLE, None)
        self.remove_lists()

    def listed(self) -> Condemned:
        """What is condemned, or being removed. Raises FormatError, StoreBusy."""
        if self._now.condemned is None:
            return Condemned([], [])
        try:
            return read_list(self._bucket, self._now.condemned, self._store_id)
        except KeyAbsent:
            raise self._no_list() from None
        except FormatError as error:
            raise FormatError(f"{self._now.condemned}: {error}: {REPAIR}") from error

    def fault(self) -> str:
        """Why the list that the state refers to can't be read; empty if it can, or there is none.
        Raises StoreBusy."""
        try:
            self.listed()
        except FormatError as error:
            return str(error)
        return ""

    def condemned_at(self) -> float:
        """When the list was written, in seconds since the epoch by the server's clock."""
        key = self._now.condemned
        assert key is not None
        for entry in self._bucket.list(key):
            if entry.key == key:
                return entry.modified
        raise self._no_list()

    def remove_lists(self) -> None:
        """Those that no state refers to, nor will: whoever wrote them has lost the lead."""
        doomed = []
        for entry in self._bucket.list(CONDEMNED_LISTS):
            version = condemned_version(entry.key)
            if (
                version is not None
                and version <= self._now.version
                and entry.key != self._now.condemned
            ):
                doomed.append(entry.key)
        if doomed:
            self._bucket.delete_many(doomed)

    # ------------------------------------------------------------ below

    def _read(self) -> tuple[GcState, str]:
        reply = self._bucket.get(GC_STATE_KEY)
        return decode_state(reply.body), reply.etag

    def _no_list(self) -> FormatError | StoreBusy:
        """Unless the state does not refer to it any more, either."""
        with suppress(KeyAbsent):
            if self._bucket.head(GC_STATE_KEY).etag != self._etag:
                return self._busy()
        url, key = self._bucket.settings.url, self._now.condemned
        return FormatError(f"{url}/gc/state refers to {key!r}, which is not there: {REPAIR}")

    def _write_list(self, packs: Collection[bytes], carried: Collection[bytes]) -> str:
        def body(nonce: bytes) -> bytes:
            return encode_condemned(self._store_id, nonce, sorted(packs), sorted(carried))

        key = condemned_key(self._now.version + 1)
        try:
            put_once(self._bucket, key, body, if_none_match=self._conditional)
        except PreconditionFailed as error:
            raise self._busy() from error
        return key

    def _move(self, phase: str, condemned: str | None) -> None:
        after = _NOTHING_YET

        def body(nonce: bytes) -> bytes:
            nonlocal after
            after = GcState(self._now.version + 1, phase, nonce, condemned)
            return encode_state(after)

        try:
            landed = put_once(
                self._bucket,
                GC_STATE_KEY,
                body,
                if_none_match=self._conditional and self._etag is None,
                if_match=self._etag if self._conditional else None,
            )
        except PreconditionFailed as error:
            raise self._busy() from error
        self._now, self._etag = after, landed.etag
        self._memory.saw_state(after.version)

    def _busy(self) -> StoreBusy:
        return StoreBusy(
            f"another collection of {self._bucket.settings.url} has taken over: let it finish"
        )
