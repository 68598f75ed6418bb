"""The bases that are found anywhere, and what it takes to look for them."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from older_objects import CHUNK, Older

from castore.model import Location, StoredChunk
from castore.stream import lookalikes
from castore.stream.alignment import Alignment, Candidate
from castore.stream.anchored import AnchoredBases
from castore.stream.bases import FindAlignment, Found, StreamBases, find_bases
from castore.stream.lookalikes import NO_PLACE, LookAlikes
from castore.stream.session import NewFrame

PLACE = Location(b"p" * 16, 100, 50)


def text(number: int, size: int = CHUNK) -> bytes:
    """Not so random that nobody would look at it."""
    return random.Random(f"text {number}").randbytes(size // 2).hex().encode()


def touched(raw: bytes, every: int = 3000) -> bytes:
    changed = bytearray(raw)
    for at in range(every // 2, len(changed), every):
        changed[at] ^= 1
    return bytes(changed)


def chunk_id(number: int) -> bytes:
    return number.to_bytes(16, "big")


def nothing(_: StoredChunk) -> None:
    raise AssertionError("this has its bytes in memory")


def ids(found: list[Candidate]) -> list[int]:
    return [int.from_bytes(each.base.chunk_id, "big") for each in found]


def with_chunks(count: int) -> LookAlikes:
    found = LookAlikes(AnchoredBases(nothing))
    for number in range(count):
        assert found.candidates(text(number), [], None, 0) == []
        found.add(chunk_id(number), text(number))
    return found


def test_a_chunk_is_found_by_what_is_like_it_wherever_that_is() -> None:
    found = with_chunks(40)
    [first] = found.candidates(touched(text(7)), [], None, 0)
    assert ids([first]) == [7]
    assert first.share > 0.8
    assert found.is_own(first.base)
    assert found.bytes_of(first.base) == text(7)
    half = text(8)[: CHUNK // 2] + text(9)[CHUNK // 2 :]
    assert sorted(ids(found.candidates(half, [], None, 0))) == [8, 9]


def test_what_is_found_at_its_place_goes_first() -> None:
    found = with_chunks(3)
    aligned = [Candidate(StoredChunk(b"a" * 16, CHUNK, PLACE), lookalikes.ALIGNED_SHARE)]
    assert found.candidates(touched(text(1)), aligned, None, 0) == aligned
    little = [Candidate(aligned[0].base, 0.3)]
    assert ids(found.candidates(touched(text(1)), little, None, 0)) == [1]
    assert found.candidates(text(50), little, None, 0) == little
    # Of so little no delta is made: the chunk is a full frame, which later ones may be made of.
    assert found.candidates(text(50), [Candidate(aligned[0].base, 0.1)], None, 0) == []


def test_words_in_common_are_not_alike() -> None:
    """Anchors that both have, in no order that both have."""
    pieces = [text(number, 256) for number in range(CHUNK // 256)]
    found = LookAlikes(AnchoredBases(nothing))
    found.candidates(b"".join(pieces), [], None, 0)
    found.add(chunk_id(1), b"".join(pieces))
    shuffled = random.Random(1).sample(pieces, len(pieces))
    assert found.candidates(b"".join(shuffled), [], None, 0) == []
    assert ids(found.candidates(b"".join(pieces[40:] + pieces[:40]), [], None, 0)) == [1]


def test_once_it_has_its_place_it_is_read_from_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookalikes, "RECENT_BYTES_MAX", 2 * CHUNK)
    read: list[StoredChunk] = []
    reads = AnchoredBases(lambda base: read.append(base) or text(0))  # type: ignore[func-returns-value]
    found = LookAlikes(reads)
    for number in range(5):
        found.candidates(text(number), [], None, 0)
        found.add(chunk_id(number), text(number))
    [first] = found.candidates(touched(text(0)), [], None, 0)
    assert first.base.location is NO_PLACE
    assert found.bytes_of(first.base) is None
    found.placed(chunk_id(0), lambda _: PLACE)
    [first] = found.candidates(touched(text(0)), [], None, 0)
    assert first.base.location == PLACE
    assert found.bytes_of(first.base) == text(0)
    assert read == [first.base]


def test_where_nothing_is_alike_fewer_and_fewer_are_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lookalikes, "TRIED_ALWAYS", 16)
    monkeypatch.setattr(lookalikes, "CREDIT_FIRST", 0)
    found, looked = LookAlikes(AnchoredBases(nothing)), list[int]()
    for number in range(16 * 7 + 640):
        assert found.candidates(text(number, 8192), [], None, 0) == []
        if found.looks:
            looked.append(number)
            found.add(chunk_id(number), text(number, 8192))
    assert looked[:16] == [*range(16)]
    assert len([number for number in looked if number >= 16 * 7]) == 10
    assert ids(found.candidates(touched(text(3, 8192)), [], None, 0)) == []  # not its turn
    while not found.looks:
        last = found.candidates(touched(text(3, 8192)), [], None, 0)
    assert ids(last) == [3]
    monkeypatch.setattr(lookalikes, "CREDIT_MAX", 100)
    for number in range(2, 12):  # once some are found, all are looked at again
        found.candidates(touched(text(number, 8192)), [], None, 0)
    assert ids(found.candidates(touched(text(4, 8192)), [], None, 0)) == [4]


def test_what_is_compressed_already_is_not_looked_at() -> None:
    found, raw = LookAlikes(AnchoredBases(nothing)), random.Random(1).randbytes(CHUNK)
    found.candidates(raw, [], None, 0)
    found.add(chunk_id(1), raw)
    assert found.candidates(touched(raw), [], None, 0) == []


def test_slots_are_given_away_the_oldest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookalikes, "SLOTS", 10)
    found = with_chunks(25)
    assert [ids(found.candidates(touched(text(n)), [], None, 0)) for n in (14, 15, 24)] == [
        [],
        [15],
        [24],
    ]


def test_what_lost_its_slot_is_known_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookalikes, "SLOTS", 4)
    found = with_chunks(4)
    [first] = found.candidates(touched(text(0)), [], None, 0)
    assert found.is_own(first.base)
    assert found.candidates(text(4), [], None, 0) == []
    found.add(chunk_id(4), text(4))
    assert not found.is_own(first.base)
    assert found.bytes_of(first.base) is None
    found.placed(chunk_id(0), lambda _: PLACE)  # it was under way
    assert found.candidates(touched(text(0)), [], None, 0) == []
    found.add(chunk_id(0), text(0))
    assert ids(found.candidates(touched(text(0)), [], None, 0)) == [0]
    assert found._recent_bytes == 4 * CHUNK


# ---- the older object ----------------------------------------------------------------------------


def older_of(count: int) -> tuple[Older, Alignment]:
    older = Older([text(number) for number in range(count)])
    alignment = older.aligned()
    alignment.known(0, CHUNK, older.id(0))
    return older, alignment


def test_an_older_object_in_which_nothing_was_found_is_not_read() -> None:
    older = Older([text(number) for number in range(40)])
    found = LookAlikes(AnchoredBases(older.read))
    assert found.candidates(text(100), [], older.aligned(), 0) == []
    assert older.read_ids == []


def test_only_a_frame_of_this_stream_is_its_own() -> None:
    """Of any other it is asked whether it can be relied on."""
    older, alignment = older_of(4)
    found = LookAlikes(AnchoredBases(older.read))
    assert found.candidates(text(100), [], alignment, 0) == []
    found.add(chunk_id(100), text(100))
    [theirs] = found.candidates(touched(text(2)), [], alignment, 0)
    assert not found.is_own(theirs.base)
    [mine] = found.candidates(touched(text(100)), [], alignment, 0)
    assert found.is_own(mine.base)
    assert not found.is_own(mine.base._replace(location=PLACE))  # another frame of the same chunk
    assert not found.is_own(StoredChunk(chunk_id(7), CHUNK, PLACE))


def test_only_what_has_no_place_gets_one() -> None:
    older, alignment = older_of(4)
    found, asked = LookAlikes(AnchoredBases(older.read)), list[bytes]()

    def location(of: bytes) -> Location:
        asked.append(of)
        return PLACE._replace(offset=len(asked))

    found.candidates(text(100), [], alignment, 0)
    found.add(chunk_id(100), text(100))
    for number in (2, 50, 100, 100):  # the older object's, nobody's, and ours
        found.placed(chunk_id(number), location)
    assert asked == [chunk_id(100)]
    [theirs] = found.candidates(touched(text(2)), [], alignment, 0)
    assert theirs.base.location == Location(b"p" * 16, 2, 100)


def test_what_of_the_older_object_is_not_to_be_had_is_passed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    older, alignment = older_of(6)
    lost = older.id(2)
    found = LookAlikes(AnchoredBases(lambda it: None if it.chunk_id == lost else older.read(it)))
    assert found.candidates(touched(text(2)), [], alignment, 0) == []
    assert ids(found.candidates(touched(text(5)), [], alignment, 0)) == [5]
    monkeypatch.setattr(alignment.older, "covering", lambda *_: [])  # not even its segments
    found = LookAlikes(AnchoredBases(nothing))
    assert found.candidates(touched(text(5)), [], alignment, 0) == []


def test_what_the_older_object_has_twice_has_one_slot() -> None:
    older = Older([text(number) for number in range(6)])
    numbers = [0, 1, 0, 1, 0, 5]
    older.id = lambda i: chunk_id(numbers[i])  # type: ignore[method-assign]
    alignment = older.aligned()
    alignment.known(5 * CHUNK, 6 * CHUNK, chunk_id(5))
    found = LookAlikes(AnchoredBases(older.read))
    assert ids(found.candidates(touched(text(1)), [], alignment, 0)) == [1]
    assert len(found._slots) == len(found._bases) == 3


def test_of_deltas_in_the_older_object_the_bases_are_read() -> None:
    older = Older([text(number) for number in range(6)])
    reads = AnchoredBases(older.read)
    alignment = Alignment(older.manifest(bases=True), len(older.data), reads)
    assert alignment.candidates(0, CHUNK, touched(text(0)))
    assert ids(LookAlikes(reads).candidates(touched(text(5)), [], alignment, CHUNK)) == [5]


def test_the_older_object_is_read_a_little_for_each_that_finds_too_little(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lookalikes, "OLDER_BASES", 4)
    older, alignment = older_of(40)
    found = LookAlikes(AnchoredBases(older.read))
    for number in range(5):
        assert found.candidates(text(100 + number), [], alignment, 0) == []
        assert len(older.read_ids) == 4 * (number + 1)
    moved = touched(text(11))
    assert ids(found.candidates(moved, [], alignment, 0)) == [11]
    assert len(older.read_ids) == 20
    for number in range(20):
        found.candidates(text(200 + number), [], alignment, 0)
    assert older.read_ids == [older.id(i) for i in range(40)]


def test_only_around_the_place_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookalikes, "OLDER_BASES", 1000)
    monkeypatch.setattr(lookalikes, "BEHIND_BYTES", 4 * CHUNK)
    monkeypatch.setattr(lookalikes, "AHEAD_BYTES", 6 * CHUNK)
    older, alignment = older_of(40)
    found = LookAlikes(AnchoredBases(older.read))
    found.candidates(text(100), [], alignment, 20 * CHUNK)
    read = [int.from_bytes(each, "big") for each in older.read_ids]
    assert read[0] == 16
    assert 25 <= read[-1] <= 26


# ---- chunks that are changed while they are put --------------------------------------------------


def changing() -> Iterator[tuple[bytes, NewFrame]]:
    yield chunk_id(1), NewFrame(text(1), chunk_id(1))
    yield chunk_id(2), NewFrame(text(2), chunk_id(99))  # not what was cut any more
    yield chunk_id(3), NewFrame(touched(text(1)), chunk_id(3))
    yield chunk_id(4), NewFrame(touched(text(2)), chunk_id(4))


@pytest.mark.plain("it counts bases")
def test_what_changed_since_it_was_cut_is_no_base() -> None:
    frames = dict(changing())
    cut = [(n * CHUNK, (n + 1) * CHUNK, key) for n, key in enumerate(frames)]
    StreamBases(None, FindAlignment(lambda beside=True: None, AnchoredBases(nothing))).find(
        cut, 0, frames
    )  # type: ignore[arg-type]
    assert [base.chunk.chunk_id for base in frames[chunk_id(3)].bases] == [chunk_id(1)]
    assert [len(frame.bases) for frame in frames.values()] == [0, 0, 1, 0]


# ---- chunks that are there twice -----------------------------------------------------------------


def bases_of(numbers: list[int], alignment: Alignment | None) -> Found:
    """What is found for these chunks, in this order. The second is the first, a little changed."""
    raws = {chunk_id(n): touched(text(1)) if n == 2 else text(n) for n in numbers}
    cut = [(at * CHUNK, (at + 1) * CHUNK, chunk_id(n)) for at, n in enumerate(numbers)]
    return find_bases(alignment, cut, 0, raws, LookAlikes(AnchoredBases(nothing)))


def test_what_is_there_twice_is_no_delta_of_what_comes_between(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is placed where it is first. (A put failed: "was lost while it was put".)"""
    is_time = iter([False, True, True, True])
    monkeypatch.setattr(LookAlikes, "_is_time", lambda *_: next(is_time))
    assert bases_of([1, 2, 1, 3], None) == {}


def test_a_base_that_is_there_twice_is_no_delta_where_it_comes_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """(A put failed: "became a delta while it was put".)"""
    older = Older([text(1)])
    alignment = older.aligned()
    [base] = (extent.stored for extent in alignment.older.covering(0, CHUNK))
    aligned = iter([[], [], [Candidate(base, 0.9)]])
    monkeypatch.setattr(alignment, "candidates", lambda *_: next(aligned))
    found = bases_of([1, 2, 1], alignment)
    assert {i: [base.own for base in bases] for i, bases in found.items()} == {chunk_id(2): [True]}
