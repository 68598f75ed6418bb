"""The chunker beside FastCDC: how fast it cuts, and how many bytes are left after deduplication.

    python bench/bench_chunker.py [--quick] [--json FILE]

Speed. One thread cuts a buffer of random bytes, many times larger than the last-level cache, so
that every byte comes from DRAM. Each repetition runs all contenders in turn. The floor, `read`, is
a loop of vector loads that looks at every word (fastcdc.c, compiled for this very machine).
`cut + xxh3` is what a put of known bytes does: cut about 1 MiB, then hash those chunks.

Unique bytes. Releases of real packages as plain tars, and generated tables (corpora.py), at an
average of 64 KiB. FastCDC cuts with the same smallest and largest chunk in proportion to its
average, which is tuned for each series until its mean chunk is the strided gear's within half a
percent: otherwise the one with the smaller chunks would win.

FastCDC is ours in C (fastcdc.c, the algorithm of 2020) and, where installed, pyfastcdc. Without a
C compiler only pyfastcdc is there to compare with; without pip or network, only generated tables.
"""

from __future__ import annotations

import argparse
import ctypes
import mmap
import operator
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import xxhash
from measure import (
    Row,
    castore_environment,
    machine_line,
    parse_size,
    report,
    show,
    table,
)

castore_environment()  # makes the project's own tree importable
import corpora  # noqa: E402

from castore.stream import chunker  # noqa: E402
from castore.stream.chunker import Chunker, ChunkSizes  # noqa: E402

try:
    from castore import _native
except ImportError:
    _native = None  # type: ignore[assignment]

try:
    import pyfastcdc
except ImportError:
    pyfastcdc = None  # type: ignore[assignment]

AVERAGE_BYTES = 65536
SIZES = ChunkSizes.for_average(AVERAGE_BYTES)
BATCH_BYTES = 1 << 20  # cut before they are hashed, as a put does
Cuts = Callable[[memoryview], Sequence[int]]
NormCuts = Callable[[memoryview, int], Sequence[int]]  # for that average


@dataclass(frozen=True, slots=True)
class Settings:
    size: int
    repeats: int
    packages: Mapping[str, tuple[str, ...]]
    generated_size: int


FULL = Settings(1 << 30, 7, corpora.PACKAGES, 24_000_000)
QUICK = Settings(256 << 20, 5, corpora.QUICK_PACKAGES, 6_000_000)
TINY = Settings(4 << 20, 2, {}, 1_000_000)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, under a minute")
    parser.add_argument("--tiny", action="store_true", help="only show that everything runs")
    parser.add_argument("--json", metavar="FILE", help="write every sample here")
    parser.add_argument("--size", type=parse_size, metavar="BYTES", help="bytes to cut: 1G")
    parser.add_argument("--repeats", type=int, metavar="N", help="repetitions of the speed rows")
    parser.add_argument("--dir", metavar="DIR", help="where to compile fastcdc.c")
    options = parser.parse_args(arguments)
    preset = TINY if options.tiny else QUICK if options.quick else FULL
    size, repeats = options.size or preset.size, options.repeats or preset.repeats

    print(f"bench_chunker: {machine_line()}; the chunker is {chunker.implementation()}")
    with tempfile.TemporaryDirectory(dir=options.dir) as scratch:
        fastcdc = FastCDC.compiled(Path(scratch))
        if fastcdc is None:
            print("no C compiler (cc): no FastCDC of ours and no plain read to compare with")
        if pyfastcdc is None:
            print("pyfastcdc: not installed, skipped")
        rows = [speed_row(size, repeats, fastcdc, hashed=False)]
        rows.append(speed_row(size, repeats, fastcdc, hashed=True))
        judge_speed(rows[0], judged=not options.tiny)
        for row in rows:
            show(row, base="read" if fastcdc else "strided gear")
        rows += unique_rows(preset, fastcdc)
    facts = {
        "bytes": size,
        "repeats": repeats,
        "average": AVERAGE_BYTES,
        "packages": dict(preset.packages),
    }
    report("chunker", rows, facts, options.json)
    return 0


# ---- contenders ---------------------------------------------------------------------------------


