"""An object's extents on their way into segments, and what its record says of them."""

from __future__ import annotations

import time

from castore.format.index import Record
from castore.format.segment import SegmentBuilder
from castore.model import Location
from castore.stream.codec import ChunksEtag, chunk_id_of, encode_inline
from castore.stream.operations import Draft
from castore.stream.session import WriteSession


class DraftBuilder:
    """Takes one object's chunks, in order, once each has its place."""

    def __init__(self, session: WriteSession) -> None:
        self.draft = Draft()
        self.chunks = 0
        self._session = session
        self._segment = SegmentBuilder(0)
        self._etag = ChunksEtag(session.config.seed)
        self._deltas = 0
        self._stored_bytes = 0

    def append(self, end: int, chunk_id: bytes, at: Location) -> None:
        self._segment.append(end, chunk_id, at)
        self._etag.update(chunk_id)
        self.chunks += 1
        self._deltas += bool(at.bases)
        self._stored_bytes += at.stored_bytes
        if self._segment.full:
            self._close_segment(next_begin=end)

    def finish(self, size: int, mode: int) -> Record:
        """The record of the object, of `size` bytes. Nothing is visible yet."""
        self._close_segment(next_begin=size)
        return Record(
            size=size,
            mtime_ns=time.time_ns(),
            mode=mode,
            etag=self._etag.digest(),
            stored_bytes=self._stored_bytes,
            chunks=self.chunks,
            deltas=self._deltas,
        )

    def _close_segment(self, *, next_begin: int) -> None:
        segment = self._segment
        if len(segment):
            self._segment = SegmentBuilder(next_begin)
            self._session.add_segment(self.draft, segment)


def inline_record(session: WriteSession, raw: bytes, mode: int) -> Record:
    """The record of an object that has its bytes in it."""
    codec, stored = encode_inline(raw, level=session.level)
    return Record(
        size=len(raw),
        mtime_ns=time.time_ns(),
        mode=mode,
        etag=chunk_id_of(raw, session.config.seed),
        stored_bytes=len(stored),
        codec=codec,
        inline=stored,
    )
