"""The byte-range rows of bench_local: gets(name, (begin, end)) at random, in one process.

Three states of the same read, each against the least that it could cost:

- `range-zstd-*`: nothing decoded beforehand (the cache of decoded chunks is off), against
  zstandard decoding the covering chunks' frames from memory. The frames are made here, from the
  same slices at the same level; where the slices begin and end is asked of `Store.explain_range`.
  The bare cost has no look-up, no check of the chunk ids, no trimming and no joining. Ranges with
  a chunk that is stored raw are left out.
- `range-cached-*`: the chunk is in the cache of decoded chunks (ranges within 16 MiB, read
  before).
- `range-raw-*`: random bytes, stored raw, no cache; against opening the plain file, seeking,
  reading.

Each round draws fresh ranges and runs the contenders over the same ones, in turn, 20 reads at a
time; its figure is the median over those batches of the mean time per read, in microseconds. One
core, page cache warm.
"""

from __future__ import annotations

import random
import shutil
import statistics
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zstandard
from measure import Row, on_cores

SIZES = {"100": 100, "4K": 4096, "64K": 65536, "1M": 1 << 20}
STATES = ("zstd", "raw", "cached")
ROWS = [f"range-{state}-{label}" for state in STATES for label in SIZES]
JUDGED = ("4K", "64K")  # the sizes that the bars name
BATCH_CALLS = 20
CACHED_SPAN_BYTES = 16 << 20  # half of the cache's default

Range = tuple[int, int]


def run(
    wanted: Sequence[str],
    real: Path,
    noise: Path,
    directory: Path,
    span: int,
    rounds: int,
    picks: int,
) -> Iterator[Row]:
    """The wanted rows over the first `span` bytes of both sources."""
    names = [name for name in ROWS if name in wanted]
    if not names:
        return
    import castore  # not before the whole-process rows: it would raise their floor of memory

    path = directory / "ranges"
    bench = _Ranges(rounds, picks)
    with castore.open(path) as store:
        for source in (real, noise):
            with open(source, "rb") as data:
                store.put(source.name, _Head(data, span))
    with on_cores(1):
        with castore.open(path, cache_bytes=0) as store:
            if any(name.startswith("range-zstd") for name in names):
                frames = Frames.of(store, real, span)
                for label in _labels(names, "zstd", span):
                    yield bench.zstd(label, store, real.name, frames)
            for label in _labels(names, "raw", span):
                yield bench.raw(label, store, noise, span)
        with castore.open(path) as store:
            for label in _labels(names, "cached", span):
                yield bench.cached(label, store, real.name, span)
    shutil.rmtree(path)


@dataclass(frozen=True, slots=True)
class Frames:
    """Every chunk of an object, put under its file's name, as zstandard compresses it; None where
    castore stores it raw."""

    begins: list[int]
    frames: list[bytes | None]
    size: int

    @classmethod
    def of(cls, store: Any, source: Path, size: int) -> Frames:
        compressor = zstandard.ZstdCompressor(level=1)
        begins: list[int] = []
        frames: list[bytes | None] = []
        at = 0
        with open(source, "rb") as data:
            while at < size:
                # The plan of one byte is the plan of its chunk.
                plan = store.explain_range(source.name, (at, at + 1))
                raw = data.read(plan.raw_bytes)
                begins.append(at)
                compressed = plan.frame_bytes < plan.raw_bytes
                frames.append(compressor.compress(raw) if compressed else None)
                at += plan.raw_bytes
        return cls(begins, frames, size)

    def covering(self, begin: int, end: int) -> list[bytes] | None:
        """The frames of the chunks that cover a range, or None if one of them is stored raw."""
        first = bisect_right(self.begins, begin) - 1
        last = bisect_right(self.begins, end - 1) - 1
        frames = [frame for frame in self.frames[first : last + 1] if frame is not None]
        return frames if len(frames) == last + 1 - first else None


