"""Names in batches: the root that tells of them, a batch with many manifests, and what says of a
name that it is deleted (see FORMAT.md, and docs/design/0022-batches.md for what they mean)."""

from __future__ import annotations

import struct
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import xxhash
import zstandard

from castore.errors import FormatError, UnsupportedFormat
from castore.format import VERSION
from castore.format.index import Record
from castore.format.s3_told import decode_told, encode_told
from castore.model import NAME_BYTES_MAX

BATCH_ID_BYTES: Final = 16
BATCH_NAMES_MAX: Final = 1 << 16
BATCH_BYTES_MAX: Final = 1 << 31
INDEX_BYTES_LIMIT: Final = 64 << 20  # decoded
TOMBSTONE_BYTES: Final = 56  # or one more: no manifest is as short

_ROOT_MAGIC: Final = b"CROT"
_BATCH_MAGIC: Final = b"CBAT"
_TOMBSTONE_MAGIC: Final = b"CTMB"
_ROOT = struct.Struct("<Q16sI")  # version, nonce, drops
_DROP = struct.Struct("<QQH")
_ENTRY = struct.Struct("<16sQQQQIIHH")
_BATCH = struct.Struct("<4sBBHIIQQ16sQ")
_ROW = struct.Struct("<HIQ16sIQqQ16s")
_TOMBSTONE = struct.Struct("<4sBBH16s16sQQ")
BATCH_HEADER_BYTES: Final = _BATCH.size

BATCH_VERSION: Final = 2  # of one that deletes names; 1 else

_checksum = xxhash.xxh3_64_intdigest


# ---------------------------------------------------------------- the root


class Drop(NamedTuple):
    """All names that begin with `prefix` were deleted by the version `number` of the root, at this
    time in seconds since the epoch by the server's clock."""

    number: int
    at: int
    prefix: bytes


class RootEntry(NamedTuple):
    """A batch that is there. `number` is the version of the root that named it first; `size` are
    the bytes of all of it, `index_bytes` those before its manifests; `at` is since when it is
    there, and `retired` since when nothing of it is needed but by who read the root before, 0 while
    it is, in seconds since the epoch by the server's clock."""

    batch_id: bytes
    number: int
    size: int
    at: int
    retired: int
    index_bytes: int
    names: int
    first: bytes
    last: bytes

    @property
    def deletes(self) -> bool:
        """Whether all that it says is that its names are deleted."""
        return self.size == self.index_bytes


class _Root(NamedTuple):
    version: int
    nonce: bytes
    drops: tuple[Drop, ...] = ()
    entries: tuple[RootEntry, ...] = ()


class Root(_Root):
    """Entries in the order of their numbers. It never changes, so what it is asked for is sorted
    once, at the first question."""

    _ranges: _Ranges | None = None
    _highest: _Highest | None = None

    def having(self, name: bytes) -> list[RootEntry]:
        """Entries in whose range of names it is, in the order of all."""
        return self._entries_of(self._sorted().upto(name), name)

    def having_below(self, prefix: bytes) -> list[RootEntry]:
        """The same, of any name that begins with the prefix."""
        return self._entries_of(self._sorted().upto_below(prefix), prefix)

    def dropped(self, name: bytes) -> int:
        """The highest number of a drop of the name; -1 if there is none."""
        if self._highest is None:
            self._highest = _Highest(self.drops)
        return self._highest.of(name)

    def _entries_of(self, count: int, name: bytes) -> list[RootEntry]:
        return [self.entries[i] for i in self._sorted().reaching(count, name)]

    def _sorted(self) -> _Ranges:
        if self._ranges is None:
            self._ranges = _Ranges(self.entries)
        return self._ranges


