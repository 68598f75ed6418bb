"""Checking a local store: its index in one snapshot, against its packs.

It all runs in a process of its own, as LMDB may die of damaged pages, and as a snapshot that stays
open for minutes has no place in a process that serves readers. The packs are read after the
snapshot is taken, so what it names is there by then; a collector may take packs away meanwhile, and
says so by `gc_seq`: then what looked wrong is looked at again.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby

import xxhash

from castore import isolated
from castore.check.data import check_data
from castore.check.findings import Findings
from castore.check.objects import Faulty, extent_fault, inline_fault, manifest_faults
from castore.check.packs import PackReading, Read, file_reader, read_pack
from castore.check.report import CheckReport, Problem, Severity
from castore.chunker import ChunkSizes
from castore.errors import (
    FormatError,
    IndexCorrupt,
    StoreLocked,
    StoreNotFound,
    UnsupportedFormat,
)
from castore.folder import CONFIG, check_index_in_place, read_config, share
from castore.format import (
    Record,
    StoreConfig,
    Totals,
    decode_chunk_row,
    decode_pack_row,
    decode_record,
    decode_segment,
    encode_config,
    manifest_of,
    segment_key,
)
from castore.index import Index, Snapshot, open_index
from castore.index_walk import rows
from castore.isolated import Report
from castore.model import Extent, Location, Progress
from castore.packs.local import PACK_NAME
from castore.workers import Workers

LOOKS = 3  # at a store whose packs collectors move meanwhile


def check_local(
    root: str, *, fraction: float, threads: int, progress: Progress | None
) -> CheckReport:
    """Check the store in the folder; `fraction` of its frames is decoded. Raises IndexCorrupt, if
    LMDB's own pages are damaged; StoreLocked, if collectors leave it no time."""
    report = CheckReport()
    index_path = os.path.join(root, "index")
    if read_config(root) is None:
        if not os.path.isdir(os.path.join(root, "packs")):
            raise StoreNotFound(errno.ENOENT, f"there is no store at {root}")
        raise FormatError(f"{os.path.join(root, CONFIG)} is gone: restore it (castore restore)")
    check_index_in_place(root)
    for document in isolated.run(
        "castore.check.local:check_in_process",
        index_path,
        root=root,
        fraction=fraction,
        threads=threads,
    ):
        if "problem" in document:
            report.problems.append(Problem.of(document["problem"]))
        elif "totals" in document:
            for name, value in document["totals"].items():
                setattr(report, name, value)
        elif progress is not None and "size" in document:
            progress.set_size(document["size"])
        elif progress is not None and "done" in document:
            progress.relative_update(document["done"])
    return report


def check_in_process(report: Report, root: str, fraction: float, threads: int) -> None:
    """What the child of `check_local` does."""
    config = read_config(root)
    assert config is not None  # the parent has looked
    in_use = share(root)
    index = open_index(os.path.join(root, "index"), create=False)
    workers = Workers(threads)
    try:
        for look in range(1, LOOKS + 1):
            check = LocalCheck(root, config, index, workers, fraction, report)
            try:
                check.run()
            except FormatError as error:  # of a key: those have no checksums
                raise IndexCorrupt(
                    f"the index {index.path} is damaged ({error}): restore it from a backup "
                    "(castore restore)"
                ) from error
            if not len(check.findings) or check.undisturbed():
                break
            if look == LOOKS:
                raise StoreLocked(
                    errno.EAGAIN, f"collectors keep moving packs of {root}: repeat it later"
                )
        for problem in check.findings.problems():
            report({"problem": problem.document()})
        report({"totals": check.totals})
    finally:
        workers.close()
        index.close()
        if in_use >= 0:
            os.close(in_use)


@dataclass(slots=True)
class _Seen:
    """What the walk of the names found out: which manifests they have, and which packs these are
    in; the sums."""

    manifests: dict[int, int] = field(default_factory=dict)  # to a hash of what was checked
    faulty: dict[int, list[Faulty]] = field(default_factory=dict)
    packs: set[bytes] = field(default_factory=set)
    sums: Totals = field(default_factory=Totals)
    names: int = 0


