"""The put rows of bench_delta: what looking for deltas costs, and how fast a next version is put.

- `first-*`: where nothing resembles anything, with deltas and without, in one process on one core,
  in turn: a first version; random bytes under a name whose older object is a first version; and one
  package under a name that another has until then.
- `next-*`: the newest version into a store that has the others, in one process on one core, and by
  the command beside `zstd -3 --long=27` of it. Each put begins with a copy of that store.

Seconds in one process are the processor's, of all threads: a rate per core, with no waiting for the
disk in it. Seconds of commands are those that pass.
"""

from __future__ import annotations

import os
import shlex
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from measure import Row, castore_command, castore_environment, on_cores, run, settle
from sources import write_random

RATE_BAR = 0.95
MEGABYTES_S_BAR = 150
LONG = "zstd -3 --long=27"


@dataclass(frozen=True, slots=True)
class Unrelated:
    """A put that no delta can come of: `older` is under the name before, unless there is none."""

    name: str
    what: str
    source: Path
    older: Path | None


def unrelated(
    series: dict[str, list[Path]], folder: Path, random_bytes: int
) -> Iterator[Unrelated]:
    noise = folder / "random.bin"
    write_random(noise, random_bytes, seed=3)
    names = list(series)
    first, last = series[names[0]][0], series[names[-1]][0]
    yield Unrelated("first", f"put of {first.name}, the first in its store", first, None)
    yield Unrelated("first-random", f"put of random bytes over {first.name}", noise, first)
    if first != last:
        what = f"put of {last.name} over {first.name}"
        yield Unrelated("first-unrelated", what, last, first)


def first(one: Unrelated, folder: Path, repeats: int, *, judged: bool) -> Row:
    import castore

    row = Row(one.name, f"{one.what}, one core", "s")
    row.bytes_per_run = one.source.stat().st_size
    with on_cores(1):
        for repeat in range(repeats):
            turns = [("deltas", True), ("delta=False", False)]
            for label, delta in turns if repeat % 2 else reversed(turns):
                with castore.open(folder / "first", delta=delta) as store:
                    if one.older is not None:
                        store.put("name", one.older)
                    settle()
                    began = time.process_time()
                    store.put("name", one.source)
                    row.add(label, time.process_time() - began)
                    row.notes = [f"{store.stats().deltas} deltas"]
                shutil.rmtree(folder / "first")
    text = f"≥ {RATE_BAR} of the rate without deltas"
    row.bar(text, row.ratio("delta=False", "deltas"), lambda ratio: ratio >= RATE_BAR)
    row.bars[-1].met = row.bars[-1].met if judged else None
    return row


def following(
    name: str,
    versions: Sequence[Path],
    folder: Path,
    repeats: int,
    wants: Callable[[str], bool],
    *,
    judged: bool,
) -> Iterator[Row]:
    import castore

    names = f"next-{name}", f"next-process-{name}"
    if not any(map(wants, names)):
        return
    before, store = folder / "before", folder / "next"
    with castore.open(before) as opened:
        for version in versions[:-1]:
            opened.put(version.name, version)
    if wants(names[0]):
        row = _in_process(names[0], versions[-1], before, store, repeats)
        rates = [row.bytes_per_run / seconds / 1e6 for seconds in row.samples["deltas"]]
        row.bar(f"≥ {MEGABYTES_S_BAR} MB/s", rates, lambda rate: rate >= MEGABYTES_S_BAR)
        row.bars[-1].met = row.bars[-1].met if judged else None
        yield row
    if wants(names[1]):
        row = _processes(names[1], versions[-1], before, store, folder / "newest.zst", repeats)
        row.bar(f"≤ 1 × {LONG} + sync", row.ratio("castore", LONG), lambda ratio: ratio <= 1)
        row.bars[-1].met = row.bars[-1].met if judged and LONG in row.samples else None
        yield row
    shutil.rmtree(before)


def _in_process(name: str, newest: Path, before: Path, store: Path, repeats: int) -> Row:
    import castore

    row = Row(name, f"put of {newest.name} after the others, one core", "s")
    row.bytes_per_run = newest.stat().st_size
    with on_cores(1):
        for _ in range(repeats):
            for label, delta in (("deltas", True), ("delta=False", False)):
                shutil.copytree(before, store)
                settle()
                with castore.open(store, delta=delta) as opened:
                    began = time.process_time()
                    info = opened.put(newest.name, newest)
                    row.add(label, time.process_time() - began)
                    if delta:
                        row.notes = [f"{info.deltas} of its {info.chunks} chunks are deltas"]
                shutil.rmtree(store)
    return row


def _processes(
    name: str, newest: Path, before: Path, store: Path, packed: Path, repeats: int
) -> Row:
    row = Row(name, f"the same by the command, and {LONG} of it", "s")
    row.bytes_per_run = newest.stat().st_size
    put = [*castore_command(), "-r", str(store), "put", str(newest), newest.name]
    for _ in range(repeats):
        shutil.copytree(before, store)
        settle()
        row.add_usage("castore", run(put, env=castore_environment()))
        shutil.rmtree(store)
        if shutil.which("zstd") is not None:
            settle()
            zstd = shlex.join([*LONG.split(), "-q", "-f", str(newest), "-o", str(packed)])
            row.add_usage(LONG, run(["sh", "-c", f"{zstd} && sync {shlex.quote(str(packed))}"]))
            os.unlink(packed)
    return row
