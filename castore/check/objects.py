"""One object's manifest against the packs, whichever kind of store holds both. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple

from castore.check.packs import PackReading
from castore.errors import FormatError, InvalidName
from castore.format.config import StoreConfig
from castore.format.index import ChunkRow, Record
from castore.format.pack import PackEntry
from castore.format.segment import decode_segment
from castore.model import Extent, StoredChunk, encode_name
from castore.stream.codec import ChunksEtag, decode_inline
from castore.stream.etags import is_etag_of
from castore.wording import counted


class Faulty(NamedTuple):
    """What is wrong with an object: its manifest, or its record (no chunk), or the frame of a chunk
    that it needs."""

    what: str
    chunk: StoredChunk | None = None
    missing: bool = False  # and not damaged
    part: Literal["manifest", "record"] = "manifest"


def name_fault(name: bytes) -> str:
    """Why no object can have this name; empty if one can."""
    try:
        encode_name(name.decode())
    except UnicodeDecodeError:
        return "it is not UTF-8"
    except InvalidName as error:
        return str(error)
    return ""


def inline_fault(record: Record, config: StoreConfig) -> str:
    try:
        raw = decode_inline(record.codec, record.inline, record.size)
    except FormatError as error:
        return str(error)
    return "" if is_etag_of(raw, record.etag, config) else "its bytes do not match its etag"


def manifest_faults(
    record: Record, raw_segments: Iterable[bytes], packs: dict[bytes, PackReading], seed: int
) -> Iterator[Faulty]:
    """All that is wrong with an object that has extents: the segments must decode, follow each
    other, and add up to what the record says, and each extent's frame be in its pack."""
    end = chunks = 0
    etag = ChunksEtag(seed)
    whole = True
    for raw in raw_segments:
        try:
            segment = decode_segment(raw, manifest=record.manifest)
            if segment.begin != end:
                yield Faulty(f"a segment begins at byte {segment.begin}, not {end}")
                whole = False
            for extent in segment:
                fault = extent_fault(extent, packs)
                if fault is not None:
                    yield fault
                etag.update(extent.chunk_id)
                chunks += 1
            end = segment.end
        except FormatError as error:
            yield Faulty(str(error))
            whole = False
            break
    if whole and (end, chunks) != (record.size, record.chunks):
        yield Faulty(
            f"its segments have {counted(end, 'byte')} in {counted(chunks, 'chunk')}, not "
            f"{record.size:,} in {record.chunks:,}"
        )
    elif whole and not etag.matches(record.etag):
        # How many bytes are stored may have changed: a collector leads extents to another frame
        # of the same chunk, which another level may have made.
        yield Faulty("its segments do not match its etag")


def extent_fault(extent: Extent, packs: dict[bytes, PackReading]) -> Faulty | None:
    """What is wrong with the frame of an extent, or with one that it decodes with."""
    for chunk in (extent.stored, *extent.location.bases):
        fault = chunk_fault(chunk.chunk_id, ChunkRow.of(chunk), packs)
        if fault is not None:
            what, is_missing = fault
            return Faulty(what, chunk, missing=is_missing)
    return None


def chunk_fault(
    chunk_id: bytes, row: ChunkRow, packs: dict[bytes, PackReading]
) -> tuple[str, bool] | None:
    """What is wrong with one frame, and whether it is missing, and not damaged; None if it is in
    its pack as the row says."""
    raw_bytes, (pack_id, offset, stored_bytes, _), bases = row
    pack = packs.get(pack_id)
    if pack is None:
        return f"pack {pack_id.hex()} is missing", True
    if offset in pack.bad:
        return pack.bad[offset], False
    entry = pack.frames.at(offset)
    if entry == PackEntry(chunk_id, offset, stored_bytes, raw_bytes, bases):
        return None
    if entry is None and offset + stored_bytes > pack.end:
        return "the pack ends before it", True
    return "there is no such frame", False
