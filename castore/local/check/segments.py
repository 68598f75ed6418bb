"""Walking a local store's names and segments, with no trust in them."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from functools import partial

from castore.errors import FormatError, UnsupportedFormat, fault_of
from castore.format.index import decode_record, manifest_of, segment_key, segment_place
from castore.format.pack import PACK_ID_BYTES
from castore.format.segment import Segment, decode_segment
from castore.local.check.pack_files import is_locked, pack_path
from castore.local.index_walk import pages
from castore.system.lmdb_env import Index, Txn
from castore.system.lmdb_snapshot import Snapshot


def all_segments(index: Index) -> Iterator[tuple[bytes, Segment]]:
    """(key, segment) of those that decode."""
    for page in pages(index, index.segments):
        for key, raw in page:
            with contextlib.suppress(FormatError):
                yield key, decode_segment(raw, manifest=manifest_of(key))


def segments_of(index: Index, txn: Snapshot | Txn, manifest: int) -> Iterator[tuple[bytes, bytes]]:
    """(key, segment as stored) of a manifest's, in order; those with a damaged key are left out."""
    first = segment_key(manifest, 0)
    with txn.cursor(db=index.segments) as cursor:
        if cursor.set_range(first):
            for raw_key, raw in cursor:
                key = bytes(raw_key)
                if key[:8] > first[:8]:
                    return
                if len(key) == len(first):
                    yield key, bytes(raw)


def named_manifests(index: Index, txn: Snapshot | Txn) -> set[int]:
    """Those that a record which decodes leads to."""
    named = set()
    for _, raw in txn.cursor(db=index.names):
        with contextlib.suppress(FormatError, UnsupportedFormat):
            named.add(decode_record(bytes(raw)).manifest)
    return named


def pending_manifests(
    index: Index, txn: Snapshot | Txn, root: str, ours: Collection[bytes]
) -> set[int]:
    """Of writers that live. The locks of the packs that are `ours` show nothing."""
    rows = [(bytes(key), bytes(owner)) for key, owner in txn.cursor(db=index.pending)]
    return {
        manifest_of(key)
        for key, owner in rows
        if is_pending(key, owner) and owner not in ours and is_locked(pack_path(root, owner))
    }


def is_pending(key: bytes, owner: bytes) -> bool:
    """Whether it is a row that a writer may have put into `pending`."""
    try:
        return segment_place(key)[1] == 0 and len(owner) == PACK_ID_BYTES
    except FormatError:
        return False


def decodes(raw: bytes, manifest: int) -> bool:
    """Whether it is a whole segment, and of this manifest."""
    return not fault_of(partial(decode_segment, manifest=manifest), raw)
