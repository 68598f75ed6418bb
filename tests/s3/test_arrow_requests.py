"""What pyarrow's reads of files on S3 cost, in requests."""

from __future__ import annotations

from typing import Any

import pytest
from asked import requests
from fault_proxy import FaultProxy
from s3_stores import Open

pyarrow = pytest.importorskip("pyarrow", minversion="21.0")
dataset = pytest.importorskip("pyarrow.dataset")
parquet = pytest.importorskip("pyarrow.parquet")

from castore.fs import CastoreFileSystem  # noqa: E402
from castore.fs.arrow import filesystem  # noqa: E402

pytestmark = pytest.mark.usefixtures("aws_environment")

FILES = 4
TABLE = pyarrow.table({f"c{i}": range(i, 20_000 + i) for i in range(8)})


@pytest.fixture
def fs(open_proxied: Open, proxy: FaultProxy) -> CastoreFileSystem:
    """With all that it reads in the disk cache."""
    fs = CastoreFileSystem("s3://bucket/store", skip_instance_cache=True)
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


def test_a_dataset(fs: CastoreFileSystem, proxy: FaultProxy) -> None:
    def read(through: Any) -> None:
        found = dataset.dataset("t", filesystem=through, format="parquet")
        assert found.to_table(columns=["c3"]).num_rows == FILES * 20_000

    read(fs)
    assert requests(proxy) == [f"GET names x{FILES + 2}", f"LIST names x{FILES + 4}"]
    read(filesystem(fs))
    assert requests(proxy) == [f"GET names x{FILES + 2}", "LIST names x2"]
