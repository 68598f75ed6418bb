"""Whatever a row of the index says, no object takes another's place."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest
from stores import change_rows, contents, fill, read, rows, small

import castore
from castore.errors import FormatError, IndexCorrupt
from castore.format.index import (
    decode_record,
    manifest_number,
    manifest_of,
    manifest_order,
    segment_key,
    segment_place,
)
from castore.local import meta
from castore.stream.live_frames import Manifests
from castore.stream.reports import CheckReport

VALUES = contents()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with small(tmp_path / "store") as store:
        fill(store, VALUES)
        store.puts("gone", bytes(30_000))
        store.delete("gone")
        store.gc()
    return tmp_path / "store"


def check(folder: Path) -> CheckReport:
    return castore.check_store(folder, read_data=True)


def go_on(folder: Path) -> None:
    """Puts and a collection; then everything is what it was, and whole."""
    more = {f"more/{name}": value for name, value in contents(9, 5).items()}
    again = {f"again/{name}": value for name, value in more.items()}
    with castore.open(folder) as store:
        fill(store, more)
        store.gc()
        fill(store, again)
        assert read(store) == VALUES | more | again
        store.gc()


def flipped(raw: bytes, bit: int) -> bytes:
    return (int.from_bytes(raw, "little") ^ 1 << bit).to_bytes(len(raw), "little")


@pytest.mark.parametrize("row", [b"store_id", b"totals", b"gc_seq", b"next_manifest"])
def test_a_flipped_bit_of_any_row_takes_nothing_with_it(folder: Path, row: bytes) -> None:
    whole = rows(folder)[b"meta"][row]
    for bit in random.Random(1).sample(range(8 * len(whole)), 6):
        change_rows(folder, b"meta", {row: flipped(whole, bit)})
        assert check(folder).exit_code == 13
        mended = castore.check_store(folder, repair=True)
        assert mended.problems == []
        assert mended.repaired
    go_on(folder)
    assert check(folder).problems == []


@pytest.mark.parametrize("last", [0, 1, 8, 1 << 30, 1 << 54, (1 << 64) - 1])
def test_the_counter_of_manifests_is_not_relied_on(folder: Path, last: int) -> None:
    """Numbers that were in use were given out again, and names had other objects' bytes."""
    for value in (last.to_bytes(8, "little"), meta.encode_number(last)):
        change_rows(folder, b"meta", {b"next_manifest": value})
        go_on(folder)
    assert check(folder).problems == []


