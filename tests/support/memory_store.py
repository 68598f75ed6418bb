"""A third kind of store, in this process's memory, written against `castore.stream.backend` alone:
what a new kind has to supply, and that there is nothing else that it must know.

Names, manifests and packs are dicts of a Place, which stands for the disk or the bucket; each
MemoryStore is one opening of it. A pack has frames and nothing else. Whatever is removed lives on
for as long as somebody holds it, as Python's objects do, and a commit puts back what it relies on.
"""

from __future__ import annotations

import itertools
import secrets
import threading
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterator, Sequence

import castore
from castore.errors import (
    FormatError,
    NameExists,
    NameNotFound,
    NotLocal,
    ObjectChanged,
    PackMissing,
)
from castore.format.config import StoreConfig
from castore.format.index import Record
from castore.format.segment import NewSegment, decode_segment, owned
from castore.model import (
    Extent,
    Location,
    ObjectInfo,
    Progress,
    StoredChunk,
    StoreStats,
    clamp_range,
)
from castore.stream.backend import Cover, Entry, Held, Older
from castore.stream.chunker import Chunker
from castore.stream.codec import chunk_id_of, decode_frame, decode_inline
from castore.stream.config import new_config
from castore.stream.operations import (
    Copy,
    Delete,
    DeletePrefix,
    Draft,
    Operation,
    Publish,
    SetAttributes,
    same_bytes,
)
from castore.stream.reports import (
    BackupReport,
    CheckReport,
    GcOptions,
    GcReport,
    Problem,
    RebuildReport,
)
from castore.stream.segments import Manifest
from castore.stream.session import Encoded, WriteSession
from castore.system.workers import Workers

PAGE_NAMES = 1000
PACK_BYTES_MAX = 1 << 20
INLINE_BYTES_MAX = 4096


class Place:
    """What is stored. All of it is changed and read under `lock`."""

    def __init__(self, config: StoreConfig) -> None:
        self.config = config
        self.lock = threading.RLock()
        self.names: dict[bytes, Record] = {}
        self.manifests: dict[int, tuple[bytes, ...]] = {}  # encoded segments
        self.chunks: dict[bytes, tuple[int, Location]] = {}  # (raw bytes, where)
        self.packs: dict[bytes, bytes] = {}
        self.numbers = itertools.count(1)

    def pack(self, pack_id: bytes) -> bytes:
        with self.lock:
            if pack_id not in self.packs:
                raise PackMissing(pack_id)
            return self.packs[pack_id]


def make_place(chunk_bytes_avg: int = 65536, collision_guard: str | None = None) -> Place:
    return Place(new_config(chunk_bytes_avg, collision_guard))


def open_memory(
    place: Place,
    *,
    read_only: bool = False,
    cache_bytes: int = 32 << 20,
    threads: int | None = None,
) -> castore.Store:
    return castore.Store(
        MemoryStore(place), read_only=read_only, cache_bytes=cache_bytes, threads=threads
    )


