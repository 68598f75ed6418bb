"""Decoding chunks together: what is fetched, how often, and what of it may be damaged."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from frames import encode_frame

from castore.errors import ChunkCorrupt, FormatError
from castore.model import Location, StoredChunk
from castore.stream.backend import NOTHING_HELD, Held
from castore.stream.codec import chunk_id_of, delta_frame
from castore.stream.decoding import DecodedChunks, Decoder
from castore.stream.delta import encode_delta

SEED = 7
PACK = bytes(16)


class FakePacks:
    """Frames by their offsets; `damaged` ones are damaged for so many fetches."""

    task_bytes = 1 << 20

    def __init__(self) -> None:
        self.frames_at: dict[int, bytes] = {}
        self.damaged: dict[int, int] = {}
        self.fetched: list[list[int]] = []
        self.forgotten: list[int] = []

    def add(self, frame: bytes, bases: tuple[StoredChunk, ...] = ()) -> Location:
        offset = 1000 * len(self.frames_at)
        self.frames_at[offset] = frame
        return Location(PACK, offset, len(frame), bases)

    def frames(self, places: Sequence[Location], held: Held) -> list[bytes]:
        self.fetched.append([place.offset for place in places])
        return [self._frame(place.offset) for place in places]

    def _frame(self, offset: int) -> bytes:
        frame = self.frames_at[offset]
        left = self.damaged.get(offset, 0)
        if not left:
            return frame
        self.damaged[offset] = left - 1
        return frame[:-1] + bytes([frame[-1] ^ 1])

    def forget(self, *locations: Location) -> None:
        self.forgotten += [location.offset for location in locations]

    def at_hand(self, place: Location) -> None:
        raise AssertionError

    def hold(self, pack_ids: object) -> Held:
        raise AssertionError

    def let_go(self, places: object, held: Held) -> None:
        raise AssertionError


@pytest.fixture
def packs() -> FakePacks:
    return FakePacks()


def stored(packs: FakePacks, raw: bytes) -> StoredChunk:
    frame = encode_frame(raw, chunk_id_of(raw, SEED), level=1)
    return StoredChunk(frame.chunk_id, len(raw), packs.add(frame.head + frame.payload))


def delta_of(packs: FakePacks, raw: bytes, bases: dict[StoredChunk, bytes]) -> StoredChunk:
    payload = encode_delta(raw, list(bases.values()))
    assert payload is not None
    chunk_id = chunk_id_of(raw, SEED)
    frame = delta_frame(payload, [base[:2] for base in bases], chunk_id, len(raw))
    return StoredChunk(chunk_id, len(raw), packs.add(frame.head + frame.payload, tuple(bases)))


@pytest.fixture
def series(packs: FakePacks) -> tuple[list[StoredChunk], list[StoredChunk], list[bytes]]:
    """Three chunks, then three deltas, each of two of them that follow each other."""
    made = random.Random(3)
    texts = [b"".join(b"%d %d\n" % (n, made.randrange(99)) for n in range(2000)) for _ in range(3)]
    bases = [stored(packs, text) for text in texts]
    raws = [texts[i][5000:] + b"between" + texts[(i + 1) % 3][:9000] for i in range(3)]
    deltas = [
        delta_of(packs, raw, {bases[j]: texts[j] for j in (i, (i + 1) % 3)})
        for i, raw in enumerate(raws)
    ]
    return bases, deltas, raws


def offsets(chunks: Sequence[StoredChunk]) -> list[int]:
    return [chunk.location.offset for chunk in chunks]


def test_all_that_deltas_need_is_fetched_at_once_and_kept(packs, series):
    bases, deltas, raws = series
    kept = DecodedChunks(1 << 20)
    assert Decoder(packs, SEED, deltas, NOTHING_HELD, kept).all() == raws
    assert packs.fetched == [offsets(bases) + offsets(deltas)]
    assert Decoder(packs, SEED, deltas[:1], NOTHING_HELD, kept).all() == raws[:1]
    assert packs.fetched[1:] == [offsets(deltas[:1])]


def test_parts_are_of_about_so_many_bytes(packs, series):
    _, deltas, raws = series
    decoder = Decoder(packs, SEED, deltas, NOTHING_HELD, DecodedChunks(0))
    assert list(decoder.parts(len(raws[0]) + 1)) == [raws[:2], raws[2:]]
    assert len(packs.fetched) == 1


def test_what_is_damaged_once_is_fetched_again_in_one_go(packs, series):
    bases, deltas, raws = series
    packs.damaged = dict.fromkeys(offsets(bases), 1) | {deltas[1].location.offset: 1}
    assert Decoder(packs, SEED, deltas, NOTHING_HELD, DecodedChunks(0)).all() == raws
    assert packs.fetched[1:] == [offsets(bases), offsets(deltas[1:2])]
    assert packs.forgotten == offsets(bases) + offsets(deltas[1:2])


def test_a_base_that_stays_damaged_is_named(packs, series):
    bases, deltas, _ = series
    packs.damaged = {bases[1].location.offset: 9}
    with pytest.raises(ChunkCorrupt) as caught:
        Decoder(packs, SEED, deltas, NOTHING_HELD, DecodedChunks(0)).all()
    assert (caught.value.chunk_id, caught.value.offset) == (
        bases[1].chunk_id,
        bases[1].location.offset,
    )


def test_a_pack_that_is_too_short_is_tried_chunk_by_chunk(packs, series, monkeypatch):
    """What can be read is not known before: the one that can't is named."""
    _, deltas, raws = series
    real, gone = packs.frames, deltas[2].location.offset

    def frames(places: Sequence[Location], held: Held) -> list[bytes]:
        if gone in [place.offset for place in places]:
            raise FormatError("too short")
        return real(places, held)

    monkeypatch.setattr(packs, "frames", frames)
    with pytest.raises(ChunkCorrupt) as caught:
        Decoder(packs, SEED, deltas, NOTHING_HELD, DecodedChunks(0)).all()
    assert caught.value.chunk_id == deltas[2].chunk_id
    assert Decoder(packs, SEED, deltas[:2], NOTHING_HELD, DecodedChunks(0)).all() == raws[:2]


def test_a_base_that_the_index_does_not_name_is_not_used(packs, series):
    _, deltas, _ = series
    location = deltas[0].location
    wrong = deltas[0]._replace(location=location._replace(bases=location.bases[:1]))
    with pytest.raises(ChunkCorrupt, match="not known"):
        Decoder(packs, SEED, [wrong], NOTHING_HELD, DecodedChunks(0)).all()
