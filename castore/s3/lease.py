"""A writer session: what protects its uploads from collectors on other machines, with no lock.

Its own packs are protected by its id, and packs of others by pins, from before they are relied on
until after the names that refer to them are there. Each pin is written once and says which packs
the session newly reuses, or is likely to next; only then are the collector's plans read, and only
then is each of those packs looked for. Whatever is condemned or gone is uploaded again instead.

A session lasts a day at most: pins expire, and a name that is put after they did could refer to
packs that are gone.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Iterator

from castore.errors import CastoreError, CommitUnknown, FormatError, StoreClosed, StoreIOError
from castore.format.s3 import new_pack_id, new_session_id, session_of
from castore.format.s3_gc import encode_pin
from castore.s3.client.bucket import Bucket, OutcomeUnknown, PreconditionFailed
from castore.s3.client.put_once import Landed, put_once
from castore.s3.condemned import CondemnedPacks
from castore.s3.keys import pin_key
from castore.s3.packs import absent_packs
from castore.system.clock import boot_clock
from castore.system.forks import ForkLock, Rank
from castore.system.workers import Workers

SESSION_S_MAX = 86_400


class WriterLease:
    """Shared by all puts of a Store, each of which joins and leaves it; thread-safe."""

    def __init__(
        self, bucket: Bucket, store_id: bytes, requests: Workers, condemned: CondemnedPacks
    ) -> None:
        self.id = new_session_id()
        self._condemned_packs = condemned
        self._bucket = bucket
        self._store_id = store_id
        self._requests = requests
        self._pid = os.getpid()
        self._began = boot_clock()
        self._server_began: float | None = None
        self._lock = ForkLock(Rank.STORES)
        self._pins = 0  # that were tried
        self._pinned = False  # one of them is there
        self._puts = 0
        self._naming = 0  # names that are being put
        self._over = False
        self._abandoned = False
        self._relied_on: set[bytes] = set()
        self.any_unknown = False  # of some PUT it is not known whether it landed

    @property
    def usable(self) -> bool:
        """Whether puts may still begin: not in a forked child, nor too late to end in time, nor
        once it is over: its pins may be gone."""
        if self._over or self._pid != os.getpid():
            return False
        return self._age() < SESSION_S_MAX / 2

    @property
    def idle(self) -> bool:
        """Whether `close` would remove the pins at once."""
        busy = self._puts or self._naming or self.any_unknown
        return not busy and self._pid == os.getpid()

    def join(self) -> bool:
        """A put begins; False if none may."""
        with self._lock:
            if not self.usable:
                return False
            self._puts += 1
            return True

    def leave(self) -> None:
        """A put has ended."""
        with self._lock:
            self._puts -= 1
            self._unpin()

    def close(self) -> None:
        """No further puts: once the last has left, remove the pins. Unless an attempt may land yet
        that relies on them: then they are left to expire, as when this is never called."""
        with self._lock:
            self._over = True
            self._unpin()

    def abandon(self) -> None:
        """As `close`, but puts that have not ended can't name anything any more: none is waited
        for, but for those whose names are on their way."""
        with self._lock:
            self._over = self._abandoned = True
            self._unpin()

    @contextlib.contextmanager
    def naming(self) -> Iterator[None]:
        """A name is being put: what may come of it is known at the end."""
        with self._lock:
            self._naming += 1
        try:
            yield
        finally:
            with self._lock:
                self._naming -= 1
                self._unpin()

    def new_pack(self) -> bytes:
        """The id for a pack that this session will upload. The first pin precedes it."""
        with self._lock:
            if not self._pinned:
                self._pin(())
        return new_pack_id(self.id)

    def rely_on(self, pack_ids: Collection[bytes]) -> set[bytes]:
        """Make sure that packs of others stay; those that can't be relied on."""
        with self._lock:
            new = {
                pack_id
                for pack_id in pack_ids
                if session_of(pack_id) != self.id and pack_id not in self._relied_on
            }
            if not new:
                return set()
            self._pin(new)
        # Without the lock: the threads that look for packs put names, too, and want it for that.
        doomed = self._condemned(new)
        gone = absent_packs(self._bucket, self._requests, new - doomed)
        with self._lock:
            self._relied_on |= new - doomed - gone
        return doomed | gone

    def check_age(self) -> None:
        """Called before a name is signed."""
        if self._pid != os.getpid():
            raise StoreIOError("a put that began before a fork can't go on in the child")
        if self._abandoned:
            raise StoreClosed("the store was closed meanwhile: open it again")
        if self._age() >= SESSION_S_MAX:
            raise StoreIOError("the put took longer than a day, and its pins expired: repeat it")

    def note(self, put: Callable[[], Landed]) -> Landed:
        """What a put comes to. Of what may land yet it is noted that the pins have to stay for
        it."""
        try:
            landed = put()
        except CastoreError:
            raise  # no attempt of it may land
        except PreconditionFailed as error:
            self.any_unknown = self.any_unknown or error.any_unknown
            raise
        except BaseException:
            self.any_unknown = True  # after an interrupt, too, nothing is known of the attempt
            raise
        self.any_unknown = self.any_unknown or landed.any_unknown
        return landed

    def check_time(self, put: Landed) -> None:
        """A name is there: was it in time by the server's clock, too?"""
        if self._server_began is not None and put.date - self._server_began >= SESSION_S_MAX:
            raise CommitUnknown("the put took longer than a day by the server's clock: repeat it")

    def _unpin(self) -> None:
        under_way = self._naming or (self._puts and not self._abandoned)
        if not self._over or under_way or self.any_unknown or self._pid != os.getpid():
            return
        pins, self._pins, self._pinned = self._pins, 0, False
        with contextlib.suppress(CastoreError):  # they expire, too
            self._bucket.delete_many([pin_key(self.id, n) for n in range(pins)])

    def _pin(self, pack_ids: Collection[bytes]) -> None:
        def body(nonce: bytes) -> bytes:
            return encode_pin(self._store_id, self.id, nonce, sorted(pack_ids))

        number = self._pins
        self._pins += 1  # whatever becomes of it: the next one gets a key of its own
        try:
            put = self.note(
                lambda: put_once(self._bucket, pin_key(self.id, number), body, if_none_match=True)
            )
        except (OutcomeUnknown, PreconditionFailed) as error:
            self.any_unknown = True
            raise StoreIOError(
                f"a pin could not be written ({error.__cause__ or error}): repeat the put"
            ) from error
        self._pinned = True
        if self._server_began is None and put.date:  # a reply may come without one
            self._server_began = put.date

    def _condemned(self, pack_ids: Collection[bytes]) -> set[bytes]:
        """Those that a collector is about to delete, if it is at it. Raises FormatError where that
        can't be read: no pack of others can be relied on until a repair has condemned anew what the
        list may have had."""
        try:
            return self._condemned_packs.among(pack_ids)
        except FormatError as error:
            raise FormatError(
                f"{error}: nothing that others stored can be reused before the store is repaired "
                "(castore check --repair)"
            ) from error

    def _age(self) -> float:
        return boot_clock() - self._began
