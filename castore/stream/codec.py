"""Chunks to frames and back.

A frame is zstd where that pays and raw where it does not: a chunk whose sampled order-0 entropy
says that it is already compressed or random skips zstd, and a zstd frame that saves under 1/32 is
dropped, because a raw frame is served straight from the mapped pack. Level 1 by default: on chunks
of 64 KiB the negative levels are no faster, and far worse on binary data.

A frame may be a delta of other chunks, its bases (see `delta`). The frame of a base is no delta
itself. Where the bases are not at hand, the checksum that such a frame has tells whether it is
intact.

Every decode is checked twice against what the index expects: the length before any memory is
taken for it, and the chunk id after.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import xxhash

from castore.errors import FormatError
from castore.format.frame import (
    CODEC_DELTA,
    CODEC_RAW,
    CODEC_ZSTD,
    FLAG_ID_OF_SHA256,
    FLAG_SHA256,
    FRAME_HEADER_BYTES,
    Delta,
    FrameHeader,
    decode_frame_header,
    delta_checksum,
    delta_header_bytes,
    encode_delta_header,
    encode_frame_header,
    plain_delta_bases,
    plain_frame_header,
)
from castore.format.index import INLINE_BYTES_LIMIT
from castore.model import FrameKind
from castore.stream.compression import Buffer, compress, compress_all, decompress, decompress_all
from castore.stream.delta import decode_delta

ETAG_SEED = 0x9E3779B97F4A7C15
# Bytes of a journal's block. What is smaller is of one small object, whose bytes are compressed.
BLOCK_COMPRESS_MIN = 8192

# Gives the bytes of a base, by its chunk's id and size. Raises FormatError where it can't.
BaseBytes: TypeAlias = Callable[[bytes, int], bytes | memoryview]

_digest = xxhash.xxh3_128_digest


class Frame(NamedTuple):
    """A chunk ready to be written: `head` then `payload`."""

    chunk_id: bytes
    raw_bytes: int
    head: bytes
    payload: bytes
    sha256: bytes = b""
    bases: tuple[bytes, ...] = ()  # the ids of the chunks that a delta decodes with

    @property
    def stored_bytes(self) -> int:
        return len(self.head) + len(self.payload)

    @property
    def kind(self) -> FrameKind:
        """See StoredChunk.kind."""
        return self.chunk_id, self.bases


def chunk_id_of(raw: bytes | memoryview, seed: int) -> bytes:
    """xxh3-128 of the raw bytes, seeded with the store's seed, in canonical byte order."""
    return _digest(raw, seed)


class ChunksEtag:
    """The etag of an object that has chunks: of their ids, in order. Its seed is another than that
    of inline objects' etags, or one whose bytes are chunk ids would have the etag of the object
    that has these chunks."""

    __slots__ = ("_former", "_hash")

    def __init__(self, seed: int) -> None:
        self._hash = xxhash.xxh3_128(seed=seed ^ ETAG_SEED)
        self._former = xxhash.xxh3_128(seed=seed)  # as castore wrote it until November 2026

    def update(self, chunk_id: bytes) -> None:
        self._hash.update(chunk_id)
        self._former.update(chunk_id)

    def digest(self) -> bytes:
        return self._hash.digest()

    def matches(self, etag: bytes) -> bool:
        return etag in (self._hash.digest(), self._former.digest())


def etag_of_one(chunk_id: bytes, seed: int) -> bytes:
    """What ChunksEtag makes of one chunk's id."""
    return _digest(chunk_id, seed ^ ETAG_SEED)


def guarded_id(sha256: bytes, seed: int) -> bytes:
    """The chunk's id in a store with a collision guard: by whatever path two frames come to be
    taken for one (dedup, a cache, a collection, a repair), equal ids mean equal SHA-256s."""
    return _digest(sha256, seed)


def sha256_of(raw: bytes | memoryview) -> bytes:
    import hashlib  # a while to load, and only guarded stores need it

    return hashlib.sha256(raw).digest()


def encode_frames(
    chunks: Sequence[tuple[bytes, bytes, bytes]], *, level: int, id_of_sha256: bool
) -> list[Frame]:
    """The frames of chunks, each given as its bytes, its id, and its SHA-256 or b"". They are
    compressed by one call: others wait less often for the GIL than with one for each."""
    compressed = compress_all([raw for raw, _, _ in chunks], level)
    return [
        _plain_frame(raw, stored, chunk_id, _flags(sha256, id_of_sha256), sha256)
        for (raw, chunk_id, sha256), stored in zip(chunks, compressed, strict=True)
    ]


