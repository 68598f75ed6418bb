"""What a kind of store supplies to `Store`: names, packs, sessions, and what is done to all of it.

`castore/local/store.py` and `castore/s3/store.py` have the two that there are.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, TypeAlias

from castore.format.config import StoreConfig
from castore.format.index import Record
from castore.format.segment import Segment
from castore.model import Extent, Location, ObjectInfo, Progress, StoreStats
from castore.stream.chunker import Chunker
from castore.stream.segments import Manifest
from castore.stream.session import WriteSession
from castore.system.workers import Workers

if TYPE_CHECKING:  # loaded by those who need it
    from castore.stream.reports import BackupReport, CheckReport, GcOptions, GcReport, RebuildReport

Held: TypeAlias = Mapping[bytes, Any]  # by pack id: what keeps a pack readable
NOTHING_HELD: Final[Held] = {}


class Backend(Protocol):
    """Raises what its layers raise: see the verbs of `Store`."""

    root: str
    config: StoreConfig
    threads: int
    compression_level: int

    @property
    def writable(self) -> bool: ...

    @property
    def catalog(self) -> Catalog: ...

    @property
    def packs(self) -> Packs: ...

    def session(
        self, workers: Workers, chunker: Chunker, *, level: int, deltas: bool
    ) -> WriteSession: ...

    def stats(self) -> StoreStats: ...

    def gc(self, options: GcOptions, *, progress: Progress | None) -> GcReport: ...

    def check(self, *, fraction: float, progress: Progress | None) -> CheckReport: ...

    def repair(
        self,
        session: Callable[[], WriteSession],
        found: CheckReport | None,
        *,
        packs_are_lost: bool,
        progress: Progress | None,
    ) -> CheckReport:
        """`found` is what a check of all data has just found, so that the data need not be read
        again by a kind of store that can do without. Raises RepairRefused while more packs are
        missing than are there, unless `packs_are_lost`, and UnsupportedFormat, with nothing
        changed, where a later castore's packs or records are."""

    def back_up(self, path: str, *, progress: Progress | None) -> BackupReport: ...

    def rebuild_index(self, *, progress: Progress | None) -> RebuildReport: ...

    def remove_old_versions(self, name: bytes, *, below: bool) -> int:
        """Of what the place itself keeps of earlier versions of the name (`below`: of all names
        that begin with it), how many were removed."""

    def close(self) -> None: ...


class Entry(NamedTuple):
    """A name, with what it maps to if that was asked for, or a folder, which ends with '/'."""

    name: bytes
    record: Record | None = None
    is_folder: bool = False


class Catalog(Protocol):
    def record(self, name: bytes) -> Record | None:
        """What the name maps to now."""

    def records(self, names: Collection[bytes]) -> dict[bytes, Record]:
        """What the names map to now: those of them that map to something, but for records that are
        damaged."""

    def at_hand(self, listed: ObjectInfo) -> Record | None:
        """The record, with its bytes, of an inline object that was just listed like this, if it is
        had without asking whether the name still maps to it; else None."""

    def cover(self, name: bytes, byte_ranges: Sequence[Sequence[int] | None]) -> Cover:
        """Raises NameNotFound, InvalidRange."""

    @property
    def covers(self) -> Callable[[Sequence[bytes], int], list[Cover | None]] | None:
        """All bytes of each of these names, looked up in one step, as `cover` would: of those that
        are there and have no more than so many bytes; None for the others. None itself where a
        look-up waits for a server: then threads ask for many at the same time."""

    def manifest(self, name: bytes, etag: bytes | None = None) -> tuple[Record, Manifest]:
        """The record and all segments of one version: what happens to the name afterwards changes
        nothing. With `etag`, that may be a version that is known to have it, also when the name
        maps to another by now. Raises NameNotFound."""

    def forget(self, name: bytes) -> None:
        """Read the name's segments again: their packs are not where they were."""

    def pages(self, prefix: bytes) -> Iterator[list[tuple[bytes, Record]]]:
        """The names that start with `prefix`, in order, a page at a time."""

    def level(self, prefix: bytes, *, with_records: bool) -> Iterator[list[Entry]]:
        """What begins with `prefix`, up to the next '/', in order, a page at a time: names, and in
        place of all that go on behind a '/', that folder."""

    def kind(self, name: bytes) -> tuple[bool, bool]:
        """(whether it is a name, whether there are names below it, behind a '/')."""

    def names(self, prefix: bytes) -> Iterator[list[bytes]]:
        """The same, without what they map to."""

    def older(self, name: bytes, like: bytes | None, *, beside: bool = True) -> Older | None:
        """An object that one to be put under the name may resemble: `like`, or what the name maps
        to, or, unless not `beside`, one whose name is near. Nothing is fetched to find it."""


class Older(Protocol):
    """An object whose chunks new ones may be deltas of. It may be gone while it is read, and is
    then as if it ended there."""

    size: int

    def at_or_after(self, offset: int) -> Iterator[Segment]:
        """The segment that holds the byte at `offset`, and those behind it."""

    def covering(self, begin: int, end: int) -> list[Extent]:
        """The extents that hold bytes of the half-open range `[begin, end)`."""


class Cover(NamedTuple):
    """What byte ranges of one version of an object are made of: for each, its clamped
    `[begin, end)` and the extents that cover it. `newer`, asked once they are read, gives None if
    that version was the name's when the read began; otherwise read what it gives instead."""

    record: Record
    parts: list[tuple[int, int, list[Extent]]]
    newer: Callable[[], Cover | None]


class Packs(Protocol):
    @property
    def task_bytes(self) -> int:
        """How much of an object one thread fetches and decodes at a time."""

    def frames(self, places: Sequence[Location], held: Held) -> Sequence[bytes | memoryview]:
        """The frames there, in their order. Raises PackMissing, or FormatError if a pack is too
        short; what the frames hold is for the caller to check."""

    def at_hand(self, place: Location) -> bytes | memoryview | None:
        """The frame there, unless it would have to be fetched. Raises as `frames`."""

    def hold(self, pack_ids: Collection[bytes]) -> Held:
        """Keep the packs readable for as long as the answer is kept. Raises PackMissing."""

    def let_go(self, places: Sequence[Location], held: Held) -> None:
        """The frames there will not be read again soon."""

    def forget(self, *locations: Location) -> None:
        """Fetch the frames anew at their next use: their bytes were not what they should be."""
