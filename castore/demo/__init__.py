"""The project's main job on real files, measured: yesterday's tar, today's tar, ranges of it.

Everything happens in one temporary folder. The files are packed as yesterday's tar; then a few of
them are edited, removed and added, always the same ones, and packed as today's. Both are put into
a new store and read back, whole, by random ranges and file by file, and every byte is compared.

A put's rate stands beside that of a plain copy of the same file that ends with an fsync, as a put
does; a get's beside a copy that does not, as a get does not. They take turns, in up to three
rounds with a new store each, and their medians count. All files are in the page cache. Ranges are
read with the cache of decoded chunks off, so that each one pays for all it touches.
"""

from __future__ import annotations

import os
import random
import secrets
import shutil
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from castore.demo.corpus import SEED, Corpus, DemoError, choose_corpus, plan_edits, write_tar
from castore.stream.chunker import implementation

if TYPE_CHECKING:
    from castore.store import Store

RANGES = 200
RANGE_BYTES = 4096
MEMBERS = 50
MEMBER_BYTES_MAX = 16 << 20  # of a larger one only the beginning is read: it is all in memory
ROUNDS = 3
ROUNDS_S_MAX = 3.0  # past this no round begins: what takes longer is steady enough
# What goes through three puts and more in some ten seconds, by what cuts the chunks here.
CORPUS_BYTES_MAX = {"numpy": 64 << 20, "python": 3 << 20}
CORPUS_BYTES_MAX_NATIVE = 512 << 20
YESTERDAY, TODAY, AGAIN = "tars/yesterday.tar", "tars/today.tar", "tars/today-again.tar"


@dataclass(frozen=True, slots=True)
class PutResult:
    """A tar put: sizes in bytes, times in seconds. `new_bytes` is what was not there before:
    `new_chunks`, of which `new_deltas` are stored as their difference from others."""

    bytes_in: int
    new_bytes: int
    stored_bytes: int
    new_chunks: int
    new_deltas: int
    duration_s: float
    plain_duration_s: float


@dataclass(frozen=True, slots=True)
class ReadResult:
    """Many reads: medians for sizes and times, means for what one of them touches. `chunks` are
    those that it is in, and those that are needed to decode them."""

    count: int
    size: int
    chunks: float
    frame_bytes: float
    duration_s: float
    plain_duration_s: float


@dataclass(frozen=True, slots=True)
class DemoReport:
    label: str
    note: str
    files: int
    edited_files: int
    removed_files: int
    added_files: int
    yesterday: PutResult
    today: PutResult
    again: PutResult
    bytes_in: int
    unique_bytes: int
    stored_bytes: int
    ranges: ReadResult
    members: ReadResult
    whole: ReadResult
    rounds: int
    checked_bytes: int


def run(source: str | None, step: Callable[[str], None]) -> DemoReport:
    """Run the demo on `source` (a folder, a file, or None: the standard library).

    `step` is told what begins. Raises DemoError where the demo can't run, and where a single byte
    comes back different. The temporary folder is removed in any case.
    """
    bytes_max = CORPUS_BYTES_MAX.get(implementation(), CORPUS_BYTES_MAX_NATIVE)
    corpus = choose_corpus(source, bytes_max=bytes_max)
    _check_space(corpus)
    with _temporary_folder() as folder:
        return _run_in(folder, corpus, step)


def _run_in(folder: str, corpus: Corpus, step: Callable[[str], None]) -> DemoReport:
    import castore

    step("packing yesterday's and today's tar")
    edits = plan_edits(corpus)
    yesterday, today = os.path.join(folder, "yesterday.tar"), os.path.join(folder, "today.tar")
    write_tar(yesterday, corpus, None)
    write_tar(today, corpus, edits)
    puts: list[tuple[PutResult, ...]] = []
    began = time.perf_counter()
    store_path = os.path.join(folder, "store")
    while not puts or (len(puts) < ROUNDS and time.perf_counter() - began < ROUNDS_S_MAX):
        step(f"putting them, round {len(puts) + 1}")
        shutil.rmtree(store_path, ignore_errors=True)
        with castore.open(store_path) as store:
            put_yesterday = _put(store, YESTERDAY, yesterday)
            put_today = _put(store, TODAY, today, like=YESTERDAY)
            totals = store.stats()
            puts.append((put_yesterday, put_today, _put(store, AGAIN, today)))
    # Opened anew, as the next day's program would: nothing of the above is left in its caches.
    with castore.open(store_path, create=False, read_only=True, cache_bytes=0) as store:
        step("reading ranges and single files back")
        ranges = _read_ranges(store, today)
        members = _read_members(store, today)
        step("reading whole tars back and comparing every byte")
        back = os.path.join(folder, "back.tar")
        whole = _read_whole(store, today, back, len(puts))
        checked_bytes = _compare(back, today)
        for name, original in ((YESTERDAY, yesterday), (AGAIN, today)):
            store.get(name, back)
            checked_bytes += _compare(back, original)
    results = [_median_put(results) for results in zip(*puts, strict=True)]
    return DemoReport(
        label=corpus.label,
        note=corpus.note,
        files=len(corpus.files),
        edited_files=len(edits.inserted),
        removed_files=len(edits.removed),
        added_files=len(edits.added),
        yesterday=results[0],
        today=results[1],
        again=results[2],
        bytes_in=totals.logical_bytes,
        unique_bytes=totals.unique_bytes,
        stored_bytes=totals.stored_bytes,
        ranges=ranges,
        members=members,
        whole=whole,
        rounds=len(puts),
        checked_bytes=checked_bytes,
    )


