"""The values that pass between layers: plain, frozen, no I/O."""

from __future__ import annotations

from collections.abc import Sequence, Sized
from functools import lru_cache
from operator import index as as_int
from typing import NamedTuple, Protocol, TypeAlias, runtime_checkable

from castore.errors import InvalidName, InvalidRange
from castore.wording import counted

NAME_BYTES_MAX = 480  # below LMDB's 511-byte keys, with room for a prefix
SEGMENT_EXTENTS_MAX = 1024


class Progress(Protocol):
    """What long jobs report to, in the shape of fsspec's callbacks. Sizes are in bytes."""

    def set_size(self, size: int) -> None: ...

    def relative_update(self, inc: int = 1) -> None: ...


@runtime_checkable
class StagedProgress(Progress, Protocol):
    """One that is told, too, when another part of the job begins: what it is called, and its size,
    0 where that is not known."""

    def begin_stage(self, what: str, size: int) -> None: ...


class Stages:
    """Tells a Progress of a job whose size is known only bit by bit. To one that knows no stages
    all of them are one job, whose size grows. At the end of each, and of the job, all is done:
    what turned out to be less work is made up for. A StagedProgress itself, for parts of a job
    that have stages of their own."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._size = self._done = 0

    def begin_stage(self, what: str, size: int) -> None:
        """What follows is `size` bytes of `what`, or not known (0)."""
        self.end()
        if isinstance(self._progress, StagedProgress):
            self._progress.begin_stage(what, size)
        if size:
            self.set_size(size)

    def set_size(self, size: int) -> None:
        """Of the stage."""
        self._size = self._done + size
        if self._progress is not None:
            self._progress.set_size(size if self._staged else self._size)

    def relative_update(self, inc: int = 1) -> None:
        if self._size:
            inc = min(inc, self._size - self._done)
        self._done += inc
        if self._progress is not None and inc:
            self._progress.relative_update(inc)

    def end(self) -> None:
        """The stage is done, or the job."""
        self.relative_update(max(0, self._size - self._done))
        if self._progress is not None and not self._size and self._done and not self._staged:
            self._progress.set_size(self._done)
        self._size = 0

    @property
    def _staged(self) -> bool:
        return isinstance(self._progress, StagedProgress)


class ObjectInfo(NamedTuple):
    """What a name maps to. Sizes are in bytes.

    - `size`: of the object.
    - `mtime_ns`: when the name was last put (or, if it was imported, the time of its file), in
      nanoseconds since the epoch. `mtime` is the same in seconds, a float.
    - `mode`: its permission bits.
    - `etag`: the same for equal bytes in one store.
    - `chunks`: how many it has; 0 for one that is inline in its record.
    - `stored_bytes`: its frames whole, also those that it shares with other objects.
    - `deltas`: how many of its chunks were deltas when it was put.
    """

    name: str
    size: int
    mtime_ns: int
    mode: int
    etag: str
    chunks: int
    stored_bytes: int
    deltas: int = 0

    @property
    def mtime(self) -> float:
        """`mtime_ns` in seconds."""
        return self.mtime_ns / 1e9


def sort_key(name: str) -> bytes:
    """What names are sorted by."""
    return name.encode("utf-8", "surrogateescape")


class StoreStats(NamedTuple):
    """Totals of a store.

    - `objects`, `chunks`, `packs`: how many.
    - `logical_bytes`: what the objects add up to.
    - `unique_bytes`: what is left of it after deduplication.
    - `stored_bytes`: what that takes as frames and inline records.
    - `pack_bytes`, `index_bytes`, `journal_bytes`: what it takes as files; a store on S3 has no
      journal.
    - `deltas`: how many of the chunks are stored as such. They decode to `delta_raw_bytes`, take
      `delta_stored_bytes`, and need `delta_bases` frames besides their own, all deltas together.

    Unique and stored bytes include what no name uses any more, until it is collected.
    """

    objects: int
    chunks: int
    packs: int
    logical_bytes: int
    unique_bytes: int
    stored_bytes: int
    pack_bytes: int
    index_bytes: int
    journal_bytes: int = 0
    deltas: int = 0
    delta_raw_bytes: int = 0
    delta_stored_bytes: int = 0
    delta_bases: int = 0

    @property
    def delta_saved_bytes(self) -> int:
        """About what deltas save: chunks that are none show how small theirs would be else."""
        raw = self.unique_bytes - self.delta_raw_bytes
        if not raw:
            return 0
        stored = self.stored_bytes - self.delta_stored_bytes
        return max(0, self.delta_raw_bytes * stored // raw - self.delta_stored_bytes)

    @property
    def frames_per_chunk(self) -> float:
        """How many frames are decoded for one chunk, on average: 1.0 without deltas."""
        return 1 + self.delta_bases / self.chunks if self.chunks else 1.0


class RangePlan(NamedTuple):
    """What reading a byte range touches.

    `chunks` cover it, and deltas among them decode with `bases`, which are other chunks. The frames
    of all of them take `frame_bytes` as stored; those that cover it decode to `raw_bytes`. An
    inline object has no chunks.
    """

    chunks: int
    frame_bytes: int
    raw_bytes: int
    bases: int = 0


class Location(NamedTuple):
    """Where a chunk's frame is: `stored_bytes` long, header included, from `offset` of a pack.

    With `bases` the frame is a delta, and decodes with the bytes of those chunks: the frames of
    these are no deltas, so that a chunk never needs more than one step.
    """

    pack_id: bytes
    offset: int
    stored_bytes: int
    bases: tuple[StoredChunk, ...] = ()

    @property
    def place(self) -> tuple[bytes, int]:
        """(pack id, offset): what tells one frame from another."""
        return self[:2]

    @property
    def packs(self) -> set[bytes]:
        """What must be there to decode the frame."""
        return {self.pack_id, *(base.location.pack_id for base in self.bases)}


class StoredChunk(NamedTuple):
    """A chunk of so many bytes, and where its frame is."""

    chunk_id: bytes
    raw_bytes: int
    location: Location

    @property
    def kind(self) -> FrameKind:
        """Frames of one kind can stand for each other: what is a delta can't be the base of
        another, even if it is of the same chunk."""
        return self.chunk_id, tuple(base.chunk_id for base in self.location.bases)


FrameKind: TypeAlias = tuple[bytes, tuple[bytes, ...]]  # a chunk, and what its frame decodes with


class Extent(NamedTuple):
    """One chunk at its place `[begin, end)` in an object."""

    begin: int
    end: int
    chunk_id: bytes
    location: Location

    @property
    def stored(self) -> StoredChunk:
        """The chunk, wherever it is in an object."""
        return StoredChunk(self.chunk_id, self.end - self.begin, self.location)


def encode_name(name: str) -> bytes:
    """The UTF-8 bytes of a valid object name; raises InvalidName saying what is wrong with it."""
    if not isinstance(name, str):
        raise InvalidName(f"a name is a str, not {type(name).__name__}")
    return _encode_name(name)


@lru_cache(maxsize=4096)
def _encode_name(name: str) -> bytes:
    try:
        encoded = name.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidName(f"name {name!r} is not valid Unicode: {error.reason}") from error
    if not encoded:
        raise InvalidName("a name must not be empty")
    if len(encoded) > NAME_BYTES_MAX:
        raise InvalidName(
            f"name {name[:40]!r}... has {len(encoded)} bytes in UTF-8; the most is {NAME_BYTES_MAX}"
        )
    if b"\0" in encoded:
        raise InvalidName(f"name {name!r} has a NUL byte")
    if encoded.startswith(b"/"):
        raise InvalidName(f"name {name!r} starts with '/': leave that out")
    for part in encoded.split(b"/"):
        if part in (b".", b".."):
            raise InvalidName(f"name {name!r} has a {part.decode()!r} component")
    return encoded


def decode_name(encoded: bytes) -> str:
    """The name. Bytes that are none, in a damaged index, do not end a listing: they come escaped,
    as a str that no object can have as its name."""
    return encoded.decode("utf-8", "surrogateescape")


def encode_prefix(prefix: str) -> bytes:
    """The UTF-8 bytes of a prefix of names, the empty one too; raises InvalidName for what is in no
    name at all."""
    _check_is_text(prefix)
    if "\0" in prefix:
        raise InvalidName(f"prefix {prefix!r} has a NUL byte")
    try:
        return prefix.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidName(f"prefix {prefix!r} is not valid Unicode: {error.reason}") from error


def as_prefix(target: str) -> str:
    """A prefix that ends with '/', or the empty one for '' and '/'; raises InvalidName for what is
    no text."""
    _check_is_text(target)
    stripped = target.rstrip("/")
    return stripped + "/" if stripped else ""


def _check_is_text(prefix: object) -> None:
    if not isinstance(prefix, str):
        raise InvalidName(f"a prefix is a str, not {type(prefix).__name__}")


class DirEntry(NamedTuple):
    """An object or a folder, as `Store.scandir` finds it. `info` is an object's, if it was asked
    for."""

    name: str
    is_folder: bool
    info: ObjectInfo | None


class Kind(NamedTuple):
    """What is at a name: see `Store.kind`."""

    is_object: bool
    is_folder: bool


def can_begin_a_name(prefix: bytes) -> bool:
    """False for what no name begins with: it need not be looked for, and S3 refuses some of it."""
    *folders, _ = prefix.split(b"/")
    return (
        b"\0" not in prefix
        and not prefix.startswith(b"/")
        and len(prefix) <= NAME_BYTES_MAX
        and not any(folder in (b".", b"..") for folder in folders)
    )


def clamp_range(byte_range: Sequence[int] | None, size: int) -> tuple[int, int]:
    """The half-open `[begin, end)` that `byte_range` means for an object of `size` bytes.

    None and an empty sequence mean all of it; an end past the size is clamped; a begin at or past
    it gives an empty range. Raises InvalidRange for anything but two integers, 0 <= begin <= end.
    """
    if byte_range is None:
        return 0, size
    if isinstance(byte_range, (bytes, bytearray, memoryview)):
        raise InvalidRange(f"a byte range is (begin, end), not {byte_range!r}")
    try:
        begin, end = byte_range
        if type(begin) is not int or type(end) is not int:
            begin, end = as_int(begin), as_int(end)
    except (TypeError, ValueError):
        if isinstance(byte_range, Sized) and not isinstance(byte_range, (str, bytes)):
            if not len(byte_range):
                return 0, size
            if len(byte_range) != 2:
                raise InvalidRange(
                    f"a byte range is (begin, end), not {counted(len(byte_range), 'element')}"
                ) from None
            raise InvalidRange(f"a byte range takes integers, not {list(byte_range)!r}") from None
        raise InvalidRange(f"a byte range is (begin, end), not {byte_range!r}") from None
    if begin < 0 or end < 0:
        raise InvalidRange(f"byte range [{begin}, {end}) is negative")
    if begin > end:
        raise InvalidRange(f"byte range [{begin}, {end}) is reversed: begin must not exceed end")
    return min(begin, size), min(end, size)
