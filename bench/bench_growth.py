"""What a put and a gets cost in a store of 5 million chunks, against one of 50 thousand.

    python bench/bench_growth.py [--quick] [--json FILE] [--chunks 5000000] [--base 50000]
                                 [--deltas]

Both stores are filled by ordinary puts, at the default chunk size; no row is written behind the
store's back. What makes that possible on one disk is the bytes: 5 million chunks of ordinary data
are some 350 GB, so the fill is a stream made to be cut as soon as the format allows (after 16 KiB
and 64 bytes) and to compress well. Each unit of it is a counter, zeros, and the same last 704
bytes, which are the end of some chunk of random bytes: the chunker looks no further back than
that, so it cuts there again. Every unit is a distinct chunk with an id of its own, at random in
the index as all ids are. The index has as many rows as with 350 GB; the packs are smaller.

Then the same work is done in both stores in turn: new bytes, the next version of an object, stored
bytes, small objects, and reads. Nothing decoded is cached. Index and packs are read once first, so
that they are in the page cache as far as memory allows.

With `--deltas` a unit has random bytes in place of the zeros, the same in all, and all that the
stores are filled with is put as a version of the first object: each chunk but those is a delta.
"""

from __future__ import annotations

import argparse
import random
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from measure import Row, castore_environment, machine_line, report, scratch, settle, show
from sources import edit, write_random

UNIT_BYTES = (16 << 10) + 64
ENDING_BYTES = 704
NORM_BYTES = 64 << 10
UNITS_PER_BLOCK = 256
CHUNKS_PER_OBJECT = 50_000
DELTAS_SHARE_MIN = 0.9
EDIT_EVERY_BYTES = 16 << 10
RATIO_BAR = 1.5


class Fill:
    """A file object of `count` units, numbered from `first`."""

    def __init__(self, unit: bytes, first: int, count: int) -> None:
        self._block = bytearray(unit * UNITS_PER_BLOCK)
        self._view = memoryview(self._block)
        self._next = first
        self._end = first + count
        self._at = self._filled = 0

    def read(self, count: int = -1) -> bytes:
        """Up to `count` bytes; may be fewer before the end, as from a pipe."""
        if self._at == self._filled:
            self._refill()
        end = self._filled if count < 0 else min(self._at + count, self._filled)
        piece = bytes(self._view[self._at : end])
        self._at = end
        return piece

    def _refill(self) -> None:
        count = min(UNITS_PER_BLOCK, self._end - self._next)
        for at in range(count):
            struct.pack_into("<Q", self._block, at * UNIT_BYTES, self._next + at)
        self._next += count
        self._at, self._filled = 0, count * UNIT_BYTES


