"""What short processes of one machine share of hints, in its cache: what they have yet to tell the
others, and when they listened last.

A process that stores little, with others like it before and behind it, would pay more for its hints
than for what it stores. So it leaves them here, and one that comes later tells of all of them. Not
in a cache that is new: it may be thrown away with the machine. And for a process that looks few
chunks up, it is enough that another has listed the hints a moment ago.

Like hints, none of this is relied on: what is lost costs deduplication. So the time is that of the
clock on the wall, whatever becomes of it.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Collection, Sequence

from castore.errors import FormatError, UnsupportedFormat
from castore.format.pack import PackEntry
from castore.format.s3_told import decode_hints, encode_hints
from castore.s3.cache.index import rows_at
from castore.s3.cache.store import StoreCache
from castore.system.lmdb_env import Index
from castore.system.lmdb_snapshot import Snapshot

UNTOLD_FRAMES_MAX = 256  # of about 16 MB
UNTOLD_S = 600.0
LISTED_S = 60.0
FEW_CHUNKS = 64  # looked up, each twice: to store them once more costs about what a list does

_SINCE = struct.Struct("<d")
_PREFIX = b"untold "
_LISTED = b"hints listed"

Pack = tuple[bytes, Sequence[PackEntry]]


class Untold:
    """Of one store; thread-safe."""

    def __init__(self, cache: StoreCache, store_id: bytes) -> None:
        self._cache = cache
        self._store_id = store_id

    def leave(self, packs: Sequence[Pack]) -> bool:
        """Leave it to a later process to tell of these packs; False if it is time to tell of them,
        and of all that were left."""
        frames = sum(len(entries) for _, entries in packs)
        if not self._cache.was_there or frames > UNTOLD_FRAMES_MAX:
            return False
        left, now = self._left(), _now()
        frames += sum(len(entries) for _, (_, entries) in left)
        if frames > UNTOLD_FRAMES_MAX or any(not 0 <= now - at < UNTOLD_S for at, _ in left):
            return False
        rows = {
            _PREFIX + pack[0]: _SINCE.pack(now) + encode_hints(self._store_id, [pack])
            for pack in packs
        }
        self._cache.change("meta", rows)
        # Where that failed, as on a full disk, they are told of now.
        return rows.keys() <= {_PREFIX + pack_id for pack_id, _ in self.packs()}

    def packs(self) -> list[Pack]:
        """What was left."""
        return [pack for _, pack in self._left()]

    def drop(self, pack_ids: Collection[bytes]) -> None:
        """These were told of, or are gone."""
        if pack_ids:
            self._cache.change("meta", {}, gone=[_PREFIX + pack_id for pack_id in pack_ids])

    def note_listed(self) -> None:
        """All hints that there are were just listed, and read."""
        self._cache.change("meta", {_LISTED: _SINCE.pack(_now())})

    def were_listed(self) -> bool:
        """Whether that was a moment ago."""
        raw = self._cache.row("meta", _LISTED)
        if raw is None or len(raw) != _SINCE.size:
            return False
        [at] = _SINCE.unpack(raw)
        return bool(0 <= _now() - at < LISTED_S)

    def _left(self) -> list[tuple[float, Pack]]:
        """Each with the time at which it was."""

        def read(index: Index, txn: Snapshot) -> list[bytes]:
            return [row for _, row in rows_at(txn, index.meta, _PREFIX)]

        found: list[tuple[float, Pack]] = []
        none: list[bytes] = []
        for row in self._cache.read(read, none):
            try:
                _, packs = decode_hints(row[_SINCE.size :])
            except (FormatError, UnsupportedFormat):  # of a damaged cache
                continue
            found += [(_SINCE.unpack_from(row)[0], pack) for pack in packs]
        return found


def _now() -> float:
    return time.time()
