"""Many processes and threads on one store: what each sees is what some order of them would give."""

from __future__ import annotations

import contextlib
import io
import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import oracle
import pytest
from oracle import ABSENT, DELETE, PRESENT, PUT, READ, Event, Torn, Version
from threads import in_threads

import castore
from castore.errors import NameExists, StoreClosed
from castore.local import folder
from castore.local import store as making

NAMES = 50

# ---- the oracle: it passes what can be, and finds what can't -------------------------------------

V1, V2 = Version(1, 1), Version(1, 2)


def put(version: Version, start: int, end: int) -> Event:
    return Event(PUT, 0, start, end, version)


def read(version: Version, start: int, end: int) -> Event:
    return Event(READ, 0, start, end, version)


def delete(start: int, end: int) -> Event:
    return Event(DELETE, 0, start, end)


def absent(start: int, end: int) -> Event:
    return Event(ABSENT, 0, start, end)


def present(start: int, end: int) -> Event:
    return Event(PRESENT, 0, start, end)


@pytest.mark.parametrize(
    "history",
    [
        [absent(0, 1), put(V1, 2, 3), read(V1, 4, 5), put(V2, 6, 7), read(V2, 8, 9)],
        # While a put runs, a read may see it or not, and so may the next one see it.
        [put(V1, 0, 1), put(V2, 2, 9), read(V1, 3, 4), read(V2, 5, 6), read(V2, 7, 8)],
        [put(V1, 0, 9), put(V2, 0, 9), read(V2, 1, 2), read(V1, 3, 4)],
        [put(V1, 0, 1), delete(2, 9), read(V1, 3, 4), absent(5, 6), absent(10, 11)],
        [delete(0, 1), absent(0, 1), put(V1, 2, 3), present(4, 5), delete(6, 7), absent(8, 9)],
        [put(V1, 0, 1), delete(2, 10), put(V2, 3, 11), absent(4, 5), read(V2, 6, 7)],
    ],
)
def test_the_oracle_passes_what_can_be(history: list[Event]) -> None:
    assert oracle.judge(history) == []


@pytest.mark.parametrize(
    ("history", "fault"),
    [
        ([read(V1, 0, 1)], "nobody acknowledged"),
        ([read(V1, 0, 1), put(V1, 2, 3)], "before it was written"),
        ([put(V1, 0, 1), put(V2, 2, 3), read(V1, 4, 5)], "stale"),
        ([put(V1, 0, 1), delete(2, 3), read(V1, 4, 5)], "stale"),
        ([put(V1, 0, 1), absent(2, 3)], "lost"),
        ([delete(0, 1), put(V1, 2, 3), absent(4, 5)], "lost"),
        ([put(V1, 0, 1), delete(2, 3), present(4, 5)], "came back"),
        ([present(0, 1), put(V1, 2, 3)], "came back"),
        # The new version was seen, and then the old one again.
        ([put(V1, 0, 1), put(V2, 2, 9), read(V2, 3, 4), read(V1, 5, 6)], "amid"),
        ([put(V1, 0, 1), put(V2, 0, 1), read(V1, 3, 4), read(V2, 5, 6), read(V1, 7, 8)], "both"),
        # An acknowledged write of which nothing was ever seen.
        ([put(V1, 0, 9), put(V2, 2, 3), read(V1, 0, 1), read(V1, 4, 5)], "amid"),
        ([put(V1, 0, 9), delete(2, 3), read(V1, 0, 1), read(V1, 4, 5)], "amid"),
        ([put(V1, 0, 9), absent(2, 3), read(V1, 0, 1), read(V1, 4, 5), delete(0, 9)], "amid"),
    ],
)
def test_the_oracle_finds_what_can_not_be(history: list[Event], fault: str) -> None:
    assert any(fault in found for found in oracle.judge(history))
    # On another name it would be no fault, or be found by itself.
    assert oracle.judge([event._replace(name=7) for event in history])


