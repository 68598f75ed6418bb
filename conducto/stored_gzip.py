"""A gzip stream that compresses nothing: stored blocks only (deflate's level 0), so that what is
inside stays visible to the store, which deduplicates and compresses better than gzip can.

gzip proper hides everything: from the first changed byte on, every byte after it differs. zlib's
own level 0 nearly does, too: it puts its 5-byte block headers wherever its buffer happens to end,
so that everything behind an insertion gets them in other places, and hardly a chunk (64 KiB on
average, about one header each) is the same as before. Here the content places them: a new block
begins where the caller says that one piece of content ends (`boundary`), and within a long piece
after a line whose checksum says so.

MB new to the store in the next version, in brackets after zstd -1, chunks of 64 KiB:

                                              plain tar   this        zlib's 0     gzip -6
    Django 5.1.1 -> 5.1.2 unpacked, 25 MB     7.1 (1.5)   7.0 (1.5)   20.0 (4.5)   all 5.0
    a CSV of 25 MB and a library of 10 MB,
    10 insertions of up to 20 KB              1.3 (0.4)   2.0 (0.5)   28.9 (8.1)   all 9.1
"""

from __future__ import annotations

import struct
import zlib
from typing import Protocol

BLOCK_BYTES_MAX = 65535  # of a stored block, by RFC 1951
BLOCK_BYTES_MIN = 16384  # of one that is ended by its content
LINE_BYTES = 32  # how much of a line's end decides
LINE_MASK = 0x3F  # one line in 64 ends a block
PENDING_BYTES_MAX = 1 << 20

# No name, no time: the same content gives the same bytes. 255: no particular operating system.
HEADER = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"
LAST_BLOCK = b"\x01\x00\x00\xff\xff"


class Sink(Protocol):
    def write(self, data: bytes, /) -> object: ...


class StoredGzip:
    """Write to `sink` as one gzip member. `close` ends it, and leaves the sink open."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._pending = bytearray(HEADER)  # encoded, not yet written
        self._content = b""  # not yet in a block: shorter than a block
        self._crc = 0
        self._size = 0

    def write(self, data: bytes) -> None:
        self._crc = zlib.crc32(data, self._crc)
        self._size += len(data)
        content = self._content + data if self._content else data
        begin = 0
        while len(content) - begin > BLOCK_BYTES_MAX:
            end = block_end(content, begin)
            self._append_block(content[begin:end])
            begin = end
        self._content = content[begin:]

    def boundary(self) -> None:
        """A piece of content ends here: blocks before and after it do not depend on each other."""
        if self._content:
            self._append_block(self._content)
            self._content = b""

    def close(self) -> None:
        self.boundary()
        self._pending += LAST_BLOCK
        self._pending += struct.pack("<II", self._crc, self._size & 0xFFFFFFFF)
        self._sink.write(bytes(self._pending))
        self._pending.clear()

    def _append_block(self, block: bytes) -> None:
        self._pending += struct.pack("<BHH", 0, len(block), len(block) ^ 0xFFFF)
        self._pending += block
        if len(self._pending) >= PENDING_BYTES_MAX:
            self._sink.write(bytes(self._pending))
            self._pending.clear()


def block_end(content: bytes, begin: int) -> int:
    """Where the block that starts at `begin` ends, more than BLOCK_BYTES_MAX before the end."""
    limit = begin + BLOCK_BYTES_MAX
    newline = content.find(b"\n", begin + BLOCK_BYTES_MIN, limit)
    while newline >= 0:
        end = newline + 1
        if not zlib.crc32(content[end - LINE_BYTES : end]) & LINE_MASK:
            return end
        newline = content.find(b"\n", end, limit)
    return limit
