"""Puts that meet a collector, or lost packs."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from stores import packs_of

import castore
from castore.format.index import decode_chunk_row
from castore.local import packs as local_packs
from castore.testing.contents import (
    mixed,
)


def collect(store: castore.Store, packs: list[Path], *, rows_only: bool = False) -> None:
    """What a collector does to packs: their chunks' rows go, then (but for `rows_only`) their own,
    its counter is raised, and after its commit the files are unlinked."""
    from castore.local import meta

    index = store._catalog._index
    with index.write_gate, index.errors, index.begin() as txn:
        ids = {bytes.fromhex(pack.stem) for pack in packs}
        with txn.cursor(db=index.chunks) as cursor:
            rows = [(key, decode_chunk_row(row)[1].pack_id) for key, row in cursor]
        for key, pack_id in rows:
            if pack_id in ids:
                txn.delete(key, db=index.chunks)
        for pack_id in ids if not rows_only else ():
            assert txn.delete(pack_id, db=index.packs)
        meta.next_number(index, txn, meta.GC_SEQ)
    for pack in packs if not rows_only else ():
        pack.unlink()


@pytest.fixture(params=[None, "sha256"], ids=["plain", "guarded"])
def reusable(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[castore.Store]:
    """A store with packs full of chunks that no name uses."""
    path = tmp_path / "reusable"
    for i in range(2):
        with castore.open(path, chunk_bytes_avg=2816, collision_guard=request.param) as store:
            store.puts(f"{i}", mixed(4_000_000, i))
    with castore.open(path) as store:
        store.delete_prefix("", unbounded=True)
        yield store


def read_afresh(path: str, name: str) -> bytes:
    with castore.open(path, cache_bytes=0) as store, store.open(name) as file:
        assert store.gets(name) == file.read()
        return store.gets(name)


@pytest.mark.damages_store("rows are removed without the sums")
@pytest.mark.parametrize("which", [slice(0, 1), slice(1, 2), slice(0, 2)])
def test_packs_that_are_collected_after_they_were_looked_up(
    reusable: castore.Store, which: slice
) -> None:
    """The stream is gone by then: the frames come from the mapping that the put has kept."""
    contents = [mixed(4_000_000, 0), mixed(4_000_000, 1)]
    packs = packs_of(reusable)
    with reusable.transaction() as transaction:
        for i, data in enumerate(contents):
            transaction.puts(f"known {i}", data)
        assert packs_of(reusable) == packs, "all of it was known"
        transaction.puts("partly known", contents[0][1_000_000:] + contents[1][:1_000_000])
        collect(reusable, packs[which])
    reusable.close()
    for i, data in enumerate(contents):
        assert read_afresh(reusable.path, f"known {i}") == data
    both = contents[0][1_000_000:] + contents[1][:1_000_000]
    assert read_afresh(reusable.path, "partly known") == both


@pytest.mark.damages_store("rows are removed without the sums")
def test_packs_that_are_collected_while_another_stores_their_chunks_again(
    reusable: castore.Store,
) -> None:
    data = mixed(4_000_000, 0)
    with reusable.transaction() as transaction:
        transaction.puts("name", data)
        collect(reusable, packs_of(reusable))
        with castore.open(reusable.path) as other:
            other.puts("other", data)
        (pack,) = packs_of(reusable)
    assert packs_of(reusable) == [pack], "where they are now is good enough"
    reusable.close()
    assert read_afresh(reusable.path, "name") == data


@pytest.mark.damages_store("rows are removed without the sums")
def test_rows_that_are_collected_after_they_were_looked_up(reusable: castore.Store) -> None:
    """Their pack is still there: the rows come back."""
    data = mixed(4_000_000, 0)
    chunks = reusable.stats().chunks
    with reusable.transaction() as transaction:
        transaction.puts("name", data)
        collect(reusable, packs_of(reusable), rows_only=True)
        assert reusable.stats().chunks == 0
    found = reusable.stats().chunks
    assert 0 < found < chunks
    reusable.puts("again", data)
    assert reusable.stats().chunks == found
    reusable.close()
    assert read_afresh(reusable.path, "name") == data


def test_a_pack_of_ours_that_is_removed_before_the_commit(store: castore.Store) -> None:
    """Against all rules, since it is locked."""
    data = mixed(4_000_000, 0)
    with store.transaction() as transaction:
        transaction.puts("name", data)
        for pack in packs_of(store):
            pack.unlink()
        transaction.puts("more", data[:300_000])
    store.close()
    assert read_afresh(store.path, "name") == data
    assert read_afresh(store.path, "more") == data[:300_000]


def test_with_hardly_any_room_to_remember(
    store: castore.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every cache that has a bound, at its least; manifests too large for memory."""
    from castore.local import hot as local
    from castore.stream import segments as manifest

    monkeypatch.setattr(local_packs, "PACK_BYTES_MAX", 100_000)
    monkeypatch.setattr(local_packs, "MAPPINGS_MAX", 1)
    monkeypatch.setattr(local, "HOT_OBJECTS_MAX", 1)
    monkeypatch.setattr(local, "HOT_SEGMENTS_MAX", 1)
    monkeypatch.setattr(manifest, "MEMORY_BYTES_MAX", 1000)
    contents = {f"{i}": mixed(9_000_000, i) for i in range(2)}
    for name, data in contents.items():
        assert store.puts(name, data).chunks > 2 * 1024
    rng = random.Random(1)
    files = {name: store.open(name) for name in contents}
    for _ in range(100):
        name = rng.choice(list(contents))
        begin = rng.randrange(9_000_000)
        end = begin + rng.choice([1, 5000, 3_000_000])
        assert store.gets(name, (begin, end)) == contents[name][begin:end]
        files[name].seek(begin)
        assert files[name].read(end - begin) == contents[name][begin:end]
    for name, file in files.items():
        with file:
            file.seek(0)
            assert file.read() == contents[name] == store.gets(name)
