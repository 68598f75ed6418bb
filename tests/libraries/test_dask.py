"""dask.distributed on one store on S3: workers are processes with a cache for each two of them, as
on machines of their own. What is killed, or raises, leaves nothing half-written, and is done
again."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from clusters import begun
from s3_stores import make_store
from servers import ACCESS_KEY, SECRET_KEY, Server

import castore
from castore.errors import NameExists
from castore.fs import CastoreFileSystem

dask = pytest.importorskip("dask")
distributed = pytest.importorskip("distributed")

WORKERS = 3
MACHINES = 2  # two of the workers share a cache
PART_BYTES = 300_000

pytestmark = [
    pytest.mark.timeout(180),
    pytest.mark.filterwarnings("default"),  # they have their own
    pytest.mark.filterwarnings("ignore:The inplace keyword"),
]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Its workers are started anew where they die. Credentials and caches are theirs alone."""
    folder = tmp_path_factory.mktemp("cluster")
    credentials = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}
    environments = [
        {**credentials, "CASTORE_CACHE_DIR": str(folder / f"cache-{number % MACHINES}")}
        for number in range(WORKERS)
    ]
    with (
        begun(environments, folder, allowed_failures=100) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


@pytest.fixture
def client(cluster: Any) -> Any:
    cluster.wait_for_workers(WORKERS)
    return cluster


@pytest.fixture
def options(moto_server: Server, cache_dir: Path) -> dict[str, Any]:
    """`storage_options`."""
    make_store(moto_server, chunk_bytes_avg=65_536)
    return {"store": moto_server.url(), "threads": 1}


@pytest.fixture
def fs(options: dict[str, Any]) -> Iterator[CastoreFileSystem]:
    """Pickled, it becomes the one of its kind that a worker has."""
    fs = CastoreFileSystem(**options)
    yield fs
    fs.store.close()


def part(number: int) -> bytes:
    """The first half is the same in all of them."""
    half = PART_BYTES // 2
    return random.Random(0).randbytes(half) + random.Random(number).randbytes(half)


def put_part(fs: CastoreFileSystem, number: int) -> str:
    fs.pipe_file(f"parts/{number:03}", part(number))
    return os.environ["CASTORE_CACHE_DIR"]


def read_part(fs: CastoreFileSystem, number: int) -> bool:
    begin = number * 1000
    return fs.store.gets(f"parts/{number:03}", (begin, begin + 5000)) == part(number)[begin:][:5000]


def is_first_try(fs: CastoreFileSystem, what: str) -> bool:
    try:
        fs.store.puts(f"tried/{what}", b"", if_absent=True)
    except NameExists:
        return False
    return True


def test_tasks_write_and_read(client: Any, fs: CastoreFileSystem) -> None:
    numbers = range(24)
    places = client.gather(client.map(put_part, [fs] * 24, numbers))
    assert len(set(places)) == MACHINES
    assert all(client.gather(client.map(read_part, [fs] * 24, numbers[::-1])))
    for number in numbers:
        assert fs.store.gets(f"parts/{number:03}") == part(number)


def test_workers_of_one_machine_may_share_a_folder(client: Any, tmp_path: Path) -> None:
    fs = CastoreFileSystem(tmp_path / "store", threads=1)
    client.gather(client.map(put_part, [fs] * 12, range(12)))
    assert all(client.gather(client.map(read_part, [fs] * 12, range(12)[::-1])))
    assert len(fs.find("parts")) == 12
    fs.store.close()


def test_a_store_itself_goes_to_a_task(client: Any, fs: CastoreFileSystem) -> None:
    fs.store.puts("x", part(1))
    assert client.submit(castore.Store.gets, fs.store, "x", (10, 20)).result() == part(1)[10:20]


def killed_once(fs: CastoreFileSystem, number: int, how: str) -> None:
    """Writes its part; the first time, the worker is killed in the midst of it."""
    data = part(number)

    def kill() -> None:
        if number % 8 == 3 and is_first_try(fs, str(number)):
            os.kill(os.getpid(), signal.SIGKILL)

    if how == "file":
        with fs.store.open(f"parts/{number:03}", "wb") as file:
            file.write(data[: PART_BYTES // 2])
            kill()
            file.write(data[PART_BYTES // 2 :])
    else:
        with fs.store.transaction() as t:
            t.puts(f"parts/{number:03}", data)
            kill()
            t.puts(f"parts/{number:03}_SUCCESS", b"")


@pytest.mark.parametrize("how", ["file", "transaction"])
def test_a_worker_that_is_killed_publishes_nothing_and_its_tasks_are_done_again(
    client: Any, fs: CastoreFileSystem, how: str
) -> None:
    before = set(client.run(os.getpid).values())
    numbers = range(16)
    client.gather(client.map(killed_once, [fs] * 16, numbers, how=how, pure=False))
    assert fs.store.exists("tried/3")
    assert fs.store.exists("tried/11")
    client.wait_for_workers(WORKERS)
    assert before - set(client.run(os.getpid).values())
    names = [f"parts/{number:03}" for number in numbers]
    for name, number in zip(names, numbers, strict=True):
        assert fs.store.gets(name) == part(number)
    marks = [f"{name}_SUCCESS" for name in names] if how == "transaction" else []
    assert sorted(fs.store.names("parts/")) == sorted(names + marks)
    report = fs.store.gc(grace_s=0)
    assert fs.store.check(read_data=True).exit_code == 0, report


def rewritten(fs: CastoreFileSystem, number: int) -> int:
    """Puts its part and a mark together, three times, the last time as it is to be; reads what
    others put; copies and removes."""
    store = fs.store
    for turn in (1000, 100, 0):
        with store.transaction() as t:
            t.puts(f"parts/{number:03}", part(number + turn))
            t.puts(f"marks/{number:03}", str(number + turn).encode())
        for name in store.names("marks/"):
            found = store.gets(f"parts/{name[-3:]}")
            assert found in [part(int(name[-3:]) + turn) for turn in (1000, 100, 0)]
    store.copy(f"parts/{number:03}", f"copies/{number:03}")
    with store.open(f"parts/{number:03}") as file:
        store.puts(f"gone/{number:03}", part(number + 7))
        store.delete_prefix(f"gone/{number:03}", unbounded=True)
        assert file.read() == part(number)
    return number


@pytest.mark.long
@pytest.mark.timeout(900)
def test_workers_die_at_any_moment_while_a_collector_runs(
    client: Any, fs: CastoreFileSystem
) -> None:
    choose = random.Random(7)
    numbers = range(30)
    tasks = client.map(rewritten, [fs] * len(numbers), numbers, pure=False)
    killed = 0
    while not all(task.done() for task in tasks):
        time.sleep(choose.uniform(2, 4))
        # Dask gives up a worker that dies again and again: each has its turn, while all are there.
        if killed < 12 and len(client.scheduler_info()["workers"]) == WORKERS:
            os.kill(client.cluster.workers[killed % WORKERS].pid, signal.SIGKILL)
            killed += 1
        fs.store.gc()
    assert client.gather(tasks) == list(numbers)
    assert killed > 3
    for number in numbers:
        for folder in ("parts", "copies"):
            assert fs.store.gets(f"{folder}/{number:03}") == part(number)
    assert len([*fs.store.names()]) == 3 * len(numbers)
    fs.store.gc(grace_s=0)
    assert fs.store.check(read_data=True).exit_code == 0


def failing_once(fs: CastoreFileSystem, number: int) -> str:
    name = f"parts/{number:03}"
    with fs.store.open(name, "wb") as file:
        file.write(part(number))
        if is_first_try(fs, str(number)):
            raise ValueError(name)
    return name


def test_a_task_that_raised_is_tried_again(client: Any, fs: CastoreFileSystem) -> None:
    [failed] = client.map(failing_once, [fs], [1])
    assert isinstance(failed.exception(), ValueError)
    assert not fs.store.exists("parts/001")
    names = client.gather(client.map(failing_once, [fs] * 4, range(2, 6), retries=1))
    assert [fs.store.gets(name) for name in names] == [part(number) for number in range(2, 6)]


def test_one_name_that_several_tasks_put_is_one_of_theirs(
    client: Any, fs: CastoreFileSystem
) -> None:
    tasks = [client.submit(put_part, fs, 7, pure=False) for _ in range(9)]
    client.gather(tasks)
    assert fs.store.gets("parts/007") == part(7)


def test_tables(client: Any, fs: CastoreFileSystem, options: dict[str, Any]) -> None:
    pandas = pytest.importorskip("pandas")
    dataframe = pytest.importorskip("dask.dataframe")
    rows = pandas.DataFrame({"x": range(12_000), "day": [f"d{i % 3}" for i in range(12_000)]})
    table = dataframe.from_pandas(rows, npartitions=6)
    table.to_parquet("castore://table", partition_on=["day"], storage_options=options)
    assert len(list(fs.store.names("table/"))) == 18
    found = dataframe.read_parquet(
        "castore://table", filters=[("day", "==", "d1")], storage_options=options
    )
    assert found.x.sum().compute() == sum(range(1, 12_000, 3))
    table.to_csv("castore://csv/*.csv", index=False, storage_options=options)
    assert dataframe.read_csv("castore://csv/*.csv", storage_options=options).x.max().compute() == (
        11_999
    )


def test_arrays(client: Any, fs: CastoreFileSystem, options: dict[str, Any]) -> None:
    array = pytest.importorskip("dask.array")
    pytest.importorskip("zarr")
    data = array.arange(40_000, chunks=5_000).reshape(200, 200)
    data.to_zarr("castore://array", storage_options=options)
    found = array.from_zarr("castore://array", storage_options=options)
    assert int(found[50:150].sum().compute()) == sum(range(10_000, 30_000))


def test_names_of_conducto_go_to_the_workers_with_their_pipeline(
    client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import conducto as co
    from conducto.fs import ConductoFileSystem

    monkeypatch.setenv("CONDUCTO_BASE_DIR", str(tmp_path / "conducto"))
    monkeypatch.setenv("CONDUCTO_PIPELINE_ID", "p1")  # the workers are told of neither
    fs = ConductoFileSystem()
    client.gather(client.map(put_by_path, [fs] * 6, range(6)))
    assert co.data.pipeline.list("parts") == [f"parts/{number}" for number in range(6)]
    assert co.data.pipeline.gets("parts/5") == part(5)
    fs.store.close()
    co.context.close_stores()


def put_by_path(fs: CastoreFileSystem, number: int) -> None:
    fs.pipe_file(f"pipeline/parts/{number}", part(number))
