"""What a commit is made of, as values: drafts of new objects, and the changes to names."""

from __future__ import annotations

import heapq
import time
from collections.abc import Iterable, Iterator, Sequence
from operator import index
from typing import NamedTuple, TypeAlias

from castore.errors import ClockOutOfRange, TimeOutOfRange
from castore.format.index import Record

TIME_NS_LIMIT = 1 << 63


class Draft:
    """A new object's manifest on its way into the index. `segments` are (end offset, encoded), of
    those that are not in the index yet; `manifest` is 0 until a transaction that gave it a number
    is committed."""

    __slots__ = ("manifest", "segments", "staged")

    def __init__(self) -> None:
        self.segments: list[tuple[int, bytes]] = []
        self.manifest = 0
        self.staged = False  # some of its segments are in the index already


class Publish(NamedTuple):
    """The name maps to the record from now on; with a draft, to that draft's manifest. With
    `over`, only if it maps to the bytes of that record until then, whose mode bits it keeps as they
    are by then: else ObjectChanged."""

    name: bytes
    record: Record
    draft: Draft | None
    if_absent: bool = False
    over: Record | None = None


def same_bytes(one: Record, other: Record) -> bool:
    """Whether two records of one store are of the same content."""
    return (one.size, one.etag) == (other.size, other.etag)


class Copy(NamedTuple):
    """`target` maps to what `source` does; with `rename`, `source` is gone."""

    source: bytes
    target: bytes
    mtime_ns: int
    if_absent: bool = False
    rename: bool = False


class SetAttributes(NamedTuple):
    """The name has these mode bits and this time from now on; None leaves one as it is."""

    name: bytes
    mode: int | None
    mtime_ns: int | None

    def of(self, record: Record) -> Record:
        """The record with them."""
        mode = record.mode if self.mode is None else self.mode
        mtime_ns = record.mtime_ns if self.mtime_ns is None else self.mtime_ns
        return record._replace(mode=mode, mtime_ns=mtime_ns)


def check_mode(mode: int) -> None:
    """Raises ValueError; TypeError for what is no integer, which would else be found out by the
    commit, where those of other threads fail with it."""
    if not 0 <= index(mode) <= 0o7777:
        raise ValueError(f"mode is permission bits, 0 to 0o7777, not {mode:#o}")


def check_time(what: str, time_ns: int) -> None:
    """Raises TimeOutOfRange; TypeError for what is no integer, which would else be found out by the
    commit, where those of other threads fail with it."""
    if not -TIME_NS_LIMIT <= index(time_ns) < TIME_NS_LIMIT:
        raise TimeOutOfRange(what, time_ns)


def now_ns() -> int:
    """What time it is, for what is written. Raises ClockOutOfRange where a record, a pack's row or
    a backup can't hold it."""
    now = time.time_ns()
    if not 0 <= now < TIME_NS_LIMIT:
        raise ClockOutOfRange(now)
    return now


class Delete(NamedTuple):
    name: bytes


class DeletePrefix(NamedTuple):
    prefix: bytes


Operation: TypeAlias = Publish | Copy | SetAttributes | Delete | DeletePrefix


def names_after(
    operations: Sequence[Operation], prefix: bytes, names: Iterable[bytes]
) -> Iterator[bytes]:
    """Of the names that begin with `prefix`, those that there are once the operations are applied,
    in order. `names` are those that there are now, in order."""
    known: dict[bytes, bool] = {}  # whether it is there, of names that were changed
    emptied: list[bytes] = []
    for operation in operations:
        match operation:
            case Publish(name):
                known[name] = True
            case Copy(source, target, _, _, rename):
                if rename:
                    known[source] = False
                known[target] = True
            case Delete(name):
                known[name] = False
            case DeletePrefix(below):
                known |= {name: False for name in known if name.startswith(below)}
                emptied.append(below)
    added = sorted(name for name, there in known.items() if there and name.startswith(prefix))
    kept = (name for name in names if name not in known and not name.startswith(tuple(emptied)))
    return heapq.merge(kept, added)
