"""Stores that tests damage, and what is known of what they hold."""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import random
import resource
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO

import lmdb
import pytest

import castore
from castore.system import isolated

TABLES = (b"names", b"segments", b"chunks", b"packs", b"pending", b"changes", b"meta")
# A castore.json that says the same, as after an editor.
OTHER_BYTES: dict[str, Callable[[bytes], bytes]] = {
    "no last newline": bytes.strip,
    "indented anew": lambda raw: json.dumps(json.loads(raw), indent=4).encode() + b"\n",
    "in another order": lambda raw: json.dumps(dict(reversed(json.loads(raw).items()))).encode(),
}


def pytest_configure(config: pytest.Config) -> None:
    said = "apart: its checks have a process of their own, as users': LMDB may die of what it does"
    config.addinivalue_line("markers", said)
    said = "fresh: what is done apart is done in an interpreter of its own, and not in a fork"
    config.addinivalue_line("markers", said)


@pytest.fixture(autouse=True)
def _checks_here(request: pytest.FixtureRequest) -> Iterator[None]:
    """Checks without a process of their own, or by a fork that ends as it would: an interpreter
    takes longer to start than they do."""
    marked = request.node.get_closest_marker
    with pytest.MonkeyPatch.context() as patch:
        if not marked("apart"):
            patch.setattr(isolated, "run", _run_here)
        elif not marked("fresh"):
            patch.setattr(isolated, "subprocess", _Forks)
        yield


def _run_here(task: str, index_path: str, *, fds: object = (), **arguments: Any) -> Any:
    module, _, function = task.partition(":")
    reports: list[dict[str, Any]] = []
    getattr(import_module(module), function)(reports.append, **arguments)
    return iter(json.loads(json.dumps(reports)))


class _Fork:
    """What `isolated.run` asks of a Popen."""

    def __init__(self, command: list[str], *, stdin: BinaryIO, stderr: BinaryIO, **_: Any) -> None:
        task, writing = command[-2:]
        arguments = stdin.read().decode()
        self._pid = os.fork()
        if self._pid == 0:
            try:
                faulthandler.disable()
                os.dup2(stderr.fileno(), 2)
                isolated._main(task, arguments, int(writing))
                os._exit(0)
            except BaseException:
                os.write(2, traceback.format_exc().encode())
            finally:
                os._exit(1)

    def kill(self) -> None:
        os.kill(self._pid, signal.SIGKILL)

    def wait(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])


class _Forks:
    Popen = _Fork
    DEVNULL = subprocess.DEVNULL


def failures(calls: Sequence[object], codes: Sequence[int]) -> list[Any]:
    """Parameters: every call with every error code. By default each of them once, the rest when
    there is time."""
    return [
        pytest.param(call, code, marks=() if i % len(codes) == j else pytest.mark.long)
        for i, call in enumerate(calls)
        for j, code in enumerate(codes)
    ]


def contents(seed: int = 0, names: int = 12) -> dict[str, bytes]:
    """Objects of all kinds: inline, raw and compressed chunks, shared chunks, an empty one."""
    choose = random.Random(seed)
    shared = choose.randbytes(20_000)
    made: dict[str, bytes] = {"empty": b"", "inline": b"inline" * 20}
    for i in range(names):
        body = choose.randbytes(choose.randrange(5_000, 25_000))
        if i % 3 == 0:
            body = body.hex().encode()
        made[f"n/{i:02}"] = shared + body if i % 2 else body
    return made


def fill(store: castore.Store, values: dict[str, bytes]) -> None:
    for name, value in values.items():
        store.puts(name, value)


def read(store: castore.Store) -> dict[str, bytes]:
    """All that can be read in full, those below quarantine/ aside."""
    found = {}
    for name in store.names():
        if not name.startswith("quarantine/"):
            try:
                found[name] = store.gets(name)
            except castore.CastoreError:
                continue
    return found


def rows(folder: Path) -> dict[bytes, dict[bytes, bytes]]:
    """Every row of the index in a store's folder, which nobody has open; but for how far its
    journal is."""
    with lmdb.open(str(folder / "index"), max_dbs=9, readonly=True, lock=False) as environment:
        tables = {table: environment.open_db(table, create=False) for table in TABLES}
        with environment.begin() as txn:
            found = {
                table: {bytes(k): bytes(v) for k, v in txn.cursor(db=db)}
                for table, db in tables.items()
            }
    found[b"meta"].pop(b"journal", None)
    return found


def change_rows(folder: Path, table: bytes, changes: dict[bytes, bytes | None]) -> None:
    """Put rows, or delete those that map to None, behind castore's back."""
    with lmdb.open(str(folder / "index"), max_dbs=9, map_size=1 << 30) as environment:
        db = environment.open_db(table, create=False)
        with environment.begin(write=True) as txn:
            for key, value in changes.items():
                if value is None:
                    txn.delete(key, db=db)
                else:
                    txn.put(key, value, db=db)


def packs(folder: Path) -> list[Path]:
    return sorted((folder / "packs").glob("*/*.pack"))


def packs_of(store: castore.Store) -> list[Path]:
    return packs(Path(store.path))


def locked(path: Path) -> bool:
    """Whether another process would find the file locked."""
    test = "import fcntl, sys; fcntl.flock(open(sys.argv[1]), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    command = [sys.executable, "-c", test, str(path)]
    return subprocess.run(command, capture_output=True).returncode != 0


def flip(path: Path, bit: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[bit >> 3] ^= 1 << (bit & 7)
    path.write_bytes(raw)


def small(path: Path, **options: Any) -> castore.Store:
    """Opened with chunks as small as they come."""
    return castore.open(path, chunk_bytes_avg=2816, threads=2, **options)


@contextlib.contextmanager
def descriptors_to_spare(count: int) -> Iterator[None]:
    """This process gets no more than so many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.ExitStack() as taken:
        used = max(map(int, os.listdir("/proc/self/fd")))
        spare = 0
        while spare < used:
            spare = os.open(os.devnull, os.O_RDONLY)
            taken.callback(os.close, spare)
        resource.setrlimit(resource.RLIMIT_NOFILE, (spare + 1 + count, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
