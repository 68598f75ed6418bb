"""What a repair must not do while others are at work, or where something is odd: lose what could be
read, or the last copy of anything."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from frames import encode_frame
from stores import change_rows, contents, fill, flip, read, rows, small

import castore
from castore.format.index import decode_pack_row, decode_record, segment_key
from castore.format.segment import decode_segment
from castore.local.check.pack_files import is_locked
from castore.local.check.repair_objects import ObjectRepair
from castore.local.check.repair_packs import PackRepair
from castore.local.check.repair_rows import RowRepair
from castore.local.check.run import check_local
from castore.local.pack import Placement
from castore.local.packs import LocalPacks

VALUES = contents()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "store"
    items = list(VALUES.items())
    for part in (items[:7], items[7:]):
        with small(folder) as store:
            fill(store, dict(part))
    return folder


def segments(folder: Path, name: str) -> dict[bytes, bytes]:
    index = rows(folder)
    manifest = decode_record(index[b"names"][name.encode()]).manifest
    low, high = segment_key(manifest, 0), segment_key(manifest + 1, 0)
    return {key: raw for key, raw in index[b"segments"].items() if low <= key < high}


def flip_frame(folder: Path, name: str, number: int = -1) -> tuple[Path, int, bytes]:
    """Damage one of an object's frames; (pack, bit, id of its chunk)."""
    [raw] = segments(folder, name).values()
    extent = list(decode_segment(raw))[number]
    pack_id, offset, stored_bytes, _ = extent.location
    path = folder / "packs" / pack_id.hex()[:2] / f"{pack_id.hex()}.pack"
    bit = 8 * (offset + stored_bytes - 2)
    flip(path, bit)
    return path, bit, extent.chunk_id


def before(
    monkeypatch: pytest.MonkeyPatch, kind: type, method: str, action: Callable[[], None]
) -> None:
    """Have `action` happen once, right before the method is called."""
    whole, left = getattr(kind, method), [action]

    def called(*args: Any, **options: Any) -> Any:
        if left:
            left.pop()()
        return whole(*args, **options)

    monkeypatch.setattr(kind, method, called)


def repaired(folder: Path) -> castore.stream.reports.CheckReport:
    """Until there is nothing that it would have to be repeated for."""
    castore.check_store(folder, repair=True)
    report = castore.check_store(folder, repair=True)
    assert [p for p in report.problems if p.kind != "object"] == []
    return report


def kept(folder: Path) -> list[bytes]:
    with castore.open(folder) as store:
        return [store.gets(name) for name in store.names("quarantine/")]


# ---- others ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        (RowRepair, "mend_bits"),
        (PackRepair, "copy_intact"),
        (RowRepair, "mend_chunks"),
        (ObjectRepair, "salvage"),
        (ObjectRepair, "_keep_rest"),
        (ObjectRepair, "_change_name"),
        (RowRepair, "mend_all_chunks"),
    ],
)
def test_a_damaged_object_that_is_put_anew_stays(
    folder: Path, monkeypatch: pytest.MonkeyPatch, kind: type, method: str
) -> None:
    """Whenever it is, and though it is in a pack of which the repair can not know."""
    flip_frame(folder, "n/01")
    fresh = b"fresh".join(VALUES["n/01"][i : i + 500] for i in range(0, 10_000, 500))
    with small(folder) as store:

        def put() -> None:
            if method != "mend_all_chunks":  # within a transaction nobody puts
                store._backend.packs.retire()  # type: ignore[union-attr]
                store.puts("n/01", fresh)

        before(monkeypatch, kind, method, put)
        store.check(repair=True)
        if method != "mend_all_chunks":
            assert store.gets("n/01") == fresh
        assert {n: v for n, v in read(store).items() if n != "n/01"} == {
            n: v for n, v in VALUES.items() if n != "n/01"
        }
    repaired(folder)


def test_what_a_writer_may_take_back_is_not_relied_on(folder: Path) -> None:
    """A frame in the pack of a writer that is alive, and has not committed it."""
    _, _, chunk_id = flip_frame(folder, "n/01")
    with castore.open(folder) as store:
        config = store._backend.config  # type: ignore[union-attr]
    [raw] = segments(folder, "n/01").values()
    *_, (begin, end, _, _) = decode_segment(raw)
    other = LocalPacks(str(folder / "packs"), config.store_id)
    placement = Placement()
    other.append([encode_frame(VALUES["n/01"][begin:end], chunk_id, level=1)], placement)
    castore.check_store(folder, repair=True)
    other.release(placement)
    other.close()  # nothing was committed: its pack is gone
    with castore.open(folder) as store:
        assert read(store) == VALUES
    repaired(folder)


