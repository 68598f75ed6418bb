"""Objects read through file objects: as io.BytesIO would, on every kind of store."""

from __future__ import annotations

import gc
import io
import os
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stores import flip, packs

import castore
from castore.errors import ChunkCorrupt, InvalidName, InvalidRange, NameNotFound
from castore.stream import readahead
from castore.system.workers import Workers

SIZE = 400_000


def data_of(size: int = SIZE) -> bytes:
    """Compressible and not, by turns, with line ends."""
    rng = random.Random(5)
    return b"".join(
        rng.randbytes(300) + b"\n" + rng.randbytes(600).hex().encode()
        for _ in range(size // 1501 + 1)
    )[:size]


DATA = data_of()
RAW = random.Random(6).randbytes(SIZE)
# Long stretches that compress, and that are stored raw.
MIXED = b"".join(DATA[at : at + 20_000] + RAW[at : at + 60_000] for at in range(0, SIZE, 80_000))

offsets = st.one_of(
    st.integers(0, SIZE + 1000), st.sampled_from([0, SIZE, SIZE - 1, 65536, 2 * 65536])
)
sizes = st.one_of(
    st.integers(0, 3000), st.integers(0, SIZE + 100), st.sampled_from([65536, 131072])
)
steps = st.one_of(
    st.tuples(st.just("seek"), offsets),
    st.tuples(st.just("read"), sizes),
    st.tuples(st.just("read"), sizes),  # mostly on from where it is
    st.tuples(st.just("readinto"), sizes),
    st.tuples(st.just("readline"), st.integers(-1, 3000)),
    st.tuples(st.just("rest"), st.none()),
)


def do(file: Any, verb: str, argument: Any) -> Any:
    if verb == "rest":
        return file.read()
    if verb == "readinto":
        target = bytearray(argument)
        return file.readinto(target), bytes(target)
    return getattr(file, verb)(argument)


def small_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads take part in what is as small as these objects."""
    monkeypatch.setattr(readahead, "PARALLEL_BYTES", 10_000)
    monkeypatch.setattr(readahead.ChunkReader, "task_bytes", 20_000)


@pytest.mark.parametrize("data", [DATA, MIXED], ids=["data", "mixed"])
def test_any_reads_are_those_of_bytesio(
    any_store: castore.Store, monkeypatch: pytest.MonkeyPatch, data: bytes
) -> None:
    small_tasks(monkeypatch)
    any_store.puts("a", data)

    @settings(
        max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    @given(st.lists(steps, max_size=12))
    def check(asked: list[tuple[str, Any]]) -> None:
        with any_store.open("a") as file:
            other = io.BytesIO(data)
            for verb, argument in asked:
                assert do(file, verb, argument) == do(other, verb, argument)
                assert file.tell() == other.tell()

    check()


def test_threads_that_read_one_file_each_get_bytes_once(
    any_store: castore.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_tasks(monkeypatch)
    record = 500
    any_store.puts("a", b"".join(b"%0500d" % i for i in range(800)))
    found: list[bytes] = []

    def read(size: int) -> None:
        while part := file.read(size):
            found.extend(part[i : i + record] for i in range(0, len(part), record))

    with any_store.open("a") as file:
        threads = [threading.Thread(target=read, args=[n * record]) for n in (1, 30, 170, 300)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(found) == [b"%0500d" % i for i in range(800)]


def in_child(work: Callable[[], None]) -> int:
    """The status that a forked child ends with once it has done the work."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


class Gate:
    """Holds back what the threads decode."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened = threading.Event()
        self.entered = threading.Event()
        self.caller = threading.get_ident()
        chunks = readahead.ChunkReader.chunks

        def held_back(reader: Any, extents: Any, held: Any) -> Any:
            if threading.get_ident() != self.caller:
                self.entered.set()
                assert self.opened.wait(30)
            return chunks(reader, extents, held)

        monkeypatch.setattr(readahead.ChunkReader, "chunks", held_back)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    small_tasks(monkeypatch)
    monkeypatch.setattr(readahead, "PARALLEL_BYTES", 1 << 40)  # what is asked for is no thread's
    return Gate(monkeypatch)


def begin_to_read(file: Any) -> int:
    """Until something is read ahead; the bytes that were read."""
    assert file.read(5000) == DATA[:5000]
    at = 65536  # what the buffer got
    assert file.read(at - 5000 + 1) == DATA[5000 : at + 1]
    return at + 1


def test_a_child_that_is_forked_while_something_is_read_ahead(
    any_store: castore.Store, gate: Gate
) -> None:
    any_store.puts("a", DATA)
    with any_store.open("a") as file:
        at = begin_to_read(file)
        assert gate.entered.wait(10)

        def read_on() -> None:
            gate.opened.set()
            assert file.read() == DATA[at:]
            file.seek(at)
            assert file.read(100_000) == DATA[at : at + 100_000]

        assert in_child(read_on) == 0
        gate.opened.set()
        assert file.read() == DATA[at:]


def test_a_store_that_is_closed_while_something_is_read_ahead(
    any_store: castore.Store, gate: Gate
) -> None:
    any_store.puts("a", DATA)
    with any_store.open("a") as file:
        at = begin_to_read(file)
        assert gate.entered.wait(10)
        running = [*any_store._workers._pool._running]
        assert not all(thread.wait(0) for thread in running)
        gate.opened.set()
        any_store.close()
        assert all(thread.wait(0) for thread in running)  # its threads have ended
        assert file.read(100_000) == DATA[at : at + 100_000]
        assert file.read() == DATA[at + 100_000 :]


def test_a_file_that_is_closed_begins_nothing_more(
    any_store: castore.Store, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readahead.ChunkReader, "task_bytes", 5000)  # more tasks than threads
    any_store.puts("a", DATA)
    taken: list[int] = []
    with any_store.open("a") as file:
        begin_to_read(file)
        assert gate.entered.wait(10)
        window = file.raw._bytes._window
        futures = [task.decoded for task in window.tasks]
        file.close()
        taken = [future.cancelled() for future in futures]
        assert window.tasks == window.ready
    gate.opened.set()
    assert taken.count(False) <= any_store._workers.threads
    assert True in taken
    del file, window, futures
    gc.collect()


def test_how_much_is_read_ahead(store: castore.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """It doubles, up to the bound; nothing where reads are here and there."""
    monkeypatch.setattr(readahead, "PARALLEL_BYTES", 1 << 40)
    store.puts("a", DATA.hex().encode())
    ahead: list[int] = []
    submit = Workers.submit

    def count(workers: Any, task: Any, /, *arguments: Any, **keywords: Any) -> Any:
        extents = task.args[0]
        ahead.append(round((extents[-1].end - extents[0].begin) / 10_000))
        return submit(workers, task, *arguments, **keywords)

    monkeypatch.setattr(Workers, "submit", count)
    with store.open("a") as file:
        for at in (500_000, 100_000, 300_000, 0):
            file.seek(at)
            file.read(10_000)
        assert ahead == []
    with castore.open(store.path, threads=2, readahead_bytes=80_000) as bounded:
        with bounded.open("a") as file:
            file.raw.readinto(bytearray(10_000))
            for _ in range(30):
                file.raw.readinto(bytearray(10_000))
        assert ahead[0] == 2
        assert max(ahead) <= 9
    ahead.clear()
    with castore.open(store.path, readahead_bytes=0) as none, none.open("a") as file:
        while file.read(10_000):
            pass
    assert ahead == []


def test_a_seek_into_what_is_being_read_ahead(
    any_store: castore.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_tasks(monkeypatch)
    any_store.puts("a", DATA)
    with any_store.open("a") as file:
        first = begin_to_read(file)
        for at in range(first, SIZE, 25_000):  # past whole chunks of a task
            file.seek(at)
            assert file.read(100) == DATA[at : at + 100]


@pytest.mark.parametrize("text", [RAW, RAW[: SIZE // 2].hex().encode()], ids=["raw", "zstd"])
@pytest.mark.parametrize("step", [3000, 50_000])
def test_what_is_damaged_is_raised_when_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: bytes, step: int
) -> None:
    small_tasks(monkeypatch)
    with castore.open(tmp_path / "store", chunk_bytes_avg=2816) as store:
        store.puts("a", text)
    [pack] = packs(tmp_path / "store")
    flip(pack, pack.stat().st_size * 4)  # in the middle
    with castore.open(tmp_path / "store", threads=2) as store, store.open("a") as file:
        read = b""
        with pytest.raises(ChunkCorrupt):  # noqa: PT012
            while True:
                target = bytearray(step)
                count = file.readinto1(target)
                read += target[:count]
        assert SIZE * 0.4 < len(read) < SIZE * 0.6
        assert text.startswith(read)
        with pytest.raises(ChunkCorrupt):
            file.readinto1(bytearray(step))
        file.seek(SIZE - 1000)
        assert file.read() == text[-1000:]
        flip(pack, pack.stat().st_size * 4)
        file.seek(len(read))
        assert file.read(1000) == text[len(read) : len(read) + 1000]


def test_an_open_object_is_one_version(any_store: castore.Store) -> None:
    any_store.puts("a", DATA)
    with any_store.open("a") as file:
        begin_to_read(file)
        any_store.puts("a", DATA[::-1])
        file.seek(0)
        assert file.read() == DATA


def test_ranges_of_several_objects(any_store: castore.Store) -> None:
    """More of them than threads, each large enough to be shared out; an error is in its place."""
    values = {f"n{i}": DATA[i * 1000 :] for i in range(12)}
    for name, value in values.items():
        any_store.puts(name, value)
    wanted = [(name, (7, 900)) for name in values] + [(name, None) for name in values]
    found = any_store.gets_ranges([("absent", None), *wanted, ("n1", (5, 3))])
    assert isinstance(found[0], NameNotFound)
    assert isinstance(found[-1], InvalidRange)
    assert isinstance(found[2], InvalidRange)  # the others of its object
    assert found[1] == values["n0"][7:900]
    assert found[13] == values["n0"]
    assert any_store.gets_ranges([]) == []


def test_of_many_that_are_not_there_no_frames_are_kept(any_store: castore.Store) -> None:
    """A traceback and the server's answer are kilobytes for each."""
    any_store.puts("n", DATA)
    names = [f"absent/{i}" for i in range(20)]
    found = any_store.gets_ranges([("n", None), *((name, None) for name in names)])
    assert found[0] == DATA
    for name, error in zip(names, found[1:], strict=True):
        assert isinstance(error, NameNotFound)
        assert (error.name, str(error)) == (name, str(NameNotFound(name)))
        assert error.__traceback__ is None
        assert error.__context__ is error.__cause__ is None
    [alone] = any_store.gets_ranges([("absent", None)])
    assert isinstance(alone, NameNotFound)
    assert alone.__traceback__ is None


def test_many_small_objects_and_what_is_none(any_store: castore.Store) -> None:
    """More than are looked up in one step, the same twice, and what only its own read can tell."""
    values = {f"n/{i:03}": DATA[i : i + 30 * i] for i in range(150)} | {"large": DATA}
    with any_store.transaction() as transaction:
        for name, value in values.items():
            transaction.puts(name, value)
    wanted: list[tuple[str, Any]] = [(name, None) for name in values] * 2
    found = any_store.gets_ranges([*wanted, ("absent", None), ("", None), ("n/009", (3, 5))])
    assert found[: len(wanted)] == [*values.values()] * 2
    assert isinstance(found[-3], NameNotFound)
    assert isinstance(found[-2], InvalidName)
    assert found[-1] == values["n/009"][3:5]
    assert any_store.gets_ranges([("", None), *wanted])[1:] == [*values.values()] * 2
    assert isinstance(any_store.gets_ranges([(7, None), *wanted])[0], Exception)  # type: ignore[list-item]


def test_ranges_of_many_objects_of_all_sizes(any_store: castore.Store) -> None:
    sizes = (0, 1, 5000, 65_536, 65_537, 300_000)
    values = {f"n/{i:03}": (DATA * 3)[i : i + sizes[i % 6]] for i in range(120)}
    with any_store.transaction() as transaction:
        for name, value in values.items():
            transaction.puts(name, value)
    ranges: list[Any] = [(0, 0), (0, 1), (4990, 70_000), (299_999, 1 << 62), [], None, (1, 2, 3)]
    wanted: list[tuple[str, Any]] = [
        (name, ranges[(at + i) % 7]) for i, name in enumerate(values) for at in range(i % 3 + 1)
    ]
    bad = {name for name, byte_range in wanted if byte_range == (1, 2, 3)}
    for (name, byte_range), found in zip(wanted, any_store.gets_ranges(wanted), strict=True):
        if name in bad:
            assert isinstance(found, InvalidRange)
        else:
            begin, end = byte_range or (0, 1 << 62)
            assert found == values[name][begin:end]


def test_what_is_no_range_is_told_in_its_place(any_store: castore.Store) -> None:
    names = [f"n{i}" for i in range(9)]
    for name in names:
        any_store.puts(name, DATA)
    odd: list[Any] = [(0, 1.5), "ab", (5, 2), (-1, 3), 7, b"ab", (None, 3), object(), (1, 2)]
    found = any_store.gets_ranges(list(zip(names, odd, strict=True)))
    assert [type(each) for each in found[:-1]] == [InvalidRange] * 8
    assert found[-1] == DATA[1:2]


def test_of_many_names_that_no_object_can_have_each_is_told(any_store: castore.Store) -> None:
    found = any_store.gets_ranges([(f"/{i}", None) for i in range(70)])
    assert [type(each) for each in found] == [InvalidName] * 70


@pytest.mark.parametrize("bases", [True, False], ids=["deltas", "plain"])
def test_one_damaged_among_many_small_objects(tmp_path: Path, bases: bool) -> None:
    """Those that need its bytes have the error in their place, and all others are read."""
    values = {f"n/{i:03}": random.Random(i // 2).randbytes(9000) + b"%d" % i for i in range(100)}
    with castore.open(tmp_path / "store", delta=bases) as store:
        for name, value in values.items():
            store.puts(name, value)
    [pack] = packs(tmp_path / "store")
    flip(pack, pack.stat().st_size * 4)
    with castore.open(tmp_path / "store") as store:
        found = store.gets_ranges([(name, None) for name in values])
        bad = store.check(read_data=True)
    flip(pack, pack.stat().st_size * 4)
    failed = {name for name, each in zip(values, found, strict=True) if type(each) is ChunkCorrupt}
    read = [each for each in found if isinstance(each, bytes)]
    assert read == [value for name, value in values.items() if name not in failed]
    assert 0 < len(failed) <= 2
    assert failed == set(bad.damaged_names)


def test_threads_that_wait_for_each_other(
    any_store: castore.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of the threads has a large object, whose parts it would leave to another thread."""
    monkeypatch.setattr("castore.stream.chunkreader.PARALLEL_BYTES", 10_000)
    monkeypatch.setattr(type(any_store._backend.packs), "task_bytes", 20_000)
    wanted: list[tuple[str, None]] = [(f"n{i}", None) for i in range(20)]
    for name, _ in wanted:
        any_store.puts(name, DATA)
    assert any_store.gets_ranges(wanted) == [DATA] * 20
