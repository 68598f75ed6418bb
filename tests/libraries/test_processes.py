"""Several processes on one store: what reads at random, as `torch.utils.data` does, and joblib."""

from __future__ import annotations

import multiprocessing
import pickle
import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pytest

import castore
from castore.fs import CastoreFileSystem

ITEM_BYTES = 1500
ITEMS = 400


class Items:
    """What a loader of `torch.utils.data` takes, a map-style dataset: `len`, and items by number.
    It is pickled to the processes that load, or they inherit it."""

    def __init__(self, store: castore.Store, name: str) -> None:
        self._store = store
        self._name = name

    def __len__(self) -> int:
        return self._store.size(self._name) // ITEM_BYTES

    def __getitem__(self, number: int) -> bytes:
        begin = number * ITEM_BYTES
        return self._store.gets(self._name, (begin, begin + ITEM_BYTES))

    def __getitems__(self, numbers: Sequence[int]) -> list[bytes]:
        """A batch at once, as its newer loaders ask for."""
        ranges = [(number * ITEM_BYTES, (number + 1) * ITEM_BYTES) for number in numbers]
        return self._store.gets_many(self._name, ranges)


def loaded(items: Items, numbers: Sequence[int]) -> list[bytes]:
    half = len(numbers) // 2
    return [items[number] for number in numbers[:half]] + items.__getitems__(numbers[half:])


@pytest.fixture
def data(fs: CastoreFileSystem) -> bytes:
    data = random.Random(3).randbytes(ITEMS * ITEM_BYTES)
    fs.pipe_file("items", data)
    return data


@pytest.mark.parametrize("start", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_loaders_read_at_random(fs: CastoreFileSystem, data: bytes, start: str) -> None:
    items = Items(fs.store, "items")
    assert len(items) == ITEMS
    assert items[7] == data[7 * ITEM_BYTES : 8 * ITEM_BYTES]  # the store is in use when they begin
    order = random.Random(4).sample(range(ITEMS), ITEMS)
    batches = [order[at : at + 40] for at in range(0, ITEMS, 40)]
    context = multiprocessing.get_context(start)
    with ProcessPoolExecutor(2, mp_context=context) as loaders:
        found = loaders.map(loaded, [items] * len(batches), batches)
        for numbers, batch in zip(batches, found, strict=True):
            assert batch == [data[n * ITEM_BYTES : (n + 1) * ITEM_BYTES] for n in numbers]


def test_an_open_file_goes_to_other_processes(fs: CastoreFileSystem, data: bytes) -> None:
    context = multiprocessing.get_context("spawn")
    with fs.open("items") as file, ProcessPoolExecutor(2, mp_context=context) as readers:
        file.seek(1000)
        pickled = pickle.dumps(file)
        assert list(readers.map(rest_of, [pickled] * 4)) == [data[1000:]] * 4


def rest_of(pickled: bytes) -> bytes:
    with pickle.loads(pickled) as file:
        rest: bytes = file.read()
        return rest


class TestJoblib:
    @pytest.fixture
    def joblib(self) -> Iterator[Any]:
        joblib = pytest.importorskip("joblib")
        yield joblib
        joblib.externals.loky.get_reusable_executor().shutdown()  # its environment is this test's

    def test_dump_and_load(self, fs: CastoreFileSystem, joblib: Any) -> None:
        model = {"weights": list(range(10_000)), "name": "one"}
        for compress in (0, 3):
            with fs.open("model", "wb") as file:
                joblib.dump(model, file, compress=compress)
            with fs.open("model") as file:
                assert joblib.load(file) == model

    @pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
    def test_parallel(self, fs: CastoreFileSystem, data: bytes, joblib: Any) -> None:
        """The workers read one object, and each puts one of its own."""

        calls = (joblib.delayed(copied)(fs, at) for at in range(0, len(data), 60_000))
        sizes = joblib.Parallel(n_jobs=2)(calls)
        assert sum(sizes) == len(data)
        parts = fs.cat(fs.find("parts"))
        assert b"".join(parts[name] for name in sorted(parts)) == data


def copied(fs: CastoreFileSystem, at: int) -> int:
    part = fs.cat_file("items", at, at + 60_000)
    fs.pipe_file(f"parts/{at:09}", part)
    return len(part)
