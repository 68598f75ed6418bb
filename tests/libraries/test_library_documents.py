"""The examples of the documents on other libraries are run, one after another, as they are printed
but for the places of stores and schedulers."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import free_port
from s3_stores import make_store
from servers import Server

DOCS = Path(__file__).parents[2] / "docs"
SHELL = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
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
    for library in ("duckdb", "h5py", "pandas", "polars", "pyarrow", "upath", "xarray", "zarr"):
        pytest.importorskip(library)
    import zarr
    from upath.registry import register_implementation

    from castore.fs.upath import CastorePath

    register_implementation("castore", CastorePath, clobber=True)
    with zarr.config.set({}):  # what it sets ends with it
        place = str(tmp_path / "store")
        run(
            DOCS / "dataframes.md",
            {"/data/store": place, "%2Fdata%2Fstore": place.replace("/", "%2F")},
        )


def test_dask(moto_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its workers are begun as it says, too."""
    distributed = pytest.importorskip("distributed")
    pytest.importorskip("dask.dataframe")
    make_store(moto_server, chunk_bytes_avg=65_536)
    monkeypatch.setenv("CASTORE_CACHE_DIR", str(tmp_path / "cache"))  # of the client
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    address = f"tcp://127.0.0.1:{free_port()}"
    [worker] = SHELL.findall((DOCS / "dask.md").read_text())
    assert "/var/tmp/castore" in worker
    assert "tcp://scheduler:8786" in worker
    worker = worker.replace("/var/tmp/castore", str(tmp_path / "castore"))
    worker = worker.replace("tcp://scheduler:8786", address)
    scheduler = f"dask scheduler --host {address} --no-dashboard"
    with (
        running(scheduler, tmp_path / "scheduler.log"),
        running(worker, tmp_path / "worker.log"),
        distributed.Client(address, timeout=60) as client,
    ):
        client.wait_for_workers(4, timeout=60)
        run(
            DOCS / "dask.md",
            {"tcp://scheduler:8786": address, "s3://bucket/prefix": moto_server.url()},
        )
    assert any((tmp_path / "castore").iterdir())


@contextlib.contextmanager
def running(command: str, log: Path) -> Iterator[None]:
    """A command of the shell's, stopped with all that it began."""
    with (
        log.open("wb") as output,
        subprocess.Popen(
            ["bash", "-ec", command], stdout=output, stderr=output, start_new_session=True
        ) as process,
    ):
        try:
            yield
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(20)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