class MemoryStore:
    root = "memory"
    threads = 2
    compression_level = 1
    writable = True

    def __init__(self, place: Place) -> None:
        self.config = place.config
        self.place = place
        self.catalog = MemoryCatalog(place)
        self.packs = MemoryPacks(place)

    def session(
        self, workers: Workers, chunker: Chunker, *, level: int, deltas: bool
    ) -> MemorySession:
        return MemorySession(self.place, workers, chunker, level=level)

    def stats(self) -> StoreStats:
        place = self.place
        with place.lock:
            records, chunks = list(place.names.values()), list(place.chunks.values())
            inline = [record for record in records if record.is_inline]
            return StoreStats(
                objects=len(records),
                chunks=len(chunks),
                packs=len(place.packs),
                logical_bytes=sum(record.size for record in records),
                unique_bytes=sum(record.size for record in inline) + sum(raw for raw, _ in chunks),
                stored_bytes=sum(record.stored_bytes for record in inline)
                + sum(at.stored_bytes for _, at in chunks),
                pack_bytes=sum(map(len, place.packs.values())),
                index_bytes=0,
            )

    def gc(self, options: GcOptions, *, progress: Progress | None) -> GcReport:
        """Packs in which too little is alive are written anew, and what is not alive goes. Readers
        hold what they read, and writers put back what they rely on: nobody is waited for."""
        place = self.place
        with place.lock:
            live, manifests = self._live()
            sparse = self._sparse(live, options.repack_below)
            moving = {at: row for at, row in live.items() if at.pack_id in sparse}
            alive = {chunk_id for chunk_id, _ in live.values()}
            report = GcReport(
                dry_run=options.dry_run,
                objects=len(place.names),
                chunks=len(alive),
                chunks_removed=len(place.chunks.keys() - alive),
                manifests_removed=len(place.manifests.keys() - manifests),
                packs_removed=len(sparse),
                packs_rewritten=len({at.pack_id for at in moving}),
                bytes_rewritten=sum(at.stored_bytes for at in moving),
                bytes_freed=sum(len(place.packs[pack_id]) for pack_id in sparse)
                - sum(at.stored_bytes for at in moving),
            )
            if not options.dry_run:
                place.manifests = {i: place.manifests[i] for i in manifests}
                moved = self._move(moving)
                place.chunks = {
                    chunk_id: (raw_bytes, moved.get(at, at))
                    for at, (chunk_id, raw_bytes) in live.items()
                }
                for gone in sparse:
                    del place.packs[gone]
            return report

    def _live(self) -> tuple[dict[Location, tuple[bytes, int]], set[int]]:
        """The places of the chunks that names lead to, with their ids and sizes, and the manifests.
        A chunk may be in two places, if one was put back."""
        place = self.place
        manifests = {r.manifest for r in place.names.values() if not r.is_inline}
        live = {
            extent.location: (extent.chunk_id, extent.end - extent.begin)
            for number in manifests
            for raw in place.manifests[number]
            for extent in decode_segment(raw)
        }
        return live, manifests

    def _sparse(self, live: Collection[Location], repack_below: float | None) -> set[bytes]:
        share = 0.5 if repack_below is None else repack_below
        alive = dict.fromkeys(self.place.packs, 0)
        for at in live:
            alive[at.pack_id] += at.stored_bytes
        return {
            pack_id
            for pack_id, size in alive.items()
            if not size or size < share * len(self.place.packs[pack_id])
        }

    def _move(self, moving: Collection[Location]) -> dict[Location, Location]:
        """Their frames to a new pack, and the segments of all manifests after them."""
        place, pack_id, pack = self.place, secrets.token_bytes(16), bytearray()
        moved: dict[Location, Location] = {}
        for at in moving:
            moved[at] = Location(pack_id, len(pack), at.stored_bytes)
            pack += place.packs[at.pack_id][at.offset : at.offset + at.stored_bytes]
        if moved:
            place.packs[pack_id] = bytes(pack)

        def find(chunk: StoredChunk) -> Location | None:
            at = moved.get(chunk.location._replace(bases=()))
            return None if at is None else at._replace(bases=chunk.location.bases)

        for number, segments in place.manifests.items():
            relocated = [decode_segment(raw).relocated(find) or raw for raw in segments]
            place.manifests[number] = tuple(owned(raw, number) for raw in relocated)
        return moved

    def check(self, *, fraction: float, progress: Progress | None) -> CheckReport:
        """Every object is looked at; with a fraction, all of its data."""
        place, report = self.place, CheckReport()
        with place.lock:
            report.names, report.packs = len(place.names), len(place.packs)
            live, _ = self._live()
            report.frames = len(place.chunks)
            for _, at in place.chunks.values():
                if at not in live:
                    report.count_garbage("chunks", at.stored_bytes)
            for name, record in place.names.items():
                for kind, what in self._faults(record, fraction, report):
                    shown = name.decode()
                    report.problems.append(Problem(kind, "corrupt", f"{shown!r}: {what}", (shown,)))
        return report

    def _faults(
        self, record: Record, fraction: float, report: CheckReport
    ) -> Iterator[tuple[str, str]]:
        place, seed = self.place, self.config.seed
        try:
            if record.is_inline:
                raw = decode_inline(record.codec, record.inline, record.size)
                if chunk_id_of(raw, seed) != record.etag:
                    yield "record", "its bytes do not match its etag"
                return
            extents = [
                e for s in Manifest(place.manifests[record.manifest], record.size) for e in s
            ]
        except FormatError as error:
            yield "manifest", str(error)
            return
        for begin, end, chunk_id, (pack_id, offset, stored_bytes, _) in extents:
            frame = place.packs.get(pack_id, b"")[offset : offset + stored_bytes]
            try:
                if fraction or len(frame) < stored_bytes:
                    decode_frame(frame, chunk_id, end - begin, seed)
                    report.read_frames, report.read_bytes = (
                        report.read_frames + 1,
                        report.read_bytes + stored_bytes,
                    )
            except FormatError as error:
                yield "frame", str(error)

    def repair(
        self,
        session: Callable[[], WriteSession],
        found: CheckReport | None,
        *,
        packs_are_lost: bool,
        progress: Progress | None,
    ) -> CheckReport:
        """There is no second copy of anything, so that nothing can be mended."""
        return self.check(fraction=1, progress=progress)

    def back_up(self, path: str, *, progress: Progress | None) -> BackupReport:
        raise NotLocal(f"{self.root} has no file that could be kept")

    def rebuild_index(self, *, progress: Progress | None) -> RebuildReport:
        """What is known of chunks, from the manifests."""
        place = self.place
        with place.lock:
            place.chunks = {
                extent.chunk_id: (extent.end - extent.begin, extent.location)
                for segments in place.manifests.values()
                for raw in segments
                for extent in decode_segment(raw)
            }
            return RebuildReport(
                names=len(place.names), chunks=len(place.chunks), packs=len(place.packs)
            )

    def remove_old_versions(self, name: bytes, *, below: bool) -> int:
        return 0

    def close(self) -> None:
        """There is nothing to let go of."""


