"""What is damaged of deltas, and of what they are deltas of: told of, and mended."""

from __future__ import annotations

import json
from collections.abc import Container
from pathlib import Path
from typing import Any

import oracle
import pytest
from sessions import some_bytes
from stores import change_rows, flip, packs_of, rows, small
from versions import (
    assert_whole,
    bases,
    extents,
    in_packs_of_their_own,
    put_twice_at_once,
    version,
)

import castore
from castore.errors import ChunkCorrupt
from castore.format.index import manifest_of
from castore.format.segment import decode_segment
from castore.model import Extent, StoredChunk


def damaged_base(store: castore.Store, bases: Container[bytes] | None = None) -> StoredChunk:
    """Of what chunks of "v/x1" are deltas of, or of these `bases` among it, one that is damaged
    now."""
    base = max(
        base
        for extent in extents(store, "v/x1")
        for base in extent.location.bases
        if bases is None or base.chunk_id in bases
    )
    [path] = [p for p in packs_of(store) if p.stem == base.location.pack_id.hex()]
    flip(path, 8 * (base.location.offset + base.location.stored_bytes // 2))
    return base


def stored_twice(store: castore.Store, one: str, other: str) -> set[bytes]:
    """The chunks that both of two equal objects have frames of. The last ones are looked up when a
    file is closed, and found."""
    return {
        a.chunk_id
        for a, b in zip(extents(store, one), extents(store, other), strict=True)
        if a.location.place != b.location.place
    }


def needs(extent: Extent, base: StoredChunk) -> bool:
    return base.chunk_id in (extent.chunk_id, *(each.chunk_id for each in extent.location.bases))


@pytest.mark.plain("it counts on which chunks are deltas")
@pytest.mark.damages_store("a base is damaged")
def test_a_damaged_base_is_every_object_s_that_needs_it(guarded: castore.Store) -> None:
    store = guarded
    for n in range(3):
        store.puts(f"v/x{n}", version(n))
    store.puts("other", some_bytes(30_000, 9))
    base = damaged_base(store)
    [problem] = store.check(read_data=True).problems
    assert (problem.kind, problem.severity, problem.chunk) == (
        "frame",
        "corrupt",
        base.chunk_id.hex(),
    )
    assert problem.names == tuple(
        name
        for name in sorted(store.names())
        if any(needs(extent, base) for extent in extents(store, name))
    )
    assert len(problem.names) == 3
    with castore.open(store.path, create=False, cache_bytes=0) as cold:
        for n in range(3):
            for extent in extents(store, f"v/x{n}"):
                byte_range = extent.begin, extent.end
                if needs(extent, base):
                    with pytest.raises(ChunkCorrupt) as error:
                        cold.gets(f"v/x{n}", byte_range=byte_range)
                    assert error.value.chunk_id == base.chunk_id
                else:
                    found = cold.gets(f"v/x{n}", byte_range=byte_range)
                    assert found == version(n)[extent.begin : extent.end]


def test_a_damaged_base_is_replaced_by_another_frame_of_it(tmp_path: Path) -> None:
    """As two writers have stored it at once."""
    path = tmp_path / "store"
    with small(path) as store:
        put_twice_at_once(store, ["v/x0", "other"], version(0))
        store.puts("v/x1", version(1))
        base = damaged_base(store, bases=stored_twice(store, "v/x0", "other"))
    with small(path) as store:
        report = store.check(repair=True)
        assert report.problems == []
        assert_whole(store, {"v/x0": version(0), "v/x1": version(1), "other": version(0)})
        assert base.location.pack_id not in {each.location.pack_id for each in bases(store, "v/x1")}


def test_a_damaged_segment_s_bases_are_read_from_other_frames(tmp_path: Path) -> None:
    """Nothing can lead it there: what it says is tried."""
    path = tmp_path / "store"
    with small(path) as store:
        put_twice_at_once(store, ["v/x0", "other"], version(0))
        store.puts("v/x1", version(1))
        record, _ = store._catalog.manifest(b"v/x1")
        damaged_base(store, bases=stored_twice(store, "v/x0", "other"))
    segments = rows(path)[b"segments"].items()
    found = {key: raw for key, raw in segments if manifest_of(key) == record.manifest}
    assert found
    assert all(decode_segment(raw).deltas for raw in found.values())
    # Two bits of the checksum: one would be put right.
    change_rows(
        path,
        b"segments",
        {k: raw[:24] + bytes([raw[24] ^ 3]) + raw[25:] for k, raw in found.items()},
    )
    with small(path) as store:
        assert store.check(repair=True).problems == []
        assert_whole(store, {"v/x0": version(0), "v/x1": version(1), "other": version(0)})


@pytest.mark.plain("it counts on which chunks are deltas")
def test_without_its_base_a_delta_is_zeros(guarded: castore.Store) -> None:
    store = guarded
    expected = {f"v/x{n}": version(n) for n in range(3)} | {"other": some_bytes(30_000, 9)}
    for name, value in expected.items():
        store.puts(name, value)
    base = damaged_base(store)
    lost = {name: lost_ranges(store, name, base) for name in expected}
    with castore.open(store.path, create=False, cache_bytes=0) as other:
        assert len(other.check(repair=True).problems) == 3
        assert {n for n in other.names() if not n.startswith("quarantine/")} == {"other"}
        for told in list(other.names("quarantine/")):
            if not told.endswith(".json"):
                continue
            facts = json.loads(other.gets(told))
            value = bytearray(expected[facts["name"]])
            ranges = [(begin, end) for begin, end in facts["lost_ranges"]]
            assert ranges == lost[facts["name"]]
            for begin, end in ranges:
                value[begin:end] = bytes(end - begin)
            assert other.gets(told.removesuffix(".json")) == bytes(value)
        assert other.check(read_data=True).problems == []
        oracle.check_index(other)
        assert other.gets("other") == expected["other"]


def lost_ranges(store: castore.Store, name: str, base: StoredChunk) -> list[tuple[int, int]]:
    """As they are told: neighbours are one."""
    ranges: list[tuple[int, int]] = []
    for extent in extents(store, name):
        if needs(extent, base):
            begin = ranges.pop()[0] if ranges and ranges[-1][1] == extent.begin else extent.begin
            ranges.append((begin, extent.end))
    return ranges


def test_a_delta_whose_base_is_lost_is_read_from_a_frame_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with small(path) as store:
        in_packs_of_their_own(store, {"v/x0": version(0)})
        put_twice_at_once(store, ["v/x1", "other"], version(1))
        plain = {e.chunk_id for e in extents(store, "other") if not e.location.bases}
        of_others = {
            base.chunk_id
            for extent in extents(store, "v/x1")
            for base in extent.location.bases
            if extent.chunk_id not in plain
        }
        base = damaged_base(store, bases={b.chunk_id for b in bases(store, "v/x1")} - of_others)
        affected = [e for e in extents(store, "v/x1") if base in e.location.bases]
        assert all(e.chunk_id in plain for e in affected)
    with small(path) as store:
        report = store.check(repair=True)
        assert [problem.names for problem in report.problems] == [("v/x0",)]
        assert store.gets("v/x1") == store.gets("other") == version(1)
        assert store.check(read_data=True).problems == []


def test_a_frame_that_is_no_delta_takes_the_place_of_a_base(tmp_path: Path) -> None:
    """Where there are some of both kinds, the delta first in its pack."""
    path = tmp_path / "store"
    with small(path) as store:
        store.puts("a/x0", version(0))
        put_twice_at_once(store, ["a/x1", "a/x1 plain"], version(1))
        kinds = [extents(store, name)[0].location for name in ("a/x1", "a/x1 plain")]
        assert [bool(at.bases) for at in kinds] == [True, False]
        assert kinds[0].pack_id == kinds[1].pack_id
        assert kinds[0].offset < kinds[1].offset
    change_rows(path, b"chunks", dict.fromkeys(rows(path)[b"chunks"]))
    with small(path, delta=False) as store:
        store.puts("v/x0", version(1))
    with small(path) as store:
        store.puts("v/x1", version(2), like="v/x0")
        store.gc(repack_below=0.0)  # there are rows of all chunks again
        damaged_base(store, bases={extents(store, "v/x0")[0].chunk_id})
        assert store.check(repair=True).problems == []
        expected = {"a/x0": version(0), "v/x1": version(2)}
        expected |= dict.fromkeys(["a/x1", "a/x1 plain", "v/x0"], version(1))
        assert_whole(store, expected)


@pytest.mark.plain("it counts on which chunks are deltas")
@pytest.mark.damages_store("deltas are wrong")
def test_a_delta_that_makes_another_chunk_is_found(
    guarded: castore.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its checksum is right, as its writer was wrong."""
    store = guarded
    store.puts("x0", version(0))
    encode = castore.stream.session.encode_deltas  # type: ignore[attr-defined]
    with monkeypatch.context() as patched:
        patched.setattr(
            "castore.stream.session.encode_deltas",
            lambda chunks: encode(
                [(raw[:-1] + bytes([raw[-1] ^ 1]), bases) for raw, bases in chunks]
            ),
        )
        store.puts("x1", version(1))
    deltas = [e for e in extents(store, "x1") if e.location.bases]
    report = store.check(read_data=True)
    assert {p.chunk for p in report.problems} == {e.chunk_id.hex() for e in deltas}
    assert {(p.kind, p.names) for p in report.problems} == {("frame", ("x1",))}
    assert report.read_frames == store.stats().chunks
    store.check(repair=True)
    assert [name for name in store.names() if not name.startswith("quarantine/")] == ["x0"]
    assert store.check(read_data=True).problems == []


def test_a_check_reads_each_base_once(store: castore.Store, monkeypatch: Any) -> None:
    for n in range(4):
        store.puts(f"v/x{n}", version(n))
    decoded: list[bytes] = []
    decode = castore.check.deltas.decode_frame  # type: ignore[attr-defined]

    def counted(frame: bytes, chunk_id: bytes, *rest: Any) -> Any:
        decoded.append(chunk_id)
        return decode(frame, chunk_id, *rest)

    monkeypatch.setattr("castore.check.deltas.decode_frame", counted)
    monkeypatch.setattr("castore.check.deltas.TASK_BYTES", 10_000)
    assert store.check(read_data=True).problems == []
    stats = store.stats()
    needed = {base.chunk_id for n in range(4) for base in bases(store, f"v/x{n}")}
    assert stats.deltas > 2 * len(needed)
    # A thread may not know yet that another has just read one.
    assert len(decoded) < stats.deltas + 1.5 * len(needed)


def test_a_delta_with_a_damaged_checksum_is_read_and_mended(guarded: castore.Store) -> None:
    store = guarded
    store.puts("x0", version(0))
    store.puts("x1", version(1))
    at = next(e.location for e in extents(store, "x1") if e.location.bases)
    checksum = at.offset + 32 + 4 + (32 if store._backend.config.collision_guard else 0)  # type: ignore[union-attr]
    [path] = packs_of(store)
    flip(path, 8 * checksum)
    with castore.open(store.path, create=False, cache_bytes=0) as cold:
        assert cold.gets("x1") == version(1)
    [problem] = store.check(read_data=True).problems
    assert (problem.kind, problem.offset, problem.names) == ("frame", at.offset, ())
    report = store.check(repair=True)
    assert report.problems == []
    assert report.repaired
    assert_whole(store, {"x0": version(0), "x1": version(1)})
