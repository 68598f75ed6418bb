"""Frames: a chunk as it is stored (see FORMAT.md)."""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

import xxhash

from castore.errors import FormatError
from castore.format import CHUNK_BYTES_LIMIT

CHUNK_ID_BYTES: Final = 16

CODEC_RAW: Final = 0
CODEC_ZSTD: Final = 1
CODEC_DELTA: Final = 2  # zstd, with the bytes of other chunks as its dictionary

FLAG_SHA256: Final = 1  # a SHA-256 of the raw bytes follows the frame's header
FLAG_ID_OF_SHA256: Final = 2  # the chunk id is that of the SHA-256, not of the raw bytes

FRAME_MAGIC: Final = b"CFRM"
_FRAME = struct.Struct("<4sBBHII16s")
_DELTA = struct.Struct("<BBHQ")
_DELTA_CHECKSUM = struct.Struct("<Q")  # the last of it
_BASE = struct.Struct("<16sI")
_PLAIN_DELTA = struct.Struct("<32sBBHQ")
FRAME_HEADER_BYTES: Final = _FRAME.size  # 32
SHA256_BYTES: Final = 32
BASES_MAX: Final = 4  # of a delta
FRAME_HEAD_BYTES_MAX: Final = (
    FRAME_HEADER_BYTES + SHA256_BYTES + _DELTA.size + BASES_MAX * _BASE.size
)  # before the payload

_checksum = xxhash.xxh3_64_intdigest


class Delta(NamedTuple):
    """What the frame of a delta says besides: the chunks that it decodes with, by id and size, in
    their order, and a checksum of the whole frame, by which it is known to be intact while its
    bases are not at hand."""

    bases: tuple[tuple[bytes, int], ...]
    checksum: int


class FrameHeader(NamedTuple):
    """A chunk as stored: the header says how its payload decodes, and to what."""

    codec: int
    flags: int
    raw_bytes: int
    payload_bytes: int
    chunk_id: bytes
    sha256: bytes = b""
    delta: Delta | None = None

    @property
    def header_bytes(self) -> int:
        fixed = delta_header_bytes(len(self.delta.bases)) if self.delta else FRAME_HEADER_BYTES
        return fixed + len(self.sha256)

    @property
    def bases(self) -> tuple[bytes, ...]:
        """The ids of the chunks that it decodes with."""
        return tuple(chunk_id for chunk_id, _ in self.delta.bases) if self.delta else ()


def delta_header_bytes(bases: int) -> int:
    """Of a frame without flags that is a delta of so many."""
    return FRAME_HEADER_BYTES + _DELTA.size + bases * _BASE.size


def encode_frame_header(header: FrameHeader) -> bytes:
    head = _FRAME.pack(
        FRAME_MAGIC,
        header.codec,
        header.flags,
        0,
        header.raw_bytes,
        header.payload_bytes,
        header.chunk_id,
    )
    delta = header.delta
    if delta is None:
        return head + header.sha256
    fixed = _DELTA.pack(len(delta.bases), 0, 0, delta.checksum)
    return b"".join([head, header.sha256, fixed, *(_BASE.pack(*base) for base in delta.bases)])


def encode_delta_header(header: FrameHeader, payload: bytes) -> bytes:
    """With the checksum of the frame that has this payload; the header's own is 0."""
    assert header.delta is not None
    assert not header.delta.checksum
    unsummed = encode_frame_header(header)
    checksum = _DELTA_CHECKSUM.pack(_checksum(payload, _checksum(unsummed)))
    at = FRAME_HEADER_BYTES + len(header.sha256) + _DELTA.size - _DELTA_CHECKSUM.size
    return b"".join([unsummed[:at], checksum, unsummed[at + len(checksum) :]])


def delta_checksum(header: FrameHeader, payload: bytes | memoryview) -> int:
    """What `header.delta.checksum` is to be, with this payload."""
    assert header.delta is not None
    unsummed = header._replace(delta=header.delta._replace(checksum=0))
    return _checksum(payload, _checksum(encode_frame_header(unsummed)))


