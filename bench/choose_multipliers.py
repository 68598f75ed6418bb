"""The evidence for the strided gear's two multipliers, which are part of the format.

    python bench/choose_multipliers.py [--pairs 200] [--seed 1] [--quick]

A pair is two odd 16-bit words. It must keep X below 2^32 - 2^22 in each of the 256 runs of one
byte (11 equal terms): else such a run would be cut into the smallest chunks. Two pairs in five do.
Random such pairs, and the pair in use, then cut the series of corpora.py: 4 packages in 18
releases, and 8 generated tables, 1.4 GB. Per pair it shows the unique bytes that are left,
relative to the median pair's (averaged over the series, and for its worst series), by what factor
the mean chunk of any series is off 75 KiB, and how many chunks were forced.

How the pair was chosen: 200 pairs cut 8 series (Django, botocore, scipy, pandas, CSV, records of
48, 64 and 100 bytes), the best 70 of them 13 more (machine code, Python source, JSON and log
lines, records of 4 to 128 bytes). Of those, 0x6af1, 0x50ab had both the fewest forced cuts (26)
and the steadiest mean (within a factor of 1.2 of 75 KiB on every series), with unique bytes 0.8 %
below the median pair's. This script is the check on other data, with 100 other pairs:

- On packages, text and machine code all pairs are alike, within the noise of where cuts happen to
  fall. They differ on records of 64 bytes and arrays of small integers: 23 of the 101 pairs cut
  some such table into chunks of 16 KiB, or much too large ones, and are left out.
- Of the 78 others, unique bytes are within 1.2 % of the median's for all, forced cuts 28 to 60 of
  some 19,000 chunks (median 45).
- The pair in use: unique bytes 1.002 of the median's, 1.013 at worst; mean 75.8 KiB, off by a
  factor of 1.17 at most; 40 forced cuts of 18,988 chunks. No better than others on average, and
  with no kind of data on which it is bad.
"""

from __future__ import annotations

import argparse
import ctypes
import math
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import xxhash
from measure import castore_environment, table

castore_environment()  # makes the project's own tree importable
import corpora  # noqa: E402

from castore.stream.chunker import ChunkSizes  # noqa: E402

KERNEL = Path(__file__).resolve().parent.parent / "castore" / "native" / "kernel.c"
IN_USE = (0x6AF1, 0x50AB)
SIZES = ChunkSizes.for_average(65536)
MEAN_BYTES = 75 * 1024
STRAY_MAX = 1.3
Pair = tuple[int, int]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="one package, small tables, 10 pairs")
    options = parser.parse_args(arguments)
    if shutil.which("cc") is None:
        print("needs a C compiler (cc): each pair is compiled into the kernel")
        return 0
    pairs = [IN_USE, *random_pairs(10 if options.quick else options.pairs, options.seed)]
    chosen = load(options.quick)
    outcomes = {pair: outcome(pair, chosen) for pair in pairs}
    show(outcomes, list(chosen))
    return 0


# ---- which pairs --------------------------------------------------------------------------------


def random_pairs(count: int, seed: int) -> Iterator[Pair]:
    chance = random.Random(seed)
    while count:
        pair = chance.randrange(1, 0x10000, 2), chance.randrange(1, 0x10000, 2)
        if constant_runs_peak(pair) < 2**32 - 2**22:
            count -= 1
            yield pair


def constant_runs_peak(pair: Pair) -> int:
    """The largest X that a run of one byte comes to, of all 256."""
    return max(constant_run_state(pair, byte) for byte in range(256))


def constant_run_state(pair: Pair, byte: int) -> int:
    d = 2 * byte * 0x01010101 % 2**32
    phi = _signed(d & 0xFFFF) * _signed(pair[0]) + _signed(d >> 16) * _signed(pair[1])
    state = 0
    for _ in range(11):
        state = (state << 3 ^ phi) % 2**32
    return state


def _signed(half: int) -> int:
    return half - 0x10000 if half & 0x8000 else half


# ---- what they do -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Series:
    """What one pair made of one series."""

    unique: float  # share of the bytes that is left
    mean: float
    forced: int  # chunks that were cut for want of a better place
    chunks: int


