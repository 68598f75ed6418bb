"""Many machines on one bucket: what each sees is what some order of them would give.

The oracle is that of the local store's tests. A machine is a process with a cache directory of its
own; processes of one machine share theirs.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import oracle
import pytest
from oracle import Event
from s3_stores import Open
from servers import Server
from threads import in_threads

import castore
from castore.errors import NameExists, NameNotFound
from castore.s3.client.settings import S3Settings

pytest_plugins = ["servers"]

Caches = Callable[[int], Path]  # the cache directory of each process


def run_oracle(
    server: Server,
    folder: Path,
    caches: Caches,
    *,
    processes: int,
    seconds: float,
    names: int,
    meanwhile: Callable[[], None] = lambda: None,
) -> list[Event]:
    url = server.url()
    with castore.open(url, chunk_bytes_avg=2816):
        pass
    histories = [str(folder / f"history-{i}") for i in range(processes)]
    running = [
        subprocess.Popen(
            oracle.command("work", url, history, i + 1, seconds, names),
            env={**oracle.environment(), "CASTORE_CACHE_DIR": str(caches(i))},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for i, history in enumerate(histories)
    ]
    try:
        while any(process.poll() is None for process in running):
            meanwhile()
            time.sleep(0.05)
        for process in running:
            _, errors = process.communicate(timeout=10)
            assert process.returncode == 0, errors.decode()
    finally:
        for process in running:
            process.kill()
            process.communicate()
    events = [event for history in histories for event in oracle.read_history(history)]
    with castore.open(url, create=False) as store:  # on a machine that was never here before
        events += oracle.final_reads(store, names)
        assert store.stats().logical_bytes == sum(info.size for info in store.list())
    return events


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache directory of the process that runs the test."""
    path = tmp_path / "cache"
    monkeypatch.setenv("CASTORE_CACHE_DIR", str(path))
    return path


def test_machines_agree_for_a_few_seconds(
    moto_server: Server, own_cache: Path, tmp_path: Path
) -> None:
    def caches(i: int) -> Path:
        return tmp_path / f"cache-{i}"

    oracle.check_histories(
        run_oracle(moto_server, tmp_path, caches, processes=4, seconds=2, names=12), least=3
    )


@pytest.mark.long
def test_processes_of_one_machine_agree(
    moto_server: Server, own_cache: Path, tmp_path: Path
) -> None:
    def caches(_: int) -> Path:
        return tmp_path / "caches"

    oracle.check_histories(
        run_oracle(moto_server, tmp_path, caches, processes=3, seconds=4, names=12), least=2
    )


@pytest.mark.long
@pytest.mark.timeout(600)
def test_eight_machines_agree_for_a_minute(
    moto_server: Server, own_cache: Path, tmp_path: Path
) -> None:
    def caches(i: int) -> Path:
        return tmp_path / f"cache-{i}"

    events = run_oracle(moto_server, tmp_path, caches, processes=8, seconds=60, names=50)
    oracle.check_histories(events, least=50)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_caches_may_go_while_they_are_used(
    moto_server: Server, own_cache: Path, tmp_path: Path
) -> None:
    """Renamed away and removed, as the README says, every second or so."""
    source = random.Random(3)
    due = time.monotonic() + 1

    def caches(i: int) -> Path:
        return tmp_path / f"cache-{i}"

    def remove_one() -> None:
        nonlocal due
        if time.monotonic() < due:
            return
        due = time.monotonic() + 1
        doomed = tmp_path / f"doomed-{time.monotonic_ns()}"
        try:
            caches(source.randrange(4)).rename(doomed)
        except FileNotFoundError:
            return
        shutil.rmtree(doomed, ignore_errors=True)

    events = run_oracle(
        moto_server, tmp_path, caches, processes=4, seconds=20, names=20, meanwhile=remove_one
    )
    oracle.check_histories(events, least=10)


