"""Which packs of others a commit relies on, each found out once.

That takes three round trips, one after another. A stream that is known goes on with the packs that
were uploaded behind those it met, so these are found out with them: as many as the commit has
relied on so far, so that a stream of n packs waits log n times, and at most half of all was asked
for in vain.
"""

from __future__ import annotations

from collections.abc import Collection

from castore.s3.damaged import to_avoid
from castore.s3.lease import WriterLease
from castore.s3.parts import Parts
from castore.system.workers import Future

AHEAD_MAX = 64  # packs


class Reliance:
    """Of one commit. Not for several threads at once."""

    def __init__(self, parts: Parts, lease: WriterLease) -> None:
        self._bucket = parts.bucket
        self._hints = parts.hints
        self._requests = parts.requests
        self._lease = lease
        self._damaged: Future[set[bytes]] | None = None
        self._asked: set[bytes] = set()
        self._unfit: set[bytes] = set()

    def prefetch(self, pack_ids: Collection[bytes]) -> None:
        """It will be asked next which of these are unreliable."""
        # Each is found out once: bases in one that is gone would ask for it again and again.
        new = {*pack_ids} - self._asked
        if not new:
            return
        if self._damaged is None:
            self._damaged = self._requests.submit(to_avoid, self._bucket)
        new |= self._hints.following(new, min(len(self._asked), AHEAD_MAX)) - self._asked
        self._unfit |= self._lease.rely_on(new)
        self._asked |= new

    def unreliable(self, pack_ids: Collection[bytes]) -> set[bytes]:
        """Those of the packs that nothing that is put may rely on. What is marked as damaged is
        asked once by each commit: of our own packs, and of those that the session relied on before,
        nothing else would tell."""
        if not pack_ids:
            return set()
        self.prefetch(pack_ids)
        assert self._damaged is not None
        self._unfit |= self._damaged.result().intersection(pack_ids)
        return self._unfit.intersection(pack_ids)