@pytest.mark.parametrize("seed", range(20))
def test_the_oracle_has_no_quarrel_with_a_real_register(seed: int) -> None:
    """Random overlapping operations, each of which takes effect at one moment."""
    source = random.Random(seed)
    moments = sorted(source.sample(range(100_000), 300))
    current: Version | None = None
    history = []
    for n, moment in enumerate(moments):
        span = max(0, moment - source.randrange(1, 3000)), moment + source.randrange(1, 3000)
        kind = source.random()
        if kind < 0.3:
            current = Version(n, 1)
            history.append(put(current, *span))
        elif kind < 0.4:
            history.append(absent(*span) if current is None else delete(*span))
            current = None
        elif kind < 0.5:
            history.append(absent(*span) if current is None else present(*span))
        else:
            history.append(absent(*span) if current is None else read(current, *span))
    assert oracle.judge(history) == []
    # And with one early version put in place of the last ones read, it has.
    reads = [event for event in history if event.kind == READ]
    late = [event for event in reads if event.start > 50_000]
    first = next(event.version for event in history if event.kind == PUT)
    wrong = [event._replace(version=first) if event in late else event for event in history]
    assert oracle.judge(wrong)


def test_the_oracle_finds_torn_and_mixed_values() -> None:
    version = next(
        Version(1, n) for n in range(99) if len(oracle.value_of("a", Version(1, n))) > 100_000
    )
    value = oracle.value_of("a", version)
    assert oracle.check_value("a", value) == version
    for wrong in (
        value[:-1],
        value + b"\0",
        value[:50_000] + b"\0" + value[50_001:],
        value[:50_000] + oracle.value_of("a", Version(1, 1000))[50_000:],
        b"",
        oracle.value_of("b", version),
    ):
        with pytest.raises(Torn):
            oracle.check_value("a", wrong)


# ---- processes ----------------------------------------------------------------------------------


