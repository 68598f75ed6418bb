"""Programs that collect while others write, and die of it: run as `python gc_oracle.py VERB ...`.

Imported by the collector's crash and concurrency tests.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path
from traceback import walk_stack
from typing import Any

import oracle

import castore
import castore.local.gc.repack
import castore.local.gc.sweep
from castore.errors import StoreBusy
from castore.local.journal import log


def make_everything_small() -> None:
    oracle.make_everything_small()
    castore.local.gc.repack.FRAMES_MAX = 20
    castore.local.gc.repack.SEGMENTS_MAX = 3
    castore.local.gc.repack.ROWS_MAX = castore.local.gc.sweep.ROWS_MAX = 16
    castore.local.gc.sweep.PACKS_MAX = 2
    castore.local.gc.sweep.SEGMENTS_MAX = 6


def collect(store_path: str, seconds: float) -> None:
    """Collect again and again, sometimes rewriting all that is not full."""
    choose = random.Random(os.getpid())
    deadline = time.monotonic() + seconds
    collections = busy = 0
    with castore.open(store_path, create=False, threads=1) as store:
        while time.monotonic() < deadline:
            try:
                report = store.gc(repack_below=choose.choice((0.3, 0.9)))
            except StoreBusy:
                busy += 1
                time.sleep(0.02)
            else:
                collections += 1
                assert report.damaged == report.missing == (), report
    print(json.dumps([collections, busy]))


def keep_collecting(store_path: str) -> None:
    make_everything_small()
    while True:
        collect(store_path, 1.0)


class Deleter(oracle.Worker):
    def run(self, seconds: float, *, reopen: bool = True) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.delete(self.random.choice(self.names))
            self.gets(self.random.choice(self.names))
            self.operations += 1
            time.sleep(0.005)
        self.store.close()


def delete(store_path: str, history_path: str, writer: int, seconds: float, names: int) -> None:
    history = oracle.History(history_path)
    Deleter(store_path, history, writer, [f"names/{i:02}" for i in range(names)]).run(seconds)
    history.close()


# ---------------------------------------------------------------- killed at every step


def kill_at_every_step(made: str, first: int, last: int, stride: int, torn: int) -> None:
    """For each step of a collection of a copy of a store, which is made at `made`: a process that
    dies there, then one that checks what it left."""
    said, status = oracle.in_child(lambda _, p=Path(made): make_garbage(p))
    assert status == 0, said.decode()
    failed: list[Any] = []
    tried = 0
    kinds: set[str] = set()
    finished = False
    for at in range(first, last, stride):
        path = f"{made}-{at}"
        shutil.copytree(made, path)
        steps = oracle.Steps(at, torn=bool(torn))
        said, status = oracle.in_child(lambda fd, p=path, s=steps: _run_steps(p, s, fd))
        tried += 1
        finished = status == 0
        if finished:
            kinds = set(json.loads(said.splitlines()[-1])[2])
        elif status != -signal.SIGKILL:
            failed.append([at, "the collection failed", status, said.decode()[-2000:]])
        report, status = oracle.in_child(lambda fd, p=path: _check_after(p, fd))
        if status != 0:
            failed.append([at, status, report.decode()[-2000:]])
        shutil.rmtree(path)
        if finished or len(failed) > 5:
            break
    print(json.dumps({"tried": tried, "finished": finished, "failed": failed, "of": sorted(kinds)}))


def _run_steps(store_path: str, steps: oracle.Steps, say_to: int) -> None:
    os.dup2(say_to, 1)
    make_everything_small()
    steps.install()
    with castore.open(store_path, create=False, threads=1) as store:
        store.gc(repack_below=0.9)
    oracle.say("count", steps.count, steps.names)
    os._exit(0)


def _check_after(store_path: str, report_to: int) -> None:
    """Nothing is lost, before another collection and after it, which leaves nothing."""
    os.dup2(report_to, 1)
    os.dup2(report_to, 2)
    make_everything_small()
    expected = json.loads(Path(f"{store_path.rpartition('-')[0]}.json").read_text())

    def check(store: castore.Store) -> None:
        found = {name: oracle.check_value(name, store.gets(name)) for name in store.names()}
        if found != {name: oracle.Version(*version) for name, version in expected.items()}:
            raise AssertionError(f"{found} and should be {expected}")

    with castore.open(store_path, create=False, threads=1) as store:
        check(store)
        store.puts("more", oracle.value_of("more", oracle.Version(9, 1)))
        expected["more"] = (9, 1)
        store.gc(repack_below=0.9)
        check(store)
    with castore.open(store_path, create=False, threads=1) as store:
        store.gc(repack_below=0.9)
        oracle.check_index(store)
        check(store)
        assert store.gc(repack_below=0.9).found_nothing
        on_disk = {path.stem for path in Path(store_path).glob("packs/*/*.pack")}
        index = store._catalog.index  # type: ignore[attr-defined]
        with index.gate, index.snapshot() as txn:
            rows = {key.hex() for key, _ in txn.cursor(db=index.packs)}
        assert on_disk == rows


def make_garbage(path: Path) -> None:
    """A store with all kinds of it; beside it, in JSON, which version each name has."""
    make_everything_small()
    expected: dict[str, oracle.Version] = {}
    for turn in range(5):
        with castore.open(path, chunk_bytes_avg=2816, threads=1) as store:
            for n in range(5):
                name, version = f"{turn % 3}/{n}", oracle.Version(1, 100 * turn + n)
                store.puts(name, oracle.value_of(name, version))
                expected[name] = version
    with castore.open(path, create=False, threads=1) as store:
        for name in ("0/1", "1/2", "1/3", "2/0"):
            store.delete(name)
            del expected[name]
    orphan = path / "packs" / "00" / f"{'0' * 32}.pack"
    orphan.parent.mkdir(exist_ok=True)
    orphan.write_bytes(b"castpack")
    Path(f"{path}.json").write_text(json.dumps(expected))


# ---------------------------------------------------------------- stopped at every step


class Stops(oracle.Steps):
    """Notes in a file in which step the process is stopped, and whether it then holds a lock that
    others wait for: LMDB's, or the one under which a process says that it uses the store."""

    signal = signal.SIGSTOP

    def __init__(self, stop_at: int, note: Path) -> None:
        super().__init__(stop_at)
        self._note = note

    def step(self, name: str) -> bool:
        if self.count + 1 == self.die_at:
            # The journal is written to, and begun, within LMDB's transaction.
            locked = (
                name in ("before commit", "pwrite", "write")
                or self.names[-1:] in (["pwrite"], ["write"])
                or any(frame.f_code.co_filename == log.__file__ for frame, _ in walk_stack(None))
            )
            self._note.write_text(json.dumps([name, locked]))
        return super().step(name)


