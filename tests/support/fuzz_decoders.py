"""Every decoder of the formats, and the reader of tars, fed with damaged bytes for a while:

    python tests/support/fuzz_decoders.py SECONDS [TARGET ...]

Only the errors of the formats may come out, within bounded memory. Where atheris is installed it
guides the damage by what it reaches; else the bytes are changed at random, as in test_format.py,
from other beginnings each time. What fails is printed as hex, and the exit code is 1.
"""

from __future__ import annotations

import io
import os
import random
import struct
import subprocess
import sys
import tempfile
import time
from array import array
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import format_s3_cases as made
import zstandard
from format_cases import SPECIMENS, Target, memory_limited, mutated
from format_cases import TARGETS as LAYOUTS
from format_s3_cases import NONCE, STORE
from tars import SEEDS, with_checksums

from castore.errors import FormatError, UnsupportedFormat
from castore.format import s3, s3_batches, s3_gc, s3_samples, s3_told
from castore.format.backup import BackupTrailer, decode_backup_trailer, encode_backup_trailer
from castore.format.index import Record
from castore.format.pack import PackEntry
from castore.format.s3_batches import BATCH_HEADER_BYTES
from castore.stream.delta import decode_delta, encode_delta
from conducto import tar
from conducto.errors import CacheRefused

MEMORY_BYTES = 512 << 20
ALLOWED = (FormatError, UnsupportedFormat, CacheRefused)


def use_samples(raw: bytes) -> None:
    assert len(s3_samples.decode_samples(raw)[1].places()) < len(raw)


def use_manifest(raw: bytes) -> None:
    head = s3.decode_manifest_head(raw)
    assert s3.manifest_number(raw) == head.number
    again = s3.with_nonce(raw, STORE)
    assert s3.decode_manifest_head(again) == replace(head, nonce=STORE)


def use_root(raw: bytes) -> None:
    store_id, root = s3_batches.decode_root(raw)
    assert s3_batches.encode_root(store_id, root) == raw


def use_batch(raw: bytes) -> None:
    head = s3_batches.decode_batch_head(raw)
    assert [*head.names.below(b"")] == [*head.names.rows]
    for row in head.names.rows:
        assert head.names.find(row.name) is row
        assert head.bytes <= row.offset <= row.end <= s3_batches.BATCH_BYTES_MAX


def use_index(index: bytes) -> None:
    """As what a batch has compressed, whatever it is."""
    packed = zstandard.compress(index)
    sizes = struct.pack("<IIQ", 3, len(packed), len(index))
    use_batch(made.repaired_batch(made.BATCH[:8] + sizes + made.BATCH[24:56] + packed))


def use_tombstone(raw: bytes) -> None:
    _, number = s3_batches.decode_tombstone(raw)
    assert len(s3.with_nonce(raw, NONCE)) == len(raw)
    assert len(raw) % 2 == (number is not None)


def use_tar(raw: bytes) -> None:
    reader = tar.TarReader(io.BytesIO(raw).read, tar.Limits())
    for _ in reader:
        for _ in reader.pieces():
            """Its content."""


LINES = b"".join(b"%d: line %d\n" % (i, i * i) for i in range(400))
OTHER_LINES = b"new" + LINES[700:].replace(b"7: ", b"seven: ") + LINES[:500]


def use_delta(payload: bytes) -> None:
    assert len(decode_delta(payload, [LINES], len(OTHER_LINES))) == len(OTHER_LINES)


