"""Values that know what they are, histories that are judged, and the programs that make them.

Imported by the crash and concurrency tests, and run by them as `python oracle.py VERB ...` in
processes of their own.

A value is a function of (name, version), so a reader rebuilds what it should have read and compares
every byte: torn and mixed values can't pass. What is left to find is whether it was the *right*
version, which `judge` decides from the history of all processes on one clock.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import random
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import lmdb
from forced_deltas import with_children

import castore
import castore.format.frame
import castore.local.packs
import castore.local.session
import castore.model
import castore.store
from castore.errors import NameExists, NameNotFound

# ---------------------------------------------------------------- values


class Version(NamedTuple):
    """Who wrote it, and the how-manieth of the writer's puts it was: no two puts share one."""

    writer: int
    sequence: int


class Torn(AssertionError):
    """Bytes that no put ever wrote."""


_HEADER = struct.Struct("<8sIIQ32s")
HEADER_BYTES = _HEADER.size
MAGIC = b"versions"
SHARED_PIECES = 8


@lru_cache(maxsize=SHARED_PIECES)
def shared_piece(i: int) -> bytes:
    """Bytes that many values have in common, so that they are deduplicated: some of them random,
    some compressible."""
    source = random.Random(f"piece {i}")
    raw = source.randbytes(40_000 + 30_000 * i)
    return raw if i % 2 else raw.hex().encode()


@lru_cache(maxsize=32)
def value_of(name: str, version: Version) -> bytes:
    """The value that `version` of `name` has: inline, of one chunk, of several, or of many."""
    source = random.Random(f"{name} {version.writer} {version.sequence}")
    kind = source.random()
    if kind < 0.4:
        parts = [source.randbytes(source.randrange(0, 3500))]
    elif kind < 0.65:
        parts = [source.randbytes(source.randrange(4096, 50_000))]
    else:
        parts = [source.randbytes(source.randrange(0, 30_000))]
        for _ in range(source.randrange(1, 3 if kind < 0.95 else 9)):
            parts += [shared_piece(source.randrange(SHARED_PIECES)), source.randbytes(300)]
    body = b"".join(parts)
    short_name = name.encode()[:32]
    return (
        _HEADER.pack(MAGIC, version.writer, version.sequence, HEADER_BYTES + len(body), short_name)
        + body
    )


def version_in(name: str, head: bytes) -> tuple[Version, int]:
    """The version that a value of `name` says it is, and its size in bytes."""
    if len(head) < HEADER_BYTES:
        raise Torn(f"{name}: a value of {len(head)} bytes")
    magic, writer, sequence, size, short_name = _HEADER.unpack_from(head)
    if magic != MAGIC or short_name.rstrip(b"\0") != name.encode()[:32]:
        raise Torn(f"{name}: a value that is not of this name")
    return Version(writer, sequence), size


def check_value(name: str, data: bytes) -> Version:
    """The version that `data` is, every byte of it compared. Raises Torn."""
    version, _ = version_in(name, data)
    if data != value_of(name, version):
        raise Torn(f"{name}: not the bytes of {version}")
    return version


# ---------------------------------------------------------------- histories

PUT, DELETE, READ, ABSENT, PRESENT = range(5)
_EVENT = struct.Struct("<BBHIQQQ")


class Event(NamedTuple):
    """One operation on one name that took effect between two moments of CLOCK_MONOTONIC (ns).

    ABSENT is any operation that found no object, PRESENT one that found some version.
    """

    kind: int
    name: int
    start: int
    end: int
    version: Version | None = None


