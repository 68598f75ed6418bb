"""Real mounts of stores on S3: a store's, and the data of a run's nodes in cloud mode."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import mounts
import pytest
from pipelines import Pipelines
from servers import Server

import castore
import conducto as co
from castore.mount import mounted
from castore.mount.view import FRESH_ON_S3_S
from castore.testing.contents import noise
from conducto import context

pytest_plugins = ["modes"]
pytestmark = pytest.mark.skipif(
    mounts.why_not() is not None, reason=f"nothing can be mounted here: {mounts.why_not()}"
)
DATA = noise(700_000)


def shell(command: str, folder: Path) -> str:
    done = subprocess.run(
        ["bash", "-ec", command], cwd=folder, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, ""), done
    return done.stdout


def test_a_store_on_s3_as_a_folder(
    moto_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CASTORE_CACHE_DIR", str(tmp_path / "cache"))
    folder, source = tmp_path / "at", tmp_path / "source"
    folder.mkdir()
    source.mkdir()
    (source / "a").write_bytes(DATA)
    (source / "needle").write_text("one\nneedle in it\n")
    with castore.open(moto_server.url()) as store:
        store.puts("given/x", DATA)
        with mounted(moto_server.url(), str(folder), writable=True):
            assert (folder / "given" / "x").read_bytes() == DATA
            shell("cp -rp source at/copy && diff -r source at/copy", tmp_path)
            assert shell("grep -rl needle .", folder) == "./copy/needle\n"
            shell("tar cf ../tar . && mv copy/a moved && rm -r copy && : > empty", folder)
            store.puts("given/x", b"changed")
            time.sleep(FRESH_ON_S3_S)
            assert shell("cat given/x", folder) == "changed"
            descriptor = (folder / "given" / "x").open("rb")
            store.puts("given/x", DATA)
            assert descriptor.read() == b"changed"  # one version to its end
            descriptor.close()
        assert [*store.names()] == ["empty", "given/x", "moved"]
        assert store.gets("moved") == DATA
    assert "needle" in shell("tar tf tar", tmp_path)


@pytest.mark.parametrize("mode", ["cloud"], indirect=True)
def test_nodes_find_their_data_on_s3(pipelines: Pipelines, mode: str) -> None:
    assert context.store_url().startswith("s3://")
    co.data.user.puts("given", DATA)
    root = co.Serial()
    root["write"] = co.Exec("cp $CONDUCTO_DATA_DIR/user/given $CONDUCTO_DATA_DIR/pipeline/made")
    root["read"] = co.Exec("cmp $CONDUCTO_DATA_DIR/user/given $CONDUCTO_DATA_DIR/pipeline/made")
    done = pipelines.run(root)
    assert (done.code, done.err) == (0, ""), done
    assert co.data.pipeline.bound(pipeline_id=done.id).gets("made") == DATA
