"""An object's extents on their way into segments, and what its record says of them."""

from __future__ import annotations

from castore.format.index import Record
from castore.format.segment import SegmentBuilder, SegmentOfOne
from castore.model import Location
from castore.stream.codec import ChunksEtag, chunk_id_of, encode_inline, etag_of_one
from castore.stream.etags import etag_of_chunks
from castore.stream.operations import Draft, now_ns
from castore.stream.session import WriteSession


class DraftBuilder:
    """Takes one object's chunks, in order, once each has its place."""

    def __init__(self, session: WriteSession, draft: Draft | None = None) -> None:
        self.draft = draft or Draft()
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
            self._session.add_segment(self.draft, self._segment)
            self._segment = SegmentBuilder(end)

    def finish(self, size: int, mode: int) -> Record:
        """The record of the object, of `size` bytes. Nothing is visible yet."""
        if len(self._segment):
            self._session.add_segment(self.draft, self._segment)
        return Record(
            size=size,
            mtime_ns=now_ns(),
            mode=mode,
            etag=self._etag.digest(),
            stored_bytes=self._stored_bytes,
            chunks=self.chunks,
            deltas=self._deltas,
        )


def one_chunk_record(
    session: WriteSession, draft: Draft, size: int, mode: int, chunk_id: bytes, at: Location
) -> Record:
    """What a DraftBuilder makes of one chunk that is no delta, with less ado."""
    session.add_segment(draft, SegmentOfOne(size, chunk_id, at))
    return Record(
        size=size,
        mtime_ns=now_ns(),
        mode=mode,
        etag=etag_of_one(chunk_id, session.config.seed),
        stored_bytes=at.stored_bytes,
        chunks=1,
    )


def inline_record(session: WriteSession, raw: bytes, mode: int) -> Record:
    """The record of an object that has its bytes in it."""
    codec, stored = encode_inline(raw, level=session.level)
    etag = chunk_id_of(raw, session.config.seed)
    if len(raw) > session.inline_bytes_max:
        etag = etag_of_chunks(raw, session.config, session.chunker)
    return Record(
        size=len(raw),
        mtime_ns=now_ns(),
        mode=mode,
        etag=etag,
        stored_bytes=len(stored),
        codec=codec,
        inline=stored,
    )