class History:
    """A file of one thread's events."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._file = open(path, "ab")  # noqa: SIM115

    def add(self, event: Event) -> None:
        version = event.version or Version(0, 0)
        row = (event.kind, 0, event.name, version.writer, version.sequence, event.start, event.end)
        self._file.write(_EVENT.pack(*row))

    def close(self) -> None:
        self._file.close()


def read_history(path: str | os.PathLike[str]) -> Iterator[Event]:
    for kind, _, name, writer, sequence, start, end in _EVENT.iter_unpack(Path(path).read_bytes()):
        version = Version(writer, sequence) if kind in (PUT, READ) else None
        yield Event(kind, name, start, end, version)


def final_reads(store: castore.Store, names: int) -> list[Event]:
    """What is there in the end, to be judged with the histories."""
    events = []
    for i in range(names):
        name, start = f"names/{i:02}", time.monotonic_ns()
        try:
            version = check_value(name, store.gets(name))
            events.append(Event(READ, i, start, time.monotonic_ns(), version))
        except NameNotFound:
            events.append(Event(ABSENT, i, start, time.monotonic_ns()))
    return events


def check_histories(events: list[Event], least: int) -> None:
    """Nothing in them can't be; and `least` of each kind were done, on however busy a machine."""
    assert judge(events) == []
    counts = [sum(event.kind == kind for event in events) for kind in range(5)]
    assert min(counts[kind] for kind in (PUT, DELETE, READ, ABSENT)) >= least, counts


def judge(events: Iterable[Event]) -> list[str]:
    """What in the history of a store can't be, if every operation took effect at one moment
    between its start and its end; [] for a store that keeps its promises.

    For a register whose writes are all different that is decided by zones (Gibbons and Korach,
    "Testing shared memories"): the span in which a version must have been the current one, and
    the spans in which it must have been at some moment. Deletes are versions that nobody can tell
    apart, so reads that found nothing are only held against what must have been there.
    """
    by_name: dict[int, list[Event]] = {}
    for event in events:
        by_name.setdefault(event.name, []).append(event)
    return [fault for name in sorted(by_name) for fault in _Register(name, by_name[name]).faults()]


class _Register:
    """The events of one name, absent at first."""

    def __init__(self, name: int, events: list[Event]) -> None:
        self.name = name
        self.puts = {event.version: event for event in events if event.kind == PUT}
        self.reads = [event for event in events if event.kind == READ]
        self.absent = [event for event in events if event.kind == ABSENT]
        self.present = [event for event in events if event.kind == PRESENT]
        self.deletes = [event for event in events if event.kind == DELETE]
        self.deletes.append(Event(DELETE, name, -1, -1))

    def faults(self) -> Iterator[str]:
        yield from self._unwritten()
        yield from self._stale()
        yield from self._must_have_been(self.absent, self.deletes, self.puts.values(), "lost")
        yield from self._must_have_been(
            self.present, self.puts.values(), self.deletes, "a deleted object came back"
        )
        yield from self._zones()

    def _unwritten(self) -> Iterator[str]:
        for read in self.reads:
            put = self.puts.get(read.version)
            if put is None:
                yield f"{self.name}: read {read.version}, which nobody acknowledged writing"
            elif put.start >= read.end:
                yield f"{self.name}: read {read.version} before it was written"

    def _stale(self) -> Iterator[str]:
        """Another write began after the version was acknowledged, and was itself acknowledged
        before the read began."""
        began_last = _latest_start_of_those_ended_before([*self.puts.values(), *self.deletes])
        for read in self.reads:
            put = self.puts.get(read.version)
            if put is not None and began_last(read.start) > put.end:
                yield f"{self.name}: stale: read {read.version} after it was replaced"

    def _must_have_been(
        self, seen: Iterable[Event], makes: Iterable[Event], unmakes: Iterable[Event], fault: str
    ) -> Iterator[str]:
        """Each of `seen` needs one of `makes` that no acknowledged one of `unmakes` followed."""
        unmade_last = _latest_start_of_those_ended_before(unmakes)
        made = sorted(makes, key=lambda event: event.start)
        starts = [event.start for event in made]
        ended_last = list(accumulate((event.end for event in made), max))
        for event in seen:
            i = bisect_left(starts, event.end)
            if i == 0 or ended_last[i - 1] < unmade_last(event.start):
                yield f"{self.name}: {fault} at {event.start}"

    def _zones(self) -> Iterator[str]:
        """The versions that must have been current over a span exclude each other, and whatever
        must have been current at some moment within that span."""
        spans: dict[Version | None, tuple[int, int]] = {
            version: (put.end, put.start) for version, put in self.puts.items()
        }
        for read in self.reads:
            if read.version in spans:
                first_end, last_start = spans[read.version]
                spans[read.version] = min(first_end, read.end), max(last_start, read.start)
        reigns = sorted((first, last, v) for v, (first, last) in spans.items() if first < last)
        for (_, until, before), (since, _, after) in pairwise(reigns):
            if since < until:
                yield f"{self.name}: {before} and {after} were both the current version"
        firsts = [first for first, _, _ in reigns]
        moments = [(last, first, str(v)) for v, (first, last) in spans.items() if last <= first]
        moments += [(event.start, event.end, "a delete") for event in self.deletes]
        moments += [(event.start, event.end, "nothing") for event in self.absent]
        for begin, end, what in moments:
            i = bisect_left(firsts, begin) - 1
            if i >= 0 and end < reigns[i][1]:
                yield f"{self.name}: {what} came amid the time of {reigns[i][2]}"


