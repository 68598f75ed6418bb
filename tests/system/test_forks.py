"""Forks: the child gets a store of its own, and takes nothing from its parent."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import oracle
import pytest

import castore
from castore.errors import CastoreError, StoreClosed

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="forks"),
    # Newer Pythons warn of what is tested here: forking with threads.
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
]

LARGE = random.Random(1).randbytes(9_000_000)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[castore.Store]:
    with castore.open(tmp_path / "store", threads=2) as store:
        store.puts("large", LARGE)
        store.puts("inline", b"inline")
        yield store


def child(run: Callable[[], object], *, seconds: int = 30) -> None:
    """Run it in a forked process, which must succeed and not hang."""
    said, status = oracle.in_child(lambda _: run() and None, seconds=seconds)
    assert status == 0, f"{status} {said.decode()}"


def lockable(path: Path) -> bool:
    """Whether another process could take the lock, as a collector would."""
    program = (
        "import fcntl, sys\n"
        "with open(sys.argv[1]) as file:\n"
        "    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)\n"
    )
    run = subprocess.run([sys.executable, "-c", program, path], stderr=subprocess.PIPE, check=False)
    assert run.returncode == 0 or b"BlockingIOError" in run.stderr
    return run.returncode == 0


def packs_of(store: castore.Store) -> set[Path]:
    return set(Path(store.path).glob("packs/*/*.pack"))


# ---- the child's store --------------------------------------------------------------------------


def test_a_child_reads_and_writes(store: castore.Store) -> None:
    def use() -> None:
        assert store.gets("large") == LARGE
        assert store.gets("large", (5_000_000, 5_000_100)) == LARGE[5_000_000:5_000_100]
        assert store.gets("inline") == b"inline"
        assert list(store.names()) == ["inline", "large"]
        store.puts("child/inline", b"c")
        store.puts("child/large", LARGE[::-1])
        with store.transaction() as transaction:
            transaction.copy("large", "child/copy")
            transaction.delete("inline")
        assert store.stats().objects == 4
        assert store.gets("child/large") == LARGE[::-1]

    assert store.gets("large") == LARGE  # so that there are threads that the child lacks
    child(use)
    assert store.gets("child/large") == LARGE[::-1]
    assert store.gets("child/copy") == LARGE
    assert not store.exists("inline")
    store.puts("parent", LARGE[1:])
    assert store.gets("parent") == LARGE[1:]


def test_children_while_threads_read_and_write(store: castore.Store) -> None:
    stop = threading.Event()
    errors: list[BaseException] = []
    turns = {"read": 0, "write": 0, "small": 0}

    def read() -> None:
        assert store.gets("large") == LARGE

    def write() -> None:
        data = random.Random(turns["write"]).randbytes(2_000_000)
        store.puts("written", data)
        assert store.gets("written") == data

    def small() -> None:
        store.puts("small", b"%d" % turns["small"])
        assert store.gets("inline") == b"inline"
        assert len(list(store.names())) >= 2

    def keep(name: str, task: Callable[[], None]) -> None:
        try:
            while not stop.is_set():
                task()
                turns[name] += 1
        except BaseException as error:
            errors.append(error)

    tasks = {"read": read, "write": write, "small": small}
    threads = [threading.Thread(target=keep, args=item, daemon=True) for item in tasks.items()]
    for thread in threads:
        thread.start()

    def use(i: int) -> None:
        assert store.gets("large") == LARGE
        assert len(store.gets("written", (0, 10)) if store.exists("written") else bytes(10)) == 10
        store.puts(f"child/{i}", LARGE[i : i + 100_000])

    for i in range(12):
        child(lambda i=i: use(i))  # type: ignore[misc]
        assert store.gets(f"child/{i}") == LARGE[i : i + 100_000]
    stop.set()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive(), "a thread of the parent hangs"
    assert errors == []
    assert min(turns.values()) > 0


def test_the_first_use_in_a_child_by_several_threads(store: castore.Store) -> None:
    def use() -> None:
        errors: list[BaseException] = []
        start = threading.Barrier(5)

        def run(i: int) -> None:
            start.wait()
            try:
                if i % 2:
                    store.puts(f"child/{i}", bytes([i]) * (10 + i * 4000))
                else:
                    assert store.gets("large", (10, 5000)) == LARGE[10:5000]
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=run, args=(i,)) for i in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]

    for _ in range(15):
        child(use, seconds=15)


def test_a_grandchild(store: castore.Store) -> None:
    def use() -> None:
        store.puts("child", b"1" * 50_000)
        child(lambda: store.puts("grandchild", store.gets("child") * 2))
        assert store.gets("grandchild") == b"1" * 100_000

    child(use)
    assert store.gets("grandchild") == b"1" * 100_000


def test_a_child_that_closes_the_store(store: castore.Store) -> None:
    def use() -> None:
        store.close()
        with pytest.raises(StoreClosed):
            store.gets("inline")
        with castore.open(store.path, create=False) as again:
            assert again.gets("inline") == b"inline"

    child(use)
    assert store.gets("inline") == b"inline"
    store.puts("more", LARGE[7:])
    assert store.gets("more") == LARGE[7:]


def test_a_closed_store_stays_closed_in_a_child(store: castore.Store) -> None:
    store.close()

    def use() -> None:
        with pytest.raises(StoreClosed):
            store.gets("inline")
        with pytest.raises(StoreClosed):
            store.puts("a", b"a")

    child(use)


def test_an_open_file_is_read_on_in_parent_and_child(store: castore.Store) -> None:
    with store.open("large") as file:
        assert file.read(1_000_000) == LARGE[:1_000_000]
        child(lambda: file.read() == LARGE[1_000_000:] or os._exit(3))
        assert file.read() == LARGE[1_000_000:]


def test_a_child_has_none_of_its_parents_descriptors(store: castore.Store) -> None:
    """Neither of LMDB's files, whose locks are the parent's, nor of its packs."""
    inherited = set(os.listdir("/proc/self/fd"))

    def use() -> None:
        mine = {os.readlink(f"/proc/self/fd/{fd}") for fd in inherited if os.path.exists(
            f"/proc/self/fd/{fd}")}  # fmt: skip
        mine = {path for path in mine if path.startswith(store.path)}
        assert not [path for path in mine if path.endswith((".pack", ".mdb"))]
        assert store.gets("inline") == b"inline"

    child(use)


# ---- what stays the parent's --------------------------------------------------------------------


def test_the_parents_reader_keeps_its_slot(store: castore.Store) -> None:
    """A snapshot that the parent holds while a child comes, uses the store and goes."""
    index = store._catalog._index
    ready, go = os.pipe()

    def use() -> None:
        os.close(go)
        os.read(ready, 1)
        for i in range(5):
            store.puts("inline", b"%d" % i)

    status: list[tuple[bytes, int]] = []
    forked = threading.Thread(target=lambda: status.append(oracle.in_child(lambda _: use())))
    forked.start()
    time.sleep(0.3)  # the child waits
    with index.gate, index.snapshot() as txn:
        before = bytes(txn.get(b"inline", db=index.names))
        os.close(go)
        os.close(ready)
        forked.join(30)
        assert status[0][1] == 0, status[0][0].decode()
        assert index._env is not None
        assert str(os.getpid()) in index._env.readers()
        assert bytes(txn.get(b"inline", db=index.names)) == before
    assert store.gets("inline") == b"4"


@pytest.mark.parametrize("verb", ["gets", "open", "range", "info", "delete"])
def test_a_fork_while_an_error_is_handled(store: castore.Store, verb: str) -> None:
    """The error's traceback keeps alive what the failed call used, a transaction too. When it goes,
    after the child has started to read, the child's slot must not go with it."""
    index = store._catalog._index
    calls = {
        "range": lambda: store.gets("inline", (-1, 2)),
        "gets": lambda: store.gets("missing"),
        "open": lambda: store.open("missing"),
        "info": lambda: store.info("missing"),
        "delete": lambda: store.delete("missing"),
    }
    reading, done, kept = os.pipe(), os.pipe(), os.pipe()
    try:
        calls[verb]()
    except (FileNotFoundError, ValueError):
        pid = os.fork()
        if pid == 0:
            signal.alarm(20)
            os.close(done[1])
            with index.gate, index.snapshot():
                os.write(reading[1], b"1")
                os.read(done[0], 1)
                listed = str(os.getpid()) in index._env.readers()  # type: ignore[union-attr]
                os.write(kept[1], b"yes" if listed else b"no ")
            os._exit(0)
        os.read(reading[0], 1)
    os.close(done[1])
    os.waitpid(pid, 0)
    assert os.read(kept[0], 3) == b"yes"
    for fd in (*reading, done[0], *kept):
        os.close(fd)