def plain_frame_header(codec: int, raw_bytes: int, payload_bytes: int, chunk_id: bytes) -> bytes:
    """The only header that a frame without flags can have, to be compared with."""
    return _FRAME.pack(FRAME_MAGIC, codec, 0, 0, raw_bytes, payload_bytes, chunk_id)


def plain_delta_bases(
    frame: bytes | memoryview, raw_bytes: int, chunk_id: bytes
) -> list[tuple[bytes, int]] | None:
    """Id and size of each base of a frame that is a delta without flags, and this chunk's: as
    `decode_frame_header` has them, in a third of the time. None for any other frame, or one that is
    malformed."""
    if len(frame) < _PLAIN_DELTA.size:
        return None
    head, count, zero, more, _ = _PLAIN_DELTA.unpack_from(frame)
    payload_bytes = len(frame) - _PLAIN_DELTA.size - count * _BASE.size
    if zero or more or not 0 < count <= BASES_MAX or not 0 <= payload_bytes <= raw_bytes:
        return None
    if head != plain_frame_header(CODEC_DELTA, raw_bytes, payload_bytes, chunk_id):
        return None
    return list(_BASE.iter_unpack(frame[_PLAIN_DELTA.size : len(frame) - payload_bytes]))


def decode_frame_header(frame: bytes | memoryview) -> FrameHeader:
    """The header at the start of `frame`, which may go on past the frame's payload."""
    try:
        magic, codec, flags, reserved, raw_bytes, payload_bytes, chunk_id = _FRAME.unpack_from(
            frame
        )
    except struct.error as error:
        raise FormatError(f"frame is cut short at {len(frame)} bytes") from error
    if magic != FRAME_MAGIC:
        raise FormatError("frame does not start with its magic")
    if codec > CODEC_DELTA or flags & ~3 or reserved:
        raise FormatError(f"frame has unknown codec {codec} or flags {flags:#x}")
    if not 0 < raw_bytes <= CHUNK_BYTES_LIMIT + 256 or payload_bytes > raw_bytes:
        raise FormatError(f"frame claims {raw_bytes} raw and {payload_bytes} stored bytes")
    if codec == CODEC_RAW and payload_bytes != raw_bytes:
        raise FormatError(f"raw frame claims {raw_bytes} raw and {payload_bytes} stored bytes")
    sha256 = b""
    if flags & FLAG_SHA256:
        sha256 = bytes(frame[FRAME_HEADER_BYTES : FRAME_HEADER_BYTES + SHA256_BYTES])
        if len(sha256) != SHA256_BYTES:
            raise FormatError(f"frame is cut short at {len(frame)} bytes")
    elif flags & FLAG_ID_OF_SHA256:
        raise FormatError("frame has the id of a SHA-256, and no SHA-256")
    at = FRAME_HEADER_BYTES + len(sha256)
    delta = _decode_delta(frame[at : at + _DELTA.size + BASES_MAX * _BASE.size], codec)
    return FrameHeader(codec, flags, raw_bytes, payload_bytes, chunk_id, sha256, delta)


def _decode_delta(raw: bytes | memoryview, codec: int) -> Delta | None:
    if codec != CODEC_DELTA:
        return None
    if len(raw) < _DELTA.size:
        raise FormatError("frame of a delta is cut short")
    count, zero, more, checksum = _DELTA.unpack_from(raw)
    if not 0 < count <= BASES_MAX or zero or more:
        raise FormatError(f"frame of a delta claims {count} bases")
    end = _DELTA.size + count * _BASE.size
    if len(raw) < end:
        raise FormatError("frame of a delta is cut short in its bases")
    bases = tuple(_BASE.iter_unpack(raw[_DELTA.size : end]))
    if not all(0 < size <= CHUNK_BYTES_LIMIT + 256 for _, size in bases):
        raise FormatError("frame of a delta claims bases of sizes that no chunk has")
    return Delta(bases, checksum)