def _latest_start_of_those_ended_before(events: Iterable[Event]) -> Callable[[int], int]:
    done = sorted(events, key=lambda event: event.end)
    ends = [event.end for event in done]
    starts = list(accumulate((event.start for event in done), max))

    def latest(moment: int) -> int:
        i = bisect_left(ends, moment)
        return starts[i - 1] if i else -(1 << 62)

    return latest


# ---------------------------------------------------------------- a store from within


def check_index(store: castore.Store) -> None:
    """The index agrees with itself and with the packs, whatever was done to the store.

    Every segment follows the one before, every extent's frame is in its pack and of its chunk,
    every chunk row too, and the sums are right."""
    catalog, packs = store._catalog, store._backend.packs  # type: ignore[union-attr]
    index = catalog._index  # type: ignore[union-attr]
    totals = castore.format.index.Totals()
    mapped: dict[bytes, memoryview] = {}

    def frame_header(location: castore.model.Location) -> castore.format.frame.FrameHeader:
        pack_id, offset, stored, _ = location
        if pack_id not in mapped:
            assert txn.get(pack_id, db=index.packs) is not None, "a pack without its row"
            mapped[pack_id] = memoryview(Path(packs.path(pack_id)).read_bytes())
        frame = mapped[pack_id][offset : offset + stored]
        header = castore.format.frame.decode_frame_header(frame)
        assert header.header_bytes + header.payload_bytes == stored
        return header

    with index.gate, index.snapshot() as txn:
        for name, raw in txn.cursor(db=index.names):
            record = castore.format.index.decode_record(bytes(raw))
            totals.logical_bytes += record.size
            if record.is_inline:
                totals.inline_raw_bytes += record.size
                totals.inline_stored_bytes += record.stored_bytes
                continue
            end = chunks = 0
            for segment in catalog._raw_segments(txn, record.manifest):  # type: ignore[union-attr]
                decoded = castore.format.segment.decode_segment(segment)
                for base in (base for e in decoded for base in e.location.bases):
                    header = frame_header(base.location)
                    assert (header.chunk_id, header.bases) == (base.chunk_id, ())
                for extent in decoded:
                    assert extent.begin == end, f"a hole in {bytes(name)!r}"
                    header = frame_header(extent.location)
                    assert (header.chunk_id, header.bases) == extent.stored.kind
                    end, chunks = extent.end, chunks + 1
            assert (end, chunks) == (record.size, record.chunks), bytes(name)
        for chunk_id, raw in txn.cursor(db=index.chunks):
            row = castore.format.index.decode_chunk_row(bytes(raw))
            header = frame_header(row.location)
            assert (header.chunk_id, header.raw_bytes) == (bytes(chunk_id), row.raw_bytes)
            assert header.bases == row.bases
            totals.count_chunk(row, +1)
        counted = txn.get(b"totals", db=index.meta)
    assert counted is None or castore.format.index.Totals.decode(bytes(counted)) == totals


