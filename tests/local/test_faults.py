"""Disks that are full or fail, descriptors and memory that run out: typed errors, and a store that
goes on when the fault has passed."""

from __future__ import annotations

import errno
import io
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lmdb
import oracle
import pytest
from kept import KEPT, check, some_bytes

import castore
from castore.cli.exits import describe
from castore.errors import (
    FormatError,
    IndexCorrupt,
    PackPoisoned,
    SourceChanged,
    StoreFull,
    StoreIOError,
    StoreLocked,
)
from castore.format.index import manifest_of
from castore.local import folder as folders
from castore.local.catalog import LocalCatalog
from castore.stream import sourcefile
from castore.system.lmdb_env import Index
from castore.system.lmdb_errors import typed
from castore.system.mapping import Mapping

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[castore.Store]:
    with castore.open(tmp_path / "store", chunk_bytes_avg=2816, threads=1) as store:
        store.puts("kept", KEPT)
        store.puts("inline", b"inline")
        yield store


# ---- writes and syncs that fail -----------------------------------------------------------------


class FailingSync:
    """fsync of a file whose path ends with `end` fails while `failing`; all calls are kept."""

    def __init__(self, patch: pytest.MonkeyPatch, end: str = ".pack") -> None:
        self.failing = False
        self.calls: list[tuple[int, str]] = []  # (inode, path)
        self.end = end
        self._real = os.fsync
        patch.setattr(os, "fsync", self)

    def __call__(self, fd: int) -> None:
        path = os.readlink(f"/proc/self/fd/{fd}")
        if path.endswith(self.end):
            self.calls.append((os.fstat(fd).st_ino, path))
            if self.failing:
                raise OSError(errno.EIO, "injected")
        self._real(fd)


