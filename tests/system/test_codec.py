"""Chunks to frames and back: what is compressed, and what a decode refuses."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import pytest
import zstandard
from frames import encode_frame
from hypothesis import given, settings
from hypothesis import strategies as st

from castore.errors import FormatError
from castore.format.frame import (
    CODEC_RAW,
    CODEC_ZSTD,
    FLAG_ID_OF_SHA256,
    FLAG_SHA256,
    FRAME_HEADER_BYTES,
    SHA256_BYTES,
    FrameHeader,
    decode_frame_header,
    encode_frame_header,
)
from castore.format.index import INLINE_BYTES_LIMIT
from castore.stream import codec, compression

SEED = 0x0123456789ABCDEF
TEXT = b"".join(b"line %d of a text that repeats itself\n" % i for i in range(2000))
NOISE = random.Random(1).randbytes(65536)


def encoded(raw: bytes, *, level: int = 1, guarded: bool = False) -> tuple[bytes, bytes]:
    """(frame, chunk id)"""
    chunk_id = codec.chunk_id_of(raw, SEED)
    sha256 = codec.sha256_of(raw) if guarded else b""
    frame = encode_frame(raw, chunk_id, level=level, sha256=sha256)
    assert frame.stored_bytes == len(frame.head) + len(frame.payload)
    assert (frame.chunk_id, frame.raw_bytes) == (chunk_id, len(raw))
    return frame.head + frame.payload, chunk_id


def framed(payload: bytes, raw: bytes, kind: int = CODEC_ZSTD) -> tuple[bytes, bytes, int]:
    """A frame whose header is right for `raw`, with any payload: what decode_frame takes."""
    chunk_id = codec.chunk_id_of(raw, SEED)
    header = FrameHeader(kind, 0, len(raw), len(payload), chunk_id)
    return encode_frame_header(header) + payload, chunk_id, len(raw)


@settings(max_examples=150, deadline=None)
@given(
    raw=st.one_of(
        st.binary(min_size=1, max_size=3000),
        st.builds(lambda unit, n: unit * n, st.binary(min_size=1, max_size=9), st.integers(1, 900)),
    ),
    level=st.sampled_from([-7, 1, 3, 19]),
    guarded=st.booleans(),
)
def test_a_frame_decodes_to_what_it_was_made_of(raw: bytes, level: int, guarded: bool) -> None:
    frame, chunk_id = encoded(raw, level=level, guarded=guarded)
    for buffer in (frame, memoryview(frame), memoryview(b"xyz" + frame)[3:]):
        assert bytes(codec.decode_frame(buffer, chunk_id, len(raw), SEED)) == raw


def test_text_is_compressed_and_noise_is_not() -> None:
    text, _ = encoded(TEXT)
    assert decode_frame_header(text).codec == CODEC_ZSTD
    assert len(text) < len(TEXT) // 5
    noise, chunk_id = encoded(NOISE)
    assert decode_frame_header(noise).codec == CODEC_RAW
    assert len(noise) == len(NOISE) + FRAME_HEADER_BYTES
    raw = codec.decode_frame(noise, chunk_id, len(NOISE), SEED)
    assert isinstance(raw, memoryview), "a raw frame is served from where it lies"
    assert raw.obj is noise


def test_a_frame_that_saves_under_a_thirty_second_is_raw() -> None:
    """Not enough is saved for giving up on serving it in place; too little noise to be noticed as
    such by the entropy gate, which looks at 4,096 bytes at least."""
    for zeros in (0, 20, 100, 300, 1000):
        raw = NOISE[:3000] + bytes(zeros)
        compressed = len(zstandard.ZstdCompressor(level=1).compress(raw))
        header = decode_frame_header(encoded(raw)[0])
        assert header.codec == (CODEC_RAW if compressed > len(raw) * 31 / 32 else CODEC_ZSTD)
    assert header.codec == CODEC_ZSTD, "the last of them does save enough"


def test_incompressible_chunks_never_reach_the_compressor(monkeypatch: pytest.MonkeyPatch) -> None:
    class Unused:
        def __init__(self, level: int) -> None:
            raise AssertionError("noise was given to zstd")

    monkeypatch.setattr(zstandard, "ZstdCompressor", Unused)
    encoded(NOISE, level=11)
    with pytest.raises(AssertionError):
        encoded(TEXT, level=11)


def test_levels_are_what_the_compressor_gets() -> None:
    for level in (-7, 1, 19):
        frame, _ = encoded(TEXT, level=level)
        assert frame.endswith(zstandard.ZstdCompressor(level=level).compress(TEXT))
    assert len({encoded(TEXT, level=level)[0] for level in (-7, 1, 19)}) == 3


def mixed() -> list[bytes]:
    """Texts, noise, and the same twice."""
    parts = [TEXT[at : at + 1000 + 90 * at] for at in range(0, 400, 7)]
    return [*parts, NOISE, *parts[:3], NOISE[:5000], b"x", bytes(70_000)]


@pytest.mark.parametrize("several", [True, False], ids=["together", "one by one"])
def test_many_are_encoded_as_each_is(monkeypatch: pytest.MonkeyPatch, several: bool) -> None:
    """Also with a zstandard that takes one at a time."""
    monkeypatch.setattr(compression, "_SEVERAL_AT_ONCE", several)
    for raws in (mixed(), [NOISE] * 3, [TEXT], []):
        for level in (-1, 1, 5):
            chunks = [(raw, codec.chunk_id_of(raw, SEED), b"") for raw in raws]
            alone = [encode_frame(raw, chunk_id, level=level) for raw, chunk_id, _ in chunks]
            assert codec.encode_frames(chunks, level=level, id_of_sha256=False) == alone


@pytest.mark.parametrize("several", [True, False], ids=["together", "one by one"])
def test_many_are_decoded_as_each_is(monkeypatch: pytest.MonkeyPatch, several: bool) -> None:
    """What is damaged, or not what was expected, is None, and all others are decoded."""
    monkeypatch.setattr(compression, "_SEVERAL_AT_ONCE", several)
    raws = mixed()
    frames = [bytearray(encoded(raw)[0]) for raw in raws]
    chunks = [(codec.chunk_id_of(raw, SEED), len(raw)) for raw in raws]
    assert codec.decode_frames(frames, chunks, SEED) == raws  # type: ignore[arg-type]
    frames[3][-1] ^= 1
    frames[5][2] ^= 1
    del frames[7][30:]
    del frames[8][:]
    chunks[9] = chunks[9][0], chunks[9][1] + 1
    frames[11][-8:] = b""
    frames[12], _, _ = framed(zstandard.compress(raws[12] + b"!"), raws[12])  # type: ignore[call-overload]
    unsized = zstandard.ZstdCompressor(write_content_size=False).compress(raws[13])
    frames[13], _, _ = framed(unsized, raws[13])  # type: ignore[call-overload]
    bad = {3, 5, 7, 8, 9, 11, 12, 13}
    expected = [None if at in bad else raw for at, raw in enumerate(raws)]
    assert codec.decode_frames(frames, chunks, SEED) == expected  # type: ignore[arg-type]
    for at in bad:
        with pytest.raises(FormatError):
            codec.decode_frame(bytes(frames[at]), *chunks[at], SEED)


@pytest.mark.parametrize("kind", ["other bytes", "no size", "more behind it"])
def test_one_that_alone_is_bad_among_many(kind: str) -> None:
    """All the others decompress, and so does this, to as many bytes."""
    raws = [TEXT[at : at + 5000] for at in range(0, 50_000, 5000)]
    frames = [encoded(raw)[0] for raw in raws]
    chunks = [(codec.chunk_id_of(raw, SEED), len(raw)) for raw in raws]
    payload = {
        "other bytes": zstandard.compress(raws[4][::-1]),
        "no size": zstandard.ZstdCompressor(write_content_size=False).compress(raws[4]),
        "more behind it": zstandard.compress(raws[4]) + zstandard.compress(b"x"),
    }[kind]
    frames[4], _, _ = framed(payload, raws[4])
    found = codec.decode_frames(frames, chunks, SEED)
    try:
        alone: bytes | memoryview | None = codec.decode_frame(frames[4], *chunks[4], SEED)
    except FormatError:
        alone = None
    assert found == [*raws[:4], alone, *raws[5:]]
    assert (alone is None) == (kind != "more behind it")


def test_chunk_ids_depend_on_the_bytes_and_the_seed() -> None:
    ids = {codec.chunk_id_of(raw, seed) for raw in (b"a", b"b") for seed in (0, 1)}
    assert len(ids) == 4
    assert codec.chunk_id_of(memoryview(b"a"), 1) in ids


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize("raw", [TEXT, NOISE[:5000]], ids=["zstd", "raw"])
@pytest.mark.parametrize("guarded", [False, True], ids=["plain", "sha256"])
def test_what_is_expected_of_a_frame_is_checked(raw: bytes, guarded: bool) -> None:
    frame, chunk_id = encoded(raw, guarded=guarded)
    other = codec.chunk_id_of(b"other", SEED)
    refused = [
        (frame, other, len(raw), SEED),
        (frame, chunk_id, len(raw) - 1, SEED),
        (frame, chunk_id, len(raw) + 1, SEED),
        (frame, chunk_id, len(raw), SEED + 1),
        (frame + b"\0", chunk_id, len(raw), SEED),
        (b"", chunk_id, len(raw), SEED),
    ]
    refused += [(frame[:n], chunk_id, len(raw), SEED) for n in (1, 4, 31, 32, 33, 63, 64, 65, -1)]
    for arguments in refused:
        with pytest.raises(FormatError):
            codec.decode_frame(*arguments)
    assert codec.decode_frame(frame, chunk_id, len(raw), SEED) == raw


@pytest.mark.parametrize("guarded", [False, True], ids=["plain", "sha256"])
def test_every_flipped_byte_of_a_frame_is_noticed(guarded: bool) -> None:
    for raw in (TEXT[:3000], NOISE[:1000]):
        frame, chunk_id = encoded(raw, guarded=guarded)
        for place in range(len(frame)):
            damaged = bytearray(frame)
            damaged[place] ^= 1 << place % 8
            in_sha256 = guarded and 0 <= place - FRAME_HEADER_BYTES < SHA256_BYTES
            try:
                decoded = codec.decode_frame(bytes(damaged), chunk_id, len(raw), SEED)
            except FormatError:
                continue
            # What nobody reads (the guard's hash, a bit that zstd ignores) changes nothing.
            assert decoded == raw
            assert in_sha256 or place > FRAME_HEADER_BYTES, place


def test_zstd_frames_that_lie_about_their_size() -> None:
    raw = TEXT[:5000]
    huge = zstandard.ZstdCompressor().compress(bytes(50 << 20))
    unsized = zstandard.ZstdCompressor(write_content_size=False).compress(raw)
    shorter = zstandard.ZstdCompressor().compress(raw[:-1])
    longer = zstandard.ZstdCompressor().compress(raw + b"x")
    two = zstandard.ZstdCompressor().compress(raw[:2500]) * 2
    with_dictionary = zstandard.ZstdCompressor(
        dict_data=zstandard.ZstdCompressionDict(TEXT, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    ).compress(raw)
    skippable = b"\x50\x2a\x4d\x18\x04\0\0\0junk"
    bad = [huge, unsized, shorter, longer, two, skippable, b"", b"\x28\xb5\x2f\xfd", NOISE[:100]]
    for payload in bad:
        frame, chunk_id, size = framed(payload, raw)
        with pytest.raises(FormatError):
            codec.decode_frame(frame, chunk_id, size, SEED)
    frame, chunk_id, size = framed(with_dictionary, raw)
    with pytest.raises(FormatError):
        codec.decode_frame(frame, chunk_id, size, SEED)


def test_the_id_of_a_sha256_needs_the_sha256_of_its_bytes() -> None:
    raw = TEXT[:5000]
    sha256 = codec.sha256_of(raw)
    chunk_id = codec.guarded_id(sha256, SEED)
    assert chunk_id != codec.chunk_id_of(raw, SEED)

    def frame(sha256: bytes, chunk_id: bytes = chunk_id) -> bytes:
        made = encode_frame(raw, chunk_id, level=1, sha256=sha256, id_of_sha256=True)
        return made.head + made.payload

    header = decode_frame_header(frame(sha256))
    assert header.flags == FLAG_SHA256 | FLAG_ID_OF_SHA256
    assert header.sha256 == sha256
    assert codec.decode_frame(frame(sha256), chunk_id, len(raw), SEED) == raw
    with pytest.raises(FormatError):
        codec.decode_frame(frame(codec.sha256_of(b"other")), chunk_id, len(raw), SEED)
    plain_id = codec.chunk_id_of(raw, SEED)
    with pytest.raises(FormatError):
        codec.decode_frame(frame(sha256, plain_id), plain_id, len(raw), SEED)
    with pytest.raises(FormatError, match="and no SHA-256"):
        codec.decode_frame(frame(b""), chunk_id, len(raw), SEED)


# ---------------------------------------------------------------- inline objects


@pytest.mark.parametrize("size", [0, 1, 255, 256, 4096])
def test_inline_bytes_come_back(size: int) -> None:
    for raw in (TEXT[:size], NOISE[:size]):
        kind, stored = codec.encode_inline(raw, level=1)
        assert codec.decode_inline(kind, stored, len(raw)) == raw
        assert len(stored) <= len(raw)
    if size < 256:
        assert kind == CODEC_RAW, "too small for zstd to pay"


def test_inline_bytes_are_bounded() -> None:
    bomb = zstandard.ZstdCompressor().compress(bytes(INLINE_BYTES_LIMIT + 1))
    with pytest.raises(FormatError):
        codec.decode_inline(CODEC_ZSTD, bomb, INLINE_BYTES_LIMIT + 1)
    with pytest.raises(FormatError):
        codec.decode_inline(CODEC_ZSTD, bomb, 100)
    with pytest.raises(FormatError):
        codec.decode_inline(CODEC_ZSTD, b"junk", 100)


# ---------------------------------------------------------------- threads


def test_threads_encode_and_decode_at_once() -> None:
    chunks = [TEXT[i : i + 3000 + i] for i in range(0, 20000, 100)]

    def round_trip(raw: bytes) -> bool:
        frame, chunk_id = encoded(raw)
        return bytes(codec.decode_frame(frame, chunk_id, len(raw), SEED)) == raw

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(round_trip, chunks * 3))
