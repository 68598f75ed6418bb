"""`castore.fs` for callers that have an event loop."""

from __future__ import annotations

import asyncio
import contextlib
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

fsspec = pytest.importorskip("fsspec")

import castore  # noqa: E402
from castore.errors import StoreNotFound  # noqa: E402
from castore.fs import CastoreFileSystem  # noqa: E402
from castore.fs.asynchronous import AsyncCastoreFileSystem  # noqa: E402


@pytest.fixture
def fs(tmp_path: Path) -> Iterator[AsyncCastoreFileSystem]:
    fsspec.register_implementation("castore", CastoreFileSystem, clobber=True)
    fs = fsspec.filesystem("castore", store=str(tmp_path / "store"), asynchronous=True, threads=2)
    yield fs
    with contextlib.suppress(StoreNotFound):  # where the test was skipped
        fs.store.close()


def test_the_methods_are_coroutines(fs: AsyncCastoreFileSystem, tmp_path: Path) -> None:
    async def use() -> None:
        await asyncio.gather(*(fs._pipe_file(f"d/{i}", b"%d" % i * 10) for i in range(20)))
        assert await fs._cat_file("d/7", start=1, end=4) == b"777"
        assert await fs._cat_file("d/7", start=-2) == b"77"
        assert await fs._cat_ranges(["d/1", "d/2"], [0, 8], [2, 10]) == [b"11", b"22"]
        assert len(await fs._ls("d", detail=False)) == len(await fs._find("d")) == 20
        assert (await fs._info("d/3"))["size"] == 10
        assert await fs._exists("d")
        assert not await fs._exists("e")
        assert await fs._isdir("d")
        assert [each async for each in fs._walk("", maxdepth=1)] == [("", ["d"], [])]
        await fs._get_file("d/5", str(tmp_path / "five"))
        await fs._put_file(str(tmp_path / "five"), "e/5")
        await fs._cp_file("e/5", "e/6")
        await fs._rm("e/5")
        assert await fs._find("e") == ["e/6"]
        await fs._rm("d", recursive=True)
        assert await fs._find("") == ["e/6"]
        with pytest.raises(FileNotFoundError):
            await fs._cat_file("d/7")

    asyncio.run(use())
    assert fs.async_impl
    assert fs.asynchronous


def test_what_has_no_coroutine_is_that_of_the_file_system_below(fs: AsyncCastoreFileSystem) -> None:
    def fail() -> None:
        with fs.transaction:
            with fs.open("a", "wb") as file:
                file.write(b"1")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    with fs.transaction, fs.open("b", "wb") as file:
        file.write(b"22")
    assert fs.sync_fs.find("") == ["b"]
    assert fs.open("b").read() == b"22"
    assert fs.ukey("b") == fs.sync_fs.ukey("b")
    assert fs.checksum("b") == fs.sync_fs.checksum("b")
    assert fs.modified("b") == fs.created("b") == fs.sync_fs.modified("b")
    assert fs.unstrip_protocol("b") == fs.sync_fs.unstrip_protocol("b")


def test_what_listings_showed_is_forgotten(tmp_path: Path) -> None:
    fs = fsspec.filesystem(
        "castore", store=str(tmp_path / "store"), asynchronous=True, use_listings_cache=True
    )
    fs.sync_fs.pipe_file("a", b"1")
    asyncio.run(fs._ls(""))
    with castore.open(tmp_path / "store") as other:
        other.puts("a", b"22")
    assert asyncio.run(fs._info("a"))["size"] == 1
    fs.invalidate_cache()
    assert asyncio.run(fs._info("a"))["size"] == 2
    fs.store.close()


def test_it_is_made_again_from_json_and_pickles(fs: AsyncCastoreFileSystem) -> None:
    fs.sync_fs.pipe_file("a", b"12345")
    loop = asyncio.new_event_loop()
    looped = fsspec.filesystem(
        "castore", store=fs.sync_fs.store_path, asynchronous=True, threads=2, loop=loop
    )
    loop.close()
    for one in (fs, looped):
        for again in (
            fsspec.AbstractFileSystem.from_json(one.to_json()),
            fsspec.AbstractFileSystem.from_dict(one.to_dict()),
            pickle.loads(pickle.dumps(one)),
        ):
            assert type(again) is AsyncCastoreFileSystem
            assert again.asynchronous
            assert again.sync_fs.storage_options == {
                "store": fs.sync_fs.store_path,
                "threads": 2,
            }
            assert asyncio.run(again._cat_file("a", start=1, end=3)) == b"23"


def test_an_option_that_is_none_is_made_again_without_it(tmp_path: Path) -> None:
    nothing = {"threads": None, "region": None, "listings_expiry_time": None}
    fs = CastoreFileSystem(tmp_path / "store", cache_bytes=0, **nothing)
    assert CastoreFileSystem.from_json(fs.to_json()).storage_options == fs.storage_options
    assert fs.storage_options == {"store": str(tmp_path / "store"), "cache_bytes": 0}


@pytest.mark.parametrize("how", ["url", "mapper", "fs", "options"])
def test_zarr(fs: AsyncCastoreFileSystem, how: str) -> None:
    zarr = pytest.importorskip("zarr")
    fs.sync_fs.pipe_file("made", b"")
    options: dict[str, Any] = {}
    store: Any = fs.unstrip_protocol("z")
    if how == "mapper":
        store = zarr.storage.FsspecStore.from_mapper(fs.sync_fs.get_mapper("z"))
    elif how == "fs":
        store = zarr.storage.FsspecStore(fs, path="z")
    elif how == "options":
        store, options = "castore://z", {"storage_options": {"store": fs.sync_fs.store_path}}
    array = zarr.create_array(store, shape=(100, 4), chunks=(10, 4), dtype="i4", **options)
    array[:] = 7
    array[20:30] = 1
    again = zarr.open_array(store, mode="r", **options)
    assert int(again[:].sum()) == 90 * 4 * 7 + 10 * 4
    assert len(fs.sync_fs.find("z/c")) == 10