class LocalCheck:
    """One look at a store. `findings` has what is wrong, `readings` what its packs hold."""

    def __init__(
        self,
        root: str,
        config: StoreConfig,
        index: Index,
        workers: Workers,
        fraction: float,
        report: Report,
    ) -> None:
        self.root = root
        self.config = config
        self.findings = Findings()
        self.readings: dict[bytes, PackReading] = {}
        self.totals: dict[str, int] = {}
        self._index = index
        self._workers = workers
        self._fraction = fraction
        self._report = report
        self._gc_seq = b""
        self._rows: dict[bytes, int] = {}  # pack id -> durable bytes

    def run(self) -> None:
        index = self._index
        self._check_config()
        with index.read() as txn:
            self._gc_seq = _meta(index, txn, b"gc_seq")
            self._check_meta(txn)
            self._read_pack_rows(txn)
            self._read_packs()
            seen = _Seen()
            self._check_names(txn, seen)
            self._check_chunk_rows(txn, seen)
            self._check_packs(seen)
            self._look_for_orphans(txn, seen)
            counted = _meta(index, txn, b"totals")
        if (Totals.decode(counted) if counted else Totals()) != seen.sums:
            what = "the running totals are not what the names and chunks add up to"
            self._add("totals", "corrupt", what)
        self.totals |= {"names": seen.names, "packs": len(self.readings)}
        self.totals["frames"] = sum(len(reading.frames) for reading in self.readings.values())

    def undisturbed(self) -> bool:
        """Whether no collector removed or moved anything since this look began."""
        with self._index.read() as txn:
            return _meta(self._index, txn, b"gc_seq") == self._gc_seq

    # ------------------------------------------------------------ config and meta

    def _check_config(self) -> None:
        path = os.path.join(self.root, CONFIG)
        with open(path, "rb") as file:
            raw = file.read()
        fault = config_fault(raw, self.config)
        if fault:
            self._add("config", "corrupt", f"{path} {fault}")

    def _check_meta(self, txn: Snapshot) -> None:
        if _meta(self._index, txn, b"store_id") not in (b"", self.config.store_id):
            self._add("config", "corrupt", "the index belongs to another store than castore.json")

    # ------------------------------------------------------------ packs

    def _read_pack_rows(self, txn: Snapshot) -> None:
        for pack_id, row in rows(self._index, txn, self._index.packs):
            try:
                self._rows[pack_id] = decode_pack_row(row)[1]
            except FormatError as error:
                self._rows[pack_id] = 0
                self._add("pack row", "corrupt", f"the row of pack {pack_id.hex()}: {error}")

    def _read_packs(self) -> None:
        paths = dict(list_packs(os.path.join(self.root, "packs")))
        if self._fraction > 0:
            sizes = [_size(path) for path in paths.values()]
            self._report({"size": int(self._fraction * sum(sizes))})
        read_frames = read_bytes = 0

        def done(frames: int, size: int) -> None:
            nonlocal read_frames, read_bytes
            read_frames, read_bytes = read_frames + frames, read_bytes + size
            self._report({"done": size})

        def opened() -> Iterator[tuple[PackReading, Read]]:
            for pack_id, path in paths.items():
                found = open_pack(path, self.config, pack_id)
                if found is not None:
                    self.readings[pack_id] = found[0]
                    yield found

        check_data(opened(), self._workers, self.config.seed, fraction=self._fraction, done=done)
        self.totals = {"read_frames": read_frames, "read_bytes": read_bytes}

    def _check_packs(self, seen: _Seen) -> None:
        """What is wrong with the packs themselves, whether or not a name needs it."""
        for pack_id, reading in self.readings.items():
            durable = self._rows.get(pack_id, 0)
            if pack_id not in self._rows:
                self._check_pack_without_row(pack_id, reading, seen)
                if pack_id not in seen.packs:
                    continue
            for fault in reading.faults:
                what = f"pack {pack_id.hex()}: {fault}"
                self._add("pack", "corrupt", what, pack=pack_id.hex())
            for offset, fault in reading.bad.items():
                entry = reading.frames.at(offset)
                chunk_id = b"" if entry is None else entry.chunk_id
                # What its writer never made durable, no name needs, and a crash may leave torn.
                torn = reading.unsealed and offset >= durable
                self.findings.bad_frame(
                    Location(pack_id, offset, 0), chunk_id, fault, "warning" if torn else "corrupt"
                )
            if reading.end < durable:
                what = f"pack {pack_id.hex()} is cut short at {reading.size} of {durable} bytes"
                self._add("pack", "missing", what, pack=pack_id.hex())
            if reading.unsealed and not is_locked(pack_path(self.root, pack_id)):
                what = f"pack {pack_id.hex()} has no footer: its writer died, or it was cut off"
                self._add("pack", "warning", what, pack=pack_id.hex())
        for pack_id in self._rows.keys() - self.readings.keys():
            self.findings.missing_pack(pack_id, None)

    def _check_pack_without_row(self, pack_id: bytes, reading: PackReading, seen: _Seen) -> None:
        if pack_id in seen.packs:
            self._add("pack row", "corrupt", f"pack {pack_id.hex()} has no row", pack=pack_id.hex())
        elif not is_locked(pack_path(self.root, pack_id)):
            what = f"pack {pack_id.hex()}, {reading.size} bytes, is of a writer that died"
            self._add("orphan", "warning", what + ": the next gc takes it", pack=pack_id.hex())

    # ------------------------------------------------------------ names

    def _check_names(self, txn: Snapshot, seen: _Seen) -> None:
        for key, raw in rows(self._index, txn, self._index.names):
            seen.names += 1
            name = key.decode(errors="surrogateescape")
            try:
                record = decode_record(raw)
            except (FormatError, UnsupportedFormat) as error:
                self._add("record", "corrupt", f"the record of {name!r}: {error}", name)
                continue
            seen.sums.logical_bytes += record.size
            if record.is_inline:
                seen.sums.inline_raw_bytes += record.size
                seen.sums.inline_stored_bytes += record.stored_bytes
                fault = inline_fault(record, self.config.seed)
                if fault:
                    self._add("record", "corrupt", f"the record of {name!r}: {fault}", name)
            else:
                for faulty in self._manifest(txn, record, seen):
                    self._note(faulty, name)

    def _manifest(self, txn: Snapshot, record: Record, seen: _Seen) -> list[Faulty]:
        """What is wrong with the record's manifest, which it may share with other names."""
        facts = xxhash.xxh3_64_intdigest(
            b"%d %d %d %b" % (record.size, record.chunks, record.stored_bytes, record.etag)
        )
        if seen.manifests.get(record.manifest) != facts:
            segments = self._segments(txn, record.manifest, seen)
            faults = list(manifest_faults(record, segments, self.readings, self.config.seed))
            seen.manifests[record.manifest] = facts
            seen.faulty.pop(record.manifest, None)
            if faults:
                seen.faulty[record.manifest] = faults
        return seen.faulty.get(record.manifest, [])

    def _segments(self, txn: Snapshot, manifest: int, seen: _Seen) -> Iterator[bytes]:
        with txn.cursor(db=self._index.segments) as cursor:
            if cursor.set_range(segment_key(manifest, 0)):
                for key, raw in cursor:
                    if manifest_of(bytes(key)) != manifest:
                        return
                    with contextlib.suppress(FormatError):  # that is for who decodes it to say
                        seen.packs.update(decode_segment(raw, verify=False).packs)
                    yield raw

    def _note(self, faulty: Faulty, name: str) -> None:
        extent = faulty.extent
        if extent is None:
            self._add("manifest", "corrupt", f"the manifest of {name!r}: {faulty.what}", name)
        elif extent.location.pack_id not in self.readings:
            self.findings.missing_pack(extent.location.pack_id, name)
        else:
            severity: Severity = "missing" if faulty.missing else "corrupt"
            self.findings.bad_frame(extent.location, extent.chunk_id, faulty.what, severity, name)

    # ------------------------------------------------------------ chunk rows, orphans

    def _check_chunk_rows(self, txn: Snapshot, seen: _Seen) -> None:
        outlived = 0
        for chunk_id, row in rows(self._index, txn, self._index.chunks):
            try:
                raw_bytes, location = decode_chunk_row(row)
                fault = "it has no id" if len(chunk_id) != 16 else ""
            except FormatError as error:
                self._add("chunk row", "corrupt", f"the row of chunk {chunk_id.hex()}: {error}")
                continue
            seen.sums.chunk_raw_bytes += raw_bytes
            seen.sums.chunk_stored_bytes += location.stored_bytes
            found = extent_fault(Extent(0, raw_bytes, chunk_id, location), self.readings)
            if found is None and not fault:
                continue
            if found is not None and location.offset in self._bad_of(location.pack_id):
                continue  # the frame's own problem says it
            if found is not None and location.pack_id not in self.readings:
                if location.pack_id in self._rows:
                    self.findings.missing_pack(location.pack_id, None)
                else:  # the pack was collected: the next put of the chunk stores it anew
                    outlived += 1
                continue
            reason = fault or (found.what if found else "")
            self._add(
                "chunk row",
                "missing" if self._is_cut_short(location.pack_id) else "corrupt",
                f"the row of chunk {chunk_id.hex()} leads to byte {location.offset} of pack "
                f"{location.pack_id.hex()}: {reason}",
                chunk=chunk_id.hex(),
            )

        if outlived:
            what = f"{outlived} rows of chunks outlive their packs: the next gc takes them"
            self._add("orphan", "warning", what)

    def _is_cut_short(self, pack_id: bytes) -> bool:
        reading = self.readings.get(pack_id)
        return reading is not None and reading.end < self._rows.get(pack_id, 0)

    def _bad_of(self, pack_id: bytes) -> dict[int, str]:
        reading = self.readings.get(pack_id)
        return {} if reading is None else reading.bad

    def _look_for_orphans(self, txn: Snapshot, seen: _Seen) -> None:
        """Manifests that no name leads to, but those whose writers live."""
        index = self._index
        pending = {}
        for key, owner in rows(index, txn, index.pending):
            pending[manifest_of(key)] = owner
        orphans = 0
        with txn.cursor(db=index.segments) as cursor:
            keys = (bytes(key) for key in cursor.iternext(values=False))
            for manifest, _ in groupby(keys, key=_manifest_or_none):
                if manifest is None:
                    self._add("segment", "corrupt", "a segment's key is damaged")
                elif manifest not in seen.manifests and not (
                    manifest in pending and is_locked(pack_path(self.root, pending[manifest]))
                ):
                    orphans += 1
        if orphans:
            what = f"{orphans} manifests have no name: the next gc takes them"
            self._add("orphan", "warning", what)

    def _add(
        self,
        kind: str,
        severity: Severity,
        what: str,
        name: str = "",
        *,
        pack: str = "",
        chunk: str = "",
    ) -> None:
        names = (name,) if name else ()
        self.findings.add(Problem(kind, severity, what, names, pack=pack, chunk=chunk))