class _Ranges:
    """Ranges of names, which may overlap, in the order of their first ones; and a tree of the
    highest last one below each node: a look-up goes down only to what reaches the name."""

    def __init__(self, entries: Sequence[RootEntry]) -> None:
        self._order = sorted(range(len(entries)), key=lambda i: entries[i].first)
        self._firsts = [entries[i].first for i in self._order]
        level = [entries[i].last for i in self._order]
        self._levels = [level]  # leaves first
        while len(level) > 1:
            odd = level[len(level) & ~1 :]
            level = [*map(max, level[::2], level[1::2]), *odd]
            self._levels.append(level)

    def upto(self, name: bytes) -> int:
        """How many do not begin behind the name."""
        return bisect_right(self._firsts, name)

    def upto_below(self, prefix: bytes) -> int:
        """How many do not begin behind all that begins with the prefix."""
        return bisect_right(self._firsts, prefix, key=lambda first: first[: len(prefix)])

    def reaching(self, count: int, name: bytes) -> list[int]:
        """Which of the first `count` do not end before the name, by their places in the root."""
        nodes = [0] if count else []
        for depth in range(len(self._levels) - 1, -1, -1):
            last = self._levels[depth]
            nodes = [i for i in nodes if i << depth < count and last[i] >= name]
            if depth:
                below = len(self._levels[depth - 1])
                nodes = [j for i in nodes for j in (2 * i, 2 * i + 1) if j < below]
        return sorted(self._order[i] for i in nodes)


class _Highest:
    """Drops by their prefixes, of which a name has one of each length at most."""

    def __init__(self, drops: Sequence[Drop]) -> None:
        self._numbers: dict[bytes, int] = {}
        for number, _, prefix in drops:
            self._numbers[prefix] = max(number, self._numbers.get(prefix, -1))
        self._lengths = sorted({len(prefix) for prefix in self._numbers})

    def of(self, name: bytes) -> int:
        return max((self._numbers.get(name[:length], -1) for length in self._lengths), default=-1)


def encode_root(store_id: bytes, root: Root) -> bytes:
    parts = [_ROOT.pack(root.version, root.nonce, len(root.drops))]
    for number, at, prefix in root.drops:
        parts += [_DROP.pack(number, at, len(prefix)), prefix]
    for *numbers, first, last in root.entries:
        parts += [_ENTRY.pack(*numbers, len(first), len(last)), first, last]
    return encode_told(_ROOT_MAGIC, store_id, len(root.entries), b"".join(parts))


def decode_root(raw: bytes) -> tuple[bytes, Root]:
    """(store id, the root). Raises FormatError, UnsupportedFormat."""
    store_id, _, count, view = decode_told(_ROOT_MAGIC, raw, "batches/root")
    body = _Reader(bytes(view), "batches/root")
    version, nonce, dropped = body.unpack(_ROOT)
    drops = []
    for _ in range(dropped):
        number, at, length = body.unpack(_DROP)
        drops.append(Drop(number, at, body.take(length)))
    entries = []
    for _ in range(count):
        *numbers, first, last = body.unpack(_ENTRY)
        entry = RootEntry._make([*numbers, body.take(first), body.take(last)])
        if not BATCH_HEADER_BYTES <= entry.index_bytes <= entry.size <= BATCH_BYTES_MAX:
            raise FormatError("batches/root tells of a batch of impossible sizes")
        if not 0 < entry.names <= BATCH_NAMES_MAX or entry.first > entry.last:
            raise FormatError("batches/root tells of a batch of impossible names")
        entries.append(entry)
    body.end()
    # What is decided by this root has its version, and is to count before all that it tells of.
    numbers = [drop.number for drop in drops] + [entry.number for entry in entries]
    if max(numbers, default=0) > version:
        raise FormatError(f"batches/root of version {version} tells of what is newer")
    return store_id, Root(version, nonce, tuple(drops), tuple(entries))


# ---------------------------------------------------------------- a batch


class BatchedName(NamedTuple):
    """One name of a batch: where its manifest is in it, the manifest's digest, and what a list
    shows of it; or that the name is `deleted`. `number` is 0 where the entry's counts."""

    name: bytes
    offset: int
    length: int
    number: int
    digest: bytes
    record: Record  # with no content

    @property
    def end(self) -> int:
        return self.offset + self.length

    @property
    def deleted(self) -> bool:
        return not self.length


