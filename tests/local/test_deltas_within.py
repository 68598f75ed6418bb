"""Deltas of what the same put has stored: a first version whose parts resemble each other."""

from __future__ import annotations

import io
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from collected import pack_files
from driver_model import Source
from sessions import small_batches, small_stages, some_bytes
from stores import small
from versions import assert_whole, bases, extents, written_by_turns

import castore
from castore.model import SEGMENT_EXTENTS_MAX
from castore.stream import session
from castore.stream.bases import StreamBases
from castore.stream.lookalikes import LookAlikes
from castore.stream.session import Encoded

PART = 60_000


def part(number: int, seed: int = 0, size: int = PART) -> bytes:
    """Every chunk of one is touched, and resembles that of the others of a seed."""
    raw = bytearray(some_bytes(size // 2, seed).hex().encode())
    for at in range(400, size, 600):
        raw[at] ^= number
    return bytes(raw)


ALIKE = part(0) + part(0, seed=1) + part(1)


def own_bases(store: castore.Store, name: str) -> set[bytes]:
    """Chunks that are there as they are, and that deltas of the same object are made of."""
    full = {extent.stored for extent in extents(store, name) if not extent.location.bases}
    return {base.chunk_id for base in bases(store, name) & full}


@pytest.mark.plain("it counts on which chunks are deltas")
def test_what_resembles_an_earlier_part_of_the_object_is_a_delta_of_it(
    guarded: castore.Store,
) -> None:
    alone = guarded.puts("alone", part(0, seed=2) + part(0, seed=3) + part(0, seed=4))
    assert alone.deltas == 0
    info = guarded.puts("x", ALIKE)
    assert info.deltas > info.chunks / 4
    assert info.stored_bytes < 0.75 * alone.stored_bytes
    assert {base.chunk_id for base in bases(guarded, "x")} == own_bases(guarded, "x")
    assert_whole(guarded, {"alone": alone_bytes(), "x": ALIKE})


def alone_bytes() -> bytes:
    return part(0, seed=2) + part(0, seed=3) + part(0, seed=4)


def test_without_deltas_none_is_made(tmp_path: Path) -> None:
    with small(tmp_path / "store", delta=False) as store:
        assert store.puts("x", ALIKE).deltas == 0


def test_the_next_version_is_made_of_the_same_bases(guarded: castore.Store) -> None:
    """What was a delta can't be a base."""
    guarded.puts("x", ALIKE)
    before = own_bases(guarded, "x")
    later = part(0) + part(0, seed=1) + part(2)
    assert guarded.puts("x", later).deltas > 0
    assert all(not base.location.bases for base in bases(guarded, "x"))
    assert before & {base.chunk_id for base in bases(guarded, "x")}
    assert_whole(guarded, {"x": later})


def test_bases_are_segments_away_from_their_deltas(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("castore.stream.lookalikes.TRIED_ALWAYS", 10_000)
    between = some_bytes(2200 * SEGMENT_EXTENTS_MAX, 7).hex().encode()
    with small(tmp_path / "store") as store:
        info = store.puts("x", part(0) + between + part(1))
        assert info.chunks > SEGMENT_EXTENTS_MAX
        assert info.deltas > 10
        store.gc(repack_below=1.0)
        assert_whole(store, {"x": part(0) + between + part(1)})


def test_what_is_appended_is_made_of_what_was_there(store: castore.Store) -> None:
    store.puts("x", part(0))
    with store.open("x", "ab") as file:
        file.write(part(0, seed=1) + part(1) + part(2, seed=1))
    assert store.info("x").deltas > store.info("x").chunks / 4
    assert_whole(store, {"x": part(0) + part(0, seed=1) + part(1) + part(2, seed=1)})


@pytest.mark.parametrize("tried_always", [2, 3, 5])
def test_the_same_and_alike_pieces_in_any_order(
    guarded: castore.Store, monkeypatch: pytest.MonkeyPatch, tried_always: int
) -> None:
    """Of some chunks nothing is looked for, and of others it is, also where they come again. (One
    put in twenty failed.)"""
    monkeypatch.setattr("castore.stream.alignment.TRIED_ALWAYS", tried_always)
    for constant in ("TRIED_ALWAYS", "CREDIT_FIRST", "FOUND_CREDIT", "CREDIT_MAX"):
        monkeypatch.setattr(f"castore.stream.lookalikes.{constant}", tried_always)
    choose = random.Random(f"pieces {tried_always}")
    values: dict[str, bytes] = {}
    for _ in range(60):
        source = Source(choose, values.values(), bytes_max=300_000)
        name, value = f"n/{choose.randrange(6)}", source.of_pieces()
        guarded.puts(name, value)
        values[name] = value
    assert_whole(guarded, values)


@pytest.mark.plain("it counts on which chunks are deltas")
@pytest.mark.parametrize("staged", [False, True])
def test_what_is_no_delta_does_not_become_one_by_another_file_of_the_transaction(
    guarded: castore.Store, monkeypatch: pytest.MonkeyPatch, staged: bool
) -> None:
    """(A transaction failed: "became a delta while it was put".)"""
    if staged:
        small_stages(monkeypatch)
    expected = written_by_turns(guarded)
    assert guarded.info("one").deltas > 0
    assert_whole(guarded, expected)


def test_a_collection_keeps_and_moves_them(guarded: castore.Store) -> None:
    with guarded.transaction() as transaction:
        transaction.puts("x", ALIKE)
        transaction.puts("gone", some_bytes(4 * PART))
    guarded.delete("gone")
    before = pack_files(guarded)
    guarded.gc(repack_below=1.0)
    assert pack_files(guarded).keys().isdisjoint(before)
    assert_whole(guarded, {"x": ALIKE})
    guarded.delete("x")
    guarded.gc()
    assert pack_files(guarded) == {}


@pytest.mark.plain("it counts on which chunks are deltas")
def test_collections_while_rows_are_staged(
    guarded: castore.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows are in the index, and frames in full packs that nobody locks, before what is made of
    them is stored."""
    small_stages(monkeypatch)
    monkeypatch.setattr("castore.local.packs.PACK_BYTES_MAX", 8192)
    parts = [part(0), part(0, seed=1), part(1), part(2, seed=1), part(3)]
    with castore.open(guarded.path, create=False) as other, guarded.open("x", "wb") as file:
        for each in parts:
            file.write(each)
            other.gc(repack_below=1.0)
    assert guarded.info("x").deltas > guarded.info("x").chunks / 3
    assert own_bases(guarded, "x")
    assert_whole(guarded, {"x": b"".join(parts)})


@pytest.mark.plain("it counts on which chunks are deltas")
@pytest.mark.parametrize(("level", "later"), [(1, 3), (3, 5), (4, 5), (5, 5), (7, 7), (-2, -2)])
def test_what_is_new_in_a_version_is_compressed_better(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, level: int, later: int
) -> None:
    levels: list[int] = []
    encode = session.encode_frames

    def encoded(chunks: Any, *, level: int, **options: Any) -> Any:
        levels.extend(level for _ in chunks)
        return encode(chunks, level=level, **options)

    monkeypatch.setattr(session, "encode_frames", encoded)
    small_batches(monkeypatch)
    with small(tmp_path / "store", compression_level=level) as store:
        store.puts("x", part(0))
        assert {*levels} == {level}
        levels.clear()
        store.puts("x", part(1)[: PART // 2] + part(0, seed=3) + part(1)[PART // 2 :])
        assert {*levels[-5:]} == {later}
        levels.clear()
        store.puts("x", part(0, seed=4, size=20 * PART))  # no version at all
        assert levels[-1] == level


class Broken(io.RawIOBase):
    """Fails once the deltas are being made."""

    def __init__(self, data: bytes) -> None:
        self._data = io.BytesIO(data)

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        read = self._data.readinto(buffer)
        if not read:
            raise OSError("the source broke")
        return read


def test_of_a_put_that_fails_nothing_stays(store: castore.Store) -> None:
    with pytest.raises(OSError, match="the source broke"):
        store.put("x", Broken(ALIKE))
    assert not store.exists("x")
    store.gc()
    assert pack_files(store) == {}
    store.puts("x", ALIKE)
    assert_whole(store, {"x": ALIKE})


# ---- each guard is needed ------------------------------------------------------------------------


@pytest.mark.parametrize("guard", [True, False], ids=["guard", "no guard"])
def test_a_base_has_its_place_before_its_delta(
    store: castore.Store, monkeypatch: pytest.MonkeyPatch, guard: bool
) -> None:
    if not guard:

        def placed(self: StreamBases, encoded: Sequence[Encoded]) -> None:
            self._session.place(encoded)

        monkeypatch.setattr(StreamBases, "place", placed)
    if guard:
        store.puts("x", ALIKE)
        assert_whole(store, {"x": ALIKE})
    else:
        with pytest.raises(castore.CastoreError):
            store.puts("x", ALIKE)


@pytest.mark.parametrize("guard", [True, False], ids=["guard", "no guard"])
def test_only_a_full_frame_is_a_base(
    store: castore.Store, monkeypatch: pytest.MonkeyPatch, guard: bool
) -> None:
    """What has bases of its own may become a delta."""
    if not guard:
        candidates = LookAlikes.candidates

        def with_all(self: LookAlikes, raw: bytes, *others):  # type: ignore[no-untyped-def]
            found = candidates(self, raw, *others)
            self.add(store._session().chunk_id(raw), raw)
            return found

        monkeypatch.setattr(LookAlikes, "candidates", with_all)
    value = ALIKE + part(2) + part(3)
    if guard:
        store.puts("x", value)
        assert_whole(store, {"x": value})
    else:
        with pytest.raises(castore.CastoreError, match="became a delta"):
            store.puts("x", value)
