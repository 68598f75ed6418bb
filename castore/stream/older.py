"""What an object to be put may resemble: which names are tried, and the object there, read as far
as it is asked for. The kinds of store know names and segments; the rules are here."""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Iterator
from posixpath import splitext

from castore.format.segment import Segment
from castore.model import Extent
from castore.stream.segments import covering

FOLDERS_MAX = 8  # of a name, that are looked for beside it
SEGMENTS_MAX = 16  # kept decoded: the 1,024 extents of each are 64 MiB of the object

Beside = Callable[[bytes], bytes | None]  # a name that is known, next to another
FoldersBefore = Callable[[bytes], list[bytes]]


def candidates(
    name: bytes,
    like: bytes | None,
    folders_before: FoldersBefore,
    before: Beside,
    behind: Beside,
    *,
    beside: bool = True,
) -> Iterator[bytes]:
    """The names that an object to be put under `name` may resemble, the most likely first: `like`;
    the name itself; and, unless not `beside`, its like in `folders_before` its own; of its
    neighbours in its folder, in the order of names, those that begin as it does or have its
    extension, the one first that agrees with it the longest. `before` and `behind` give the last
    name that sorts before another, and the first behind it."""
    if like is not None:
        yield like
    yield name
    if not beside:
        return
    folder, slash, file = name.rpartition(b"/")
    for other in folders_before(folder) if slash else ():
        yield other + file
    near = [beside for beside in (before(name), behind(name)) if beside is not None]
    alike = [beside for beside in near if _is_alike(beside, name)]
    yield from sorted(alike, key=lambda beside: _agreement(beside, name), reverse=True)


def folders_before(folder: bytes, before: Beside) -> list[bytes]:
    """For a folder such as `v2/a`, `v1/a/`, where `v1` is the folder before `v2`; the same for each
    part of its path, the last one first. All end with '/'."""
    parts, found = folder.split(b"/"), []
    for depth in range(len(parts) - 1, max(-1, len(parts) - 1 - FOLDERS_MAX), -1):
        above = b"".join(part + b"/" for part in parts[:depth])
        name = before(above + parts[depth])
        if name is not None and name.startswith(above):
            sibling = name[len(above) :].split(b"/")[0]
            found.append(b"/".join([*parts[:depth], sibling, *parts[depth + 1 :], b""]))
    return found


def _is_alike(one: bytes, other: bytes) -> bool:
    """Whether two names are of one folder, and begin alike or have one extension."""
    folder, _, file = one.rpartition(b"/")
    other_folder, _, other_file = other.rpartition(b"/")
    return folder == other_folder and (
        file[:1] == other_file[:1] or splitext(file)[1] == splitext(other_file)[1]
    )


def _agreement(one: bytes, other: bytes) -> int:
    """How many bytes both begin with."""
    length = min(len(one), len(other))
    difference = int.from_bytes(one[:length], "big") ^ int.from_bytes(other[:length], "big")
    return length - (difference.bit_length() + 7) // 8


class OlderSegments(ABC):
    """See `castore.stream.backend.Older`. Segments are read when they are needed, and some kept."""

    def __init__(self, size: int) -> None:
        """Of an object of `size` bytes."""
        self.size = size
        self._kept: dict[int, Segment] = {}  # by where they begin

    def at_or_after(self, offset: int) -> Iterator[Segment]:
        while offset < self.size:
            segment = self._segment(offset)
            if segment is None:
                return
            yield segment
            offset = segment.end

    def covering(self, begin: int, end: int) -> list[Extent]:
        return covering(self.at_or_after(begin), begin, end)

    @abstractmethod
    def _read(self, offset: int) -> Segment | None:
        """The segment that holds the byte at `offset`; None if it is not to be had."""

    def _segment(self, offset: int) -> Segment | None:
        begins = sorted(self._kept)
        i = bisect_right(begins, offset) - 1
        if i >= 0 and offset < self._kept[begins[i]].end:
            return self._kept[begins[i]]
        segment = self._read(offset)
        if segment is None or not segment.begin <= offset < segment.end:
            return None
        while len(self._kept) >= SEGMENTS_MAX:
            del self._kept[next(iter(self._kept))]
        self._kept[segment.begin] = segment
        return segment
