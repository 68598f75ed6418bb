"""Packs whose writers ended without a footer, or amid one: they are whole, for every verb."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from places import SUPPORT
from stores import contents, fill, packs, read, rows, small

import castore
from castore.cli import main
from castore.format.frame import FRAME_MAGIC, FrameHeader, encode_frame_header
from castore.format.index import decode_pack_row
from castore.format.pack import PACK_TRAILER_BYTES, decode_footer, decode_trailer

VALUES = contents(0, 6)
WRITER = """
import os, signal, sys, castore
sys.path.insert(0, sys.argv[2])
from stores import contents
store = castore.open(sys.argv[1], chunk_bytes_avg=2816, threads=1)
for name, value in contents(0, 6).items():
    store.puts(name, value)
"""
ENDS = {
    "at the end of the program": "",
    "by sys.exit": "sys.exit(0)",
    "of an error": "raise SystemExit(0) from ValueError()",
    "amid a put": "file = store.open('half', 'wb'); file.write(os.urandom(300_000)); sys.exit(0)",
    "without a hook": "os._exit(0)",
    "killed": "os.kill(os.getpid(), signal.SIGKILL)",
}


def left_by(folder: Path, end: str) -> Path:
    """The pack of a writer that did not close the store."""
    program = [sys.executable, "-W", "ignore", "-c", WRITER + end]
    status = subprocess.call([*program, str(folder), str(SUPPORT)])
    assert status == (-signal.SIGKILL if "SIGKILL" in end else 0)
    return max(packs(folder), key=lambda path: path.stat().st_size)


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("killed") / "store"
    left_by(folder, ENDS["killed"])
    return folder


@pytest.fixture
def unsealed(killed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(killed, tmp_path / "store"))


def is_sealed(path: Path) -> bool:
    raw = path.read_bytes()
    offset, _ = decode_trailer(raw[-PACK_TRAILER_BYTES:], len(raw))
    return bool(decode_footer(raw[offset:], len(raw)))


def assert_whole(folder: Path) -> None:
    assert castore.check_store(folder, read_data=True).problems == []
    assert main(["-r", str(folder), "check", "--read-data"]) == 0
    with castore.open(folder) as store:
        assert read(store) == VALUES


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS.keys())
@pytest.mark.sampled(6)
def test_a_store_that_nobody_closed_is_whole(tmp_path: Path, end: str) -> None:
    folder = tmp_path / "store"
    pack = left_by(folder, end)
    if "_exit(" not in end and "kill" not in end:
        assert is_sealed(pack)
    assert_whole(folder)
    # A repair has nothing to do, and takes no pack that is healthy.
    assert castore.check_store(folder, repair=True).repaired == []
    assert not (folder / "quarantine").exists()
    with castore.open(folder) as store:
        store.gc()
        assert store.gc().found_nothing
    assert all(is_sealed(path) for path in packs(folder))
    assert_whole(folder)


TORN = {
    "nothing": b"",
    "half a frame": encode_frame_header(FrameHeader(0, 0, 5000, 5000, bytes(16))) + b"some",
    "a piece of a header": FRAME_MAGIC[:3],
    "zeros": bytes(10_000),
    "anything": b"x",
}


@pytest.mark.parametrize("torn", TORN.values(), ids=TORN.keys())
def test_what_is_torn_behind_the_last_commit_is_nothing(unsealed: Path, torn: bytes) -> None:
    [pack] = packs(unsealed)
    with pack.open("ab") as file:
        file.write(torn)
    assert_whole(unsealed)
    with castore.open(unsealed) as store:
        foretold = store.gc(dry_run=True)
        report = store.gc()
        assert (foretold.packs_sealed, report.packs_sealed) == (1, 1)
        assert store.gc().found_nothing
    assert is_sealed(pack)
    assert_whole(unsealed)


@pytest.mark.parametrize("left", [0, 1])
def test_a_dry_run_counts_no_pack_that_goes(unsealed: Path, left: int) -> None:
    """As nothing of it is alive, or little, and that would be moved."""
    with castore.open(unsealed) as store:
        for name in sorted(VALUES, key=lambda name: len(VALUES[name]))[left and 3 :]:
            store.delete(name)
        foretold = store.gc(dry_run=True)
        report = store.gc()
    assert (report.packs_removed, report.packs_rewritten, report.packs_sealed) == (1, left, 0)
    assert foretold.packs_sealed == 0
    assert castore.check_store(unsealed, read_data=True).problems == []


def test_a_footer_torn_anywhere_is_nothing(unsealed: Path) -> None:
    """As by a disk that is full: what it would have said is in the frames."""
    [pack] = packs(unsealed)
    end = pack.stat().st_size
    with castore.open(unsealed) as store:
        assert store.gc().packs_sealed == 1
    footer = pack.read_bytes()[end:]
    for cut in [*range(1, len(footer), 37), len(footer) - 1]:
        for more in (b"", bytes(len(footer) - cut)):
            pack.write_bytes(pack.read_bytes()[:end] + footer[:cut] + more)
            assert castore.check_store(unsealed).problems == [], (cut, more)
    with castore.open(unsealed) as store:
        assert store.gc().packs_sealed == 1
    assert is_sealed(pack)
    assert_whole(unsealed)


def test_a_footer_that_lost_power_amid_its_sectors_is_nothing(unsealed: Path) -> None:
    """Nothing waits for it to be on the disk, which writes sectors in any order."""
    [pack] = packs(unsealed)
    end = pack.stat().st_size
    with castore.open(unsealed) as store:
        assert store.gc().packs_sealed == 1
    whole = pack.read_bytes()
    first, last = end // 512, len(whole) // 512
    assert last - first > 2
    for lost in [{i} for i in range(first, last + 1)] + [set(range(first, last, 2))]:
        raw = bytearray(whole)
        for i in lost:
            begin, upto = max(end, i * 512), min(len(whole), (i + 1) * 512)
            raw[begin:upto] = bytes(upto - begin)
        pack.write_bytes(raw)
        assert castore.check_store(unsealed).problems == [], lost
    with castore.open(unsealed) as store:
        store.gc()
        assert store.gc().found_nothing
    assert_whole(unsealed)
    raw[-PACK_TRAILER_BYTES - 1] ^= 1
    pack.write_bytes(raw)
    [problem] = castore.check_store(unsealed).problems
    assert "its footer is damaged" in problem.what
    pack.write_bytes(whole)


def test_bytes_behind_a_footer_are_told_of_and_a_repair_ends_it(unsealed: Path) -> None:
    with castore.open(unsealed) as store:
        store.gc()
    [pack] = packs(unsealed)
    with pack.open("ab") as file:
        file.write(b"x")
    [problem] = castore.check_store(unsealed, read_data=True).problems
    assert (problem.kind, problem.severity) == ("pack", "warning")
    assert "1 byte behind its footer" in problem.what
    assert main(["-r", str(unsealed), "check"]) == 1
    assert main(["-r", str(unsealed), "check", "--repair", "--yes"]) == 0
    assert_whole(unsealed)


@pytest.mark.damages_store("a pack is cut short")
def test_a_pack_that_lost_a_frame_is_not_sealed(unsealed: Path) -> None:
    [pack] = packs(unsealed)
    durable = decode_pack_row(rows(unsealed)[b"packs"][bytes.fromhex(pack.stem)])[1]
    os.truncate(pack, durable - 1)
    with castore.open(unsealed) as store:
        store.delete("empty")
        assert store.gc().packs_sealed == 0
    assert castore.check_store(unsealed).exit_code == 14


def test_a_failed_put_leaves_nothing_that_another_process_can_not_take(tmp_path: Path) -> None:
    with small(tmp_path / "store") as store:
        fill(store, VALUES)
        failing = store.open("failed", "wb")
        failing.write(os.urandom(300_000))
        failing.abort()
        gc = [sys.executable, "-m", "castore", "-r", store.path, "gc"]
        assert subprocess.call(gc, stdout=subprocess.DEVNULL) == 0
        assert sum(path.stat().st_size for path in packs(tmp_path / "store")) < 300_000
        assert store.gc().found_nothing
        fill(store, {f"again/{name}": value for name, value in VALUES.items()})
    report = castore.check_store(tmp_path / "store", read_data=True)
    assert (report.problems, report.garbage) == ([], {})