@contextmanager
def machines(url: str, folder: Path, count: int) -> Iterator[list[castore.Store]]:
    """Stores in this process, each with a cache of its own."""
    before = os.environ.get("CASTORE_CACHE_DIR")
    stores: list[castore.Store] = []
    try:
        for i in range(count):
            os.environ["CASTORE_CACHE_DIR"] = str(folder / f"machine-{i}")
            stores.append(castore.open(url))
        yield stores
    finally:
        for store in stores:
            store.close()
        if before is None:
            del os.environ["CASTORE_CACHE_DIR"]
        else:
            os.environ["CASTORE_CACHE_DIR"] = before


def test_if_absent_has_one_winner_among_machines(moto_server: Server, tmp_path: Path) -> None:
    with machines(moto_server.url(), tmp_path, 4) as stores:
        for turn, size in enumerate((10, 9000, 200_000)):
            name = f"once/{turn}"
            data = [random.Random(f"{turn} {i}").randbytes(size) for i in range(4)]
            won: list[int] = []

            def put(i: int, name: str = name, data: list[bytes] = data) -> None:
                try:
                    stores[i].puts(name, data[i], if_absent=True)
                except NameExists:
                    return
                won.append(i)  # noqa: B023

            in_threads(*[lambda i=i: put(i) for i in range(4)])  # type: ignore[misc]
            assert len(won) == 1
            assert {store.gets(name) for store in stores} == {data[won[0]]}


def test_what_one_machine_acknowledged_the_others_see_at_once(
    moto_server: Server, tmp_path: Path
) -> None:
    """Each has the name in its cache, in another version; none of them answers from that alone."""
    with machines(moto_server.url(), tmp_path, 3) as stores:
        for turn in range(12):
            writer = stores[turn % 3]
            data = random.Random(turn).randbytes((50, 90_000, 700_000)[turn % 3 - turn // 6])
            writer.puts("one", data)
            for store in stores:
                assert store.info("one").size == len(data)
                assert store.gets("one", (10, 60_000)) == data[10:60_000]
                assert store.gets("one") == data
                with store.open("one") as file:
                    assert file.read() == data
        stores[0].delete("one")
        for store in stores:
            assert not store.exists("one")
            with pytest.raises(NameNotFound):
                store.gets("one", (0, 10))


def test_machines_that_put_the_same_new_bytes_at_once_lose_none(
    moto_server: Server, tmp_path: Path
) -> None:
    data = random.Random(5).randbytes(3_000_000)
    with machines(moto_server.url(), tmp_path, 3) as stores:
        in_threads(
            *[
                lambda store=store, i=i: store.puts(f"same/{i}", data)  # type: ignore[misc]
                for i, store in enumerate(stores)
            ]
        )
        for store in stores:
            for i in range(3):
                assert store.gets(f"same/{i}") == data
    # Each machine has told the others what it stored, when its session closed.
    with machines(moto_server.url(), tmp_path / "later", 1) as [late]:
        before = late.stats().pack_bytes
        late.puts("same/again", data)
        assert late.gets("same/again") == data
        assert late.stats().pack_bytes == before


def test_eight_threads_that_use_a_store_first_share_all_of_it(
    open_moto: Open, moto_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One connection, one session with its pins, one cache."""
    from castore.s3.client import connection

    made: list[object] = []
    real = connection.Connection

    def counted(settings: S3Settings) -> connection.Connection:
        time.sleep(0.05)  # so that who does not wait for it makes another
        made.append(settings)
        return real(settings)

    monkeypatch.setattr(connection, "Connection", counted)
    store = open_moto()
    store._backend._bucket.close()  # type: ignore[union-attr]  # as if nothing was asked yet
    made.clear()
    together = threading.Barrier(8)
    data = [random.Random(i).randbytes(100_000) for i in range(8)]

    def use(i: int) -> None:
        together.wait(10)
        store.puts(f"{i}", data[i])
        assert store.gets(f"{i}") == data[i]

    threads = [threading.Thread(target=use, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    listed = moto_server.client().list_objects_v2(Bucket=moto_server.bucket, Prefix="store/pins/")
    assert len({entry["Key"].split("/")[2] for entry in listed["Contents"]}) == 1
    assert len(made) == 1
    assert [store.gets(f"{i}") for i in range(8)] == data
    assert store.check(read_data=True).problems == []
