"""What a large store on S3, and many writers at once, cost: seconds, requests, bytes, memory.

    python bench/bench_scale.py [--quick] [--json FILE] [--terabytes 1,10] [--file 1GiB]
                                [--writers 1,10,100] [--plot FILE.svg]

Large stores. What others have stored is known by hints, 28 bytes a chunk: 450 MB for each terabyte
of chunks of 64 KiB. The store has a file of random bytes, put by castore, and hints of so many
terabytes that others have put, with samples as collections leave them (`scale_server` makes both
when they are read). Then a machine with an empty cache puts the same file under another name, in a
process of its own, through a proxy of 20 ms and 100 MB/s that counts. Nothing is uploaded but what
is not known: what is sent is what deduplication misses.

    samples   it reads the hints that samples lead to
    all       it reads all hints first: what it would take without (of up to 0.1 TB)

Many writers. So many machines put and end at about the same time (see `scale_writers`): what each
of them asks for, and what all pay together. The plot is on two logarithmic axes, where what grows
as the writers do is a line of slope one.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from measure import (
    Bar,
    Row,
    castore_environment,
    machine_line,
    parse_size,
    report,
    scratch,
    settle,
    show,
    table,
)
from processes import await_port, free_port
from s3_links import ACCESS_KEY, SECRET_KEY, STORES, Link, Traffic
from scale_writers import Round, lines_of, rounds
from sources import write_random

import castore

SERVER = Path(__file__).with_name("scale_server.py")
ALL_TERABYTES_MAX = 0.1
RTT_S, MEGABYTES_S = 0.02, 100.0
SECONDS_BAR, RECEIVED_BAR, RSS_BAR, MISSED_BAR = 5.0, 100e6, 300 << 20, 0.03
GROWTH_BAR = 1.1  # what each of more writers pays, of what each of a hundred does
PUT = """
import json, sys, time
import castore, castore.s3.hints
if sys.argv[4] == 'all':
    castore.s3.hints.READ_BYTES_MAX = 1 << 62
began = time.perf_counter()
with castore.open(sys.argv[1], endpoint_url=sys.argv[2], create=False) as store:
    store.put('again by ' + sys.argv[4], sys.argv[3])
    seconds = time.perf_counter() - began
status = open('/proc/self/status').read()
rss = int(status.partition('VmHWM:')[2].split()[0]) << 10
print(json.dumps([seconds, time.process_time(), rss]))
"""


def environment(cache: Path) -> dict[str, str]:
    kept = castore_environment()
    return {
        **{name: value for name, value in kept.items() if not name.startswith("AWS_")},
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "CASTORE_CACHE_DIR": str(cache),
    }


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """The server's address."""
    folder.mkdir()
    port = free_port()
    argv = [sys.executable, str(SERVER), str(port), str(folder)]
    process = subprocess.Popen(argv, env=castore_environment())
    try:
        await_port(port, process)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def simulate(server: str, store: str, terabytes: float) -> dict[str, float]:
    asked = json.dumps({"store": store, "terabytes": terabytes}).encode()
    with urllib.request.urlopen(f"http://{server}/simulate", asked) as reply:
        made: dict[str, float] = json.loads(reply.read())
    return made