# ---------------------------------------------------------------- parts that others use, too


def config_fault(raw: bytes, config: StoreConfig) -> str:
    """What is odd about a config that decodes: castore always writes the same bytes for it."""
    try:
        usual = ChunkSizes.for_average(config.chunk_avg)
    except ValueError as error:
        return f"has chunk sizes that castore would not choose: {error}"
    if (usual.min, usual.max) != (config.chunk_min, config.chunk_max):
        return "has chunk sizes that castore would not choose"
    return "" if encode_config(config) == raw else "is not as castore writes it"


class PackFile:
    """A pack's file, open for as long as somebody may read it."""

    def __init__(self, path: str) -> None:
        self.fd = -1
        self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._read = file_reader(self.fd)

    def read(self, begin: int, end: int) -> bytes:
        return self._read(begin, end)

    def __del__(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)


def open_pack(path: str, config: StoreConfig, pack_id: bytes) -> tuple[PackReading, Read] | None:
    """What the pack holds, and how to read it; None if it is gone. A pack that grows while it is
    read, as a living writer's does, is read again."""
    try:
        file = PackFile(path)
        while True:
            size = os.fstat(file.fd).st_size
            reading = read_pack(
                file.read, size, store_id=config.store_id, pack_id=pack_id, seed=config.seed
            )
            if not reading.damaged or os.fstat(file.fd).st_size == size:
                return reading, file.read
    except FileNotFoundError:
        return None


def list_packs(folder: str) -> Iterator[tuple[bytes, str]]:
    """(pack id, path) of every pack file, in order."""
    for inner, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            if PACK_NAME.fullmatch(name):
                yield bytes.fromhex(name.removesuffix(".pack")), os.path.join(inner, name)


def is_locked(path: str) -> bool:
    """Whether the writer of the pack lives."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def pack_path(root: str, pack_id: bytes) -> str:
    name = pack_id.hex()
    return os.path.join(root, "packs", name[:2], f"{name}.pack")


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return 0


def _meta(index: Index, txn: Snapshot, key: bytes) -> bytes:
    value = txn.get(key, db=index.meta)
    return b"" if value is None else bytes(value)


def _manifest_or_none(key: bytes) -> int | None:
    try:
        return manifest_of(key)
    except FormatError:
        return None
