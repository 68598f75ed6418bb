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
