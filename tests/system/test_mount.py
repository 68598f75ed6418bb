"""Real mounts, used by other programs. They skip where nothing can be mounted, and say why."""

from __future__ import annotations

import errno
import json
import mmap
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mounts
import pytest

import castore
from castore.mount import MountUnavailable, mounted, unmount
from castore.mount.mounts import served_by
from castore.testing.contents import noise

pytestmark = pytest.mark.skipif(
    mounts.why_not() is not None, reason=f"nothing can be mounted here: {mounts.why_not()}"
)
DATA = noise(3_000_000)
DIES = """
import os, signal, sys
file = open(sys.argv[1], sys.argv[2])
file.write("half of it")
file.flush()
os.kill(os.getpid(), signal.SIGKILL)
"""


BEGINS = """
import os, sys
file = open(sys.argv[1], "wb", buffering=0)
file.write(b"1")
"""
PROGRAMS = {  # that begin another one while they write a file, which Python opens with O_CLOEXEC
    "os.system('true'); file.write(b'2')": b"12",
    "os.execv('/bin/sh', ['sh', '-c', 'true'])": b"1",
    "os.dup2(file.fileno(), 1); os.execv('/bin/sh', ['sh', '-c', 'echo 2'])": b"12\n",
    "os.dup2(file.fileno(), 1); os.execv('/bin/sh', ['sh', '-c', 'kill -9 $$'])": None,
}

CHANGES = (
    lambda store, path, data: store.puts(path.name, data),
    lambda store, path, data: path.write_bytes(data),
    lambda store, path, data: os.replace(_written(path.with_name("new"), data), path),
    lambda store, path, data: (os.truncate(path, 0), path.write_bytes(data)),
)


def _written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.fixture
def root(store: castore.Store, tmp_path: Path) -> Iterator[Path]:
    """A writable mount of the store."""
    folder = tmp_path / "mount"
    folder.mkdir()
    with mounted(store.path, str(folder), writable=True):
        yield folder


def shell(command: str, folder: Path) -> str:
    """What it prints; it has to succeed, and to complain of nothing."""
    done = subprocess.run(
        ["bash", "-ec", command], cwd=folder, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, ""), done
    return done.stdout


def fails(number: int, command: list[str], folder: Path) -> None:
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"}
    )
    assert done.returncode != 0
    assert os.strerror(number) in done.stderr


# ---------------------------------------------------------------- other programs


def test_a_folder_as_any_other(store: castore.Store, root: Path) -> None:
    (root.parent / "source").mkdir()
    (root.parent / "source" / "a").write_bytes(DATA)
    os.chmod(root.parent / "source" / "a", 0o640)
    (root.parent / "source" / "needle").write_text("one\nneedle in it\n")
    shell("cp -rp source mount/copy", root.parent)
    assert store.gets("copy/a") == DATA
    assert store.info("copy/a").mode == 0o640
    assert store.info("copy/a").mtime_ns == (root.parent / "source" / "a").stat().st_mtime_ns
    assert shell("diff -r source mount/copy", root.parent) == ""
    assert shell("grep -rl needle .", root) == "./copy/needle\n"
    listed = shell("ls -l copy", root).splitlines()
    assert listed[1].startswith("-rw-r----- 1 ")
    assert f" {len(DATA)} " in listed[1]
    shell("tar cf /dev/stdout copy | tar xf - -C .. && diff -r copy ../copy", root)
    shell("mkdir out && tar cf - -C ../source . | tar xf - -C out && diff -r ../source out", root)
    assert shell("find . -name 'n*' | sort", root) == "./copy/needle\n./out/needle\n"
    shell("echo more >> copy/needle; mv copy/needle x; sed -i s/more/less/ x; rm -r copy", root)
    assert store.gets("x") == b"one\nneedle in it\nless\n"
    assert list(store.names()) == ["out/a", "out/needle", "x"]
    shell("dd if=../source/a of=out/a bs=1000 seek=5 count=3 conv=notrunc status=none", root)
    assert store.gets("out/a") == DATA[:5000] + DATA[:3000] + DATA[8000:]
    shell("truncate -s 10 out/a; touch -d @1000000007 out/a; : > empty", root)
    assert store.info("out/a")[1:3] == (10, 1_000_000_007 * 10**9)
    assert (root / "empty").stat().st_size == 0


def test_a_table(store: castore.Store, root: Path) -> None:
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    table = pandas.DataFrame({"x": range(10_000)})
    table.to_parquet(root / "day.parquet")
    assert store.exists("day.parquet")
    assert pandas.read_parquet(root / "day.parquet").equals(table)
    again = pandas.read_parquet(root / "day.parquet", memory_map=True, engine="pyarrow")
    assert again.equals(table)