def test_a_fork_waits_for_transactions(store: castore.Store) -> None:
    """An inherited transaction that the child drops would give up the parent's slot."""
    index = store._catalog._index
    inside, leave = threading.Event(), threading.Event()
    ended: list[float] = []

    def hold() -> None:
        with index.gate, index.snapshot():
            inside.set()
            leave.wait(10)
            ended.append(time.monotonic())

    holder = threading.Thread(target=hold)
    holder.start()
    inside.wait()
    threading.Timer(0.4, leave.set).start()
    child(lambda: None)
    assert ended
    holder.join()


def test_locks_of_packs_stay_with_the_parent(store: castore.Store) -> None:
    (mine,) = packs_of(store)
    assert not lockable(mine)
    child(lambda: store.puts("child", LARGE[5:]))
    (childs,) = packs_of(store) - {mine}
    assert lockable(childs)
    assert not lockable(mine), "the child's end took the parent's lock"
    child(lambda: store.close())
    assert not lockable(mine)
    store.puts("more", LARGE[9:])
    assert not lockable(mine)
    store.close()
    assert lockable(mine)


def test_the_lock_of_the_store_is_the_childs_too(store: castore.Store) -> None:
    """While any process has it open, it is taken."""
    lock = Path(store.path) / "castore.lock"
    started, parent_closed = os.pipe(), os.pipe()

    def use() -> None:
        os.close(parent_closed[1])
        store.gets("inline")
        os.write(started[1], b"1")
        os.read(parent_closed[0], 1)

    thread = threading.Thread(target=lambda: oracle.in_child(lambda _: use()))
    thread.start()
    os.read(started[0], 1)
    store.close()
    assert not lockable(lock)
    os.close(parent_closed[1])
    thread.join(30)
    assert lockable(lock)
    for fd in (*started, parent_closed[0]):
        os.close(fd)