def stop_at_every_step(folder: str, first: int, last: int, stride: int) -> None:
    """For each step of a writer: one that is stopped there while another process collects, and goes
    on when that has ended, or can't as the writer holds a lock."""
    make_everything_small()
    failed: list[Any] = []
    tried, finished = 0, False
    for at in range(first, last, stride):
        path, note = os.path.join(folder, f"{at}"), Path(folder, f"{at}.step")
        steps = Stops(at, note)
        writer = oracle.fork_child(lambda fd, p=path, s=steps: oracle.run_steps(p, s, fd))
        finished = not _is_stopped(writer[0])
        collector = oracle.fork_child(lambda _, p=path: _collect(p))
        if not finished:
            name, locked = json.loads(note.read_text())
            if not _ends(collector[0], 0.2 if locked else 20) and not locked:
                failed.append([at, f"the collector waits for a writer that is stopped at {name}"])
            os.kill(writer[0], signal.SIGCONT)
        said, status = oracle.await_child(*writer)
        if status != 0:
            failed.append([at, "the writer failed", status, said.decode()[-2000:]])
            break
        for report, status in (
            oracle.await_child(*collector),
            oracle.in_child(lambda fd, p=path, s=said: oracle.check_scenario(p, s, fd)),
            oracle.in_child(lambda _, p=path: _check_collected(p)),
        ):
            if status != 0:
                failed.append([at, status, report.decode()[-2000:]])
        shutil.rmtree(path)
        tried += 1
        if finished or len(failed) > 5:
            break
    print(json.dumps({"tried": tried, "finished": finished, "failed": failed}))


def _is_stopped(pid: int) -> bool:
    """Once the process is, or has ended; it can still be waited for."""
    found = os.waitid(os.P_PID, pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    return found is not None and found.si_code == os.CLD_STOPPED


def _ends(pid: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def _collect(store_path: str) -> None:
    with castore.open(store_path, chunk_bytes_avg=2816, threads=1) as store:
        report = store.gc(repack_below=0.9)
    assert report.damaged == report.missing == (), report


def _check_collected(store_path: str) -> None:
    """All is still there when what the writer left is collected."""
    with castore.open(store_path, create=False, threads=1) as store:
        names = list(store.names())
    _collect(store_path)
    with castore.open(store_path, create=False, threads=1) as store:
        oracle.check_index(store)
        assert [
            name for name in store.names() if oracle.check_value(name, store.gets(name))
        ] == names


PROGRAMS = {
    "collect": collect,
    "keep_collecting": keep_collecting,
    "delete": delete,
    "kill_at_every_step": kill_at_every_step,
    "stop_at_every_step": stop_at_every_step,
}


def command(verb: str, *args: Any) -> list[str]:
    return [sys.executable, os.path.abspath(__file__), verb, json.dumps(args)]


if __name__ == "__main__":
    PROGRAMS[sys.argv[1]](*json.loads(sys.argv[2]))