def test_a_file_that_is_mapped(store: castore.Store, root: Path) -> None:
    store.puts("a", DATA)
    with (
        open(root / "a", "rb") as file,
        mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped,
    ):
        assert mapped[:] == DATA
        for number, change in enumerate(CHANGES):
            change(store, root / "a", b"%d" % number)
            with open(root / "a", "rb") as newer:
                assert newer.read() == b"%d" % number
            assert os.stat(root / "a").st_size == 1
            assert mapped[:] == DATA
            assert os.fstat(file.fileno()).st_size == len(DATA)
            file.seek(0)
            assert file.read() == DATA
    assert sorted(os.listdir(root)) == ["a"]


def test_pages_that_are_kept(store: castore.Store, root: Path) -> None:
    """The same size and all within one second: what tells versions apart is more than that."""
    for number in range(20):
        data = bytes([number]) * 10_000
        store.puts("a", data)
        for _ in range(2):
            assert (root / "a").read_bytes() == data


def test_many_readers(store: castore.Store, root: Path) -> None:
    """Each sees one version as a whole, whatever is published meanwhile. On a machine that is too
    busy a writer may be told that the file is."""
    versions = [noise(300_000 + 70_000 * i, seed=i) for i in range(4)]
    for number, data in enumerate(versions):
        (root.parent / str(number)).write_bytes(data)
    store.puts("a", versions[0])
    until = time.monotonic() + 3
    at_last = until + 60  # as long as nothing has come of it, on a machine that is busy

    def read(_: int) -> int:
        count = 0
        while time.monotonic() < (until if count else at_last):
            assert (root / "a").read_bytes() in versions
            count += 1
        return count

    with ThreadPoolExecutor(5) as pool:
        reading = [pool.submit(read, i) for i in range(4)]
        number = written = 0
        while time.monotonic() < (until if written else at_last):
            number += 1
            if number % 2:
                store.puts("a", versions[number % 4])
                continue
            command = ["cp", f"{number % 3}", "mount/a"]
            done = subprocess.run(command, cwd=root.parent, capture_output=True, text=True)
            assert not done.stderr or os.strerror(errno.EBUSY) in done.stderr
            written += done.returncode == 0
        assert written
        assert all(future.result() for future in reading)


# ---------------------------------------------------------------- writers


@pytest.mark.parametrize("mode", ["w", "a", "r+"])
def test_a_writer_that_dies(store: castore.Store, root: Path, mode: str) -> None:
    store.puts("a", b"as it was before")
    done = subprocess.run([sys.executable, "-c", DIES, root / "a", mode])
    assert done.returncode == -signal.SIGKILL
    assert (root / "a").read_bytes() == b"as it was before"
    assert store.gets("a") == b"as it was before"


def test_a_writer_that_dies_leaves_no_file(store: castore.Store, root: Path) -> None:
    subprocess.run([sys.executable, "-c", DIES, root / "a", "w"])
    assert os.listdir(root) == list(store.names()) == []


def test_a_shell_that_dies(store: castore.Store, root: Path) -> None:
    """It closes duplicates of the descriptor all the time."""
    script = "exec 3> a; echo one >&3; cat /etc/hostname >&3; kill -9 $$"
    subprocess.run(["bash", "-c", script], cwd=root, capture_output=True)
    assert list(store.names()) == []
    shell("exec 3> a; echo one >&3; (echo two >&3); exec 3>&-", root)
    assert store.gets("a") == b"one\ntwo\n"
    shell("{ echo one; cat a; } > b", root)
    assert store.gets("b") == b"one\none\ntwo\n"


def test_what_is_closed_by_the_end_of_a_program_is_published(
    store: castore.Store, root: Path
) -> None:
    program = "import os, sys; os.write(os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY), b'1')"
    subprocess.run([sys.executable, "-c", program, root / "a"], check=True)
    assert store.gets("a") == b"1"


@pytest.mark.parametrize(("program", "published"), PROGRAMS.items())
def test_a_writer_that_begins_another_program(
    store: castore.Store, tmp_path: Path, program: str, published: bytes | None
) -> None:
    """As Linux closes its files for that, it answers nobody who asks about it."""
    folder = tmp_path / "mount"
    folder.mkdir()
    with mounted(store.path, str(folder), writable=True):
        serving = served_by(str(folder))
        writer = subprocess.Popen([sys.executable, "-c", BEGINS + program, folder / "a"])
        try:
            writer.wait(30)
        except subprocess.TimeoutExpired:
            assert serving is not None
            os.kill(serving, signal.SIGKILL)  # else each `ps` on this machine waits as well
            writer.wait()
            raise
    assert [store.gets(name) for name in store.names()] == (
        [] if published is None else [published]
    )


