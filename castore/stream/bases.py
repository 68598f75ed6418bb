"""The bases that new chunks may be stored as deltas of: found in an older object, and among what
the same stream has stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol, TypeAlias

from castore.errors import StoreIOError
from castore.model import Extent, StoredChunk
from castore.stream.alignment import Alignment
from castore.stream.anchored import AnchoredBases
from castore.stream.lookalikes import NO_PLACE, LookAlikes
from castore.stream.session import Base, Encoded, NewFrame, WriteSession

# What is new in a version is in the next ones, too, and what they are made of: it may take a little
# longer to compress, by two levels more, as far as they are cheap. Eight releases of scipy take
# 1.7 MB less than with level 1, and 1.2 less with 5 than with 3.
LEVELS_MORE = 2
LEVEL_OF_VERSIONS_MAX = 5
ALIKE_CHUNKS_MIN = 3  # new ones at once: with fewer it is hardly worth to make a table

Cut: TypeAlias = tuple[int, int, bytes]  # a chunk's begin and end in a view, and its id
Found: TypeAlias = dict[bytes, list[Base]]  # by the new chunk's id


class Find(Protocol):
    def __call__(self, *, beside: bool = True) -> Alignment | None: ...


class FindAlignment(NamedTuple):
    """`find` is asked, once it is needed, for what a stream runs beside; None if that is nothing.
    If not `beside`, it is not looked for under other names than the put's. `bases` is what it is
    found with."""

    find: Find
    bases: AnchoredBases


class StreamBases:
    """What the new chunks of one stream may be deltas of. Not for several threads at once."""

    def __init__(self, session: WriteSession, align: FindAlignment | None) -> None:
        self._session = session
        self._align = align
        self._looked = False
        self._alignment: Alignment | None = None
        self._lookalikes: LookAlikes | None = None

    def expected(self, begin: int, end: int) -> Sequence[Extent]:
        """What lies where the stream's bytes `[begin, end)` are expected in an older object."""
        self._look_for_older()
        return () if self._alignment is None else self._alignment.expected(begin, end)

    def find(self, cut: Sequence[Cut], shift: int, frames: dict[bytes, NewFrame]) -> None:
        """Give those of the chunks that are new, by the ids that they were cut with, their bases.
        See `find_bases`."""
        if not frames or self._align is None:
            return
        self._look_for_older()
        if self._lookalikes is None and len(frames) >= ALIKE_CHUNKS_MIN:
            self._lookalikes = LookAlikes(self._align.bases)
        # What has changed since it was cut has no bases, and is none.
        raws = {i: frame.raw for i, frame in frames.items() if frame.chunk_id == i}
        found = find_bases(self._alignment, cut, shift, raws, self._lookalikes)
        for chunk_id, bases in reliable_bases(self._session, found).items():
            frames[chunk_id] = frames[chunk_id].made_of(bases)
        alignment = self._alignment
        if alignment is not None and alignment.follows and self._session.level > 0:
            level = self._session.level
            level = max(level, min(level + LEVELS_MORE, LEVEL_OF_VERSIONS_MAX))
            for chunk_id in frames.keys() - found.keys():
                frames[chunk_id] = frames[chunk_id]._replace(level=level)

    def place(self, encoded: Sequence[Encoded]) -> None:
        """Place the frames in their order: bases that are of this stream have their places before
        the deltas."""
        ready: list[Encoded] = []
        for each in encoded:
            if any(base.location is NO_PLACE for base in each.bases):
                self._place(ready)
                ready, each = [], each._replace(bases=tuple(map(self._located, each.bases)))
            ready.append(each)
        self._place(ready)

    def _place(self, encoded: Sequence[Encoded]) -> None:
        self._session.place(encoded)
        if self._lookalikes is not None:
            for frame, _ in encoded:
                self._lookalikes.placed(frame.chunk_id, self._session.location)

    def _located(self, base: StoredChunk) -> StoredChunk:
        if base.location is not NO_PLACE:
            return base
        at = self._session.location(base.chunk_id)
        if at.bases:  # what is made of it would take two steps
            raise StoreIOError(
                f"chunk {base.chunk_id.hex()} became a delta while it was put: repeat the put"
            )
        return base._replace(location=at)

    def _look_for_older(self) -> None:
        if self._align is not None and not self._looked:
            self._alignment, self._looked = self._align.find(), True


def find_bases(
    alignment: Alignment | None,
    cut: Sequence[Cut],
    shift: int,
    new: Mapping[bytes, bytes],
    lookalikes: LookAlikes | None = None,
) -> Found:
    """What each of the chunks that are `new`, whose bytes these are, may be a delta of. All chunks
    are told of, in their order; `shift` is what an offset in the object is more than one in `cut`.
    Those of which nothing is found are found by later ones, with `lookalikes`.

    One that is there twice is looked for where it is first: it is placed there, before what comes
    between, and that may be a delta of it."""
    found: Found = {}
    asked: set[bytes] = set()
    last = None  # the chunk before, if it is known
    for begin, end, chunk_id in cut:
        if chunk_id not in new:
            last = begin, end, chunk_id
            continue
        if last is not None and alignment is not None:
            alignment.known(last[0] + shift, last[1] + shift, last[2])
        last = None
        if chunk_id not in asked:
            asked.add(chunk_id)
            bases = _bases_of(new[chunk_id], begin + shift, end + shift, alignment, lookalikes)
            if bases:
                found[chunk_id] = bases
            elif lookalikes is not None and lookalikes.looks:
                lookalikes.add(chunk_id, new[chunk_id])
    if last is not None and alignment is not None:
        alignment.known(last[0] + shift, last[1] + shift, last[2])
    return found


def _bases_of(
    raw: bytes,
    begin: int,
    end: int,
    alignment: Alignment | None,
    lookalikes: LookAlikes | None,
) -> list[Base]:
    aligned = [] if alignment is None else alignment.candidates(begin, end, raw)
    if lookalikes is not None:
        found = lookalikes.candidates(raw, aligned, alignment, begin)
        if not found:
            return []
        read = [(each.base, lookalikes.bytes_of(each.base)) for each in found]
        return [Base(it, raw, lookalikes.is_own(it)) for it, raw in read if raw is not None]
    if alignment is None:
        return []
    read = [(each.base, alignment.bytes_of(each.base)) for each in aligned]
    return [Base(chunk, raw) for chunk, raw in read if raw is not None]


def reliable_bases(session: WriteSession, found: Found) -> Found:
    """What of it may be relied on, and each base where it is by now."""
    wanted = {base.chunk for bases in found.values() for base in bases if not base.own}
    reliable = session.reliable(wanted) if wanted else {}
    return {
        chunk_id: [
            base if base.own else base._replace(chunk=reliable[base.chunk])
            for base in bases
            if base.own or base.chunk in reliable
        ]
        for chunk_id, bases in found.items()
    }
