"""What is stored as deltas: kept, moved, and made anew together with what it is a delta of."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from collected import pack_files
from sessions import rows as open_rows
from sessions import some_bytes
from stores import change_rows, rows, small
from versions import (
    SIZE,
    assert_whole,
    bases,
    extents,
    in_packs_of_their_own,
    put_twice_at_once,
    version,
)

import castore
from castore.errors import CastoreError
from castore.format.index import decode_chunk_row
from castore.format.segment import Segment
from castore.local.gc.repack import Repacker
from castore.local.session import LocalSession
from castore.stream import delta
from castore.stream.alignment import Alignment
from castore.stream.repack_choice import PackFacts

# ---- without the C extension ---------------------------------------------------------------------


def test_nothing_is_read_for_deltas_that_cannot_be_made(
    store: castore.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python would take the anchors of all that is put and of the older object, for nothing."""
    store.puts("x", version(0))
    monkeypatch.setattr(delta, "_native", None)
    monkeypatch.setattr(Alignment, "candidates", None)
    info = store.puts("x", version(1))
    assert info.chunks > 0
    assert info.deltas == 0
    assert store.gets("x") == version(1)


# ---- collections ---------------------------------------------------------------------------------


def no_bases_marked(segment: Segment) -> Any:
    """As it would be without deltas."""
    split: dict[bytes, list[int]] = {pack_id: [] for pack_id in segment.packs}
    for extent in segment:
        split[extent.location.pack_id].append(extent.location.offset)
    return [(pack_id, offsets) for pack_id, offsets in split.items() if offsets]


@pytest.mark.damages_store("a guard is taken out")
@pytest.mark.parametrize("guard", [True, False], ids=["guard", "no guard"])
def test_a_collection_keeps_what_only_deltas_need(
    store: castore.Store, monkeypatch: pytest.MonkeyPatch, guard: bool
) -> None:
    old, _ = in_packs_of_their_own(store, {"x0": version(0), "x1": version(1)})
    assert {base.location.pack_id for base in bases(store, "x1")} == {old}
    store.delete("x0")
    if not guard:
        monkeypatch.setattr(Segment, "offsets_by_pack", no_bases_marked)
    store.gc(repack_below=0.5)  # most of it is the base of something
    assert (old.hex() in pack_files(store)) == guard
    if guard:
        assert_whole(store, {"x1": version(1)})
        store.delete("x1")
        store.gc()
        assert pack_files(store) == {}
    else:
        store.close()
        with castore.open(store.path, create=False) as other, pytest.raises(CastoreError):
            other.gets("x1")


def choosing(pack_ids: set[bytes]) -> Callable[..., list[PackFacts]]:
    def choose(_: Repacker, packs: Sequence[PackFacts], **options: Any) -> list[PackFacts]:
        return [pack for pack in packs if pack.pack_id in pack_ids]

    return choose


@pytest.mark.parametrize(
    "runs", [["both"], ["old", "new"], ["new", "old"], ["new", "both"]], ids="-".join
)
def test_bases_and_deltas_are_moved_in_any_order(
    guarded: castore.Store, monkeypatch: pytest.MonkeyPatch, runs: list[str]
) -> None:
    store, expected = guarded, {"x0": version(0), "x1": version(1), "x2": version(2)}
    in_packs_of_their_own(store, expected)
    store.delete("x0")
    del expected["x0"]
    monkeypatch.setattr("castore.local.gc.repack.SEGMENTS_MAX", 1)
    monkeypatch.setattr("castore.local.gc.repack.ROWS_MAX", 3)
    for run in runs:
        deltas_in = {e.location.pack_id for e in extents(store, "x1") if e.location.bases}
        bases_in = {base.location.pack_id for base in bases(store, "x1")}
        assert deltas_in
        assert bases_in
        moved = {"new": deltas_in, "old": bases_in, "both": deltas_in | bases_in}[run]
        with monkeypatch.context() as patched:
            patched.setattr(Repacker, "choose", choosing(moved))
            report = store.gc()
        assert report.packs_rewritten > 0
        assert not moved & {e.location.pack_id for e in extents(store, "x1")}
        assert_whole(store, expected)
    store.gc()
    assert_whole(store, expected)
    assert store.gc().found_nothing


def test_a_store_that_was_rewritten_is_not_rewritten_again(store: castore.Store) -> None:
    """What footers say of bases counts as alive."""
    in_packs_of_their_own(store, {f"x{n}": version(n) for n in range(4)})
    store.delete("x1")
    assert store.gc(repack_below=1.0).packs_rewritten > 0
    assert store.gc(repack_below=1.0).found_nothing


