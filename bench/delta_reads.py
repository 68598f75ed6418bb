"""The read rows of bench_delta: what it costs that a delta decodes with its bases.

- `get-*`: the newest version to a file, beside the first one of the series, which has no deltas:
  rates, as they are not of one size.
- `range-cold-*`: 4 KiB at random within chunks that are deltas, beside the same within chunks whose
  frames are plain zstd. Nothing decoded is cached.
- `range-warm-*`: the same where the bases are in memory, but the chunks themselves are not: a store
  with a large cache reads all older versions first, and then each of the newest one's deltas once.

One process, one core, all in the page cache; times are the processor's.
"""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from local_gets import alternate
from measure import Row, on_cores, settle

RANGE_BYTES = 4096
READ_BYTES = 1 << 20
CACHE_BYTES = 4 << 30
GET_BAR = 0.7
COLD_BAR = 2.5
WARM_BAR = 1.5

Range = tuple[int, int]


def rows(
    name: str,
    versions: Sequence[Path],
    folder: Path,
    repeats: int,
    picks: int,
    wants: Callable[[str], bool],
    *,
    judged: bool,
) -> Iterator[Row]:
    import castore

    get, cold, warm = f"get-{name}", f"range-cold-{name}", f"range-warm-{name}"
    if not any(map(wants, (get, cold, warm))):
        return
    path = folder / "reads"
    with castore.open(path) as store:
        for version in versions:
            store.put(version.name, version)
        _, deltas = chunks_of(store, versions[-1])
        plain, _ = chunks_of(store, versions[0])
    with on_cores(1):
        if wants(get):
            yield _judged(_get(get, versions, path, folder / "out", repeats), judged)
        if wants(cold) and deltas and plain:
            yield _judged(_cold(cold, versions, path, plain, deltas, repeats, picks), judged)
        if wants(warm) and deltas and plain:
            yield _judged(_warm(warm, versions, path, plain, deltas, repeats, picks), judged)
    shutil.rmtree(path)


def chunks_of(store: Any, version: Path) -> tuple[list[Range], list[Range]]:
    """Where the version's chunks are whose frames are plain zstd, and whose are deltas."""
    plain, deltas = [], []
    at, size = 0, version.stat().st_size
    while at < size:
        plan = store.explain_range(version.name, (at, at + 1))  # the plan of its chunk
        if plan.bases:
            deltas.append((at, at + plan.raw_bytes))
        elif plan.frame_bytes < plan.raw_bytes:
            plain.append((at, at + plan.raw_bytes))
        at += plan.raw_bytes
    return plain, deltas


def _get(name: str, versions: Sequence[Path], path: Path, out: Path, repeats: int) -> Row:
    import castore

    row = Row(name, "get to a file, one core", "MB/s")
    for _ in range(repeats):
        for label, version in (("newest", versions[-1]), ("first", versions[0])):
            settle()
            with castore.open(path, read_only=True) as store:
                began = time.process_time()
                store.get(version.name, out)
                seconds = time.process_time() - began
            row.add(label, version.stat().st_size / seconds / 1e6)
            out.unlink()
    row.bar(f"≥ {GET_BAR} of the first", row.ratio("newest", "first"), lambda r: r >= GET_BAR)
    return row


def _cold(
    name: str,
    versions: Sequence[Path],
    path: Path,
    plain: list[Range],
    deltas: list[Range],
    repeats: int,
    picks: int,
) -> Row:
    import castore

    row = Row(name, "gets of 4 KiB, nothing decoded before, one core", "µs")
    chance = random.Random(5)
    with castore.open(path, read_only=True, cache_bytes=0) as store:
        plans = [store.explain_range(versions[-1].name, (at, at + 1)) for at, _ in deltas]
        for _ in range(repeats):
            alternate(
                row,
                {
                    "delta": (
                        lambda pick: store.gets(versions[-1].name, pick),
                        [within(chance.choice(deltas), chance) for _ in range(picks)],
                    ),
                    "full frame": (
                        lambda pick: store.gets(versions[0].name, pick),
                        [within(chance.choice(plain), chance) for _ in range(picks)],
                    ),
                },
                clock=time.process_time,
            )
    mean = sum(plan.bases for plan in plans) / len(plans)
    row.notes.append(f"{len(deltas)} deltas in the newest version, of {mean:.2f} bases")
    row.bar(
        f"≤ {COLD_BAR} × a full frame", row.ratio("delta", "full frame"), lambda r: r <= COLD_BAR
    )
    return row


def _warm(
    name: str,
    versions: Sequence[Path],
    path: Path,
    plain: list[Range],
    deltas: list[Range],
    repeats: int,
    picks: int,
) -> Row:
    """A chunk is cached once it was read, so each is read once per repetition."""
    import castore

    row = Row(name, "gets of 4 KiB with the bases in memory, one core", "µs")
    chance = random.Random(6)
    for _ in range(repeats):
        with (
            castore.open(path, read_only=True, cache_bytes=CACHE_BYTES) as warm,
            castore.open(path, read_only=True, cache_bytes=0) as cold,
        ):
            for version in versions[:-1]:
                for at in range(0, version.stat().st_size, READ_BYTES):
                    warm.gets(version.name, (at, at + READ_BYTES))
            count = min(picks, len(deltas), len(plain))
            chosen = {
                "delta": [within(each, chance) for each in chance.sample(deltas, count)],
                "full frame": [within(each, chance) for each in chance.sample(plain, count)],
            }
            alternate(
                row,
                {
                    "delta": (
                        lambda pick, store=warm: store.gets(versions[-1].name, pick),
                        chosen["delta"],
                    ),
                    "full frame": (
                        lambda pick, store=cold: store.gets(versions[0].name, pick),
                        chosen["full frame"],
                    ),
                },
                clock=time.process_time,
            )
    row.bar(
        f"≤ {WARM_BAR} × a full frame", row.ratio("delta", "full frame"), lambda r: r <= WARM_BAR
    )
    return row


def within(chunk: Range, chance: random.Random) -> Range:
    """4 KiB at random in a chunk, or all of it."""
    begin = chance.randint(chunk[0], max(chunk[0], chunk[1] - RANGE_BYTES))
    return begin, min(begin + RANGE_BYTES, chunk[1])


def _judged(row: Row, judged: bool) -> Row:
    for bar in row.bars:
        bar.met = bar.met if judged else None
    return row