def put(
    url: str, link: Link, file: Path, how: str, cache: Path
) -> tuple[float, float, int, Traffic]:
    """(seconds, of the process's own time, peak of resident memory, what passed)."""
    link.clear()
    argv = [sys.executable, "-c", PUT, url, link.endpoint, str(file), how]
    done = subprocess.run(argv, env=environment(cache), capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    seconds, own, rss = json.loads(done.stdout)
    return seconds, own, rss, link.clear()


def measure(
    terabytes: float, ways: Sequence[str], file: Path, folder: Path
) -> tuple[Row, list[list[str]]]:
    prefix = f"t{terabytes:g}"
    url, size = f"s3://{STORES}/{prefix}", file.stat().st_size
    row = Row(f"{terabytes:g} TB", f"first put of {size / 1e6:.0f} MB, known", "s")
    lines = []
    with serving(folder / f"{prefix} server") as server:
        os.environ.update(environment(folder / f"{prefix} one's cache"))
        with castore.open(url, endpoint_url=f"http://{server}") as store:
            store.put("known", file)
        made = simulate(server, f"{STORES}/{prefix}", terabytes)
        row.notes.append(f"{made['bytes'] / 1e6:.0f} MB of hints")
        settle()
        link = Link(server, RTT_S, MEGABYTES_S)
        try:
            for how in ways:
                seconds, own, rss, traffic = put(url, link, file, how, folder / f"{prefix} {how}")
                row.add(how, seconds)
                missed = traffic.sent / size
                cells = [f"{seconds:.2f}", f"{own:.2f}", f"{traffic.requests}"]
                cells += [
                    f"{traffic.received / 1e6:.1f}",
                    f"{rss / (1 << 20):.0f}",
                    f"{1 - missed:.3f}",
                ]
                lines.append([row.name, how, *cells])
        finally:
            link.close()
    received = traffic.received
    row.bars = [
        Bar("within 5 s", f"{seconds:.2f} s", seconds <= SECONDS_BAR),
        Bar("100 MB received", f"{received / 1e6:.1f} MB", received <= RECEIVED_BAR),
        Bar("300 MiB of memory", f"{rss / (1 << 20):.0f} MiB", rss <= RSS_BAR),
        Bar("at least .97 deduplicated", f"{1 - missed:.3f}", missed <= MISSED_BAR),
    ]
    return row, lines


# ---------------------------------------------------------------- many writers


def judge_writers(name: str, found: Sequence[Round]) -> Row:
    row = Row(name, "dollars of a million writers like each", "$")
    for each in found:
        row.add(f"{each.writers} writers", each.dollars / each.writers * 1e6)
    for fewer, more in zip(found, found[1:], strict=False):
        growth = (more.dollars / more.writers) / (fewer.dollars / fewer.writers)
        if fewer.writers >= 100:  # with fewer there is less that others have told of to be read
            text = f"{more.writers} writers pay no more each than {fewer.writers} do"
            row.bars.append(Bar(text, f"{growth:.2f} of it", growth <= GROWTH_BAR))
    return row


def plot(path: str, found: dict[str, Sequence[Round]]) -> None:
    """What all writers pay together, by how many they are."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(11, 3.6), layout="constrained")
    shown = {"requests": "requests", "bytes moved": "moved", "dollars": "dollars"}
    for axis, (label, attribute) in zip(axes, shown.items(), strict=True):
        for name, each in found.items():
            values = [getattr(one, attribute) for one in each]
            axis.loglog([one.writers for one in each], values, marker="o", label=name)
        axis.set_xlabel("writers")
        axis.set_title(f"{label}, of all together")
        axis.grid(visible=True, alpha=0.3)
    axes[0].legend()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def _judge_not(row: Row, small: bool) -> None:
    """A run that is too small to tell judges no bar."""
    for bar in row.bars if small else ():
        bar.met = None


def many_writers(counts: Sequence[int], size: int, folder: Path) -> dict[str, list[Round]]:
    found: dict[str, list[Round]] = {}
    for count in counts:
        for name, each in rounds(count, size, folder / f"{count} writers").items():
            found.setdefault(name, []).append(each)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="see the module's docstring")
    parser.add_argument("--quick", action="store_true", help="smaller, with no bars judged")
    parser.add_argument("--tiny", action="store_true", help="only show that it runs")
    parser.add_argument("--terabytes", help="how large the stores are, by commas; 0: none")
    parser.add_argument("--file", type=parse_size, help="the size of what is put there")
    parser.add_argument("--writers", help="how many at once, by commas; 0: none")
    parser.add_argument("--plot", help="draw what the writers pay to this file, an SVG")
    parser.add_argument("--dir", help="where its files are for as long as it runs")
    parser.add_argument("--json", help="write all figures to this file")
    options = parser.parse_args(argv)
    small = options.tiny or options.quick
    tiny, quick, full = ("0.05", "1,2"), ("0.1,1", "1,10,40"), ("0.1,1,10,100", "1,10,100,1000")
    scales, counts = tiny if options.tiny else quick if options.quick else full
    scales, counts = options.terabytes or scales, options.writers or counts
    size = options.file or ((8 << 20) if options.tiny else (256 << 20) if small else 1 << 30)
    print(machine_line())
    rows: list[Row] = []
    lines: list[list[str]] = []
    with scratch(options.dir) as folder:
        file = folder / "file"
        write_random(file, size, seed=1)
        for terabytes in filter(None, map(float, scales.split(","))):
            settle()
            reads_all = terabytes <= ALL_TERABYTES_MAX and not options.tiny
            ways = ["all", "samples"] if reads_all else ["samples"]
            row, cells = measure(terabytes, ways, file, folder)
            _judge_not(row, small)
            rows.append(row)
            lines += cells
            show(row, base="samples")
        found = many_writers([*filter(None, map(int, counts.split(",")))], 2 << 20, folder)
        rows += [judge_writers(name, each) for name, each in found.items()]
    for row in rows:
        _judge_not(row, small)
    if lines:
        headers = ["store", "hints", "s", "cpu s", "requests", "MB received", "MiB", "deduplicated"]
        print(table(headers, lines))
    for name, each in found.items():
        print(f"\n{name}: of each writer")
        print(table(["", *(f"{one.writers}" for one in each)], lines_of(each)))
    if options.plot and found:
        plot(options.plot, found)
    settings: dict[str, Any] = {"terabytes": scales, "file_bytes": size, "writers": counts}
    return 1 if report("scale", rows, settings, options.json) and not small else 0


if __name__ == "__main__":
    sys.exit(main())
