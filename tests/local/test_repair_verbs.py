"""What a repair reads, refuses and tells, and packs that are not where readers look."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from stores import change_rows, contents, fill, flip, packs, read, rows, small

import castore
from castore import Store
from castore.check import data
from castore.check.plan import plan
from castore.cli import main
from castore.errors import CastoreError, ReadOnlyStore, StoreIOError
from castore.stream.reports import CheckReport

VALUES = contents()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two packs, of which the first has most."""
    with small(tmp_path / "store") as store:
        fill(store, VALUES)
    with small(tmp_path / "store") as store:
        store.puts("last", os.urandom(20_000))
    return tmp_path / "store"


def check(folder: Path) -> CheckReport:
    return castore.check_store(folder, read_data=True)


def largest(folder: Path) -> Path:
    return max(packs(folder), key=lambda path: path.stat().st_size)


# ---- what is read, and when nothing is done -----------------------------------------------------


@pytest.mark.plain("with a base, more is lost, and kept in other packs")
@pytest.mark.parametrize("by", ["api", "command", "report"])
def test_a_repair_reads_the_data_once(
    folder: Path, by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = sum(path.stat().st_size for path in packs(folder))
    flip(largest(folder), 8 * 5000)
    read_bytes = 0
    faults = data._faults

    def counted(read: Any, task: Any, seed: int) -> Any:
        nonlocal read_bytes
        read_bytes += sum(entry.stored_bytes for entry in task)
        return faults(read, task, seed)

    monkeypatch.setattr(data, "_faults", counted)
    if by == "api":
        report = castore.check_store(folder, repair=True)
    elif by == "report":
        with castore.open(folder) as store:
            found = store.check(True)
            report = store.check(repair=found)
    else:
        assert main(["-r", str(folder), "check", "--repair", "--yes"]) == 14
        report = check(folder)
        read_bytes -= report.read_bytes
    # Once all, and once more what the repair wrote and what it could not take.
    damaged = sum(path.stat().st_size for path in (folder / "quarantine").iterdir())
    assert size * 0.9 < read_bytes < size + damaged + 10_000
    assert [p for p in report.problems if p.kind != "object"] == []


@pytest.mark.damages_store("nothing may be mended")
def test_a_store_that_is_opened_to_read_is_not_mended(folder: Path) -> None:
    flip(largest(folder), 8 * 5000)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with (
        castore.open(folder, read_only=True) as store,
        pytest.raises(ReadOnlyStore),
    ):
        store.check(repair=True)
    after = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert after.keys() == before.keys()
    changed = {path.name for path in before if before[path] != after[path]}
    assert changed <= {"lock.mdb"}


# ---- what is told -------------------------------------------------------------------------------


def test_what_is_alike_is_counted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.truncate(largest(folder), 5000)
    lines = {}
    for more in ([], ["--verbose"]):
        assert main(["-r", str(folder), "check", *more]) == 14
        lines[len(more)] = capsys.readouterr().out.splitlines()
    assert len(lines[1]) > 60
    assert len(lines[0]) < 40
    assert any("more like it (frame, of pack" in line for line in lines[0])
    assert main(["-r", str(folder), "check", "--repair", "--yes"]) == 14
    captured = capsys.readouterr()
    assert len(captured.err.splitlines()) < 60
    assert main(["-r", str(folder), "check"]) == 0


# ---- one notion of where a pack is --------------------------------------------------------------


def to_another_folder(path: Path) -> None:
    elsewhere = path.parent.parent / "zz"
    elsewhere.mkdir()
    path.rename(elsewhere / path.name)


def up(path: Path) -> None:
    path.rename(path.parent.parent / path.name)


def behind_a_folder(path: Path) -> None:
    """A folder is in its place."""
    path.rename(path.parent.parent / path.name)
    path.mkdir()


@pytest.mark.parametrize("move", [to_another_folder, up, behind_a_folder])
def test_a_pack_in_the_wrong_place_is_missing_until_it_is_moved_back(
    folder: Path, move: Callable[[Path], None]
) -> None:
    with castore.open(folder) as store:
        expected = {name: store.gets(name) for name in store.names()}
    move(largest(folder))
    report = check(folder)
    with castore.open(folder) as store:
        kept = read(store)
        assert report.damaged_names == sorted(expected.keys() - kept.keys()) != []
        assert store.stats().packs == 1
        for name in report.damaged_names:
            with pytest.raises(CastoreError):
                store.gets(name)
        # Nothing is taken that may be of use, and what is missing is said.
        assert len(store.gc().missing) == 1
    assert report.exit_code == 14
    assert ("stray", "warning") in {(p.kind, p.severity) for p in report.problems}
    mended = castore.check_store(folder, repair=True)
    assert mended.problems == []
    with castore.open(folder) as store:
        assert {name: store.gets(name) for name in store.names()} == expected


def test_a_second_pack_of_the_same_name_is_moved_away(folder: Path) -> None:
    path = largest(folder)
    (folder / "packs" / "zz").mkdir()
    shutil.copy(path, folder / "packs" / "zz" / path.name)
    report = check(folder)
    assert (report.exit_code, report.packs) == (1, 2)
    assert len(plan(report)) == 1
    with castore.open(folder) as store:
        assert store.stats().packs == 2
        assert store.gc().missing == ()
    assert castore.check_store(folder, repair=True).problems == []
    assert (folder / "quarantine" / path.name).exists()


@pytest.mark.parametrize("verb", [partial(Store.check, repair=True), Store.gc, Store.stats])
def test_a_pack_that_the_disk_does_not_tell_of_is_not_taken_for_gone(
    folder: Path, verb: Callable[[Store], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is about to fail, or a server that does not answer, says so of a file's state,
    too: a repair moved the pack away, and put zeros in the place of all that was in it."""
    there, hidden, stat = packs(folder), str(largest(folder)), os.stat

    def fails(path: Any, *arguments: Any, **options: Any) -> os.stat_result:
        if path == hidden:
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)
        return stat(path, *arguments, **options)

    with small(folder) as store:
        with monkeypatch.context() as patched:
            patched.setattr(os, "stat", fails)
            with pytest.raises(StoreIOError, match=hidden):
                verb(store)
        assert packs(folder) == there
        assert store.check(read_data=True).clean
        assert {name: store.gets(name) for name in VALUES} == VALUES


@pytest.mark.parametrize("which", [0, 1])
def test_the_row_of_a_pack_that_only_segments_lead_to_is_written_anew(
    tmp_path: Path, which: int
) -> None:
    """Two writers at once have stored the same chunks, whose rows lead to the first's frames."""
    data = os.urandom(50_000)
    folder = tmp_path / "store"
    with small(folder) as store:
        store.puts("one", data)
    chunks = rows(folder)[b"chunks"]
    change_rows(folder, b"chunks", dict.fromkeys(chunks))
    with small(folder) as store:
        store.puts("other", data)
    change_rows(folder, b"chunks", dict(chunks))
    assert castore.check_store(folder, repair=True).repaired == ["the totals are counted anew"]
    found = sorted(rows(folder)[b"packs"])
    assert len(found) == 2
    change_rows(folder, b"packs", {found[which]: None})
    assert [p.kind for p in check(folder).problems] == ["pack row"]
    assert castore.check_store(folder, repair=True).problems == []
    with castore.open(folder) as store:
        store.gc()
        assert store.gets("one") == store.gets("other") == data


# ---- sizes that two levels differ about ---------------------------------------------------------


def test_a_chunk_that_was_stored_twice_at_two_levels_is_one_after_a_collection(
    tmp_path: Path,
) -> None:
    text = "".join(f"{i} {i * i % 977}\n" for i in range(9000)).encode()
    with small(tmp_path / "store", compression_level=1) as fast:
        first = fast.open("first", "wb")
        first.write(text)
        with small(tmp_path / "store", compression_level=19) as slow:
            second = slow.open("second", "wb")
            second.write(text)
            second.close()
        first.close()
        fast.puts("more", os.urandom(100_000))
        fast.delete("more")
        report = fast.gc(repack_below=1.0)
        assert report.packs_rewritten
        assert fast.check(True).problems == []
        assert fast.gc().found_nothing
        assert fast.gets("first") == fast.gets("second") == text
