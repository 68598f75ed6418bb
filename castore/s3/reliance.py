"""Which packs of others a commit relies on, each found out once.

That takes three round trips, one after another. A stream that is known goes on with the packs that
were uploaded behind those it met, so these are found out with them: as many as the commit has
relied on so far, so that a stream of n packs waits log n times, and at most half of all was asked
for in vain.
"""

from __future__ import annotations

from collections.abc import Collection

from castore.errors import StoreIOError
from castore.s3.damaged import to_avoid
from castore.s3.lease import WriterLease
from castore.s3.parts import Parts
from castore.system.clock import boot_clock
from castore.system.workers import Future

AHEAD_MAX = 64  # packs
MARKS_S = 300.0  # marks of damage are read anew after that: most commits are shorter


class Reliance:
    """Of one commit. Not for several threads at once."""

    def __init__(self, parts: Parts, lease: WriterLease) -> None:
        self._bucket = parts.bucket
        self._hints = parts.hints
        self._requests = parts.requests
        self._lease = lease
        self._damaged: Future[set[bytes]] | None = None
        self._damaged_at = 0.0
        self._relied_on: set[bytes] = set()
        self._asked: set[bytes] = set()
        self._unfit: set[bytes] = set()

    def prefetch(self, pack_ids: Collection[bytes]) -> None:
        """It will be asked next which of these are unreliable."""
        # Each is found out once: bases in one that is gone would ask for it again and again.
        new = {*pack_ids} - self._asked
        if not new:
            return
        if self._damaged is None:
            self._ask_for_marks()
        new |= self._hints.following(new, min(len(self._asked), AHEAD_MAX)) - self._asked
        self._unfit |= self._lease.rely_on(new)
        self._asked |= new

    def unreliable(self, pack_ids: Collection[bytes]) -> set[bytes]:
        """Those of the packs that nothing that is put may rely on. What is marked as damaged is
        asked by each commit, once if it is short: of our own packs, and of those that the session
        relied on before, nothing else would tell."""
        if not pack_ids:
            return set()
        self.prefetch(pack_ids)
        self._unfit |= self._marked().intersection(pack_ids)
        unfit = self._unfit.intersection(pack_ids)
        self._relied_on |= {*pack_ids} - unfit
        return unfit

    def check(self) -> None:
        """Before names are put: raises StoreIOError if what the commit relies on, and whose bytes
        it let go of, was marked as damaged since."""
        if self._relied_on and not self._relied_on.isdisjoint(self._marked()):
            raise StoreIOError(
                "what was to be reused was found to be damaged meanwhile: repeat the put"
            )

    def _marked(self) -> set[bytes]:
        if self._damaged is None or boot_clock() - self._damaged_at > MARKS_S:
            self._ask_for_marks()
        assert self._damaged is not None
        return self._damaged.result()

    def _ask_for_marks(self) -> None:
        self._damaged_at = boot_clock()
        self._damaged = self._requests.submit(to_avoid, self._bucket)