# ---------------------------------------------------------------- a process of the oracle


class Worker:
    """Puts, overwrites, deletes and reads random ones of the names, and writes down what it saw."""

    OPERATIONS_MIN, BUSY_S = 60, 60  # for a machine, or a server, that is too busy for any result

    def __init__(self, store_path: str, history: History, writer: int, names: list[str]) -> None:
        self.path = store_path
        self.history = history
        self.writer = writer
        self.names = names
        self.random = random.Random(writer)
        self.sequence = 0
        self.operations = 0
        self.store = castore.open(store_path, create=False, threads=2)

    def run(self, seconds: float, *, reopen: bool = True) -> None:
        verbs: list[Callable[[str], None]] = [self.put] * 8 + [self.delete] * 3
        verbs += [self.gets] * 8 + [self.ranges] * 5 + [self.read_file, self.get, self.exists]
        verbs += [self.put_if_absent, self.put_pair, self.listing]
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline + (
            self.BUSY_S if self.operations < self.OPERATIONS_MIN else 0
        ):
            if reopen and self.random.random() < 0.01:
                self.store.close()
                self.store = castore.open(self.path, create=False, threads=2)
            self.random.choice(verbs)(self.random.choice(self.names))
            self.operations += 1
        if reopen:
            self.store.close()

    # Each measures on its own: the clock is read right before the call and right after it.

    def put(self, name: str) -> None:
        version, value = self._new(name)
        way = self.random.randrange(4)
        start = time.monotonic_ns()
        if way == 0:
            with self.store.open(name, "wb") as file:
                for at in range(0, len(value), 70_000):
                    file.write(value[at : at + 70_000])
        elif way == 1:
            self.store.put(name, io.BytesIO(value))
        elif way == 2:
            with tempfile.NamedTemporaryFile() as source:
                source.write(value)
                source.flush()
                start = time.monotonic_ns()
                self.store.put(name, source.name)
        else:
            self.store.puts(name, value)
        self._saw(PUT, name, start, version)

    def put_if_absent(self, name: str) -> None:
        version, value = self._new(name)
        start = time.monotonic_ns()
        try:
            self.store.puts(name, value, if_absent=True)
        except NameExists:
            self._saw(PRESENT, name, start)
        else:
            end = self._saw(PUT, name, start, version)
            self._saw(ABSENT, name, start, end=end)

    def put_pair(self, name: str) -> None:
        other = self.random.choice(self.names)
        if other == name:
            return
        (version, value), (other_version, other_value) = self._new(name), self._new(other)
        start = time.monotonic_ns()
        with self.store.transaction() as transaction:
            transaction.puts(name, value)
            transaction.puts(other, other_value)
        end = self._saw(PUT, name, start, version)
        self._saw(PUT, other, start, other_version, end=end)

    def delete(self, name: str) -> None:
        start = time.monotonic_ns()
        try:
            self.store.delete(name)
        except NameNotFound:
            self._saw(ABSENT, name, start)
        else:
            end = self._saw(DELETE, name, start)
            self._saw(PRESENT, name, start, end=end)

    def gets(self, name: str) -> None:
        self._read(name, lambda: check_value(name, self.store.gets(name)))

    def ranges(self, name: str) -> None:
        def read() -> Version:
            spans = []
            for _ in range(self.random.randrange(1, 4)):
                begin = self.random.randrange(0, 400_000)
                spans.append((begin, begin + self.random.choice((1, 100, 4096, 200_000))))
            head, *parts = self.store.gets_many(name, [(0, HEADER_BYTES), *spans])
            version, _ = version_in(name, head)
            value = value_of(name, version)
            for (begin, end), part in zip(spans, parts, strict=True):
                if part != value[begin:end]:
                    raise Torn(f"{name}: [{begin}, {end}) is not of {version}")
            return version

        self._read(name, read)

    def read_file(self, name: str) -> None:
        start = time.monotonic_ns()
        try:
            file = self.store.open(name)
        except NameNotFound:
            self._saw(ABSENT, name, start)
            return
        # The version is the one of when it was opened, however long it is read.
        end = time.monotonic_ns()
        with file:
            parts = []
            while part := file.read(self.random.choice((1000, 70_000))):
                parts.append(part)
                time.sleep(0.0005)
            self._saw(READ, name, start, check_value(name, b"".join(parts)), end=end)

    def get(self, name: str) -> None:
        def read() -> Version:
            with tempfile.TemporaryDirectory() as folder:
                target = os.path.join(folder, "file")
                self.store.get(name, target)
                return check_value(name, Path(target).read_bytes())

        self._read(name, read)

    def exists(self, name: str) -> None:
        start = time.monotonic_ns()
        self._saw(PRESENT if self.store.exists(name) else ABSENT, name, start)

    def listing(self, _: str) -> None:
        start = time.monotonic_ns()
        found = set(self.store.names())
        end = time.monotonic_ns()
        for name in self.names:
            self._saw(PRESENT if name in found else ABSENT, name, start, end=end)
        if not found <= set(self.names):
            raise Torn(f"names that nobody put: {found - set(self.names)}")

    def _read(self, name: str, read: Callable[[], Version]) -> None:
        start = time.monotonic_ns()
        try:
            version = read()
        except NameNotFound:
            self._saw(ABSENT, name, start)
        else:
            self._saw(READ, name, start, version)

    def _new(self, name: str) -> tuple[Version, bytes]:
        self.sequence += 1
        version = Version(self.writer, self.sequence)
        return version, value_of(name, version)

    def _saw(
        self,
        kind: int,
        name: str,
        start: int,
        version: Version | None = None,
        *,
        end: int | None = None,
    ) -> int:
        end = time.monotonic_ns() if end is None else end
        self.history.add(Event(kind, self.names.index(name), start, end, version))
        return end


