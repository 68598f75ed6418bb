"""What the command writes to pipes, terminals and full disks: all of it, or an error."""

from __future__ import annotations

import errno
import fcntl
import io
import os
import pty
import random
import resource
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import oracle
import pytest

import castore
from castore.cli import exits
from castore.system.fileio import write_stream

DATA = random.Random(3).randbytes(900_000)
UNBUFFERED = ["", "1"]


@pytest.fixture
def filled(store: castore.Store) -> castore.Store:
    with store.transaction() as transaction:
        transaction.puts("x", DATA)
        for i in range(3000):
            transaction.puts(f"many/{i:04}-{'n' * 60}", b"")
    return store


STARTED: list[subprocess.Popen[bytes]] = []


@pytest.fixture(autouse=True)
def ended() -> Iterator[None]:
    yield
    while STARTED:
        with STARTED.pop() as process:  # closes its pipes
            process.kill()


def command(store: castore.Store, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
    environment = oracle.environment() | {"CASTORE_STORE": store.path}
    environment |= options.pop("environment", {})
    STARTED.append(
        subprocess.Popen(
            [sys.executable, "-m", "castore", *arguments],
            env=environment,
            stderr=options.pop("stderr", subprocess.PIPE),
            **options,
        )
    )
    return STARTED[-1]


@pytest.mark.parametrize("unbuffered", UNBUFFERED)
@pytest.mark.parametrize(
    "arguments",
    [["cat", "x"], ["cat", "--range", "5:", "x"], ["get", "x", "-"], ["ls", "--json"]],
)
@pytest.mark.sampled(3)
def test_a_slow_reader_and_a_descriptor_that_does_not_block(
    filled: castore.Store, arguments: list[str], unbuffered: str
) -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    done = command(
        filled,
        *arguments,
        stdout=writing,
        stderr=subprocess.DEVNULL,
        environment={"PYTHONUNBUFFERED": unbuffered},
    )
    os.close(writing)
    time.sleep(0.5)
    got = b""
    while block := os.read(reading, 1 << 14):
        got += block
    os.close(reading)
    assert done.wait(30) == 0
    if arguments[0] == "ls":
        assert got.count(b"\n") == 3001
        assert got.endswith(b"}\n")
    else:
        assert got == DATA[5 if "5:" in arguments else 0 :]


def limited() -> None:
    """A file can't grow beyond so many bytes: as on a full disk, a write is short, then fails."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000))


@pytest.mark.parametrize("unbuffered", UNBUFFERED)
@pytest.mark.parametrize(
    "arguments",
    [["cat", "x"], ["cat", "--range", "0:", "x"], ["get", "x", "-"], ["ls", "--json"]],
)
@pytest.mark.sampled(3)
def test_a_disk_that_is_full(
    filled: castore.Store, tmp_path: Path, arguments: list[str], unbuffered: str
) -> None:
    with open(tmp_path / "out", "wb") as out:
        done = command(
            filled,
            *arguments,
            stdout=out,
            preexec_fn=limited,
            environment={"PYTHONUNBUFFERED": unbuffered},
        )
        assert done.wait(30) == 1
    assert done.stderr is not None
    assert done.stderr.read().count(b"\n") == 1
    assert (tmp_path / "out").stat().st_size == 150_000


@pytest.mark.parametrize(
    "arguments",
    [
        ["cat", "x"],
        ["cat", "--range", "0:", "x"],
        ["get", "x", "-"],
        ["get", "x", "/dev/stdout"],
        ["ls", "--json"],
        ["ls"],
    ],
)
@pytest.mark.sampled(2)
def test_a_reader_that_hangs_up(filled: castore.Store, arguments: list[str]) -> None:
    done = command(filled, *arguments, stdout=subprocess.PIPE)
    assert done.stdout is not None
    assert done.stderr is not None
    assert len(done.stdout.read(10)) == 10
    done.stdout.close()
    assert done.wait(30) == exits.BROKEN_PIPE
    assert done.stderr.read() == b""


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["gc", "--help"]])
def test_nobody_reads_what_help_prints(filled: castore.Store, arguments: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = command(filled, *arguments, stdout=writer)
    finally:
        os.close(writer)
    assert done.stderr is not None
    assert (done.wait(30), done.stderr.read()) == (exits.BROKEN_PIPE, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_help_to_a_full_disk_is_one_line(filled: castore.Store) -> None:
    with open("/dev/full", "wb") as full:
        done = command(filled, "--help", stdout=full)
    assert done.stderr is not None
    assert (done.wait(30), done.stderr.read()) == (1, b"castore: No space left on device\n")


# ---------------------------------------------------------------- descriptors that have a path


def test_a_get_to_dev_stdout(filled: castore.Store, tmp_path: Path) -> None:
    done = command(filled, "get", "x", "/dev/stdout", stdout=subprocess.PIPE)
    assert done.communicate()[0] == DATA
    # What others wrote before stays, also where it is no longer a file of this name.
    with open(tmp_path / "out", "wb") as out:
        out.write(b"before")
        out.flush()
        assert command(filled, "get", "x", "/dev/stdout", stdout=out).wait(30) == 0
        out.seek(0, os.SEEK_END)
        out.write(b"after")
    assert (tmp_path / "out").read_bytes() == b"before" + DATA + b"after"
    with open(tmp_path / "gone", "w+b") as gone:
        (tmp_path / "gone").unlink()
        assert command(filled, "get", "x", "/dev/fd/1", stdout=gone).wait(30) == 0
        gone.seek(0)
        assert gone.read() == DATA
    assert sorted(os.listdir(tmp_path)) == ["out", "store"]


@pytest.mark.skipif(not os.path.exists("/bin/bash"), reason="no bash")
def test_a_get_to_a_process_and_to_a_named_pipe(filled: castore.Store, tmp_path: Path) -> None:
    script = """
"$0" -m castore get x >(cat > process)
for i in $(seq 100); do [ "$(stat -c %s process)" = 900000 ] && break; sleep 0.1; done
"""
    done = subprocess.run(
        ["/bin/bash", "-c", script, sys.executable],
        env=oracle.environment() | {"CASTORE_STORE": filled.path},
        cwd=tmp_path,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert (tmp_path / "process").read_bytes() == DATA
    os.mkfifo(tmp_path / "pipe")
    get = command(filled, "get", "x", str(tmp_path / "pipe"))
    assert (tmp_path / "pipe").read_bytes() == DATA
    assert get.wait(30) == 0


def test_a_descriptor_that_is_written_to_is_named_in_errors_and_stays_open(
    store: castore.Store, tmp_path: Path
) -> None:
    store.puts("x", DATA)
    with open(tmp_path / "out", "wb", buffering=0) as out:
        out.write(b"before")
        store.get("x", f"/dev/fd/{out.fileno()}")
        out.write(b"after")
        gone = f"/dev/fd/{out.fileno()}"
    assert (tmp_path / "out").read_bytes() == b"before" + DATA + b"after"
    with pytest.raises(OSError, match=f"Bad file descriptor: '{gone}'"):
        store.get("x", gone)
    with open("/dev/full", "wb", buffering=0) as full:
        path = f"/proc/{os.getpid()}/fd/{full.fileno()}"
        with pytest.raises(OSError, match=f"No space left on device: '{path}'"):
            store.get("x", path)


def test_a_link_to_a_descriptor_is_followed_to_it(store: castore.Store, tmp_path: Path) -> None:
    """What the descriptor leads to may have no path any more."""
    store.puts("x", b"data")
    folder = tmp_path / "folder"
    folder.mkdir()
    with open(folder / "gone", "w+b") as gone:
        (folder / "gone").unlink()
        number = gone.fileno()
        (tmp_path / "link").symlink_to(f"/proc/self/fd/{number}")
        (folder / "relative").symlink_to("../link")
        (folder / "another").symlink_to("relative")
        store.get("x", folder / "another")
        gone.seek(0)
        assert gone.read() == b"data"
    assert sorted(os.listdir(folder)) == ["another", "relative"]


def test_links_that_go_round_are_no_file_to_be_replaced(
    store: castore.Store, tmp_path: Path
) -> None:
    store.puts("x", b"data")
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OSError, match=f"{os.strerror(errno.ELOOP)}: '{tmp_path}/a'"):
        store.get("x", tmp_path / "a")
    assert os.readlink(tmp_path / "a") + os.readlink(tmp_path / "b") == "ba"


@pytest.mark.parametrize("number", ["9" * 20, "\N{ARABIC-INDIC DIGIT ONE}"])
def test_a_number_that_is_no_descriptors_is_a_file_that_is_not_there(
    store: castore.Store, number: str
) -> None:
    store.puts("x", b"x")
    with pytest.raises(OSError, match=f"/{number}'"):
        store.get("x", f"/dev/fd/{number}")


def test_errors_name_the_file(filled: castore.Store, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for arguments, line in (
        (["get", "x", "/dev/full"], "/dev/full: No space left on device"),
        (["get", "x", "/proc/none"], "/proc/none: No such file or directory"),
        (["get", "-R", "many", "file"], "file: Not a directory"),
        (["export", "many", "file"], "file: Not a directory"),
    ):
        failed = command(filled, *arguments, cwd=tmp_path, stdout=subprocess.DEVNULL)
        assert failed.wait(30) == 1
        assert failed.stderr is not None
        assert failed.stderr.read().decode() == f"castore: {line}\n"


def test_what_cannot_be_complained_of_is_done_all_the_same(
    filled: castore.Store, tmp_path: Path
) -> None:
    """Notes and errors on a full disk, or with nobody to read them."""
    (tmp_path / "file").write_bytes(b"1")
    read, write = os.pipe()
    os.close(read)
    full = os.open("/dev/full", os.O_WRONLY)
    for number, stderr in enumerate((full, write)):
        made = tmp_path / f"made{number}"
        for arguments, code in (
            (["-r", str(made), "put", "file", "a"], 0),
            (["cat", "none"], 14),
            (["--json", "stat", "none"], 14),
            (["nonesuch"], 2),
        ):
            process = command(filled, *arguments, cwd=tmp_path, stderr=stderr)
            assert process.wait(30) == code, arguments
        with castore.open(made, create=False) as store:
            assert store.gets("a") == b"1"
    os.close(full)
    os.close(write)


# ---------------------------------------------------------------- file objects


class Short(io.RawIOBase):
    """Takes a few bytes at a time, and now and then none, until it is to take all."""

    def __init__(self, ready: int) -> None:
        self.taken = b""
        self.ready = ready
        self.blocks = True
        self.calls = 0

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self.ready

    def write(self, data: Any, /) -> int | None:
        self.calls += 1
        if self.calls % 3 == 0 and self.blocks:
            return None
        self.taken += bytes(data[:50_000])
        return len(data[:50_000])


class Silent:
    def __init__(self) -> None:
        self.taken = b""

    def write(self, data: Any) -> None:
        self.taken += bytes(data)


def test_a_get_to_streams_that_take_only_some(filled: castore.Store) -> None:
    with open(os.devnull, "wb") as ready:
        short = Short(ready.fileno())
        filled.get("x", short)
        assert short.taken == DATA
        buffered = Short(ready.fileno())
        with io.BufferedWriter(buffered, 1000) as file:
            filled.get("x", file)
            buffered.blocks = False
        assert buffered.taken == DATA
    silent = Silent()
    filled.get("x", silent)
    assert silent.taken == DATA


@pytest.mark.parametrize("buffering", [0, 4096])
def test_a_get_to_a_pipe_that_does_not_block(filled: castore.Store, buffering: int) -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    got: list[bytes] = []

    def read() -> None:
        while block := os.read(reading, 1 << 14):
            got.append(block)

    thread = threading.Timer(0.2, read)
    thread.start()
    file = open(writing, "wb", buffering=buffering)  # noqa: SIM115
    filled.get("x", file)
    os.set_blocking(writing, True)
    file.close()
    thread.join()
    os.close(reading)
    assert b"".join(got) == DATA


def test_a_stream_that_would_block_need_not_say_how_much_it_took(filled: castore.Store) -> None:
    """As `os.write` does not, and no other than a buffer can."""

    class Refuses(Short):
        def write(self, data: Any, /) -> int | None:
            taken = super().write(data)
            if taken is None:
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            return taken

    with open(os.devnull, "wb") as ready:
        stream = Refuses(ready.fileno())
        filled.get("x", stream)
        stream.blocks = False  # or what closes it
    assert stream.taken == DATA


def test_what_would_block_may_have_a_high_descriptor() -> None:
    """As in a server with more than a thousand connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2000:
        pytest.skip("no such descriptors here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2000), hard))
    try:
        with open(os.devnull, "wb") as null:
            high = fcntl.fcntl(null.fileno(), fcntl.F_DUPFD_CLOEXEC, 1500)
        try:
            stream = Short(high)
            write_stream(stream, DATA)
        finally:
            os.close(high)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert stream.taken == DATA


def test_an_error_of_a_stream_is_its_own() -> None:
    class Fails(Silent):
        def write(self, data: Any) -> None:
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_stream(Fails(), b"1")


# ---------------------------------------------------------------- text


@pytest.mark.parametrize(
    ("locale", "name", "path"),
    [
        ({"PYTHONIOENCODING": "ascii"}, rb"n\xe4me", rb"/b\udce9ckup"),
        pytest.param(
            {"PYTHONIOENCODING": "latin-1"}, b"n\xe4me", rb"/b\udce9ckup", marks=pytest.mark.long
        ),
        pytest.param({"LC_ALL": "C"}, "näme".encode(), b"/b\xe9ckup", marks=pytest.mark.long),
    ],
)
@pytest.mark.skipif(sys.platform != "linux", reason="macOS has no such file names")
def test_names_and_paths_that_the_locale_does_not_have(
    tmp_path: Path, locale: dict[str, str], name: bytes, path: bytes
) -> None:
    folder = os.fsencode(tmp_path) + b"/st\xe9re \xc3\xbc"
    source = tmp_path / "in"
    source.mkdir()
    (source / "näme").write_bytes(b"1")

    def run(*arguments: str | bytes) -> tuple[int, bytes, bytes]:
        done = subprocess.run(
            [sys.executable, "-m", "castore", "-r", folder, *arguments],
            env=oracle.environment() | locale,
            capture_output=True,
            check=False,
        )
        assert b"Traceback" not in done.stderr
        assert b"codec" not in done.stderr
        return done.returncode, done.stdout, done.stderr

    assert run("import", os.fsencode(source), "p")[0] == 0
    code, out, _ = run("ls")
    assert code == 0
    assert out == b"p/" + name + b"\n"
    for verb in (["ls", "-l"], ["stats"], ["gc"], ["check"], ["doctor"]):
        assert run(*verb)[0] == 0, verb
    for verb in (["stat", "p/näme".encode()], ["cat", "p/näme".encode()]):
        assert run(*verb)[0] == 0, verb
    code, out, _ = run("backup", os.fsencode(tmp_path) + b"/b\xe9ckup")
    assert (code, path in out) == (0, True)
    assert run("cat", "gone")[0] == 14
    assert run("export", "p", os.fsencode(tmp_path) + b"/o\xe9t")[0] == 0
    with castore.open(os.fsdecode(folder)) as store:
        assert list(store.names()) == ["p/näme"]


@pytest.mark.skipif(sys.platform != "linux", reason="macOS has no such file names")
def test_a_path_that_is_no_utf_8_comes_out_as_the_bytes_that_it_is(
    store: castore.Store, tmp_path: Path
) -> None:
    place = os.fsencode(tmp_path) + b"/st\xe9re"
    environment = {"CASTORE_STORE": os.fsdecode(place), "PYTHONIOENCODING": "utf-8"}
    done = command(store, "doctor", stdout=subprocess.PIPE, environment=environment)
    out, err = done.communicate()
    assert (done.returncode, err) == (0, b"")
    assert out.splitlines()[-1].startswith(place + b": no problems, ")


def test_an_error_is_told_whole_to_a_slow_reader(store: castore.Store) -> None:
    """It is more than a pipe holds, and the descriptor does not block."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    try:
        done = command(store, "x" * 100_000, stderr=writing)
        while done.poll() is None and select.select([], [writing], [], 0)[1]:
            time.sleep(0.01)
    finally:
        os.close(writing)
    with open(reading, "rb") as said:
        line = said.read()
    assert line == b"castore: there is no verb '%b' (see castore --help)\n" % (b"x" * 100_000)
    assert done.wait(30) == exits.USAGE


def test_a_terminal_shows_what_was_printed_before_an_error_before_it(
    filled: castore.Store,
) -> None:
    ours, theirs = pty.openpty()
    done = command(filled, "stat", "x", "none", stdout=theirs, stderr=theirs)
    os.close(theirs)
    got = b""
    with suppress(OSError), open(ours, "rb", buffering=0) as terminal:  # Linux says EIO at the end
        while block := terminal.read(1 << 16):
            got += block
    assert done.wait(30) == exits.NOT_FOUND
    assert got.index(b"etag") < got.index(b"castore: ")


def test_what_is_no_terminal_gets_names_as_they_are(filled: castore.Store) -> None:
    filled.puts("odd\x1b]0;name", b"1")
    out, _ = command(filled, "ls", stdout=subprocess.PIPE).communicate()
    assert b"odd\x1b]0;name\n" in out


def test_a_terminal_gets_no_control_characters(filled: castore.Store) -> None:
    filled.puts("evil\x1b]0;pwned\x07\nname", b"1")
    for verb in (["ls"], ["ls", "-l"], ["stat", "evil\x1b]0;pwned\x07\nname"], ["du"]):
        ours, theirs = pty.openpty()
        done = command(filled, *verb, stdout=theirs, stderr=theirs)
        os.close(theirs)
        got = b""
        try:
            while block := os.read(ours, 1 << 16):
                got += block
        except OSError:  # Linux says EIO at the end
            pass
        os.close(ours)
        assert done.wait(30) == 0
        assert b"\x1b]" not in got
        assert b"\x07" not in got
