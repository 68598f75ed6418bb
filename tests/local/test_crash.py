"""kill -9 and loss of power at any moment: what was acknowledged is there, nothing else is."""

from __future__ import annotations

import fcntl
import os
import random
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lmdb
import oracle
import pytest

import castore
from castore.format.frame import decode_frame_header
from castore.format.pack import PACK_HEADER_BYTES, decode_pack_header

# ---- killed at random ---------------------------------------------------------------------------


def kill_while_it_puts(store_path: Path, turn: int, expected: oracle.Expected) -> None:
    choose = random.Random(turn)
    with subprocess.Popen(
        oracle.command("keep_putting", str(store_path), turn, 1 + turn % 3),
        env=oracle.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        said = [process.stdout.readline()]
        reader = threading.Thread(target=lambda: said.extend(process.stdout))  # type: ignore[arg-type]
        reader.start()
        time.sleep(choose.random() * 0.25)
        process.kill()
        reader.join()
        errors = process.stderr.read()
    assert errors == b"", errors.decode()
    expected.follow(said)


def kill_again_and_again(folder: Path, kills: int) -> None:
    """One store goes through all of it: a crash may bring to light what an earlier one did."""
    expected = oracle.Expected()
    for turn in range(1, kills + 1):
        kill_while_it_puts(folder / "store", turn, expected)
        with castore.open(folder / "store", create=False, threads=2) as store:
            expected.check(store)
            version = oracle.Version(0, turn)
            store.puts("after", oracle.value_of("after", version))
            expected.settled["after"] = version
    assert expected.acknowledged > 2 * kills
    with castore.open(folder / "store", create=False) as store:
        expected.check(store)
        assert scan_packs(folder / "store") > 0


def scan_packs(store_path: Path) -> int:
    """Every pack begins with its header, and all frames that a commit may refer to parse; what
    follows the last whole frame of a pack whose writer was killed is nobody's. How many frames."""
    frames = 0
    for path in store_path.glob("packs/*/*.pack"):
        raw = path.read_bytes()
        if len(raw) < PACK_HEADER_BYTES:
            continue  # killed before it wrote the header
        assert decode_pack_header(raw)[1].hex() == path.stem
        at = PACK_HEADER_BYTES
        while raw[at : at + 4] == b"CFRM" and len(raw) - at >= 32:
            header = decode_frame_header(raw[at:])
            at += header.header_bytes + header.payload_bytes
            frames += at <= len(raw)
    return frames


def test_killed_at_random_moments(tmp_path: Path) -> None:
    kill_again_and_again(tmp_path, 5)


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_killed_at_three_hundred_random_moments(tmp_path: Path) -> None:
    kill_again_and_again(tmp_path, 300)


def test_expected_finds_what_is_lost_or_half_there(tmp_path: Path) -> None:
    """The judge of the tests above can say no."""
    version, other = oracle.Version(1, 1), oracle.Version(1, 2)
    with castore.open(tmp_path / "store") as store:
        store.puts("a", oracle.value_of("a", version))

        def expect(*lines: bytes) -> oracle.Expected:
            expected = oracle.Expected()
            expected.follow(lines)
            return expected

        acknowledged = b'["put", "a", 1, 1]', b'["done", "a", 1, 1]'
        expect(*acknowledged).check(store)
        expect(*acknowledged, b'["put", "a", 1, 2]').check(store)
        expect(*acknowledged, b'["put", "b", 1, 2]').check(store)
        for wrong in (
            [b'["put", "a", 1, 2]', b'["done", "a", 1, 2]'],
            [*acknowledged, b'["put", "b", 1, 2]', b'["done", "b", 1, 2]'],
            [*acknowledged, b'["delete", "a"]', b'["deleted", "a"]'],
            [],
        ):
            with pytest.raises(AssertionError):
                expect(*wrong).check(store)
        store.puts("a", oracle.value_of("a", version)[:-1] + b"?")
        with pytest.raises(oracle.Torn):
            expect(*acknowledged).check(store)
        assert other != version


# ---- killed at every step -----------------------------------------------------------------------


@pytest.fixture
def fast_folder(tmp_path: Path) -> Iterator[Path]:
    with oracle.fast_folder(tmp_path) as folder:
        yield folder


def kill_at_steps(folder: Path, first: int, stride: int, *, torn: bool) -> None:
    command = oracle.command(
        "kill_at_every_step", str(folder / "s"), first, 1000, stride, int(torn)
    )
    oracle.steps_report(command, least=100 // stride, seconds=280)


def test_killed_at_some_steps(fast_folder: Path) -> None:
    kill_at_steps(fast_folder, 1, 12, torn=False)


@pytest.mark.deltas
def test_killed_at_some_steps_of_deltas(fast_folder: Path) -> None:
    kill_at_steps(fast_folder, 2, 45, torn=False)


def test_killed_amid_writes(fast_folder: Path) -> None:
    kill_at_steps(fast_folder, 3, 18, torn=True)


@pytest.mark.long
@pytest.mark.parametrize("torn", [False, True])
def test_killed_at_every_step(fast_folder: Path, torn: bool) -> None:
    kill_at_steps(fast_folder, 1, 1, torn=torn)


# ---- what is durable when -----------------------------------------------------------------------


class Disk:
    """Watches how a process writes, and knows what of it a loss of power would leave: of a file
    the bytes of its last fsync, and of a folder the entries of its last fsync."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.files: dict[tuple[int, int], list[int]] = {}  # inode -> [bytes, durable bytes]
        self.entries: dict[str, bool] = {}  # path -> whether its folder was synced since
        self.fsyncs: list[str] = []
        self.commits = 0
        self.on_commit: list[Callable[[], None]] = []
        self._lock = threading.RLock()
        for name in ("open", "mkdir", "link", "rename", "unlink", "write", "pwritev", "fsync"):
            real = getattr(os, name)
            patch.setattr(os, name, self._watched(real, getattr(self, f"_{name}")))
        patch.setattr(lmdb, "open", self._watched(lmdb.open, self._lmdb_open))
        self.end = oracle.watch_commits(self._before_commit, self._after_commit)

    def durable_size(self, path: str | os.PathLike[str]) -> int:
        """-1 if the file itself might be gone."""
        path = os.path.realpath(path)
        above = path
        while len(above) > 1:
            if not self.entries.get(above, True):
                return -1
            above = os.path.dirname(above)
        status = os.stat(path)
        return self.files.get((status.st_dev, status.st_ino), [0, status.st_size])[1]

    def lost_by_power(self) -> list[str]:
        """Entries and files that would be lost or cut short."""
        lost = [path for path, durable in self.entries.items() if not durable]
        for path in self.entries:
            if os.path.isfile(path) and path.endswith((".pack", ".json")):
                size = os.stat(path).st_size
                if self.durable_size(path) < size:
                    lost.append(f"{path}: {self.durable_size(path)} of {size} bytes")
        return sorted(lost)

    def _watched(self, real: Callable[..., Any], note: Callable[..., None]) -> Callable[..., Any]:
        def watched(*args: Any, **options: Any) -> Any:
            result = real(*args, **options)
            with self._lock:
                note(result, *args, **options)
            return result

        return watched

    def _open(self, fd: int, path: Any, flags: int, *args: Any, **options: Any) -> None:
        if flags & os.O_CREAT and flags & os.O_EXCL:
            self._made(path)

    def _mkdir(self, _: None, path: Any, *args: Any, **options: Any) -> None:
        self._made(path)

    def _link(self, _: None, source: Any, target: Any, **options: Any) -> None:
        self._made(target)

    def _rename(self, _: None, source: Any, target: Any, **options: Any) -> None:
        self._made(target)

    def _unlink(self, _: None, path: Any, *, dir_fd: int | None = None) -> None:
        if dir_fd is not None:
            path = os.path.join(os.readlink(f"/proc/self/fd/{dir_fd}"), path)
        self.entries.pop(os.path.realpath(path), None)

    def _lmdb_open(self, _: Any, path: str, *args: Any, **options: Any) -> None:
        for name in ("data.mdb", "lock.mdb"):
            file = os.path.realpath(os.path.join(os.fsdecode(path), name))
            if name == "data.mdb":
                self.entries.setdefault(file, False)

    def _made(self, path: Any) -> None:
        self.entries[os.path.realpath(path)] = False

    def _write(self, written: int, fd: int, *args: Any) -> None:
        self._grew(fd)

    def _pwritev(self, written: int, fd: int, *args: Any) -> None:
        self._grew(fd)

    def _grew(self, fd: int) -> None:
        status = os.fstat(fd)
        self.files.setdefault((status.st_dev, status.st_ino), [0, 0])[0] = status.st_size

    def _fsync(self, _: None, fd: int) -> None:
        path = os.readlink(f"/proc/self/fd/{fd}")
        self.fsyncs.append(path)
        if os.path.isdir(path):
            for entry in self.entries:
                if os.path.dirname(entry) == path:
                    self.entries[entry] = True
            return
        status = os.fstat(fd)
        file = self.files.setdefault((status.st_dev, status.st_ino), [0, 0])
        file[1] = file[0] = status.st_size

    def _before_commit(self) -> None:
        with self._lock:
            self.commits += 1
            for call in self.on_commit:
                call()

    def _after_commit(self) -> None:
        pass


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    disk = Disk(monkeypatch)
    yield disk
    disk.end()


linux = pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="reads /proc")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments, batches of rows and packs that a small object fills."""
    monkeypatch.setattr("castore.format.segment.SEGMENT_EXTENTS_MAX", 8)
    monkeypatch.setattr("castore.local.session.ROWS_MAX", 24)
    monkeypatch.setattr("castore.local.session.SEGMENTS_MAX", 3)
    monkeypatch.setattr("castore.local.packs.PACK_BYTES_MAX", 300_000)


def write_everything(store: castore.Store) -> Iterator[dict[str, bytes | None]]:
    """All verbs that write, one after the other; what is acknowledged after each."""
    source = random.Random(11)
    held: dict[str, bytes | None] = {}
    for name, size in (("inline", 100), ("chunk", 5000), ("large", 900_000), ("chunk", 6000)):
        held[name] = source.randbytes(size)
        store.puts(name, held[name] or b"")
        yield held
    with store.transaction() as transaction:
        held |= {"t/1": source.randbytes(50), "t/2": source.randbytes(70_000), "inline": None}
        transaction.puts("t/1", held["t/1"] or b"")
        transaction.puts("t/2", held["t/2"] or b"")
        transaction.delete("inline")
    yield held
    store.copy("large", "again")
    held["again"] = held["large"]
    yield held
    with store.open("written", "wb") as file:
        held["written"] = (held["large"] or b"") + source.randbytes(40_000)
        file.write(held["written"])
    yield held
    store.rename("t/2", "t/3")
    held["t/3"], held["t/2"] = held["t/2"], None
    yield held


@linux
@pytest.mark.parametrize("sizes", ["as they are", "small"])
def test_everything_is_durable_before_it_is_named(
    tmp_path: Path, disk: Disk, sizes: str, request: pytest.FixtureRequest
) -> None:
    """At each commit of a put, all bytes of all packs, and all folders and files that were made,
    have been synced."""
    if sizes == "small":
        request.getfixturevalue("small")
    lost: list[list[str]] = []
    path = tmp_path / "new" / "store"
    with castore.open(path, chunk_bytes_avg=2816, threads=1) as store:
        disk.on_commit.append(lambda: lost.append(disk.lost_by_power()))
        for _ in write_everything(store):
            assert lost
            assert [found for found in lost if found] == []
            lost.clear()
    assert any(path.endswith(".pack") for path in disk.fsyncs)
    assert str(path) in disk.fsyncs
    assert str(path / "packs") in disk.fsyncs
    assert str(tmp_path / "new") in disk.fsyncs


@linux
def test_a_folder_that_another_process_made_is_synced_too(tmp_path: Path, disk: Disk) -> None:
    """Its maker may have been killed before it did."""
    path = tmp_path / "store"
    with castore.open(path) as store:
        store.puts("a", bytes(10_000))
    disk.fsyncs.clear()
    for n in range(256):
        (path / f"packs/{n:02x}").mkdir(exist_ok=True)
    disk.fsyncs.clear()
    with castore.open(path) as store:
        store.puts("b", bytes(range(256)) * 100)
    assert str(path / "packs") in disk.fsyncs


def power_cut(disk: Disk, store_path: Path, image: Path, *, garbage: bool) -> None:
    """What a loss of power at this moment may leave, made in `image`."""
    for path in [p for p in store_path.rglob("*") if p.is_file() and p.parent.name != "index"]:
        size = disk.durable_size(path)
        if size < 0 or path.suffix not in (".pack", ".json"):
            continue
        target = image / path.relative_to(store_path)
        target.parent.mkdir(parents=True, exist_ok=True)
        raw = path.read_bytes()
        target.write_bytes(raw[:size] + (bytes(len(raw) - size) if garbage else b""))
    index = store_path / "index"
    if disk.durable_size(index / "data.mdb") >= 0:
        (image / "index").mkdir(parents=True)
        # By a process of its own: to close LMDB's file in this one would drop its locks.
        subprocess.run(["cp", index / "data.mdb", image / "index/data.mdb"], check=True)


@linux
@pytest.mark.parametrize("garbage", [False, True])
@pytest.mark.usefixtures("small")
def test_power_lost_after_each_acknowledgement(tmp_path: Path, disk: Disk, garbage: bool) -> None:
    path = tmp_path / "store"
    with castore.open(path, chunk_bytes_avg=2816, threads=1) as store:
        for n, held in enumerate(write_everything(store)):
            image = tmp_path / f"image-{n}"
            power_cut(disk, path, image, garbage=garbage)
            with castore.open(image, create=False, threads=1) as after:
                for name, value in held.items():
                    if value is None:
                        assert not after.exists(name)
                    else:
                        assert after.gets(name) == value, name
                assert set(after.names()) == {name for name in held if held[name] is not None}
                more = (held.get("large") or b"") + b"more"
                after.puts("after", more)
                assert after.gets("after") == more
            shutil.rmtree(image)


@linux
@pytest.mark.parametrize("garbage", [False, True])
@pytest.mark.usefixtures("small")
def test_power_lost_at_each_commit(tmp_path: Path, disk: Disk, garbage: bool) -> None:
    """The commit itself may have reached the disk just before: its image, with the packs as they
    were when it began."""
    path = tmp_path / "store"
    images: list[Path] = []

    def at_commit() -> None:
        image = tmp_path / f"image-{len(images)}"
        images.append(image)
        for pack in path.glob("packs/*/*.pack"):
            size = disk.durable_size(pack)
            if size >= 0:
                target = image / pack.relative_to(path)
                target.parent.mkdir(parents=True, exist_ok=True)
                raw = pack.read_bytes()
                target.write_bytes(raw[:size] + (bytes(len(raw) - size) if garbage else b""))

    with castore.open(path, chunk_bytes_avg=2816, threads=1) as store:
        disk.on_commit.append(at_commit)
        for held in write_everything(store):
            image = images[-1]
            (image / "index").mkdir(parents=True, exist_ok=True)
            subprocess.run(["cp", path / "index/data.mdb", image / "index/data.mdb"], check=True)
            shutil.copy(path / "castore.json", image / "castore.json")
            with castore.open(image, create=False, threads=1) as after:
                for name, value in held.items():
                    assert not after.exists(name) if value is None else after.gets(name) == value
    assert len(images) > 10


# ---- a killed process leaves nothing to clear up ------------------------------------------------


def test_a_dead_process_holds_no_lock(tmp_path: Path) -> None:
    """Its packs can be collected, its readers' slots are free, and LMDB's writer lock is too."""
    expected = oracle.Expected()
    for turn in range(1, 4):
        kill_while_it_puts(tmp_path / "store", turn, expected)
    for path in (tmp_path / "store").glob("packs/*/*.pack"):
        with open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with castore.open(tmp_path / "store", create=False) as store:
        readers = store._catalog._index._env.readers()  # type: ignore[union-attr]
        assert readers.count("\n") <= 1, readers
        started = time.monotonic()
        store.puts("a", b"a" * 10_000)
        assert time.monotonic() - started < 5


def test_a_pack_without_use_is_removed_by_its_owner(tmp_path: Path) -> None:
    """What a put that failed leaves is an unnamed pack: it goes at once."""
    with castore.open(tmp_path / "store") as store:
        with pytest.raises(ZeroDivisionError), store.open("a", "wb") as file:  # noqa: PT012
            file.write(random.Random(1).randbytes(30_000_000))  # more than may be under way
            assert list(tmp_path.glob("store/packs/*/*.pack"))
            raise ZeroDivisionError
        assert not list(tmp_path.glob("store/packs/*/*.pack"))
    assert not list(tmp_path.glob("store/packs/*/*.pack"))