class BatchIndex:
    """The names of a batch, in order."""

    def __init__(self, rows: Sequence[BatchedName]) -> None:
        self.rows = rows
        self._names = [row.name for row in rows]

    def find(self, name: bytes) -> BatchedName | None:
        i = bisect_left(self._names, name)
        return self.rows[i] if i < len(self.rows) and self._names[i] == name else None

    def below(self, prefix: bytes, start_after: bytes = b"") -> Sequence[BatchedName]:
        """Those that begin with the prefix, and sort behind `start_after`."""
        begin = bisect_left(self._names, max(prefix, start_after))
        end = begin
        while end < len(self._names) and self._names[end].startswith(prefix):
            end += 1
        if begin < end and self._names[begin] == start_after:
            begin += 1
        return self.rows[begin:end]


class ToBatch(NamedTuple):
    """A name that is to be in a batch, with its manifest, which is empty if it is to be deleted;
    `number` as in a BatchedName."""

    name: bytes
    manifest: bytes
    record: Record
    number: int = 0


def to_delete(name: bytes, number: int = 0) -> ToBatch:
    """What says in a batch that the name is deleted."""
    return ToBatch(name, b"", Record(0, 0, 0, bytes(16), 0, 0, 0), number)


class BatchHead(NamedTuple):
    """What comes before a batch's manifests, in so many `bytes`. `number` is what its entry's was
    to be, if no other came between."""

    store_id: bytes
    number: int
    names: BatchIndex
    bytes: int


def digest_of(manifest: bytes) -> bytes:
    return xxhash.xxh3_128_digest(manifest)


def encode_batch(store_id: bytes, names: Sequence[ToBatch], number: int) -> tuple[bytes, int]:
    """(the batch, how many bytes come before its manifests), of names in order. `number` is that of
    the entry that is to be."""
    rows = []
    for name, manifest, r, own_number in names:
        row = _ROW.pack(
            len(name),
            len(manifest),
            own_number,
            digest_of(manifest),
            r.mode,
            r.size,
            r.mtime_ns,
            r.stored_bytes,
            r.etag,
        )
        rows += [row, name]
    raw = b"".join(rows)
    index = zstandard.ZstdCompressor(level=3).compress(raw)
    count, size = len(names), BATCH_HEADER_BYTES + len(index)
    sizes = count, len(index), len(raw)
    version = VERSION if all(each.manifest for each in names) else BATCH_VERSION
    fixed = _BATCH.pack(_BATCH_MAGIC, version, 0, 0, *sizes, number, store_id, 0)[:-8]
    checksum = _checksum(index, _checksum(fixed))
    parts = [fixed, checksum.to_bytes(8, "little"), index, *(each.manifest for each in names)]
    return b"".join(parts), size


def decode_batch_head(raw: bytes) -> BatchHead:
    """Of the batch that begins with `raw`, which has at least what comes before its manifests.
    Raises FormatError, UnsupportedFormat."""
    if len(raw) < BATCH_HEADER_BYTES:
        raise FormatError(f"batch is cut short at {len(raw)} bytes")
    magic, version, flags, zero, count, packed, size, number, store_id, checksum = (
        _BATCH.unpack_from(raw)
    )
    if magic != _BATCH_MAGIC or flags or zero or version < 1:
        raise FormatError(f"batch starts with {raw[:8].hex()}")
    if version > BATCH_VERSION:
        raise UnsupportedFormat(f"batch has format version {version}: upgrade castore")
    index = raw[BATCH_HEADER_BYTES : BATCH_HEADER_BYTES + packed]
    if _checksum(index, _checksum(raw[: BATCH_HEADER_BYTES - 8])) != checksum:
        raise FormatError("batch is damaged")
    if size > INDEX_BYTES_LIMIT or count > BATCH_NAMES_MAX:
        raise FormatError(f"batch claims {count} names in {size} bytes")
    body = _decompressed(index, size)
    rows = _rows(_Reader(body, "batch"), count, BATCH_HEADER_BYTES + packed)
    return BatchHead(store_id, number, BatchIndex(rows), BATCH_HEADER_BYTES + packed)


