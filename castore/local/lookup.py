"""Reading the names of a local store: each question is one short read transaction."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import wraps
from itertools import islice, takewhile
from typing import Any, Concatenate, ParamSpec, TypeVar

from castore.errors import FormatError, IndexChanged, NameNotFound
from castore.format.index import (
    ChunkRow,
    Record,
    Totals,
    decode_chunk_row,
    decode_record,
    manifest_of,
    segment_key,
)
from castore.format.segment import check_owner, decode_extent_of_one, decode_segment
from castore.local.hot import HotObjects
from castore.local.meta import GC_SEQ, read_number, read_totals
from castore.local.older import FoldersKnown, OlderObject, find_older
from castore.model import Extent, Location, ObjectInfo, clamp_range
from castore.stream.backend import Cover, Entry
from castore.stream.known import located
from castore.stream.segments import Manifest
from castore.system.lmdb_env import Index
from castore.system.lmdb_snapshot import TRIES, Snapshot

P = ParamSpec("P")
T = TypeVar("T")

PAGE_NAMES = 1000


def _repeated(
    read: Callable[Concatenate[NameReader, P], T],
) -> Callable[Concatenate[NameReader, P], T]:
    """Where the index is read without a lock, what was changed meanwhile is read again."""

    @wraps(read)
    def reading(self: NameReader, /, *args: P.args, **kwargs: P.kwargs) -> T:
        for _ in range(TRIES):
            try:
                return read(self, *args, **kwargs)
            except IndexChanged:
                self.forget_all()
        return read(self, *args, **kwargs)

    return reading


class NameReader:
    """What a catalog's names map to, now."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self._hot = HotObjects(index)
        self._folders = FoldersKnown()

    @_repeated
    def record(self, name: bytes) -> Record | None:
        with self._index.gate, self._index.snapshot() as txn:
            raw = txn.get(name, db=self._index.names)
        return None if raw is None else self._decode(name, raw)

    @_repeated
    def records(self, names: Collection[bytes]) -> dict[bytes, Record]:
        found = {}
        with self._index.gate, self._index.snapshot() as txn:
            for name in names:
                raw = txn.get(name, db=self._index.names)
                if raw is not None:
                    with contextlib.suppress(FormatError):
                        found[name] = decode_record(raw)
        return found

    def at_hand(self, listed: ObjectInfo) -> Record | None:
        """To ask costs nothing here."""
        return None

    @_repeated
    def cover(self, name: bytes, byte_ranges: Sequence[Sequence[int] | None]) -> Cover:
        """One read transaction: what it shows is current."""
        index = self._index
        with index.gate, index.snapshot(views=True) as txn:
            return self._cover(txn, name, byte_ranges)

    @_repeated
    def covers(self, names: Sequence[bytes], bytes_max: int) -> list[Cover | None]:
        index = self._index
        with (
            index.gate,
            index.snapshot() as txn,
            txn.cursor(db=index.names) as named,
            txn.cursor(db=index.segments) as segments,
        ):
            return [_small_cover(named, segments, name, bytes_max) for name in names]

    def _cover(
        self, txn: Snapshot, name: bytes, byte_ranges: Sequence[Sequence[int] | None]
    ) -> Cover:
        raw = txn.get(name, db=self._index.names)
        if raw is None:
            raise NameNotFound(name.decode())
        # The record is read every time, so that no answer is stale; what it decodes to, and the
        # segments of its immutable manifest, are remembered.
        hot = self._hot.of(name, raw)
        record = hot.record
        covered: list[tuple[int, int, list[Extent]]] = []
        for byte_range in byte_ranges:
            begin, end = clamp_range(byte_range, record.size)
            extents: list[Extent] = []
            at = begin
            while at < end and not record.is_inline:
                segment = self._hot.segment(txn, hot, at)
                extents += segment.covering(at, end)
                at = segment.end
            covered.append((begin, end, extents))
        return Cover(record, covered, _none_newer)

    def forget(self, name: bytes) -> None:
        """Read the name's segments from the index again: their packs are not where they were."""
        self._hot.forget(name)

    def forget_all(self) -> None:
        """Segments were changed in place."""
        self._hot.forget_all()

    @_repeated
    def older(self, name: bytes, like: bytes | None, *, beside: bool = True) -> OlderObject | None:
        return find_older(self._index, name, like, self._folders, beside=beside)

    @_repeated
    def manifest(self, name: bytes, etag: bytes | None = None) -> tuple[Record, Manifest]:
        index = self._index
        with index.gate, index.snapshot() as txn:
            raw = txn.get(name, db=index.names)
            if raw is None:
                raise NameNotFound(name.decode())
            record = self._decode(name, raw)
            if record.is_inline:
                return record, Manifest((), 0)
            return record, Manifest(self._raw_segments(txn, record.manifest), record.size)

    @_repeated
    def known(self, chunk_ids: Sequence[bytes]) -> tuple[int, dict[bytes, Location]]:
        """The collector's counter, and the locations of those chunks that are stored."""
        index = self._index
        with index.gate, index.snapshot() as txn:
            gc_seq = read_number(self._index, txn, GC_SEQ)
            with txn.cursor(db=index.chunks) as cursor:

                def rows(chunk_ids: Iterable[bytes]) -> dict[bytes, ChunkRow]:
                    found = cursor.getmulti(sorted(chunk_ids))
                    return {bytes(chunk_id): decode_chunk_row(row) for chunk_id, row in found}

                return gc_seq, located(rows(set(chunk_ids)), rows)

    def pages(self, prefix: bytes) -> Iterator[list[tuple[bytes, Record]]]:
        after = b""
        while page := self._page(prefix, after, values=True):
            yield [(name, self._decode(name, raw)) for name, raw in page]
            after = page[-1][0]

    def names(self, prefix: bytes) -> Iterator[list[bytes]]:
        after = b""
        while page := self._page(prefix, after, values=False):
            yield page
            after = page[-1]

    @_repeated
    def _page(self, prefix: bytes, after: bytes, *, values: bool) -> list[Any]:
        """Up to PAGE_NAMES names that start with `prefix` and sort after `after`, with their
        records if `values` are wanted."""
        index = self._index
        with index.gate, index.snapshot() as txn, txn.cursor(db=index.names) as cursor:
            start = max(prefix, after + b"\0") if after else prefix
            if not cursor.set_range(start):
                return []
            rows = islice(cursor.iternext(values=values), PAGE_NAMES)
            return list(takewhile(lambda r: (r[0] if values else r).startswith(prefix), rows))

    def level(self, prefix: bytes, *, with_records: bool) -> Iterator[list[Entry]]:
        """By seeking behind each folder: what is in it is not looked at."""
        start = prefix
        while page := self._level_page(prefix, start, with_records):
            yield page
            last = page[-1].name
            start = _behind(last) if page[-1].is_folder else last + b"\0"

    @_repeated
    def kind(self, name: bytes) -> tuple[bool, bool]:
        index, folder = self._index, name + b"/"
        with index.gate, index.snapshot() as txn, txn.cursor(db=index.names) as cursor:
            raw = txn.get(name, db=index.names)
            if raw is not None:
                self._decode(name, raw)
            is_folder = cursor.set_range(folder) and bytes(cursor.key()).startswith(folder)
            return raw is not None, is_folder

    @_repeated
    def _level_page(self, prefix: bytes, start: bytes, with_records: bool) -> list[Entry]:
        index, page = self._index, list[Entry]()
        with index.gate, index.snapshot() as txn, txn.cursor(db=index.names) as cursor:
            found = cursor.set_range(start)
            while found and len(page) < PAGE_NAMES:
                name = bytes(cursor.key())
                if not name.startswith(prefix):
                    break
                slash = name.find(b"/", len(prefix))
                if slash < 0:
                    raw = cursor.value() if with_records else b""
                    page.append(Entry(name, self._decode(name, raw) if with_records else None))
                    found = cursor.next()
                else:
                    page.append(Entry(name[: slash + 1], is_folder=True))
                    found = cursor.set_range(_behind(name[: slash + 1]))
        return page

    @_repeated
    def totals(self) -> tuple[Totals, int, int, int, int]:
        """(sums, objects, chunks, packs, index bytes)."""
        index = self._index
        with index.gate, index.snapshot() as txn:
            counts = [
                int(txn.stat(table)["entries"])
                for table in (index.names, index.chunks, index.packs)
            ]
            totals = read_totals(self._index, txn)
        return totals, counts[0], counts[1], counts[2], index.stat_bytes()

    # ------------------------------------------------------------ below

    def _raw_segments(self, txn: Snapshot, manifest: int) -> Iterator[bytes]:
        with txn.cursor(db=self._index.segments) as cursor:
            if cursor.set_range(segment_key(manifest, 0)):
                for key, raw in cursor:
                    if manifest_of(key) != manifest:
                        return
                    check_owner(raw, manifest)
                    yield bytes(raw)

    def _decode(self, name: bytes, raw: bytes) -> Record:
        try:
            return decode_record(raw)
        except FormatError as error:
            raise FormatError(f"the record of {name.decode(errors='replace')!r}: {error}") from None