def test_fsync_publishes(store: castore.Store, root: Path) -> None:
    with open(root / "a", "wb") as file:
        file.write(b"1")
        file.flush()
        assert not store.exists("a")
        os.fsync(file.fileno())
        assert store.gets("a") == b"1"
        file.write(b"2")
    assert store.gets("a") == b"12"


def test_a_log_that_two_append_to(store: castore.Store, root: Path) -> None:
    with open(root / "log", "a") as one:
        for number in range(3):
            one.write(f"one {number}\n")
            one.flush()
            shell(f"echo other {number} >> log", root)
    lines = store.gets("log").decode().splitlines()
    assert sorted(lines) == [f"{who} {i}" for who in ("one", "other") for i in range(3)]


# ---------------------------------------------------------------- what a file system promises


def test_what_is_not_there_says_so(store: castore.Store, root: Path) -> None:
    store.puts("a", b"1")
    fails(errno.EOPNOTSUPP, ["ln", "-s", "a", "b"], root)
    fails(errno.EOPNOTSUPP, ["ln", "a", "b"], root)
    fails(errno.EOPNOTSUPP, ["mkfifo", "b"], root)
    if os.geteuid() == 0:
        fails(errno.EOPNOTSUPP, ["chown", "12345", "a"], root)
    for ask in (
        lambda: os.setxattr(root / "a", "user.x", b"1"),
        lambda: os.getxattr(root / "a", "user.x"),
        lambda: os.link(root / "a", root / "b"),
    ):
        with pytest.raises(OSError) as caught:
            ask()
        assert caught.value.errno == errno.EOPNOTSUPP
    with open(root / "a", "r+b") as file, pytest.raises(OSError) as caught:
        mmap.mmap(file.fileno(), 0)
    assert caught.value.errno == errno.ENODEV
    os.chown(root / "a", os.getuid(), os.getgid())
    assert list(store.names()) == ["a"]


def test_what_fails_fails_as_elsewhere(store: castore.Store, root: Path) -> None:
    store.puts("d/a", b"1")
    store.puts("b", b"2")
    (root / "empty").mkdir()
    for number, ask in (
        (errno.ENOENT, lambda: (root / "c").read_bytes()),
        (errno.ENOENT, lambda: (root / "c" / "x").write_bytes(b"")),
        (errno.ENOTDIR, lambda: (root / "b" / "x").write_bytes(b"")),
        (errno.EISDIR, lambda: (root / "d").write_bytes(b"")),
        (errno.EISDIR, lambda: (root / "d").unlink()),
        (errno.ENOTDIR, lambda: (root / "b").rmdir()),
        (errno.ENOTEMPTY, lambda: (root / "d").rmdir()),
        (errno.ENOTEMPTY, lambda: os.rename(root / "empty", root / "d")),
        (errno.EISDIR, lambda: os.rename(root / "b", root / "empty")),
        (errno.ENOTDIR, lambda: os.rename(root / "empty", root / "b")),
        (errno.EINVAL, lambda: os.rename(root / "d", root / "d" / "x")),
        (errno.EEXIST, lambda: (root / "d").mkdir()),
        (errno.EEXIST, lambda: (root / "b").open("x")),
        (errno.ENAMETOOLONG, lambda: (root / ("x" * 481)).write_bytes(b"")),
        (errno.ENAMETOOLONG, lambda: (root / ("x" * 481)).mkdir()),
        (errno.EILSEQ, lambda: os.open(os.fsencode(root) + b"/\xff", os.O_CREAT)),
    ):
        with pytest.raises(OSError) as caught:
            ask()
        assert errno.errorcode[caught.value.errno or 0] == errno.errorcode[number]
    (root / ("x" * 480)).write_bytes(b"1")
    assert list(store.names()) == ["b", "d/a", "x" * 480]


def test_an_open_file_outlives_its_name(store: castore.Store, root: Path) -> None:
    for name in ("a", "b"):
        store.puts(name, DATA)
    with open(root / "a", "rb") as deleted, open(root / "b", "rb") as replaced:
        os.unlink(root / "a")
        (root / "new").write_bytes(b"new")
        os.rename(root / "new", root / "b")
        assert (root / "b").read_bytes() == b"new"
        assert deleted.read() == replaced.read() == DATA
    with open(root / "c", "w+b") as file:
        os.unlink(root / "c")
        file.write(b"1")
        file.seek(0)
        assert file.read() == b"1"
    assert list(store.names()) == ["b"]


