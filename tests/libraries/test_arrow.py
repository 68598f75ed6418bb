"""pyarrow, polars and DuckDB over a store: datasets, filters, formats."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from typing import Any

import pytest

pyarrow = pytest.importorskip("pyarrow", minversion="21.0")
dataset = pytest.importorskip("pyarrow.dataset")
feather = pytest.importorskip("pyarrow.feather")
parquet = pytest.importorskip("pyarrow.parquet")
pytest.importorskip("pyarrow.fs")

from castore.fs import CastoreFileSystem  # noqa: E402

ROWS = 3000
TABLE = pyarrow.table(
    {
        "x": range(ROWS),
        "day": [f"day{i % 3}" for i in range(ROWS)],
        "text": [f"row {i * i}" for i in range(ROWS)],
    }
)
BY_DAY = dataset.partitioning(pyarrow.schema([("day", pyarrow.string())]), flavor="hive")
PARTS = [f"ds/day=day{i}/part-0.parquet" for i in range(3)]


def write(fs: CastoreFileSystem, **how: Any) -> None:
    dataset.write_dataset(TABLE, "ds", filesystem=fs, format="parquet", partitioning=BY_DAY, **how)


def whole(fs: CastoreFileSystem) -> Any:
    return dataset.dataset("ds", filesystem=fs, partitioning="hive")


class TestDatasets:
    def test_only_what_the_filter_leaves(self, fs: CastoreFileSystem) -> None:
        write(fs)
        assert fs.find("ds") == PARTS
        wanted = (dataset.field("day") == "day1") & (dataset.field("x") > 1500)
        found = whole(fs).to_table(filter=wanted, columns=["x"])
        assert found["x"].to_pylist() == [x for x in range(1501, ROWS) if x % 3 == 1]
        assert [each.path for each in whole(fs).get_fragments(wanted)] == [PARTS[1]]

    def test_written_again_and_added_to(self, fs: CastoreFileSystem) -> None:
        write(fs)
        write(
            fs,
            basename_template="more-{i}.parquet",
            existing_data_behavior="overwrite_or_ignore",
        )
        assert whole(fs).count_rows() == 2 * ROWS
        write(fs, existing_data_behavior="delete_matching")
        assert fs.find("ds") == PARTS
        assert whole(fs).to_table().sort_by("x")["x"].to_pylist() == list(range(ROWS))

    @pytest.mark.parametrize("kind", ["feather", "csv"])
    def test_other_formats(self, fs: CastoreFileSystem, kind: str) -> None:
        dataset.write_dataset(TABLE, "other", filesystem=fs, format=kind)
        found = dataset.dataset("other", filesystem=fs, format=kind)
        assert found.to_table().equals(TABLE)

    def test_row_groups_and_columns_of_one_file(self, fs: CastoreFileSystem) -> None:
        with parquet.ParquetWriter("t/groups", TABLE.schema, filesystem=fs) as writer:
            for at in range(0, ROWS, 1000):
                writer.write_table(TABLE.slice(at, 1000))
        with parquet.ParquetFile("t/groups", filesystem=fs) as file:
            assert file.num_row_groups == 3
            middle = file.read_row_group(1, columns=["x"])
            assert middle["x"].to_pylist() == list(range(1000, 2000))

    def test_feather(self, fs: CastoreFileSystem) -> None:
        with fs.open("t/feather", "wb") as file:
            feather.write_feather(TABLE, file)
        with fs.open("t/feather") as file:
            assert feather.read_table(file, columns=["x"]).equals(TABLE.select(["x"]))


class TestArrowFileSystem:
    """`castore.fs.arrow`: as pyarrow's own, over `fs`."""

    @pytest.fixture
    def arrow(self, fs: CastoreFileSystem) -> Any:
        from castore.fs.arrow import filesystem

        return filesystem(fs)

    def test_a_dataset_is_the_same(self, fs: CastoreFileSystem, arrow: Any) -> None:
        dataset.write_dataset(TABLE, "ds", filesystem=arrow, format="parquet", partitioning=BY_DAY)
        assert fs.find("ds") == PARTS
        through = dataset.dataset("ds", filesystem=arrow, partitioning="hive")
        assert through.files == whole(fs).files
        assert through.to_table().equals(whole(fs).to_table())
        again = pickle.loads(pickle.dumps(through))
        assert again.to_table().equals(through.to_table())

    @pytest.mark.parametrize("base", ["/ds", "/ds/", "ds//", "castore://ds"])
    def test_a_folder_may_be_written_in_each_way(
        self, fs: CastoreFileSystem, arrow: Any, base: str
    ) -> None:
        dataset.write_dataset(TABLE, base, filesystem=arrow, format="parquet", partitioning=BY_DAY)
        assert fs.find("") == PARTS
        assert dataset.dataset(base, filesystem=arrow, partitioning="hive").files == PARTS

    def test_what_is_not_there_says_so(self, fs: CastoreFileSystem, arrow: Any) -> None:
        fs.pipe_file("a/file", b"12345")
        with arrow.open_input_stream("a/file") as file:
            assert file.read() == b"12345"
        for path in ("nothing", "a"):
            with pytest.raises(FileNotFoundError):
                arrow.open_input_file(path)
        below = pyarrow.fs.FileSelector("a", recursive=True)
        assert [info.path for info in arrow.get_file_info(below)] == ["a/file"]
        with pytest.raises(FileNotFoundError):
            arrow.get_file_info(pyarrow.fs.FileSelector("nothing"))
        assert arrow.get_file_info(pyarrow.fs.FileSelector("b", allow_not_found=True)) == []
        with pytest.raises(NotADirectoryError):
            arrow.get_file_info(pyarrow.fs.FileSelector("a/file"))