class Store:
    """One of the two stores, and how many chunks it was filled with, `per_object` in each."""

    def __init__(self, path: Path, chunks: int, per_object: int) -> None:
        self.path = path
        self.chunks = chunks
        self.objects = [
            (f"fill-{first}", first, min(per_object, chunks - first))
            for first in range(0, chunks, per_object)
        ]
        self.store: Any = None

    def open(self) -> None:
        import castore

        self.store = castore.open(self.path, cache_bytes=0)

    def fill(self, unit: bytes, *, deltas: bool) -> float:
        """All but the first object as versions of it, or none."""
        began = time.perf_counter()
        for name, first, count in self.objects:
            like = self.objects[0][0] if deltas and first else None
            info = self.store.put(name, Fill(unit, first, count), like=like)
            if like is not None and info.deltas < info.chunks * DELTAS_SHARE_MIN:
                raise AssertionError(f"only {info.deltas} of {info.chunks} chunks are deltas")
        return time.perf_counter() - began

    def warm(self) -> None:
        """Read every file of the store in another process: LMDB's locks are this process's."""
        self.store.close()
        files = [str(file) for file in sorted(self.path.rglob("*")) if file.is_file()]
        subprocess.run(["cat", *files], stdout=subprocess.DEVNULL, check=True)
        self.open()


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    chunks, base, repeats = 5_000_000, 50_000, 7
    if options.quick:
        chunks, base, repeats = 200_000, 10_000, 5
    if options.tiny:
        chunks, base, repeats = 2_000, 500, 2
    chunks, base = options.chunks or chunks, options.base or base
    castore_environment()
    print(machine_line())
    with scratch(options.dir) as directory:
        probe = directory / "probe"
        write_random(probe, (4 if options.tiny else 64) << 20, seed=1)
        per_object = min(CHUNKS_PER_OBJECT, base // 2) if options.deltas else CHUNKS_PER_OBJECT
        few, many = (
            Store(directory / "few", base, per_object),
            Store(directory / "many", chunks, per_object),
        )
        body_bytes = UNIT_BYTES - ENDING_BYTES
        body = random.Random(6).randbytes(body_bytes) if options.deltas else bytes(body_bytes)
        unit = body + find_ending(directory / "search")
        facts = {}
        for label, one in (("few", few), ("many", many)):
            one.open()
            seconds = one.fill(unit, deltas=options.deltas)
            one.store.put("probe", probe)
            settle()
            one.warm()
            facts[label] = _facts(one, seconds)
        rows = _measure(
            few, many, probe, directory / "new", unit, repeats, options.deltas, options.tiny
        )
        few.store.close()
        many.store.close()
    report("growth", rows, {**facts, "repeats": repeats}, options.json)
    return 0


def find_ending(directory: Path) -> bytes:
    """The last bytes of a chunk of random bytes that was cut before the mean size."""
    import castore

    path = directory.with_suffix(".bin")
    write_random(path, 8 << 20, seed=5)
    data = path.read_bytes()
    with castore.open(directory) as store:
        store.put("random", path)
        at = 0
        while at < len(data):
            chunk = store.explain_range("random", (at, at + 1)).raw_bytes
            at += chunk
            # Below the mean the threshold is the highest: what passes it passes everywhere.
            if chunk < NORM_BYTES and at < len(data):
                return data[at - ENDING_BYTES : at]
    raise AssertionError("no chunk of 8 MiB of random bytes was cut before the mean size")


def _measure(
    few: Store,
    many: Store,
    probe: Path,
    new: Path,
    unit: bytes,
    repeats: int,
    deltas: bool,
    tiny: bool,
) -> list[Row]:
    size = probe.stat().st_size
    puts, reads = (5, 20) if tiny else (50, 2000)
    stored = few.objects[0][2]
    small = struct.pack("<Q", 7) * 128
    draw = random.Random(9)

    def put_new(one: Store, repeat: int) -> None:
        one.store.put(f"new-{repeat}", new)

    def put_next(one: Store, repeat: int) -> None:
        info = one.store.put(f"next-{repeat}", new, like="probe")
        if info.deltas < info.chunks * DELTAS_SHARE_MIN:
            raise AssertionError(f"only {info.deltas} of {info.chunks} chunks are deltas")

    def put_stored(one: Store, repeat: int) -> None:
        first = one.chunks - stored if repeat % 2 else 0
        one.store.put(f"again-{repeat}", Fill(unit, first, stored))

    def put_small(one: Store, repeat: int) -> None:
        for number in range(puts):
            one.store.puts(f"small-{repeat}-{number}", small)

    def filled(one: Store) -> list[tuple[str, int, int]]:
        """With deltas, what is one: the first object is half of the small store."""
        return one.objects[1:] if deltas else one.objects

    def gets_fill(one: Store, repeat: int) -> None:
        for _ in range(reads):
            name, _, count = draw.choice(filled(one))
            begin = draw.randrange(count * UNIT_BYTES - 4096)
            one.store.gets(name, (begin, begin + 4096))

    def gets_probe(one: Store, repeat: int) -> None:
        for _ in range(reads):
            begin = draw.randrange(size - 4096)
            one.store.gets("probe", (begin, begin + 4096))

    def first_gets(one: Store, repeat: int) -> None:
        one.store.close()
        one.open()
        one.store.gets("probe", (0, 4096))

    work: list[tuple[str, str, Callable[[Store, int], None], int]] = [
        ("put-new", f"put of {size >> 20} MiB of new random bytes", put_new, 1),
        ("put-next", f"put of {size >> 20} MiB, edited every 16 KiB", put_next, 1),
        ("put-stored", f"put of {stored:,} stored chunks", put_stored, 1),
        ("puts-small", "puts of 1 KiB, inline", put_small, puts),
        ("gets-fill", "gets of 4 KiB at random in all that was filled in", gets_fill, reads),
        ("gets-probe", "gets of 4 KiB at random in one object of random bytes", gets_probe, reads),
        ("open-gets", "close, open, one gets of 4 KiB", first_gets, 1),
    ]
    rows = []
    for name, what, action, calls in work:
        row = Row(name, what, "s" if calls == 1 else "µs")
        scale = 1.0 if calls == 1 else 1e6 / calls
        for repeat in range(repeats):
            if action is put_new:
                write_random(new, size, seed=100 + repeat)
            elif action is put_next:
                shutil.copyfile(probe, new)
                edit(new, EDIT_EVERY_BYTES, seed=200 + repeat)
            # Who goes first alternates: the second finds the processor's caches warmer.
            for one in (few, many) if repeat % 2 == 0 else (many, few):
                settle()
                began = time.perf_counter()
                action(one, repeat)
                row.add(f"{one.chunks:,}", (time.perf_counter() - began) * scale)
        ratios = row.ratio(f"{many.chunks:,}", f"{few.chunks:,}")
        if name != "open-gets":
            row.bar(f"≤ {RATIO_BAR} × the cost at {few.chunks:,}", ratios, _within_bar)
        show(row, base=f"{few.chunks:,}")
        rows.append(row)
    return rows


def _within_bar(ratio: float) -> bool:
    return ratio <= RATIO_BAR


def _facts(one: Store, seconds: float) -> dict[str, Any]:
    stats = one.store.stats()
    print(
        f"{stats.chunks:,} chunks (asked for {one.chunks:,} and a probe), {stats.deltas:,} of them "
        f"deltas, in {seconds:.0f} s: "
        f"{stats.logical_bytes / 1e9:.1f} GB in, packs {stats.pack_bytes / 1e9:.2f} GB, "
        f"index {stats.index_bytes / 1e6:.0f} MB",
        flush=True,
    )
    if stats.chunks < one.chunks:
        raise AssertionError("the fill was not cut into as many chunks as it was made for")
    return {
        "chunks": stats.chunks,
        "deltas": stats.deltas,
        "fill_s": seconds,
        "logical_bytes": stats.logical_bytes,
        "pack_bytes": stats.pack_bytes,
        "index_bytes": stats.index_bytes,
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="200,000 against 10,000")
    parser.add_argument("--tiny", action="store_true", help="only show that it runs")
    parser.add_argument("--chunks", type=int, metavar="N", help="chunks of the large store")
    parser.add_argument("--base", type=int, metavar="N", help="chunks of the small store")
    parser.add_argument("--deltas", action="store_true", help="fill the stores with deltas")
    parser.add_argument("--json", metavar="FILE", help="write every sample here")
    parser.add_argument("--dir", metavar="DIR", help="where to work: about 8 GB in the full run")
    return parser


if __name__ == "__main__":
    sys.exit(main())
