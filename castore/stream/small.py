"""Small objects, many at a time: what an ObjectWriter does for one stream, in one go for all.

An object of a chunk or two costs less to compress than to look up, encode, place and write by
itself. So these steps are taken once for all of a group.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from castore.format.index import Record
from castore.model import Location
from castore.stream.alignment import is_time
from castore.stream.bases import Cut, FindAlignment, Found, find_bases, reliable_bases
from castore.stream.drafts import DraftBuilder, inline_record, one_chunk_record
from castore.stream.etags import chunks_in
from castore.stream.operations import Draft
from castore.stream.session import NewFrame, WriteSession

SMALL_BYTES_MAX = 64 << 10  # of an object
GROUP_BYTES = 4 << 20  # stored at once: what bounds memory
TASK_BYTES = 1 << 20  # encoded at once by one thread


class SmallObject(NamedTuple):
    """All bytes of an object, its mode, and what is asked, once it is needed, for the older object
    that it may be a delta of."""

    raw: bytes
    mode: int
    align: FindAlignment | None = None


def store_small(
    session: WriteSession, objects: Sequence[SmallObject]
) -> list[tuple[Record, Draft | None]]:
    """The record of each object, and its draft unless it is inline. Nothing is visible yet."""
    cuts = [_cut(session, each.raw) for each in objects]
    chunk_ids = [chunk_id for cut in cuts for _, _, chunk_id in cut]
    if chunk_ids:
        session.check_process()
        if session.lookahead_bytes:
            session.prefetch(chunk_ids)
        known = session.look_up(chunk_ids)
        _place(session, objects, cuts, known)
    stored: list[tuple[Record, Draft | None]] = []
    drafts: list[Draft] = []
    try:
        for each, cut in zip(objects, cuts, strict=True):
            if not cut:
                stored.append((inline_record(session, each.raw, each.mode), None))
                continue
            draft = Draft()
            drafts.append(draft)
            places = [known.get(chunk_id) or session.location(chunk_id) for _, _, chunk_id in cut]
            stored.append((_record(session, each, draft, cut, places), draft))
    except BaseException:
        for draft in drafts:
            session.drop(draft)
        raise
    return stored


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


def _place(
    session: WriteSession,
    objects: Sequence[SmallObject],
    cuts: Sequence[Sequence[Cut]],
    known: dict[bytes, Location],
) -> None:
    """Encode the chunks that are not known, and give them their places."""
    owners: dict[bytes, tuple[SmallObject, int, int]] = {}
    found: Found = {}
    for each, cut in zip(objects, cuts, strict=True):
        # No difference of sets, which would go through all that is known for each object.
        new = {i for _, _, i in cut if i not in known and i not in owners}
        if not new:
            continue
        owners |= {chunk_id: (each, begin, end) for begin, end, chunk_id in cut if chunk_id in new}
        those = _bases(session, each, cut, new)
        session.unlike.count = 0 if those else session.unlike.count + 1
        found |= those
    bases = reliable_bases(session, found)
    task: list[NewFrame] = []
    task_bytes = 0
    encoding = []
    for chunk_id, (each, begin, end) in owners.items():
        frame = session.new_frame(each.raw[begin:end], chunk_id)
        alike = bases.get(chunk_id)
        task.append(frame.made_of(alike) if alike else frame)
        task_bytes += end - begin
        if task_bytes >= TASK_BYTES:
            encoding.append(session.encode(task))
            task, task_bytes = [], 0
    if task:
        encoding.append(session.encode(task))
    for future in encoding:
        session.place(future.result())


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
