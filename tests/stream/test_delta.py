"""Deltas: what they decode to, how small they are, and what a decode refuses."""

from __future__ import annotations

import contextlib
import os
import random

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from castore import _native
from castore.errors import FormatError
from castore.model import Location, StoredChunk
from castore.stream import delta, session
from castore.stream.codec import chunk_id_of, decode_frame
from castore.stream.delta import decode_delta, encode_delta, reference_apply, reference_context
from castore.stream.session import Base, NewFrame
from castore.system.mapping import Mapping

TEXT = b"".join(b"%d: the line number %d of a text\n" % (i, i * i) for i in range(2000))
NOISE = random.Random(1).randbytes(65536)


def edited(raw: bytes, made: random.Random, edits: int) -> bytes:
    for _ in range(edits):
        at = made.randrange(len(raw) + 1)
        size = made.randrange(60)
        kind = made.randrange(4)
        if kind == 0:
            raw = raw[:at] + made.randbytes(size) + raw[at:]
        elif kind == 1:
            raw = raw[:at] + raw[at + 40 * size :]
        elif kind == 2:
            raw = raw[:at] + made.randbytes(size) + raw[at + size :]
        else:
            raw = raw[at:] + raw[:at]
    return raw


@settings(deadline=None, max_examples=60)
@given(
    source=st.sampled_from([TEXT, NOISE, bytes(50_000), TEXT[:100], b"", NOISE[:31]]),
    seed=st.integers(0, 10**6),
    edits=st.integers(0, 30),
    split=st.integers(0, 65536),
)
def test_a_delta_decodes_to_what_it_was_made_of(source, seed, edits, split):
    raw = edited(source, random.Random(seed), edits)
    for bases in ([source], [source[split:], source[:split]]):
        payload = encode_delta(raw, bases)
        if payload is None:
            continue
        assert len(payload) < len(raw)
        assert decode_delta(payload, bases, len(raw)) == raw


@settings(deadline=None, max_examples=60)
@given(
    source=st.sampled_from([TEXT[:20_000], NOISE[:20_000], bytes(5_000), b""]),
    seed=st.integers(0, 10**6),
    edits=st.integers(0, 30),
)
def test_the_reference_does_what_c_does(source, seed, edits):
    raw = edited(source, random.Random(seed), edits)
    sequences, literals, context = parts_of(raw, [source])
    assert applied(sequences, literals, [source], len(raw)) == raw
    assert reference_apply(sequences, literals, [source], len(raw)) == raw
    assert reference_context(sequences, len(literals), [source]) == context
    assert context_of(sequences, len(literals), [source]) == context
    assert len(context) <= delta.CONTEXT_BYTES_MAX


def parts_of(raw, bases):
    """Of what share of it soever, with all of their context."""
    [parts] = _native.delta_encode_all(((raw, bases),), 1, 0)
    return parts


def applied(sequences, literals, bases, raw_bytes):
    """What C makes of sequences and literals that are not compressed."""
    return _native.delta_decode(sequences, literals, 0, bases, raw_bytes, pytest.fail)


class Decompressed(Exception):
    """Raised by what is to decompress a frame."""


def context_of(sequences, literals_bytes, bases):
    """What C puts before literals that are compressed."""

    def decompress(frame):
        raise Decompressed(frame)

    parameters = zstandard.ZstdCompressionParameters.from_level(1, write_checksum=False)
    packed = zstandard.ZstdCompressor(compression_params=parameters).compress(bytes(literals_bytes))
    blocks_bytes = len(packed) - zstandard.frame_header_size(packed)
    with pytest.raises(Decompressed) as decompressed:
        _native.delta_decode(sequences, packed, 2, bases, literals_bytes, decompress)
    frame = decompressed.value.args[0]
    return frame[12:-blocks_bytes] if len(frame) > 9 + blocks_bytes else b""


def answer(function, *arguments):
    try:
        return function(*arguments)
    except ValueError:
        return None


