"""The etag of an object: the same for equal bytes, and only for these."""

from __future__ import annotations

import os

import xxhash

import castore
from castore.check.objects import manifest_faults
from castore.format.index import Record
from castore.format.segment import decode_segment
from castore.local.catalog import LocalCatalog
from castore.stream.codec import ChunksEtag


def test_one_whose_bytes_are_chunk_ids_has_an_etag_of_its_own(store: castore.Store) -> None:
    chunked = store.puts("chunked", os.urandom(30_000))
    [ids] = _ids(store, "chunked")
    inline = store.puts("inline", ids)
    assert inline.chunks == 0
    assert chunked.chunks > 1
    assert inline.etag != chunked.etag
    assert store.puts("again", store.gets("chunked")).etag == chunked.etag


def test_an_etag_of_the_former_kind_is_still_good(store: castore.Store) -> None:
    store.puts("chunked", os.urandom(30_000))
    seed = store._check_open().config.seed
    [ids] = _ids(store, "chunked")
    former = xxhash.xxh3_128_digest(ids, seed=seed)
    etag = ChunksEtag(seed)
    for at in range(0, len(ids), 16):
        etag.update(ids[at : at + 16])
    assert etag.digest() != former
    assert etag.matches(etag.digest())
    assert etag.matches(former)
    record, segments = _manifest(store, "chunked")
    said = [f.what for f in manifest_faults(record._replace(etag=former), segments, {}, seed)]
    assert not any("etag" in what for what in said)
    said = [f.what for f in manifest_faults(record._replace(etag=bytes(16)), segments, {}, seed)]
    assert any("etag" in what for what in said)


def _manifest(store: castore.Store, name: str) -> tuple[Record, list[bytes]]:
    catalog = store._check_open().catalog
    assert isinstance(catalog, LocalCatalog)
    record = catalog.record(name.encode())
    assert record is not None
    index = catalog.index
    with index.gate, index.snapshot() as txn:
        return record, list(catalog._raw_segments(txn, record.manifest))


def _ids(store: castore.Store, name: str) -> list[bytes]:
    return [
        b"".join(extent.chunk_id for extent in decode_segment(raw))
        for raw in _manifest(store, name)[1]
    ]
