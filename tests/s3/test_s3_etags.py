"""Equal bytes have one etag in a store, also where an object is in its manifest as it was put
alone, and in packs as it was put with others."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from s3_stores import Open, make_store
from servers import Server

import castore
from castore.stream import drafts
from castore.stream.codec import chunk_id_of

pytestmark = [pytest.mark.inline_alone, pytest.mark.usefixtures("aws_environment")]

SIZES = (0, 1000, 1 << 16, (1 << 16) + 1, 100_000, 1 << 17, (1 << 17) + 1, 300_000)


def noise(size: int) -> bytes:
    return random.Random(size).randbytes(size)


def ways(store: castore.Store, data: bytes, folder: Path) -> list[castore.ObjectInfo]:
    folder.mkdir()
    (folder / "file").write_bytes(data)
    with store.transaction() as transaction:
        together = [transaction.puts(name, data) for name in ("one", "two")]
    with store.open("stream", "wb") as file:
        for i in range(0, len(data), 10_000):
            file.write(data[i : i + 10_000])
    with store.open("appended", "wb") as file:
        file.write(data[:70_000])
    with store.open("appended", "ab") as file:
        file.write(data[70_000:])
    store.import_folder(folder, "folder")
    return [
        *together,
        store.puts("alone", data),
        store.put("path", folder / "file"),
        *map(store.info, ("stream", "appended", "folder/file")),
    ]


@pytest.mark.parametrize("guard", [None, "sha256"], ids=["plain", "guard"])
def test_however_it_is_put(moto_server: Server, tmp_path: Path, guard: str | None) -> None:
    make_store(moto_server, guard=guard)
    with castore.open(moto_server.url()) as store:
        for size in SIZES:
            data = noise(size)
            infos = ways(store, data, tmp_path / f"{size}")
            assert len({info.etag for info in infos}) == 1, (size, infos)
            assert {store.gets(info.name) for info in infos} == {data}
            for _ in range(2):
                report = store.export_folder("", tmp_path / f"out {size}")
            assert (report.files, report.same_files) == (0, len(infos))
        assert store.check(True).clean


def test_etags_of_before(open_moto: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """For some days they were of the bytes of every object in its manifest."""
    store = open_moto()
    data = noise(100_000)
    with monkeypatch.context() as patch:
        patch.setattr(
            drafts, "etag_of_chunks", lambda raw, config, _: chunk_id_of(raw, config.seed)
        )
        before = store.puts("before", data)
    assert store.puts("now", data).etag != before.etag
    assert store.gets("before") == store.gets("now") == data
    assert store.check(True).clean
