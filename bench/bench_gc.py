"""What a check and a collection take, in a store of a million chunks of which half are dead.

    python bench/bench_gc.py [--quick] [--json FILE] [--chunks 1000000]

The store is filled by ordinary puts with the chunks of bench_growth: distinct ones, small, so that
the index is that of a store of 65 GB and the packs are not. Objects of 1,000 chunks are kept and
dropped in turn, so that every pack is half dead. Two checks and three collections follow, each in a
process of its own, whose peak of resident memory counts the pages of index and packs that it has
mapped:

    check       of the index against the headers of all frames
    check-data  and every frame decoded
    sweep       marks everything, removes half of the rows and segments
    rewrite     what is left of every pack, each frame checked on its way (the rest of the work)
    again       finds nothing
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench_growth import ENDING_BYTES, UNIT_BYTES, Fill, find_ending
from measure import Row, castore_environment, machine_line, report, scratch, settle, show

CHUNKS_PER_OBJECT = 1000
MEMORY_BAR_MIB = 512
# A process's ru_maxrss begins with that of whoever started it, which has just filled a store: where
# there is a VmHWM, that is the process's own.
PEAK = """
import json, resource, sys, time
import castore

def peak_rss_bytes():
    try:
        with open('/proc/self/status') as status:
            own = next(int(line.split()[1]) << 10 for line in status if line.startswith('VmHWM'))
    except FileNotFoundError:
        own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    unit = 1 if sys.platform == 'darwin' else 1024
    return max(own, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit)

"""
COLLECT = """
began = time.perf_counter()
with castore.open(sys.argv[1], create=False) as store:
    report = store.gc(repack_below=float(sys.argv[2]))
seconds = time.perf_counter() - began
print(json.dumps({
    'seconds': seconds,
    'rss_bytes': peak_rss_bytes(),
    'chunks_removed': report.chunks_removed,
    'packs_rewritten': report.packs_rewritten,
    'bytes_rewritten': report.bytes_rewritten,
    'bytes_freed': report.bytes_freed,
    'found_nothing': report.found_nothing,
}))
"""
CHECK = """
began = time.perf_counter()
report = castore.check_store(sys.argv[1], read_data=float(sys.argv[2]))
seconds = time.perf_counter() - began
print(json.dumps({
    'seconds': seconds,
    'rss_bytes': peak_rss_bytes(),
    'exit_code': report.exit_code,
    'names': report.names,
    'frames': report.frames,
    'read_frames': report.read_frames,
    'read_bytes': report.read_bytes,
}))
"""


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    chunks = options.chunks or (4_000 if options.tiny else 100_000 if options.quick else 1_000_000)
    castore_environment()
    print(machine_line())
    with scratch(options.dir) as directory:
        path = directory / "store"
        unit = bytes(UNIT_BYTES - ENDING_BYTES) + find_ending(directory / "search")
        facts = _fill(path, chunks, unit)
        rows = _measure(path, facts)
    report("gc", rows, facts, options.json)
    return 0


def _fill(path: Path, chunks: int, unit: bytes) -> dict[str, Any]:
    import castore

    began = time.perf_counter()
    with castore.open(path) as store:
        for number, first in enumerate(range(0, chunks, CHUNKS_PER_OBJECT)):
            kind = ("kept", "dropped")[number % 2]
            count = min(CHUNKS_PER_OBJECT, chunks - first)
            store.put(f"{kind}/{number:06}", Fill(unit, first, count))
        store.delete_prefix("dropped/")
        stats = store.stats()
    settle()
    seconds = time.perf_counter() - began
    print(
        f"{stats.chunks:,} chunks in {seconds:.0f} s: packs {stats.pack_bytes / 1e6:.0f} MB, "
        f"index {stats.index_bytes / 1e6:.0f} MB; then half of the objects were deleted",
        flush=True,
    )
    return {
        "chunks": stats.chunks,
        "fill_s": seconds,
        "pack_bytes": stats.pack_bytes,
        "index_bytes": stats.index_bytes,
    }


def _measure(path: Path, facts: dict[str, Any]) -> list[Row]:
    rows = []
    found: dict[str, dict[str, Any]] = {}
    for name, what, read_data in (
        ("check", "index and packs against each other", 0.0),
        ("check-data", "and every frame decoded", 1.0),
    ):
        measured = found[name] = _run(CHECK, path, read_data)
        note = (
            f"{measured['frames']:,} frames, {measured['read_frames']:,} of them decoded "
            f"({measured['read_bytes'] / 1e6:.0f} MB stored)"
        )
        rows += _rows(name, what, "check", measured, facts["chunks"], note)
        if measured["exit_code"] > 1 or measured["frames"] < facts["chunks"]:
            raise AssertionError("the check found damage, or fewer frames than chunks")
    for name, what, repack_below in (
        ("sweep", "mark all, remove half of the rows", 0.0),
        ("rewrite", "the half of every pack that is alive", 0.9),
        ("again", "with nothing to find", 0.9),
    ):
        measured = found[name] = _run(COLLECT, path, repack_below)
        note = (
            f"{measured['chunks_removed']:,} chunks removed, "
            f"{measured['packs_rewritten']} packs rewritten "
            f"({measured['bytes_rewritten'] / 1e6:.0f} MB), "
            f"{measured['bytes_freed'] / 1e6:.0f} MB freed"
        )
        rows += _rows(name, what, "gc", measured, facts["chunks"], note)
    if not found["again"]["found_nothing"] or not found["sweep"]["chunks_removed"]:
        raise AssertionError("the first collection found nothing, or the last one something")
    facts["runs"] = found
    return rows


def _run(program: str, path: Path, option: float) -> dict[str, Any]:
    settle()
    done = subprocess.run(
        [sys.executable, "-c", PEAK + program, str(path), str(option)],
        stdout=subprocess.PIPE,
        check=True,
    )
    measured: dict[str, Any] = json.loads(done.stdout)
    return measured


def _rows(
    name: str, what: str, verb: str, measured: dict[str, Any], chunks: int, note: str
) -> list[Row]:
    seconds = Row(name, what, "s per million chunks")
    seconds.add(verb, measured["seconds"] / (chunks / 1e6))
    seconds.notes.append(f"{measured['seconds']:.2f} s in all; {note}")
    memory = Row(f"{name}-memory", "peak resident, mapped pages too", "MiB")
    memory.add(verb, measured["rss_bytes"] / 2**20)
    memory.bar(f"≤ {MEMORY_BAR_MIB} MiB", memory.samples[verb], _within_bar)
    for row in (seconds, memory):
        show(row, base=verb)
    return [seconds, memory]


def _within_bar(mebibytes: float) -> bool:
    return mebibytes <= MEMORY_BAR_MIB


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="100,000 chunks")
    parser.add_argument("--tiny", action="store_true", help="only show that it runs")
    parser.add_argument("--chunks", type=int, metavar="N", help="chunks to begin with")
    parser.add_argument("--json", metavar="FILE", help="write every sample here")
    parser.add_argument("--dir", metavar="DIR", help="where to work: about 2 GB in the full run")
    return parser


if __name__ == "__main__":
    sys.exit(main())
