"""How much memory putting and getting one large object takes.

    python bench/bench_memory.py [--quick] [--json FILE] [--size 8G] [--dir DIR]

The object is a file of holes and seeded random bytes, half and half, in stretches of 1 to 96 MiB:
holes are what a mapped file is cheapest at and random bytes what the store is dearest at (every
frame raw, every chunk new). It is put and read back by the `castore` command, each time from a
file and through a pipe, and read at random in one process. Then it is edited in so many places that
nearly every chunk is new, and a delta; that is put and read back, too. Every copy read back is
compared.

While a process runs, `RssAnon` and `VmRSS` of /proc/PID/status are read about every two
milliseconds: the highest `RssAnon` seen is the first bar (a peak shorter than the interval can be
missed), the kernel's own `VmHWM` the second (exact up to the last reading). Page cache that no
process has mapped counts towards neither.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from measure import (
    Bar,
    Row,
    castore_command,
    castore_environment,
    machine_line,
    parse_size,
    report,
    run,
    same_bytes,
    scratch,
    settle,
    table,
)
from sources import BLOCK_BYTES, edit, random_blocks

ANONYMOUS_BAR_BYTES = 256 << 20
TOTAL_BAR_BYTES = 1 << 30
FULL_BYTES = 8 << 30
QUICK_BYTES = 256 << 20
TINY_BYTES = 8 << 20
STRETCH_BYTES_MAX = 96 << 20
INTERVAL_S = 0.002
EDIT_EVERY_BYTES = 64 << 10

RANDOM_READS = """
import random, sys, castore
store, name, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
draw = random.Random(3)
with castore.open(store) as opened:
    size = opened.size(name)
    for _ in range(count):
        begin = draw.randrange(size)
        opened.gets(name, (begin, begin + draw.choice((100, 4096, 65536, 1 << 20))))
