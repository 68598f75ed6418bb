"""What a collector of a store on S3 remembers from one run to the next, in the store's cache.

What each manifest refers to, by name and ETag, so that a run reads only the manifests that changed
since the last one on this machine; for how long what garbage has been kept; where a listing of the
names can be begun at several places at once; and the version of `gc/state` that it saw last. All of
it can be lost: then more is read, or guessed, and one refusal is not made.

What is remembered of manifests has a bound. Beyond it no more is taken in, rather than what was
used longest ago thrown out: each run goes through all of it in one order, and would throw out just
what it is about to need."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from castore.format.pack import PACK_ID_BYTES
from castore.format.s3_gc import References, decode_references, encode_references
from castore.s3.cache.index import checked, unchecked
from castore.s3.cache.store import StoreCache
from castore.system.lmdb_env import Index, Txn
from castore.system.lmdb_snapshot import Snapshot, Table

ROWS_BYTES_MAX = 8 << 30  # of manifests, together
ROW_BYTES_MAX = 8 << 20  # of one: that of an object of some 60 GB

_STATE_VERSION = b"gc state seen"
_ROWS_BYTES = b"gc rows size"
_KEPT = b"gc garbage kept"
_STARTS = b"gc listing starts"
_KEPT_ROW = struct.Struct(f"<{PACK_ID_BYTES}sQd")


class Kept(NamedTuple):
    """Of a pack: the bytes of garbage in it when it was looked at last, and the byte-seconds for
    which there had been garbage by then."""

    dead: int
    byte_seconds: float


class CollectorMemory:
    """Rows of the store's cache; where that can't be used, nothing is remembered."""

    def __init__(self, cache: StoreCache) -> None:
        self._cache = cache
        self.path = cache.path

    # ------------------------------------------------------------ gc/state

    def state_version(self) -> int:
        """The highest version seen; 0 if none was."""
        return self._cache.read(lambda index, txn: _number(txn, index.meta, _STATE_VERSION), 0)

    def saw_state(self, version: int) -> None:
        def write(index: Index, txn: Txn) -> None:
            if _number(txn, index.meta, _STATE_VERSION) < version:
                raw = version.to_bytes(8, "little")
                txn.put(_STATE_VERSION, checked(_STATE_VERSION, raw), db=index.meta)

        self._cache.write(write)

    # ------------------------------------------------------------ manifests

    def references_of(
        self, listed: Sequence[tuple[bytes, str]], *, with_frames: bool
    ) -> dict[bytes, References]:
        """Of those of the (name, ETag) that are remembered; `with_frames`, of which these are, too,
        which are left out otherwise."""

        def read(index: Index, txn: Snapshot) -> dict[bytes, References]:
            found = {}
            for name, etag in listed:
                row = txn.get(name, db=index.references)
                references = decode_references(name, etag, row, with_frames=with_frames)
                if references is not None:
                    found[name] = references
            return found

        return self._cache.read(read, {})

    def remember(
        self,
        after: bytes,
        listed: Sequence[tuple[bytes, str]],
        fresh: Mapping[bytes, tuple[str, References]],
    ) -> None:
        """What is `fresh` of the names `listed`, which are all that follow `after`, up to the last
        of them: others between are no longer there. With an empty list, all behind `after`."""
        there = {name for name, _ in listed}
        upto = listed[-1][0] if listed else None

        def write(index: Index, txn: Txn) -> None:
            size = before = _number(txn, index.meta, _ROWS_BYTES)
            rows = {
                name: encode_references(name, etag, references)
                for name, (etag, references) in fresh.items()
            }
            gone = [n for n in _between(txn, index.references, after, upto) if n not in there]
            for name in (*gone, *rows):
                row = txn.get(name, db=index.references)
                if row is not None:
                    size -= len(name) + len(row)
                    txn.delete(name, db=index.references)
            for name, row in rows.items():
                if len(row) <= ROW_BYTES_MAX and size + len(name) + len(row) <= ROWS_BYTES_MAX:
                    size += len(name) + len(row)
                    txn.put(name, row, db=index.references)
            if size != before:
                raw = max(size, 0).to_bytes(8, "little")
                txn.put(_ROWS_BYTES, checked(_ROWS_BYTES, raw), db=index.meta)

        def has_others(index: Index, txn: Snapshot) -> bool:
            rows = _between(txn, index.references, after, upto)
            return any(name not in there for name in rows)

        outdated: bool = self._cache.read(has_others, False)
        if fresh or outdated:
            self._cache.write(write)

    # ------------------------------------------------------------ garbage in packs

    def kept(self) -> tuple[float, dict[bytes, Kept]] | None:
        """When packs were looked at last, in seconds by the server's clock, and those that had
        garbage then; None if that is not known."""
        raw = self._get(_KEPT)
        if raw is None or len(raw) < 8:
            return None
        found = {
            pack_id: Kept(dead, byte_seconds)
            for pack_id, dead, byte_seconds in _KEPT_ROW.iter_unpack(raw[8:])
        }
        return struct.unpack_from("<d", raw)[0], found

    def keep(self, now: float, kept: Mapping[bytes, Kept]) -> None:
        rows = [_KEPT_ROW.pack(pack_id, *each) for pack_id, each in kept.items()]
        self._put(_KEPT, b"".join([struct.pack("<d", now), *rows]))

    # ------------------------------------------------------------ listings

    def starts(self) -> list[bytes]:
        """Names, in order, that had about as many others between each two when they were listed
        last."""
        raw = self._get(_STARTS)
        return raw.split(b"\0") if raw else []

    def remember_starts(self, names: Sequence[bytes]) -> None:
        self._put(_STARTS, b"\0".join(names))

    def _get(self, key: bytes) -> bytes | None:
        row = self._cache.row("meta", key)
        return None if row is None else unchecked(key, row)

    def _put(self, key: bytes, raw: bytes) -> None:
        self._cache.change("meta", {key: checked(key, raw)})


def _number(txn: Snapshot | Txn, table: Table, key: bytes) -> int:
    """0 if there is none, or it is damaged."""
    row = txn.get(key, db=table)
    raw = None if row is None else unchecked(key, bytes(row))
    return 0 if raw is None else int.from_bytes(raw, "little")


def _between(
    txn: Snapshot | Txn, table: Table, after: bytes, upto: bytes | None
) -> Iterator[bytes]:
    """The names that follow `after`, up to `upto`, or all."""
    with txn.cursor(db=table) as cursor:
        if cursor.set_range(after + b"\0"):
            for key in cursor.iternext(values=False):
                name = bytes(key)
                if upto is not None and name > upto:
                    return
                yield name
