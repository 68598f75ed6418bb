"""zstd, or raw where that does not pay: one chunk, or many by one call.

With a call for each chunk every thread lets go of the GIL, and waits for it again, for each: on two
cores a release of Django took 1.15 of the time. The frames are the same. What does many makes a
context of zstd's for each call, which takes 20 us: zstd asks what the processor can do, and a
virtual machine is slow to answer. So a few are done one by one.
"""

from __future__ import annotations

import threading
from array import array
from collections.abc import Sequence
from typing import TypeAlias

import zstandard

from castore.errors import FormatError
from castore.format.frame import CODEC_RAW, CODEC_ZSTD
from castore.stream.chunker import is_incompressible

Buffer: TypeAlias = bytes | bytearray | memoryview

SEVERAL = 4
_SEVERAL_AT_ONCE = "multi_compress_to_buffer" in zstandard.backend_features

_thread = threading.local()


def compress(raw: bytes, level: int) -> tuple[int, bytes]:
    """The codec, and the bytes as they are stored: raw where zstd does not pay."""
    if is_incompressible(raw):
        return CODEC_RAW, raw
    return _if_smaller(raw, compressor(level).compress(raw))


def compress_all(raws: Sequence[bytes], level: int) -> list[tuple[int, bytes]]:
    """The same of each, by one call."""
    hopeless = [is_incompressible(raw) for raw in raws]
    likely: list[Buffer]
    likely = [raw for raw, is_raw in zip(raws, hopeless, strict=True) if not is_raw]
    payloads = iter(zstd_frames(likely, level))
    return [
        (CODEC_RAW, raw) if is_raw else _if_smaller(raw, next(payloads))
        for raw, is_raw in zip(raws, hopeless, strict=True)
    ]


def zstd_frames(raws: list[Buffer], level: int) -> list[bytes]:
    """Each as a zstd frame; several by one call, where that can be."""
    if len(raws) < SEVERAL or not _SEVERAL_AT_ONCE:
        return [compressor(level).compress(raw) for raw in raws]
    frames = compressor(level).multi_compress_to_buffer(raws)
    return [frames[i].tobytes() for i in range(len(frames))]


def compressor(level: int) -> zstandard.ZstdCompressor:
    """This thread's."""
    by_level: dict[int, zstandard.ZstdCompressor]
    by_level = _thread.__dict__.setdefault("compressors", {})
    found = by_level.get(level)
    if found is None:
        found = by_level[level] = zstandard.ZstdCompressor(level=level)
    return found


def _if_smaller(raw: bytes, payload: bytes) -> tuple[int, bytes]:
    if len(payload) > len(raw) - len(raw) // 32:
        return CODEC_RAW, raw
    return CODEC_ZSTD, payload


def decompressor() -> zstandard.ZstdDecompressor:
    """This thread's."""
    try:
        found: zstandard.ZstdDecompressor = _thread.decompressor
    except AttributeError:
        found = _thread.decompressor = zstandard.ZstdDecompressor()
    return found


def decompress(payload: Buffer, raw_bytes: int) -> bytes:
    """Raises FormatError unless it is a zstd frame of exactly so many bytes."""
    try:
        # The size that the frame claims is what zstandard would allocate.
        if zstandard.frame_content_size(payload) != raw_bytes:
            raise FormatError(f"zstd frame does not hold {raw_bytes} bytes")
        raw: bytes = decompressor().decompress(payload)
    except zstandard.ZstdError as error:
        raise FormatError(f"zstd frame does not decode: {error}") from error
    if len(raw) != raw_bytes:
        raise FormatError(f"zstd frame holds {len(raw)} bytes, not {raw_bytes}")
    return raw


def decompress_all(payloads: list[Buffer], sizes: Sequence[int]) -> list[bytes]:
    """What each of these zstd frames decompresses to, by one call, with how many bytes each is to
    be; nothing if any fails, or they are few, or where it takes a call for each: that is for
    `decompress` then."""
    if len(payloads) < SEVERAL or not _SEVERAL_AT_ONCE:
        return []
    try:
        # What a frame claims has to be right, though here nothing is allocated for it.
        if [*map(zstandard.frame_content_size, payloads)] != [*sizes]:
            return []
        wanted = memoryview(array("Q", sizes))
        raws = decompressor().multi_decompress_to_buffer(payloads, decompressed_sizes=wanted)
    except zstandard.ZstdError:
        return []
    return [raws[i].tobytes() for i in range(len(payloads))]
