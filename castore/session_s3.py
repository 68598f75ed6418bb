"""What one commit publishes on S3: `session.py`'s part, for packs that are objects.

Packs are uploaded while the stream is read, a few at a time under one budget; names are put when
all packs are there. Each name is published by itself: a transaction's last put comes last, so that
a marker such as `_SUCCESS` is never there before what it marks.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future

from castore.catalog.operations import Copy, Delete, DeletePrefix, Draft, Operation, Publish
from castore.catalog.s3 import Overwritten, S3Catalog, Version
from castore.chunker import Chunker
from castore.codec import Frame
from castore.errors import CommitUnknown, NameExists, NameNotFound, PackMissing, StoreIOError
from castore.format import (
    PackEntry,
    Record,
    SegmentBuilder,
    StoreConfig,
    decode_frame_header,
    decode_segment,
    encode_footer,
    encode_pack_header,
)
from castore.format_s3 import encode_manifest, name_key, pack_key
from castore.model import Extent, Location
from castore.packs import NOTHING_HELD
from castore.packs.s3 import S3Packs
from castore.s3.bucket import Bucket, KeyAbsent, OutcomeUnknown, PreconditionFailed
from castore.s3.cache import StoreCache
from castore.s3.outcomes import put_once
from castore.s3.session import WriterSession
from castore.session import WriteSession
from castore.workers import Workers

INLINE_BYTES_MAX = 64 << 10
PACK_BYTES_MAX = 16 << 20


@dataclasses.dataclass(slots=True)
class _OpenPack:
    """A pack being filled, in memory."""

    pack_id: bytes
    parts: list[bytes]
    size: int
    entries: list[PackEntry] = dataclasses.field(default_factory=list)

    def frame(self, location: Location) -> bytes:
        at = len(self.parts[0])
        for i in range(1, len(self.parts), 2):
            if at == location.offset:
                return self.parts[i] + self.parts[i + 1]
            at += len(self.parts[i]) + len(self.parts[i + 1])
        raise KeyError(location)


class S3Session(WriteSession):
    def __init__(
        self,
        bucket: Bucket,
        catalog: S3Catalog,
        packs: S3Packs,
        cache: StoreCache,
        session: WriterSession,
        budget: threading.Semaphore,
        requests: Workers,
        workers: Workers,
        config: StoreConfig,
        chunker: Chunker,
        *,
        compression_level: int,
        read_hints: Callable[[], None],
    ) -> None:
        super().__init__(
            workers,
            config,
            chunker,
            compression_level=compression_level,
            inline_bytes_max=INLINE_BYTES_MAX,
        )
        self._bucket = bucket
        self._catalog = catalog
        self._packs = packs
        self._cache = cache
        self._session = session
        self._budget = budget  # uploads in flight, of all puts of the Store
        self._requests = requests
        self._read_hints = read_hints
        self._pack: _OpenPack | None = None
        self._uploads: list[tuple[bytes, list[PackEntry], Future[None]]] = []
        self._placed: dict[bytes, Location] = {}

    # ------------------------------------------------------------ for the drafts

    def look_up(self, chunk_ids: Sequence[bytes]) -> dict[bytes, Location]:
        """Packs of others are pinned, and looked for, before this returns: the caller lets go of
        the bytes of what is known."""
        self.check_process()
        self._read_hints()
        known = self._cache.known(chunk_ids)
        unreliable = self._session.rely_on({location.pack_id for location in known.values()})
        if unreliable:
            lost = [i for i, location in known.items() if location.pack_id in unreliable]
            self._cache.drop_chunks(lost)
            for chunk_id in lost:
                del known[chunk_id]
        for chunk_id in chunk_ids:
            if chunk_id in self._placed:
                known[chunk_id] = self._placed[chunk_id]
        return known

    def place(self, frames: Sequence[Frame]) -> None:
        for frame in frames:
            pack = self._pack
            if pack is None:
                pack = self._pack = self._new_pack()
            place = Location(pack.pack_id, pack.size, frame.stored_bytes)
            pack.parts += (frame.head, frame.payload)
            pack.size += frame.stored_bytes
            pack.entries.append(
                PackEntry(frame.chunk_id, place.offset, place.stored_bytes, frame.raw_bytes)
            )
            self._placed[frame.chunk_id] = place
            if pack.size >= PACK_BYTES_MAX:
                self._upload()

    def location(self, chunk_id: bytes) -> Location:
        return self._placed[chunk_id]

    def add_segment(self, draft: Draft, segment: SegmentBuilder) -> None:
        draft.segments.append((segment.end, segment.encode()))

    def drop(self, draft: Draft) -> None:
        """Nothing of it was kept but its frames."""

    def stored_sha256(self, chunk_id: bytes, location: Location) -> bytes:
        if self._pack is not None and location.pack_id == self._pack.pack_id:
            return decode_frame_header(self._pack.frame(location)).sha256
        self._wait()
        extent = Extent(0, 1, chunk_id, location)
        return decode_frame_header(self._packs.frames([extent], NOTHING_HELD)[0]).sha256

    # ------------------------------------------------------------ packs

    def _new_pack(self) -> _OpenPack:
        pack_id = self._session.new_pack()
        header = encode_pack_header(self.config.store_id, pack_id)
        return _OpenPack(pack_id, [header], len(header))

    def _upload(self) -> None:
        pack, self._pack = self._pack, None
        if pack is None:
            return
        pack.parts.append(encode_footer(pack.entries, pack.size))
        self._budget.acquire()
        future = self._requests.submit(self._put_pack, pack.pack_id, pack.parts)
        future.add_done_callback(lambda _: self._budget.release())
        self._uploads.append((pack.pack_id, pack.entries, future))
        for _, _, done in self._uploads:
            if done.done():
                done.result()  # an upload that failed fails the put now, not at its end

    def _put_pack(self, pack_id: bytes, parts: list[bytes]) -> None:
        self._bucket.put(pack_key(pack_id), parts, idempotent=True)

    def _wait(self) -> None:
        for _, _, future in self._uploads:
            future.result()

    # ------------------------------------------------------------ the end

    def commit(self, operations: Sequence[Operation]) -> int:
        """Publish the operations in their order, consecutive puts at once but the last one last.
        Not atomic across names: when it raises, those before may be there."""
        self.check_process()
        self._upload()
        self._wait()
        self._check_sources(operations)
        uploaded = [(pack_id, entries) for pack_id, entries, _ in self._uploads]
        deleted = 0
        together: list[Publish] = []
        for i, operation in enumerate(operations):
            if isinstance(operation, Publish) and i < len(operations) - 1:
                if any(operation.name == other.name for other in together):
                    self._publish(together)
                together.append(operation)
                continue
            self._publish(together)
            deleted += self._apply(operation)
        self._cache.add_chunks(uploaded)
        self._session.uploaded(uploaded)
        self.close()
        return deleted

    def close(self) -> None:
        self._pack = None
        for _, _, future in self._uploads:
            future.cancel()
        self._uploads = []
        self._placed = {}

    def _check_sources(self, operations: Sequence[Operation]) -> None:
        """What is sure to fail fails before anything is published."""
        made: set[bytes] = set()
        for operation in operations:
            match operation:
                case Publish(name) | Copy(_, name):
                    made.add(name)
            source = (
                operation.name
                if isinstance(operation, Delete)
                else operation.source
                if isinstance(operation, Copy)
                else None
            )
            if source is not None and source not in made:
                self._must_exist(source)

    def _must_exist(self, name: bytes) -> None:
        try:
            self._bucket.head(name_key(name))
        except KeyAbsent:
            raise NameNotFound(name.decode()) from None

    def _publish(self, together: list[Publish]) -> None:
        publishing = [self._requests.submit(self._apply, operation) for operation in together]
        together.clear()
        failures = [error for future in publishing if (error := future.exception())]
        if failures:
            raise failures[0]

    def _apply(self, operation: Operation) -> int:
        match operation:
            case Publish(name, record, draft, if_absent):
                segments = [] if draft is None else draft.segments
                self._put_name(name, record, segments, if_absent=if_absent)
                return 0
            case Copy():
                self._copy(operation)
                return 0
            case Delete(name):
                self._must_exist(name)
                self._delete(name)
                return 1
            case DeletePrefix(prefix):
                return self._delete_below(prefix)

    def _put_name(
        self,
        name: bytes,
        record: Record,
        segments: Sequence[tuple[int, bytes]],
        *,
        if_absent: bool,
    ) -> None:
        packs: dict[bytes, None] = {}
        for _, raw in segments:
            packs.update(dict.fromkeys(decode_segment(raw).packs))
        record = dataclasses.replace(record, manifest=1 if segments else 0)
        body = b""

        def make_body(nonce: bytes) -> bytes:
            nonlocal body
            self._session.check_age()
            body = encode_manifest(self.config.store_id, nonce, record, list(packs), segments)
            return body

        try:
            landed = put_once(self._bucket, name_key(name), make_body, if_none_match=if_absent)
        except PreconditionFailed as error:
            self._session.any_unknown = self._session.any_unknown or error.any_unknown
            raise NameExists(name.decode()) from error
        except OutcomeUnknown as error:
            self._session.any_unknown = True
            raise CommitUnknown(
                f"whether {name.decode()!r} was put is not known: look before you repeat it "
                f"({error.__cause__})"
            ) from error
        self._session.landed(landed)
        if not landed.any_unknown:
            self._catalog.remember(name, landed.etag, body)

    def _copy(self, copy: Copy) -> None:
        while True:
            version = self._catalog.current(copy.source)
            if copy.source == copy.target:
                if copy.if_absent:
                    raise NameExists(copy.target.decode())
                return
            try:
                raws = self._catalog.raw_segments(version)
                segments = self._reliable(version, raws)
            except (Overwritten, PackMissing) as error:
                if self._catalog.current(copy.source).etag == version.etag:
                    if isinstance(error, PackMissing):
                        raise
                    raise StoreIOError(
                        f"the manifest of {copy.source.decode()!r} can't be read"
                    ) from error
                continue
            break
        self._upload()
        self._wait()
        record = version.head.record
        if not copy.rename:
            record = dataclasses.replace(record, mtime_ns=copy.mtime_ns)
        self._put_name(copy.target, record, segments, if_absent=copy.if_absent)
        if copy.rename:
            self._delete(copy.source, if_match=version.etag)

    def _reliable(self, version: Version, raws: Sequence[bytes]) -> list[tuple[int, bytes]]:
        """The version's segments, with what is in packs that can't be relied on stored anew."""
        doomed = self._session.rely_on(version.head.packs)
        segments = []
        for place, raw in zip(version.head.segments, raws, strict=True):
            segment = decode_segment(raw)
            if doomed.intersection(segment.packs):
                raw = self._moved(segment, doomed)
            segments.append((place.end, raw))
        return segments

    def _moved(self, segment: Iterable[Extent], doomed: set[bytes]) -> bytes:
        extents = list(segment)
        builder = SegmentBuilder(extents[0].begin)
        for extent in extents:
            if extent.location.pack_id in doomed and extent.chunk_id not in self._placed:
                frame = bytes(self._packs.frames([extent], NOTHING_HELD)[0])
                header = decode_frame_header(frame)
                cut = header.header_bytes
                self.place(
                    [
                        Frame(
                            extent.chunk_id,
                            extent.end - extent.begin,
                            frame[:cut],
                            frame[cut:],
                            header.sha256,
                        )
                    ]
                )
            location = (
                self._placed[extent.chunk_id]
                if extent.location.pack_id in doomed
                else extent.location
            )
            builder.append(extent.end, extent.chunk_id, *location)
        return builder.encode()

    def _delete(self, name: bytes, *, if_match: str | None = None) -> None:
        try:
            self._bucket.delete(name_key(name), if_match=if_match)
        except (PreconditionFailed, KeyAbsent):
            return  # overwritten, or deleted, by another: what we copied is no longer there
        except OutcomeUnknown as error:
            raise CommitUnknown(
                f"whether {name.decode()!r} was deleted is not known ({error.__cause__}): look "
                "before you repeat it"
            ) from error
        self._catalog.forget(name)

    def _delete_below(self, prefix: bytes) -> int:
        deleted, after = 0, b""
        while names := self._catalog.names_page(prefix, after):
            deleting = [self._requests.submit(self._delete, name) for name in names]
            for future in deleting:
                future.result()
            deleted += len(names)
            after = names[-1]
        return deleted
