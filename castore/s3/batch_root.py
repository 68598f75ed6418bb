"""The root of names in batches: it tells of all of them, and is moved by compare-and-swap alone
(docs/design/0022-batches.md). It is asked for each time, if it changed.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import NamedTuple

from castore.errors import FormatError, StoreBusy, StoreIOError
from castore.format.s3_batches import Root, RootEntry, decode_root, encode_root
from castore.s3.cache.store import StoreCache
from castore.s3.client.bucket import Bucket, KeyAbsent, OutcomeUnknown, PreconditionFailed
from castore.s3.client.put_once import put_once
from castore.s3.keys import BATCHES, BATCHES_ROOT_KEY, batch_key, batch_of
from castore.s3.told import undamaged
from castore.system.clock import boot_clock
from castore.system.forks import ForkLock, Rank
from castore.system.workers import Future, Workers

READERS = 4
SWAPS_MAX = 200  # attempts: of many at once one succeeds each time
SWAP_WAIT_S = 0.05
NAMED_S = 43_200.0  # at most from a batch's PUT to the swap that names it

REPAIR = "repair the store (castore check --repair)"


class SeenRoot(NamedTuple):
    """The root, and its ETag: "" if it is not there yet."""

    root: Root
    etag: str


_EMPTY = Root(0, bytes(16))


class BatchRoot:
    """Of one store. Thread-safe."""

    def __init__(self, bucket: Bucket, store_id: bytes, cache: StoreCache) -> None:
        self._bucket = bucket
        self._store_id = store_id
        self._cache = cache
        self._readers = Workers(READERS)
        self._lock = ForkLock(Rank.LEAF)
        self._seen: SeenRoot | None = None
        self._none_yet = False
        # Of a check, which goes on without: batches that can't be read, and the root itself.
        self.lost: set[bytes] = set()
        self.root_is_lost = False
        self._without_lost: tuple[tuple[str, int], SeenRoot] | None = None  # made once of each root

    def close(self) -> None:
        self._readers.close()

    @property
    def seen(self) -> SeenRoot | None:
        """The root as it was read last."""
        seen = self._last()
        return None if seen is None else self._readable(seen)

    def has(self, batch_id: bytes) -> bool:
        """Whether the root tells of it now."""
        return any(entry.batch_id == batch_id for entry in self.fresh().root.entries)

    def begin(self) -> Future[SeenRoot]:
        """As `fresh`, while something else is asked for."""
        return self._readers.submit(self.fresh)

    def fresh(self) -> SeenRoot:
        """The root as it is now. Raises FormatError where it is lost or damaged."""
        if self.root_is_lost:
            return SeenRoot(_EMPTY, "")
        known = self._last()

        def read() -> tuple[SeenRoot, bytes] | None:
            reply = self._bucket.get(
                BATCHES_ROOT_KEY, if_none_match=known.etag if known is not None else None
            )
            return reply and (SeenRoot(self._decoded(reply.body), reply.etag), reply.body)

        try:
            newer = undamaged(read)
        except KeyAbsent:
            batch = self._any_batch()
            if batch is None:
                return SeenRoot(_EMPTY, "")
            try:
                newer = undamaged(read)  # both may have come in between
            except KeyAbsent:
                url = self._bucket.settings.url
                raise FormatError(
                    f"{url}/{BATCHES_ROOT_KEY} is gone, while {batch} is there: {REPAIR}"
                ) from None
        if newer is None:
            assert known is not None
            self._seen = known
            return self._readable(known)
        seen, raw = newer
        if known is not None:
            there = {entry.batch_id for entry in seen.root.entries}
            gone = [e.batch_id for e in known.root.entries if e.batch_id not in there]
            self._cache.forget_blobs(batch_key(batch_id) for batch_id in gone)
        with self._lock:
            if self._seen is None or self._seen.root.version <= seen.root.version:
                self._seen = seen
        self._cache.keep_blob(BATCHES_ROOT_KEY, seen.etag, raw)
        return self._readable(seen)

    def now(self) -> int:
        """The time in seconds since the epoch, by the server's clock."""
        return int(time.time() + self._bucket.clock_skew())

    def _readable(self, seen: SeenRoot) -> SeenRoot:
        if not self.lost:
            return seen
        of, made = (seen.etag, len(self.lost)), self._without_lost
        if made is None or made[0] != of:
            there = tuple(each for each in seen.root.entries if each.batch_id not in self.lost)
            made = of, seen._replace(root=seen.root._replace(entries=there))
            self._without_lost = made
        return made[1]

    def swap(
        self, change: Callable[[SeenRoot], Root | None], *, began: float | None = None
    ) -> SeenRoot:
        """Put the root that `change` makes of what is there in its place, with the next version,
        and with what else was changed by others meanwhile; nothing where that gives None. `began`:
        since when batches were written that it names, by `boot_clock`. Raises OutcomeUnknown,
        StoreBusy, FormatError; StoreIOError where that is too long ago, and they may be removed."""
        for attempt in range(SWAPS_MAX):
            seen = self.fresh()
            after = change(seen)
            if after is None:
                return seen
            try:
                return self._put(seen, after, began)
            except PreconditionFailed as error:
                if error.any_unknown:
                    raise OutcomeUnknown(BATCHES_ROOT_KEY) from error
                # The more there are, the longer each has to wait.
                time.sleep(random.uniform(0, SWAP_WAIT_S * min(attempt + 1, 20)))
        raise StoreBusy(
            f"{self._bucket.settings.url}: too many change {BATCHES_ROOT_KEY} at once: repeat it"
        )

    def _put(self, seen: SeenRoot, after: Root, began: float | None) -> SeenRoot:
        put = after

        def body(nonce: bytes) -> bytes:
            nonlocal put
            if began is not None and boot_clock() - began > NAMED_S:
                raise StoreIOError("it took too long to put names in batches: repeat it")
            put = after._replace(version=seen.root.version + 1, nonce=nonce)
            return encode_root(self._store_id, put)

        landed = put_once(
            self._bucket,
            BATCHES_ROOT_KEY,
            body,
            if_none_match=not seen.etag,
            if_match=seen.etag or None,
        )
        now = SeenRoot(put, landed.etag)
        if not landed.any_unknown:
            with self._lock:
                self._seen = now
        return now

    def make(self) -> Root:
        """The root as it is now, which is made if it was not with the store: before the first
        batch, as who finds a batch and no root takes the root for lost."""
        seen = self.fresh()
        if not seen.etag and not self.root_is_lost:
            create_root(self._bucket, self._store_id)
            seen = self.fresh()
        return seen.root

    def _any_batch(self) -> str | None:
        """The key of one, if there is any."""
        if not self._none_yet:
            for entry in self._bucket.list(BATCHES):
                if batch_of(entry.key) is not None:
                    return entry.key
            self._none_yet = True
        return None

    def _last(self) -> SeenRoot | None:
        return self._seen or self._remembered()

    def _remembered(self) -> SeenRoot | None:
        blob = self._cache.blob(BATCHES_ROOT_KEY)
        if blob is None:
            return None
        etag, raw = blob
        try:
            return SeenRoot(self._decoded(raw), etag)
        except FormatError:
            return None

    def _decoded(self, raw: bytes) -> Root:
        try:
            store_id, root = decode_root(raw)
        except FormatError as error:
            raise FormatError(f"{error}: {REPAIR}") from error
        if store_id != self._store_id:
            raise FormatError(f"{BATCHES_ROOT_KEY} belongs to another store: {REPAIR}")
        return root


def create_root(bucket: Bucket, store_id: bytes) -> None:
    """Of a store that was just made. One that is there already stays; where it comes to nothing,
    it is made before the first batch."""
    with suppress(PreconditionFailed, OutcomeUnknown):
        put_once(
            bucket,
            BATCHES_ROOT_KEY,
            lambda nonce: encode_root(store_id, _EMPTY._replace(nonce=nonce)),
            if_none_match=True,
        )


def in_order(entries: Iterable[RootEntry]) -> tuple[RootEntry, ...]:
    return tuple(sorted(entries, key=lambda entry: (entry.number, entry.batch_id)))