class Kernel:
    """The C kernel with a pair of its own."""

    def __init__(self, pair: Pair, directory: Path) -> None:
        library = directory / f"{pair[0]:04x}{pair[1]:04x}.so"
        multipliers = [f"-DGEAR_K0={pair[0]}", f"-DGEAR_K1={pair[1]}"]
        flags = ["-O2", "-shared", "-fPIC", *multipliers, "-o", str(library)]
        subprocess.run(["cc", *flags, str(KERNEL)], check=True)
        kernel = ctypes.CDLL(str(library))
        count = ctypes.c_size_t.in_dll(kernel, "gear_variant_count").value
        variants = (_Variant * count).in_dll(kernel, "gear_variants")
        kernel.gear_variant_runs.restype = ctypes.c_bool
        self._variant = next(v for v in variants if kernel.gear_variant_runs(ctypes.byref(v)))
        self._kernel = kernel
        self._next_cut = kernel.gear_next_cut
        self._next_cut.restype = ctypes.c_size_t

    def cuts(self, data: bytes) -> Iterator[tuple[int, bool]]:
        """The ends of the chunks, and whether each was forced."""
        start = 0
        while start < len(data):
            end = self._cut(data, start, SIZES.max)
            # Forced, if without a maximum it would have become longer than that.
            forced = (
                end - start > SIZES.norm and self._cut(data, start, 1 << 30) > start + SIZES.max
            )
            yield end, forced
            start = end

    def _cut(self, data: bytes, start: int, max_bytes: int) -> int:
        size, begin, final = ctypes.c_size_t(len(data)), ctypes.c_size_t(start), ctypes.c_bool(True)
        sizes = (ctypes.c_size_t * 3)(SIZES.min, SIZES.norm, max_bytes)
        return int(self._next_cut(ctypes.byref(self._variant), data, size, begin, final, sizes))


class _Variant(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("first_at_least", ctypes.c_void_p),
        ("last_largest", ctypes.c_void_p),
    )


def outcome(pair: Pair, chosen: dict[str, list[bytes]]) -> dict[str, Series]:
    with tempfile.TemporaryDirectory() as directory:
        kernel = Kernel(pair, Path(directory))
        return {name: _series(kernel, versions) for name, versions in chosen.items()}


def _series(kernel: Kernel, versions: list[bytes]) -> Series:
    distinct: dict[bytes, int] = {}
    total = chunks = forced = 0
    for data in versions:
        begin = 0
        for end, was_forced in kernel.cuts(data):
            distinct[xxhash.xxh3_128_digest(memoryview(data)[begin:end])] = end - begin
            chunks += 1
            forced += was_forced
            begin = end
        total += len(data)
    return Series(sum(distinct.values()) / total, total / chunks, forced, chunks)


def load(quick: bool) -> dict[str, list[bytes]]:
    packages = corpora.QUICK_PACKAGES if quick else corpora.PACKAGES
    found: dict[str, list[bytes]] = {}
    for package, versions in packages.items():
        try:
            tars = [corpora.release(package, version) for version in versions]
        except corpora.Unavailable as error:
            print(f"{package}: skipped, pip could not fetch it: {error}")
            continue
        found[package] = [tar.read_bytes() for tar in tars]
    size = 4_000_000 if quick else 16_000_000
    return found | {name: corpora.generated(name, size) for name in corpora.GENERATED}


# ---- the table ----------------------------------------------------------------------------------


def show(outcomes: dict[Pair, dict[str, Series]], names: list[str]) -> None:
    median = {
        name: statistics.median(outcome[name].unique for outcome in outcomes.values())
        for name in names
    }

    def relative(pair: Pair) -> float:
        shares = [outcomes[pair][name].unique / median[name] for name in names]
        return statistics.fmean(shares)

    def stray(pair: Pair) -> float:
        found = outcomes[pair].values()
        return math.exp(max(abs(math.log(series.mean / MEAN_BYTES)) for series in found))

    # Chunks of 16 KiB leave fewer unique bytes, of course: that is no merit of the pair.
    steady = sorted((pair for pair in outcomes if stray(pair) <= STRAY_MAX), key=relative)
    lines = []
    for pair in steady:
        found = outcomes[pair].values()
        worst = max(names, key=lambda name: outcomes[pair][name].unique / median[name])
        lines.append(
            [
                f"{pair[0]:#06x} {pair[1]:#06x}" + (" *" if pair == IN_USE else ""),
                f"{relative(pair):.4f}",
                f"{outcomes[pair][worst].unique / median[worst]:.3f} ({worst})",
                f"{stray(pair):.2f}",
                f"{statistics.fmean(series.mean for series in found) / 1024:.1f}",
                f"{sum(series.forced for series in found)}"
                f" of {sum(series.chunks for series in found)}",
            ]
        )
    headers = ["pair", "unique / median", "worst", "mean off by ×", "mean KiB", "forced"]
    print(table(headers, lines))
    print(
        f"{len(outcomes)} pairs, {len(names)} series; * is the one in use; not shown: "
        f"{len(outcomes) - len(steady)} whose mean strays by more than × {STRAY_MAX} somewhere"
    )


if __name__ == "__main__":
    sys.exit(main())
