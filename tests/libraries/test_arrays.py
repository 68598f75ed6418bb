"""zarr, xarray, h5py and numpy over a store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fsspec
import pytest

numpy = pytest.importorskip("numpy")

from castore.fs import CastoreFileSystem  # noqa: E402

DATA = numpy.arange(100 * 200).reshape(100, 200)
URL = "castore://arrays/a"


class TestZarr:
    @pytest.fixture
    def zarr(self) -> Any:
        return pytest.importorskip("zarr")

    @pytest.mark.parametrize("shards", [None, (50, 200)])
    def test_parts_are_written_and_read(
        self, fs: CastoreFileSystem, options: dict[str, Any], zarr: Any, shards: Any
    ) -> None:
        array = zarr.create_array(
            store=URL,
            storage_options=options,
            shape=DATA.shape,
            chunks=(10, 50),
            shards=shards,
            dtype=DATA.dtype,
            fill_value=-1,
        )
        array[:50] = DATA[:50]
        array.attrs["unit"] = "K"
        array.resize((200, 200))
        array[100:] = DATA
        again = zarr.open_array(URL, storage_options=options, mode="r")
        assert again.attrs["unit"] == "K"
        assert (again[15:35, 40:160] == DATA[15:35, 40:160]).all()
        assert (again[50:100] == -1).all()
        assert (again[100:] == DATA).all()
        assert len(fs.find("arrays/a")) == 1 + (60 if shards is None else 3)

    def test_a_transaction_publishes_an_array_at_once(
        self, fs: CastoreFileSystem, options: dict[str, Any], zarr: Any
    ) -> None:
        remote = fsspec.filesystem("castore", asynchronous=True, **options)
        place = zarr.storage.FsspecStore(remote, path="arrays/a")
        array = zarr.create_array(place, shape=DATA.shape, chunks=(10, 200), dtype=DATA.dtype)
        array[:] = DATA
        with remote.transaction:
            array[:] = 2 * DATA
            assert (array[:] == DATA).all()
        assert (array[:] == 2 * DATA).all()

        def fail() -> None:
            with remote.transaction:
                array[:50] = 0
                raise KeyError

        with pytest.raises(KeyError):
            fail()
        assert (array[:] == 2 * DATA).all()

    def test_groups(self, fs: CastoreFileSystem, options: dict[str, Any], zarr: Any) -> None:
        group = zarr.open_group(URL, storage_options=options, mode="w")
        group.create_array("one", data=DATA)
        group.create_group("inner").create_array("two", data=DATA[0])
        found = zarr.open_group(fs.unstrip_protocol("arrays/a"), mode="r")
        assert sorted(name for name, _ in found.members(max_depth=None)) == [
            "inner",
            "inner/two",
            "one",
        ]
        assert (found["inner/two"][:] == DATA[0]).all()
        group = zarr.open_group(URL, storage_options=options, mode="r+")
        del group["inner"]
        assert fs.ls("arrays/a", detail=False) == ["arrays/a/one", "arrays/a/zarr.json"]


class TestXarray:
    def test_appended_to_and_changed_in_a_region(
        self, fs: CastoreFileSystem, options: dict[str, Any]
    ) -> None:
        xarray = pytest.importorskip("xarray")
        pytest.importorskip("zarr")
        how = {"storage_options": options, "consolidated": False}

        def days(first: int) -> Any:
            coordinates = {"t": numpy.arange(first, first + 100), "x": numpy.arange(200)}
            return xarray.Dataset({"v": (("t", "x"), DATA * 1.0)}, coords=coordinates)

        days(0).to_zarr(URL, **how)
        days(100).to_zarr(URL, append_dim="t", **how)
        zeros = (days(0) * 0).isel(t=slice(0, 10)).drop_vars(["t", "x"])
        zeros.to_zarr(URL, region={"t": slice(50, 60)}, **how)
        with xarray.open_zarr(URL, chunks=None, **how) as found:
            assert found.sizes == {"t": 200, "x": 200}
            wanted = numpy.concatenate([DATA, DATA])
            wanted[50:60] = 0
            assert (found.v.values == wanted).all()
            assert found.v.sel(t=150, x=slice(3, 5)).values.tolist() == [10003, 10004, 10005]


def test_h5py(fs: CastoreFileSystem, tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(
        tmp_path / "a.h5", "w"
    ) as file:  # it seeks as it writes: put it when it is whole
        file.create_dataset("v", data=DATA, chunks=(10, 50), compression="gzip")
    fs.put_file(str(tmp_path / "a.h5"), "a.h5")
    with fs.open("a.h5") as opened, h5py.File(opened) as file:
        assert (file["v"][15:35, 40:160] == DATA[15:35, 40:160]).all()


def test_numpy_s_own_files(fs: CastoreFileSystem) -> None:
    with fs.open("a.npy", "wb") as file:
        numpy.save(file, DATA)
    with fs.open("a.npz", "wb") as file:
        numpy.savez_compressed(file, one=DATA, two=DATA[0])
    with fs.open("a.npy") as file:
        assert (numpy.load(file) == DATA).all()
    with fs.open("a.npz") as file, numpy.load(file) as found:
        assert (found["two"] == DATA[0]).all()
