"""What a commit is made of, as values: drafts of new objects, and the changes to names."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

from castore.format import Record
from castore.model import Location
from castore.packs.local import Pack


@dataclass(slots=True, eq=False)
class Draft:
    """A new object's manifest on its way into the index. `segments` are (end offset, encoded), of
    those that are not in the index yet; `manifest` is 0 until a transaction that gave it a number
    is committed."""

    segments: list[tuple[int, bytes]] = field(default_factory=list)
    manifest: int = 0
    staged: bool = False  # some of its segments are in the index already


@dataclass(frozen=True, slots=True)
class NewChunk:
    """A chunk and the frame that this process wrote of it. It `heals` if the index knows the
    chunk in a pack that is lost, so that the row has to be replaced."""

    raw_bytes: int
    location: Location
    heals: bool = False


@dataclass(slots=True)
class Batch:
    """What goes into the index besides the names. `packs` are those that the segments refer to
    and others own; `own` are this process's, with how much of each is durable; `gc_seq` is the
    collector's counter as it stood at the first look-up that the batch relies on."""

    chunks: dict[bytes, NewChunk] = field(default_factory=dict)
    drafts: list[Draft] = field(default_factory=list)
    packs: set[bytes] = field(default_factory=set)
    own: dict[Pack, int] = field(default_factory=dict)
    gc_seq: int | None = None


@dataclass(frozen=True, slots=True)
class Publish:
    """The name maps to the record from now on; with a draft, to that draft's manifest."""

    name: bytes
    record: Record
    draft: Draft | None
    if_absent: bool = False


@dataclass(frozen=True, slots=True)
class Copy:
    """`target` maps to what `source` does; with `rename`, `source` is gone."""

    source: bytes
    target: bytes
    mtime_ns: int
    if_absent: bool = False
    rename: bool = False


@dataclass(frozen=True, slots=True)
class Delete:
    name: bytes


@dataclass(frozen=True, slots=True)
class DeletePrefix:
    prefix: bytes


Operation: TypeAlias = Publish | Copy | Delete | DeletePrefix
