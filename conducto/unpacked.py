"""What is inside an archive that is not trusted: a gzip stream, or a plain tar, which is what the
first Conducto kept under these names. What is given back is bounded, and so is what it costs."""

from __future__ import annotations

import zlib
from typing import BinaryIO

from conducto.errors import CacheRefused

GZIP_MAGIC = b"\x1f\x8b"
INPUT_BYTES = 64 << 10  # what follows a member is copied: small pieces keep many tiny members cheap
MEMBER_BYTES = 32 << 10  # what a gzip member counts for besides its content, which may be empty
_GZIP = 16 + zlib.MAX_WBITS


class Unpacked:
    """A stream of at most `bytes_max` bytes. `read` raises CacheRefused past them, and where the
    archive is damaged or cut short."""

    def __init__(self, archive: BinaryIO, bytes_max: int) -> None:
        self._archive = archive
        self._zipped = archive.read(2) == GZIP_MAGIC
        archive.seek(0)
        self._inflater = zlib.decompressobj(_GZIP)
        self._input = b""
        self._bytes_max = bytes_max
        self._bytes = 0

    def read(self, size: int) -> bytes:
        data = self._inflate(size) if self._zipped else self._archive.read(size)
        self._count(len(data))
        return data

    def _inflate(self, size: int) -> bytes:
        while size:
            if self._inflater.eof and not self._next_member():
                break
            if not self._input:
                self._input = self._archive.read(INPUT_BYTES)
                if not self._input:
                    raise CacheRefused("the archive is damaged or cut short: its gzip has no end")
            try:
                data = self._inflater.decompress(self._input, size)
            except zlib.error as error:
                raise CacheRefused(f"the archive is damaged or cut short: {error}") from error
            self._input = self._inflater.unconsumed_tail or self._inflater.unused_data
            if data:
                return data
        return b""

    def _next_member(self) -> bool:
        """Go on after the end of a member; False at the end of all. Zeros may follow the last."""
        while True:
            self._input = self._input.lstrip(b"\0")
            if self._input:
                break
            self._input = self._archive.read(INPUT_BYTES)
            if not self._input:
                return False
        self._count(MEMBER_BYTES)
        self._inflater = zlib.decompressobj(_GZIP)
        return True

    def _count(self, more: int) -> None:
        self._bytes += more
        if self._bytes > self._bytes_max:
            raise CacheRefused(f"the archive unpacks to more than {self._bytes_max} bytes")
