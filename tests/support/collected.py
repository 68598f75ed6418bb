"""Local stores that are collected."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from sessions import rows, some_bytes

import castore
from castore.format.segment import decode_segment
from castore.model import Location


def everything(store: castore.Store) -> dict[str, bytes]:
    return {name: store.gets(name) for name in store.names()}


def pack_files(store: castore.Store) -> dict[str, int]:
    return {path.stem: path.stat().st_size for path in Path(store.path).glob("packs/*/*.pack")}


def assert_rows_complete(store: castore.Store, within: Collection[str] | None = None) -> None:
    """Every chunk that an object has is known, so that it is not stored again; or only each that is
    in one of these packs (hex)."""
    known = rows(store, "chunks")
    for raw in rows(store, "segments").values():
        for extent in decode_segment(raw):
            if within is None or extent.location.pack_id.hex() in within:
                assert extent.chunk_id in known


def sparse(store: castore.Store, name: str, seed: int = 0) -> bytes:
    """A pack of which a quarter is alive."""
    with store.transaction() as transaction:
        transaction.puts(f"{name}/kept", some_bytes(25_000, seed))
        transaction.puts(f"{name}/gone", some_bytes(75_000, seed + 1))
    store._backend.packs.retire()  # type: ignore[union-attr]
    store.delete(f"{name}/gone")
    return next(
        extent.location.pack_id
        for raw in reversed(rows(store, "segments").values())
        for extent in decode_segment(raw)
    )


def damage(store: castore.Store, location: Location) -> None:
    path = store._backend.packs.path(location.pack_id)  # type: ignore[union-attr]
    with open(path, "r+b") as file:
        file.seek(location.offset + location.stored_bytes - 5)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 0x10]))


def first_extents(store: castore.Store, name: str) -> Any:
    manifest = store._catalog.manifest(name.encode())[1]
    return [extent for segment in manifest for extent in segment]