class MemoryCatalog:
    def __init__(self, place: Place) -> None:
        self._place = place

    def record(self, name: bytes) -> Record | None:
        with self._place.lock:
            return self._place.names.get(name)

    def records(self, names: Collection[bytes]) -> dict[bytes, Record]:
        with self._place.lock:
            there = self._place.names
            return {name: there[name] for name in names if name in there}

    def manifest(self, name: bytes, etag: bytes | None = None) -> tuple[Record, Manifest]:
        with self._place.lock:
            record = self._place.names.get(name)
            if record is None:
                raise NameNotFound(name.decode())
            segments = () if record.is_inline else self._place.manifests[record.manifest]
        return record, Manifest(segments, 0 if record.is_inline else record.size)

    def at_hand(self, listed: ObjectInfo) -> Record | None:
        return None

    covers = None

    def cover(self, name: bytes, byte_ranges: Sequence[Sequence[int] | None]) -> Cover:
        record, manifest = self.manifest(name)
        parts = []
        for byte_range in byte_ranges:
            begin, end = clamp_range(byte_range, record.size)
            extents: list[Extent] = []
            for segment in manifest.at_or_after(begin):
                if segment.begin >= end or begin >= end:
                    break
                extents += segment.covering(max(begin, segment.begin), end)
            parts.append((begin, end, extents))
        return Cover(record, parts, lambda: None)

    def forget(self, name: bytes) -> None:
        """Nothing is remembered."""

    def pages(self, prefix: bytes) -> Iterator[list[tuple[bytes, Record]]]:
        after = b""
        while page := self._page(prefix, after):
            yield page
            after = page[-1][0]

    def names(self, prefix: bytes) -> Iterator[list[bytes]]:
        for page in self.pages(prefix):
            yield [name for name, _ in page]

    def level(self, prefix: bytes, *, with_records: bool) -> Iterator[list[Entry]]:
        folder = b""
        for page in self.pages(prefix):
            entries = []
            for name, record in page:
                inner, slash, _ = name[len(prefix) :].partition(b"/")
                if not slash:
                    entries.append(Entry(name, record if with_records else None))
                elif folder != prefix + inner + slash:
                    folder = prefix + inner + slash
                    entries.append(Entry(folder, is_folder=True))
            yield entries

    def kind(self, name: bytes) -> tuple[bool, bool]:
        return self.record(name) is not None, any(self.names(name + b"/"))

    def older(self, name: bytes, like: bytes | None, *, beside: bool = True) -> Older | None:
        """No session here makes deltas."""
        return None

    def _page(self, prefix: bytes, after: bytes) -> list[tuple[bytes, Record]]:
        with self._place.lock:
            names = sorted(name for name in self._place.names if name.startswith(prefix))
            first = bisect_left(names, after + b"\0") if after else 0
            return [(n, self._place.names[n]) for n in names[first : first + PAGE_NAMES]]


class MemoryPacks:
    task_bytes = 1 << 20

    def __init__(self, place: Place) -> None:
        self._place = place

    def frames(self, places: Sequence[Location], held: Held) -> Sequence[bytes]:
        found = []
        for pack_id, offset, stored_bytes, _ in places:
            pack = held[pack_id] if pack_id in held else self._place.pack(pack_id)
            if len(pack) < offset + stored_bytes:
                raise FormatError(f"pack {pack_id.hex()} ends within a frame")
            found.append(pack[offset : offset + stored_bytes])
        return found

    def at_hand(self, place: Location) -> bytes:
        return self.frames([place], {})[0]

    def hold(self, pack_ids: Collection[bytes]) -> Held:
        return {pack_id: self._place.pack(pack_id) for pack_id in pack_ids}

    def let_go(self, places: Sequence[Location], held: Held) -> None:
        """Nothing is mapped."""

    def forget(self, *locations: Location) -> None:
        """Nothing is cached."""