def _plain_frame(
    raw: bytes, stored: tuple[int, bytes], chunk_id: bytes, flags: int, sha256: bytes
) -> Frame:
    codec, payload = stored
    header = FrameHeader(codec, flags, len(raw), len(payload), chunk_id, sha256)
    return Frame(chunk_id, len(raw), encode_frame_header(header), payload, sha256)


def delta_frame(
    payload: bytes,
    bases: Sequence[tuple[bytes, int]],
    chunk_id: bytes,
    raw_bytes: int,
    *,
    sha256: bytes = b"",
    id_of_sha256: bool = False,
) -> Frame:
    """The frame of a chunk as a delta of these chunks (id and size), in this order."""
    delta, flags = Delta(tuple(bases), 0), _flags(sha256, id_of_sha256)
    header = FrameHeader(CODEC_DELTA, flags, raw_bytes, len(payload), chunk_id, sha256, delta)
    head = encode_delta_header(header, payload)
    return Frame(chunk_id, raw_bytes, head, payload, sha256, header.bases)


def _flags(sha256: bytes, id_of_sha256: bool) -> int:
    return (FLAG_SHA256 if sha256 else 0) | (FLAG_ID_OF_SHA256 if id_of_sha256 else 0)


def no_base(chunk_id: bytes, raw_bytes: int) -> bytes:
    """For frames that are no deltas."""
    raise FormatError(f"the frame is a delta, and its base {chunk_id.hex()} is not known")


def decode_frame(
    frame: bytes | memoryview,
    chunk_id: bytes,
    raw_bytes: int,
    seed: int,
    base: BaseBytes = no_base,
) -> bytes | memoryview:
    """The chunk's bytes: a view into `frame` when it is raw. Raises FormatError unless it decodes
    to exactly `raw_bytes` bytes of this id, and what `base` raises."""
    payload_bytes = len(frame) - FRAME_HEADER_BYTES
    if payload_bytes < 0:
        raise FormatError(f"frame is cut short at {len(frame)} bytes")
    # Of nearly every frame what is expected is compared in one go, and hardly anything is parsed.
    raw: bytes | memoryview
    bases = None if base is no_base else plain_delta_bases(frame, raw_bytes, chunk_id)
    codec = CODEC_RAW if payload_bytes == raw_bytes else CODEC_ZSTD
    if bases is not None:
        payload = memoryview(frame)[delta_header_bytes(len(bases)) :]
        raw = decode_delta(payload, [base(*each) for each in bases], raw_bytes)
    elif frame[:FRAME_HEADER_BYTES] == plain_frame_header(
        codec, raw_bytes, payload_bytes, chunk_id
    ):
        payload = memoryview(frame)[FRAME_HEADER_BYTES:]
        raw = payload if codec == CODEC_RAW else decompress(payload, raw_bytes)
    else:
        return _decode_any(frame, chunk_id, raw_bytes, seed, base)
    if _digest(raw, seed) != chunk_id:
        raise FormatError("the bytes do not match the chunk's id")
    return raw


def decode_frames(
    frames: Sequence[bytes | memoryview], chunks: Sequence[tuple[bytes, int]], seed: int
) -> list[bytes | memoryview | None]:
    """The bytes of each chunk (id and size), as `decode_frame` gives them; None where it raises
    FormatError, as of a delta."""
    together = _decompressed_together(frames, chunks)
    decoded: list[bytes | memoryview | None] = []
    for at, (frame, (chunk_id, raw_bytes)) in enumerate(zip(frames, chunks, strict=True)):
        raw = together.get(at)
        if raw is not None and _digest(raw, seed) == chunk_id:
            decoded.append(raw)
            continue
        try:
            decoded.append(decode_frame(frame, chunk_id, raw_bytes, seed))
        except FormatError:
            decoded.append(None)
    return decoded


def _decompressed_together(
    frames: Sequence[bytes | memoryview], chunks: Sequence[tuple[bytes, int]]
) -> dict[int, bytes]:
    """What the plain zstd frames among these decompress to, by one call: other threads wait for the
    GIL less often than with one for each. Nothing if it fails for any: each is tried by itself."""
    ats: list[int] = []
    payloads: list[Buffer] = []
    sizes: list[int] = []
    for at, (frame, (chunk_id, raw_bytes)) in enumerate(zip(frames, chunks, strict=True)):
        size = len(frame) - FRAME_HEADER_BYTES
        if size > 0 and frame[:FRAME_HEADER_BYTES] == plain_frame_header(
            CODEC_ZSTD, raw_bytes, size, chunk_id
        ):
            payloads.append(memoryview(frame)[FRAME_HEADER_BYTES:])
            ats.append(at)
            sizes.append(raw_bytes)
    return dict(zip(ats, decompress_all(payloads, sizes), strict=False))


