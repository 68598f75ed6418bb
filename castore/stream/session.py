"""What one commit publishes: what a writer asks of the session of any kind of store."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from castore.errors import StoreIOError
from castore.format.config import StoreConfig
from castore.format.segment import NewSegment
from castore.model import Extent, Location, StoredChunk
from castore.stream.chunker import Chunker
from castore.stream.codec import (
    Frame,
    chunk_id_of,
    delta_frame,
    encode_frames,
    guarded_id,
    sha256_of,
)
from castore.stream.delta import encode_deltas
from castore.stream.etags import chunk_id_in
from castore.stream.operations import Draft, Operation
from castore.system.workers import Future, Workers

# A larger delta is dropped, and the plain frame begins the next generation. Eight releases each of
# Django, botocore, numpy and scipy take 176.6 MB of frames with this, 177.1 with 0.42, 179.4 with
# 0.6 and 180.2 with 0.5: what plain frames of one release take more is saved in the next ones.
DELTA_SHARE_MAX = 0.45  # of the plain frame
# A delta is kept without its plain frame being made if it is so small beside what that is likely to
# be, by what its bases took: compressing the chunk takes longer than all that makes the delta. With
# half of the most and a quarter, the same series take as many bytes, and first versions of them 5
# to 10 % more of the processor.
DELTA_SURE = DELTA_SHARE_MAX * 3 / 4
LIKELY_SHARE = 0.35  # of a chunk's bytes, that its frame takes
# Encoded by the caller: to hand so little to another thread, and to wait for it, takes longer.
ENCODE_HERE_BYTES_MAX = 64 << 10


class Base(NamedTuple):
    """A chunk whose frame is no delta, and its bytes. One of our `own` is a frame of this session,
    which may have no place yet."""

    chunk: StoredChunk
    raw: bytes | memoryview
    own: bool = False


class NewFrame(NamedTuple):
    """A chunk to be encoded and placed."""

    raw: bytes
    chunk_id: bytes
    sha256: bytes = b""  # in a store with a collision guard, where the id is made of it
    bases: Sequence[Base] = ()  # what it may be stored as a delta of, the best first
    level: int | None = None  # of compression, if it is not the session's

    def made_of(self, bases: Sequence[Base]) -> NewFrame:
        """The same with these bases. What it may be a delta of is asked for before it is known
        what can be relied on: a chunk that is there itself, and can't be, is none."""
        return self._replace(bases=[base for base in bases if base.chunk.chunk_id != self.chunk_id])


class Encoded(NamedTuple):
    """A frame to be placed, and where what it decodes with is."""

    frame: Frame
    bases: tuple[StoredChunk, ...] = ()


class Unlike:
    """How many small objects were put since the last that resembled another: where none does, fewer
    and fewer are looked at. Of a whole Store, as many are put alone."""

    def __init__(self) -> None:
        self.count = 0


class WriteSession(ABC):
    """All that one commit publishes. What a writer asks of any kind of store's session.

    Not for several threads at once.
    """

    inline_bytes_max: int  # objects up to this are in their record,
    inline_alone_bytes_max = 0  # or one of which no other is committed, up to this, if it is more
    lookahead_bytes = 0  # how far ahead `prefetch` is told; 0: never

    def __init__(
        self,
        workers: Workers,
        config: StoreConfig,
        chunker: Chunker,
        *,
        compression_level: int,
        deltas: bool = False,
    ) -> None:
        """With `deltas` new chunks may be stored as such."""
        self.config = config
        self.chunker = chunker
        self.level = compression_level
        self.deltas = deltas
        self.guarded = config.collision_guard is not None
        self.unlike = Unlike()  # the Store's, where it is of one
        self.is_one = False  # no more than one object will be committed
        self._workers = workers
        self._pid = os.getpid()

    def check_process(self) -> None:
        """Raises StoreIOError in a forked child: the packs, and the threads that encode for them,
        are the parent's."""
        if self._pid != os.getpid():
            raise StoreIOError(
                "a put that began before a fork can't go on in the child: begin it there"
            )

    def chunk_id(self, raw: bytes | memoryview) -> bytes:
        """The id of a chunk of this store."""
        return chunk_id_in(raw, self.config)

    def new_frame(self, raw: bytes, chunk_id: bytes | None = None) -> NewFrame:
        """A chunk to be encoded, by the id of these very bytes, which is `chunk_id` where that was
        taken of bytes that nobody can change."""
        sha256 = sha256_of(raw) if self.guarded else b""
        if sha256:
            chunk_id = guarded_id(sha256, self.config.seed)
        elif chunk_id is None:
            chunk_id = chunk_id_of(raw, self.config.seed)
        return NewFrame(raw, chunk_id, sha256)

    def expect_one(self) -> None:
        """No more than one object will be committed."""
        self.is_one = True

    @property
    def inline_limit(self) -> int:
        """Up to which an object of this commit is in its record."""
        return max(self.inline_bytes_max, self.inline_alone_bytes_max if self.is_one else 0)

    def expect_many(self) -> None:
        """Many chunks will be cut, and then looked up. For sessions that look ahead."""
        raise NotImplementedError("a session that prefetches nothing")

    def encode(self, chunks: list[NewFrame]) -> Future[list[Encoded]]:
        if sum(len(chunk.raw) for chunk in chunks) <= ENCODE_HERE_BYTES_MAX:
            return self._workers.run_here(_encode_all, chunks, self.level)
        return self._workers.submit(_encode_all, chunks, self.level)

    def prefetch(self, chunk_ids: Sequence[bytes], older: Sequence[Extent] = ()) -> None:
        """These will be looked up next. `older` is what lies where they are expected in an object
        that they may be deltas of, and `lookahead_bytes` behind that."""
        raise NotImplementedError("a session that prefetches nothing")

    @abstractmethod
    def look_up(self, chunk_ids: Sequence[bytes]) -> dict[bytes, Location]:
        """Which of the chunks need not be stored, and where they are."""

    def reliable(self, bases: Collection[StoredChunk]) -> Mapping[StoredChunk, StoredChunk]:
        """Those of the chunks that what is put may rely on, and each where it is by now."""
        return {}

    @abstractmethod
    def place(self, encoded: Sequence[Encoded]) -> None:
        """Give frames their places in a pack of ours. Two streams may both bring a chunk: what has
        a frame that is no delta stays there, as others may be deltas of it."""

    @abstractmethod
    def location(self, chunk_id: bytes) -> Location:
        """Where a chunk that this session placed is."""

    @abstractmethod
    def add_segment(self, draft: Draft, segment: NewSegment) -> None:
        """The object's next segment; its frames are placed."""

    @abstractmethod
    def drop(self, draft: Draft) -> None:
        """The object failed; what of it is stored already is the collector's."""

    @abstractmethod
    def commit(self, operations: Sequence[Operation]) -> int:
        """Publish, and let the packs go; how many names were deleted. Raises NameNotFound,
        NameExists, StoreFull, CommitUnknown."""

    @abstractmethod
    def close(self) -> None:
        """Let go of everything that was not committed. Idempotent."""


