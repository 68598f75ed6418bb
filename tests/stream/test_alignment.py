"""The bases that are found for the chunks of a stream that is a later version of an object."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from older_objects import CHUNK, Older

from castore.model import SEGMENT_EXTENTS_MAX
from castore.stream import alignment
from castore.stream.alignment import Alignment, is_time
from castore.stream.anchored import AnchoredBases
from castore.stream.segments import Manifest


def cut(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Chunks that have nothing to do with where the older object was cut."""
    size = 20_000
    for begin in range(0, len(data), size):
        end = min(begin + size, len(data))
        yield begin, end, data[begin:end]


def found(aligned: Alignment, data: bytes) -> list[list[int]]:
    return [
        [int.from_bytes(each.base.chunk_id, "big") for each in aligned.candidates(*chunk)]
        for chunk in cut(data)
    ]


def overlapping(begin: int, end: int) -> set[int]:
    return set(range(begin // CHUNK, (end - 1) // CHUNK + 1))


def touched(data: bytes, every: int) -> bytes:
    changed = bytearray(data)
    for at in range(every // 2, len(changed), every):
        changed[at] ^= 1
    return bytes(changed)


def test_every_chunk_of_a_touched_version_finds_what_it_was_made_from():
    older = Older.of(60)
    aligned = older.aligned()
    for begin, end, raw in cut(touched(older.data, 3000)):
        candidates = aligned.candidates(begin, end, raw)
        ids = {int.from_bytes(each.base.chunk_id, "big") for each in candidates}
        assert ids
        assert ids <= overlapping(begin, end)
        shares = [each.share for each in candidates]
        assert shares == sorted(shares, reverse=True)
        assert 0.8 < sum(shares) <= 1


def test_each_base_is_read_once():
    older = Older.of(60)
    found(older.aligned(), touched(older.data, 3000))
    assert sorted(older.read_ids) == sorted(set(older.read_ids)) == [older.id(i) for i in range(60)]


def test_what_was_cut_out_or_put_in_is_passed():
    older = Older.of(120)
    data = older.data
    new = random.Random(9).randbytes(150_000)
    version = data[:400_000] + new + data[400_000:1_000_000] + data[2_000_000:]
    bases = found(older.aligned(), touched(version, 5000))
    origin = list(range(400_000)) + [-1] * 150_000 + list(range(400_000, 1_000_000))
    origin += list(range(2_000_000, len(data)))
    missed = 0
    for (begin, end, _), ids in zip(cut(version), bases, strict=True):
        if origin[begin] >= 0 and origin[end - 1] - origin[begin] == end - 1 - begin:
            missed += not ids
            assert set(ids) <= overlapping(origin[begin], origin[end - 1] + 1)
    assert missed <= 12


PIECE = 512  # bytes that come, go and move together

edits_of_pieces = st.lists(
    st.tuples(
        st.sampled_from(["insert", "delete", "move"]),
        st.integers(0, 2000),
        st.integers(1, 200),
        st.integers(0, 2000),
    ),
    max_size=4,
)


@settings(deadline=None, max_examples=30)
@given(edits_of_pieces, st.integers(0, 1000))
def test_any_edits_are_followed(edits, seed):
    """A piece that came, went or moved costs a few chunks, and a base is never one that has
    nothing of the chunk."""
    made = random.Random(seed)
    older = Older.of(40, seed=2000)
    data = older.data
    pieces = [(at // CHUNK, data[at : at + PIECE]) for at in range(0, len(data), PIECE)]
    for edit, at, count, to in edits:
        if edit == "insert":
            pieces[at:at] = [(-1, made.randbytes(PIECE)) for _ in range(count)]
            continue
        taken = pieces[at : at + count]
        del pieces[at : at + count]
        if edit == "move":
            pieces[to:to] = taken
    version = b"".join(raw for _, raw in pieces)
    missed = 0
    for (begin, end, _), ids in zip(cut(version), found(older.aligned(), version), strict=True):
        here = {origin for origin, _ in pieces[begin // PIECE : (end - 1) // PIECE + 1]}
        assert set(ids) <= here - {-1}
        missed += not ids and -1 not in here and end - begin == 20_000
    assert missed <= 6 * len(edits)


def test_a_known_chunk_says_where_the_stream_is():
    """Behind more that was left out than is looked through."""
    older = Older.of(1500)
    aligned = older.aligned()
    assert aligned.candidates(0, CHUNK, touched(older.chunks[0], 3000))
    aligned.known(CHUNK, 2 * CHUNK, older.id(1300))
    assert not aligned.candidates(2 * CHUNK, 3 * CHUNK, touched(older.chunks[1301], 3000))
    older = Older.of(1500)
    aligned = older.aligned()
    aligned.known(0, CHUNK, older.id(900))
    candidates = aligned.candidates(CHUNK, 2 * CHUNK, touched(older.chunks[901], 3000))
    assert [each.base.chunk_id for each in candidates] == [older.id(901)]


def test_a_known_chunk_is_found_in_an_older_object_that_ends_before_the_place():
    older = Older.of(4)
    aligned = older.aligned()
    aligned.known(30 * CHUNK, 31 * CHUNK, older.id(3))
    assert aligned.expected_at(31 * CHUNK) == 4 * CHUNK
    aligned.known(CHUNK, 2 * CHUNK, older.id(1))  # expected before its beginning
    assert aligned.expected_at(2 * CHUNK) == 2 * CHUNK


@pytest.mark.parametrize(("chunks_max", "credit", "read"), [(10, 100, 10), (100, 3, 6)])
def test_so_far_ahead_and_no_further_than_was_earned_it_is_read(
    monkeypatch, chunks_max, credit, read
):
    monkeypatch.setattr(alignment, "AHEAD_BYTES_MAX", chunks_max * CHUNK)
    monkeypatch.setattr(alignment, "AHEAD_BYTES", 2 * CHUNK)
    monkeypatch.setattr(alignment, "CREDIT_FIRST", credit)
    monkeypatch.setattr(alignment, "TRIED_ALWAYS", 1000)
    older = Older.of(40)
    aligned = older.aligned()
    for _ in range(20):
        assert not aligned.candidates(0, CHUNK, random.Random(1).randbytes(20_000))
    assert older.read_ids == [older.id(i) for i in range(read)]


def test_a_chunk_that_the_older_object_has_twice_says_nothing():
    older = Older.of(200)
    manifest_of = older.id
    older.id = lambda i: manifest_of(7 if i == 190 else i)  # type: ignore[method-assign]
    aligned = older.aligned()
    aligned.known(0, CHUNK, manifest_of(7))
    candidates = aligned.candidates(CHUNK, 2 * CHUNK, touched(older.chunks[1], 3000))
    assert [each.base.chunk_id for each in candidates] == [manifest_of(1)]


def test_of_a_chunk_that_two_segments_have_the_nearest_counts(monkeypatch):
    small = 64
    older = Older([b"%064d" % i for i in range(SEGMENT_EXTENTS_MAX + 100)])
    last = SEGMENT_EXTENTS_MAX + 90
    id_of = older.id
    older.id = lambda i: id_of(5 if i == last else i)  # type: ignore[method-assign]
    for segments, begin, expected in ((4, 0, 5), (4, last - 6, last), (1, 0, 5), (1, last, last)):
        monkeypatch.setattr(alignment, "SEGMENTS_MAX", segments)
        aligned = older.aligned()
        aligned.known(0, small, id_of(4))
        for at in (0, begin, begin):  # where it is looked for, its segment is known afterwards
            aligned.known(at * small, (at + 1) * small, id_of(5))
        assert aligned.expected_at(begin * small) == expected * small
        assert len(aligned._segments) <= segments


def test_what_is_expected_is_what_lies_around_the_place_and_no_more_than_there_is():
    older = Older.of(20)
    aligned = older.aligned()

    def expected(first: int, last: int) -> list[int]:
        found = aligned.expected(first * CHUNK, last * CHUNK)
        return [int.from_bytes(extent.chunk_id, "big") for extent in found]

    assert alignment.MARGIN_BYTES == 2 * CHUNK
    assert expected(0, 1) == [0, 1, 2]
    assert expected(5, 6) == [*range(3, 8)]
    aligned.known(0, CHUNK, older.id(10))
    assert expected(1, 2) == [*range(9, 14)]
    assert expected(9, 12) == [17, 18, 19]
    assert expected(12, 13) == expected(30, 31) == []
    aligned.known(19 * CHUNK, 20 * CHUNK, older.id(0))
    assert expected(0, 1) == []
    assert not aligned.candidates(0, CHUNK, touched(older.chunks[19], 3000))


def test_the_longer_nothing_is_found_the_less_is_tried():
    tried = [lost for lost in range(5 * 64) if is_time(lost)]
    assert tried == [*range(8), 8, 10, 12, 14, 16, 20, 24, 32, 64, 128, 192, 256]


def test_a_stream_of_something_else_is_looked_at_less_and_less():
    sizes = []

    class Counted(AnchoredBases):
        def of_new(self, raw):
            sizes.append(len(raw))
            return super().of_new(raw)

    older = Older.of(1000)
    aligned = Alignment(older.manifest(), len(older.data), Counted(older.read))
    assert not any(found(aligned, random.Random(5).randbytes(20_000_000)))
    assert len(sizes) < 1000 // 16
    assert len(older.read_ids) < 1000 // 4


def test_a_version_is_found_again_behind_what_is_none_of_it():
    """Not at once: by then one chunk in some is tried."""
    older = Older.of(60)
    begin, end = 400_000, 1_000_000
    other = random.Random(6).randbytes(end - begin)
    bases = found(older.aligned(), touched(older.data[:begin] + other + older.data[end:], 3000))
    assert all(bases[: begin // 20_000])
    assert not any(bases[begin // 20_000 : end // 20_000])
    again = [bool(ids) for ids in bases[end // 20_000 :]]
    missed = again.index(True)
    assert 0 < missed <= 8
    assert all(again[missed:])


def test_a_stream_follows_the_older_object_until_nothing_was_found_for_long():
    older = Older.of(4)
    aligned = older.aligned()
    aligned.candidates(0, 100, bytes(100))
    assert not aligned.follows
    for _ in range(2):
        aligned.known(0, CHUNK, older.id(1))
        for _ in range(alignment.FOLLOWED):
            assert aligned.follows
            assert aligned.candidates(0, 100, bytes(100)) == []
        assert not aligned.follows


def test_the_table_is_bounded(monkeypatch):
    monkeypatch.setattr(alignment, "TABLE_BASES_MAX", 20)
    older = Older.of(100)
    aligned = older.aligned()
    assert all(found(aligned, touched(older.data, 3000)))
    assert len(aligned._loaded) == 20
    assert len(aligned._by_slot) == 20


def test_bases_that_are_not_to_be_had_are_none():
    older = Older.of(20)
    aligned = Alignment(older.manifest(), len(older.data), AnchoredBases(lambda base: None))
    assert not any(found(aligned, older.data))


def test_no_anchors_no_candidates():
    older = Older([bytes(CHUNK)] * 20)
    assert not any(found(older.aligned(), bytes(300_000)))


@pytest.mark.parametrize("size", [0, 1])
def test_an_older_object_of_nothing(size):
    aligned = Alignment(Manifest([], 0), 0, AnchoredBases(lambda base: b""))
    aligned.known(0, CHUNK, bytes(16))
    assert not aligned.candidates(CHUNK, CHUNK + 20_000, random.Random(1).randbytes(20_000 * size))


def test_the_bases_of_deltas_are_those_of_what_they_lie_under():
    first = Older.of(30)
    aligned = Alignment(first.manifest(bases=True), 30 * CHUNK, AnchoredBases(first.read))
    version = touched(first.data, 3000)
    for (begin, end, _), ids in zip(cut(version), found(aligned, version), strict=True):
        assert ids
        assert set(ids) <= overlapping(begin, end)
