"""Checks beside writers and collectors: of a store that is whole they say nothing, whenever they
look."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from places import SUPPORT
from stores import contents, fill, small

import castore
from castore.errors import StoreLocked

HERE = str(SUPPORT)
# Opens and closes the store, so that packs are made, sealed and let go of all the time; some puts
# fail, and some processes end amid one.
WRITER = """
import os, random, sys, castore
choose = random.Random(int(sys.argv[2]))
while True:
    with castore.open(sys.argv[1], chunk_bytes_avg=2816, threads=1) as store:
        for turn in range(choose.randrange(1, 6)):
            name = f"w/{sys.argv[2]}/{choose.randrange(8)}"
            store.puts(name, choose.randbytes(choose.randrange(5_000, 60_000)))
            if choose.random() < 0.3:
                store.delete(name)
            if choose.random() < 0.2:
                file = store.open(name, "wb")
                file.write(choose.randbytes(200_000))
                file.abort()
"""
COLLECTOR = """
import sys, castore
with castore.open(sys.argv[1], create=False, threads=1) as store:
    while True:
        store.gc()
"""


@contextmanager
def at_work(folder: Path, *programs: str) -> Iterator[list[subprocess.Popen[bytes]]]:
    started = [
        subprocess.Popen([sys.executable, "-c", program, str(folder), str(number)])
        for number, program in enumerate(programs)
    ]
    try:
        yield started
        for process in started:
            assert process.poll() is None, "it ended of an error"
    finally:
        for process in started:
            process.kill()
            process.wait()


def check_beside(folder: Path, checks: int, *programs: str) -> None:
    values = contents()
    with small(folder) as store:
        fill(store, values)
    with at_work(folder, *programs):
        time.sleep(0.5)
        for turn in range(checks):
            try:
                report = castore.check_store(folder, read_data=turn % 2 == 0)
            except StoreLocked:  # collectors left it no time, and it says so
                assert COLLECTOR in programs
                continue
            assert report.problems == [], turn
    assert castore.check_store(folder, read_data=True).problems == []
    with castore.open(folder) as store:
        assert {name: store.gets(name) for name in values} == values
        # What frames moved to may leave others, in further packs, to the next one.
        assert any(store.gc().found_nothing for _ in range(4))
    report = castore.check_store(folder, read_data=True)
    assert (report.problems, report.garbage) == ([], {})


@pytest.mark.parametrize("programs", [(WRITER,), (WRITER, COLLECTOR)], ids=["writer", "both"])
def test_checks_say_nothing(tmp_path: Path, programs: tuple[str, ...]) -> None:
    check_beside(tmp_path / "store", 12, *programs)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_many_checks_say_nothing(tmp_path: Path) -> None:
    check_beside(tmp_path / "store", 300, WRITER, WRITER, COLLECTOR)


def test_a_check_that_was_killed_does_not_make_the_index_grow(tmp_path: Path) -> None:
    """The snapshot that it had is let go of by who goes on to write."""
    with small(tmp_path / "store") as store:
        fill(store, contents())
        index = Path(store.path, "index")
        program = (
            "import sys, time; from castore.system.lmdb_env import open_index\n"
            "index = open_index(sys.argv[1], create=False)\n"
            "with index.gate, index.snapshot() as txn:\n"
            "    print('reads', flush=True); time.sleep(600)"
        )
        with subprocess.Popen(
            [sys.executable, "-c", program, str(index)], stdout=subprocess.PIPE
        ) as reader:
            assert reader.stdout is not None
            assert reader.stdout.readline() == b"reads\n"
            reader.send_signal(signal.SIGKILL)
        began = time.monotonic()
        puts = 0
        while time.monotonic() - began < 1.5:  # its slot is looked at once a second
            store.puts("name", os.urandom(2000))
            puts += 1
        size = store.stats().index_bytes
        for _ in range(2 * puts):
            store.puts("name", os.urandom(2000))
        assert store.stats().index_bytes <= size + 65_536