# ---- a delta and a plain frame of one chunk ------------------------------------------------------


def rewritten(store: castore.Store) -> None:
    """What has both frames, as it also has garbage."""
    assert store.gc(repack_below=1.0).packs_rewritten > 0


def rows_lost(store: castore.Store) -> None:
    path = Path(store.path)
    store.close()
    change_rows(path, b"chunks", dict.fromkeys(rows(path)[b"chunks"]))
    with castore.open(path) as again:
        again.check(repair=True)
        again.gc()


def rebuilt(store: castore.Store) -> None:
    store.close()
    castore.rebuild_index(store.path)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["delta first", "plain first"])
@pytest.mark.parametrize(
    "change",
    [rewritten, rows_lost, rebuilt],
    ids=["rewritten", "rows lost", "rebuilt"],
)
def test_two_frames_of_one_chunk(
    guarded: castore.Store, order: Sequence[int], change: Callable[[castore.Store], Any]
) -> None:
    path = Path(guarded.path)
    guarded.puts("a0", version(0))
    put_twice_at_once(guarded, ["a1 delta", "a1 plain"], version(1), order)
    guarded.puts("a2", version(2))  # may be a delta of either
    guarded.puts("garbage", random.Random(9).randbytes(300_000))
    guarded.close()
    expected = {"a0": version(0), "a1 delta": version(1), "a1 plain": version(1), "a2": version(2)}
    with small(path) as store:
        store.delete("garbage")
        twice = {e.chunk_id for e in extents(store, "a1 delta") if e.location.bases} & {
            e.chunk_id for e in extents(store, "a1 plain") if not e.location.bases
        }
        assert twice
        assert_whole(store, expected)
        change(store)
    with small(path) as store:
        assert_whole(store, expected)
        found = {i: decode_chunk_row(row) for i, row in open_rows(store, "chunks").items()}
        assert not any(found[i].bases for i in twice), "a plain frame may be a base: it is known"
        before = store.stats().pack_bytes
        store.puts("again", version(1))
        store.puts("b", version(2))
        assert store.stats().pack_bytes == before
        expected |= {"again": version(1), "b": version(2)}
        assert_whole(store, expected)
        store.gc()
        assert_whole(store, expected)


@pytest.mark.parametrize("delta", [False, True], ids=["plain", "delta"])
def test_a_delta_without_the_row_of_its_base_is_stored_anew_once(
    store: castore.Store, delta: bool
) -> None:
    """And if it is as a delta again, of what it was, that is known then."""
    in_packs_of_their_own(store, {"x0": version(0), "x1": version(1)})
    path, lost = Path(store.path), [base.chunk_id for base in bases(store, "x1")]
    store.close()
    change_rows(path, b"chunks", dict.fromkeys(lost))
    castore.check_store(path, repair=True)  # of the totals, which these rows are not in
    with small(path, delta=delta) as again:
        sizes = [again.stats().pack_bytes]
        for n in range(3):
            again.puts(f"x1 {n}", version(1))
            sizes.append(again.stats().pack_bytes)
        assert sizes[1] > sizes[0]
        assert sizes[1:] == [sizes[1]] * 3
        again.puts("x0 again", version(0))
        assert delta == (again.stats().pack_bytes == sizes[1])
        again.gc(repack_below=0.0)
        expected = dict.fromkeys([f"x1 {n}" for n in range(3)], version(1))
        expected |= dict.fromkeys(["x0", "x0 again"], version(0))
        assert_whole(again, {"x1": version(1), **expected})


# ---- packs that are collected before a commit ----------------------------------------------------


@pytest.mark.plain("it counts on which chunks are deltas")
@pytest.mark.parametrize("known", [False, True], ids=["new deltas", "known deltas"])
@pytest.mark.parametrize("kept", [False, True], ids=["removed", "moved"])
def test_bases_are_collected_between_look_up_and_commit(
    guarded: castore.Store, monkeypatch: pytest.MonkeyPatch, known: bool, kept: bool
) -> None:
    """Their frames are copied, or found where they were moved to; and with them the deltas, if
    these are not new."""
    store = guarded
    in_packs_of_their_own(store, {"x0": version(0), "dead": some_bytes(90_000, 5)})
    if known:
        in_packs_of_their_own(store, {"x1 known": version(1)})
    replaced: list[bool] = []
    replace = LocalSession._replace

    def counted(session: LocalSession, vanished: Any, *, copy: bool) -> None:
        replaced.append(copy)
        replace(session, vanished, copy=copy)

    monkeypatch.setattr(LocalSession, "_replace", counted)
    with store.transaction() as transaction:
        with transaction.open("x1", "wb") as file:
            file.write(version(1))
        before = pack_files(store).keys()
        with castore.open(store.path, create=False) as other:
            if known:
                other.delete("x1 known")
            if not kept:
                other.delete("x0")
            other.gc(repack_below=1.0 if kept else 0.0)
            assert before - pack_files(other).keys()
            if not kept:
                # A row that leads to where nothing is any more is not to be found again.
                assert rows_of_old(other) == set()
    assert replaced
    assert any(extent.location.bases for extent in extents(store, "x1"))
    expected = {"x1": version(1)} | ({"x0": version(0)} if kept else {})
    expected |= {"dead": some_bytes(90_000, 5)}
    assert_whole(store, expected)
    store.gc(repack_below=1.0)
    assert_whole(store, expected)


