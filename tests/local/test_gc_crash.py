"""Collectors that are killed, and that many others write and delete beside."""

from __future__ import annotations

import json
import random
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import gc_oracle
import oracle
import pytest

import castore

NAMES = 30


@pytest.fixture(autouse=True)
def no_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CASTORE_CACHE_DIR", str(tmp_path / "caches"))


@pytest.fixture
def fast_folder(tmp_path: Path) -> Iterator[Path]:
    with oracle.fast_folder(tmp_path) as folder:
        yield folder


# ---- killed -------------------------------------------------------------------------------------


def kill_at_steps(folder: Path, first: int, stride: int, *, torn: bool) -> None:
    command = gc_oracle.command(
        "kill_at_every_step", str(folder / "made"), first, 5000, stride, int(torn)
    )
    report = oracle.steps_report(command, least=60 // stride)
    assert {"before commit", "after commit", "unlink", "pwritev", "flock"} <= set(report["of"])


def test_killed_at_some_steps(fast_folder: Path) -> None:
    kill_at_steps(fast_folder, 1, 20, torn=False)


@pytest.mark.deltas
def test_killed_at_some_steps_with_deltas(fast_folder: Path) -> None:
    kill_at_steps(fast_folder, 3, 60, torn=True)


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("torn", [False, True])
def test_killed_at_every_step(fast_folder: Path, torn: bool) -> None:
    kill_at_steps(fast_folder, 1, 1, torn=torn)


# ---- stopped ------------------------------------------------------------------------------------


def stop_at_steps(folder: Path, first: int, stride: int) -> None:
    command = gc_oracle.command("stop_at_every_step", str(folder), first, 1000, stride)
    oracle.steps_report(command, least=100 // stride)


def test_a_writer_that_is_stopped_at_some_steps(fast_folder: Path) -> None:
    stop_at_steps(fast_folder, 1, 37)


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_a_writer_that_is_stopped_at_every_step(fast_folder: Path) -> None:
    stop_at_steps(fast_folder, 1, 1)


# ---- killed at random moments -------------------------------------------------------------------


def kill_again_and_again(folder: Path, kills: int) -> None:
    """A collector and a writer on one store, both killed at a random moment, each turn."""
    expected = oracle.Expected()
    path = str(folder / "store")
    castore.open(path, chunk_bytes_avg=2816).close()
    for turn in range(1, kills + 1):
        choose = random.Random(turn)
        with (
            subprocess.Popen(
                gc_oracle.command("keep_collecting", path),
                env=oracle.environment(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            ) as collector,
            subprocess.Popen(
                oracle.command("keep_putting", path, turn, 1 + turn % 2),
                env=oracle.environment(),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            ) as writer,
        ):
            assert writer.stdout is not None
            assert writer.stderr is not None
            assert collector.stderr is not None
            said = [writer.stdout.readline()]
            reader = threading.Thread(target=lambda w=writer, s=said: s.extend(w.stdout))
            reader.start()
            time.sleep(choose.random() * 0.4)
            for process in choose.sample([collector, writer], 2):
                process.kill()
                time.sleep(choose.random() * 0.05)
            reader.join()
            errors = writer.stderr.read() + collector.stderr.read()
        assert errors == b"", errors.decode()
        expected.follow(said)
        with castore.open(path, create=False, threads=1) as store:
            expected.check(store)
            if turn % 5 == 0:
                store.gc()
                expected.check(store)
    with castore.open(path, create=False, threads=1) as store:
        store.gc()
        oracle.check_index(store)
        expected.check(store)
        assert store.gc().found_nothing
        stats = store.stats()
        assert stats.packs < 20
        assert stats.pack_bytes < 3 * stats.stored_bytes + 100_000
    assert expected.acknowledged > kills


def test_killed_at_random_moments(tmp_path: Path) -> None:
    kill_again_and_again(tmp_path, 5)


@pytest.mark.long
@pytest.mark.timeout(3000)
def test_killed_at_a_thousand_random_moments(tmp_path: Path) -> None:
    kill_again_and_again(tmp_path, 1000)


# ---- many at once -------------------------------------------------------------------------------


def run_all(folder: Path, seconds: float, writers: int, deleters: int, collectors: int) -> None:
    path = str(folder / "store")
    castore.open(path).close()
    histories = [str(folder / f"history-{i}") for i in range(writers + deleters)]
    commands = [
        (oracle if i < writers else gc_oracle).command(
            "work" if i < writers else "delete", path, history, i + 1, seconds, NAMES
        )
        for i, history in enumerate(histories)
    ]
    commands += [gc_oracle.command("collect", path, seconds)] * collectors
    running = [
        subprocess.Popen(
            command, env=oracle.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for command in commands
    ]
    collections = 0
    try:
        for process in running:
            said, errors = process.communicate(timeout=seconds + 180)
            assert process.returncode == 0, errors.decode()
            if process in running[-collectors:]:
                collections += json.loads(said)[0]
    finally:
        for process in running:
            process.kill()
            process.wait()
    events = [event for history in histories for event in oracle.read_history(history)]
    with castore.open(path, create=False) as store:
        for _ in range(2):
            events += oracle.final_reads(store, NAMES)
            store.gc()
        oracle.check_index(store)
        assert store.gc().found_nothing
    assert oracle.judge(events) == []
    assert len(events) > 20 * seconds
    assert collections > seconds / 2


def test_writers_deleters_and_collectors(tmp_path: Path) -> None:
    run_all(tmp_path, 2, writers=3, deleters=1, collectors=2)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_eight_writers_four_deleters_two_collectors(tmp_path: Path) -> None:
    run_all(tmp_path, 300, writers=8, deleters=4, collectors=2)