def work(store_path: str, history_path: str, writer: int, seconds: float, names: int) -> None:
    history = History(history_path)
    worker = Worker(store_path, history, writer, [f"names/{i:02}" for i in range(names)])
    worker.run(seconds)
    history.close()
    print(worker.operations)


# ---------------------------------------------------------------- a process that is killed


def keep_putting(store_path: str, writer: int, threads: int) -> None:
    """Put and delete until killed, saying before each what is tried and after each that it is
    acknowledged. Packs are rotated early and objects staged early, to be killed in that too."""
    make_everything_small()
    store = castore.open(store_path, chunk_bytes_avg=2816, threads=2)

    def run(thread: int) -> None:
        choose = random.Random(f"{writer} {thread}")
        sequence = 0
        while True:
            sequence += 1
            version = Version(writer, thread << 20 | sequence)
            name = f"killed/{thread}/{choose.randrange(8)}"
            if choose.random() < 0.15:
                say("delete", name)
                try:
                    store.delete(name)
                except NameNotFound:
                    say("absent", name)
                else:
                    say("deleted", name)
                continue
            say("put", name, *version)
            way = choose.random()
            value = value_of(name, version)
            if way < 0.3:
                store.put(name, io.BytesIO(value))
            elif way < 0.5:
                with store.open(name, "wb") as file:
                    file.write(value)
            else:
                store.puts(name, value)
            say("done", name, *version)

    others = [threading.Thread(target=run, args=(i,), daemon=True) for i in range(1, threads)]
    for other in others:
        other.start()
    run(0)


def make_everything_small() -> None:
    """Segments, batches of rows and packs of a size that a small object fills."""
    castore.format.segment.SEGMENT_EXTENTS_MAX = 8  # type: ignore[misc]
    castore.local.session.ROWS_MAX = 24
    castore.local.session.SEGMENTS_MAX = 3
    castore.local.packs.PACK_BYTES_MAX = 300_000