def test_numbers_of_manifests_are_not_given_out_twice_when_they_are_used_up(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with castore.open(folder) as store, monkeypatch.context() as patch:
        patch.setattr(meta, "MANIFEST_ORDER_MAX", 5)
        before = [*store.list()]
        with pytest.raises(IndexCorrupt, match="no numbers left for manifests"):
            store.puts("more", bytes(30_000))
        assert [*store.list()] == before
    assert check(folder).problems == []


@pytest.mark.parametrize(
    ("row", "value"),
    [
        (b"gc_seq", b"short"),
        (b"store_id", b"short"),
        (b"gc_seq", bytes(9)),
        (b"totals", bytes(47)),
        (b"marking", b"\0"),
        (b"next_manifest", b""),
        (b"uotals", bytes(48)),
    ],
)
def test_rows_that_can_not_be_are_told_of_and_put_right(
    folder: Path, row: bytes, value: bytes
) -> None:
    change_rows(folder, b"meta", {row: value})
    [problem] = [p for p in check(folder).problems if p.kind != "totals"]
    assert (problem.kind, problem.severity) == ("meta", "corrupt")
    assert row.decode() in problem.what
    assert castore.check_store(folder, repair=True).problems == []
    go_on(folder)
    assert check(folder).problems == []


@pytest.mark.damages_store("a row of its index")
def test_an_index_of_another_store_is_no_flipped_bit(folder: Path) -> None:
    change_rows(folder, b"meta", {b"store_id": bytes(16)})
    assert check(folder).exit_code == 13
    with pytest.raises(IndexCorrupt, match="another store"):
        castore.check_store(folder, repair=True)
    assert rows(folder)[b"meta"][b"store_id"] == bytes(16)


# ---- whose a segment is -------------------------------------------------------------------------


def exchange_segments(folder: Path, one: str, other: str) -> None:
    names, segments = rows(folder)[b"names"], rows(folder)[b"segments"]
    keys = [
        next(key for key in segments if manifest_of(key) == decode_record(names[n]).manifest)
        for n in (one.encode(), other.encode())
    ]
    change_rows(folder, b"segments", {keys[0]: segments[keys[1]], keys[1]: segments[keys[0]]})


@pytest.mark.damages_store("a row of its index")
def test_a_segment_of_another_object_is_not_read(folder: Path) -> None:
    exchange_segments(folder, "n/03", "n/05")
    with castore.open(folder) as store:
        with pytest.raises(FormatError, match="another manifest"):
            store.gets("n/03")
        with pytest.raises(FormatError, match="another manifest"):
            store.gets("n/05", byte_range=(10, 20))
        with pytest.raises(FormatError, match="another manifest"), store.open("n/05") as file:
            file.read()
        with pytest.raises(FormatError, match="another manifest"):
            store.gc()
        assert read(store).keys() == VALUES.keys() - {"n/03", "n/05"}
    assert set(check(folder).damaged_names) == {"n/03", "n/05"}


@pytest.mark.damages_store("a key of its index")
@pytest.mark.parametrize("bit", range(0, 64, 7))
def test_a_flipped_bit_of_a_segments_key_is_nobody_elses_object(folder: Path, bit: int) -> None:
    """Nor does a number that may be anywhere cost a collection any memory."""
    found = rows(folder)[b"segments"]
    key = sorted(found)[4]
    manifest, end = segment_place(key)
    change_rows(folder, b"segments", {key: None, segment_key(manifest ^ 1 << bit, end): found[key]})
    assert check(folder).exit_code == 13
    mended = Path(shutil.copytree(folder, folder.parent / "mended"))
    assert castore.check_store(mended, repair=True).problems == []
    with castore.open(mended) as store:
        assert read(store) == VALUES
        assert store.gc().found_nothing
    with castore.open(folder) as store:
        kept = read(store)
        assert len(kept) == len(VALUES) - 1
        with pytest.raises(FormatError, match="Nothing is collected"):
            store.gc()
        assert all(VALUES[name] == value for name, value in kept.items())
        fill(store, {f"new/{name}": value for name, value in VALUES.items()})
        assert {name: store.gets(f"new/{name}") for name in VALUES} == VALUES


@pytest.mark.parametrize("which", [0, 1, -1])
def test_nothing_is_collected_while_a_segment_is_missing(tmp_path: Path, which: int) -> None:
    """What it led to would be taken, and a repair could not bring it back."""
    folder = tmp_path / "store"
    with small(folder) as store:
        large = random.Random(3).randbytes(8_000_000)
        store.puts("large", large)
        fill(store, VALUES)
    segments = rows(folder)[b"segments"]
    [manifest] = {manifest_of(key) for key in segments if segment_place(key)[1] > 1_000_000}
    keys = sorted(key for key in segments if manifest_of(key) == manifest)
    assert len(keys) > 2
    change_rows(folder, b"segments", {keys[which]: None})
    with castore.open(folder) as store:
        with pytest.raises(FormatError, match="Nothing is collected"):
            store.gc()
        assert castore.check_store(folder, read_data=True).damaged_names == ["large"]
        change_rows_of(store, keys[which], segments[keys[which]])
        store.gc()
        assert store.gets("large") == large


def change_rows_of(store: castore.Store, key: bytes, value: bytes) -> None:
    """As `change_rows`, of a store that is open."""
    index = store._catalog.index  # type: ignore[attr-defined]
    with index.write_gate, index.errors, index.begin() as txn:
        txn.put(key, value, db=index.segments)


@pytest.mark.parametrize("bit", [0, 5, 14, 30, 63])
def test_where_a_segments_key_says_it_ends_is_compared(folder: Path, bit: int) -> None:
    """Reads go by what the segment says; a collection by its key."""
    found = rows(folder)[b"segments"]
    key = sorted(found)[3]
    manifest, end = segment_place(key)
    wrong = segment_key(manifest, end ^ 1 << bit)
    change_rows(folder, b"segments", {key: None, wrong: found[key]})
    assert check(folder).exit_code == 13
    with castore.open(folder) as store, pytest.raises(FormatError, match="Nothing is collected"):
        store.gc()
    assert castore.check_store(folder, repair=True).problems == []
    assert rows(folder)[b"segments"] == found
    go_on(folder)


@pytest.mark.parametrize("byte", range(0, 24, 5))
def test_a_flipped_bit_of_a_packs_row_is_found(folder: Path, byte: int) -> None:
    [(pack_id, row), *_] = rows(folder)[b"packs"].items()
    change_rows(folder, b"packs", {pack_id: flipped(row, 8 * byte + 3)})
    assert [p.kind for p in check(folder).problems] == ["pack row"]
    assert castore.check_store(folder, repair=True).problems == []
    go_on(folder)


# ---- numbers ------------------------------------------------------------------------------------


def test_a_number_comes_after_all_that_are_in_use(folder: Path) -> None:
    numbers = {manifest_of(key) for key in rows(folder)[b"segments"]}
    orders = [manifest_order(number) for number in sorted(numbers)]
    assert orders == [*range(1, len(orders) + 1)]
    assert all(number & 0xFFFFFF for number in numbers)
    assert len({number & 0xFFFFFF for number in numbers}) > len(numbers) / 2
    with small(folder) as store:
        store.puts("next", bytes(30_000))
    [last] = {manifest_of(key) for key in rows(folder)[b"segments"]} - numbers
    # One had been collected: its order is not given out again.
    assert manifest_order(last) == len(orders) + 2


def test_a_set_of_manifests() -> None:
    found = Manifests()
    members = [1, 2, 40, manifest_number(1, 99), manifest_number(9000, 1), (1 << 63) + 5]
    for manifest in members:
        found.add(manifest)
    assert all(manifest in found for manifest in members)
    others = [3, 41, manifest_number(2, 99), manifest_number(8999, 1), 1 << 62]
    assert not any(manifest in found for manifest in others)
