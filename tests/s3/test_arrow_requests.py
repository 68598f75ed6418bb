"""What pyarrow's reads of files on S3 cost, in requests."""

from __future__ import annotations

import random
from typing import Any

import pytest
from asked import requests
from fault_proxy import FaultProxy
from s3_stores import Open

pyarrow = pytest.importorskip("pyarrow", minversion="21.0")
dataset = pytest.importorskip("pyarrow.dataset")
parquet = pytest.importorskip("pyarrow.parquet")

from fsspec.parquet import open_parquet_file  # noqa: E402

from castore.fs import CastoreFileSystem  # noqa: E402
from castore.fs.arrow import filesystem  # noqa: E402

pytestmark = pytest.mark.usefixtures("aws_environment")

FILES = 4
TABLE = pyarrow.table({f"c{i}": range(i, 20_000 + i) for i in range(8)})


@pytest.fixture
def fs(open_proxied: Open, proxy: FaultProxy, request: pytest.FixtureRequest) -> CastoreFileSystem:
    """With all that it reads in the disk cache."""
    options: dict[str, Any] = getattr(request, "param", {})
    fs = CastoreFileSystem("s3://bucket/store", skip_instance_cache=True, **options)
    fs._store = open_proxied()
    for i in range(FILES):
        parquet.write_table(TABLE, f"t/{i}.parquet", filesystem=fs)
        fs.cat_file(f"t/{i}.parquet")
    proxy.clear()
    return fs


def test_one_file(fs: CastoreFileSystem, proxy: FaultProxy) -> None:
    """GETs that say that nothing changed, and LISTs that tell whether it is a file."""
    parquet.read_table("t/0.parquet", filesystem=fs, columns=["c3"])
    assert requests(proxy) == ["GET names x3", "LIST names x2"]
    parquet.read_table("t/0.parquet", filesystem=filesystem(fs), columns=["c3"])
    assert requests(proxy) == ["GET names x3"]


def test_what_fsspec_fetches_of_one_file_beforehand(
    fs: CastoreFileSystem, proxy: FaultProxy, open_proxied: Open
) -> None:
    """A column, and the footer, of a file of which nothing is cached; then nothing more."""
    numbers = random.Random(1)
    columns = {f"c{i}": [numbers.getrandbits(60) for _ in range(30_000)] for i in range(8)}
    parquet.write_table(pyarrow.table(columns), "large.parquet", filesystem=fs)
    size = fs.size("large.parquet")
    cold = CastoreFileSystem("s3://bucket/store", skip_instance_cache=True)
    cold._store = open_proxied(1)
    proxy.clear()
    wanted = {"fs": cold, "columns": ["c3"], "footer_sample_size": 1 << 16}
    with open_parquet_file("large.parquet", **wanted) as file:
        packs = [each.received_bytes for each in proxy.exchanges if "/packs/" in each.key]
        assert sum(packs) < 1.3 * (size / 8 + (1 << 16))
        assert "GET names x3" in requests(proxy)
        assert parquet.read_table(file, columns=["c3"]).num_rows == 30_000
    assert requests(proxy) == []


def test_a_dataset(fs: CastoreFileSystem, proxy: FaultProxy) -> None:
    def read(through: Any) -> None:
        found = dataset.dataset("t", filesystem=through, format="parquet")
        assert found.to_table(columns=["c3"]).num_rows == FILES * 20_000

    read(fs)
    assert requests(proxy) == [f"GET names x{FILES + 2}", f"LIST names x{FILES + 4}"]
    read(filesystem(fs))
    assert requests(proxy) == [f"GET names x{FILES + 2}", "LIST names x2"]


@pytest.mark.parametrize("fs", [{"use_listings_cache": True}], indirect=True)
def test_files_that_a_listing_showed_are_not_asked_for(
    fs: CastoreFileSystem, proxy: FaultProxy, open_proxied: Open
) -> None:
    def read(through: Any) -> int:
        found = dataset.dataset("t", filesystem=through, format="parquet")
        return int(found.to_table(columns=["c3"]).num_rows)

    assert read(fs) == FILES * 20_000
    assert requests(proxy) == ["GET names", "LIST names x3"]  # of the folder
    assert read(filesystem(fs)) == FILES * 20_000
    assert requests(proxy) == ["GET names", "LIST names x2"]
    parquet.read_table("t/0.parquet", filesystem=fs, columns=["c3"])
    assert fs.size("t/1.parquet") == fs.info("t/1.parquet")["size"]
    assert fs.ukey("t/1.parquet")
    assert fs.isfile("t/1.parquet")
    assert not fs.isdir("t/1.parquet")
    assert requests(proxy) == []


@pytest.mark.parametrize("fs", [{"use_listings_cache": True}], indirect=True)
def test_what_was_shown_is_what_is_read_until_it_is_asked_for_again(
    fs: CastoreFileSystem, proxy: FaultProxy, open_proxied: Open
) -> None:
    fs.pipe_file("x", b"1" * 70_000)
    other = open_proxied(1)
    other.puts("x", b"2" * 80_000)
    fs.ls("")
    other.puts("x", b"3")
    proxy.clear()
    assert fs.size("x") == 80_000
    with fs.open("x") as file:
        assert file.read(10) == b"2" * 10
    assert requests(proxy) == ["GET packs"]
    assert fs.ls("")[-1]["size"] == 1  # it is listed again each time
    with fs.open("x") as file:
        assert file.read() == b"3"
    other.puts("x", b"4")
    fs.invalidate_cache()
    with fs.open("x") as file:
        assert file.read() == b"4"
    fs.ls("")
    other.delete("x")
    assert fs.exists("x")
    fs.invalidate_cache()
    assert not fs.exists("x")
