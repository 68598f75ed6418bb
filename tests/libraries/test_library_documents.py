"""The examples of the documents on other libraries are run, one after another, as they are printed
but for the places of stores and schedulers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from s3_stores import make_store
from servers import Server

DOCS = Path(__file__).parents[2] / "docs"
CODE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)

pytestmark = pytest.mark.filterwarnings("default", "ignore:The inplace keyword")


@pytest.fixture(autouse=True)
def _elsewhere(castore_urls: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(document: Path, places: dict[str, str]) -> None:
    """Its code, in its own lines, so that what fails is found there."""
    text = document.read_text()
    lines: list[str] = []
    for block in CODE.finditer(text):
        lines += [""] * (text.count("\n", 0, block.start(1)) - len(lines))
        lines += block[1].splitlines()
    assert lines, "there is code in it"
    code = "\n".join(lines)
    for printed, place in places.items():
        assert printed in code
        code = code.replace(printed, place)
    exec(compile(code, document, "exec"), {"__name__": "document"})


def test_dataframes(tmp_path: Path) -> None:
    for library in ("duckdb", "h5py", "pandas", "polars", "pyarrow", "xarray", "zarr"):
        pytest.importorskip(library)
    import zarr

    with zarr.config.set({}):  # what it sets ends with it
        place = str(tmp_path / "store")
        run(
            DOCS / "dataframes.md",
            {"/data/store": place, "%2Fdata%2Fstore": place.replace("/", "%2F")},
        )


def test_dask(moto_server: Server, cache_dir: Path) -> None:
    distributed = pytest.importorskip("distributed")
    pytest.importorskip("dask.dataframe")
    make_store(moto_server, chunk_bytes_avg=65_536)
    cluster: Any = distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0", silence_logs=50
    )
    with cluster, distributed.Client(cluster):
        run(
            DOCS / "dask.md",
            {
                "tcp://scheduler:8786": cluster.scheduler_address,
                "s3://bucket/prefix": moto_server.url(),
            },
        )