def _small_cover(named: Any, segments: Any, name: bytes, bytes_max: int) -> Cover | None:
    """None for what is larger, has several segments, is not there, or is damaged."""
    raw = _mostly_next(named, name)
    if raw is None:
        return None
    try:
        record = decode_record(raw)
        if record.size > bytes_max:
            return None
        if record.is_inline:
            return Cover(record, [(0, record.size, [])], _none_newer)
        raw = _mostly_next(segments, segment_key(record.manifest, record.size))
        if raw is None:
            return None
        extent = decode_extent_of_one(raw, record.manifest)
        if extent is not None and (extent.begin, extent.end) == (0, record.size):
            return Cover(record, [(0, record.size, [extent])], _none_newer)
        segment = decode_segment(raw, manifest=record.manifest)
        if segment.begin or segment.end != record.size:
            return None
        return Cover(record, [(0, record.size, list(segment))], _none_newer)
    except FormatError:
        return None


def _mostly_next(cursor: Any, key: bytes) -> bytes | None:
    """What the key maps to, which most often is the one behind the cursor's place: names are asked
    for in order, and what was put in order has its segments in order, too."""
    if not (cursor.next() and cursor.key() == key) and not (
        cursor.set_range(key) and cursor.key() == key
    ):
        return None
    raw: bytes = cursor.value()
    return raw


def _none_newer() -> None:
    return None


def _behind(folder: bytes) -> bytes:
    """What sorts right behind all that the folder has: b"0" follows b"/"."""
    return folder[:-1] + b"0"
