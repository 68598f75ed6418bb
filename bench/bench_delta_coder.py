"""Delta coders beside each other: bytes, and the rate of one core.

    python bench/bench_delta_coder.py [--quick | --tiny] [OLDER NEWER]

The new chunks of a later release are made deltas of those chunks of the earlier one that
castore.stream.alignment names, by castore.stream.delta and by zstd with all of the bases as its
dictionary, at levels 1 and 3: each as it would be done for one frame, and decoded again. `plain` is
the same chunks by zstd -1, without bases. CPU time, so that what else runs matters less; chunks for
which no base is named, or whose delta one of the coders refuses, are left out for all.

Releases are those of corpora.py, as plain tars; or give two files.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import xxhash
import zstandard
from corpora import Unavailable, release
from measure import machine_line, table

from castore.format.segment import SegmentBuilder
from castore.model import SEGMENT_EXTENTS_MAX, Location, StoredChunk
from castore.stream.alignment import Alignment
from castore.stream.anchored import AnchoredBases
from castore.stream.chunker import Chunker, ChunkSizes
from castore.stream.delta import decode_delta, encode_delta
from castore.stream.segments import Manifest

CUTTER = Chunker(ChunkSizes.for_average(64 << 10))
PAIRS = (
    ("django", "4.2.1", "4.2.8"),
    ("botocore", "1.31.25", "1.31.55"),
    ("scipy", "1.13.0", "1.13.1"),
    ("scipy", "1.12.0", "1.13.0"),
)


class Case(NamedTuple):
    raw: bytes
    bases: list[bytes]


class Coder(NamedTuple):
    encode: Callable[[Case], bytes | None]
    decode: Callable[[Case, bytes], bytes]


def chunks(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    begin = 0
    for end in CUTTER.cuts(data, 0, True):
        yield begin, end, xxhash.xxh3_128_digest(data[begin:end])
        begin = end


def manifest_of(data: bytes) -> Manifest:
    """Of the object as castore would have it; a frame's offset is its number."""
    segments = []
    builder = SegmentBuilder(0)
    for number, (_, end, chunk_id) in enumerate(chunks(data)):
        builder.append(end, chunk_id, Location(bytes(16), number, 100))
        if len(builder) == SEGMENT_EXTENTS_MAX:
            segments.append(builder.encode())
            builder = SegmentBuilder(end)
    if len(builder):
        segments.append(builder.encode())
    return Manifest(segments, len(data))


def cases(older: bytes, newer: bytes) -> list[Case]:
    known = {chunk_id: older[begin:end] for begin, end, chunk_id in chunks(older)}

    def read(base: StoredChunk) -> bytes:
        return known[base.chunk_id]

    aligned = Alignment(manifest_of(older), len(older), AnchoredBases(read))
    found = []
    for begin, end, chunk_id in chunks(newer):
        if chunk_id in known:
            aligned.known(begin, end, chunk_id)
            continue
        raw = newer[begin:end]
        bases = [read(each.base) for each in aligned.candidates(begin, end, raw)]
        if bases and encode_delta(raw, bases) is not None:
            found.append(Case(raw, bases))
    return found


def with_dictionary(level: int) -> Coder:
    def dictionary(case: Case) -> zstandard.ZstdCompressionDict:
        # The best base last: zstd spends the fewest bits on what is near.
        return zstandard.ZstdCompressionDict(
            b"".join(reversed(case.bases)), dict_type=zstandard.DICT_TYPE_RAWCONTENT
        )

    def encode(case: Case) -> bytes:
        compressor = zstandard.ZstdCompressor(level=level, dict_data=dictionary(case))
        return compressor.compress(case.raw)

    def decode(case: Case, payload: bytes) -> bytes:
        return zstandard.ZstdDecompressor(dict_data=dictionary(case)).decompress(payload)

    return Coder(encode, decode)


def coders() -> dict[str, Coder]:
    plain, undo = zstandard.ZstdCompressor(level=1), zstandard.ZstdDecompressor()
    return {
        "plain": Coder(lambda case: plain.compress(case.raw), lambda _, raw: undo.decompress(raw)),
        "zstd -1, bases": with_dictionary(1),
        "zstd -3, bases": with_dictionary(3),
        "castore": Coder(
            lambda case: encode_delta(case.raw, case.bases),
            lambda case, payload: decode_delta(payload, case.bases, len(case.raw)),
        ),
    }


def row(name: str, coder: Coder, given: list[Case], repeats: int) -> list[str]:
    raw_bytes = sum(len(case.raw) for case in given)
    encoding, decoding = [], []
    for _ in range(repeats):
        started = time.process_time()
        payloads = [coder.encode(case) or b"" for case in given]
        encoded = time.process_time()
        decoded = [coder.decode(case, raw) for case, raw in zip(given, payloads, strict=True)]
        decoding.append(time.process_time() - encoded)
        encoding.append(encoded - started)
        assert decoded == [case.raw for case in given]
    rates = (raw_bytes / min(times) / 1e6 for times in (encoding, decoding))
    return [name, f"{sum(map(len, payloads)) / 1e3:.0f}", *(f"{rate:.0f}" for rate in rates)]


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", "--tiny", action="store_true", help="one pair of releases, once")
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="an older and a newer")
    options = parser.parse_args(arguments)
    pairs = {" to ".join(map(str, options.files)): options.files} if options.files else {}
    try:
        for package, older, newer in () if pairs else PAIRS[: 1 if options.quick else None]:
            pairs[f"{package} {older} to {newer}"] = [
                release(package, version) for version in (older, newer)
            ]
    except Unavailable as error:
        print(error)
    print(machine_line())
    for what, (older, newer) in pairs.items():
        given = cases(Path(older).read_bytes(), Path(newer).read_bytes())
        raw_bytes = sum(len(case.raw) for case in given)
        bases = sum(len(case.bases) for case in given) / max(len(given), 1)
        print(f"\n{what}: {len(given)} deltas of {raw_bytes / 1e6:.1f} MB, {bases:.2f} bases each")
        rows = [
            row(name, coder, given, 1 if options.quick else 3) for name, coder in coders().items()
        ]
        print(table(["coder", "kB", "encode MB/s", "decode MB/s"], rows))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
