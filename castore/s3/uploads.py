"""Packs on their way to the bucket: filled in memory, and uploaded a few at a time.

All puts of a Store share one budget of uploads, which is what bounds their memory. A pack is told
of, to this machine's cache and to the others, as soon as it is there: a put that is interrupted is
resumed by deduplication.

The first packs of a put are smaller, or one that adds a few megabytes would begin to upload them
only when all of it is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice

from castore.format.pack import PackEntry, encode_footer, encode_pack_header
from castore.model import Location
from castore.s3.keys import pack_key
from castore.s3.lease import WriterLease
from castore.s3.parts import Parts
from castore.stream.codec import Frame
from castore.stream.session import Encoded
from castore.system.workers import Future, InFlight

PACK_BYTES_FIRST = 4 << 20  # and each of the next twice that,
PACK_BYTES_MAX = 16 << 20  # up to this
# At a time; each holds a pack in memory. 128 MiB of noise at 20 ms and 100 MB/s: 2.96 s with one,
# 2.05 with 2, 1.69 with 4, 1.72 with 8.
UPLOADS_MAX = 4
# Chunks whose places are kept in memory, besides those of packs that are not uploaded yet: what was
# placed before, the cache knows.
PLACED_MAX = 1 << 17


@dataclass(slots=True)
class _OpenPack:
    """A pack that is being filled. A frame is in it with its entry or is not, wherever an interrupt
    comes: what was placed before is to be uploaded if the transaction goes on."""

    pack_id: bytes
    header: bytes
    frames: list[tuple[PackEntry, Frame]] = field(default_factory=list)
    is_full: bool = False  # its upload may have begun, and no frame is to be added

    @property
    def size(self) -> int:
        """In bytes, without a footer."""
        if not self.frames:
            return len(self.header)
        last = self.frames[-1][0]
        return last.offset + last.stored_bytes


class Uploads:
    """The packs of one put, or transaction. Not for several threads at once."""

    def __init__(
        self, parts: Parts, lease: WriterLease, budget: InFlight, *, keeps_bases: bool
    ) -> None:
        """With `keeps_bases`, what later puts may make deltas of is kept on this machine."""
        self._keeps_bases = keeps_bases
        self._bucket = parts.bucket
        self._config = parts.config
        self._cache = parts.cache
        self._hints = parts.hints
        self._requests = parts.requests
        self._lease = lease
        self._budget = budget
        self._pack: _OpenPack | None = None
        self._pack_bytes = min(PACK_BYTES_FIRST, PACK_BYTES_MAX)
        self._uploading: list[tuple[bytes, list[PackEntry], Future[None]]] = []
        self.placed: dict[bytes, Location] = {}  # chunks by id, those placed last
        self.any_begun = False

    def place(self, encoded: Sequence[Encoded], *, pack_bytes: int = 0) -> list[Location]:
        """Give frames their places. A pack has at least `pack_bytes`, unless it is the last."""
        places = []
        for frame, bases in encoded:
            if self._pack is not None and self._pack.is_full:
                self.begin()
            pack = self._pack
            if pack is None:
                pack = self._pack = self._new_pack()
            place = Location(pack.pack_id, pack.size, frame.stored_bytes, bases)
            entry = PackEntry(
                frame.chunk_id, place.offset, place.stored_bytes, frame.raw_bytes, frame.bases
            )
            pack.frames.append((entry, frame))
            places.append(place)
            # What is a delta can't be the base of another, as what is none may be.
            before = self.placed.get(frame.chunk_id)
            if before is None or before.bases or not frame.bases:
                self.placed.pop(frame.chunk_id, None)  # it goes to the end
                self.placed[frame.chunk_id] = place
            if pack.size >= max(self._pack_bytes, pack_bytes):
                self.begin()
                self._pack_bytes = min(2 * self._pack_bytes, PACK_BYTES_MAX)
        return places

    def begin(self) -> None:
        """Begin to upload what was placed, once the budget allows it. An upload that failed fails
        the put now, not at its end. After an interrupt it is done again, with the same bytes."""
        pack = self._pack
        if pack is None:
            return
        self.any_begun = True
        self._budget.wait_for_room()
        pack.is_full = True
        entries = [entry for entry, _ in pack.frames]
        parts = [pack.header]
        for _, frame in pack.frames:
            parts += (frame.head, frame.payload)
        parts.append(encode_footer(entries, pack.size))
        future = self._requests.submit(self._put, pack.pack_id, entries, parts)
        self._budget.add(future)
        self._uploading.append((pack.pack_id, entries, future))
        self._pack = pack = None  # its frames are the thread's to let go of
        self._collect([upload for upload in self._uploading if upload[2].done()])

    def finish(self) -> None:
        """Have all that was placed uploaded."""
        self.begin()
        self._collect(list(self._uploading))

    def drop(self) -> None:
        """What has not begun to be uploaded is not to be."""
        self._pack = None
        for _, _, future in self._uploading:
            future.cancel()
        self._uploading = []
        self.placed = {}

    def _new_pack(self) -> _OpenPack:
        pack_id = self._lease.new_pack()
        header = encode_pack_header(self._config.store_id, pack_id, self._config)
        return _OpenPack(pack_id, header)

    def _put(self, pack_id: bytes, entries: list[PackEntry], parts: list[bytes]) -> None:
        raw = b"".join(parts)
        parts.clear()  # or it would be in memory twice for as long as it takes
        self._bucket.put(pack_key(pack_id), raw, idempotent=True)
        # Here, not when it is collected: a put that is interrupted collects nothing more.
        self._cache.add_chunks([(pack_id, entries)])
        self._hints.tell([(pack_id, entries)])
        if self._keeps_bases:
            self._keep_bases(pack_id, entries, memoryview(raw))

    def _keep_bases(self, pack_id: bytes, entries: list[PackEntry], raw: memoryview) -> None:
        """In the disk cache, as if they had been fetched."""
        frames = [
            (Location(pack_id, begin, stored_bytes), raw[begin : begin + stored_bytes])
            for _, begin, stored_bytes, _, bases in entries
            if not bases
        ]
        self._cache.frames.put(frames)

    def _collect(self, uploads: Sequence[tuple[bytes, list[PackEntry], Future[None]]]) -> None:
        for upload in uploads:
            upload[2].result()
            self._uploading.remove(upload)
        excess = max(len(self.placed) - PLACED_MAX, 0)
        on_their_way = {pack_id for pack_id, _, _ in self._uploading}
        for chunk_id, place in list(islice(self.placed.items(), excess)):
            if place.pack_id in on_their_way:  # the cache does not know it yet
                break
            del self.placed[chunk_id]
