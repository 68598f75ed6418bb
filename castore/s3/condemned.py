"""What collectors announce, as those read it who are none."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterable, Sequence
from typing import overload

from castore.errors import FormatError
from castore.format.pack import PACK_ID_BYTES
from castore.format.s3_gc import Condemned, GcState, decode_condemned, decode_state
from castore.s3.client.bucket import Bucket, KeyAbsent
from castore.s3.keys import CONDEMNED_LISTS, GC_STATE_KEY, is_collectors
from castore.s3.told import undamaged


class ListGone(FormatError):
    """`gc/state` refers to a list that is not there."""


class CondemnedPacks:
    """What a collector is about to delete, if it is at it, as writers ask again and again.

    The state is read each time, and its list only where the state is another one: it may have
    millions of packs. A list never changes while one and the same state leads to it, and no two
    states are alike, as each has a nonce. A list's key alone would not do: where `gc/state` was
    lost, a repair begins to count anew. 16 bytes a pack are kept. Thread-safe.
    """

    def __init__(self, bucket: Bucket, store_id: bytes) -> None:
        self._bucket = bucket
        self._store_id = store_id
        self._known: tuple[GcState, Sequence[bytes]] | None = None

    def among(self, pack_ids: Collection[bytes]) -> set[bytes]:
        """Those of the packs that are condemned now. Raises ListGone, FormatError,
        UnsupportedFormat."""
        condemned = self._read()
        return {pack_id for pack_id in pack_ids if _has(condemned, pack_id)}

    def _read(self) -> Sequence[bytes]:
        before = None
        while True:
            try:
                state = undamaged(lambda: decode_state(self._bucket.get(GC_STATE_KEY).body))
                if state.condemned is None:
                    self._known = None
                    return ()
                known = self._known
                if known is not None and known[0] == state:
                    return known[1]
                if state == before:
                    raise ListGone(f"gc/state refers to {state.condemned!r}, which is not there")
                before = state
                packs = _SortedIds(read_list(self._bucket, state.condemned, self._store_id).packs)
                self._known = state, packs
                return packs
            except KeyAbsent as absent:
                if absent.key == GC_STATE_KEY:
                    return ()
                # The list: unless the round ended in between.


def read_list(bucket: Bucket, key: str, store_id: bytes) -> Condemned:
    """Raises KeyAbsent, FormatError, UnsupportedFormat."""
    return undamaged(lambda: decode_condemned(bucket.get(key).body, store_id))


def read_condemned(bucket: Bucket, store_id: bytes) -> set[bytes]:
    """All that a collector is about to delete, if it is at it. Raises ListGone, FormatError,
    UnsupportedFormat."""
    return set(CondemnedPacks(bucket, store_id)._read())


class _SortedIds(Sequence[bytes]):
    """Ids of packs, sorted, one behind the other."""

    def __init__(self, pack_ids: Iterable[bytes]) -> None:
        self._raw = b"".join(sorted(pack_ids))

    def __len__(self) -> int:
        return len(self._raw) // PACK_ID_BYTES

    @overload
    def __getitem__(self, i: int) -> bytes: ...

    @overload
    def __getitem__(self, i: slice) -> Sequence[bytes]: ...

    def __getitem__(self, i: int | slice) -> bytes | Sequence[bytes]:
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(len(self)))]
        if not 0 <= i < len(self):
            raise IndexError(i)
        return self._raw[i * PACK_ID_BYTES : (i + 1) * PACK_ID_BYTES]


def _has(ids: Sequence[bytes], pack_id: bytes) -> bool:
    i = bisect_left(ids, pack_id)
    return i < len(ids) and ids[i] == pack_id


def list_without_state(bucket: Bucket) -> str | None:
    """The key of a list where `gc/state` is gone: none is written before there is a state, which
    nobody takes away."""
    lists = (entry.key for entry in bucket.list(CONDEMNED_LISTS) if is_collectors(entry.key))
    key = next(lists, None)
    if key is not None:
        try:
            bucket.head(GC_STATE_KEY)
        except KeyAbsent:
            return key
    return None