def say(*words: Any) -> None:
    os.write(1, json.dumps(words).encode() + b"\n")


class Expected:
    """What a store that was written to by processes that were killed may hold."""

    family: str | None = None  # the name that all values are of, where objects are copied

    def __init__(self) -> None:
        self.settled: dict[str, Version | None] = {}
        self.tried: dict[str, list[Version | None]] = {}
        self.acknowledged = 0

    def follow(self, lines: Iterable[bytes]) -> None:
        """Take in what a process said. Its last line may be cut short by nothing: a line is
        written in one piece."""
        for line in lines:
            verb, name, *version = json.loads(line)
            if verb in ("put", "delete"):
                self.tried[name] = [Version(*version) if version else None]
            else:
                self.settled[name] = Version(*version) if version else None
                self.acknowledged += 1
                del self.tried[name]

    def check(self, store: castore.Store) -> None:
        """Every acknowledged object is intact, and nothing is half there. What was being tried
        when its process died has happened or not; from here on, that is settled."""
        self.check_below("", store)
        logical = sum(info.size for info in store.list())
        if store.stats().logical_bytes != logical:
            raise AssertionError("the totals do not add up")

    def check_below(self, prefix: str, store: castore.Store) -> None:
        """The same of the names with this prefix, all of which this knows; others may change
        meanwhile."""
        family = self.family
        names = list(store.names(prefix))
        found = {name: check_value(family or name, store.gets(name)) for name in names}
        for name in {*self.settled, *self.tried, *found}:
            allowed = [self.settled.get(name), *self.tried.get(name, [])]
            if found.get(name) not in allowed:
                raise AssertionError(f"{name} is {found.get(name)}, and should be of {allowed}")
            if name in found and store.info(name).size != len(
                value_of(family or name, found[name])
            ):
                raise AssertionError(f"{name} has another size in its record")
        self.settled = dict.fromkeys(self.settled, None) | dict(found)
        self.tried = {}


# ---------------------------------------------------------------- killed at every step


class Steps:
    """Counts the calls by which a process changes the disk, and dies at the one it is told, or is
    sent another signal."""

    signal = signal.SIGKILL

    def __init__(self, die_at: int, *, torn: bool = False) -> None:
        self.count = 0
        self.die_at = die_at
        self.torn = torn
        self.names: list[str] = []

    def install(self) -> None:
        for module, name in (
            (os, "open"), (os, "mkdir"), (os, "link"), (os, "unlink"), (os, "write"),
            (os, "pwrite"), (os, "pwritev"), (os, "fsync"), (fcntl, "flock"), (lmdb, "open"),
        ):  # fmt: skip
            setattr(module, name, self._counted(getattr(module, name), name))
        watch_commits(lambda: self.step("before commit"), lambda: self.step("after commit"))

    def step(self, name: str) -> bool:
        """Whether this is the one to die in, after some of it."""
        self.names.append(name)
        self.count += 1
        if self.count == self.die_at:
            if self.torn and name == "pwritev":
                return True
            os.kill(os.getpid(), self.signal)
        return False

    def _counted(self, call: Callable[..., Any], name: str) -> Callable[..., Any]:
        def counted(*args: Any, **options: Any) -> Any:
            if name == "write" and args[0] == 1:
                return call(*args)
            if name == "open" and len(args) > 1 and not args[1] & os.O_CREAT:
                return call(*args, **options)
            if self.step(name):
                fd, parts, offset = args
                whole = b"".join(parts)
                os.pwrite(fd, whole[: len(whole) // 2], offset)
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **options)

        return counted


class WatchedEnvironment:
    """An LMDB environment whose commits are announced. `before` may raise an error in place of
    the commit, which is then aborted."""

    def __init__(
        self, environment: Any, before: Callable[[], Any], after: Callable[[], Any]
    ) -> None:
        self._environment = environment
        self._before = before
        self._after = after

    def __getattr__(self, name: str) -> Any:
        return getattr(self._environment, name)

    def begin(self, *args: Any, **options: Any) -> Any:
        transaction = self._environment.begin(*args, **options)
        if not (options.get("write") or args[2:3] == (True,)):
            return transaction
        return WatchedTransaction(transaction, self._before, self._after)


class WatchedTransaction:
    def __init__(
        self, transaction: Any, before: Callable[[], Any], after: Callable[[], Any]
    ) -> None:
        self._transaction = transaction
        self._before = before
        self._after = after

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transaction, name)

    def __enter__(self) -> WatchedTransaction:
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if error is not None:
            self._transaction.abort()
        else:
            self.commit()

    def commit(self) -> None:
        try:
            self._before()
        except BaseException:
            self._transaction.abort()
            raise
        self._transaction.commit()
        self._after()


