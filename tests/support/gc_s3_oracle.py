"""Programs that write to a store on S3 and collect it, and are killed or stopped meanwhile.

Run in processes of a ForkServer, as `python gc_s3_oracle.py`: Python and boto3 take longer
to start than most of these programs live.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Self

import oracle
from oracle import Version, say
from servers import QUICK

import castore
import castore.s3.client.retries
import castore.s3.gc.repack
import castore.s3.gc.server
import castore.s3.gc.sweep
import castore.s3.hints
import castore.s3.session
import castore.s3.uploads
from castore.errors import CastoreError, NameNotFound, StoreBusy
from castore.s3.client.connection import Connection
from castore.s3.client.probe import ServerFeatures
from castore.s3.client.settings import parse_settings
from castore.stream.reports import CheckReport

FAMILY = "value"  # all values are of this name, so that a copy's is one, too
LIFE_S_MAX = 120  # that a program may live
DISK_CACHE_BYTES = 400_000  # in 8 files: some go in every turn
SMALL_NAMES = 8

# ---------------------------------------------------------------- what is expected


class Expected(oracle.Expected):
    """`absent`: names that a program did not find, though they had been acknowledged. `errors`:
    with which the programs ended."""

    family = FAMILY

    def __init__(self) -> None:
        super().__init__()
        self.absent: list[str] = []
        self.errors: list[str] = []

    def follow(self, lines: Iterable[bytes]) -> None:
        for line in lines:
            verb, *words = json.loads(line)
            if verb in ("copy", "rename"):
                source, target = words
                self.tried[target] = [self.settled.get(source)]
                if verb == "rename":
                    self.tried[source] = [None]
            elif verb in ("copied", "renamed"):
                source, target = words
                self._settle(target, self.settled.get(source))
                if verb == "renamed":
                    self._settle(source, None)
            elif verb == "absent":
                source = words[0]
                for name in words:
                    self.tried.pop(name, None)
                if self.settled.get(source) is not None:
                    self.absent.append(source)
            elif verb == "failed":
                self.errors.append(words[0])
            else:
                super().follow([line])

    def _settle(self, name: str, version: Version | None) -> None:
        self.settled[name] = version
        self.tried.pop(name, None)
        self.acknowledged += 1


# ---------------------------------------------------------------- processes


class ForkServer:
    """Runs PROGRAMS in processes that are forked off one that has imported everything."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._started: list[Child] = []
        self._outputs = itertools.count()  # pids come again
        self._server = subprocess.Popen(
            [sys.executable, os.path.abspath(__file__)],
            env=oracle.environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for child in self._started:
            if child.status is None:
                child.kill()
                child.wait()
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.close()
        self._server.wait(30)
        self._server.stdout.close()

    def start(self, program: str, *args: Any) -> Child:
        output = self._folder / str(next(self._outputs))
        child = Child(self, self.ask("start", str(output), program, *args), output)
        self._started = [each for each in self._started if each.status is None] + [child]
        return child

    def run(self, program: str, *args: Any) -> list[bytes]:
        """What a program says that succeeds."""
        child = self.start(program, *args)
        assert child.wait() == 0, child.errors()
        return child.said()

    def ask(self, *words: Any) -> Any:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        with self._lock:
            self._server.stdin.write(json.dumps(words).encode() + b"\n")
            self._server.stdin.flush()
            return json.loads(self._server.stdout.readline())


class Child:
    """One program's process."""

    def __init__(self, server: ForkServer, pid: int, output: Path) -> None:
        self.pid = pid
        self.status: int | None = None  # once it has been waited for
        self._server = server
        self._output = output

    def said(self) -> list[bytes]:
        return self._output.with_suffix(".said").read_bytes().splitlines()

    def errors(self) -> str:
        return self._output.with_suffix(".errors").read_text()

    def await_lines(self, count: int, seconds: float = 30) -> None:
        """Until it has said so much, or has ended."""
        deadline = time.monotonic() + seconds
        while len(self.said()) < count and not self._has_ended():
            assert time.monotonic() < deadline, "it says no more"
            time.sleep(0.002)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        os.kill(self.pid, signal.SIGSTOP)
        while self._state() not in "TZ":
            time.sleep(0.001)
        try:
            yield
        finally:
            os.kill(self.pid, signal.SIGCONT)

    def wait(self, seconds: float = 60) -> int:
        """How it ended: 0, 1 for an error, or -SIGKILL."""
        deadline = time.monotonic() + seconds
        while not self._has_ended():
            assert time.monotonic() < deadline, "it does not end"
            time.sleep(0.005)
        assert self.status is not None
        return self.status

    def _has_ended(self) -> bool:
        if self.status is None:
            self.status = self._server.ask("poll", self.pid)
        return self.status is not None

    def _state(self) -> str:
        return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]


