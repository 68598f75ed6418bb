"""A new object that begins as one that is there: its chunks are taken over, and no data moves.

Cuts depend on a chunk's own bytes and on where the object ends. So all chunks but the last are what
they would be in the longer object; only that one is read, and cut again with what follows.
"""

from __future__ import annotations

from castore.errors import NameNotFound
from castore.format.index import Record
from castore.stream.bases import FindAlignment
from castore.stream.chunkreader import Pinned
from castore.stream.reader import Reader
from castore.stream.session import WriteSession
from castore.stream.writer import ObjectWriter


def begin_as(
    session: WriteSession, reader: Reader, name: bytes, align: FindAlignment | None
) -> tuple[ObjectWriter, Record | None]:
    """A writer that begins as the object there is, and that object's record; a new writer and None
    where there is no such name. `align` as ObjectWriter's.

    Chunks that can't be relied on any more, such as those of packs that a collector is about to
    remove, are read and stored anew. Raises ChunkCorrupt, PackMissing.
    """
    writer = ObjectWriter(session, align=align)
    try:
        pinned = reader.pin(name)
    except NameNotFound:
        return writer, None
    try:
        _take_over(writer, reader, pinned)
    except BaseException:
        writer.abandon()
        raise
    return writer, pinned.record


def _take_over(writer: ObjectWriter, reader: Reader, pinned: Pinned) -> None:
    size = pinned.record.size
    if pinned.record.is_inline:
        writer.write(reader.inline(pinned.record))
        return
    for segment in pinned.manifest:
        extents = list(segment)
        last = extents.pop() if segment.end == size else None
        if extents:
            writer.adopt(extents, lambda extent: reader.chunk(pinned, extent))
        if last is not None:
            writer.write(reader.chunk(pinned, last))