class _Ranges:
    """The rows of one run: how many rounds, and how many ranges in each."""

    def __init__(self, rounds: int, picks: int) -> None:
        self._rounds = rounds
        self._picks = picks
        self._random = random.Random(7)

    def zstd(self, label: str, store: Any, name: str, frames: Frames) -> Row:
        row = Row(f"range-zstd-{label}", f"gets of {SIZES[label]:,} bytes, decoding", "µs")
        decompress = zstandard.ZstdDecompressor().decompress
        chunks: list[int] = []
        for _ in range(self._rounds):
            picks: list[tuple[Range, list[bytes]]] = []
            for _ in range(100 * self._picks):
                chosen = self._pick(SIZES[label], frames.size)
                covering = frames.covering(*chosen)
                if covering is not None:
                    picks.append((chosen, covering))
                if len(picks) >= self._count(label):
                    break
            ranges = [chosen for chosen, _ in picks]
            covered = [covering for _, covering in picks]
            chunks += [len(covering) for covering in covered]
            alternate(
                row,
                {
                    "castore": (lambda pick: store.gets(name, pick), ranges),
                    "bare decode": (lambda held: [decompress(one) for one in held], covered),
                },
            )
        row.notes.append(f"{sum(chunks) / len(chunks):.2f} chunks cover a range on average")
        if label in JUDGED:
            ratios = row.ratio("castore", "bare decode")
            row.bar("≤ 1.3 × the bare cost of decoding", ratios, lambda ratio: ratio <= 1.3)
        return row

    def cached(self, label: str, store: Any, name: str, size: int) -> Row:
        row = Row(f"range-cached-{label}", f"gets of {SIZES[label]:,} bytes, decoded before", "µs")
        span = min(size, CACHED_SPAN_BYTES)
        for _ in range(self._rounds):
            begin = self._random.randrange(size - span + 1)
            for at in range(begin, begin + span, 4096):
                store.gets(name, (at, at + 1))
            ranges = [(begin + low, begin + high) for low, high in self._picks_of(label, span)]
            alternate(row, {"castore": (lambda pick: store.gets(name, pick), ranges)})
        if label in JUDGED:
            row.bar("≤ 25 µs", row.samples["castore"], lambda micros: micros <= 25)
        return row

    def raw(self, label: str, store: Any, source: Path, size: int) -> Row:
        row = Row(f"range-raw-{label}", f"gets of {SIZES[label]:,} bytes, stored raw", "µs")

        def plain(pick: Range) -> bytes:
            with open(source, "rb") as file:
                file.seek(pick[0])
                return file.read(pick[1] - pick[0])

        for _ in range(self._rounds):
            ranges = self._picks_of(label, size)
            alternate(
                row,
                {
                    "castore": (lambda pick: store.gets(source.name, pick), ranges),
                    "open+seek+read": (plain, ranges),
                },
            )
        if label in JUDGED:
            ratios = row.ratio("castore", "open+seek+read")
            row.bar("≤ 3 × open+seek+read", ratios, lambda ratio: ratio <= 3)
        return row

    def _picks_of(self, label: str, size: int) -> list[Range]:
        return [self._pick(SIZES[label], size) for _ in range(self._count(label))]

    def _pick(self, length: int, size: int) -> Range:
        begin = self._random.randrange(size - length + 1)
        return begin, begin + length

    def _count(self, label: str) -> int:
        return max(self._picks // 10, 1) if label == "1M" else self._picks


class _Head:
    """The first bytes of a file, as a file object to put."""

    def __init__(self, data: Any, size: int) -> None:
        self._data = data
        self._left = size

    def read(self, count: int = -1) -> bytes:
        count = self._left if count < 0 else min(count, self._left)
        block: bytes = self._data.read(count)
        self._left -= len(block)
        return block


def _labels(names: Sequence[str], state: str, span: int) -> list[str]:
    """The sizes wanted of one state, as far as they fit the object."""
    return [label for label in SIZES if f"range-{state}-{label}" in names and SIZES[label] <= span]


def alternate(
    row: Row,
    contenders: dict[str, tuple[Callable[[Any], object], list[Any]]],
    clock: Callable[[], float] = time.perf_counter,
) -> None:
    """Run all contenders a batch at a time, in turn, and file the median batch of each.

    A batch is a few milliseconds, as is a turn of another process on this core: one that falls into
    a batch makes it an outlier, and falls on all contenders alike.
    """
    micros: dict[str, list[float]] = {name: [] for name in contenders}
    count = min(len(arguments) for _, arguments in contenders.values())
    turn = list(contenders.items())
    for begin in range(0, count, BATCH_CALLS):
        turn.reverse()
        for name, (action, arguments) in turn:
            batch = arguments[begin : begin + BATCH_CALLS]
            began = clock()
            for argument in batch:
                action(argument)
            micros[name].append((clock() - began) / len(batch) * 1e6)
    for name, means in micros.items():
        row.add(name, statistics.median(means))