TARGETS: dict[str, Target] = {
    **LAYOUTS,
    "manifests": Target(
        [
            made.manifest(2)[0],
            made.inline(b"bytes")[0],
            made.inline(bytes(5000))[0],
            made.manifest(1, 2, made.BATCHED, 7)[0],
            made.inline(bytes(5000), made.BATCHED, 7)[0],
        ],
        use_manifest,
        made.repaired_manifest,
    ),
    "roots": Target([made.RAW_ROOT], use_root, made.repaired_told),
    "batches": Target(
        [made.BATCH, made.BATCH[: made.INDEX_BYTES], made.DELETING], use_batch, made.repaired_batch
    ),
    "indexes of batches": Target(
        [zstandard.decompress(made.BATCH[BATCH_HEADER_BYTES : made.INDEX_BYTES])], use_index
    ),
    "tombstones": Target(
        [made.TOMBSTONE, made.WEAK_TOMBSTONE], use_tombstone, made.repaired_tombstone
    ),
    "pins": Target([s3_gc.encode_pin(STORE, bytes(8), NONCE, [STORE, NONCE])], s3_gc.decode_pin),
    "condemned": Target(
        [s3_gc.encode_condemned(STORE, NONCE, [STORE, NONCE], [NONCE])],
        partial(s3_gc.decode_condemned, store_id=STORE),
    ),
    "states": Target(
        [s3_gc.encode_state(s3_gc.GcState(3, "condemned", NONCE, "gc/condemned/3"))],
        s3_gc.decode_state,
    ),
    "listings": Target(
        [
            s3_told.encode_listing(
                STORE,
                [s3_told.NameFacts.of(b"name", '"tag"', Record(1, 2, 0o644, NONCE, 3, 4))] * 2,
            )
        ],
        s3_told.decode_listing,
    ),
    "hints": Target(
        [
            s3_told.encode_hints(STORE, [(NONCE, [PackEntry(STORE, 64, 2, 3)] * 3)]),
            SPECIMENS["hints, deltas"],
        ],
        s3_told.decode_hints,
    ),
    "samples": Target(
        [s3_samples.encode_samples(STORE, s3_samples.Samples([NONCE], [(2, 7), (0, 0)], 2))],
        use_samples,
    ),
    "references": Target(
        [
            s3_gc.encode_references(b"n", "etag", s3_gc.References((STORE, NONCE), frames))
            for frames in (None, (array("Q", [1, 2]), array("Q")))
        ],
        partial(s3_gc.decode_references, b"n", "etag"),
    ),
    "backups": Target(
        [encode_backup_trailer(BackupTrailer(4096, 300, 1, 7))],
        partial(decode_backup_trailer, backup_bytes=4096 + 300 + 48),
        versioned=True,
    ),
    "deltas": Target([encode_delta(OTHER_LINES, [LINES]) or b""], use_delta),
    "tars": Target(SEEDS, use_tar, with_checksums),
}


def at_random(name: str, seconds: float, check: Callable[[bytes], None]) -> int:
    rng, end, count = random.Random(), time.monotonic() + seconds, 0
    while time.monotonic() < end:
        for _ in range(200):
            check(mutated(rng, TARGETS[name]))
        count += 200
    return count


def checked(name: str) -> Callable[[bytes], None]:
    target = TARGETS[name]

    def check(raw: bytes) -> None:
        try:
            target.decode(raw)
        except ALLOWED:
            pass
        except BaseException:
            print(f"{name}: {raw.hex()}", flush=True)
            raise

    return check


def guided(name: str, seconds: float) -> int:
    """In a process of its own: atheris ends the one that it runs in."""
    with tempfile.TemporaryDirectory() as corpus:
        for i, raw in enumerate(TARGETS[name].valid):
            Path(corpus, str(i)).write_bytes(raw)
        done = subprocess.run(
            [sys.executable, __file__, "--guided", name, corpus, str(max(int(seconds), 1))],
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    if done.returncode:
        print(done.stderr[-4000:])
    return done.returncode


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["--guided"]:
        import atheris

        _, name, corpus, seconds = arguments
        flags = [f"-max_total_time={seconds}", f"-rss_limit_mb={MEMORY_BYTES >> 20}"]
        atheris.Setup([__file__, corpus, *flags, "-max_len=8192"], checked(name))
        atheris.Fuzz()
    names = arguments[1:] or [*TARGETS]
    each, failed = float(arguments[0]) / len(names), False
    for name in names:
        random_seconds = each
        if find_spec("atheris") is not None:
            random_seconds = each / 2
            failed |= guided(name, each / 2) != 0
        try:
            with memory_limited(MEMORY_BYTES):
                count = at_random(name, random_seconds, checked(name))
        except Exception as error:
            print(f"{name}: {error!r}")
            failed = True
        else:
            print(f"{name}: {count} mutants in {random_seconds:.0f} s", flush=True)
    return int(failed)


if __name__ == "__main__":
    os.chdir(tempfile.gettempdir())
    sys.exit(main(sys.argv[1:]))