def test_what_the_disk_is_told_to_hold(store: castore.Store, root: Path) -> None:
    of_store, of_mount = os.statvfs(store.path), os.statvfs(root)
    assert (of_mount.f_blocks, of_mount.f_frsize) == (of_store.f_blocks, of_store.f_frsize)
    assert os.pathconf(root, "PC_NAME_MAX") == 480


@pytest.mark.damages_store("bytes of a pack are overwritten")
def test_data_that_is_damaged_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "at").mkdir()
    with castore.open(tmp_path / "damaged") as store:
        store.puts("a", DATA)
    [pack] = [path for path in (tmp_path / "damaged" / "packs").rglob("*") if path.is_file()]
    with open(pack, "r+b") as file:
        file.seek(pack.stat().st_size // 2)
        file.write(bytes(1000))
    with mounted(str(tmp_path / "damaged"), str(tmp_path / "at")) as folder:
        with open(f"{folder}/a", "rb") as file:
            assert file.read(1000) == DATA[:1000]
        with open(f"{folder}/a", "rb") as file, pytest.raises(OSError) as caught:
            file.read()
        assert caught.value.errno == errno.EIO


# ---------------------------------------------------------------- mounts


def test_read_only(store: castore.Store, tmp_path: Path) -> None:
    store.puts("d/a", b"1")
    (tmp_path / "at").mkdir()
    with mounted(store.path, str(tmp_path / "at"), prefixes={"": "d/"}) as folder:
        assert os.listdir(folder) == ["a"]
        with pytest.raises(OSError) as caught:
            os.open(f"{folder}/a", os.O_WRONLY)
        assert caught.value.errno == errno.EROFS
        with pytest.raises(MountUnavailable, match=r"mounted at .* already"):
            castore.mount.mount(store.path, folder)
    assert os.listdir(tmp_path / "at") == []


def test_a_store_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "at").mkdir()
    with pytest.raises(MountUnavailable, match="there is no store at"):
        castore.mount.mount(str(tmp_path / "none"), str(tmp_path / "at"))
    with pytest.raises(NotADirectoryError):
        castore.mount.mount(str(tmp_path / "none"), str(tmp_path / "none"))


def test_what_others_change_is_seen_at_once(store: castore.Store, root: Path) -> None:
    """Also right after the kernel was told of what was there before, which it may believe for a
    second."""
    path = root / "d" / "x"
    store.puts("d/keeps the folder", b"")
    for number in range(3):
        store.puts("d/x", b"long" * 1000)
        assert path.stat().st_size == 4000
        store.puts("d/x", b"short")
        descriptor = os.open(path, os.O_RDONLY)  # and no stat
        assert os.read(descriptor, 4096) == b"short"
        os.close(descriptor)
        store.puts("d/x", b"longer" * 1000)
        descriptor = os.open(path, os.O_RDONLY)
        assert os.read(descriptor, 10_000) == b"longer" * 1000
        os.close(descriptor)
        store.delete("d/x")
        for ask in (os.stat, Path.read_bytes, Path.unlink):
            store.puts("d/x", b"")
            assert path.exists()
            store.delete("d/x")
            with pytest.raises(FileNotFoundError):
                ask(path)
        store.puts("d/x", b"")
        assert path.exists()
        store.delete("d/x")
        with path.open("ab") as file:  # which is made, as nothing is there
            file.write(b"%d" % number)
        assert store.gets("d/x") == b"%d" % number
        store.delete("d/x")
        path.write_bytes(b"new")
        assert store.gets("d/x") == b"new"


def test_a_file_becomes_a_folder_and_a_folder_a_file(store: castore.Store, root: Path) -> None:
    for _ in range(3):
        store.puts("x", b"")
        assert (root / "x").is_file()
        store.delete("x")
        store.puts("x/y", b"1")
        assert (root / "x").is_dir()
        assert os.listdir(root / "x") == ["y"]
        assert (root / "x" / "y").read_bytes() == b"1"
        store.delete("x/y")
        with pytest.raises(FileNotFoundError):
            os.listdir(root / "x")
        store.puts("x/y", b"1")
        assert (root / "x").is_dir()
        store.delete("x/y")
        store.puts("x", b"2")
        assert (root / "x").read_bytes() == b"2"
        store.delete("x")


