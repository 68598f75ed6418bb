"""What new chunks may be deltas of: who is asked for it, what is relied on, and where frames go."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping, Sequence

import pytest

from castore.errors import StoreIOError
from castore.model import Extent, Location, StoredChunk
from castore.stream.alignment import Candidate
from castore.stream.anchored import AnchoredBases
from castore.stream.bases import FindAlignment, StreamBases, find_bases, reliable_bases
from castore.stream.codec import Frame
from castore.stream.lookalikes import NO_PLACE, LookAlikes
from castore.stream.session import Base, Encoded, NewFrame

PLACE = Location(b"p" * 16, 100, 50)
ELSEWHERE = Location(b"q" * 16, 7, 50)


def chunk_id(number: int) -> bytes:
    return number.to_bytes(16, "big")


def stored(number: int, location: Location = PLACE) -> StoredChunk:
    return StoredChunk(chunk_id(number), 10, location)


def text(number: int) -> bytes:
    """Not so random that nobody would look at it."""
    return random.Random(f"text {number}").randbytes(8192).hex().encode()


class Aligned:
    """An alignment that finds what it was given, and notes what it is asked and told."""

    is_version = follows = False

    def __init__(self, found: Sequence[StoredChunk] = (), lost: Collection[StoredChunk] = ()):
        self.calls: list[tuple[str, int, int, bytes]] = []
        self._found = [Candidate(base, 0.9) for base in found]
        self._lost = lost

    def known(self, begin: int, end: int, chunk_id: bytes) -> None:
        self.calls.append(("known", begin, end, chunk_id))

    def candidates(self, begin: int, end: int, raw: bytes) -> list[Candidate]:
        self.calls.append(("new", begin, end, raw))
        return self._found

    def bytes_of(self, base: StoredChunk) -> bytes | None:
        return None if base in self._lost else base.chunk_id

    def expected(self, begin: int, end: int) -> list[Extent]:
        return [Extent(begin, end, chunk_id(1), PLACE)]


class Session:
    """What is placed in it has places from 1000 up, and may be a delta."""

    level = 0

    def __init__(self) -> None:
        self.batches: list[list[Encoded]] = []
        self.places: dict[bytes, Location] = {}

    def place(self, encoded: Sequence[Encoded]) -> None:
        for frame, bases in encoded:
            at = Location(b"s" * 16, 1000 + len(self.places), frame.stored_bytes, bases=bases)
            self.places[frame.chunk_id] = at
        self.batches.append([*encoded])

    def location(self, chunk_id: bytes) -> Location:
        return self.places[chunk_id]

    def reliable(self, bases: Collection[StoredChunk]) -> Mapping[StoredChunk, StoredChunk]:
        """Even ones, which were moved. Not to be asked of nothing: it may be a round trip."""
        assert bases
        even = [base for base in bases if base.chunk_id[-1] % 2 == 0]
        return {base: base._replace(location=ELSEWHERE) for base in even}


# ---- what is asked -------------------------------------------------------------------------------


def test_the_alignment_is_told_where_in_the_object_each_chunk_is():
    """Of chunks that are known one after the other, the last tells where the stream is."""
    ids = [chunk_id(number) for number in (1, 2, 3, 4, 5, 3, 6, 7)]
    new = {chunk_id(number): b"%d" % number for number in (3, 4, 6)}
    aligned = Aligned()
    cut = [(at * 10, at * 10 + 9, each) for at, each in enumerate(ids)]
    assert find_bases(aligned, cut, 1000, new) == {}  # type: ignore[arg-type]
    assert find_bases(None, cut, 1000, new) == {}  # beside nothing there is nobody to tell
    assert aligned.calls == [
        ("known", 1010, 1019, chunk_id(2)),
        ("new", 1020, 1029, b"3"),
        ("new", 1030, 1039, b"4"),
        ("known", 1040, 1049, chunk_id(5)),
        ("new", 1060, 1069, b"6"),
        ("known", 1070, 1079, chunk_id(7)),
    ]


@pytest.mark.parametrize("lookalikes", [False, True])
def test_bases_whose_bytes_are_not_to_be_had_are_left_out(lookalikes: bool):
    raws = {stored(number): chunk_id(number) for number in (1, 3)}
    aligned = Aligned([stored(1), stored(2), stored(3)], lost=[stored(2)])
    alike = LookAlikes(AnchoredBases(raws.get)) if lookalikes else None
    found = find_bases(aligned, [(0, 10, chunk_id(9))], 0, {chunk_id(9): b"9"}, alike)  # type: ignore[arg-type]
    assert found == {chunk_id(9): [Base(stored(1), chunk_id(1)), Base(stored(3), chunk_id(3))]}


def test_a_chunk_that_is_not_looked_at_is_found_by_no_other(monkeypatch: pytest.MonkeyPatch):
    """It is not its turn: to note what it has would take as long as to look for it."""
    looks = iter([False, True])
    monkeypatch.setattr(LookAlikes, "_is_time", lambda *_: next(looks))
    new = {chunk_id(1): text(1), chunk_id(2): text(1)[100:]}
    cut = [(0, 10, chunk_id(1)), (10, 20, chunk_id(2))]
    assert find_bases(None, cut, 0, new, LookAlikes(AnchoredBases({}.get))) == {}


class Finds:
    """Counts how often an older object is looked for, which is a request or more."""

    def __init__(self, aligned: Aligned | None) -> None:
        self.count = 0
        self._aligned = aligned

    def __call__(self, *, beside: bool = True) -> Aligned | None:
        self.count += 1
        return self._aligned


@pytest.mark.parametrize("aligned", [Aligned(), None])
def test_an_older_object_is_looked_for_once_and_not_for_chunks_that_are_known(
    aligned: Aligned | None,
):
    finds = Finds(aligned)
    align = FindAlignment(finds, AnchoredBases({}.get))  # type: ignore[arg-type]
    bases = StreamBases(Session(), align)  # type: ignore[arg-type]
    bases.find([(0, 10, chunk_id(1))], 0, {})
    assert finds.count == 0
    for number in range(3):
        frames = {chunk_id(number): NewFrame(text(number), chunk_id(number))}
        bases.find([(0, 10, chunk_id(number))], 0, frames)
    assert finds.count == 1


def test_what_is_expected_is_asked_of_the_older_object_if_there_is_one():
    finds = Finds(Aligned())
    bases = StreamBases(Session(), FindAlignment(finds, AnchoredBases({}.get)))  # type: ignore[arg-type]
    for _ in range(2):
        assert bases.expected(10, 20) == [Extent(10, 20, chunk_id(1), PLACE)]
    assert finds.count == 1
    bases = StreamBases(Session(), FindAlignment(Finds(None), AnchoredBases({}.get)))  # type: ignore[arg-type]
    assert bases.expected(10, 20) == ()
    assert StreamBases(Session(), None).expected(10, 20) == ()  # type: ignore[arg-type]


# ---- what is relied on ---------------------------------------------------------------------------


def test_bases_that_cannot_be_relied_on_are_left_out_and_others_are_where_they_are_by_now():
    own = Base(stored(1, NO_PLACE), b"own", own=True)
    there, gone = Base(stored(2), b"there"), Base(stored(3), b"gone")
    found = {chunk_id(8): [gone, own, there], chunk_id(9): [gone]}
    moved = there._replace(chunk=stored(2, ELSEWHERE))
    assert reliable_bases(Session(), found) == {chunk_id(8): [own, moved], chunk_id(9): []}  # type: ignore[arg-type]
    assert reliable_bases(Session(), {chunk_id(8): [own]}) == {chunk_id(8): [own]}  # type: ignore[arg-type]


# ---- where frames go -----------------------------------------------------------------------------


def encoded(number: int, *bases: StoredChunk) -> Encoded:
    frame = Frame(chunk_id(number), 10, b"head", b"payload")
    return Encoded(frame._replace(bases=tuple(base.chunk_id for base in bases)), bases)


def placed(*batches: Sequence[Encoded]) -> tuple[Session, Callable[[bytes], Location]]:
    session = Session()
    bases = StreamBases(session, None)  # type: ignore[arg-type]
    for each in batches:
        bases.place(each)
    return session, session.location


def test_frames_are_placed_in_their_order_and_a_base_before_its_delta():
    mine, other = stored(1, NO_PLACE), stored(5)
    frames = [encoded(1), encoded(2, other), encoded(3, other, mine), encoded(4)]
    session, location = placed(frames)
    assert [[each.frame.chunk_id[-1] for each in batch] for batch in session.batches] == [
        [1, 2],
        [3, 4],
    ]
    assert location(chunk_id(2)).bases == (other,)
    assert location(chunk_id(3)).bases == (other, mine._replace(location=location(chunk_id(1))))


@pytest.mark.plain("it counts on which chunks are deltas")
@pytest.mark.parametrize("at_once", [2, 3])
def test_what_was_placed_is_a_base_from_there_on(at_once: int):
    """Where there were enough chunks at once for a table, which is kept from then on."""
    session = Session()
    align = FindAlignment(Finds(None), AnchoredBases({}.get))  # type: ignore[arg-type]
    bases = StreamBases(session, align)  # type: ignore[arg-type]

    def find(raws: dict[int, bytes]) -> list[list[Base]]:
        frames = {chunk_id(n): NewFrame(raw, chunk_id(n)) for n, raw in raws.items()}
        bases.find([(n * 10, n * 10 + 10, chunk_id(n)) for n in raws], 0, frames)
        return [[*frame.bases] for frame in frames.values()]

    numbers = range(1, 1 + at_once)
    assert not any(find({n: text(n) for n in numbers}))
    bases.place([encoded(n) for n in numbers])
    found = find({7: text(1)[100:], 8: text(8), 9: text(9)})
    at = session.location(chunk_id(1))
    base = Base(StoredChunk(chunk_id(1), len(text(1)), at), text(1), own=True)
    assert found == [[base] if at_once == 3 else [], [], []]


def test_of_what_became_a_delta_none_is_made():
    """What is made of it would take two steps to read."""
    with pytest.raises(StoreIOError, match=rf"{chunk_id(1).hex()} became a delta"):
        placed([encoded(1, stored(5))], [encoded(2, stored(1, NO_PLACE))])