"""


@dataclass(slots=True)
class Peaks:
    """The highest readings of one process."""

    anonymous: int = 0
    total: int = 0
    readings: int = 0

    def watch(self, pid: int) -> None:
        """Read until the process is gone; its zombie has no memory fields."""
        with open(f"/proc/{pid}/status", "rb", buffering=0) as status:
            while fields := _fields(status.read()):
                self.anonymous = max(self.anonymous, fields[b"RssAnon"])
                self.total = max(self.total, fields[b"VmHWM"])
                self.readings += 1
                time.sleep(INTERVAL_S)
                status.seek(0)


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    if not os.path.exists("/proc/self/status"):
        sys.exit("bench_memory: this needs Linux's /proc")
    preset = TINY_BYTES if options.tiny else QUICK_BYTES if options.quick else FULL_BYTES
    size = parse_size(options.size) if options.size else preset
    print(machine_line())
    with scratch(options.dir) as directory:
        source = directory / "object"
        random_bytes = write_holes_and_noise(source, size)
        print(f"object: {size:,} bytes, {random_bytes:,} of them random, the rest holes")
        rows = _measure(source, size, directory)
    lines = [
        [
            row.name,
            *(f"{row.samples[key][0]:.1f}" for key in ("anonymous", "total")),
            f"{row.usage['total'][0].wall_s:.1f}",
        ]
        for row in rows
    ]
    print(table(["", "peak RssAnon MiB", "peak RSS MiB", "seconds"], lines))
    for row in rows:
        for bar in row.bars:
            print(f"{row.name}:\n{bar.line()}")
    report("memory", rows, {"size": size, "random_bytes": random_bytes}, options.json)
    return 0


def write_holes_and_noise(path: Path, size: int) -> int:
    """Write the object; returns how many of its bytes are random."""
    draw = random.Random(11)
    longest = max(min(STRETCH_BYTES_MAX, size // 4), 1)
    written = at = 0
    noise = True
    with open(path, "wb") as target:
        target.truncate(size)
        while at < size:
            stretch = min(draw.randint(min(BLOCK_BYTES, longest), longest), size - at)
            if noise:
                target.seek(at)
                for block in random_blocks(stretch, seed=at):
                    target.write(block)
                written += stretch
            at += stretch
            noise = not noise
    return written


def _measure(source: Path, size: int, directory: Path) -> list[Row]:
    store, out = directory / "store", directory / "out"
    castore = [*castore_command(), "-r", str(store)]
    reads = str(max(min(size >> 19, 20_000), 50))
    rows = [
        _peaks("put-file", "put of a file", [*castore, "put", str(source), "one"]),
        _peaks("get-file", "get to a file", [*castore, "get", "one", str(out)]),
    ]
    _same(out, source)
    at_random = [sys.executable, "-c", RANDOM_READS, str(store), "one", reads]
    rows += [
        _peaks("get-pipe", "cat to nowhere", [*castore, "cat", "one"]),
        _unjudged(_peaks("gets-random", f"{reads} gets of up to 1 MiB at random", at_random)),
        _peaks("put-again", "put of the same file again", [*castore, "put", str(source), "two"]),
    ]
    edit(source, EDIT_EVERY_BYTES, seed=12)
    rows += [
        _peaks(
            "put-next", "put of it edited", [*castore, "put", "--like", "one", str(source), "next"]
        ),
        _peaks("get-next", "get of that", [*castore, "get", "next", str(out)]),
    ]
    _same(out, source)
    rows[-2].notes.append(_deltas(store, "next"))
    shutil.rmtree(store)
    piped = [*castore, "put", "-", "three"]
    rows.append(_peaks("put-pipe", "put of standard input, new", piped, stdin=str(source)))
    out.unlink(missing_ok=True)
    _peaks("check", "not reported", [*castore, "get", "three", str(out)])
    _same(out, source)
    return rows


def _peaks(name: str, what: str, argv: Sequence[str], stdin: str | None = None) -> Row:
    settle()
    peaks = Peaks()
    usage = run(argv, env=castore_environment(), stdin=stdin, watch=peaks.watch)
    row = Row(name, what, "MiB")
    row.add("anonymous", peaks.anonymous / 2**20)
    row.add("total", peaks.total / 2**20)
    row.usage["total"] = [usage]
    row.notes.append(f"{peaks.readings} readings")
    row.bar("≤ 256 MiB anonymous", row.samples["anonymous"], _below(ANONYMOUS_BAR_BYTES))
    row.bar("≤ 1024 MiB with mapped files", row.samples["total"], _below(TOTAL_BAR_BYTES))
    print(f"{name}: {what}, {usage.wall_s:.1f} s", flush=True)
    return row


def _deltas(store: Path, name: str) -> str:
    import castore

    with castore.open(store, read_only=True) as opened:
        info = opened.info(name)
    return f"{info.deltas:,} of its {info.chunks:,} chunks are deltas"


def _unjudged(row: Row) -> Row:
    """The bars are on a put and a get: pages that reads at random map stay mapped for the next."""
    row.bars = [Bar(bar.text, bar.measured, None) for bar in row.bars]
    return row


def _below(bound: int) -> Callable[[float], bool]:
    return lambda mebibytes: mebibytes * 2**20 <= bound


def _same(copy: Path, source: Path) -> None:
    if not same_bytes(copy, source):
        raise AssertionError("what was read back differs from what was put")


def _fields(status: bytes) -> dict[bytes, int] | None:
    """The memory fields in bytes; None when there are none."""
    fields = {}
    for line in status.splitlines():
        name, _, value = line.partition(b":")
        if name in (b"RssAnon", b"VmHWM"):
            fields[name] = int(value.split()[0]) * 1024
    return fields if len(fields) == 2 else None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="256 MiB")
    parser.add_argument("--tiny", action="store_true", help="8 MiB: only show that it runs")
    parser.add_argument("--size", metavar="BYTES", help="8G is the default")
    parser.add_argument("--json", metavar="FILE", help="write the readings here")
    parser.add_argument("--dir", metavar="DIR", help="where to work: about 2.5 × --size is used")
    return parser


if __name__ == "__main__":
    sys.exit(main())