def watch_commits(
    before: Callable[[], Any], after: Callable[[], Any] = lambda: None
) -> Callable[[], None]:
    """Announce the commits of every environment that is opened from now on; returns what ends
    that."""
    opened = lmdb.open

    def watched(*args: Any, **options: Any) -> WatchedEnvironment:
        return WatchedEnvironment(opened(*args, **options), before, after)

    def end() -> None:
        lmdb.open = opened

    lmdb.open = watched
    return end


def scenario(store_path: str) -> None:
    """Everything that writes, once: what it says can be checked by `Expected`."""
    make_everything_small()
    sequence = iter(range(1, 1000))

    def put(store: castore.Store | castore.Transaction, name: str, pieces: int = -1) -> Version:
        # The version chooses the value: take one of the size that is wanted.
        wanted = {-1: (0, 3500), 0: (5000, 60_000), 1: (90_000, 1 << 30)}[pieces]
        version = next(
            version
            for version in (Version(1, n) for n in sequence)
            if wanted[0] <= len(value_of(name, version)) < wanted[1]
        )
        if isinstance(store, castore.Store):
            say("put", name, *version)
        store.puts(name, value_of(name, version))
        if isinstance(store, castore.Store):
            say("done", name, *version)
        return version

    with castore.open(store_path, chunk_bytes_avg=2816, threads=1) as store:
        for name, pieces in (("inline", -1), ("chunk", 0), ("large", 1), ("chunk", 0)):
            put(store, name, pieces)
        say("delete", "chunk")
        store.delete("chunk")
        say("deleted", "chunk")
    with castore.open(store_path, threads=1) as store:
        say("begin")
        with store.transaction() as transaction:
            done = [(name, put(transaction, name, n)) for n, name in enumerate("xyz", start=-1)]
            transaction.delete("inline")
            say("together", [["inline"], *([name, *version] for name, version in done)])
        say("committed")
        put(store, "large", 1)


def run_steps(store_path: str, steps: Steps, say_to: int) -> None:
    os.dup2(say_to, 1)
    steps.install()
    scenario(store_path)
    say("count", steps.count, steps.names)
    os._exit(0)


def kill_at_every_step(folder: str, first: int, last: int, stride: int, torn: int) -> None:
    """For each step of the scenario: a process that dies there, then one that opens the store and
    checks it. Prints the steps that failed, and how many there were."""
    failed: list[Any] = []
    tried = 0
    for at in range(first, last, stride):
        path = os.path.join(folder, f"{at}")
        steps = Steps(at, torn=bool(torn))
        said, status = in_child(lambda fd, p=path, s=steps: run_steps(p, s, fd))
        tried += 1
        finished = status == 0
        if not finished and status != -signal.SIGKILL:
            failed.append([at, "the scenario failed", status, said.decode()[-2000:]])
        report, status = in_child(lambda fd, p=path, s=said: check_scenario(p, s, fd))
        if status != 0:
            failed.append([at, status, report.decode()[-2000:]])
        if finished:
            break
    print(json.dumps({"tried": tried, "finished": finished, "failed": failed}))


