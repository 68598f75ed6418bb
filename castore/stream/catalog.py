"""Names to manifests, and the commit: `local` keeps them in LMDB, which is the truth.

What a Store and its reader ask of any kind is below; commits belong to each kind's session.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

from castore.format.index import Record
from castore.model import Extent
from castore.stream.segments import Manifest


class Cover(NamedTuple):
    """What byte ranges of one version of an object are made of: for each, its clamped
    `[begin, end)` and the extents that cover it. `newer`, asked once they are read, gives None if
    that version was the name's when the read began; otherwise read what it gives instead."""

    record: Record
    parts: list[tuple[int, int, list[Extent]]]
    newer: Callable[[], Cover | None]


class Catalog(Protocol):
    def record(self, name: bytes) -> Record | None:
        """What the name maps to now."""

    def cover(self, name: bytes, byte_ranges: Sequence[Sequence[int] | None]) -> Cover:
        """Raises NameNotFound, InvalidRange."""

    def manifest(self, name: bytes) -> tuple[Record, Manifest]:
        """The record and all segments of one version: what happens to the name afterwards changes
        nothing. Raises NameNotFound."""

    def forget(self, name: bytes) -> None:
        """Read the name's segments again: their packs are not where they were."""

    def pages(self, prefix: bytes) -> Iterator[list[tuple[bytes, Record]]]:
        """The names that start with `prefix`, in order, a page at a time."""

    def names(self, prefix: bytes) -> Iterator[list[bytes]]:
        """The same, without what they map to."""
