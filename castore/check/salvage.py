"""An object that can't be read in full, kept with all that is left of it.

It goes below `quarantine/`, as an object of the same size, with zeros where its bytes are lost, and
beside it a `.json` that says what it was called and which byte ranges these are. Its old name is
gone after that: what can't be read in full should not look as if it could.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from castore.errors import FormatError
from castore.format.index import Record
from castore.format.segment import Segment, decode_segment
from castore.model import NAME_BYTES_MAX, Extent
from castore.stream.codec import ChunksEtag, chunk_id_of
from castore.stream.operations import Draft, Publish
from castore.stream.session import WriteSession
from castore.stream.writer import ObjectWriter

PREFIX = b"quarantine/"
ZEROS = bytes(1 << 20)
HOLES_MAX = 10_000  # listed; the others are only counted

# The bytes of an extent's chunk from wherever an intact frame of it is; None if there is none.
Find = Callable[[Extent], bytes | memoryview | None]


@dataclass(slots=True)
class Holes:
    """Byte ranges, half-open, in order; neighbours are joined."""

    ranges: list[list[int]] = field(default_factory=list)
    bytes: int = 0

    def add(self, begin: int, end: int) -> None:
        self.bytes += end - begin
        if self.ranges and self.ranges[-1][1] == begin:
            self.ranges[-1][1] = end
        elif begin < end:
            self.ranges.append([begin, end])


def salvage(
    session: WriteSession,
    name: bytes,
    record: Record,
    segments: Iterable[tuple[int, bytes]],
    find: Find,
    why: str,
) -> tuple[bytes, bool]:
    """Publish what is left of an object, and where its holes are; the name that it has then, and
    whether nothing of it is lost. `segments` are (end offset, as stored), in order."""
    holes, found = Holes(), ChunksEtag(session.config.seed)
    writer = ObjectWriter(session)
    try:
        for part in _bytes_of(record.size, segments, find, holes, found):
            writer.write(part)
        saved, draft = writer.finish(record.mode)
        target = quarantine_name(name, saved)
        operations = [Publish(target, saved, draft)]
        # The same bytes are cut into the same chunks: equal etags, equal objects. Of one that has
        # lost nothing but zeros, nothing is lost. An object of earlier versions may have another
        # etag than the same bytes have now: all of its chunks are there, or not.
        whole = saved.etag == record.etag or (not holes.bytes and found.matches(record.etag))
        if not whole:
            told = _encoded(session, _description(name, record, holes, why))
            operations.append(Publish(target + b".json", *told))
        session.commit(operations)
        return target, whole
    finally:
        session.close()


def quarantine_name(name: bytes, saved: Record) -> bytes:
    """The same for the same bytes, so that a repair that is repeated does not put them there twice,
    and another for others: what was saved once is not replaced by what is left another time."""
    target = PREFIX + saved.etag[:4].hex().encode() + b"/" + name
    if len(target) + len(b".json") > NAME_BYTES_MAX:
        return hashed_name(name, saved)
    return target


def hashed_name(name: bytes, record: Record) -> bytes:
    """The same, where the name can't be part of it."""
    return PREFIX + record.etag[:4].hex().encode() + b"/" + chunk_id_of(name, 0).hex().encode()


def note(session: WriteSession, target: bytes, facts: dict[str, object]) -> None:
    """Publish a description by itself."""
    try:
        session.commit([Publish(target, *_encoded(session, facts))])
    finally:
        session.close()


def _bytes_of(
    size: int,
    segments: Iterable[tuple[int, bytes]],
    find: Find,
    holes: Holes,
    found: ChunksEtag,
) -> Iterator[bytes | memoryview]:
    """All of the object; `found` is of the chunks that are there."""
    at = 0

    def gap(end: int) -> Iterator[bytes]:
        nonlocal at
        if end > at:
            holes.add(at, end)
        while at < end:
            part = ZEROS[: end - at]
            at += len(part)
            yield part

    for end, raw in segments:
        for extent in _extents(raw):
            if extent.begin < at or extent.end > min(end, size):
                continue  # not where a damaged segment says
            chunk = find(extent)
            if chunk is not None and len(chunk) == extent.end - extent.begin:
                yield from gap(extent.begin)
                yield chunk
                found.update(extent.chunk_id)
                at = extent.end
    yield from gap(size)


def _extents(raw: bytes) -> Iterator[Extent]:
    """Those of a segment that may be damaged: each is checked by its chunk's id and size."""
    try:
        segment: Segment = decode_segment(raw, verify=False)
    except FormatError:
        return
    for i in range(len(segment)):
        try:
            yield segment.extent(i)
        except FormatError:
            continue


def _description(name: bytes, record: Record, holes: Holes, why: str) -> dict[str, object]:
    return {
        "name": name.decode(errors="backslashreplace"),
        "size": record.size,
        "mtime_ns": record.mtime_ns,
        "mode": record.mode,
        "etag": record.etag.hex(),
        "lost_bytes": holes.bytes,
        "lost_ranges": holes.ranges[:HOLES_MAX],
        "lost_ranges_more": max(0, len(holes.ranges) - HOLES_MAX),
        "why": why,
    }


def _encoded(session: WriteSession, facts: dict[str, object]) -> tuple[Record, Draft | None]:
    writer = ObjectWriter(session)
    writer.write(json.dumps(facts, indent=1).encode() + b"\n")
    return writer.finish(0o644)