@pytest.mark.parametrize("others", [False, True])
def test_what_is_made_where_something_of_another_kind_was(
    store: castore.Store, root: Path, others: bool
) -> None:
    """With no answer of the mount in between, which would make the kernel look again."""

    def make(name: str, *, folder: bool) -> None:
        if folder:
            (root / name).mkdir()
            assert os.listdir(root / name) == []
        else:
            (root / name).write_bytes(b"new")
            assert (root / name).read_bytes() == b"new"

    for folder in (False, True):
        for way in ("remove", "rename", "rename over"):
            name = f"{way} {folder}"
            make(name, folder=folder)
            if way == "remove" and others and not folder:
                store.delete(name)
            elif way == "remove":
                os.rmdir(root / name) if folder else os.unlink(root / name)
            elif way == "rename":
                os.rename(root / name, root / f"{name} moved")
            else:
                make(f"{name} moved", folder=folder)
                os.rename(root / name, root / f"{name} moved")
            make(name, folder=not folder)


def test_how_often_the_mount_is_asked(store: castore.Store, tmp_path: Path) -> None:
    """A second or so for 5,000 files hangs on it."""
    with store.transaction() as transaction:
        for number in range(100):
            transaction.puts(f"a/b/{number}", b"x")
    (tmp_path / "at").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", COUNTS, store.path, tmp_path / "at"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    listed, read = (json.loads(line) for line in done.stdout.splitlines())
    kinds = {"getattr": 2.2 if not os.geteuid() else 7}
    assert listed["getattr"] / 100 <= kinds["getattr"]
    assert read["open"] == read["read"] == 100


COUNTS = """
import collections, json, subprocess, sys, threading
import castore
from castore.mount import fuse, unmount
from castore.mount.tree import Tree

counts, wrapper, at = collections.Counter(), fuse._Fuse._wrapper, sys.argv[2]

def counted(self, function, *args):
    counts[function.__name__.removesuffix("_fuse_3")] += 1
    return wrapper(self, function, *args)

def use():
    for command in (["ls", "-l", at + "/a/b"], ["grep", "-r", "y", at + "/a/b"]):
        counts.clear()
        subprocess.run(command, stdout=subprocess.DEVNULL)
        print(json.dumps(counts), flush=True)
    unmount(at)

fuse._Fuse._wrapper = counted
with castore.open(sys.argv[1]) as store:
    begin = threading.Thread(target=use).start
    fuse.run(Tree(store, writable=False), at, on_mounted=begin)
"""


def test_a_mount_ends_with_the_process_that_has_it(store: castore.Store, tmp_path: Path) -> None:
    (tmp_path / "at").mkdir()
    program = """
import os, signal, sys
from castore.mount import mounted
with mounted(sys.argv[1], sys.argv[2], remove=[sys.argv[2]]) as folder:
    assert os.path.ismount(folder)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", program, store.path, str(tmp_path / "at")])
    assert done.returncode == -signal.SIGKILL
    until = time.monotonic() + 20
    while os.path.exists(tmp_path / "at") and time.monotonic() < until:
        time.sleep(0.05)
    assert not os.path.exists(tmp_path / "at")


def test_the_command(tmp_path: Path) -> None:
    store, at = tmp_path / "store", tmp_path / "at"
    at.mkdir()
    command = [sys.executable, "-m", "castore"]
    subprocess.run([*command, "mount", store, at, "--writable"], check=True)
    try:
        (at / "a").write_bytes(DATA)
        (at / "empty").touch()
        with open(at / "a", "rb"):
            busy = subprocess.run([*command, "umount", at], capture_output=True, text=True)
            assert busy.returncode == 1
            assert "busy" in busy.stderr
    finally:
        subprocess.run([*command, "umount", at], check=True)
    assert os.listdir(at) == []
    with castore.open(store, read_only=True) as opened:
        assert list(opened.names()) == ["a", "empty"]
        assert opened.gets("a") == DATA
    again = subprocess.run([*command, "umount", at], capture_output=True, text=True)
    assert (again.returncode, "no store is mounted there" in again.stderr) == (1, True)
    with pytest.raises(OSError, match="no store is mounted there"):
        unmount(str(at))


def test_the_command_in_the_foreground(store: castore.Store, tmp_path: Path) -> None:
    (tmp_path / "at").mkdir()
    store.puts("a", b"1")
    command = [sys.executable, "-m", "castore", "-r", store.path, "mount", tmp_path / "at", "-f"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert any("is mounted at" in line for line in iter(process.stderr.readline, ""))
        assert (tmp_path / "at" / "a").read_bytes() == b"1"
        process.terminate()
        assert process.wait(30) == 0
    assert not os.path.ismount(tmp_path / "at")
