"""What is sent: several buffers as one file, its size and its checksum."""

from __future__ import annotations

import base64
import hashlib
import os
import zlib
from array import array
from io import BytesIO

import pytest

from castore.s3.client.body import ONE_PIECE_MAX, Buffers, checksum_header, payload
from castore.s3.client.deadline import BYTES_PER_SECOND_MIN, Deadline

PARTS = [b"", b"one", bytearray(b"two"), b"", memoryview(b"three"), b""]
WHOLE = b"onetwothree"


@pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 20, -1, None])
def test_buffers_are_read_as_one_file(size: int | None) -> None:
    ours, theirs = Buffers(PARTS), BytesIO(WHOLE)
    assert len(ours) == len(WHOLE)
    for begin in range(len(WHOLE) + 2):
        theirs.seek(begin)
        assert ours.seek(begin) == min(begin, len(WHOLE))
        for _ in range(2):
            assert ours.read(size) == theirs.read(size)
            assert ours.tell() == min(theirs.tell(), len(WHOLE))


def test_seeks_end_within_them() -> None:
    buffers = Buffers(PARTS)
    assert [buffers.seek(n, os.SEEK_END) for n in (0, -1, 1, -20)] == [11, 10, 11, 0]
    buffers.seek(5)
    assert [buffers.seek(n, os.SEEK_CUR) for n in (0, 2, -3, 20, -20)] == [5, 7, 4, 11, 0]
    assert buffers.seek(-1) == 0
    assert buffers.read() == WHOLE
    assert buffers.read() == b""
    assert buffers.seek(0) == 0
    assert buffers.read() == WHOLE, "it is sent again"
    assert (len(Buffers([])), Buffers([]).read()) == (0, b"")
    assert Buffers([memoryview(array("I", [1, 2]))]).read() == array("I", [1, 2]).tobytes()


def test_what_is_read_has_moved() -> None:
    """Its deadline is not that of a request of which nothing goes through."""
    with Deadline(0.0, decided=False) as deadline:
        buffers = Buffers([bytes(BYTES_PER_SECOND_MIN * 60)] * 2)
        assert deadline.left_s() == 0
        while buffers.read(1 << 20):
            """It is sent."""
        assert 60 < deadline.left_s() <= 120


def test_only_what_is_large_is_a_file() -> None:
    half = bytes(range(256)) * (ONE_PIECE_MAX // 512)
    small = half + half
    assert len(small) == ONE_PIECE_MAX
    assert payload(small)[0] is small
    assert payload([half, memoryview(half)]) == (small, ONE_PIECE_MAX)
    assert payload([]) == (b"", 0)
    for body in (small + b"1", [half, half, bytearray(b"1")]):
        sent, size = payload(body)
        assert isinstance(sent, Buffers)
        assert (sent.read(), size) == (small + b"1", ONE_PIECE_MAX + 1)
    words = memoryview(array("I", range(ONE_PIECE_MAX // 4)))
    assert payload([words]) == (words.tobytes(), ONE_PIECE_MAX)


def test_checksums() -> None:
    md5 = base64.b64encode(hashlib.md5(WHOLE).digest()).decode()
    crc = base64.b64encode(zlib.crc32(WHOLE).to_bytes(4, "big")).decode()
    for body in (WHOLE, Buffers(PARTS)):
        assert checksum_header("md5", body) == {"ContentMD5": md5}
        assert checksum_header("crc32", body) == {"ChecksumCRC32": crc}
        assert checksum_header("none", body) == {}