def run_oracle(folder: Path, *, processes: int, seconds: float) -> list[Event]:
    store_path = str(folder / "store")
    castore.open(store_path).close()
    histories = [str(folder / f"history-{i}") for i in range(processes)]
    running = [
        subprocess.Popen(
            oracle.command("work", store_path, history, i + 1, seconds, NAMES),
            env=oracle.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for i, history in enumerate(histories)
    ]
    try:
        for process in running:
            _, errors = process.communicate(timeout=seconds + 180)
            assert process.returncode == 0, errors.decode()
    finally:
        for process in running:
            process.kill()
            process.wait()
    events = [event for history in histories for event in oracle.read_history(history)]
    with castore.open(store_path, create=False) as store:
        events += oracle.final_reads(store, NAMES)
        assert store.stats().logical_bytes == sum(info.size for info in store.list())
        assert not store._catalog._index._env.readers().count("\n") > 1  # type: ignore[union-attr]
    return events


def test_processes_agree_for_a_few_seconds(tmp_path: Path) -> None:
    oracle.check_histories(run_oracle(tmp_path, processes=4, seconds=2), least=10)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_sixteen_processes_agree_for_a_minute(tmp_path: Path) -> None:
    oracle.check_histories(run_oracle(tmp_path, processes=16, seconds=60), least=500)


def test_processes_that_make_one_store_at_once(tmp_path: Path) -> None:
    """They all get the same store, whoever was first."""
    program = (
        "import sys, castore\n"
        "print('ready', flush=True)\n"
        "sys.stdin.readline()\n"
        "with castore.open(sys.argv[1]) as store:\n"
        "    store.puts(sys.argv[2], sys.argv[2].encode() * 2000)\n"
    )
    for turn in range(2):
        path = tmp_path / f"deep/er/{turn}"
        running = [
            subprocess.Popen(
                [sys.executable, "-c", program, path, f"{turn}-{i}"],
                env=oracle.environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            for i in range(4)
        ]
        for process in running:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
        for process in running:
            assert process.stdin is not None
            process.stdin.write(b"\n")
            process.stdin.flush()
        for process in running:
            _, errors = process.communicate(timeout=60)
            assert process.returncode == 0, errors.decode()
        with castore.open(path, create=False) as store:
            assert list(store.names()) == [f"{turn}-{i}" for i in range(4)]
            for name in store.names():
                assert store.gets(name) == name.encode() * 2000


def test_a_transaction_is_seen_whole_or_not_at_all(tmp_path: Path) -> None:
    """Its names always have one size; a listing's page is one snapshot."""
    path = tmp_path / "store"
    program = (
        "import os, sys, castore\n"
        "store = castore.open(sys.argv[1])\n"
        "size, parent = 0, os.getppid()\n"
        "while not os.path.exists(sys.argv[2]) and os.getppid() == parent:\n"
        "    size += 1\n"
        "    with store.transaction() as transaction:\n"
        "        for i in range(8):\n"
        "            transaction.puts(f'together/{i}', bytes(size * (1 if i % 2 else 300)))\n"
        "        if size % 3 == 0:\n"
        "            transaction.delete_prefix('together/')\n"
    )
    enough = tmp_path / "enough"
    with castore.open(path) as store:
        command = [sys.executable, "-c", program, path, enough]
        writer = subprocess.Popen(command, env=oracle.environment())
        seen: set[int] = set()
        until = time.monotonic() + 60
        try:
            while len(seen) <= 20 and time.monotonic() < until:
                sizes = [info.size for info in store.list("together/")]
                assert len(sizes) in (0, 8)
                assert {size // (1 if i % 2 else 300) for i, size in enumerate(sizes)} <= {
                    size // 300 for size in sizes[:1]
                }
                seen.update(sizes[1:2])
        finally:
            enough.touch()
            assert writer.wait(60) == 0
        assert len(seen) > 3


# ---- threads ------------------------------------------------------------------------------------


def test_threads_agree(tmp_path: Path) -> None:
    """The same oracle with the threads of one process, on Stores of their own and on one."""
    path = str(tmp_path / "store")
    histories = [str(tmp_path / f"history-{i}") for i in range(5)]
    names = [f"names/{i}" for i in range(6)]
    with castore.open(path, chunk_bytes_avg=2816) as shared:

        def work(i: int) -> None:
            history = oracle.History(histories[i])
            worker = oracle.Worker(path, history, i + 1, names)
            if i < 2:
                worker.store.close()
                worker.store = shared
            worker.random = random.Random(f"no reopening {i}") if i < 2 else worker.random
            worker.run(1.5, reopen=i >= 2)
            history.close()

        in_threads(*(lambda i=i: work(i) for i in range(5)))  # type: ignore[misc]
        assert shared.names() is not None
    oracle.check_histories(
        [event for path in histories for event in oracle.read_history(path)], least=5
    )


def test_threads_that_put_the_same_bytes_at_once_store_them_about_once(tmp_path: Path) -> None:
    data = random.Random(5).randbytes(3_000_000)
    with castore.open(tmp_path / "store") as store:
        start = threading.Barrier(4)

        def run(i: int) -> None:
            start.wait()
            store.puts(f"same/{i}", data)

        in_threads(*(lambda i=i: run(i) for i in range(4)))  # type: ignore[misc]
        for i in range(4):
            assert store.gets(f"same/{i}") == data
        # All may have looked before any had committed, but the index counts each chunk once.
        assert store.stats().unique_bytes == len(data)


def test_if_absent_has_one_winner(tmp_path: Path) -> None:
    with castore.open(tmp_path / "store") as store:
        for turn in range(5):
            start = threading.Barrier(4)
            won: list[int] = []

            def run(i: int, turn: int = turn, start: threading.Barrier = start) -> None:
                start.wait()
                try:
                    store.puts(f"{turn}", b"%d" % i * 9000, if_absent=True)
                except NameExists:
                    return
                won.append(i)  # noqa: B023

            in_threads(*(lambda i=i: run(i) for i in range(4)))  # type: ignore[misc]
            assert len(won) == 1
            assert store.gets(f"{turn}") == b"%d" % won[0] * 9000


def open_files() -> list[str]:
    found = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(f"/proc/self/fd/{fd}"))
    return sorted(found)


def test_closing_under_threads_that_put_and_get(tmp_path: Path) -> None:
    """They end with StoreClosed, and nothing of the closed store stays behind."""
    data = random.Random(6).randbytes(6_000_000)
    path = tmp_path / "store"
    with castore.open(path) as store:
        store.puts("large", data)
    open_before = open_files()
    for turn in range(6):
        store = castore.open(path, threads=2)
        acknowledged: list[bytes] = []
        source = random.Random(turn)

        def put(
            store: castore.Store = store,
            acknowledged: list[bytes] = acknowledged,
            source: random.Random = source,
        ) -> None:
            with pytest.raises(StoreClosed):  # noqa: PT012
                while True:
                    fresh = source.randbytes(2_000_000)
                    store.put("fresh", io.BytesIO(fresh))
                    acknowledged.append(fresh)

        def get(store: castore.Store = store) -> None:
            with pytest.raises(StoreClosed):  # noqa: PT012
                while True:
                    assert store.gets("large") == data

        def walk(store: castore.Store = store) -> None:
            with pytest.raises(StoreClosed):  # noqa: PT012
                while True:
                    assert "large" in list(store.names())

        def close(store: castore.Store = store, turn: int = turn) -> None:
            time.sleep(0.02 + 0.03 * turn)
            store.close()

        in_threads(put, get, walk, close)
        with castore.open(path, create=False) as again:
            assert again.gets("large") == data
            if acknowledged:
                # The put that was in progress may have been acknowledged to nobody.
                assert again.size("fresh") == 2_000_000
    assert open_files() == open_before


def test_a_store_opened_and_closed_in_many_threads(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with castore.open(path) as store:
        store.puts("a", b"a" * 10_000)

    def run() -> None:
        for _ in range(60):
            with castore.open(path, create=False, threads=1) as store:
                assert store.gets("a", (5, 9)) == b"aaaa"

    in_threads(*[run] * 4)


def test_file_objects_keep_their_version_while_it_is_overwritten(tmp_path: Path) -> None:
    with castore.open(tmp_path / "store") as store:
        versions = [random.Random(i).randbytes(400_000) for i in range(6)]
        store.puts("a", versions[0])
        files = []
        for version in versions[1:]:
            files.append(store.open("a"))
            store.puts("a", version)
        store.delete("a")
        for file, version in zip(files, versions, strict=False):
            with file:
                assert file.read() == version


def test_listing_while_names_come_and_go(tmp_path: Path) -> None:
    """What stays is always listed, once, in order."""
    with castore.open(tmp_path / "store") as store:
        with store.transaction() as transaction:
            for i in range(1500):
                transaction.puts(f"kept/{i:04}", b"")
        kept = [f"kept/{i:04}" for i in range(1500)]
        done = threading.Event()

        def change() -> None:
            for i in range(40):
                store.puts(f"kept/{i * 30:04}+", b"x")
                if i % 3 == 0:
                    store.delete_prefix(f"kept/{i * 30:04}+", unbounded=True)
            done.set()

        def walk() -> None:
            while not done.is_set():
                names = list(store.names())
                assert names == sorted(set(names))
                assert [name for name in names if not name.endswith("+")] == kept

        in_threads(change, walk, walk)


@pytest.mark.parametrize("create", [True, False])
def test_a_store_that_is_made_between_two_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, create: bool
) -> None:
    """Who saw no castore.json, and then all that a store has, does not take it for lost."""
    whole = folder.read_config

    def read(root: str) -> Any:
        monkeypatch.setattr(folder, "read_config", whole)
        found = whole(root)
        program = "import castore, sys; castore.open(sys.argv[1]).puts('a', bytes(9000))"
        subprocess.run([sys.executable, "-c", program, root], check=True, env=oracle.environment())
        return found

    monkeypatch.setattr(folder, "read_config", read)
    with castore.open(tmp_path / "store", create=create) as store:
        assert store.gets("a") == bytes(9000)


def test_a_maker_that_another_and_its_collection_outrun_opens_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The collection takes what makers left, and this one's draft of castore.json with it."""
    whole = making.write_new

    def write(path: str, raw: bytes) -> None:
        whole(path, raw)
        program = """
import castore, sys
with castore.open(sys.argv[1]) as store:
    store.puts("a", bytes(9000))
    store.gc()
"""
        root = os.path.dirname(path)
        subprocess.run([sys.executable, "-c", program, root], check=True, env=oracle.environment())
        assert not os.path.exists(path)

    monkeypatch.setattr(making, "write_new", write)
    with castore.open(tmp_path / "store") as store:
        assert store.gets("a") == bytes(9000)


def test_a_put_that_a_transaction_ends_without_is_told_so(tmp_path: Path) -> None:
    """In another thread: it does not return as if it were published, nor is what it stores
    committed while it is at it."""
    begun, go_on = threading.Event(), threading.Event()
    outcomes: list[object] = []

    class Slow(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            begun.set()
            assert go_on.wait(60)
            return super().read(size)

    with castore.open(tmp_path / "store") as store:
        transaction = store.transaction()
        transaction.puts("a", bytes(9000))

        def put() -> None:
            try:
                outcomes.append(transaction.put("b", Slow(random.randbytes(9000))))
            except StoreClosed as error:
                outcomes.append(error)

        putting = threading.Thread(target=put)
        putting.start()
        assert begun.wait(60)
        committing = threading.Thread(target=transaction.commit)
        committing.start()
        committing.join(0.2)
        go_on.set()
        for thread in (putting, committing):
            thread.join(60)
        [outcome] = outcomes
        assert isinstance(outcome, StoreClosed)
        assert list(store.names()) == ["a"]
        assert store.check(True).clean
