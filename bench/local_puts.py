"""The in-process put and full-get rows of bench_local."""

from __future__ import annotations

import os
import shutil
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import zstandard
from measure import Row, on_cores, plain_read, settle

ROWS = ["again-in-process", "new-in-process", "get-in-process", "journal"]
BLOCKS = 5  # for each repetition, of the row "journal"


def run(wanted: Sequence[str], source: Path, directory: Path, repeats: int) -> Iterator[Row]:
    store = directory / "in-process"
    if "again-in-process" in wanted:
        yield _again(source, store, max(repeats, 3))
    if "new-in-process" in wanted:
        yield _new(source, store, repeats)
    if "get-in-process" in wanted:
        yield _get(source, store, directory / "in-process.out", repeats)
    if "journal" in wanted:
        puts = 200 if source.stat().st_size >= 64 << 20 else 20
        yield _journal(store, puts, BLOCKS * repeats)


def _again(source: Path, directory: Path, repeats: int) -> Row:
    """put of stored bytes against reading the same file, both on one core."""
    size = source.stat().st_size
    row = Row("again-in-process", "put real.tar again, in one process, on one core", "s")
    row.bytes_per_run = size
    with on_cores(1), _open(directory) as store:
        store.put("first", source)
        for repeat in range(repeats):
            settle()
            row.add("castore", _timed(lambda name: store.put(name, source), f"again-{repeat}"))
            row.add("plain read", _timed(plain_read, source))
        stats = store.stats()
    row.notes.append(_stats(stats))
    shutil.rmtree(directory)
    rates = [size / seconds / 1e9 for seconds in row.samples["castore"]]
    row.bar("≥ 3 GB/s", rates, lambda rate: rate >= 3)
    share = row.ratio("plain read", "castore")
    row.bar("≥ 0.40 × the rate of a plain read", share, lambda ratio: ratio >= 0.4)
    return row


def _new(source: Path, directory: Path, repeats: int) -> Row:
    """put of new bytes against zstandard's own multi-threaded compressor, written and synced."""
    row = Row("new-in-process", "put real.tar into an empty store, in one process", "s")
    row.bytes_per_run = source.stat().st_size
    for _ in range(repeats):
        for name, count in (("castore", 2), ("castore, one core", 1)):
            settle()
            with on_cores(count):
                began = time.perf_counter()
                with _open(directory) as store:
                    store.put("name", source)
                row.add(name, time.perf_counter() - began)
            shutil.rmtree(directory)
        for name, count in (("zstandard -1 + fsync", 2), ("zstandard -1 + fsync, one core", 1)):
            settle()
            with on_cores(count):
                row.add(name, _timed(lambda threads: _compress(source, directory, threads), count))
            os.unlink(directory)
    return row


def _get(source: Path, directory: Path, out: Path, repeats: int) -> Row:
    """get to a file against zstandard's decompressor writing a file, neither with its process."""
    row = Row("get-in-process", "get real.tar back to a file, in one process", "s")
    row.bytes_per_run = source.stat().st_size
    packed = out.with_suffix(".zst")
    _compress(source, packed, 2)
    with _open(directory) as store:
        store.put("name", source)
    for _ in range(repeats):
        for name, count in (("castore", 2), ("castore, one core", 1)):
            settle()
            with on_cores(count), _open(directory) as store:
                row.add(name, _timed(lambda target, store=store: store.get("name", target), out))
            os.unlink(out)
        settle()
        with on_cores(1):
            row.add("zstandard, one core", _timed(lambda target: _decompress(packed, target), out))
        os.unlink(out)
    os.unlink(packed)
    shutil.rmtree(directory)
    return row


def _journal(directory: Path, puts: int, blocks: int) -> Row:
    """What the journal of names adds to a durable put of 1 KB: blocks of puts with it and without,
    in turn. Most of a put waits for the disk, so the processor's time is told as well."""
    from castore.local.journal.log import Journal

    row = Row("journal", f"{puts} durable puts of 1 KB, in one process", "s")
    value, append = os.urandom(1024), Journal.append
    busy: dict[str, list[float]] = {"with": [], "without": []}
    with _open(directory) as store:
        for block in range(blocks):
            for which in ("with", "without") if block % 2 else ("without", "with"):
                Journal.append = append if which == "with" else _nothing  # type: ignore[method-assign]
                began, began_busy = time.perf_counter(), time.process_time()
                try:
                    for i in range(puts):
                        store.puts(f"key/{i}", value)
                finally:
                    Journal.append = append  # type: ignore[method-assign]
                row.add(f"{which} the journal", time.perf_counter() - began)
                busy[which].append(time.process_time() - began_busy)
    shutil.rmtree(directory)
    row.bar("≤ 1.05 × without", row.ratio("with the journal", "without the journal"), _is_little)
    spent = [statistics.median(busy[which]) / puts * 1e6 for which in ("with", "without")]
    row.notes.append(f"processor: {spent[0]:.0f} us a put with it, {spent[1]:.0f} us without")
    return row


def _is_little(ratio: float) -> bool:
    return ratio <= 1.05


def _nothing(*_: Any) -> None:
    """In place of `Journal.append`."""


def _open(directory: Path) -> Any:
    import castore  # not before the whole-process rows: it would raise their floor of memory

    return castore.open(directory)


def _timed(action: Any, *arguments: Any) -> float:
    began = time.perf_counter()
    action(*arguments)
    return time.perf_counter() - began


def _compress(source: Path, target: Path, threads: int) -> None:
    compressor = zstandard.ZstdCompressor(level=1, threads=threads if threads > 1 else 0)
    with open(source, "rb") as reader, open(target, "wb") as writer:
        compressor.copy_stream(reader, writer, read_size=1 << 20, write_size=1 << 20)
        writer.flush()
        os.fsync(writer.fileno())


def _decompress(source: Path, target: Path) -> None:
    decompressor = zstandard.ZstdDecompressor()
    with open(source, "rb") as reader, open(target, "wb") as writer:
        decompressor.copy_stream(reader, writer, read_size=1 << 20, write_size=1 << 20)


def _stats(stats: Any) -> str:
    chunk = stats.unique_bytes / max(stats.chunks, 1)
    return (
        f"{stats.chunks:,} distinct chunks of {chunk / 1024:.1f} KiB; "
        f"{stats.stored_bytes / max(stats.unique_bytes, 1):.3f} of their bytes stored"
    )