def _encode_all(chunks: list[NewFrame], level: int) -> list[Encoded]:
    deltas = _as_deltas(chunks)
    sure = [
        delta is not None and delta.frame.stored_bytes <= DELTA_SURE * _likely_bytes(delta)
        for delta in deltas
    ]
    plain = _plain_frames(
        [chunk for chunk, is_sure in zip(chunks, sure, strict=True) if not is_sure], level
    )
    return [
        _chosen(delta, plain.get(chunk.chunk_id))
        for chunk, delta in zip(chunks, deltas, strict=True)
    ]


def _plain_frames(chunks: list[NewFrame], level: int) -> dict[bytes, Frame]:
    """The frames of these, by their ids; `level` is that of those that have none of their own."""
    by_level: dict[int, list[NewFrame]] = {}
    for chunk in chunks:
        by_level.setdefault(level if chunk.level is None else chunk.level, []).append(chunk)
    return {
        frame.chunk_id: frame
        for its, those in by_level.items()
        for frame in encode_frames(
            [(chunk.raw, chunk.chunk_id, chunk.sha256) for chunk in those],
            level=its,
            id_of_sha256=bool(those[0].sha256),
        )
    }


def _chosen(delta: Encoded | None, plain: Frame | None) -> Encoded:
    """A delta, if it is worth what it costs to read. Where that is sure there is no plain frame."""
    if plain is None:
        assert delta is not None
        return delta
    if delta is not None and delta.frame.stored_bytes <= plain.stored_bytes * DELTA_SHARE_MAX:
        return delta
    return Encoded(plain)


def _likely_bytes(delta: Encoded) -> float:
    """Of the plain frame of a chunk that is mostly made of its bases, as a small delta is. A base
    that has no place yet is likely to take what others do."""
    stored = sum(
        base.location.stored_bytes or base.raw_bytes * LIKELY_SHARE for base in delta.bases
    )
    return delta.frame.raw_bytes * stored / sum(base.raw_bytes for base in delta.bases)


def _is_damaged(base: Base) -> bool:
    """Whether what it is mapped from was cut short since its bytes were checked: they may have been
    zeros as a delta was made of them."""
    return isinstance(base.raw, memoryview) and getattr(base.raw.obj, "damaged", False)


def _as_deltas(chunks: Sequence[NewFrame]) -> list[Encoded | None]:
    """Those of the chunks that can be one."""
    made_of = [chunk for chunk in chunks if chunk.bases]
    payloads = iter(encode_deltas([(it.raw, [base.raw for base in it.bases]) for it in made_of]))
    return [_as_delta(chunk, next(payloads)) if chunk.bases else None for chunk in chunks]


def _as_delta(chunk: NewFrame, payload: bytes | None) -> Encoded | None:
    if payload is None or any(map(_is_damaged, chunk.bases)):
        return None
    bases = tuple(base.chunk for base in chunk.bases)
    frame = delta_frame(
        payload,
        [base[:2] for base in bases],
        chunk.chunk_id,
        len(chunk.raw),
        sha256=chunk.sha256,
        id_of_sha256=bool(chunk.sha256),
    )
    return Encoded(frame, bases)
