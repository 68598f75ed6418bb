"""castore.fs on a store on S3."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
from servers import Server

fsspec = pytest.importorskip("fsspec")

from castore.fs import CastoreFileSystem  # noqa: E402

pytest_plugins = ["servers"]


def test_the_file_system(
    moto_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CASTORE_CACHE_DIR", str(tmp_path / "cache"))
    fsspec.register_implementation("castore", CastoreFileSystem, clobber=True)
    fs = CastoreFileSystem(store=moto_server.url(), skip_instance_cache=True)
    with pytest.raises(FileNotFoundError, match="no store at s3://"):
        fs.ls("")
    data = os.urandom(300_000)
    fs.pipe_file("dir/large", data)
    with fs.open("dir/small", "wb") as file:
        file.write(b"0123456789")
    assert fs.ls("dir", detail=False) == ["dir/large", "dir/small"]
    assert fs.cat_file("dir/large", 1000, 200_000) == data[1000:200_000]
    assert fs.cat_ranges(["dir/large"] * 2, [0, -10], [10, None]) == [data[:10], data[-10:]]
    with fs.open("dir/large") as file:
        file.seek(299_990)
        assert file.read() == data[-10:]
    assert fs.info("dir")["type"] == "directory"
    assert fs.find("") == ["dir/large", "dir/small"]
    fs.mv("dir", "moved", recursive=True)
    fs.cp_file("moved/small", "copy")
    with fs.transaction:
        fs.open("never", "wb").discard()
    with fs.transaction:
        fs.pipe_file("a", b"1")
        fs.pipe_file("b", data[:100_000])
        fs.mv("copy", "renamed")
        assert not fs.exists("a")
    fs.mv("renamed", "copy")

    def fail(opened: Any) -> None:
        with opened as file:
            file.write(b"half")
            raise KeyError

    for compression in (None, "gzip"):
        with pytest.raises(KeyError):
            fail(fs.open("a", "wb", compression=compression))
        with pytest.raises(KeyError):
            fail(fsspec.open("castore://a", "wb", compression, store=moto_server.url()))
    assert fs.cat("a") == b"1"
    with fs.open("z.gz", "wb", compression="infer") as file:
        file.write(b"whole")
    assert fs.open("z.gz", compression="infer").read() == b"whole"
    fs.rm("z.gz")
    fs.pipe({"o[1]": b"odd", "o1": b"lure"})
    fs.rm("o[1]")
    fs.rm("o1")
    fs.get("moved", str(tmp_path / "out"), recursive=True)
    assert (tmp_path / "out" / "large").read_bytes() == data
    assert fs.fsid == f"castore_{moto_server.url()}"
    assert pickle.loads(pickle.dumps(fs)).cat_file("copy") == b"0123456789"
    fs.rm(["moved", "copy"], recursive=True)
    assert fs.find("") == ["a", "b"]
    fs.store.gc(grace_s=0, alone=True)
    assert fs.store.check(read_data=True).exit_code == 0
    fs.store.close()
