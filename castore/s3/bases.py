"""The bases of the deltas that a commit makes: frames that are on this machine, in packs that it
relies on as on those of the chunks that it reuses."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from castore.model import Extent, Location, StoredChunk
from castore.s3.cache.store import StoreCache
from castore.s3.reliance import Reliance

LOOKED_AT = 8  # frames of a pack: those of one came here together, and go together


class Bases:
    """Of one commit. Not for several threads at once."""

    def __init__(self, cache: StoreCache, reliance: Reliance) -> None:
        self._cache = cache
        self._reliance = reliance
        self._likely: set[bytes] = set()

    def expect(self, older: Sequence[Extent]) -> set[bytes]:
        """What is put next may be deltas of these, or of what they are deltas of: the packs that it
        will rely on then, of the frames that are here."""
        of_pack: dict[bytes, dict[Location, None]] = {}
        for extent in older:
            for base in extent.location.bases or (extent.stored,):
                of_pack.setdefault(base.location.pack_id, {})[base.location] = None
        places = [at for those in of_pack.values() for at in _some(list(those))]
        frames = zip(places, self._cache.frames.get(places), strict=True)
        self._likely = {at.pack_id for at, frame in frames if frame is not None}
        return self._likely

    def reliable(self, bases: Collection[StoredChunk]) -> dict[StoredChunk, StoredChunk]:
        """Those that may be relied on, and each where it is by now. The packs that are likely to
        follow are asked for with theirs, in the same round trips."""
        if not bases:
            return {}
        packs = {base.location.pack_id for base in bases} | self._likely
        self._likely = set()
        unreliable = self._reliance.unreliable(packs)
        lost = [base for base in bases if base.location.pack_id in unreliable]
        return {base: base for base in {*bases}.difference(lost)} | self._moved(lost)

    def _moved(self, lost: Sequence[StoredChunk]) -> dict[StoredChunk, StoredChunk]:
        """Those of the bases that a collector has moved, as hints tell. Their frames are kept under
        where they are now, for the put after this one."""
        known = self._cache.known([base.chunk_id for base in lost])
        places = {
            base: at
            for base in lost
            if (at := known.get(base.chunk_id)) is not None and not at.bases
        }
        unreliable = self._reliance.unreliable({at.pack_id for at in places.values()})
        moved = {
            base: base._replace(location=at)
            for base, at in places.items()
            if at.pack_id not in unreliable
        }
        frames = self._cache.frames.get([base.location for base in moved])
        self._cache.frames.put(
            [
                (chunk.location, bytes(frame))
                for chunk, frame in zip(moved.values(), frames, strict=True)
                if frame is not None and len(frame) == chunk.location.stored_bytes
            ]
        )
        return moved


def _some(places: Sequence[Location]) -> Sequence[Location]:
    """At most LOOKED_AT of them, spread evenly."""
    return places[:: -(-len(places) // LOOKED_AT)]