def test_a_put_of_this_process_keeps_what_it_made_durable(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flip_frame(folder, "n/01")
    more = contents(5)["n/05"]
    with small(folder) as store:
        before(monkeypatch, Placement, "sync", lambda: fill(store, {"more": more}))
        store.check(repair=True)
        assert store.gets("more") == more
    index = rows(folder)
    [raw] = segments(folder, "more").values()
    for extent in decode_segment(raw):
        pack_id, offset, stored_bytes, _ = extent.location
        assert offset + stored_bytes <= decode_pack_row(index[b"packs"][pack_id])[1]


def test_a_writer_that_died_holds_up_nothing(folder: Path) -> None:
    """Its manifest is pending, and its pack's lock is the repair's."""
    path, _, _ = flip_frame(folder, "n/01")
    [key] = segments(folder, "n/01")
    pending = {key[:8] + bytes(8): bytes.fromhex(path.stem)}
    change_rows(folder, b"pending", dict(pending))
    change_rows(folder, b"names", {b"n/01": None})
    assert not any("repeat" in line for line in castore.check_store(folder, repair=True).repaired)
    assert not path.exists()


def test_what_is_published_as_a_repair_looks_gets_no_other_name(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the snapshot and the look for its lock, which the writer has let go by then."""
    change_rows(folder, b"names", {b"n/01": b"garbled" * 11})
    program = """
import random, sys, castore
from castore.local import session
session.SEGMENTS_MAX = 1
with castore.open(sys.argv[1]) as store, store.open("large", "wb") as file:
    for i in range(4):
        file.write(random.Random(i).randbytes(4 << 20))
    print("staged", flush=True)
    sys.stdin.read()
"""
    command = [sys.executable, "-c", program, str(folder)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "staged\n"
        looks = is_locked
        asked = []

        def publish_first(path: str) -> bool:
            if not asked:
                writer.communicate()
            asked.append(path)
            return looks(path)

        monkeypatch.setattr("castore.local.check.segments.is_locked", publish_first)
        castore.check_store(folder, repair=True)
    assert asked
    assert writer.returncode == 0
    assert 16 << 20 not in map(len, kept(folder))
    assert VALUES["n/01"] in kept(folder)
    with castore.open(folder) as store:
        assert store.size("large") == 16 << 20


# ---- what is odd -------------------------------------------------------------------------------


def test_zeros_are_not_lost(folder: Path) -> None:
    """What is put in place of lost bytes must not be taken from the very frame that is damaged."""
    with small(folder) as store:
        store.puts("zeros", bytes(60_000))
    for name in ("zeros", "n/01"):
        flip_frame(folder, name, 0)
    repaired(folder)
    with castore.open(folder) as store:
        assert store.gets("zeros") == bytes(60_000)
        assert {n: v for n, v in read(store).items() if n != "zeros"}.items() <= VALUES.items()


def test_what_can_be_read_after_all_is_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that failed while it was checked, and not while it was repaired."""
    path, bit, _ = flip_frame(folder, "n/01")
    reports = [castore.check_store(folder, read_data=True)]
    assert reports[0].damaged_names
    flip(path, bit)
    monkeypatch.setattr(
        "castore.local.check.repair.check_local",
        lambda *a, **o: reports.pop() if reports else check_local(*a, **o),
    )
    assert castore.check_store(folder, repair=True).problems == []
    with castore.open(folder) as store:
        assert read(store) == VALUES
        assert list(store.names("quarantine/")) == []


def test_what_is_in_quarantine_already_stays(folder: Path) -> None:
    """Of a pack that was repaired once, brought back, and damaged again."""
    path, _, _ = flip_frame(folder, "n/01")
    older = folder / "quarantine" / path.name
    older.parent.mkdir()
    older.write_bytes(b"of an earlier repair")
    raw = path.read_bytes()
    repaired(folder)
    assert older.read_bytes() == b"of an earlier repair"
    assert older.with_suffix(".1.pack").read_bytes() == raw


def test_an_object_without_its_record_survives_a_repair_that_fails(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once its damaged record is gone, nothing tells that its manifest is more than garbage."""
    change_rows(folder, b"names", {b"n/01": b"garbled" * 11})

    def fails(*_: Any, **__: Any) -> None:
        raise OSError("the disk is full")

    for method in ("_name_orphans", "_keep_raw"):
        with monkeypatch.context() as patched:
            patched.setattr(ObjectRepair, method, fails)
            with pytest.raises(OSError, match="the disk is full"):
                castore.check_store(folder, repair=True)
    repaired(folder)
    with castore.open(folder) as store:
        store.gc()
        assert read(store) == {n: v for n, v in VALUES.items() if n != "n/01"}
    assert VALUES["n/01"] in kept(folder)


def test_an_object_without_its_record_and_with_a_damaged_frame(folder: Path) -> None:
    flip_frame(folder, "n/02")
    change_rows(folder, b"names", {b"n/02": b"garbled" * 11})
    repaired(folder)
    with castore.open(folder) as store:
        store.gc()
        assert read(store) == {n: v for n, v in VALUES.items() if n != "n/02"}
    value = VALUES["n/02"]
    [rest] = [raw for raw in kept(folder) if len(raw) == len(value)]
    lost = [i for i in range(len(value)) if rest[i] != value[i]]
    assert 0 < len(lost) < 12_000
    assert not any(rest[lost[0] : lost[-1] + 1])
