"""Reading a pack with no trust in it: its header, its footer, the header of every frame.

A pack is a function `read(begin, end) -> bytes` here, of a local file or of an S3 object; what it
gives may be shorter than asked for at the pack's end. Nothing is mapped: a page that the disk can't
read is an error of a read, not a signal.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from castore.check.frames import Frames
from castore.errors import FormatError, UnsupportedFormat, fault_of
from castore.format import CHUNK_BYTES_LIMIT
from castore.format.frame import (
    FRAME_HEAD_BYTES_MAX,
    FRAME_HEADER_BYTES,
    FRAME_MAGIC,
    decode_frame_header,
)
from castore.format.pack import (
    PACK_HEADER_BYTES,
    PACK_TRAILER_BYTES,
    PackEntry,
    decode_footer,
    decode_pack_header,
    decode_trailer,
    encode_footer,
    entry_of,
)
from castore.stream.coalesce import coalesce
from castore.stream.codec import check_frame

Read: TypeAlias = Callable[[int, int], bytes]

GAP_BYTES = 64 << 10  # read, rather than asking twice
SPAN_BYTES_MAX = 8 << 20
_HEAD = FRAME_HEAD_BYTES_MAX
_BLOCK_BYTES = 1 << 20
_SECTOR_BYTES = 512  # a disk writes each as a whole, or not
_READ_ERRORS = (
    (errno.EIO, errno.EBADMSG, errno.EUCLEAN) if hasattr(errno, "EUCLEAN") else (errno.EIO,)
)


@dataclass(slots=True)
class PackReading:
    """What a pack holds. `frames` are those whose headers are whole; `bad` are the others that are
    known of, and those whose bytes turned out not to be their chunk's, by their offsets; `odd` are
    deltas that make their chunks, though they are not as they were written; `faults` is what else
    is wrong with the pack. An `unsealed` pack has no whole footer, as its writer
    lives, or ended without; its last bytes, from `end` on, are then nobody's. All is accounted for
    up to `intact`: where the frames end, or where the pack does, if its footer is whole. `surplus`
    bytes are behind a footer, where castore writes nothing. With a damaged header it is not
    `known` for the pack that it is: a local store reads nothing from it."""

    pack_id: bytes
    size: int
    frames: Frames = field(default_factory=Frames)
    bad: dict[int, str] = field(default_factory=dict)
    odd: dict[int, str] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    unsealed: bool = False
    end: int = 0
    intact: int = 0
    surplus: int = 0
    known: bool = True

    @property
    def damaged(self) -> bool:
        return bool(self.bad or self.odd or self.faults)

    def frame_at(self, offset: int) -> PackEntry | None:
        return None if offset in self.bad else self.frames.at(offset)


def file_reader(fd: int) -> Read:
    """Of a file, whose unreadable parts come back as nothing."""

    def read(begin: int, end: int) -> bytes:
        try:
            return os.pread(fd, end - begin, begin)
        except OSError as error:
            if error.errno in _READ_ERRORS:
                return b""
            raise

    return read


def read_pack(
    read: Read, size: int, *, store_id: bytes, pack_id: bytes, seed: int, headers: bool
) -> PackReading:
    """Without `headers` the frames' own are not read where there is a footer that tells of them."""
    reading = PackReading(pack_id, size)
    # What is wrong is read once more: it may have been damaged on its way.
    own = store_id, pack_id
    fault = _pack_header_fault(read, own) and _pack_header_fault(read, own)
    if fault:
        reading.faults.append(fault)
    reading.known = not fault
    entries = _footer(read, size)
    if entries is None:
        entries = _footer(read, size)
    if entries is not None:
        _compare(reading, read, entries, headers=headers)
    else:
        _scan(reading, read, seed)
    return reading


def _pack_header_fault(read: Read, own: tuple[bytes, bytes]) -> str:
    try:
        if decode_pack_header(read(0, PACK_HEADER_BYTES)) == own:
            return ""
    except (FormatError, UnsupportedFormat) as error:
        return str(error)
    return "its header is another pack's, or another store's"


def _footer(read: Read, size: int) -> list[PackEntry] | None:
    """What the footer lists; None where there is none that is whole."""
    try:
        offset, _ = decode_trailer(read(max(0, size - PACK_TRAILER_BYTES), size), size)
        return decode_footer(read(offset, size), size)
    except FormatError:
        return None


def _compare(reading: PackReading, read: Read, entries: list[PackEntry], *, headers: bool) -> None:
    """The frames' headers with the footer's entries, which have a checksum."""
    at = PACK_HEADER_BYTES
    for entry in entries:
        if entry.offset != at:
            reading.faults.append(f"its footer leaves a gap at byte {at}")
        at = entry.offset + entry.stored_bytes
        fault = headers and _header_fault(read, entry) and _header_fault(read, entry)
        if fault:
            reading.bad[entry.offset] = fault
        reading.frames.append(entry)
    reading.end, reading.intact = at, reading.size


def _header_fault(read: Read, entry: PackEntry) -> str:
    try:
        header = decode_frame_header(read(entry.offset, entry.offset + _HEAD))
    except FormatError as error:
        return str(error)
    if entry_of(header, entry.offset) != entry:
        return "the frame's header is not what the footer says"
    return ""