@settings(deadline=None, max_examples=300)
@given(
    st.one_of(
        st.binary(max_size=60),
        st.lists(st.integers(0, 60), max_size=30).map(bytes),
    ),
    st.integers(0, 200),
    st.integers(0, 500),
)
def test_of_malformed_sequences_the_reference_says_what_c_says(sequences, literals, raw_bytes):
    base, left = [TEXT[:100], b"", TEXT[100:300]], NOISE[:literals]
    c = answer(applied, sequences, left, base, raw_bytes)
    assert answer(reference_apply, sequences, left, base, raw_bytes) == c
    c = answer(context_of, sequences, literals, base)
    assert answer(reference_context, sequences, literals, base) == c


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.tuples(*[st.integers(0, 70)] * 3), max_size=12),
    st.integers(0, 200),
    st.integers(0, 500),
)
def test_copies_of_anything_are_bounded(numbers, literals, raw_bytes):
    """Short ones, near the ends of what there is."""
    sequences, expected = bytearray(), 0
    for count, begin, copied in numbers:
        moved = begin - expected - count
        for number in (count, 2 * moved if moved >= 0 else -2 * moved - 1, copied):
            sequences += bytes([number & 0x7F | 0x80, number >> 7])
        expected = begin + copied
    bases, left = [TEXT[:40], b"", TEXT[40:70], TEXT[70:100]], NOISE[:literals]
    base, raw, at = b"".join(bases), b"", 0
    for count, begin, copied in numbers:
        raw += left[at : at + count] + base[begin : begin + copied]
        at += count
    raw += left[at:]
    right = at <= literals and all(begin + copied <= len(base) for _, begin, copied in numbers)
    for size in (raw_bytes, len(raw)):
        expected = raw if right and size == len(raw) else None
        assert answer(applied, sequences, left, bases, size) == expected
    assert (answer(context_of, sequences, literals, bases) is not None) == right


def test_a_changed_line_costs_about_that_line():
    raw = TEXT.replace(b"the line number 1000000 ", b"the line that was changed ")
    payload = encode_delta(raw, [TEXT])
    assert payload is not None
    assert len(payload) < 50


def test_literals_are_told_by_what_they_replace():
    """Every number is another one, so no copy is long; the words between are the same."""
    raw = b"".join(b"%d: the line number %d of a text\n" % (i, i * i + 7) for i in range(2000))
    payload = encode_delta(raw, [TEXT])
    assert payload is not None
    assert len(payload) < 0.7 * len(zstandard.ZstdCompressor(level=3).compress(raw))


def test_a_piece_that_moved_is_found_in_another_base():
    raw = NOISE[40_000:] + NOISE[:30_000]
    payload = encode_delta(raw, [NOISE[:35_000], NOISE[35_000:]])
    assert payload is not None
    assert len(payload) < 100


def test_what_has_nothing_of_its_base_is_no_delta():
    assert encode_delta(NOISE, [random.Random(2).randbytes(65536)]) is None
    assert encode_delta(b"", [NOISE]) is None


@pytest.mark.parametrize("cut", [0, 1, 3, 4, 5, 20, -1])
def test_a_delta_that_is_cut_short_is_refused(cut):
    raw = edited(TEXT, random.Random(4), 20)
    payload = encode_delta(raw, [TEXT])
    assert payload is not None
    with pytest.raises(FormatError):
        decode_delta(payload[:cut], [TEXT], len(raw))


def test_another_length_is_refused():
    raw = edited(TEXT, random.Random(4), 20)
    payload = encode_delta(raw, [TEXT])
    assert payload is not None
    for size in (0, len(raw) - 1, len(raw) + 1, 1 << 27):
        with pytest.raises(FormatError):
            decode_delta(payload, [TEXT], size)


