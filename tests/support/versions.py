"""Versions of an object, each of which is stored as deltas of the one before."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import oracle
import pytest
from collected import assert_rows_complete, everything, pack_files
from sessions import small_batches, some_bytes
from stores import small

import castore
from castore.model import Extent, StoredChunk
from castore.stream.writer import _Batch

SIZE = 60_000


def version(number: int, seed: int = 0) -> bytes:
    """Every chunk of one is touched, and resembles that of the others."""
    raw = bytearray(some_bytes(SIZE, seed))
    for at in range(400, SIZE, 600):
        raw[at] ^= number
    return bytes(raw)


@pytest.fixture(params=[None, "sha256"], ids=["plain", "guarded"])
def guarded(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[castore.Store]:
    with small(tmp_path / "store", collision_guard=request.param) as store:
        yield store


def in_packs_of_their_own(store: castore.Store, values: dict[str, bytes]) -> list[bytes]:
    """The packs of each of the objects, and of nothing else that is put later; a third of each is
    dead."""
    made = []
    for name, value in values.items():
        before = pack_files(store).keys()
        with store.transaction() as transaction:
            transaction.puts(name, value)
            transaction.puts("gone", some_bytes(SIZE // 2, len(before)))
        store.delete("gone")
        store._backend.packs.retire()  # type: ignore[union-attr]
        [pack] = pack_files(store).keys() - before
        made.append(bytes.fromhex(pack))
    return made


def extents(store: castore.Store, name: str) -> list[Extent]:
    return [e for segment in store._catalog.manifest(name.encode())[1] for e in segment]


def bases(store: castore.Store, name: str) -> set[StoredChunk]:
    return {base for extent in extents(store, name) for base in extent.location.bases}


def assert_whole(store: castore.Store, expected: dict[str, bytes]) -> None:
    assert everything(store) == expected
    assert store.check(read_data=True).problems == []
    oracle.check_index(store)
    assert_rows_complete(store)
    with castore.open(store.path, create=False, cache_bytes=0) as other:
        assert everything(other) == expected


def put_twice_at_once(
    store: castore.Store, names: Sequence[str], value: bytes, order: Sequence[int] = (0, 1)
) -> None:
    """By two writers, of which the first stores deltas, and neither knows of the other; `order` is
    that of the commits."""
    with pytest.MonkeyPatch.context() as patch, small(Path(store.path), delta=False) as plain:
        small_batches(patch)
        files = [store.open(names[0], "wb"), plain.open(names[1], "wb")]
        for file in files:
            file.write(value)
        for i in order:
            files[i].close()


def written_by_turns(store: castore.Store) -> dict[str, bytes]:
    """By one transaction: "one" has what "other" has, too, and later a delta of it; for "other" it
    is a delta itself, and is placed between these two."""
    alike = [some_bytes(7000, 1).hex().encode() for _ in range(3)]
    for at in range(400, len(alike[0]), 600):
        alike[1] = alike[1][:at] + b"g" + alike[1][at + 1 :]
        alike[2] = alike[2][:at] + b"h" + alike[2][at + 1 :]
    rest = [some_bytes(20_000, seed).hex().encode() for seed in range(2, 8)]
    begins = {"one": alike[0] + rest[0] + alike[1], "other": alike[2] + rest[1] + alike[0]}
    may_be_placed = 0  # batches

    def is_encoded(_: _Batch) -> bool:
        nonlocal may_be_placed
        may_be_placed -= 1
        return may_be_placed >= 0

    with pytest.MonkeyPatch.context() as patch:
        small_batches(patch)
        patch.setattr("castore.stream.writer.BATCHES_MAX", 1000)
        patch.setattr(_Batch, "encoded", property(is_encoded))
        with store.transaction() as transaction:
            one, other = transaction.open("one"), transaction.open("other")
            one.write(begins["one"] + rest[2])
            other.write(begins["other"] + rest[3])
            may_be_placed = 1
            one.write(rest[4])
            may_be_placed = 1000
            other.write(rest[5])
            other.close()
            one.close()
    return {
        "one": begins["one"] + rest[2] + rest[4],
        "other": begins["other"] + rest[3] + rest[5],
    }