class TestPolars:
    @pytest.fixture
    def polars(self) -> Any:
        return pytest.importorskip("polars")

    @pytest.mark.parametrize("kind", ["parquet", "csv", "ipc", "ndjson"])
    def test_files_in_every_format(self, fs: CastoreFileSystem, polars: Any, kind: str) -> None:
        frame = polars.from_arrow(TABLE)
        with fs.open("t/file", "wb") as file:
            getattr(frame, f"write_{kind}")(file)
        with fs.open("t/file") as file:
            assert getattr(polars, f"read_{kind}")(file).equals(frame)
        with fs.open("t/file") as file:
            some = getattr(polars, f"scan_{kind}")(file).filter(polars.col("x") > 2990)
            assert some.collect()["x"].to_list() == list(range(2991, ROWS))

    def test_scans_and_sinks(self, fs: CastoreFileSystem, polars: Any) -> None:
        write(fs)
        day = polars.scan_pyarrow_dataset(whole(fs)).filter(polars.col("day") == "day2")
        assert day.select("x").collect()["x"].to_list() == list(range(2, ROWS, 3))
        with fs.open("t/sink", "wb") as file:
            polars.from_arrow(TABLE).lazy().filter(polars.col("x") < 9).sink_parquet(file)
        with fs.open("t/sink") as file:
            assert polars.read_parquet(file).height == 9


class TestDuckDB:
    @pytest.fixture
    def database(self, fs: CastoreFileSystem) -> Iterator[Any]:
        duckdb = pytest.importorskip("duckdb")
        with duckdb.connect() as database:
            database.register_filesystem(fs)
            database.register("numbers", TABLE)
            yield database
            database.unregister_filesystem("castore")

    @pytest.mark.parametrize("ending", ["parquet", "csv", "csv.gz", "json"])
    def test_copied_out_and_queried(
        self, fs: CastoreFileSystem, database: Any, ending: str
    ) -> None:
        url = f"castore://q/numbers.{ending}"
        database.sql(f"COPY numbers TO '{url}'")
        found = database.sql(f"SELECT count(*), sum(x) FROM '{url}' WHERE day = 'day1'")
        assert found.fetchall() == [(1000, sum(range(1, ROWS, 3)))]
        assert fs.find("q") == [f"q/numbers.{ending}"]

    def test_partitions(self, fs: CastoreFileSystem, database: Any) -> None:
        # To a folder that is not there yet it says OVERWRITE_OR_IGNORE: else DuckDB lists it first.
        how = "FORMAT parquet, PARTITION_BY (day), OVERWRITE_OR_IGNORE"
        database.sql(f"COPY numbers TO 'castore://ds' ({how})")
        found = database.sql(
            "SELECT day, count(*) FROM read_parquet('castore://ds/*/*.parquet', "
            "hive_partitioning = true) WHERE day > 'day0' GROUP BY day ORDER BY day"
        )
        assert found.fetchall() == [("day1", 1000), ("day2", 1000)]
        assert whole(fs).count_rows() == ROWS
