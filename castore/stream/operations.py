"""What a commit is made of, as values: drafts of new objects, and the changes to names."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from castore.format.index import Record
from castore.local.packs import Pack
from castore.model import Location


class Draft:
    """A new object's manifest on its way into the index. `segments` are (end offset, encoded), of
    those that are not in the index yet; `manifest` is 0 until a transaction that gave it a number
    is committed."""

    __slots__ = ("manifest", "segments", "staged")

    def __init__(self) -> None:
        self.segments: list[tuple[int, bytes]] = []
        self.manifest = 0
        self.staged = False  # some of its segments are in the index already


class NewChunk(NamedTuple):
    """A chunk and the frame that this process wrote of it. It `heals` if the index knows the
    chunk in a pack that is lost, so that the row has to be replaced."""

    raw_bytes: int
    location: Location
    heals: bool = False


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


class Publish(NamedTuple):
    """The name maps to the record from now on; with a draft, to that draft's manifest."""

    name: bytes
    record: Record
    draft: Draft | None
    if_absent: bool = False


class Copy(NamedTuple):
    """`target` maps to what `source` does; with `rename`, `source` is gone."""

    source: bytes
    target: bytes
    mtime_ns: int
    if_absent: bool = False
    rename: bool = False


class Delete(NamedTuple):
    name: bytes


class DeletePrefix(NamedTuple):
    prefix: bytes


Operation: TypeAlias = Publish | Copy | Delete | DeletePrefix
