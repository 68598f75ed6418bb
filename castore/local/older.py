"""What an object to be put may resemble, in a local store: see `castore.stream.older`."""

from __future__ import annotations

import contextlib

from castore.errors import FormatError
from castore.format.index import Record, decode_record, manifest_of, segment_key
from castore.format.segment import Segment, decode_segment
from castore.stream.older import OlderSegments, candidates, folders_before
from castore.system.lmdb_env import Index
from castore.system.lmdb_snapshot import Snapshot

FOLDERS_KNOWN_MAX = 1000


class FoldersKnown:
    """What folders of names lead to, as long as the index stays as it is: many files of one folder
    ask for the same."""

    def __init__(self) -> None:
        self._known: tuple[int, dict[bytes, list[bytes]]] = (0, {})  # as of a transaction

    def in_snapshot(self, txn: Snapshot) -> dict[bytes, list[bytes]]:
        at, known = self._known
        if at != txn.id() or len(known) >= FOLDERS_KNOWN_MAX:
            known = {}
            self._known = txn.id(), known
        return known


def find_older(
    index: Index,
    name: bytes,
    like: bytes | None,
    folders_known: FoldersKnown,
    *,
    beside: bool = True,
) -> OlderObject | None:
    """The first of the candidates that is an object with chunks."""
    with index.gate, index.snapshot() as txn, txn.cursor(db=index.names) as cursor:
        known = folders_known.in_snapshot(txn)

        def before(name: bytes) -> bytes | None:
            found = cursor.prev() if cursor.set_range(name) else cursor.last()
            return cursor.key() if found else None

        def behind(name: bytes) -> bytes | None:
            return cursor.key() if cursor.set_range(name + b"\0") else None

        def folders(folder: bytes) -> list[bytes]:
            found = known.get(folder)
            if found is None:
                found = known[folder] = folders_before(folder, before)
            return found

        for candidate in candidates(name, like, folders, before, behind, beside=beside):
            raw = txn.get(candidate, db=index.names)
            if raw is None:
                continue
            with contextlib.suppress(FormatError):  # a damaged record
                record = decode_record(raw)
                if not record.is_inline:
                    return OlderObject(index, record)
    return None


class OlderObject(OlderSegments):
    """Its segments are read each in a transaction of its own: a collector may take them
    meanwhile."""

    def __init__(self, index: Index, record: Record) -> None:
        super().__init__(record.size)
        self._index = index
        self._manifest = record.manifest

    def _read(self, offset: int) -> Segment | None:
        index = self._index
        with index.gate, index.snapshot() as txn, txn.cursor(db=index.segments) as cursor:
            if not cursor.set_range(segment_key(self._manifest, offset + 1)):
                return None
            key, raw = bytes(cursor.key()), bytes(cursor.value())
        try:
            if manifest_of(key) != self._manifest:
                return None
            return decode_segment(raw, manifest=self._manifest)
        except FormatError:
            return None