class MemorySession(WriteSession):
    def __init__(self, place: Place, workers: Workers, chunker: Chunker, *, level: int) -> None:
        super().__init__(workers, place.config, chunker, compression_level=level)
        self.inline_bytes_max = INLINE_BYTES_MAX
        self._place = place
        self._placed: dict[bytes, tuple[int, Location]] = {}
        self._packs: dict[bytes, bytearray] = {}  # ours
        self._known: dict[bytes, tuple[int, Location]] = {}  # of others, as they were looked up,
        self._held: dict[bytes, bytes] = {}  # and their packs

    def look_up(self, chunk_ids: Sequence[bytes]) -> dict[bytes, Location]:
        found = {i: self._placed[i][1] for i in chunk_ids if i in self._placed}
        with self._place.lock:
            for chunk_id in chunk_ids:
                known = self._place.chunks.get(chunk_id)
                if chunk_id not in found and known is not None:
                    found[chunk_id] = known[1]
                    self._known[chunk_id] = known
                    self._held[known[1].pack_id] = self._place.pack(known[1].pack_id)
        return found

    def place(self, encoded: Sequence[Encoded]) -> None:
        for frame, bases in encoded:
            pack_id = next(reversed(self._packs), b"")
            if not pack_id or len(self._packs[pack_id]) >= PACK_BYTES_MAX:
                pack_id = secrets.token_bytes(16)
                self._packs[pack_id] = bytearray()
            pack = self._packs[pack_id]
            at = Location(pack_id, len(pack), frame.stored_bytes, bases)
            pack += frame.head + frame.payload
            self._placed[frame.chunk_id] = frame.raw_bytes, at

    def location(self, chunk_id: bytes) -> Location:
        return self._placed[chunk_id][1]

    def add_segment(self, draft: Draft, segment: NewSegment) -> None:
        draft.segments.append((segment.end, segment.encode()))

    def drop(self, draft: Draft) -> None:
        """Nothing of it was published."""

    def commit(self, operations: Sequence[Operation]) -> int:
        """On copies, which take the place of what was there when all went well."""
        self.check_process()
        place = self._place
        with place.lock:
            names, manifests, deleted = dict(place.names), dict(place.manifests), 0
            for operation in operations:
                deleted += self._apply(names, manifests, operation)
            ours = {pack_id: bytes(pack) for pack_id, pack in self._packs.items()}
            place.packs = self._held | place.packs | ours
            place.chunks = self._known | self._placed | place.chunks
            place.names, place.manifests = names, manifests
        self.close()
        return deleted

    def _apply(
        self,
        names: dict[bytes, Record],
        manifests: dict[int, tuple[bytes, ...]],
        operation: Operation,
    ) -> int:
        match operation:
            case Publish(name, record, draft, if_absent, over):
                if if_absent and name in names:
                    raise NameExists(name.decode())
                if over is not None:
                    if not (name in names and same_bytes(names[name], over)):
                        raise ObjectChanged(name.decode())
                    record = record._replace(mode=names[name].mode)
                if draft is not None:
                    record = record._replace(manifest=next(self._place.numbers))
                    manifests[record.manifest] = tuple(
                        owned(raw, record.manifest) for _, raw in draft.segments
                    )
                names[name] = record
            case Copy(source, target, mtime_ns, if_absent, rename):
                if source not in names:
                    raise NameNotFound(source.decode())
                if if_absent and target in names:
                    raise NameExists(target.decode())
                if source != target:
                    record = names.pop(source) if rename else names[source]
                    names[target] = record if rename else record._replace(mtime_ns=mtime_ns)
            case SetAttributes(name):
                if name not in names:
                    raise NameNotFound(name.decode())
                names[name] = operation.of(names[name])
            case Delete(name):
                if names.pop(name, None) is None:
                    raise NameNotFound(name.decode())
                return 1
            case DeletePrefix(prefix):
                below = [name for name in names if name.startswith(prefix)]
                for name in below:
                    del names[name]
                return len(below)
        return 0

    def close(self) -> None:
        self._placed, self._packs, self._known, self._held = {}, {}, {}, {}