# ---------------------------------------------------------------- a pack without a footer


def _scan(reading: PackReading, read: Read, seed: int) -> None:
    """Frame by frame; over what is damaged, to the next frame that is whole."""
    at, size = PACK_HEADER_BYTES, reading.size
    while at < size:
        entry = _frame(read, at, size) or _frame(read, at, size)
        if entry is None:
            found = _next_frame(read, at + 1, size, seed)
            if found is None:
                break
            reading.bad[at] = "the frame's header is damaged"
            entry = found
        reading.frames.append(entry)
        at = entry.offset + entry.stored_bytes
    reading.end = reading.intact = min(at, size)
    _judge_tail(reading, read)


def _judge_tail(reading: PackReading, read: Read) -> None:
    """What follows the last frame: nothing, or what a writer that died left of a frame or of the
    footer, is no damage; a footer that was written and is not what it was is."""
    reading.unsealed = True
    left = reading.size - reading.end
    if reading.size < PACK_HEADER_BYTES:
        return
    footer = encode_footer(list(reading.frames), reading.end)
    found = read(reading.end, reading.end + len(footer))
    if not left or _is_torn(read, reading.end, reading.size):
        return
    if not reading.bad and found == footer:
        reading.surplus = left - len(footer)
    elif reading.bad or (left == len(footer) and not _is_part(found, footer, reading.end)):
        reading.faults.append("its footer is damaged")
        reading.unsealed = False
    elif left > len(footer):
        reading.bad[reading.end] = "the frame's header is damaged"


def _is_part(found: bytes, written: bytes, begin: int) -> bool:
    """Whether this is what was written at the offset `begin`, but for zeros where a disk left off,
    or lost power before it had all of it: at the end, or in whole sectors anywhere."""
    if written.startswith(found.rstrip(b"\0")):
        return True
    cuts = [0, *range(-begin % _SECTOR_BYTES or _SECTOR_BYTES, len(written), _SECTOR_BYTES)]
    ends = [*cuts[1:], len(written)]
    return all(
        found[at:end] == written[at:end] or not any(found[at:end])
        for at, end in zip(cuts, ends, strict=True)
    )


def _is_torn(read: Read, begin: int, end: int) -> bool:
    """Whether this is the beginning of a frame, or nothing but zeros."""
    head = read(begin, min(end, begin + _HEAD))
    if head[: len(FRAME_MAGIC)] == FRAME_MAGIC[: len(head)]:
        if len(head) < FRAME_HEADER_BYTES:
            return True
        try:
            header = decode_frame_header(head.ljust(_HEAD, b"\0"))
        except FormatError:
            return False
        return begin + header.header_bytes + header.payload_bytes > end
    return all(
        not any(read(at, min(at + _BLOCK_BYTES, end))) for at in range(begin, end, _BLOCK_BYTES)
    )


def _frame(read: Read, at: int, size: int) -> PackEntry | None:
    try:
        header = decode_frame_header(read(at, min(at + _HEAD, size)))
    except FormatError:
        return None
    entry = entry_of(header, at)
    return None if at + entry.stored_bytes > size else entry


def _next_frame(read: Read, begin: int, size: int, seed: int) -> PackEntry | None:
    """The first frame at or after `begin` whose bytes are its chunk's: a header alone may be found
    in a chunk's bytes, too."""
    overlap = len(FRAME_MAGIC) - 1
    limit = min(size, begin + CHUNK_BYTES_LIMIT + _HEAD + 256)
    while begin < limit:
        block = read(begin, min(begin + _BLOCK_BYTES, size))
        i = block.find(FRAME_MAGIC)
        while i >= 0:
            entry = _frame(read, begin + i, size)
            if entry is not None and is_whole(read, entry, seed):
                return entry
            i = block.find(FRAME_MAGIC, i + 1)
        if len(block) <= overlap:
            return None
        begin += len(block) - overlap
    return None


def is_whole(read: Read, entry: PackEntry, seed: int) -> bool:
    return frame_fault_at(read, entry, seed) == ""


def frames_of(read: Read, entries: Sequence[PackEntry]) -> list[bytes]:
    """Their bytes, neighbours read together; of an unreadable part each by itself."""
    ranges = [(entry.offset, entry.offset + entry.stored_bytes) for entry in entries]
    frames = [b""] * len(entries)
    for span in coalesce(ranges, gap_bytes=GAP_BYTES, span_bytes_max=SPAN_BYTES_MAX):
        block = read(span.begin, span.end)
        for part in span.parts:
            begin, end = ranges[part]
            whole = len(block) == span.end - span.begin
            frames[part] = (
                block[begin - span.begin : end - span.begin] if whole else read(begin, end)
            )
    return frames


def frame_fault_at(read: Read, entry: PackEntry, seed: int) -> str:
    """What is wrong with the bytes of a frame, read by itself; see `frame_fault`."""
    return frame_fault(read(entry.offset, entry.offset + entry.stored_bytes), entry, seed)


def frame_fault(frame: bytes | memoryview, entry: PackEntry, seed: int) -> str:
    """What is wrong with a frame's bytes; empty if they are its chunk's."""
    return fault_of(check_frame, frame, entry.chunk_id, entry.raw_bytes, seed)
