"""What one commit publishes on S3: the session of a store in a bucket, for packs that are objects.

Packs are uploaded while the stream is read; names are put when all packs are there. Each name is
published by itself, or with others in a batch: a transaction's last put comes after its others, so
that a marker such as `_SUCCESS` is never there before what it marks.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator, Mapping, Sequence

from castore.errors import CastoreError, FormatError, StoreClosed, StoreIOError
from castore.format.segment import NewSegment
from castore.model import Extent, Location, StoredChunk
from castore.s3.bases import Bases
from castore.s3.commit import check, groups, names_of, names_to_look_up
from castore.s3.copies import Copies
from castore.s3.etags import is_batched
from castore.s3.lease import WriterLease
from castore.s3.names import NameWriter, Segments
from castore.s3.parts import Parts
from castore.s3.reliance import Reliance
from castore.s3.stored import StoredFrames
from castore.s3.uploads import PACK_BYTES_MAX, Uploads
from castore.s3.versions import Version
from castore.stream.chunker import Chunker
from castore.stream.codec import Frame
from castore.stream.operations import (
    Copy,
    Delete,
    DeletePrefix,
    Draft,
    Operation,
    Publish,
    SetAttributes,
)
from castore.stream.session import Encoded, WriteSession
from castore.system.workers import InFlight, Workers, results_of

INLINE_BYTES_MAX = 64 << 10
# Of a commit of one object: a pack of its own is a second PUT, the price of which keeps 200 KB for
# a month. Where many are put at once packs are shared, and what is known already is not stored.
INLINE_ALONE_BYTES_MAX = 128 << 10
LOOKAHEAD_BYTES = 64 << 20
MOVED_GAP_BYTES = 2 << 20  # read with what is moved: within a region a request costs, bytes do not


class S3Session(WriteSession):
    """One commit: a put, or a transaction. See WriteSession."""

    def __init__(
        self,
        parts: Parts,
        lease: WriterLease,
        budget: InFlight,
        workers: Workers,
        chunker: Chunker,
        *,
        compression_level: int,
        deltas: bool = False,
    ) -> None:
        """`lease` was joined, and is left in the end. `budget` is for the uploads of all sessions;
        `workers` encode."""
        super().__init__(
            workers, parts.config, chunker, compression_level=compression_level, deltas=deltas
        )
        self.inline_bytes_max = INLINE_BYTES_MAX
        self.inline_alone_bytes_max = INLINE_ALONE_BYTES_MAX
        self.lookahead_bytes = LOOKAHEAD_BYTES
        self._cache = parts.cache
        self._hints = parts.hints
        self._lease = lease
        self._requests = parts.requests
        self._names = NameWriter(parts, lease)
        self._conditional = parts.config.batches  # only where the server honours If-None-Match
        self._uploads = Uploads(parts, lease, budget, keeps_bases=deltas)
        self._reliance = Reliance(parts, lease)
        self._bases = Bases(parts.cache, self._reliance)
        self._stored = StoredFrames(parts.packs, parts.config.seed)
        self._copies = Copies(parts, self._reliance, self._uploads, self._stored)
        self._open = True
        self._published = False
        self._naming = False  # threads may have names to put that nobody waits for

    # ------------------------------------------------------------ for the drafts

    def expect_many(self) -> None:
        self._hints.prefetch()

    def prefetch(self, chunk_ids: Sequence[bytes], older: Sequence[Extent] = ()) -> None:
        """To rely on packs takes three round trips: for many of them at once, if possible. Those
        that have the bases are among them once anything shows that the stream is like the older
        object: a chunk that both have, or else the first base that is found."""
        known = self._hints.known(chunk_ids)
        packs = {pack_id for at in known.values() for pack_id in at.packs}
        likely = self._bases.expect(older if len(known) < len(chunk_ids) else ())
        if any(extent.chunk_id in known for extent in older):
            packs |= likely
        self._reliance.prefetch(packs)

    def look_up(self, chunk_ids: Sequence[bytes]) -> dict[bytes, Location]:
        """Packs of others are pinned, and looked for, before this returns: the caller lets go of
        the bytes of what is known."""
        self.check_process()
        known = self._hints.known(chunk_ids)
        unreliable = self._reliance.unreliable(
            {pack_id for location in known.values() for pack_id in location.packs}
        )
        if unreliable:
            lost = {i for i, at in known.items() if not at.packs.isdisjoint(unreliable)}
            bases = {base for at in known.values() for base in at.bases}
            gone = {base.chunk_id for base in bases if base.location.pack_id in unreliable}
            self._cache.drop_chunks(lost | gone)
            for chunk_id in lost:
                del known[chunk_id]
        for chunk_id in chunk_ids:
            placed = self._uploads.placed.get(chunk_id)
            if placed is not None:
                known[chunk_id] = placed
        return known

    def reliable(self, bases: Collection[StoredChunk]) -> dict[StoredChunk, StoredChunk]:
        return self._bases.reliable(bases)

    def place(self, encoded: Sequence[Encoded]) -> None:
        self._uploads.place(encoded)

    def location(self, chunk_id: bytes) -> Location:
        placed = self._uploads.placed.get(chunk_id) or self.look_up([chunk_id]).get(chunk_id)
        if placed is None:
            raise StoreIOError(f"chunk {chunk_id.hex()} was lost while it was put: repeat the put")
        return placed

    def add_segment(self, draft: Draft, segment: NewSegment) -> None:
        draft.segments.append((segment.end, segment.encode()))

    def drop(self, draft: Draft) -> None:
        """Nothing of it was kept but its frames."""

    # ------------------------------------------------------------ the end

    def commit(self, operations: Sequence[Operation]) -> int:
        """Publish the operations in their order, consecutive ones of a kind at once, but the last
        name that is given last: see `groups`. Not atomic across names: when it raises, those before
        may be there."""
        self.check_process()
        self._uploads.finish()
        present, absent = names_to_look_up(operations, conditional=self._conditional)
        seen = self._names.etags(present, absent)
        check(operations, present | absent, seen.keys())
        self._names.compare(operations)
        self._reliance.check()
        deleted = 0
        with self._waiting_for_names():
            for group in groups(operations):
                deleted += self._apply(group, seen)
                for operation in group:
                    for name in names_of(operation)[0]:
                        seen.pop(name, None)
        self._published = True
        self.close()
        return deleted

    def close(self) -> None:
        if self._open and self._pid == os.getpid():
            self._open = False
            if self._naming:
                self._lease.any_unknown = True
            # What was uploaded for nothing is garbage at once, and not when the Store is closed:
            # the next put begins another session.
            if self._uploads.any_begun and not self._published:
                self._lease.close()
            self._uploads.drop()
            self._lease.leave()

    # ------------------------------------------------------------ for collectors

    def unreliable(self, pack_ids: Collection[bytes]) -> set[bytes]:
        """Those of the packs that nothing that is put may rely on."""
        return self._reliance.unreliable(pack_ids)

    def frames_at(self, locations: Sequence[Location]) -> list[Frame | FormatError]:
        """The frames as they are, checked against the ids in their heads; or why one is none. What
        does not match is fetched once more. In few requests, whatever lies between. Raises
        PackMissing."""
        self.check_process()
        return self._stored.at(locations, gap_bytes=MOVED_GAP_BYTES)

    def move(self, frame: Frame) -> Location:
        """Store a frame as it is, in packs as large as they come; where."""
        [place] = self._uploads.place([Encoded(frame)], pack_bytes=PACK_BYTES_MAX)
        return place

    def finish(self) -> None:
        """Have all that was placed uploaded."""
        self._uploads.finish()

    def put_moved(self, moved: Sequence[tuple[Version, Segments]]) -> int:
        """Put what was moved, and is uploaded, each over the version that it is of and over nothing
        else; how many were. Raises CommitUnknown, once all others were put."""
        with self._waiting_for_names():
            putting = [
                self._requests.submit(self._names.put_over, version, version.head.record, segments)
                for version, segments in moved
            ]
            results = [future.exception() or future.result() for future in putting]
        failures = [error for error in results if isinstance(error, BaseException)]
        if failures:
            raise failures[0]
        return sum(result is True for result in results)

    # ------------------------------------------------------------ parts of these

    @contextlib.contextmanager
    def _waiting_for_names(self) -> Iterator[None]:
        """Names are handed to threads, and waited for, also where some can't be put. An interrupt
        ends the waiting, and a Store that another thread closes the handing over: those that have
        not begun are put nevertheless."""
        self._naming = True
        try:
            yield
        except CastoreError as error:
            self._naming = isinstance(error, StoreClosed)
            raise
        self._naming = False

    def _apply(self, group: Sequence[Operation], seen: Mapping[bytes, str]) -> int:
        """Apply operations that may be at once; how many names were deleted. `seen` are the ETags
        of names that are as they were when the commit began."""
        match group[0]:
            case Publish():
                publishes = self._names.publish_batched(
                    [it for it in group if isinstance(it, Publish)]
                )
                # None of them is to land when the caller has been told that one failed.
                results_of([self._requests.submit(self._names.publish, it) for it in publishes])
            case Copy():
                self._copy([it for it in group if isinstance(it, Copy)], seen)
            case SetAttributes():
                changes = [it for it in group if isinstance(it, SetAttributes)]
                self._set_attributes(changes, seen)
            case Delete():
                return self._names.delete_all(
                    [it.name for it in group if isinstance(it, Delete)], seen
                )
            case DeletePrefix(prefix):
                return self._names.delete_below(prefix)
        return 0

    def _copy(self, copies: Sequence[Copy], seen: Mapping[bytes, str]) -> None:
        moved = [copy for copy in copies if copy.source != copy.target]
        for copy in copies:
            if copy.source == copy.target:
                self._copies.version(copy.source, seen.get(copy.source))  # it is there, and stays
        for ready in self._copies.read([(copy.source, seen.get(copy.source)) for copy in moved]):
            self._names.expect_many(sum(moved[i].rename for i, *_ in ready))
            putting = [
                self._requests.submit(self._names.copy, moved[i], version, segments)
                for i, version, segments in ready
            ]
            results_of(putting)

    def _set_attributes(self, changes: Sequence[SetAttributes], seen: Mapping[bytes, str]) -> None:
        """Put the versions that are there again, each over itself and over no newer one."""
        left = [(change, seen.get(change.name)) for change in changes]
        while left:
            changed: list[tuple[SetAttributes, str | None]] = []  # since: to be looked at again
            for ready in self._copies.read([(change.name, etag) for change, etag in left]):
                self._names.expect_many(sum(is_batched(v.etag) for _, v, _ in ready))
                putting = [
                    self._requests.submit(
                        self._names.put_over, version, left[i][0].of(version.head.record), segments
                    )
                    for i, version, segments in ready
                ]
                done = results_of(putting)
                changed += [
                    (left[i][0], None)
                    for (i, _, _), put in zip(ready, done, strict=True)
                    if not put
                ]
            left = changed
