"""Members of zip and tar files in a store: each is read by its range, not the archive."""

from __future__ import annotations

import io
import random
import tarfile
import zipfile
from typing import Any

import fsspec
import pytest
from fault_proxy import FaultProxy

from castore.fs import CastoreFileSystem

MEMBERS = {f"m/{i:02}.bin": random.Random(i).randbytes(200_000) for i in range(20)}
WANTED = "m/13.bin"


def write_zip(fs: CastoreFileSystem) -> None:
    with fs.open("a.zip", "wb") as file, zipfile.ZipFile(file, "w") as archive:
        for name, data in MEMBERS.items():
            archive.writestr(name, data)


def write_tar(fs: CastoreFileSystem) -> None:
    with fs.open("a.tar", "wb") as file, tarfile.open(fileobj=file, mode="w|") as archive:
        for name, data in MEMBERS.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


WRITERS = {"zip": write_zip, "tar": write_tar}


@pytest.mark.parametrize("kind", WRITERS)
def test_a_chained_url_leads_to_a_member(
    fs: CastoreFileSystem, options: dict[str, Any], kind: str
) -> None:
    WRITERS[kind](fs)
    with fsspec.open(f"{kind}://{WANTED}::castore://a.{kind}", castore=options) as file:
        file.seek(100_000)
        assert file.read(10) == MEMBERS[WANTED][100_000:100_010]
        assert file.read() == MEMBERS[WANTED][100_010:]
    inner = fsspec.filesystem(
        kind, fo=f"a.{kind}", target_protocol="castore", target_options=options
    )
    assert inner.find("") == list(MEMBERS)
    assert inner.cat_file(WANTED) == MEMBERS[WANTED]


def test_the_standard_library_s_readers(fs: CastoreFileSystem) -> None:
    for write in WRITERS.values():
        write(fs)
    with fs.open("a.zip") as file, zipfile.ZipFile(file) as archive:
        assert archive.testzip() is None
        assert archive.read(WANTED) == MEMBERS[WANTED]
    with fs.open("a.tar") as file, tarfile.open(fileobj=file) as archive:
        member = archive.extractfile(WANTED)
        assert member is not None
        assert member.read() == MEMBERS[WANTED]


@pytest.mark.parametrize("store_url", ["s3"], indirect=True)
@pytest.mark.parametrize("kind", WRITERS)
def test_of_the_others_little_is_fetched(
    fs: CastoreFileSystem, proxy: FaultProxy, moto_server: Any, kind: str
) -> None:
    """A zip has a list of its members at its end; of a tar, all heads are read, and with each the
    chunk that it is in: about a third of these."""
    WRITERS[kind](fs)
    url = f"{moto_server.url().partition('?')[0]}?endpoint_url={proxy.url}"
    beside = CastoreFileSystem(url, disk_cache_bytes=0, readahead_bytes=0)
    with beside.open(f"a.{kind}") as file:
        inner = fsspec.filesystem(kind, fo=file, skip_instance_cache=True)
        assert inner.cat_file(WANTED) == MEMBERS[WANTED]
        inner.close()
    fetched = sum(exchange.received_bytes for exchange in proxy.exchanges)
    total = sum(map(len, MEMBERS.values()))
    assert fetched < total / (6 if kind == "zip" else 1.2)
