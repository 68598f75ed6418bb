"""The places of live frames, in about 4 bytes each."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Set

from castore.format.index import manifest_slot
from castore.format.segment import Segment
from castore.model import Location

PAGE_BYTES = 1024
GROWTH_MIN = 1 << 16  # offsets; below, repeats are not worth looking for


class Manifests:
    """A set of manifests: a bit for each number that was given out, in pages, since a damaged one
    may be anywhere."""

    def __init__(self) -> None:
        self._pages: defaultdict[int, bytearray] = defaultdict(lambda: bytearray(PAGE_BYTES))

    def add(self, manifest: int) -> None:
        at, bit = divmod(manifest_slot(manifest), 8)
        self._pages[at // PAGE_BYTES][at % PAGE_BYTES] |= 1 << bit

    def __contains__(self, manifest: int) -> bool:
        at, bit = divmod(manifest_slot(manifest), 8)
        page = self._pages.get(at // PAGE_BYTES)
        return page is not None and bool(page[at % PAGE_BYTES] >> bit & 1)


class Marks:
    """For each pack the offsets of the frames in it that are alive.

    Many are marked first, then `settle` sorts them, then they are asked for; a few may still be
    marked after that.
    """

    def __init__(self) -> None:
        self._offsets: defaultdict[bytes, array[int]] = defaultdict(lambda: array("I"))
        self._distinct: dict[bytes, int] = {}  # offsets when repeats were last dropped
        self._late: defaultdict[bytes, set[int]] = defaultdict(set)
        self._seen: dict[bytes, bytearray] = {}
        self._settled = False
        self.live_bytes: defaultdict[bytes, int] = defaultdict(int)  # of frames that were seen
        self.live_bases: defaultdict[bytes, int] = defaultdict(int)  # that these have together

    def add(self, segment: Segment) -> None:
        """Its frames are alive."""
        for pack_id, offsets in segment.offsets_by_pack():
            if self._settled:
                self._late[pack_id].update(offsets)
                continue
            marked = self._offsets[pack_id]
            marked.extend(offsets)
            # Objects that share chunks mark them again and again.
            if len(marked) > 2 * self._distinct.get(pack_id, 0) + GROWTH_MIN:
                self._tidy(pack_id)

    def settle(self) -> None:
        """From now on they can be asked for."""
        for pack_id in self._offsets:
            self._tidy(pack_id)
            self._seen[pack_id] = bytearray(len(self._offsets[pack_id]))
        self._settled = True

    def is_live(self, location: Location) -> bool:
        return self._find(location) >= 0 or (
            location.pack_id in self._late and location.offset in self._late[location.pack_id]
        )

    def see(self, location: Location, bases: int = 0) -> bool:
        """Whether the frame, which has so many bases, is alive; the index knows it, and it counts
        for what is."""
        at = self._find(location)
        if at < 0:
            return self.is_live(location)
        seen = self._seen[location.pack_id]
        if not seen[at]:
            seen[at] = 1
            self.count(location, bases)
        return True

    def count(self, location: Location, bases: int) -> None:
        """A live frame that is seen for the first time."""
        self.live_bytes[location.pack_id] += location.stored_bytes
        self.live_bases[location.pack_id] += bases

    def unseen(self) -> dict[bytes, set[int]]:
        """The live frames that no row of the index led to: their chunks are stored twice, or were
        forgotten."""
        return {
            pack_id: {self._offsets[pack_id][i] for i, flag in enumerate(flags) if not flag}
            for pack_id, flags in self._seen.items()
            if 0 in flags
        }

    @property
    def packs(self) -> Set[bytes]:
        """Those with a live frame."""
        return self._offsets.keys() | self._late.keys()

    def has(self, pack_id: bytes) -> bool:
        """Whether the pack has a live frame."""
        return pack_id in self._offsets or pack_id in self._late

    def offsets(self, pack_id: bytes) -> array[int]:
        """Of the live frames in the pack, ascending, but for those marked late."""
        return self._offsets.get(pack_id) or array("I")

    def _find(self, location: Location) -> int:
        offsets = self._offsets.get(location.pack_id)
        if offsets is None:
            return -1
        at = bisect_left(offsets, location.offset)
        return at if at < len(offsets) and offsets[at] == location.offset else -1

    def _tidy(self, pack_id: bytes) -> None:
        distinct: Iterable[int] = set(self._offsets[pack_id])
        self._offsets[pack_id] = array("I", sorted(distinct))
        self._distinct[pack_id] = len(self._offsets[pack_id])