@settings(deadline=None, max_examples=200)
@given(st.integers(0, 10**6), st.integers(0, 2), st.integers(1, 255))
def test_a_flipped_delta_decodes_or_is_refused(where, which, bits):
    """To as many bytes: the chunk's id tells whether they are the right ones."""
    raw = edited(TEXT, random.Random(which), 20)
    payload = bytearray(encode_delta(raw, [TEXT]) or b"")
    payload[where % len(payload)] ^= bits
    with contextlib.suppress(FormatError):
        assert len(decode_delta(bytes(payload), [TEXT], len(raw))) == len(raw)


@given(st.binary(max_size=200))
def test_any_bytes_decode_or_are_refused(payload):
    with contextlib.suppress(FormatError):
        assert len(decode_delta(payload, [TEXT], 100)) == 100


def test_a_bomb_is_refused_before_memory_is_taken():
    bomb = zstandard.ZstdCompressor().compress(bytes(1 << 26))
    head = (2).to_bytes(4, "little")
    with pytest.raises(FormatError, match="malformed"):
        decode_delta(head + bomb, [TEXT], 1000)
    head = (1 | len(bomb) << 8).to_bytes(4, "little")
    with pytest.raises(FormatError, match="malformed"):
        decode_delta(head + bomb, [TEXT], 1000)


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    edits=st.integers(0, 60),
    level=st.sampled_from([-5, 1, 3, 19]),
    checksum=st.booleans(),
    window_log=st.sampled_from([None, 10, 14]),
    told=st.booleans(),
    flip=st.integers(0, 200),
)
def test_literals_behind_their_context_are_those_with_it_as_a_dictionary(
    seed, edits, level, checksum, window_log, told, flip
):
    """Frames as castore writes them, and others: with a checksum, a small window, an untold size;
    and damaged ones."""
    raw = edited(TEXT, random.Random(seed), edits)
    bases = [TEXT[:20_000], TEXT[20_000:]]
    sequences, literals, context = parts_of(raw, [TEXT])
    dictionary = zstandard.ZstdCompressionDict(context, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    options = {} if window_log is None else {"window_log": window_log}
    parameters = zstandard.ZstdCompressionParameters.from_level(
        level, write_checksum=checksum, write_content_size=told, write_dict_id=False, **options
    )
    given = {"dict_data": dictionary} if context else {}
    frame = bytearray(
        zstandard.ZstdCompressor(compression_params=parameters, **given).compress(literals)
    )
    framed = []

    def decompress(packed):
        framed.append(zstandard.ZstdDecompressor().decompress(packed))
        return framed[0]

    def decoded():
        return _native.delta_decode(sequences, frame, 2, bases, len(raw), decompress)

    if not told:
        with pytest.raises(ValueError, match="malformed"):
            decoded()
        return
    if flip < len(frame):
        frame[flip] ^= 1 << seed % 8
    try:
        assert decoded() == raw or flip < len(frame)
    except (ValueError, zstandard.ZstdError):
        assert flip < len(frame)
        return
    assert framed[0] == context + literals or flip < len(frame)


@pytest.mark.parametrize("content", [b"", b"ab", bytearray(3), None, "abc"])
def test_what_decompresses_to_something_else_is_refused(content):
    """To another number of bytes than the frame says, or to none."""
    packed = zstandard.ZstdCompressor().compress(b"abc")
    for which in (1, 2):
        sequences, literals = (packed, b"") if which == 1 else (b"", packed)
        with pytest.raises(ValueError, match="malformed"):
            _native.delta_decode(sequences, literals, which, [b"abc"], 3, lambda _: content)


def test_several_at_once_are_as_each_by_itself():
    chooser = random.Random(11)
    chunks = [
        (edited(source, chooser, edits), [source[split:], source[:split]])
        for source in (TEXT, NOISE, TEXT[:9_000], b"", TEXT[:31])
        for edits in (0, 1, 40)
        for split in (0, 7_000)
    ]
    chunks.append((NOISE, [TEXT]))  # of which nothing is made
    alone = [encode_delta(raw, bases) for raw, bases in chunks]
    assert delta.encode_deltas(chunks) == alone
    assert alone[-1] is None
    assert sum(payload is not None for payload in alone) > 10
    assert delta.encode_deltas([]) == []


def test_few_literals_have_no_context_and_many_make_no_delta():
    raw = edited(TEXT, random.Random(3), 20)
    [(sequences, literals, context)] = _native.delta_encode_all(((raw, [TEXT]),), 1, 0)
    count = len(literals)
    assert count
    assert context
    for share, context_from, made in [
        (1, count, (sequences, literals, context)),
        (1, count + 1, (sequences, literals, b"")),
        ((count + 0.5) / len(raw), 0, (sequences, literals, context)),
        ((count - 0.5) / len(raw), 0, None),
    ]:
        assert _native.delta_encode_all(((raw, [TEXT]),), share, context_from) == [made]


def test_few_literals_decode_with_their_context_too():
    """As they do by what read deltas before some were made without."""
    raw = edited(TEXT, random.Random(6), 3)
    payload = encode_delta(raw, [TEXT])
    sequences, literals, context = parts_of(raw, [TEXT])
    assert 64 <= len(literals) < delta.CONTEXT_FROM
    assert context
    assert payload is not None
    assert decode_delta(payload, [TEXT], len(raw)) == raw
    packed = zstandard.ZstdCompressor(level=delta.LEVEL).compress(literals)
    assert payload.endswith(min(packed, literals, key=len))
    reference = delta._reference_decode(sequences, packed, 2, [TEXT], len(raw))
    assert reference == raw
    assert (
        _native.delta_decode(
            sequences, packed, 2, [TEXT], len(raw), zstandard.ZstdDecompressor().decompress
        )
        == raw
    )


@pytest.mark.parametrize(
    ("chunks", "error"),
    [
        ([(b"", [])], TypeError),
        (([b"", []],), TypeError),
        (((b"",),), TypeError),
        ((("", []),), TypeError),
        (((b"", [""]),), TypeError),
        (((b"", 5),), TypeError),
        (((b"", [b""] * 5),), ValueError),
        (((b"", [b"a"]), (b"", [b""] * 5)), ValueError),
    ],
)
def test_what_no_delta_can_be_made_of_is_refused(chunks, error):
    with pytest.raises(error):
        _native.delta_encode_all(chunks, 1, 0)


def test_without_c_deltas_are_read_and_none_is_made(monkeypatch):
    raw = edited(TEXT, random.Random(4), 20)
    payload = encode_delta(raw, [TEXT])
    assert payload is not None
    monkeypatch.setattr(delta, "_native", None)
    assert decode_delta(payload, [TEXT], len(raw)) == raw
    assert encode_delta(raw, [TEXT]) is None
    bomb = zstandard.ZstdCompressor().compress(bytes(1 << 26))
    for head in (2, 1 | len(bomb) << 8):
        with pytest.raises(FormatError, match="malformed"):
            decode_delta(head.to_bytes(4, "little") + bomb, [TEXT], 1000)


@pytest.mark.plain("it makes a delta itself")
@pytest.mark.skipif(not Mapping.guarded, reason="a mapping that is cut short kills the process")
def test_no_delta_is_made_of_a_base_that_is_cut_short_meanwhile(tmp_path, monkeypatch):
    """The file may be of a cache: the base itself is whole, and there are no zeros in it."""
    file = tmp_path / "frames"
    file.write_bytes(NOISE)
    place = Location(bytes(16), 64, len(NOISE))
    chunk = StoredChunk(chunk_id_of(NOISE, 0), len(NOISE), place)
    raw = NOISE[:32768] + bytes(32768)

    def cut(*given):
        os.truncate(file, 32768)
        return delta.encode_deltas(*given)

    monkeypatch.setattr(session, "encode_deltas", cut)
    base = Base(chunk, memoryview(Mapping(str(file))))
    [encoded] = session._encode_all([NewFrame(raw, chunk_id_of(raw, 0), bases=[base])], 1)
    assert not encoded.bases
    frame = encoded.frame.head + encoded.frame.payload
    assert decode_frame(frame, encoded.frame.chunk_id, len(raw), 0) == raw