# ---- a put that a fork cuts in two --------------------------------------------------------------


@pytest.mark.parametrize("size", [100, 100_000, 20_000_000])
@pytest.mark.parametrize("staged", [False, True])
def test_a_put_in_progress_ends_in_the_parent_only(
    store: castore.Store, size: int, staged: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if staged:
        monkeypatch.setattr("castore.format.segment.SEGMENT_EXTENTS_MAX", 8)
        monkeypatch.setattr("castore.local.session.ROWS_MAX", 16)
    data = random.Random(size).randbytes(size)
    file = store.open("cut", "wb")
    file.write(data)

    def use() -> None:
        with pytest.raises(CastoreError):  # noqa: PT012
            file.write(data)
            file.close()
        file.abort()
        assert not store.exists("cut")
        store.puts("child", data)
        assert store.gets("child") == data

    child(use)
    file.write(b"the end")
    file.close()
    assert store.gets("cut") == data + b"the end"
    assert store.gets("child") == data


def test_a_transaction_in_progress_ends_in_the_parent_only(store: castore.Store) -> None:
    with store.transaction() as transaction:
        transaction.puts("t/1", LARGE[3:])
        transaction.puts("t/2", b"2")

        def use() -> None:
            with pytest.raises(CastoreError), transaction:
                transaction.puts("t/3", b"3")
            assert not store.exists("t/1")

        child(use)
    assert store.gets("t/1") == LARGE[3:]
    assert list(store.names("t/")) == ["t/1", "t/2"]


def test_a_transaction_that_a_thread_puts_into_does_not_hang_in_a_child(
    store: castore.Store,
) -> None:
    """The thread is not there, and what it holds is held."""
    amid, over = threading.Event(), threading.Event()

    class Slow:
        def read(self, size: int) -> bytes:
            amid.set()
            assert over.wait(60)
            return b""

    with store.transaction() as transaction:
        thread = threading.Thread(target=transaction.put, args=("t/1", Slow()))
        thread.start()
        assert amid.wait(60)

        def use() -> None:
            with pytest.raises(CastoreError, match="before a fork"), transaction:
                transaction.puts("t/2", b"2")

        child(use, seconds=10)
        over.set()
        thread.join()
    assert list(store.names("t/")) == ["t/1"]


def test_dropping_an_inherited_put_leaves_the_parents_alone(store: castore.Store) -> None:
    """The child's end collects what it inherited."""
    file = store.open("cut", "wb")
    file.write(LARGE[11:])
    holder = [file]

    def use() -> None:
        holder.clear()
        store.puts("child", b"c")

    child(use)
    file.close()
    assert store.gets("cut") == LARGE[11:]


# ---- multiprocessing ----------------------------------------------------------------------------


def read_in_child(store: castore.Store, begin: int) -> bytes:
    return store.gets("large", (begin, begin + 100))


def put_in_child(store: castore.Store, name: str) -> str:
    store.puts(name, name.encode() * 10_000)
    return store.path


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing(
    store: castore.Store, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", oracle.environment()["PYTHONPATH"])
    context = multiprocessing.get_context(method)
    with context.Pool(2) as pool:
        tasks = [(store, begin) for begin in range(0, 8_000_000, 1_000_000)]
        assert pool.starmap(read_in_child, tasks) == [LARGE[b : b + 100] for _, b in tasks]
        paths = pool.starmap(put_in_child, [(store, f"{method}/{i}") for i in range(4)])
        pool.close()
        pool.join()
    assert set(paths) == {store.path}
    for i in range(4):
        assert store.gets(f"{method}/{i}") == f"{method}/{i}".encode() * 10_000
    process = context.Process(target=put_in_child, args=(store, "process"))
    process.start()
    process.join(30)
    assert process.exitcode == 0
    assert store.exists("process")


def test_a_pickled_store_opens_again(store: castore.Store) -> None:
    with pickle.loads(pickle.dumps(store)) as again:
        assert again.path == store.path
        assert again.gets("inline") == b"inline"
        again.puts("again", b"1")
    assert store.gets("again") == b"1"
    with castore.open(store.path, read_only=True, cache_bytes=0, threads=1) as reading:
        pickled = pickle.dumps(reading)
    with pickle.loads(pickled) as again:
        assert again.read_only
        with pytest.raises(PermissionError):
            again.puts("a", b"")


# ---- deadlocks: each of these programs hung, or could have --------------------------------------

BEGINNING = """
import os, random, signal, sys, threading
import castore
def child(use=lambda: None):
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)
        status = 1
        try:
            use()
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0
def keep(*tasks):
    def run(task):
        while True:
            task()
    for task in tasks:
        threading.Thread(target=run, args=(task,), daemon=True).start()
def reopen():
    with castore.open(sys.argv[1], threads=1) as other:
        other.exists('inline')
store = castore.open(sys.argv[1], threads=2)
"""


@pytest.mark.parametrize(
    "rest",
    [
        # Threads that hand tasks to a pool, whose own lock is taken at a fork too.
        "keep(*[lambda: store.gets('large')] * 2)\nfor _ in range(25): child()",
        # Threads that open and close stores.
        "store.close()\nkeep(reopen)\nfor _ in range(40): child(reopen)",
        # Two threads that fork.
        "keep(child, lambda: store.gets('inline'))\nfor _ in range(50): child()",
        # Writers waiting for each other.
        "keep(*[lambda: store.puts('w', b'w')] * 2)\nfor _ in range(15): child(lambda: "
        "store.puts('w', b'c'))",
    ],
    ids=["submit", "open", "fork", "write"],
)
def test_forks_amid_everything(store: castore.Store, rest: str) -> None:
    oracle.run_program(f"{BEGINNING}\n{rest}\nos._exit(0)", store.path, seconds=60)


def test_a_fork_that_is_interrupted(store: castore.Store) -> None:
    """While it waits for a transaction: neither parent nor child hangs afterwards."""
    program = """
import os, signal, sys, threading, time
import castore
store = castore.open(sys.argv[1], threads=1)
inside = threading.Event()
def hold():
    index = store._catalog._index
    with index.write_gate, index.begin():
        inside.set()
        time.sleep(1)
holder = threading.Thread(target=hold)
holder.start()
inside.wait()
def interrupt(*_):
    raise KeyboardInterrupt
signal.signal(signal.SIGALRM, interrupt)
signal.setitimer(signal.ITIMER_REAL, 0.2)
pid = None
try:
    pid = os.fork()
except KeyboardInterrupt:
    pass
if pid == 0:
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(10)
    store.puts('child', b'c' * 9000)
    os._exit(0)
assert not pid or os.waitpid(pid, 0)[1] == 0
holder.join()
signal.signal(signal.SIGALRM, signal.SIG_DFL)
signal.alarm(10)
store.puts('after', b'a' * 9000)
pid = os.fork()
if pid == 0:
    store.puts('child', b'd' * 9000)
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
assert store.gets('child') == b'd' * 9000
"""
    oracle.run_program(program, store.path, seconds=30)


def test_a_fork_that_ran_no_hooks(store: castore.Store) -> None:
    """One made by C: the pid is what tells."""
    program = """
import ctypes, os, signal, sys
import castore
store = castore.open(sys.argv[1], threads=1)
assert store.gets('inline') == b'inline'
store.puts('parent', b'p' * 9000)
pid = ctypes.PyDLL(None).fork()
if pid == 0:
    signal.alarm(20)
    status = 1
    try:
        assert store.gets('parent') == b'p' * 9000
        store.puts('child', b'c' * 9000)
        status = 0
    finally:
        os._exit(status)
assert os.waitpid(pid, 0)[1] == 0
assert store.gets('child') == b'c' * 9000
store.puts('parent', b'q' * 9000)
"""
    (mine,) = packs_of(store)
    oracle.run_program(program, store.path)
    assert store.gets("parent") == b"q" * 9000
    assert not lockable(mine)


def test_interrupted_calls_leave_nothing_locked(store: castore.Store) -> None:
    """Ctrl-C at any moment: the next call does not hang."""
    program = """
import random, signal, sys, time
import castore
class Stop(BaseException): pass
def interrupt(*_):
    signal.setitimer(signal.ITIMER_REAL, 0.2)  # where it was swallowed, as in a __del__: again
    raise Stop
store = castore.open(sys.argv[1], threads=1)
choose = random.Random(1)
until, stops = time.monotonic() + 3, 0
while time.monotonic() < until:
    signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, choose.random() * 0.002 + 1e-5)
        while True:
            store.gets('inline'), store.gets('large', (100, 200)), list(store.names())
            if choose.random() < 0.1:
                store.puts('interrupted', bytes(choose.randrange(4000)))
    except Stop:
        stops += 1
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(10)
    assert store.gets('inline') == b'inline'
    store.puts('after', b'a')
    signal.alarm(0)
assert stops > 20, stops
"""
    oracle.run_program(program, store.path)


def test_a_child_that_closes_all_descriptors_closes_none_of_others(store: castore.Store) -> None:
    """As one does that becomes a daemon; what it opens then has the numbers of what it closed."""
    store.puts("w", os.urandom(20_000))
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.closerange(3, 256)
            opened = [os.open(os.devnull, os.O_RDONLY) for _ in range(60)]
            store.puts("from a daemon", b"1")
            assert len(store.gets("w")) == 20_000
            store.close()
            for fd in opened:
                os.fstat(fd)
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0
    assert store.gets("from a daemon") == b"1"


def test_what_a_daemon_prints_is_not_written_into_the_store(store: castore.Store) -> None:
    """One that closed the standard descriptors: a file that is opened next would get a number that
    is printed to."""
    store.puts("w", os.urandom(20_000))

    def become_a_daemon() -> None:
        os.closerange(0, 3)
        with castore.open(store.path) as again:  # the parent's index is opened anew for this
            again.puts("from a daemon", os.urandom(20_000))
            for number in (1, 2):
                with pytest.raises(OSError, match="Bad file descriptor"):
                    os.write(number, b"a line of a log\n" * 1000)
            again.puts("later", b"1")

    child(become_a_daemon)
    assert sorted(store.names()) == ["from a daemon", "inline", "large", "later", "w"]
    store.close()
    with castore.open(store.path) as opened:
        assert opened.check(read_data=True).clean


def test_a_store_is_opened_checked_and_copied_without_standard_descriptors(tmp_path: Path) -> None:
    program = """
import os, sys
import castore
os.closerange(0, 3)
with castore.open(sys.argv[1]) as store:
    store.puts('w', bytes(20_000))
    for number in range(3):
        if not os.path.samestat(os.fstat(number), os.stat(os.devnull)):
            os._exit(3 + number)
    assert store.backup(sys.argv[2]).names == 1
assert castore.check_store(sys.argv[1], read_data=True).clean
assert castore.compact_index(sys.argv[1]).names == 1
os._exit(0)
"""
    oracle.run_program(program, tmp_path / "store", tmp_path / "backup")
    with castore.open(tmp_path / "store") as opened:
        assert opened.gets("w") == bytes(20_000)
