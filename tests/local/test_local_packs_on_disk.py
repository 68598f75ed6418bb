"""Totals and packs of a local store, as files."""

from __future__ import annotations

import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from stores import locked, packs_of

import castore
from castore.format.frame import decode_frame_header
from castore.format.pack import decode_footer
from castore.local import packs as local_packs
from castore.testing.contents import (
    mixed,
    noise,
)


def test_stats(store: castore.Store) -> None:
    assert store.stats() == castore.StoreStats(0, 0, 0, 0, 0, 0, 0, store.stats().index_bytes)
    big = noise(100_000)
    info = store.puts("big", big)
    store.puts("inline", b"x" * 1000)
    store.puts("again", big)
    stats = store.stats()
    assert stats.objects == 3
    assert stats.chunks == info.chunks
    assert stats.packs == 1
    assert stats.logical_bytes == 201_000
    assert stats.unique_bytes == 101_000
    inline_stored = store.info("inline").stored_bytes
    assert 0 < inline_stored < 1000
    assert stats.stored_bytes == info.stored_bytes + inline_stored
    assert stats.pack_bytes == info.stored_bytes + 64 == packs_of(store)[0].stat().st_size
    assert stats.index_bytes > 0
    store.delete("big")
    store.puts("inline", b"")
    stats = store.stats()
    assert (stats.objects, stats.logical_bytes, stats.unique_bytes) == (2, 100_000, 100_000)


def test_stats_while_packs_come_and_go(store: castore.Store) -> None:
    packs = Path(store.path) / "packs"
    store.puts("name", noise(10_000))
    expected = store.stats()
    (packs / "a stray file").write_bytes(b"")
    (packs_of(store)[0].parent / "not hex.pack").write_bytes(b"")
    assert store.stats().packs == expected.packs
    stop = threading.Event()

    def come_and_go() -> None:
        folder = packs_of(store)[0].parent
        while not stop.is_set():
            for i in range(20):
                (folder / f"{i:032x}.pack").write_bytes(b"")
            for i in range(20):
                (folder / f"{i:032x}.pack").unlink()

    thread = threading.Thread(target=come_and_go)
    thread.start()
    try:
        for _ in range(300):
            store.stats()
    finally:
        stop.set()
        thread.join()


def frames_of(pack: Path) -> Iterator[tuple[bytes, int, int]]:
    raw, at = pack.read_bytes(), 64
    while raw[at : at + 4] == b"CFRM":
        header = decode_frame_header(raw[at:])
        length = header.header_bytes + header.payload_bytes
        yield header.chunk_id, at, length
        at += length


def test_packs_are_sealed_when_the_store_is_closed(store: castore.Store, tmp_path: Path) -> None:
    store.puts("a", mixed(100_000, 1))
    store.puts("b", mixed(100_000, 2))
    (pack,) = packs_of(store)
    scanned = list(frames_of(pack))
    assert pack.read_bytes()[-8:] != b"castfoot"
    store.close()
    raw = pack.read_bytes()
    trailer = raw[-40:]
    footer = raw[int.from_bytes(trailer[:8], "little") :]
    entries = decode_footer(footer, len(raw))
    assert [(e.chunk_id, e.offset, e.stored_bytes) for e in entries] == scanned
    with castore.open(store.path) as again:
        assert again.gets("b") == mixed(100_000, 2)
        again.puts("c", mixed(100_000, 3))
        assert len(packs_of(again)) == 2, "a sealed pack is not written to again"


def test_packs_are_full_at_their_maximum(
    store: castore.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_packs, "PACK_BYTES_MAX", 200_000)
    data = noise(4_000_000)
    store.puts("name", data)
    assert len(packs_of(store)) > 3
    assert store.gets("name") == data
    with store.open("name") as file:
        assert file.read() == data
    assert sum(pack.read_bytes()[-8:] == b"castfoot" for pack in packs_of(store)) >= 3
    before = store.stats()
    with castore.open(store.path) as other:
        other.puts("again", data)
    assert store.stats().pack_bytes == before.pack_bytes


def test_a_pack_that_nothing_refers_to_is_removed(store: castore.Store) -> None:
    with pytest.raises(KeyError), store.transaction() as transaction:  # noqa: PT012
        transaction.puts("name", noise(100_000))
        raise KeyError
    store.close()
    assert packs_of(store) == []


def test_what_is_made_is_for_its_owner_alone(store: castore.Store) -> None:
    store.puts("name", noise(10_000))
    store.close()
    root = Path(store.path)
    assert stat.S_IMODE(root.stat().st_mode) == 0o700
    for path in root.rglob("*"):
        expected = 0o700 if path.is_dir() else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == expected, path


def test_a_pack_is_locked_until_what_it_holds_is_committed(
    store: castore.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_packs, "PACK_BYTES_MAX", 150_000)
    with store.transaction() as transaction:
        transaction.puts("name", noise(4_000_000))
        assert len(packs_of(store)) > 1
        assert all(locked(pack) for pack in packs_of(store))
    sealed = [pack for pack in packs_of(store) if pack.read_bytes()[-8:] == b"castfoot"]
    assert sealed
    assert not any(locked(pack) for pack in sealed)
    store.close()
    assert not any(locked(pack) for pack in packs_of(store))
