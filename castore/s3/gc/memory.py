"""What a collector of a store on S3 remembers from one run to the next, in the store's cache.

Which packs each manifest refers to, by name and ETag, so that a run reads only the manifests that
changed since the last one on this machine; and the version of `gc/state` that it saw last. All of
it can be lost: then more is read, and one refusal is not made.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from castore.format.s3_gc import PackIds, decode_references, encode_references
from castore.s3.cache.store import StoreCache
from castore.system.lmdb_env import Index, Snapshot, Table, Txn

_STATE_VERSION = b"gc state version"


class CollectorMemory:
    """Rows of the store's cache; where that can't be used, nothing is remembered."""

    def __init__(self, cache: StoreCache) -> None:
        self._cache = cache
        self.path = cache.path

    # ------------------------------------------------------------ gc/state

    def state_version(self) -> int:
        """The highest version seen; 0 if none was."""
        raw = self._cache.read(lambda index, txn: txn.get(_STATE_VERSION, db=index.meta), None)
        return 0 if raw is None else int.from_bytes(raw, "little")

    def saw_state(self, version: int) -> None:
        def write(index: Index, txn: Txn) -> None:
            raw = txn.get(_STATE_VERSION, db=index.meta)
            if raw is None or int.from_bytes(raw, "little") < version:
                txn.put(_STATE_VERSION, version.to_bytes(8, "little"), db=index.meta)

        self._cache.write(write)

    # ------------------------------------------------------------ manifests

    def packs_of(self, listed: Sequence[tuple[bytes, str]]) -> dict[bytes, PackIds]:
        """The packs of those of the (name, ETag) that are remembered."""

        def read(index: Index, txn: Snapshot) -> dict[bytes, PackIds]:
            found = {}
            for name, etag in listed:
                packs = decode_references(name, etag, txn.get(name, db=index.references))
                if packs is not None:
                    found[name] = packs
            return found

        return self._cache.read(read, {})

    def remember(
        self,
        after: bytes,
        listed: Sequence[tuple[bytes, str]],
        fresh: Mapping[bytes, tuple[str, PackIds]],
    ) -> None:
        """What is `fresh` of the names `listed`, which are all that follow `after`, up to the last
        of them: others between are no longer there. With an empty list, all behind `after`."""
        there = {name for name, _ in listed}
        upto = listed[-1][0] if listed else None

        def write(index: Index, txn: Txn) -> None:
            for name in list(_between(txn, index.references, after, upto)):
                if name not in there:
                    txn.delete(name, db=index.references)
            for name, (etag, packs) in fresh.items():
                txn.put(name, encode_references(name, etag, packs), db=index.references)

        def has_others(index: Index, txn: Snapshot) -> bool:
            rows = _between(txn, index.references, after, upto)
            return any(name not in there for name in rows)

        outdated: bool = self._cache.read(has_others, False)
        if fresh or outdated:
            self._cache.write(write)


def _between(
    txn: Snapshot | Txn, table: Table, after: bytes, upto: bytes | None
) -> Iterator[bytes]:
    """The names that follow `after`, up to `upto`, or all."""
    with txn.cursor(db=table) as cursor:
        there = cursor.set_range(after) if after else cursor.first()
        if there:
            for key in cursor.iternext(values=False):
                name = bytes(key)
                if upto is not None and name > upto:
                    return
                if name != after:
                    yield name