def _put(store: Store, name: str, path: str, like: str | None = None) -> PutResult:
    plain_duration_s = _copy(path, path + ".copy", sync=True)
    before = store.stats()
    began = time.perf_counter()
    info = store.put(name, path, like=like)
    duration_s = time.perf_counter() - began
    after = store.stats()
    return PutResult(
        bytes_in=info.size,
        new_bytes=after.unique_bytes - before.unique_bytes,
        stored_bytes=after.stored_bytes - before.stored_bytes,
        new_chunks=after.chunks - before.chunks,
        new_deltas=after.deltas - before.deltas,
        duration_s=duration_s,
        plain_duration_s=plain_duration_s,
    )


def _median_put(results: Sequence[PutResult]) -> PutResult:
    """The last round's result, with the medians of all rounds for its times."""
    return replace(
        results[-1],
        duration_s=statistics.median(result.duration_s for result in results),
        plain_duration_s=statistics.median(result.plain_duration_s for result in results),
    )


def _copy(path: str, target: str, *, sync: bool) -> float:
    """The seconds that a plain copy takes; the copy is removed."""
    began = time.perf_counter()
    shutil.copyfile(path, target)
    if sync:
        with open(target, "rb+") as copied:
            os.fsync(copied.fileno())
    duration_s = time.perf_counter() - began
    os.unlink(target)
    return duration_s


def _read_whole(store: Store, path: str, back: str, rounds: int) -> ReadResult:
    """Today's tar to a new file, `rounds` times; the last one stays at `back`."""
    times, plain_times = [], []
    for _ in range(rounds):
        plain_times.append(_copy(path, back + ".copy", sync=False))
        with suppress(FileNotFoundError):
            os.unlink(back)
        began = time.perf_counter()
        info = store.get(TODAY, back)
        times.append(time.perf_counter() - began)
    plan = store.explain_range(TODAY, None)
    return ReadResult(
        count=rounds,
        size=info.size,
        chunks=plan.chunks + plan.bases,
        frame_bytes=plan.frame_bytes,
        duration_s=statistics.median(times),
        plain_duration_s=statistics.median(plain_times),
    )


def _read_ranges(store: Store, path: str) -> ReadResult:
    chance = random.Random(SEED)
    size = os.path.getsize(path)
    length = min(RANGE_BYTES, size)
    begins = [chance.randint(0, size - length) for _ in range(RANGES)]
    return _measure_ranges(store, path, [(begin, begin + length) for begin in begins])


def _read_members(store: Store, path: str) -> ReadResult:
    with tarfile.open(path) as tar:
        found = [
            (entry.offset_data, entry.offset_data + min(entry.size, MEMBER_BYTES_MAX))
            for entry in tar
            if entry.size
        ]
    chosen = random.Random(SEED).sample(found, min(MEMBERS, len(found)))
    return _measure_ranges(store, path, chosen)


def _measure_ranges(store: Store, path: str, byte_ranges: list[tuple[int, int]]) -> ReadResult:
    """Ranges of today's tar, each read from the store and from the plain file, and compared."""
    times, plain_times, plans = [], [], []
    for begin, end in byte_ranges:
        began = time.perf_counter()
        got = store.gets(TODAY, (begin, end))
        between = time.perf_counter()
        with open(path, "rb") as plain:
            plain.seek(begin)
            wanted = plain.read(end - begin)
        plain_times.append(time.perf_counter() - between)
        times.append(between - began)
        if got != wanted:
            raise DemoError(f"bytes {begin}:{end} of {TODAY} came back different: this is a bug")
        plans.append(store.explain_range(TODAY, (begin, end)))
    return ReadResult(
        count=len(byte_ranges),
        size=round(statistics.median(end - begin for begin, end in byte_ranges)),
        chunks=statistics.fmean(plan.chunks + plan.bases for plan in plans),
        frame_bytes=statistics.fmean(plan.frame_bytes for plan in plans),
        duration_s=statistics.median(times),
        plain_duration_s=statistics.median(plain_times),
    )


def _compare(path: str, original: str) -> int:
    """The number of bytes in both files; raises DemoError unless they are the same bytes."""
    compared = 0
    with open(path, "rb") as left, open(original, "rb") as right:
        while True:
            block = left.read(1 << 20)
            if block != right.read(1 << 20):
                raise DemoError(f"a tar came back different near byte {compared}: this is a bug")
            if not block:
                return compared
            compared += len(block)


@contextmanager
def _temporary_folder() -> Iterator[str]:
    # Not tempfile's: a signal between its mkdir and its first `finally` would leave the folder.
    folder = os.path.join(tempfile.gettempdir(), f"castore-demo-{secrets.token_hex(8)}")
    try:
        os.mkdir(folder, 0o700)
        yield folder
    finally:
        try:
            shutil.rmtree(folder, ignore_errors=True)
        except BaseException:  # a second Ctrl-C
            shutil.rmtree(folder, ignore_errors=True)
            raise


def _check_space(corpus: Corpus) -> None:
    # Both tars, a store that saves nothing, and one copy at a time.
    needed = 5 * corpus.size + (64 << 20)
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DemoError(
            f"the demo needs up to {needed >> 20} MiB in {folder}, which has "
            f"{free >> 20} MiB left: set TMPDIR to a roomier folder, or give it a smaller PATH"
        )