def test_a_failed_fsync_is_never_repeated(
    store: castore.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync = FailingSync(monkeypatch)
    sync.failing = True
    with pytest.raises(PackPoisoned) as caught:
        store.puts("lost", some_bytes(50_000, 2))
    assert isinstance(caught.value.__cause__, OSError)
    assert len(sync.calls) == 1
    poisoned = sync.calls[0]
    sync.failing = False
    store.puts("next", some_bytes(50_000, 3))
    store.puts("again", some_bytes(50_000, 2))
    assert sync.calls.count(poisoned) == 1
    assert {path for _, path in sync.calls[1:]} != {poisoned[1]}
    assert not store.exists("lost")
    # What was durable in it before stays readable.
    check(store, next=some_bytes(50_000, 3), again=some_bytes(50_000, 2))
    assert sync.calls.count(poisoned) == 1


def test_all_puts_with_frames_in_a_poisoned_pack_fail(
    store: castore.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Since the failed fsync nobody knows which of its pages reached the disk."""
    monkeypatch.setattr("castore.stream.writer.BATCHES_MAX", 0)
    monkeypatch.setattr("castore.stream.writer.BATCH_BYTES", 16_384)
    sync = FailingSync(monkeypatch)
    files = [store.open(f"open/{i}", "wb") for i in range(3)]
    for i, file in enumerate(files):
        file.write(some_bytes(200_000, 10 + i))
    sync.failing = True
    with pytest.raises(PackPoisoned):
        files[0].close()
    sync.failing = False
    with pytest.raises(PackPoisoned):
        files[1].close()
    # One that goes on writes the rest elsewhere, but what it wrote before is gone.
    with pytest.raises(PackPoisoned):  # noqa: PT012
        files[2].write(some_bytes(200_000, 30))
        files[2].close()
    assert len({path for _, path in sync.calls}) == len(sync.calls)
    assert list(store.names("open/")) == []
    check(store)


def test_a_put_that_was_durable_before_the_fsync_that_failed(
    store: castore.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sync for another put has covered its frames: it is whole."""
    monkeypatch.setattr("castore.stream.writer.BATCHES_MAX", 0)
    monkeypatch.setattr("castore.stream.writer.BATCH_BYTES", 16_384)
    sync = FailingSync(monkeypatch)
    first = store.open("first", "wb")
    first.write(some_bytes(200_000, 40))
    store.puts("second", some_bytes(5000, 41))  # syncs what first has written so far
    sync.failing = True
    with pytest.raises(PackPoisoned):
        store.puts("third", some_bytes(5000, 42))
    sync.failing = False
    file_can_end = True
    try:
        first.close()
    except PackPoisoned:
        file_can_end = False  # its last frames came after
    assert store.exists("first") == file_can_end
    also = {"second": some_bytes(5000, 41)}
    if file_can_end:
        also["first"] = some_bytes(200_000, 40)
    check(store, **also)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_writes_that_fail_in_the_middle(
    store: castore.Store, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    real = os.pwritev
    failing = [True]

    def pwritev(fd: int, parts: Any, offset: int) -> int:
        if failing[0]:
            whole = b"".join(parts)
            if len(whole) < 2000:
                raise OSError(code, os.strerror(code))
            failing.append(True)
            return os.pwrite(fd, whole[: len(whole) // 2], offset)
        return real(fd, parts, offset)

    monkeypatch.setattr(os, "pwritev", pwritev)
    with pytest.raises(PackPoisoned if code == errno.EIO else StoreFull):
        store.puts("lost", some_bytes(50_000, 5))
    assert len(failing) > 1
    failing[0] = False
    check(store)


def test_short_writes_are_continued(store: castore.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwritev

    def pwritev(fd: int, parts: Any, offset: int) -> int:
        some = b"".join(parts)[:1000]
        return real(fd, [some], offset)

    monkeypatch.setattr(os, "pwritev", pwritev)
    value = some_bytes(80_000, 6)
    store.puts("short", value)
    monkeypatch.undo()
    check(store, short=value)


@pytest.mark.parametrize("step", ["open", "flock", "fsync", "mkdir"])
def test_a_pack_that_can_not_be_made(
    store: castore.Store, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """No descriptor, file or lock of it stays behind."""
    store.close()
    store = castore.open(store.path, create=False, threads=1)
    before = len(os.listdir("/proc/self/fd"))
    packs = set(Path(store.path).rglob("*.pack"))
    module: Any = oracle.fcntl if step == "flock" else os
    real = getattr(module, step)

    def fails(*args: Any, **options: Any) -> Any:
        target = args[0]
        path = os.readlink(f"/proc/self/fd/{target}") if isinstance(target, int) else target
        if "/packs" in str(path) and (step != "open" or args[1] & os.O_CREAT):
            raise OSError(errno.EIO, "injected")
        return real(*args, **options)

    monkeypatch.setattr(module, step, fails)
    if step == "mkdir":
        for folder in Path(store.path).glob("packs/*"):
            if not list(folder.iterdir()):
                folder.rmdir()
    failures = 0
    for i in range(3):
        try:
            store.puts(f"lost/{i}", some_bytes(50_000, i + 60))
        except StoreIOError:
            failures += 1
    assert failures == 3 or (step == "mkdir" and failures > 0)
    assert len(os.listdir("/proc/self/fd")) == before
    assert step == "mkdir" or set(Path(store.path).rglob("*.pack")) == packs
    monkeypatch.undo()
    store.delete_prefix("lost/")
    check(store)
    store.close()


# ---- descriptors, memory, address space ---------------------------------------------------------


def test_no_descriptors_left(store: castore.Store, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(some_bytes(200_000, 9))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    codes: list[int | None] = []
    for room in range(5):
        store.close()
        store = castore.open(store.path, create=False, threads=1)
        store.gets("inline")
        used = max(map(int, os.listdir("/proc/self/fd")))
        spare = [os.open("/dev/null", os.O_RDONLY)]
        while spare[-1] < used:
            spare.append(os.open("/dev/null", os.O_RDONLY))
        before = len(os.listdir("/proc/self/fd"))
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + 1 + room, hard))
        try:
            store.put("file", source)
        except OSError as error:
            codes.append(error.errno)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        open_now = len(os.listdir("/proc/self/fd"))
        # The pack that is written to, and the journal.
        assert open_now - before <= (2 if store.exists("file") else 1)
        for fd in spare:
            os.close(fd)
        if store.exists("file"):
            assert store.gets("file") == source.read_bytes()
            store.delete("file")
        check(store)
    assert codes
    assert set(codes) == {errno.EMFILE}
    store.close()


def test_who_finds_no_descriptors_left_is_not_taken_for_another_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By who has the store open; nor are all others, for as long as it then has it open itself."""
    folder = tmp_path / "store"
    castore.open(folder).close()
    lock = folder / "castore.lock"
    said = lock.read_bytes()

    def fails(path: str) -> str:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), path)

    with monkeypatch.context() as patched:
        patched.setattr(folders, "_read_text", fails)
        with pytest.raises(StoreIOError, match=f"{lock}: Too many open files$") as caught:
            castore.open(folder)
    assert caught.value.errno == errno.EMFILE
    assert lock.read_bytes() == said
    with castore.open(folder) as store:
        assert store.check(True).clean


def test_a_check_that_finds_no_descriptors_left_says_so(store: castore.Store) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert store.check().clean
    used = max(map(int, os.listdir("/proc/self/fd")))
    spare = [os.open("/dev/null", os.O_RDONLY)]
    while spare[-1] < used:
        spare.append(os.open("/dev/null", os.O_RDONLY))
    before = os.listdir("/proc/self/fd")
    said: list[StoreIOError] = []
    for room in range(8):
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + 1 + room, hard))
        try:
            assert store.check().clean
        except StoreIOError as error:
            said.append(error)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert os.listdir("/proc/self/fd") == before
    assert all(store.path in str(error) for error in said)
    assert [error.errno for error in said].count(errno.EMFILE) > 1
    for fd in spare:
        os.close(fd)
    assert store.check().clean


def test_little_address_space(store: castore.Store) -> None:
    """Under `ulimit -v`, a smaller map serves as well."""
    program = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[2]), int(sys.argv[2])))
import castore
with castore.open(sys.argv[1], threads=1) as store:
    assert len(store.gets('kept')) == 300_000
    for i in range(20):
        store.puts(f'n{i}', bytes(3000))
    store.puts('large', bytes(range(256)) * 20_000)
    assert store.size('large') == 256 * 20_000
    store.delete_prefix('n', unbounded=True)
    store.delete('large')
"""
    for size in (1 << 30, 3 << 30):
        oracle.run_program(program, store.path, size)
    store.puts("more", b"more")
    check(store, more=b"more")


@pytest.mark.plain("it is measured what the command takes")
@pytest.mark.parametrize(
    "megabytes", [290, *(pytest.param(n, marks=pytest.mark.long) for n in range(270, 400, 10))]
)
def test_the_command_says_in_a_line_that_memory_is_short(
    store: castore.Store, tmp_path: Path, megabytes: int
) -> None:
    """However far it comes."""
    (tmp_path / "file").write_bytes(os.urandom(20_000_000))
    store.put("there", tmp_path / "file")
    for command in ("put file new", "backup copy", "get there got", "gc", "stats"):
        done = subprocess.run(
            ["bash", "-c", f"ulimit -v {megabytes}000; exec {sys.executable} -m castore {command}"],
            env=oracle.environment() | {"CASTORE_STORE": store.path},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            assert done.returncode == 1, (command, done)
            assert done.stderr.count("\n") == 1, (command, done)
            assert re.search("memory|no address space", done.stderr), (command, done)
    assert store.check(read_data=True).exit_code == 0


@pytest.mark.parametrize("code", [errno.EAGAIN, errno.ENOMEM])
def test_an_index_that_gets_no_memory_says_so(code: int) -> None:
    error = typed(OSError(code, "mdb_env_copyfd3"), "/there/index")
    assert isinstance(error, StoreIOError)
    assert error.errno == errno.ENOMEM
    assert "not enough memory" in str(error)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        # a module's library that finds no room when it is first imported, which may be late
        ImportError("/lib/math.cpython-311.so: failed to map segment from shared object"),
        ImportError("libz.so.1: cannot open shared object file: Cannot allocate memory"),
        RuntimeError("can't start new thread"),
        OSError(errno.ENOMEM, os.strerror(errno.ENOMEM), "/there/a.pack"),
    ],
    ids=str,
)
def test_each_way_python_tells_of_a_shortage_has_its_remedy(error: Exception) -> None:
    code, said = describe(error)
    assert code == 1
    assert re.search("memory", said), said
    assert "ulimit" in said
    assert "unexpected" not in said
    assert "unexpected" in describe(ImportError("no module named lmdb"))[1]


def test_an_index_that_does_not_open_is_named_once(
    store: castore.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise lmdb.Error("mdb_env_open", errno.EIO)

    store.close()
    with monkeypatch.context() as failing:
        failing.setattr(lmdb, "open", fails)
        with pytest.raises(StoreIOError, match="the index") as raised:
            castore.open(store.path)
    assert str(raised.value).count("the index") == 1


def test_a_shortage_has_its_remedy_once(
    store: castore.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def fails(path: str, *arguments: Any, **options: Any) -> int:
        if str(path).endswith(".log") and not arguments[0] & os.O_RDWR:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM), path)
        return real(path, *arguments, **options)

    with monkeypatch.context() as failing:
        failing.setattr(os, "open", fails)
        with pytest.raises(StoreIOError, match=r"\.log: .*ulimit") as raised:
            store.gc()
    assert str(raised.value).count("ulimit") == 1


def test_too_little_address_space_is_typed(store: castore.Store) -> None:
    program = """
import resource, sys
import castore, castore.store
used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (100 << 20), resource.RLIM_INFINITY))
try:
    castore.open(sys.argv[1])
except castore.errors.StoreIOError as error:
    assert 'ulimit' in str(error), error
else:
    raise AssertionError('it opened')
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
with castore.open(sys.argv[1]) as store:
    assert store.size('kept') == 300_000
"""
    oracle.run_program(program, store.path)


def test_an_index_that_outgrows_the_map_of_another_process(tmp_path: Path) -> None:
    """One with a small map adopts the larger size; where it can't, that is a typed error, and it
    goes on once it can."""
    program = """
import sys, threading
import castore, castore.system.lmdb_env
castore.system.lmdb_env.MAP_BYTES = 1 << 21
store = castore.open(sys.argv[1], threads=1)
castore.system.lmdb_env.MAP_BYTES = 1 << 28
store.puts('mine', b'1')
print('open', flush=True)
def read():
    for i in range(300):
        assert store.gets('mine') in (b'1', b'2')
        list(store.names('m'))
for line in sys.stdin:
    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads: thread.start()
    store.puts('mine', b'2')
    for thread in threads: thread.join()
    assert store.gets('mine') == b'2'
    assert store.size('theirs/0999') == 4000
    print('done', flush=True)
"""
    with subprocess.Popen(
        oracle.python(program, tmp_path / "store"),
        env=oracle.environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"open\n"
        with castore.open(tmp_path / "store") as store:
            for turn in range(2):
                with store.transaction() as transaction:
                    for i in range(1000):
                        transaction.puts(f"theirs/{i:04}", bytes([turn]) * 96 + some_bytes(3904, i))
                assert store.stats().index_bytes > 1 << 21
                process.stdin.write(b"\n")
                process.stdin.flush()
                said = process.stdout.readline()
                assert said == b"done\n", process.stderr.read().decode()
        process.stdin.close()
        assert process.wait(30) == 0, process.stderr.read().decode()


def test_an_index_that_outgrows_its_own_map(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("castore.system.lmdb_env.MAP_BYTES", 1 << 20)
    with castore.open(tmp_path / "store") as store:
        count = 0
        with pytest.raises(StoreFull, match="map"):  # noqa: PT012
            for count in range(2000):
                store.puts(f"{count:04}", some_bytes(3000, count))
        assert count > 100
        assert len(list(store.names())) == count
        assert store.gets("0000") == some_bytes(3000, 0)
    monkeypatch.undo()
    with castore.open(tmp_path / "store") as store:
        store.puts("more", b"more")
        assert len(list(store.names())) == count + 1


# ---- sources that change ------------------------------------------------------------------------


class Cut:
    """Progress that cuts the file short when a part of it was taken."""

    def __init__(self, path: Path, at: int, to: int) -> None:
        self.path, self.at, self.to, self.taken = path, at, to, 0

    def set_size(self, size: int) -> None:
        pass

    def relative_update(self, inc: int = 1) -> None:
        self.taken += inc
        if self.taken >= self.at:
            os.truncate(self.path, self.to)


@pytest.mark.parametrize("to", [0, 100, 5_000_000])
def test_a_file_that_is_cut_short_while_it_is_put(
    store: castore.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: int
) -> None:
    if not Mapping.guarded:
        pytest.skip("without the extension, files are read and not mapped")
    source = tmp_path / "source"
    for window in (64 << 20, 1 << 20):
        monkeypatch.setattr("castore.stream.writer.WINDOW_BYTES", window)
        source.write_bytes(some_bytes(12_000_000, 11))
        with pytest.raises(SourceChanged):
            store.put("cut", source, progress=Cut(source, 4_000_000, to))
        assert not store.exists("cut")
    check(store)


def test_a_file_that_its_disk_can_not_read_is_not_put_as_zeros(
    store: castore.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a page that it can't read, the mapping has zeros, and says so; the file is as long as it
    was."""

    class Lost(bytes):
        damaged = True

    def mapped(fd: int, length: int, *, offset: int) -> Lost:
        return Lost(os.pread(fd, length, offset))

    source = tmp_path / "source"
    source.write_bytes(some_bytes(1_000_000, 12))
    with monkeypatch.context() as patched:
        patched.setattr("castore.stream.writer.Mapping", mapped)
        with pytest.raises(OSError, match="source") as raised:
            store.put("lost", source)
    assert raised.value.errno == errno.EIO
    assert not store.exists("lost")
    check(store)


def manifests(store: castore.Store) -> set[int]:
    index: Index = store._catalog._index  # type: ignore[attr-defined]
    with index.gate, index.snapshot() as txn, txn.cursor(db=index.segments) as cursor:
        return {manifest_of(key) for key in cursor.iternext(values=False)}


def test_a_file_that_grows_or_changes_while_it_is_put(
    store: castore.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when it changes after it was hashed and before it is copied: what is stored is what was
    read at one moment, or nothing."""
    source = tmp_path / "source"
    source.write_bytes(some_bytes(9_000_000, 12))
    real = LocalCatalog.known
    changes = [0]

    def known(catalog: LocalCatalog, chunk_ids: Any) -> Any:
        changes[0] += 1
        if changes[0] <= changes_max:
            with open(source, "r+b") as file:
                for at in range(changes[0] % 7, 9_000_000, 40_000):
                    file.seek(at)
                    file.write(b"changed")
                file.seek(0, os.SEEK_END)
                file.write(b"more")
        return real(catalog, chunk_ids)

    monkeypatch.setattr(LocalCatalog, "known", known)
    before = manifests(store)
    for changes_max in (100, 2):
        changes[0] = 0
        if changes_max == 100:
            with pytest.raises(SourceChanged):
                store.put("changed", source)
            assert not store.exists("changed")
        else:
            info = store.put("changed", source)
            assert store.gets("changed") == source.read_bytes()[: info.size]
        assert changes[0] > 1
    assert len(manifests(store) - before) == 1  # and none of a reading that was given up
    monkeypatch.undo()
    assert b"changed" in store.gets("changed")
    oracle.check_index(store)
    store.delete("changed")
    check(store)


def test_a_file_that_only_grows_is_put_as_long_as_it_was(
    store: castore.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a log that is written to all the time."""
    source = tmp_path / "source"
    source.write_bytes(some_bytes(9_000_000, 14))
    real = LocalCatalog.known

    def known(catalog: LocalCatalog, chunk_ids: Any) -> Any:
        with open(source, "ab") as file:
            file.write(b"one more line\n")
        return real(catalog, chunk_ids)

    monkeypatch.setattr(LocalCatalog, "known", known)
    store.put("log", source)
    monkeypatch.undo()
    assert store.gets("log") == source.read_bytes()[:9_000_000]
    store.delete("log")
    check(store)


def test_a_file_that_changes_within_a_tick_of_the_clock_is_read_twice(
    store: castore.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its times do not tell then, and what is stored is what it was at one moment nevertheless."""
    source = tmp_path / "source"
    source.write_bytes(some_bytes(9_000_000, 13))
    before = source.read_bytes()
    after = b"changed" + before[7:-7] + b"changed"

    class Change(Cut):
        def relative_update(self, inc: int = 1) -> None:
            self.taken += inc
            if self.taken >= self.at:
                source.write_bytes(after)

    monkeypatch.setattr(sourcefile, "_facts", lambda status: status.st_size)
    monkeypatch.setattr(sourcefile, "is_young", lambda _: True)
    store.put("changed", source, progress=Change(source, 4_000_000, 0))
    monkeypatch.undo()
    assert store.gets("changed") == after
    store.delete("changed")
    check(store)


def test_a_file_object_that_fails(store: castore.Store) -> None:
    class Fails:
        def __init__(self) -> None:
            self.reads = 0

        def read(self, size: int) -> bytes:
            self.reads += 1
            if self.reads > 8:
                raise ConnectionResetError("the peer is gone")
            return some_bytes(size, self.reads)

    with pytest.raises(ConnectionResetError, match="the peer is gone"):
        store.put("lost", Fails())
    check(store)


def write_and_close(file: Any, value: bytes) -> None:
    file.write(value)
    file.close()


@pytest.mark.parametrize(
    ("place", "call", "error"),
    [
        ("castore.stream.session.chunk_id_of", 5, KeyboardInterrupt),
        ("castore.stream.session.chunk_id_of", 5, MemoryError),
        pytest.param(
            *("castore.stream.session.encode_frames", 1, MemoryError),
            marks=pytest.mark.plain("it is not asked for deltas"),
        ),
    ],
)
def test_an_error_from_within(
    store: castore.Store,
    monkeypatch: pytest.MonkeyPatch,
    error: type[BaseException],
    call: int,
    place: str,
) -> None:
    """It is what the caller gets, and nothing of the put is left in the way of the next."""
    calls = [0]
    module, name = place.rsplit(".", 1)
    real = getattr(__import__(module, fromlist=[name]), name)

    def fails(*args: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] >= call:
            raise error("injected")
        return real(*args, **options)

    monkeypatch.setattr(place, fails)
    with pytest.raises(error, match="injected"):
        store.puts("lost", some_bytes(300_000, 13))
    calls[0] = 0
    file = store.open("lost", "wb")
    with pytest.raises(error, match="injected"):
        write_and_close(file, some_bytes(9_000_000, 13))
    file.abort()
    with pytest.raises(error, match="injected"), store.transaction() as transaction:  # noqa: PT012
        calls[0] = 0
        transaction.puts("lost", some_bytes(300_000, 14))
    monkeypatch.undo()
    check(store)


# ---- rows that are gone -------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["first", "middle", "last", "all", "swapped"])
def test_an_object_whose_segments_are_not_all_there(
    store: castore.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    """No way of reading it ends well, or gives other bytes."""
    monkeypatch.setattr(
        "castore.format.segment.SegmentBuilder.full", property(lambda s: len(s) >= 8)
    )
    value = some_bytes(200_000, 15)
    before = segment_rows(store)
    store.puts("damaged", value)
    mine = {key: raw for key, raw in segment_rows(store).items() if key not in before}
    keys = sorted(mine)
    assert len(keys) > 5
    index = store._catalog._index  # type: ignore[union-attr]
    with index.write_gate, index.errors, index.begin() as txn:
        if which == "swapped":
            txn.put(keys[1], mine[keys[2]], db=index.segments)
            txn.put(keys[2], mine[keys[1]], db=index.segments)
        else:
            gone = {"first": keys[:1], "middle": keys[3:4], "last": keys[-1:], "all": keys}[which]
            for key in gone:
                txn.delete(key, db=index.segments)
    store.close()
    with castore.open(store.path, create=False, threads=2) as again:
        for read in (
            lambda: again.gets("damaged"),
            lambda: again.open("damaged").read(),
            lambda: again.get("damaged", tmp_path / "target"),
            lambda: again.get("damaged", io.BytesIO()),
        ):
            with pytest.raises((IndexCorrupt, FormatError)):
                read()
            environment = again._catalog._index._env  # type: ignore[union-attr]
            assert str(os.getpid()) not in environment.readers(), "a snapshot is still open"
        assert not (tmp_path / "target").exists()
        for begin in range(0, 200_000, 10_000):
            try:
                assert again.gets("damaged", (begin, begin + 100)) == value[begin : begin + 100]
            except (IndexCorrupt, FormatError):
                continue
        again.puts("damaged", value)
        assert again.gets("damaged") == value
        assert again.open("damaged").read() == value
        assert again.gets("kept") == KEPT


def segment_rows(store: castore.Store) -> dict[bytes, bytes]:
    index = store._catalog._index  # type: ignore[union-attr]
    with index.gate, index.snapshot() as txn:
        return {bytes(key): bytes(raw) for key, raw in txn.cursor(db=index.segments)}


# ---- other pid namespaces -----------------------------------------------------------------------

SHARE = """
import sys, castore
with castore.open(sys.argv[1]) as store:
    assert store.gets('inline') == b'inline'
    print('shared')
"""


def test_another_pid_namespace_is_refused(store: castore.Store) -> None:
    """LMDB would take the readers there for dead, and give their pages away."""
    lock = Path(store.path) / "castore.lock"
    ours = lock.read_bytes()
    lock.write_bytes(b"0123456789abcdef01 4026530000".ljust(len(ours)))
    with pytest.raises(AssertionError, match="StoreLocked"):
        oracle.run_program(SHARE, store.path)
    lock.write_bytes(ours)
    assert oracle.run_program(SHARE, store.path) == "shared\n"
    # When nobody has it open, what the file says is of the past.
    store.close()
    lock.write_bytes(b"0123456789abcdef01 4026530000".ljust(len(ours)))
    assert oracle.run_program(SHARE, store.path) == "shared\n"
    assert lock.read_bytes() == ours


def test_a_real_pid_namespace(store: castore.Store) -> None:
    unshare = ["unshare", "--pid", "--fork", "--mount-proc"]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode
    ):
        pytest.skip("namespaces can't be made here")
    command = [*unshare, *oracle.python(SHARE, store.path)]

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, env=oracle.environment(), capture_output=True, text=True, check=False
        )

    refused = run()
    assert refused.returncode == 1
    assert "StoreLocked" in refused.stderr
    assert "pid namespace" in refused.stderr
    store.puts("more", b"more")
    store.close()
    allowed = run()
    assert allowed.stdout == "shared\n", allowed.stderr
    with castore.open(store.path, create=False) as again:
        assert again.gets("more") == b"more"


def test_the_lock_refuses_in_this_process_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    castore.open(tmp_path / "store").close()
    program = """
import sys, castore
store = castore.open(sys.argv[1])
print('open', flush=True)
sys.stdin.readline()
"""
    with subprocess.Popen(
        oracle.python(program, tmp_path / "store"),
        env=oracle.environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        before = len(os.listdir("/proc/self/fd"))
        with monkeypatch.context() as patched:
            patched.setattr("castore.local.folder._pid_namespace", lambda: b"elsewhere")
            with pytest.raises(StoreLocked, match="namespace"):
                castore.open(tmp_path / "store")
        assert len(os.listdir("/proc/self/fd")) == before
        castore.open(tmp_path / "store").close()
        process.communicate(b"\n")