class FastCDC:
    """fastcdc.c, compiled for this machine."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._cuts = library.fastcdc_cuts
        self._cuts.restype = ctypes.c_size_t
        self._read = library.read_words
        library.fastcdc_prepare()

    @classmethod
    def compiled(cls, directory: Path) -> FastCDC | None:
        compiler = shutil.which("cc")
        if compiler is None:
            return None
        source, library = Path(__file__).with_name("fastcdc.c"), directory / "fastcdc.so"
        flags = ["-O3", "-march=native", "-shared", "-fPIC", "-o", str(library)]
        subprocess.run([compiler, *flags, str(source)], check=True)
        return cls(ctypes.CDLL(str(library)))

    def cuts(self, data: memoryview, norm: int = AVERAGE_BYTES) -> list[int]:
        ends = (ctypes.c_uint64 * (len(data) // (norm // 4) + 1))()
        count = self._cuts(
            _address(data),
            *(ctypes.c_size_t(n) for n in (len(data), norm // 4, norm, norm * 4)),
            AVERAGE_BYTES.bit_length() - 1,
            ends,
        )
        return list(ends[:count])

    def read(self, data: memoryview) -> list[int]:
        self._read(_address(data), ctypes.c_size_t(len(data) // 8))
        return [len(data)]


def _address(data: memoryview) -> ctypes.c_void_p:
    return ctypes.c_void_p(ctypes.addressof((ctypes.c_char * len(data)).from_buffer(data)))


def pyfastcdc_cuts(data: memoryview, norm: int = AVERAGE_BYTES) -> list[int]:
    cutter = pyfastcdc.FastCDC(norm, min_size=norm // 4, max_size=norm * 4)
    return [chunk.offset + chunk.length for chunk in cutter.cut_buf(data)]


def strided_cuts(data: memoryview) -> list[int]:
    return Chunker(SIZES).cuts(data, 0, True)


def variant_cuts(variant: str, data: memoryview) -> list[int]:
    chosen = _native.variant()
    _native.select_variant(variant)
    try:
        return strided_cuts(data)
    finally:
        _native.select_variant(chosen)


def contenders(fastcdc: FastCDC | None) -> dict[str, Cuts]:
    found: dict[str, Cuts] = {}
    if fastcdc is not None:
        found["read"] = fastcdc.read
    found["strided gear"] = strided_cuts
    if _native is not None:
        for variant in _native.variants()[1:]:
            found[f"strided gear, {variant}"] = partial(variant_cuts, variant)
    if fastcdc is not None:
        found["FastCDC"] = fastcdc.cuts
    if pyfastcdc is not None:
        found["pyfastcdc"] = pyfastcdc_cuts
    return found


# ---- speed --------------------------------------------------------------------------------------


def speed_row(size: int, repeats: int, fastcdc: FastCDC | None, *, hashed: bool) -> Row:
    what = f"{size / 1e6:.0f} MB of random bytes from DRAM, one thread"
    row = Row("cut + xxh3" if hashed else "cut", what, "GB/s")
    cutters = contenders(fastcdc)
    if hashed:
        cutters = {
            name: partial(cut_and_hash, name == "strided gear", cuts)
            for name, cuts in cutters.items()
            if name in ("strided gear", "FastCDC", "pyfastcdc")
        } | {name: cuts for name, cuts in cutters.items() if name == "read"}
    data = random_memory(size)
    for _ in range(repeats):
        for name, cuts in cutters.items():
            started = time.perf_counter()
            cuts(data)
            row.add(name, size / (time.perf_counter() - started) / 1e9)
    return row


def cut_and_hash(in_batches: bool, cuts: Cuts, data: memoryview) -> list[int]:
    """Ours cuts a batch and hashes it while it is in cache; the others can only cut it all."""
    digest = xxhash.xxh3_128_digest
    begin = 0
    batch = partial(Chunker(SIZES).cuts, data, final=True) if in_batches else None
    while begin < len(data):
        ends = batch(start=begin, until=begin + BATCH_BYTES) if batch else cuts(data)
        for end in ends:
            digest(data[begin:end], 7)
            begin = end
    return []


def random_memory(size: int) -> memoryview:
    """Random bytes, the same 32 MiB over and over: no cut sees as far as that."""
    memory = mmap.mmap(-1, size)
    block = random.Random(1).randbytes(min(size, 32 << 20))
    for begin in range(0, size, len(block)):
        memory[begin : begin + len(block)] = block[: size - begin]
    return memoryview(memory)


def judge_speed(row: Row, *, judged: bool) -> None:
    for bar, other, least in (
        ("≥ 5 × pyfastcdc", "pyfastcdc", 5.0),
        ("≥ 60 % of a one-core read of DRAM", "read", 0.6),
    ):
        row.bar(
            bar, row.ratio("strided gear", other) if judged else [], partial(operator.le, least)
        )


# ---- unique bytes -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Dedup:
    unique: float  # bytes of distinct chunks, as a share of all bytes
    lengths: list[int]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.lengths)

    @property
    def deviation(self) -> float:
        return statistics.pstdev(self.lengths)


def dedup(versions: Sequence[memoryview], cuts: Cuts) -> Dedup:
    distinct: dict[bytes, int] = {}
    lengths: list[int] = []
    for data in versions:
        begin = 0
        for end in cuts(data):
            distinct[xxhash.xxh3_128_digest(data[begin:end])] = end - begin
            lengths.append(end - begin)
            begin = end
    return Dedup(sum(distinct.values()) / sum(map(len, versions)), lengths)


def dedup_at_mean(versions: Sequence[memoryview], cuts: NormCuts, mean: float) -> Dedup:
    """With the average for which the chunks come to that mean: by bisection, to half a percent."""
    low, high = AVERAGE_BYTES // 4, AVERAGE_BYTES * 4
    while True:
        norm = (low + high) // 2
        result = dedup(versions, partial(_with_norm, cuts, norm))
        if abs(result.mean / mean - 1) < 0.005 or high - low < 64:
            return result
        if result.mean < mean:
            low = norm
        else:
            high = norm


def _with_norm(cuts: NormCuts, norm: int, data: memoryview) -> Sequence[int]:
    return cuts(data, norm)


def unique_rows(preset: Settings, fastcdc: FastCDC | None) -> list[Row]:
    """One row per series, and one table of them all."""
    others: dict[str, NormCuts] = {}
    if fastcdc is not None:
        others["FastCDC"] = fastcdc.cuts
    if pyfastcdc is not None:
        others["pyfastcdc"] = pyfastcdc_cuts
    rows: list[Row] = []
    lines: list[list[str]] = []
    for name, versions in series(preset):
        size = sum(map(len, versions))
        row = Row(f"unique bytes, {name}", f"{len(versions)} versions", "share of the bytes")
        row.bytes_per_run = size
        found = {"strided gear": dedup(versions, strided_cuts)}
        for title, cuts in others.items():
            found[title] = dedup_at_mean(versions, cuts, found["strided gear"].mean)
        line = [f"{name} × {len(versions)}", f"{size / 1e6:.0f}"]
        for title, result in found.items():
            row.add(title, result.unique)
            row.notes.append(
                f"{title}: mean chunk {result.mean:.0f}, deviation {result.deviation:.0f} bytes"
            )
            line += [f"{result.mean / 1024:.1f}", f"{result.deviation / 1024:.1f}"]
            line += [f"{result.unique:.3f}"]
        if name in preset.packages:
            ratios = row.ratio("strided gear", "FastCDC")
            row.bar("≤ 1.02 × FastCDC at the same mean", ratios, lambda ratio: ratio <= 1.02)
        rows.append(row)
        lines.append(line)
    print("\nunique bytes: the share left after deduplication, at the same mean chunk")
    headers = [part for title in ("strided gear", *others) for part in ("mean KiB", "σ", title)]
    print(table(["", "MB", *headers], lines))
    for row in rows:
        for bar in row.bars:
            print(f"{bar.line()}: {row.name}")
    return rows


def series(preset: Settings) -> list[tuple[str, list[memoryview]]]:
    found: list[tuple[str, list[memoryview]]] = []
    for package, versions in preset.packages.items():
        try:
            tars = [corpora.release(package, version) for version in versions]
        except corpora.Unavailable as error:
            print(f"{package}: skipped, pip could not fetch it: {error}")
            continue
        found.append((package, [memoryview(bytearray(tar.read_bytes())) for tar in tars]))
    for name in corpora.GENERATED:
        tables = corpora.generated(name, preset.generated_size)
        found.append((name, [memoryview(bytearray(version)) for version in tables]))
    return found


if __name__ == "__main__":
    sys.exit(main())