def _decode_any(
    frame: bytes | memoryview, chunk_id: bytes, raw_bytes: int, seed: int, base: BaseBytes
) -> bytes | memoryview:
    raw: bytes | memoryview
    header, payload = _parsed(frame, chunk_id, raw_bytes)
    if header.delta is not None:
        raw = decode_delta(payload, [base(*each) for each in header.delta.bases], raw_bytes)
    else:
        raw = payload if header.codec == CODEC_RAW else decompress(payload, raw_bytes)
    if header.flags & FLAG_ID_OF_SHA256:
        intact = sha256_of(raw) == header.sha256 and chunk_id == guarded_id(header.sha256, seed)
    else:
        intact = _digest(raw, seed) == chunk_id
    if not intact:
        raise FormatError("the bytes do not match the chunk's id")
    return raw


def _parsed(
    frame: bytes | memoryview, chunk_id: bytes, raw_bytes: int
) -> tuple[FrameHeader, memoryview]:
    """Header and payload of a frame that says that it is this chunk's."""
    header = decode_frame_header(frame)
    if header.chunk_id != chunk_id or header.raw_bytes != raw_bytes:
        raise FormatError(
            f"the frame is of chunk {header.chunk_id.hex()}, {header.raw_bytes} bytes"
        )
    if header.header_bytes + header.payload_bytes != len(frame):
        raise FormatError(f"the frame is {header.payload_bytes} bytes in a place of {len(frame)}")
    return header, memoryview(frame)[header.header_bytes :]


def check_frame(
    frame: bytes | memoryview, chunk_id: bytes, raw_bytes: int, seed: int
) -> FrameHeader:
    """The header of a frame that is as it was written. Raises FormatError unless it decodes to
    exactly `raw_bytes` bytes of this id or, of a delta, whose bases are elsewhere, has its
    checksum."""
    header, payload = _parsed(frame, chunk_id, raw_bytes)
    if header.delta is None:
        decode_frame(frame, chunk_id, raw_bytes, seed)
    elif delta_checksum(header, payload) != header.delta.checksum:
        raise FormatError("the delta does not match its checksum")
    return header


def stored_frame(frame: bytes, chunk_id: bytes, raw_bytes: int, seed: int) -> Frame:
    """A frame as it is stored, to be stored elsewhere. Raises FormatError as `check_frame`."""
    header = check_frame(frame, chunk_id, raw_bytes, seed)
    cut = header.header_bytes
    return Frame(chunk_id, raw_bytes, frame[:cut], frame[cut:], header.sha256, header.bases)


def summed_anew(frame: bytes) -> Frame:
    """The frame of a delta that is known to decode, with the checksum that it should have. Raises
    FormatError if it is none."""
    header = decode_frame_header(frame)
    if header.delta is None:
        raise FormatError("the frame is no delta")
    return delta_frame(
        frame[header.header_bytes :],
        header.delta.bases,
        header.chunk_id,
        header.raw_bytes,
        sha256=header.sha256,
        id_of_sha256=bool(header.flags & FLAG_ID_OF_SHA256),
    )


def encode_inline(raw: bytes, *, level: int) -> tuple[int, bytes]:
    """(codec, bytes) of a small object, as its record carries it."""
    if len(raw) < 256:
        return CODEC_RAW, raw
    return compress(raw, level)


def decode_inline(codec: int, stored: bytes, raw_bytes: int) -> bytes:
    if codec == CODEC_RAW:
        return stored
    if raw_bytes > INLINE_BYTES_LIMIT:
        raise FormatError(f"inline record claims {raw_bytes} bytes")
    return decompress(stored, raw_bytes)


def encode_block_payload(raw: bytes) -> tuple[bool, bytes]:
    """(compressed, bytes) of a block of the journal."""
    codec, payload = (CODEC_RAW, raw) if len(raw) < BLOCK_COMPRESS_MIN else compress(raw, 1)
    return codec == CODEC_ZSTD, payload


def decode_block_payload(payload: bytes, raw_bytes: int, *, compressed: bool) -> bytes:
    """`raw_bytes` is bounded already. Raises FormatError."""
    return decompress(payload, raw_bytes) if compressed else payload