def serve() -> None:
    make_everything_small()
    Connection(parse_settings("s3://bucket/warm", endpoint_url="http://127.0.0.1:9")).close()
    running: set[int] = set()
    for line in sys.stdin:
        verb, *words = json.loads(line)
        answer: Any
        if verb == "start":
            for suffix in (".said", ".errors"):
                Path(words[0] + suffix).touch()
            answer = os.fork()
            if answer == 0:
                _run(*words)
            running.add(answer)
        else:
            ended, status = os.waitpid(words[0], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if ended else None
            running.discard(ended)
        print(json.dumps(answer), flush=True)
    for pid in running:  # whoever started them has died
        os.kill(pid, signal.SIGKILL)


def _run(output: str, program: str, *args: Any) -> None:
    status = 1
    try:
        signal.alarm(LIFE_S_MAX)
        for fd, suffix in ((1, ".said"), (2, ".errors")):
            os.dup2(os.open(output + suffix, os.O_WRONLY | os.O_APPEND), fd)
        PROGRAMS[program](*args)
        status = 0
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(status)


def make_everything_small() -> None:
    """Objects of a few kilobytes have packs, several of them, and manifests of several segments."""
    oracle.make_everything_small()
    castore.s3.session.INLINE_BYTES_MAX = castore.s3.session.INLINE_ALONE_BYTES_MAX = 4096
    castore.s3.uploads.PACK_BYTES_FIRST = 50_000
    castore.s3.uploads.PACK_BYTES_MAX = 200_000
    castore.s3.gc.repack.BATCH_BYTES = 8192
    castore.s3.hints.SMALL_MAX = 4  # type: ignore[misc]
    castore.s3.hints.SMALL_BYTES = 300  # type: ignore[misc]
    castore.s3.hints.READ_BYTES_MAX = 3000
    castore.s3.hints.SAMPLE_BYTES = 500
    castore.s3.client.retries.BACKOFF = QUICK


def open_store(url: str, cache: str, **options: Any) -> castore.Store:
    os.environ["CASTORE_CACHE_DIR"] = cache
    options = {"threads": 2, "disk_cache_bytes": DISK_CACHE_BYTES, **options}
    return castore.open(url, create=False, **options)


# ---------------------------------------------------------------- killed


class Writer:
    """Changes random ones of its names, saying before each change what is tried, and after it that
    it is acknowledged. A transaction has all that it puts uploaded for up to `pause_s` before it is
    committed."""

    def __init__(
        self, store: castore.Store, writer: int, place: str, thread: int, pause_s: float
    ) -> None:
        self.store = store
        self._pause_s = pause_s
        self._choose = random.Random(f"{writer} {thread}")
        self._versions = (Version(writer, thread << 20 | n) for n in range(1, 1 << 20))
        self._names = [f"{place}/{thread}/{n}" for n in range(SMALL_NAMES)]

    def change(self) -> None:
        verbs = [self.put, self.delete, self.transaction, self.copy, self.rename, self.read]
        self._choose.choices(verbs, (8, 2, 2, 2, 2, 3))[0]()

    def put(self) -> None:
        name, version = self._choose.choice(self._names), next(self._versions)
        value = oracle.value_of(FAMILY, version)
        way = self._choose.random()
        say("put", name, *version)
        if way < 0.3:
            with self.store.open(name, "wb") as file:
                file.write(value)
        else:
            self.store.puts(name, value)
        say("done", name, *version)

    def transaction(self) -> None:
        *names, doomed = self._choose.sample(self._names, 3)
        putting = [(name, next(self._versions)) for name in names]
        deletes = self.store.exists(doomed)
        for name, version in putting:
            say("put", name, *version)
        if deletes:
            say("delete", doomed)
        with self.store.transaction() as transaction:
            for name, version in putting:
                transaction.puts(name, oracle.value_of(FAMILY, version))
            if deletes:
                transaction.delete(doomed)
            time.sleep(self._choose.random() * self._pause_s)
        for name, version in putting:
            say("done", name, *version)
        if deletes:
            say("deleted", doomed)

    def delete(self) -> None:
        delete(self.store, self._choose.choice(self._names))

    def copy(self) -> None:
        copy(self.store, *self._choose.sample(self._names, 2))

    def rename(self) -> None:
        rename(self.store, *self._choose.sample(self._names, 2))

    def read(self) -> None:
        """For what reading changes: the machine's cache."""
        with contextlib.suppress(NameNotFound):
            oracle.check_value(FAMILY, self.store.gets(self._choose.choice(self._names)))


def delete(store: castore.Store, name: str) -> None:
    say("delete", name)
    try:
        store.delete(name)
    except NameNotFound:
        say("absent", name)
    else:
        say("deleted", name)


def copy(store: castore.Store, source: str, target: str) -> None:
    say("copy", source, target)
    try:
        store.copy(source, target)
    except NameNotFound:
        say("absent", source, target)
    else:
        say("copied", source, target)


def rename(store: castore.Store, source: str, target: str) -> None:
    say("rename", source, target)
    try:
        store.rename(source, target)
    except NameNotFound:
        say("absent", source, target)
    else:
        say("renamed", source, target)


def keep_writing(
    url: str, cache: str, writer: int, threads: int, place: str = "killed", pause_s: float = 0.0
) -> None:
    """Until killed, names below `place`. Now and then the store is closed, which tells others of
    what it has."""

    def run(thread: int) -> None:
        while True:
            with open_store(url, cache) as store:
                changes = Writer(store, writer, place, thread, pause_s)
                for _ in range(5):
                    changes.change()

    for thread in range(1, threads):
        threading.Thread(target=run, args=(thread,), daemon=True).start()
    run(0)


def keep_collecting(url: str, cache: str, turn: int) -> None:
    """Until killed; in some turns as a machine that repairs, in some with the server probed."""
    if turn % 5:
        do_not_probe()
    with open_store(url, cache) as store:
        while True:
            if turn % 3 == 0:
                assert_whole(store.check(repair=True))
            collect(store)


def collect(store: castore.Store, *, repack_below: float = 1.0) -> None:
    with contextlib.suppress(StoreBusy):  # a request of a collector that was killed came late
        report = store.gc(grace_s=0.0, repack_below=repack_below)
        assert report.damaged == report.undeletable == (), report


def do_not_probe() -> None:
    castore.s3.gc.server.probe = lambda bucket: ServerFeatures(True, True, True, True, True)  # type: ignore[attr-defined]


def assert_whole(report: CheckReport) -> None:
    assert all(problem.severity == "warning" for problem in report.problems), report.problems
    assert report.repaired == [], report.repaired


# ---------------------------------------------------------------- stopped

DOOMED = ("doomed/0", "doomed/1")  # removed while a writer is stopped, which may reuse their chunks
KEPT = "kept"


def large_versions(writer: int) -> Iterator[Version]:
    """Of values that have chunks in common with each other, and segments and packs of their own."""
    for version in (Version(writer, n) for n in range(1, 1 << 20)):
        if 50_000 < len(oracle.value_of(FAMILY, version)) < 120_000:
            yield version


def prepare(url: str, cache: str) -> None:
    """Names whose chunks are in packs of their own and of others, one of them half dead."""
    versions = large_versions(1)
    for names in (DOOMED, (KEPT,), ("half", "other half")):
        with open_store(url, cache) as store:
            putting = [(name, next(versions)) for name in names]
            with store.transaction() as transaction:
                for name, version in putting:
                    say("put", name, *version)
                    transaction.puts(name, oracle.value_of(FAMILY, version))
            for name, version in putting:
                say("done", name, *version)
    with open_store(url, cache) as store:
        delete(store, "other half")


def puts(store: castore.Store) -> None:
    """Twice in one session, of what others have chunks of, too; the second time over what is
    there."""
    versions = large_versions(2)
    for name in ("new", KEPT):
        version = next(versions)
        say("put", name, *version)
        store.puts(name, oracle.value_of(FAMILY, version))
        say("done", name, *version)


def puts_together(store: castore.Store) -> None:
    putting = list(zip(("t/1", "t/2", "t/3"), large_versions(3), strict=False))
    for name, version in putting:
        say("put", name, *version)
    say("delete", "half")
    with store.transaction() as transaction:
        for name, version in putting:
            transaction.puts(name, oracle.value_of(FAMILY, version))
        transaction.delete("half")
    for name, version in putting:
        say("done", name, *version)
    say("deleted", "half")


def deletes(store: castore.Store) -> None:
    delete(store, "half")
    delete(store, KEPT)


def copies(store: castore.Store) -> None:
    copy(store, KEPT, "copied")
    delete(store, KEPT)


def renames(store: castore.Store) -> None:
    """To a name that a listing has passed by then, and back."""
    rename(store, KEPT, "a")
    rename(store, "a", "zzz")


CHANGES: dict[str, Callable[[castore.Store], None]] = {
    "put": puts,
    "transaction": puts_together,
    "delete": deletes,
    "copy": copies,
    "rename": renames,
}


def change(url: str, cache: str, verb: str) -> None:
    try:
        with open_store(url, cache) as store:
            CHANGES[verb](store)
    except CastoreError as error:
        say("failed", repr(error))


def remove(url: str, cache: str, *names: str) -> None:
    """Delete them, and collect what they had."""
    do_not_probe()
    with open_store(url, cache) as store:
        for name in names:
            with contextlib.suppress(NameNotFound):
                store.delete(name)
        for _ in range(2):
            collect(store)


PROGRAMS: dict[str, Callable[..., None]] = {
    "keep_writing": keep_writing,
    "keep_collecting": keep_collecting,
    "prepare": prepare,
    "change": change,
    "remove": remove,
}

if __name__ == "__main__":
    serve()
