"""Small objects, many at a time: what an ObjectWriter does for one stream, in one go for all.

An object of a chunk or two costs less to compress than to look up, encode, place and write by
itself. So these steps are taken once for all of a group.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeAlias

from castore.format.index import Record
from castore.model import Location
from castore.stream.alignment import is_time
from castore.stream.bases import Cut, FindAlignment, Found, find_bases, reliable_bases
from castore.stream.drafts import DraftBuilder, inline_record, one_chunk_record
from castore.stream.etags import chunks_in
from castore.stream.operations import Draft
from castore.stream.session import Encoded, NewFrame, WriteSession
from castore.system.workers import Future

SMALL_BYTES_MAX = 64 << 10  # of an object
GROUP_BYTES = 4 << 20  # stored at once: what bounds memory
GROUP_OBJECTS_MAX = 1024
TASK_BYTES = 1 << 20  # encoded at once by one thread

Buffer = bytes | bytearray | memoryview


class SmallObject(NamedTuple):
    """All bytes of an object, its mode, and what is asked, once it is needed, for the older object
    that it may be a delta of."""

    raw: bytes
    mode: int
    align: FindAlignment | None = None


Stored: TypeAlias = tuple[Record, Draft | None]
_Owner: TypeAlias = tuple[SmallObject, int, int]  # half-open: where it is in that object


def in_groups(objects: Iterable[tuple[str, Buffer]]) -> Iterator[list[tuple[str, Buffer]]]:
    """Names and their bytes in order: copies of small ones, so many as are to be stored at once,
    and each larger one by itself, which is not looked at any more once the next is asked for.

    Raises TypeError.
    """
    group: list[tuple[str, Buffer]] = []
    group_bytes = 0
    for name, data in objects:
        with bytes_of(data) as view:
            small = len(view) <= SMALL_BYTES_MAX
            full = len(group) == GROUP_OBJECTS_MAX or group_bytes + len(view) > GROUP_BYTES
            if group and (full or not small):
                yield group
                group, group_bytes = [], 0
            if small:
                group.append((name, bytes(view)))
                group_bytes += len(view)
            else:
                yield [(name, view)]
    if group:
        yield group


def bytes_of(data: Buffer) -> memoryview:
    """A view of all bytes of a C-contiguous buffer. Raises TypeError."""
    if isinstance(data, str):
        raise TypeError("data is bytes or another buffer, not str: encode it first")
    view = memoryview(data)
    if view.nbytes and not view.c_contiguous:
        raise TypeError("data is a buffer that is not C-contiguous: copy it, as by .tobytes()")
    # What has several dimensions, and nothing in one of them, can't be cast.
    return view.cast("B") if view.nbytes else memoryview(b"")


def store_small(session: WriteSession, objects: Sequence[SmallObject]) -> list[Stored]:
    """The record of each, and its draft unless it is inline. Nothing is visible yet."""
    return _Group(session, objects, {}).finish()


class SmallGroups:
    """Small objects, group by group: threads encode one while this thread looks the next up."""

    def __init__(self, session: WriteSession) -> None:
        self._session = session
        self._begun: _Group | None = None

    def put(self, objects: Sequence[SmallObject]) -> list[Stored]:
        """Begin with these. What became of those before, as `store_small` says it."""
        new = {} if self._begun is None else self._begun.new
        begun = _Group(self._session, objects, new)
        stored = self.finish()
        self._begun = begun
        return stored

    def finish(self) -> list[Stored]:
        """What became of the last."""
        begun, self._begun = self._begun, None
        return [] if begun is None else begun.finish()


class _Group:
    """Objects that are stored together: looked up, and sent to be encoded, when it is made."""

    def __init__(
        self, session: WriteSession, objects: Sequence[SmallObject], before: Mapping[bytes, _Owner]
    ) -> None:
        """`before`: new chunks of the group that is finished before this one."""
        self.new: dict[bytes, _Owner] = {}
        self._session = session
        self._objects = objects
        self._cuts = [_cut(session, each.raw) for each in objects]
        self._known: dict[bytes, Location] = {}
        self._encoding: list[Future[list[Encoded]]] = []
        chunk_ids = [chunk_id for cut in self._cuts for _, _, chunk_id in cut]
        if chunk_ids:
            session.check_process()
            if session.lookahead_bytes:
                session.prefetch(chunk_ids)
            self._known = session.look_up(chunk_ids)
            self._encode(before)

    def finish(self) -> list[Stored]:
        session, known = self._session, self._known
        for future in self._encoding:
            session.place(future.result())
        stored: list[Stored] = []
        drafts: list[Draft] = []
        try:
            for each, cut in zip(self._objects, self._cuts, strict=True):
                if not cut:
                    stored.append((inline_record(session, each.raw, each.mode), None))
                    continue
                draft = Draft()
                drafts.append(draft)
                places = [known.get(i) or session.location(i) for _, _, i in cut]
                stored.append((_record(session, each, draft, cut, places), draft))
        except BaseException:
            for draft in drafts:
                session.drop(draft)
            raise
        return stored

    def _encode(self, before: Mapping[bytes, _Owner]) -> None:
        """Send what is new to be encoded."""
        session, known, owners = self._session, self._known, self.new
        found: Found = {}
        for each, cut in zip(self._objects, self._cuts, strict=True):
            # No difference of sets, which would go through all that is known for each object.
            new = {i for _, _, i in cut if i not in known and i not in owners and i not in before}
            if not new:
                continue
            owners |= {i: (each, begin, end) for begin, end, i in cut if i in new}
            those = _bases(session, each, cut, new)
            session.unlike.count = 0 if those else session.unlike.count + 1
            found |= those
        bases = reliable_bases(session, found)
        task: list[NewFrame] = []
        task_bytes = 0
        for chunk_id, (each, begin, end) in owners.items():
            frame = session.new_frame(each.raw[begin:end], chunk_id)
            alike = bases.get(chunk_id)
            task.append(frame.made_of(alike) if alike else frame)
            task_bytes += end - begin
            if task_bytes >= TASK_BYTES:
                self._encoding.append(session.encode(task))
                task, task_bytes = [], 0
        if task:
            self._encoding.append(session.encode(task))


def _record(
    session: WriteSession,
    each: SmallObject,
    draft: Draft,
    cut: Sequence[Cut],
    places: Sequence[Location],
) -> Record:
    if len(cut) == 1 and not places[0].bases:
        [(_, end, chunk_id)] = cut
        return one_chunk_record(session, draft, end, each.mode, chunk_id, places[0])
    builder = DraftBuilder(session, draft)
    for (_, end, chunk_id), place in zip(cut, places, strict=True):
        builder.append(end, chunk_id, place)
    return builder.finish(len(each.raw), each.mode)


def _cut(session: WriteSession, raw: bytes) -> list[Cut]:
    """The object's chunks; none of one that is inline."""
    if len(raw) <= session.inline_limit:
        return []
    return list(chunks_in(raw, session.config, session.chunker))


def _bases(
    session: WriteSession, each: SmallObject, cut: Sequence[Cut], new: Collection[bytes]
) -> Found:
    """What its new chunks may be deltas of. Where nothing was found for long, fewer and fewer
    objects are looked at; one that is put alone is compared with what it replaces nevertheless."""
    alignment = None
    beside = is_time(session.unlike.count)
    if each.align is not None and (beside or session.is_one):
        alignment = each.align.find(beside=beside)
    if alignment is None:
        return {}
    raws = {chunk_id: each.raw[begin:end] for begin, end, chunk_id in cut if chunk_id in new}
    return find_bases(alignment, cut, 0, raws)
