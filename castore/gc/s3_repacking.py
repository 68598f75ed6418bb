"""Packs of a store on S3 of which little is alive, or that are small: their live frames are moved.

A collector that moves frames is a writer like any other: its session is pinned before it uploads,
and each manifest is put over exactly the version that was read, or not at all. The old packs are
not touched: what nothing refers to any more is garbage for the two phases that follow.

This alone needs to know which chunks are alive, and reads manifests whole, each version once on
this machine: segments stay in the cache.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Set
from contextlib import AbstractContextManager

from castore.catalog.s3 import Overwritten, S3Catalog, Version
from castore.errors import ChunkCorrupt, PackMissing
from castore.format_index import decode_segment
from castore.gc import Damage, Meter
from castore.gc.s3_marking import Pins
from castore.s3.uploads import PACK_BYTES_MAX
from castore.session_s3 import S3Session, Segments

SMALL_BYTES = 1 << 20  # a pack that may be merged
SMALL_MIN = 32  # of them, before they are
BATCH_NAMES = 64
BATCH_BYTES = PACK_BYTES_MAX  # of manifests, or of frames, that are put at once
_SETTLED_MIN = 1024  # entries of a pack before they are looked through for repeated ones


class LiveFrames:
    """The frames that names need, by pack: 8 bytes for each, and at most twice that."""

    def __init__(self) -> None:
        self._frames: dict[bytes, array[int]] = {}  # offset << 32 | stored bytes
        self._settled: dict[bytes, int] = {}

    def add(self, pack_id: bytes, offset: int, stored_bytes: int) -> None:
        frames = self._frames.setdefault(pack_id, array("Q"))
        frames.append(offset << 32 | stored_bytes)
        if len(frames) >= self._settled.get(pack_id, _SETTLED_MIN):
            self._settle(pack_id)

    def live_bytes(self, pack_id: bytes) -> int:
        self._settle(pack_id)
        return sum(frame & 0xFFFFFFFF for frame in self._frames.get(pack_id, ()))

    def _settle(self, pack_id: bytes) -> None:
        if pack_id in self._frames:
            frames = self._frames[pack_id] = array("Q", sorted({*self._frames[pack_id]}))
            self._settled[pack_id] = max(2 * len(frames), _SETTLED_MIN)


def choose(
    packs: dict[bytes, int],
    live: dict[bytes, int],
    *,
    repack_below: float,
    bytes_max: int | None,
) -> dict[bytes, int]:
    """Which packs to rewrite, and their live bytes: those of which less than a share is alive, and
    the small ones if they are many; the emptiest first, up to `bytes_max` to be copied."""
    small = {i for i, size in packs.items() if live.get(i) and size < SMALL_BYTES}
    if len(small) < SMALL_MIN:
        small = set()
    shares = {
        i: live[i] / size
        for i, size in packs.items()
        if live.get(i) and (i in small or live[i] < repack_below * size)
    }
    chosen, total = {}, 0
    for pack_id in sorted(shares, key=lambda i: (shares[i], i)):
        if bytes_max is not None and total + live[pack_id] > bytes_max:
            continue
        chosen[pack_id] = live[pack_id]
        total += live[pack_id]
    return chosen


class Repacker:
    def __init__(
        self,
        catalog: S3Catalog,
        open_session: Callable[[], AbstractContextManager[S3Session]],
        meter: Meter,
    ) -> None:
        """`open_session` gives a session of its own, which is over at the end of the `with`."""
        self.bytes_written = 0
        self.damaged: list[Damage] = []
        self._catalog = catalog
        self._open_session = open_session
        self._meter = meter

    def candidates(
        self, packs: dict[bytes, int], pins: Pins, *, repack_below: float, bytes_max: int | None
    ) -> dict[bytes, int]:
        """Which packs to rewrite, and their live bytes. Those of writers at work are left alone."""
        frames = LiveFrames()
        for version in self._catalog.versions(b""):
            try:
                for raw in self._catalog.raw_segments(version):
                    for extent in decode_segment(raw):
                        frames.add(*extent.location)
            except Overwritten:
                continue  # meanwhile: what it refers to now is in packs of a writer at work
        free = {i: size for i, size in packs.items() if not pins.protect(i)}
        live = {pack_id: frames.live_bytes(pack_id) for pack_id in free}
        return choose(free, live, repack_below=repack_below, bytes_max=bytes_max)

    def rewrite(self, chosen: Set[bytes]) -> None:
        """Move what names need of these packs. Raises CommitUnknown, and what uploading raises:
        what was moved until then is, and nothing is lost."""
        with self._open_session() as session:
            for batch in self._batches(session, chosen):
                session.put_moved(batch)
                self._meter.advance(session.moved_bytes - self.bytes_written)
                self.bytes_written = session.moved_bytes

    def _batches(
        self, session: S3Session, chosen: Set[bytes]
    ) -> Iterator[list[tuple[Version, Segments]]]:
        batch: list[tuple[Version, Segments]] = []
        size = begun = 0
        for version in self._catalog.versions(b""):
            if chosen.isdisjoint(version.head.packs):
                continue
            try:
                segments = session.place_anew(version, chosen)
            except (Overwritten, PackMissing):
                continue  # another version by now; or it is damaged, and nothing gets worse
            except ChunkCorrupt as error:  # its packs stay, as its manifest leads there
                chunk_id, pack_id = error.chunk_id.hex(), error.pack_id.hex()
                self.damaged.append(Damage(pack_id, error.offset, chunk_id, error.reason))
                continue
            batch.append((version, segments))
            size += sum(len(raw) for _, raw in segments)
            if max(size, session.moved_bytes - begun) >= BATCH_BYTES or len(batch) >= BATCH_NAMES:
                yield batch
                batch, size, begun = [], 0, session.moved_bytes
        yield batch