def rows_of_old(store: castore.Store) -> set[bytes]:
    known = open_rows(store, "chunks").keys()
    return known - {extent.chunk_id for extent in extents(store, "dead")}


# ---- made anew -----------------------------------------------------------------------------------


@pytest.mark.parametrize("index", [True, False], ids=["index", "journal alone"])
def test_deltas_whose_bases_are_gone_hide_no_others(tmp_path: Path, index: bool) -> None:
    """Of each chunk two deltas, with other bases, of which those of the one are collected."""
    path = tmp_path / "store"
    with small(path, delta=False) as plain:
        in_packs_of_their_own(plain, {"dead": version(0), "base": version(2)})
    with small(path) as store, store.transaction() as transaction:
        transaction.puts("keeps the pack", some_bytes(SIZE, 9))
        transaction.puts("dead too", version(1), like="dead")
    change_rows(path, b"chunks", dict.fromkeys(rows(path)[b"chunks"]))
    castore.check_store(path, repair=True)  # of the totals, which these rows are not in
    with small(path) as again:
        again.puts("new", version(1), like="base")
        expected = {"base": version(2), "new": version(1)}
        expected["keeps the pack"] = some_bytes(SIZE, 9)
        assert len(bases(again, "new")) > 10
        assert bases(again, "new").isdisjoint(bases(again, "dead too"))
        again.delete("dead")
        again.delete("dead too")
        again.gc(repack_below=0.0)
        assert_whole(again, expected)
    if not index:
        for data in path.joinpath("index").iterdir():
            data.unlink()
    assert castore.rebuild_index(path).lost == []
    with small(path) as again:
        assert_whole(again, expected)


def test_an_index_is_rebuilt_as_it_was(guarded: castore.Store) -> None:
    store, path = guarded, Path(guarded.path)
    values = {f"v/x{n}": version(n) for n in range(3)} | {"text": version(3, 2).hex().encode()}
    in_packs_of_their_own(store, values)
    store.gc(repack_below=1.0)
    stats = store.stats()
    store.close()
    before = rows(path)
    castore.rebuild_index(path)
    after = rows(path)
    for table in (b"names", b"segments", b"chunks"):
        assert after[table] == before[table]
    for data in path.joinpath("index").iterdir():
        data.unlink()
    castore.rebuild_index(path)  # from the journal and the packs alone
    with small(path) as again:
        assert_whole(again, values)
        assert again.stats()._replace(index_bytes=0, journal_bytes=0) == stats._replace(
            index_bytes=0, journal_bytes=0
        )
    for table in (b"names", b"segments", b"chunks"):
        assert rows(path)[table] == before[table]


def test_the_folder_before_is_looked_for_again_once_there_is_another(store: castore.Store) -> None:
    for folder, size in (("v1", 10_000), ("v2", 20_000)):
        store.puts(f"{folder}/x", bytes(size))
        found = store._catalog.older(b"v3/x", None)
        assert found is not None
        assert found.size == size


@pytest.mark.plain("it counts on which chunks are deltas")
def test_where_nothing_is_alike_a_put_is_hardly_compared_with_more_than_what_it_replaces(
    store: castore.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small objects that are put alone."""
    asked: list[bool] = []
    older = store._catalog.older

    def counted(name: bytes, like: bytes | None, *, beside: bool = True) -> object:
        asked.append(beside)
        return older(name, like, beside=beside)

    monkeypatch.setattr(store._catalog, "older", counted)
    for number in range(100):
        store.puts(f"{number:03}", some_bytes(10_000, number))
    assert len(asked) == 100
    assert 8 < asked.count(True) < 40
    later = bytearray(some_bytes(10_000, 50))
    later[5000] ^= 1
    assert store.puts("050", later).deltas > 0
    assert not asked[-1]
    store.puts("100", some_bytes(10_000, 100))
    assert asked[-1]  # as something was alike
