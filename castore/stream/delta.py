"""Deltas: a chunk as copies from its bases, and what is left of it, compressed.

The bases' bytes, one behind the other, are searched for what the chunk is made of. What was found
is a list of sequences, what was not are literals; `castore/native/delta.h` has how they are
written. Literals mostly stand in for something: the bytes of the bases that they replace are their
zstd dictionary, which is a small one. Where there are few literals their frame is made without it,
and decodes with it all the same. So a delta is as small as zstd makes it with all of the bases
as its dictionary (on text a little smaller, on machine code a little larger), at two to four times
the speed: filling zstd's tables with the bases takes longer than all of the rest.
bench/bench_delta_coder.py compares them.

The payload is a head of 4 bytes, little endian: 1 if the sequences are zstd, plus 2 if the literals
are, plus 256 times the length of the sequences as stored; then these, then the literals to the end.
Payloads are untrusted: every length is checked before memory is taken for it.

Without the C extension no deltas are made, but they are read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, TypeAlias

import zstandard

from castore.errors import FormatError
from castore.stream.compression import decompressor, zstd_frames

if TYPE_CHECKING:
    from typing_extensions import Buffer

try:
    from castore import _native
except ImportError:
    _native = None  # type: ignore[assignment]

# Takes 3 % off what deltas of scipy take. Where there are fewer literals the next lower level takes
# 30 us less for each chunk, and they take 0.2 % more.
LEVEL = 5
LEVEL_OF_FEW = 4
FEW_BYTES = 4096
ZSTD_BYTES_MIN = 64  # less is left as it is
# Of the deltas with more, one in 50 was at most half of the plain frame (wheels of scipy).
LITERALS_SHARE_MAX = 0.6
# With fewer, their context is no dictionary of theirs: a compressor for one takes longer to make
# than all of its work, and saves 1 % of what the deltas of Django or botocore take.
CONTEXT_FROM = 600
CONTEXT_BYTES_MAX = 128 << 10
CONTEXT_BYTES_MORE = 256
_HEAD_BYTES = 4
_SEQUENCES_ZSTD = 1
_LITERALS_ZSTD = 2
_SEQUENCES_STORED_MAX = 1 << 24
_SEED_BYTES = 8
_SEQUENCE_BYTES_MAX = 15
_VARINT_BYTES_MAX = 5

Bytes: TypeAlias = bytes | memoryview
Parts: TypeAlias = tuple[bytes, bytes, bytes]  # sequences, literals, context
Copy: TypeAlias = tuple[int, int, int]  # literals before it, and its range [begin, end) of the base


def can_encode() -> bool:
    """Whether any delta can be made: only with the C extension."""
    return _native is not None


def encode_delta(raw: Buffer, bases: Sequence[Buffer]) -> bytes | None:
    """`raw` as a delta of its bases, in this order; None where none can be made, or where it would
    be no smaller than about half of `raw` compressed by itself, as far as can be told from how much
    of it is literals. `decode_delta` takes the same bases."""
    return encode_deltas([(raw, bases)])[0]


def encode_deltas(chunks: Sequence[tuple[Buffer, Sequence[Buffer]]]) -> list[bytes | None]:
    """The same of each of these chunks and its bases, by few calls: other threads wait for the GIL
    less often than with some for each."""
    if _native is None or not chunks:
        return [None] * len(chunks)
    made = _native.delta_encode_all(tuple(chunks), LITERALS_SHARE_MAX, CONTEXT_FROM)
    packed = _compress([part for parts in made if parts is not None for part in _plain(parts)])
    return [
        None if parts is None else _payload(parts, memoryview(raw).nbytes, packed)
        for (raw, _), parts in zip(chunks, made, strict=True)
    ]


def _plain(parts: Parts) -> Sequence[bytes]:
    """What of it is compressed by itself."""
    sequences, literals, context = parts
    return (sequences,) if context else (sequences, literals)


def _payload(parts: Parts, raw_bytes: int, packed: Iterator[bytes]) -> bytes | None:
    """`packed` gives what became of `_plain` parts, in turn. None if it would be no smaller than
    the chunk."""
    sequences, literals, context = parts
    stored_sequences = next(packed)
    stored_literals = _compress_with(literals, context) if context else next(packed)
    head = len(stored_sequences) << 8
    head |= _SEQUENCES_ZSTD if len(stored_sequences) < len(sequences) else 0
    head |= _LITERALS_ZSTD if len(stored_literals) < len(literals) else 0
    size = _HEAD_BYTES + len(stored_sequences) + len(stored_literals)
    if len(stored_sequences) >= _SEQUENCES_STORED_MAX or size >= raw_bytes:
        return None
    return b"".join([head.to_bytes(_HEAD_BYTES, "little"), stored_sequences, stored_literals])


def decode_delta(payload: bytes | memoryview, bases: Sequence[Buffer], raw_bytes: int) -> bytes:
    """The `raw_bytes` bytes that the payload makes of its bases. Raises FormatError for anything
    that is not a delta of as many bytes."""
    head = int.from_bytes(payload[:_HEAD_BYTES], "little")
    cut = _HEAD_BYTES + (head >> 8)
    if len(payload) < cut or head & 0xFF & ~(_SEQUENCES_ZSTD | _LITERALS_ZSTD):
        raise FormatError(f"delta of {len(payload)} bytes has an unknown head {head:#x}")
    sequences, literals, packed = payload[_HEAD_BYTES:cut], payload[cut:], head & 0xFF
    try:
        if _native is None:
            return _reference_decode(sequences, literals, packed, bases, raw_bytes)
        return _native.delta_decode(
            sequences, literals, packed, bases, raw_bytes, decompressor().decompress
        )
    except (ValueError, zstandard.ZstdError) as error:
        raise FormatError(f"delta does not decode: {error}") from error


# ------------------------------------------------------------------------- what is left


def _compress(parts: Sequence[bytes]) -> Iterator[bytes]:
    """Each as it is where zstd does not pay."""
    large: list[bytes | bytearray | memoryview] = [
        part for part in parts if len(part) >= ZSTD_BYTES_MIN
    ]
    compressed = iter(zstd_frames(large, LEVEL))
    for part in parts:
        yield min(part, next(compressed), key=len) if len(part) >= ZSTD_BYTES_MIN else part


def _compress_with(literals: bytes, context: bytes) -> bytes:
    """As they are where zstd does not pay."""
    uses = zstandard.ZstdCompressor(
        dict_data=_dictionary(context),
        compression_params=zstandard.ZstdCompressionParameters.from_level(
            LEVEL if len(literals) >= FEW_BYTES else LEVEL_OF_FEW,
            source_size=len(literals),
            dict_size=len(context),
            write_dict_id=False,
        ),
    )
    return min(literals, uses.compress(literals), key=len)


def _dictionary(context: bytes) -> zstandard.ZstdCompressionDict:
    return zstandard.ZstdCompressionDict(context, dict_type=zstandard.DICT_TYPE_RAWCONTENT)


# ------------------------------------------------------------------------- the reference for C


def _reference_decode(
    sequences: Bytes, literals: Bytes, packed: int, bases: Sequence[Buffer], raw_bytes: int
) -> bytes:
    """What C's delta_decode does. Raises ValueError, ZstdError."""
    if packed & _SEQUENCES_ZSTD:
        most = (raw_bytes // _SEED_BYTES + 1) * _SEQUENCE_BYTES_MAX
        sequences = _reference_decompress(sequences, _size_of(sequences, most))
    if packed & _LITERALS_ZSTD:
        size = _size_of(literals, raw_bytes)
        context = reference_context(sequences, size, bases)
        literals = _reference_decompress(literals, size, context)
    return reference_apply(sequences, literals, bases, raw_bytes)


def _size_of(frame: Bytes, most: int) -> int:
    """Of what the frame says that it holds: zstandard would allocate that."""
    size: int = zstandard.frame_content_size(frame)
    if not 0 <= size <= most:
        raise ValueError("malformed delta")
    return size


def _reference_decompress(frame: Bytes, size: int, context: bytes = b"") -> bytes:
    uses = decompressor()
    if context:
        uses = zstandard.ZstdDecompressor(dict_data=_dictionary(context))
    raw: bytes = uses.decompress(frame)
    if len(raw) != size:
        raise ValueError("malformed delta")
    return raw


def reference_apply(
    sequences: Bytes, literals: Bytes, bases: Sequence[Buffer], raw_bytes: int
) -> bytes:
    """What the copies and the literals make of the bases. Raises ValueError."""
    base = b"".join(bases)
    raw = bytearray()
    at = 0
    for count, begin, end in _copies(sequences, len(base)):
        if count > len(literals) - at:
            raise ValueError("malformed delta")
        raw += literals[at : at + count]
        raw += base[begin:end]
        at += count
        if len(raw) > raw_bytes:
            break
    raw += literals[at:]
    if len(raw) != raw_bytes:
        raise ValueError("malformed delta")
    return bytes(raw)


def reference_context(sequences: Bytes, literals_bytes: int, bases: Sequence[Buffer]) -> bytes:
    """The bytes of the bases that literals stand in for. Raises ValueError."""
    base = b"".join(bases)
    context = bytearray()
    expected, left = 0, literals_bytes
    for count, begin, end in (*_copies(sequences, len(base)), (None, 0, 0)):
        count = left if count is None else count
        if not 0 <= count <= left:
            raise ValueError("malformed delta")
        replaced = 0
        if count and expected < begin <= expected + 4 * count + CONTEXT_BYTES_MORE:
            replaced = begin - expected
        elif count:
            replaced = min(count + CONTEXT_BYTES_MORE, len(base) - expected)
        if len(context) + replaced <= CONTEXT_BYTES_MAX:
            context += base[expected : expected + replaced]
        left -= count
        expected = end
    return bytes(context)


def _copies(sequences: Bytes, base_bytes: int) -> list[Copy]:
    copies: list[Copy] = []
    numbers = _varints(sequences)
    if len(numbers) % 3:
        raise ValueError("malformed delta")
    expected = 0
    for count, zigzag, copied in zip(*[iter(numbers)] * 3, strict=True):
        moved = -(zigzag // 2) - 1 if zigzag & 1 else zigzag // 2
        begin = expected + count + moved
        expected = begin + copied
        if not 0 <= begin <= expected <= base_bytes:
            raise ValueError("malformed delta")
        copies.append((count, begin, expected))
    return copies


def _varints(sequences: Bytes) -> list[int]:
    numbers: list[int] = []
    number = shift = 0
    for byte in sequences:
        number |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            numbers.append(number)
            number = shift = 0
        elif shift == 7 * _VARINT_BYTES_MAX:
            raise ValueError("malformed delta")
    if shift:
        raise ValueError("malformed delta")
    return numbers
