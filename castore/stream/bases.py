"""The bases that new chunks may be stored as deltas of, found in an older object."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import TypeAlias

from castore.stream.alignment import Alignment
from castore.stream.session import Base, WriteSession

FindAlignment: TypeAlias = Callable[[], Alignment | None]
Cut: TypeAlias = tuple[int, int, bytes]  # a chunk's begin and end in a view, and its id
Found: TypeAlias = dict[bytes, list[Base]]  # by the new chunk's id


def find_bases(
    alignment: Alignment, view: memoryview, cut: Sequence[Cut], shift: int, new: Collection[bytes]
) -> Found:
    """What each of the chunks that are `new` may be a delta of. All chunks are told of, in their
    order; `shift` is what an offset in the object is more than one in the view."""
    found: Found = {}
    last = None  # the chunk before, if it is known
    for begin, end, chunk_id in cut:
        if chunk_id not in new:
            last = begin, end, chunk_id
            continue
        if last is not None:
            alignment.known(last[0] + shift, last[1] + shift, last[2])
            last = None
        if chunk_id not in found:
            candidates = alignment.candidates(begin + shift, end + shift, view[begin:end])
            if candidates:
                read = [(each.base, alignment.read(each.base)) for each in candidates]
                found[chunk_id] = [Base(chunk, raw) for chunk, raw in read if raw is not None]
    if last is not None:
        alignment.known(last[0] + shift, last[1] + shift, last[2])
    return found


def reliable_bases(session: WriteSession, found: Found) -> Found:
    """What of it may be relied on, and each base where it is by now."""
    if not found:
        return found
    wanted = {base.chunk for bases in found.values() for base in bases}
    reliable = session.reliable(wanted)
    return {
        chunk_id: [
            Base(chunk, base.raw)
            for base in bases
            if (chunk := reliable.get(base.chunk)) is not None
        ]
        for chunk_id, bases in found.items()
    }
