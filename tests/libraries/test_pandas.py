"""pandas over `castore://`, in every format that it reads from a file object."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pandas = pytest.importorskip("pandas")
pytest.importorskip("pyarrow")

from castore.fs import CastoreFileSystem  # noqa: E402

FRAME = pandas.DataFrame(
    {
        "x": range(3000),
        "day": [f"2024-01-0{i % 3 + 1}" for i in range(3000)],
        "text": [f"row {i * i}" for i in range(3000)],
    }
)
LINES = {"orient": "records", "lines": True}
Call = Callable[..., Any]
FORMATS: dict[str, tuple[Call, Call]] = {
    "csv": (lambda url, **o: FRAME.to_csv(url, index=False, **o), pandas.read_csv),
    "json": (
        lambda url, **o: FRAME.to_json(url, **LINES, **o),
        lambda url, **o: pandas.read_json(url, **LINES, **o),
    ),
    "feather": (FRAME.to_feather, pandas.read_feather),
    "parquet": (FRAME.to_parquet, pandas.read_parquet),
    "pickle": (FRAME.to_pickle, pandas.read_pickle),
}
NAMES = [*FORMATS, "csv.gz", "csv.bz2", "csv.xz", "csv.zip", "csv.tar", "json.gz", "pickle.gz"]


@pytest.mark.parametrize("ending", NAMES)
def test_what_is_written_is_read(
    fs: CastoreFileSystem, options: dict[str, Any], ending: str
) -> None:
    write, read = FORMATS[ending.partition(".")[0]]
    url = f"castore://t/frame.{ending}"
    write(url, storage_options=options)
    assert read(url, storage_options=options).equals(FRAME)
    assert fs.find("t") == [f"t/frame.{ending}"]


def test_rows_are_appended(fs: CastoreFileSystem, options: dict[str, Any]) -> None:
    for ending in ("csv", "csv.gz"):
        url = f"castore://t/frame.{ending}"
        for part in (FRAME[:1000], FRAME[1000:]):
            part.to_csv(
                url, mode="a", header=not fs.exists(url), index=False, storage_options=options
            )
        assert pandas.read_csv(url, storage_options=options).equals(FRAME)
    url = "castore://t/frame.json"
    for part in (FRAME[:1000], FRAME[1000:]):
        part.to_json(url, mode="a", **LINES, storage_options=options)
    found = pandas.read_json(url, **LINES, storage_options=options)
    assert found.equals(FRAME)


def test_partitions_are_read_by_what_is_asked_of_them(
    fs: CastoreFileSystem, options: dict[str, Any]
) -> None:
    url = "castore://t/parts"
    FRAME.to_parquet(url, partition_cols=["day"], storage_options=options)
    assert [name.split("/")[2] for name in fs.find("t/parts")] == [
        f"day=2024-01-0{day}" for day in (1, 2, 3)
    ]
    day = pandas.read_parquet(
        url, filters=[("day", "==", "2024-01-02")], columns=["x"], storage_options=options
    )
    assert day.x.tolist() == FRAME.x[FRAME.day == "2024-01-02"].tolist()


def test_a_chained_url_says_which_store(fs: CastoreFileSystem, store_url: str) -> None:
    place = store_url if "://" in store_url else f"file://{store_url}"
    url = f"castore://t/frame.parquet::{place.replace('s3://', 'castore+s3://')}"
    FRAME.to_parquet(url)
    assert pandas.read_parquet(url).equals(FRAME)
    assert fs.find("t") == ["t/frame.parquet"]


def test_a_table_is_read_in_pieces(fs: CastoreFileSystem, options: dict[str, Any]) -> None:
    url = "castore://t/frame.csv"
    FRAME.to_csv(url, index=False, storage_options=options)
    with pandas.read_csv(url, chunksize=700, storage_options=options) as pieces:
        assert pandas.concat(pieces).equals(FRAME)


def test_a_write_that_fails_publishes_nothing(
    fs: CastoreFileSystem, options: dict[str, Any]
) -> None:
    class Unwritable:
        def __str__(self) -> str:
            raise KeyError

    half = pandas.DataFrame({"x": [*range(100_000), Unwritable()]})
    for ending in ("csv", "csv.gz"):
        with pytest.raises(KeyError):
            half.to_csv(f"castore://t/half.{ending}", storage_options=options)
    fs.pipe_file("t/there.csv", b"x\n")
    with pytest.raises(FileExistsError):
        FRAME.to_csv("castore://t/there.csv", mode="x", storage_options=options)
    assert fs.find("t") == ["t/there.csv"]
    assert fs.cat_file("t/there.csv") == b"x\n"