def _decompressed(index: bytes, size: int) -> bytes:
    try:
        # It allocates what the frame claims, whatever is said to be the most.
        if zstandard.frame_content_size(index) != size:
            raise FormatError(f"batch has an index of other than {size} bytes")
        decompressor = zstandard.ZstdDecompressor()
        return decompressor.decompress(index, max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise FormatError(f"batch has an index that does not decode: {error}") from error


def _rows(body: _Reader, count: int, offset: int) -> list[BatchedName]:
    rows: list[BatchedName] = []
    for _ in range(count):
        name_bytes, length, number, digest, mode, size, mtime_ns, stored, etag = body.unpack(_ROW)
        record = Record(size, mtime_ns, mode, etag, stored, 0, 1)
        row = BatchedName(body.take_name(name_bytes), offset, length, number, digest, record)
        if rows and rows[-1].name >= row.name:
            raise FormatError("batch has names out of order")
        rows.append(row)
        offset = row.end
    body.end()
    if offset > BATCH_BYTES_MAX:
        raise FormatError(f"batch claims {offset} bytes")
    return rows


# ---------------------------------------------------------------- tombstones


def encode_tombstone(store_id: bytes, nonce: bytes, number: int | None) -> bytes:
    """`number` is None for a strong one."""
    weak = number is not None
    fixed = _TOMBSTONE.pack(_TOMBSTONE_MAGIC, VERSION, weak, 0, store_id, nonce, number or 0, 0)
    checksum = _checksum(fixed[:-8]).to_bytes(8, "little")
    return fixed[:-8] + checksum + (b"\0" if weak else b"")


def is_tombstone(size: int) -> bool:
    """Whether a single of so many bytes is one."""
    return TOMBSTONE_BYTES <= size <= TOMBSTONE_BYTES + 1


def decode_tombstone(raw: bytes) -> tuple[bytes, int | None]:
    """(store id, its number). Raises FormatError, UnsupportedFormat."""
    if not is_tombstone(len(raw)):
        raise FormatError(f"tombstone has {len(raw)} bytes")
    magic, version, weak, zero, store_id, _, number, checksum = _TOMBSTONE.unpack_from(raw)
    if magic != _TOMBSTONE_MAGIC:
        raise FormatError(f"tombstone starts with {raw[:8].hex()}")
    if version > VERSION:
        raise UnsupportedFormat(f"tombstone has format version {version}: upgrade castore")
    if _checksum(raw[: TOMBSTONE_BYTES - 8]) != checksum or raw[TOMBSTONE_BYTES:].strip(b"\0"):
        raise FormatError("tombstone is damaged")
    if version < 1 or zero or weak != (len(raw) > TOMBSTONE_BYTES) or (number and not weak):
        raise FormatError(f"tombstone has version {version} and number {number}")
    return store_id, number if weak else None


class _Reader:
    """Takes bytes from the front; FormatError where there are too few."""

    def __init__(self, raw: bytes, what: str) -> None:
        self._raw = raw
        self._at = 0
        self._what = what

    def unpack(self, layout: struct.Struct) -> tuple[Any, ...]:
        return layout.unpack(self.take(layout.size))

    def take(self, size: int) -> bytes:
        taken = self._raw[self._at : self._at + size]
        if len(taken) < size:
            raise FormatError(f"{self._what} ends within what it tells of")
        self._at += size
        return taken

    def take_name(self, size: int) -> bytes:
        name = self.take(size)
        try:
            name.decode()
        except UnicodeDecodeError as error:
            raise FormatError(f"{self._what} has a name that is no text: {error}") from error
        if not 0 < size <= NAME_BYTES_MAX:
            raise FormatError(f"{self._what} has a name of {size} bytes")
        return name

    def end(self) -> None:
        if self._at != len(self._raw):
            raise FormatError(f"{self._what} has {len(self._raw) - self._at} bytes too many")