def check_scenario(path: str, said: bytes, report_to: int) -> None:
    os.dup2(report_to, 1)
    os.dup2(report_to, 2)
    expected = Expected()
    together: list[Any] = []
    in_transaction = False
    for line in said.splitlines():
        words = json.loads(line)
        if words[0] == "together":
            together = words[1]
        elif words[0] == "begin":
            in_transaction = True
        elif words[0] == "committed":
            for name, *version in together:
                expected.settled[name] = Version(*version) if version else None
            together, in_transaction = [], False
        elif words[0] != "count":
            expected.follow([line])
    with castore.open(path, chunk_bytes_avg=2816, threads=1) as store:
        if together:
            published = store.exists("x")
            for name, *version in together:
                if published:
                    expected.settled[name] = Version(*version) if version else None
        elif in_transaction and store.exists("x"):
            raise AssertionError("a transaction was visible before its end")
        expected.check(store)
        version = Version(2, 1)
        for name in ("inline", "again", "large"):
            store.puts(name, value_of(name, version))
            expected.settled[name] = version
        expected.check(store)
    with castore.open(path, create=False, threads=1) as store:
        expected.check(store)


def in_child(run: Callable[[int], None], *, seconds: int = 60) -> tuple[bytes, int]:
    """What a forked process wrote to the descriptor it is given, and how it ended: with 0, with 1
    and a traceback, or by a signal, which is SIGALRM when it hangs."""
    return await_child(*fork_child(run, seconds=seconds))


def fork_child(run: Callable[[int], None], *, seconds: int = 60) -> tuple[int, int]:
    """The same in two steps, so that others may run beside it: its pid, and what to read from."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(seconds)
            os.close(reading)
            run(writing)
            status = 0
        except BaseException:
            os.write(writing, traceback.format_exc().encode())
        finally:
            os._exit(status)
    os.close(writing)
    return pid, reading


def await_child(pid: int, reading: int) -> tuple[bytes, int]:
    with open(reading, "rb") as file:
        said = file.read()
    _, status = os.waitpid(pid, 0)
    return said, os.waitstatus_to_exitcode(status)


# ---------------------------------------------------------------- running the programs


@contextlib.contextmanager
def fast_folder(otherwise: Path) -> Iterator[Path]:
    """In memory where that is possible: what a killed process has written is there all the same."""
    if not os.access("/dev/shm", os.W_OK):
        yield otherwise
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


PROGRAMS = {"work": work, "keep_putting": keep_putting, "kill_at_every_step": kill_at_every_step}


def command(verb: str, *args: Any) -> list[str]:
    """The command line that runs one of PROGRAMS with these arguments."""
    return [sys.executable, os.path.abspath(__file__), verb, json.dumps(args)]


def python(program: str, *args: Any) -> list[str]:
    """The command line of a Python program."""
    return [sys.executable, "-c", program, *map(str, args)]


def run_program(program: str, *args: Any, seconds: float = 60) -> str:
    """What a Python program prints that succeeds, in a process that does not hang."""
    with subprocess.Popen(
        python(program, *args),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            said, errors = process.communicate(timeout=seconds)
        finally:
            # Children of its own that hang, too.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, f"it ended with {process.returncode}: {errors}"
    return said


def steps_report(command: list[str], *, least: int, seconds: float = 1000) -> dict[str, Any]:
    """What a program reports that was at all steps of a scenario, every how-manieth of `least` or
    more, and found nothing wrong."""
    done = subprocess.run(
        command, env=environment(), capture_output=True, timeout=seconds, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert report["failed"] == []
    assert report["finished"], "there are more steps than were tried"
    assert report["tried"] > least, "there are fewer steps than there should be"
    return report


def environment() -> dict[str, str]:
    """For such a command: it finds the castore that is being tested."""
    root = os.path.dirname(os.path.dirname(os.path.abspath(castore.__file__)))
    return {**os.environ, "PYTHONPATH": with_children(root)}


if __name__ == "__main__":
    PROGRAMS[sys.argv[1]](*json.loads(sys.argv[2]))
