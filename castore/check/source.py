"""What a check reads: a store of whichever kind, as its packs and its names."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

from castore.check.objects import Faulty
from castore.system.workers import Workers

if TYPE_CHECKING:
    from castore.check.scan import PackScan


class Named(NamedTuple):
    """A name, what is wrong with its object, and the packs that this leads to. From the packs that
    are `unread` nothing is read, and the name can't be, whatever is in them."""

    name: str
    faults: Sequence[Faulty]
    packs: Collection[bytes]
    unread: Collection[bytes] = ()


class PackReader(Protocol):
    """A pack that is open."""

    @property
    def size(self) -> int:
        """Its bytes, now: a writer may be adding to it."""

    def read(self, begin: int, end: int) -> bytes:
        """The bytes `[begin, end)`; fewer, or none, where the pack ends or can't be read."""


class PackSource(Protocol):
    """The packs of a store. If they are `put_whole` each has its footer, and to read is to wait for
    a server: `requests` are the threads that do."""

    put_whole: bool
    requests: Workers | None

    @property
    def gone(self) -> Collection[bytes]:
        """The packs that were taken away while they were read."""

    def packs(self) -> Mapping[bytes, int]:
        """Those that are there now, and their bytes."""

    def reader(self, pack_id: bytes) -> PackReader | None:
        """None if there is no such pack."""


class Source(PackSource, Protocol):
    def names(self, scan: PackScan) -> Iterator[Named]:
        """Every name, held against what the packs were found to hold."""
