"""The body of a request as botocore's HTTP session takes it.

Sent as one piece, a body must get through within the time that is meant for connecting (a socket's
timeout is for the whole of a `sendall`): 16 MiB fail on a slow line for no other reason. So a large
one is a file, which is sent block by block, each with the time to itself. That also saves a copy.
"""

from __future__ import annotations

import base64
import hashlib
import os
import zlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import TypeAlias

from castore.s3.client.deadline import note_moved

ONE_PIECE_MAX = 1 << 16

Body: TypeAlias = "bytes | Sequence[bytes | bytearray | memoryview]"


class Buffers:
    """Buffers one behind the other, as a seekable file."""

    def __init__(self, buffers: Sequence[bytes | bytearray | memoryview]) -> None:
        self._views = [memoryview(buffer).cast("B") for buffer in buffers]
        self._ends = list(accumulate(len(view) for view in self._views))
        self._at = 0

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __iter__(self) -> Iterator[memoryview]:
        return iter(self._views)

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: len(self)}[whence]
        self._at = min(max(base + offset, 0), len(self))
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        left = len(self) - self._at
        if size is not None and size >= 0:
            left = min(left, size)
        found = []
        index = bisect_right(self._ends, self._at)
        while left > 0:
            view = self._views[index]
            begin = self._at - (self._ends[index] - len(view))
            part = view[begin : begin + left]
            found.append(part)
            self._at += len(part)
            left -= len(part)
            index += 1
        block = b"".join(found)
        note_moved(len(block))  # it is read as it is sent
        return block


def payload(body: Body) -> tuple[bytes | Buffers, int]:
    """What is sent, and its size."""
    buffers = [body] if isinstance(body, bytes) else body
    size = sum(memoryview(buffer).nbytes for buffer in buffers)
    if size > ONE_PIECE_MAX:
        return Buffers(buffers), size
    return (body if isinstance(body, bytes) else b"".join(buffers)), size


def checksum_header(kind: str, body: bytes | Buffers) -> dict[str, str]:
    """The parameter that has the server check what arrives: "md5", which every server
    knows, and which buckets that retain objects demand; "crc32", faster, and of S3 itself; or
    "none"."""
    parts = [body] if isinstance(body, bytes) else body
    if kind == "md5":
        digest = hashlib.md5(usedforsecurity=False)
        for part in parts:
            digest.update(part)
        return {"ContentMD5": base64.b64encode(digest.digest()).decode()}
    if kind == "crc32":
        crc = 0
        for part in parts:
            crc = zlib.crc32(part, crc)
        return {"ChecksumCRC32": base64.b64encode(crc.to_bytes(4, "big")).decode()}
    return {}
