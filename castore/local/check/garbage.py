"""What nothing leads to in a local store: counted, since the next collection takes it; no fault."""

from __future__ import annotations

from collections.abc import Collection
from itertools import groupby

from castore.errors import FormatError
from castore.format.index import manifest_of, segment_key
from castore.format.segment import decode_segment
from castore.local.check.pack_files import is_locked, pack_path, size_of
from castore.local.check.segments import is_pending, segments_of
from castore.local.index_walk import rows
from castore.stream.reports import CheckReport
from castore.system.lmdb_env import Index
from castore.system.lmdb_snapshot import Snapshot


class Garbage:
    """Counted in the report.

    What seems to be garbage in the snapshot may be of a writer that was at work, and has committed
    since: its locks are asked for first, and then, in `settle`, the index as it is now.
    """

    def __init__(self, root: str, index: Index, report: CheckReport) -> None:
        self._report = report
        self._root = root
        self._index = index
        self._packs: dict[bytes, bool] = {}  # that nothing leads to, and whether they have a row
        self._staged: dict[int, bytes] = {}  # pending manifests, and the packs of their writers

    def suspect(self, pack_id: bytes, *, has_row: bool) -> None:
        self._packs[pack_id] = has_row

    def find_manifests(self, txn: Snapshot, named: Collection[int]) -> tuple[set[bytes], int, int]:
        """Those that no name leads to; the packs that a writer may be staging objects in, how many
        keys of segments are damaged, and how many rows of what is pending."""
        index = self._index
        found = list(rows(index, txn, index.pending))
        pending = {manifest_of(key): owner for key, owner in found if is_pending(key, owner)}
        damaged = 0
        with txn.cursor(db=index.segments) as cursor:
            keys = (bytes(key) for key in cursor.iternext(values=False))
            for manifest, _ in groupby(keys, key=_manifest_or_none):
                if manifest is None:
                    damaged += 1
                elif manifest in named:
                    continue
                elif manifest in pending:
                    self._staged[manifest] = pending[manifest]
                else:
                    self._report.count_garbage("manifests")
        packs = (self._packs_of(txn, manifest) for manifest in self._staged)
        return set[bytes]().union(*packs), damaged, len(found) - len(pending)

    def settle(self) -> None:
        """Once all that is suspect is known."""
        index = self._index
        packs = [p for p in self._packs if not is_locked(pack_path(self._root, p))]
        staged = [
            manifest
            for manifest, owner in self._staged.items()
            if not is_locked(pack_path(self._root, owner))
        ]
        with index.gate, index.snapshot() as txn:
            for pack_id in packs:
                had_row, has_row = self._packs[pack_id], txn.get(pack_id, db=index.packs)
                size = size_of(pack_path(self._root, pack_id))
                if had_row == (has_row is not None) and size:
                    self._report.count_garbage("packs", size)
            for manifest in staged:
                if txn.get(segment_key(manifest, 0), db=index.pending) is not None:
                    self._report.count_garbage("manifests")

    def _packs_of(self, txn: Snapshot, manifest: int) -> set[bytes]:
        found: set[bytes] = set()
        for _, raw in segments_of(self._index, txn, manifest):
            try:
                found.update(decode_segment(raw).packs)
            except FormatError:
                continue  # its writer will find out
        return found


def _manifest_or_none(key: bytes) -> int | None:
    try:
        return manifest_of(key)
    except FormatError:
        return None
