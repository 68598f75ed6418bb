"""What people open `castore://` with: the libraries themselves, where they are installed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

fsspec = pytest.importorskip("fsspec")

from castore.errors import StoreNotFound  # noqa: E402
from castore.fs import CastoreFileSystem  # noqa: E402


@pytest.fixture
def fs(tmp_path: Path) -> Iterator[CastoreFileSystem]:
    fsspec.register_implementation("castore", CastoreFileSystem, clobber=True)
    fs = CastoreFileSystem(tmp_path / "store", threads=2)
    fs.pipe_file("t/a.csv", b"x,y\n1,one\n2,two\n")
    yield fs
    with contextlib.suppress(StoreNotFound):  # where the test was skipped
        fs.store.close()


def forms(fs: CastoreFileSystem, name: str) -> list[tuple[str, dict[str, Any]]]:
    return [
        (f"castore://{name}", {"storage_options": {"store": fs.store_path}}),
        (f"castore://{name}::file://{fs.store_path}", {}),
        (fs.unstrip_protocol(name), {}),
    ]


def test_pandas(fs: CastoreFileSystem) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"x": [1, 2], "y": ["one", "two"]})
    for url, options in forms(fs, "t/a.csv"):
        assert pandas.read_csv(url, **options).equals(frame)
        frame.to_csv(url, index=False, **options)
    pytest.importorskip("pyarrow")
    for url, options in forms(fs, "t/a.parquet"):
        frame.to_parquet(url, **options)
        assert pandas.read_parquet(url, **options).equals(frame)
    assert fs.ls("t", detail=False) == ["t/a.csv", "t/a.parquet"]


def test_pyarrow(fs: CastoreFileSystem) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    dataset = pytest.importorskip("pyarrow.dataset")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = pyarrow.table({"x": [1, 2, 3], "day": ["a", "b", "a"]})
    dataset.write_dataset(rows, "ds", filesystem=fs, format="parquet", partitioning=["day"])
    assert fs.find("ds") == ["ds/a/part-0.parquet", "ds/b/part-0.parquet"]
    found = dataset.dataset("ds", filesystem=fs, partitioning=["day"])
    assert found.count_rows(filter=dataset.field("day") == "a") == 2
    parquet.write_table(rows, "t/a.parquet", filesystem=fs)
    assert parquet.read_table("t/a.parquet", filesystem=fs, columns=["x"]).num_rows == 3
    if int(pyarrow.__version__.split(".")[0]) >= 21:
        plain = f"fsspec+{fs.unstrip_protocol('t/a.parquet')}"
        assert parquet.read_table(plain).equals(rows)


def test_polars(fs: CastoreFileSystem) -> None:
    polars = pytest.importorskip("polars")
    frame = polars.DataFrame({"x": [1, 2]})
    with fs.open("t/p.parquet", "wb") as file:
        frame.write_parquet(file)
    with fs.open("t/p.parquet") as file:
        assert polars.read_parquet(file).equals(frame)
    pytest.importorskip("pyarrow")
    options = {"store": fs.store_path}
    read = polars.read_parquet("castore://t/p.parquet", use_pyarrow=True, storage_options=options)
    assert read.equals(frame)


def test_duckdb(fs: CastoreFileSystem) -> None:
    duckdb = pytest.importorskip("duckdb")
    with duckdb.connect() as database:
        database.register_filesystem(fs)
        database.sql("COPY (SELECT range AS x FROM range(1000)) TO 'castore://d/1.parquet'")
        database.sql("COPY (SELECT range AS x FROM range(10)) TO 'castore://d/2.parquet'")
        for url in ("castore://d/*.parquet", f"{fs.unstrip_protocol('d')}/*.parquet"):
            found = database.sql(f"SELECT count(*), max(x) FROM read_parquet('{url}')").fetchall()
            assert found == [(1010, 999)]
        database.unregister_filesystem("castore")
    assert fs.find("d") == ["d/1.parquet", "d/2.parquet"]


@pytest.mark.filterwarnings("ignore:The inplace keyword")  # dask's own
def test_dask(fs: CastoreFileSystem) -> None:
    dataframe = pytest.importorskip("dask.dataframe")
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    frame = pandas.DataFrame({"x": range(100)})
    whole = dataframe.from_pandas(frame, npartitions=2)
    for url, options in forms(fs, "dask"):
        whole.to_parquet(url, **options)
        assert dataframe.read_parquet(url, **options).x.sum().compute() == 4950
    assert len(fs.find("dask")) == 2
    where = {"storage_options": {"store": fs.store_path}}
    whole.to_parquet("castore://dask", append=True, ignore_divisions=True, **where)
    assert dataframe.read_parquet("castore://dask", **where).x.sum().compute() == 2 * 4950
    whole.to_parquet("castore://dask", overwrite=True, **where)
    assert len(fs.find("dask")) == 2
    whole.to_csv("castore://one.csv", single_file=True, index=False, **where)  # part after part
    assert dataframe.read_csv("castore://one.csv", blocksize=99, **where).x.sum().compute() == 4950
