"""What a commit puts into the index besides the names."""

from __future__ import annotations

from typing import NamedTuple

from castore.local.pack import Pack
from castore.model import Location, StoredChunk
from castore.stream.operations import Draft


class NewChunk(NamedTuple):
    """A chunk and the frame that this process wrote of it. It `heals` if the index knows the
    chunk in a pack that is lost, so that the row has to be replaced."""

    raw_bytes: int
    location: Location
    heals: bool = False

    def stored(self, chunk_id: bytes) -> StoredChunk:
        return StoredChunk(chunk_id, self.raw_bytes, self.location)


class Batch:
    """What goes into the index besides the names. `packs` are those that the segments refer to
    and others own; `own` are this process's, with how much of each is durable; `gc_seq` is the
    collector's counter as it stood at the first look-up that the batch relies on."""

    __slots__ = ("chunks", "drafts", "gc_seq", "own", "packs")

    def __init__(self) -> None:
        self.chunks: dict[bytes, NewChunk] = {}
        self.drafts: list[Draft] = []
        self.packs: set[bytes] = set()
        self.own: dict[Pack, int] = {}
        self.gc_seq: int | None = None
