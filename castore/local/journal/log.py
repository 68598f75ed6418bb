"""The journal of a local store's names: what outlives its index.

`journal/<generation>.log` has every change of a name, and the chunks of every object, in the order
of the commits. A commit appends to it inside its own LMDB transaction, just before that is
committed: writers take turns there already, so one file serves all processes. Nothing waits for the
disk: the index is the truth, and a power cut loses the last moments of the journal at most, until
the next rotation. For the same reason a put does not fail when the journal can't be written, as on
a full disk; what it lacks then, the numbers of its transactions show.

Each transaction has a number, kept in the index (`JournalPlace`) and raised with it. Blocks of a
commit that failed, or was cut off by a crash, are followed by others with the same number, which
then count. The block DONE that follows a commit is for who finds an index that is older than the
journal, such as a copy that somebody put back: there is no other sign of names that are lost.

`rotate` begins a new generation, and writes `journal/<generation>.snapshot`: all that is in the
index, in short read transactions. Others commit meanwhile; what the snapshot has of that is in the
new log, too, which is applied to it: so it comes out right. Older generations go after that. Until
it is written, the older ones, then the new log, are what a rebuild reads. A generation that begins
while chunks are unclaimed says so: else who loses the index then would lose that mark, too.

A collection rotates, and in a store that nobody collects the put after which the log has grown to
several times its snapshot (`bound`): what a snapshot costs was written before.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Iterable, Sequence
from typing import Final

from castore.errors import CastoreError, CommitUnknown, FormatError
from castore.format.config import StoreConfig, encode_config
from castore.format.journal import FLAG_LAST, JournalPlace, Kind, Unclaimed, encode_block
from castore.local.journal.blocks import SnapshotEntries, encode_blocks
from castore.local.journal.files import (
    FOLDER,
    append_all,
    generations,
    log_path,
    newest_committed,
    newest_of,
    remove_before,
    snapshot_bytes,
    snapshot_path,
)
from castore.system import forks
from castore.system.fileio import (
    descriptor,
    follow,
    make_durable_folder,
    status_of,
    sync_folder,
    typed_errors,
)
from castore.system.forks import ForkLock, Rank
from castore.system.lmdb_env import Index, Txn
from castore.system.lmdb_snapshot import Snapshot

PLACE: Final = b"journal"  # rows of `meta`
UNCLAIMED: Final = b"unclaimed"
LOG_BYTES_MIN = 1 << 20  # a log is kept up to this, or up to the size of its snapshot
LOG_BYTES_MAX = 64 << 20  # nor does a put let it grow past this, or past some of its snapshot
SNAPSHOTS_MAX = 4
ROWS_AT_CLOSE_MAX = 20_000  # a snapshot of them takes a moment

STARTED: Final = JournalPlace(0, 0, 0)


def start_journal(index: Index, txn: Txn) -> None:
    """Of a store that is being made: what comes is all that there is."""
    txn.put(PLACE, STARTED.encode(), db=index.meta)


class Journal:
    """The journal of the store in the folder `root`, as one process writes it."""

    def __init__(self, root: str, config: StoreConfig) -> None:
        self.folder = os.path.join(root, FOLDER)
        self._config = config
        self._fd = -1
        self._file = (0, 0)
        self._generation = 0
        self._known: tuple[JournalPlace, int] | None = (
            None  # after our last append; the file's size
        )
        self._dirty = False
        self._lacking = False  # it was found to lack something, or could not be written
        self._log_bytes_max = 0  # where `bound` looks next
        # Before a descriptor is closed that another thread may be writing to.
        self._lock = ForkLock(Rank.LEAF)
        forks.register(self)

    # ------------------------------------------------------------ commits

    def append(self, index: Index, txn: Txn, entries: Sequence[bytes]) -> JournalPlace | None:
        """Write the entries of a transaction, if there are any, as the last thing within it. What
        the disk does not take is a gap, which the numbers show, and no reason for a put to fail."""
        if not entries:
            return None
        place = self._decoded(txn.get(PLACE, db=index.meta))
        with self._lock:
            try:
                place = self._find_end(index, txn, place)
                end = self._write(place.seq + 1, entries)
            except OSError:
                end = place.end
                self._lacking = True
        place = JournalPlace(place.generation, place.seq + 1, end)
        txn.put(PLACE, place.encode(), db=index.meta)
        return place

    def done(self, place: JournalPlace | None) -> None:
        """The commit of the transaction that appended up to `place` is known to be durable."""
        if place is not None:
            self._note(Kind.DONE, place, b"")

    def failed(self, place: JournalPlace | None, error: BaseException) -> None:
        """It raised `error`; its entries do not count, unless it may have landed all the same."""
        known = isinstance(error, CastoreError) and not isinstance(error, CommitUnknown)
        if place is not None and known:
            self._note(Kind.UNDONE, place, place.end.to_bytes(8, "little"))

    def _note(self, kind: Kind, place: JournalPlace, payload: bytes) -> None:
        block = encode_block(kind, place.seq, 0, payload, raw_bytes=len(payload), flags=FLAG_LAST)
        with self._lock, contextlib.suppress(OSError):  # the next transaction says the same
            if self._is_ours() and self._generation == place.generation:
                self._append(block)
                self._known = place, place.end + len(block)

    def _write(self, seq: int, entries: Iterable[bytes]) -> int:
        """Where the file ends then."""
        self._dirty = True
        for block in encode_blocks(Kind.CHANGES, seq, entries):
            self._append(block)
        return os.fstat(self._fd).st_size

    def _append(self, block: bytes) -> None:
        """In one call: nobody else's comes in between, and so what the disk has no room for can't
        follow later. Raises OSError."""
        if os.write(self._fd, block) < len(block):
            raise OSError(errno.ENOSPC, "a block was written in part", self.folder)

    def _decoded(self, row: bytes | None) -> JournalPlace:
        """Of a row that is damaged in more than a bit nothing is known, as of one that is gone."""
        with contextlib.suppress(FormatError):
            if row is not None:
                return JournalPlace.mended(row)
        return STARTED

    def _find_end(self, index: Index, txn: Txn, place: JournalPlace) -> JournalPlace:
        """Have the file open that is appended to; a new one if that is gone, or has more than the
        index knows of."""
        status = self._status() if self._generation == place.generation else None
        if status is None or not status.st_nlink:
            self._open(place.generation)
            status = self._status()
        if status is not None:
            size = status.st_size
            if self._known == (place, size) or not self._is_ahead(place, size):
                return place
        known = generations(self.folder)
        # Of a commit that failed, or was cut off, when it had begun a log: that has nothing.
        is_behind = self._fd >= 0 or any(
            newest_of(log_path(self.folder, later)) > place.seq
            for later in known
            if later > place.generation
        )
        if is_behind and txn.get(UNCLAIMED, db=index.meta) is None:
            txn.put(UNCLAIMED, Unclaimed(0, 0).encode(), db=index.meta)
        is_empty = not is_behind and txn.get(PLACE, db=index.meta) == STARTED.encode()
        generation = max(known, default=place.generation) + 1
        unclaimed = _has_unclaimed(index, txn)
        return self._begin(generation, place.seq, is_empty=is_empty, unclaimed=unclaimed)

    def _is_ours(self) -> bool:
        return self._status() is not None

    def _status(self) -> os.stat_result | None:
        """Of the file that was opened, if the descriptor is still of that: a process that becomes a
        daemon closes all that there are, and the number may be another file's by now. Raises
        OSError where the system does not tell: who took that for another's would take what the log
        has for names that the index lacks."""
        status = None if self._fd < 0 else status_of(self._fd)
        if status is None or (status.st_dev, status.st_ino) != self._file:
            return None
        return status

    def _is_ahead(self, place: JournalPlace, size: int) -> bool:
        """Whether the file has transactions behind `place` that were committed."""
        return size > place.end and newest_committed(self._fd, place.end) > place.seq

    # ------------------------------------------------------------ generations

    def bound(self, index: Index) -> None:
        """After a commit, with nothing held: rotate if the log has outgrown its snapshot. The
        commit is done whatever comes of it, and what failed is not tried again before the log has
        grown by as much."""
        with self._lock:
            if self._known is None or self._known[1] <= self._log_bytes_max:
                return
            place, size = self._known
            limit = max(LOG_BYTES_MAX, SNAPSHOTS_MAX * snapshot_bytes(self.folder))
            grown = size > limit
            self._log_bytes_max = size + limit if grown else limit
        if grown:
            with contextlib.suppress(OSError, CastoreError):
                self.rotate(index, only=place.generation)

    def rotate(self, index: Index, *, only: int | None = None, claimed: bool = False) -> None:
        """Begin a new generation with a snapshot of all that is in the index, and remove the older
        ones. If a row does not decode, they stay: they may have what it was. With `only`, nothing
        is done if another generation is there by now, or if the index is known to lack what the
        journal has. `claimed`: what is unclaimed is given up, and the new generation knows nothing
        of it. Raises StoreFull, StoreIOError, CommitUnknown."""
        with typed_errors(self.folder):
            self._rotate(index, only, claimed=claimed)

    def _rotate(self, index: Index, only: int | None, *, claimed: bool) -> None:
        with index.write_gate, index.errors, index.begin() as txn, self._lock:
            place = self._decoded(txn.get(PLACE, db=index.meta))
            if only is not None and (
                place.generation != only or txn.get(UNCLAIMED, db=index.meta) is not None
            ):
                return
            known = generations(self.folder)
            generation = max([place.generation, *known]) + 1
            unclaimed = not claimed and _has_unclaimed(index, txn)
            place = self._begin(generation, place.seq, is_empty=False, unclaimed=unclaimed)
            txn.put(PLACE, place.encode(), db=index.meta)
        draft = os.path.join(self.folder, f"{generation:016x}.draft")
        try:
            head = self._head(generation, place.seq, "snapshot", unclaimed=unclaimed)
            whole = self._write_snapshot(index, draft, head, place.seq)
            # What it has of later transactions is to be in the log, too, whatever happens: those of
            # other processes as well, and whichever log this one has open by now.
            with descriptor(log_path(self.folder, generation)) as fd:
                os.fsync(fd)
            if not whole:
                os.unlink(draft)
                return
            os.rename(draft, snapshot_path(self.folder, generation))
        except FileNotFoundError:
            if max(generations(self.folder), default=0) > generation:
                return  # somebody else rotated meanwhile, and took it for a leftover
            raise
        except BaseException:
            with contextlib.suppress(FileNotFoundError):  # on a full disk others need the room
                os.unlink(draft)
            raise
        sync_folder(self.folder)
        remove_before(self.folder, generation)
        self._lacking = False

    def _write_snapshot(self, index: Index, path: str, head: bytes, seq: int) -> bool:
        with descriptor(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as fd:
            self._share(path)
            append_all(fd, head)
            state = SnapshotEntries(index)
            for block in encode_blocks(Kind.STATE, seq, state):
                append_all(fd, block)
            os.fsync(fd)
        return state.whole

    def sync(self) -> None:
        """Make what this process appended durable. Raises StoreFull, StoreIOError."""
        with self._lock, typed_errors(self.folder):
            if self._dirty and self._is_ours():
                self._dirty = False
                os.fsync(self._fd)

    def close(self, index: Index) -> None:
        """The end of this process's part. What the journal was found to lack, it gets now, unless
        that would take long: then a collection does it."""
        with contextlib.suppress(OSError, CastoreError):  # the store is whole without it
            if (self._lacking or self._has_grown()) and _may_rotate(index):
                self.rotate(index)
            self.sync()
        self.let_go()

    def _has_grown(self) -> bool:
        """By what this process appended: a store that is only read is left alone."""
        known = self._known
        limit = max(LOG_BYTES_MIN, SNAPSHOTS_MAX * snapshot_bytes(self.folder))
        return known is not None and known[1] > limit

    def after_fork_in_child(self) -> None:
        self.let_go()

    def let_go(self) -> None:
        with self._lock:
            try:
                is_ours = self._is_ours()
            except OSError:
                is_ours = True  # it would stay open for good, and another's is rarer
            if is_ours:
                os.close(self._fd)
            self._fd = -1
            self._known = None
            self._dirty = False

    def _open(self, generation: int) -> None:
        self.let_go()
        path = log_path(self.folder, generation)
        with contextlib.suppress(FileNotFoundError):
            self._adopt(os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC))
        self._generation = generation

    def _adopt(self, fd: int) -> None:
        try:
            status = os.fstat(fd)
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd
        self._file = status.st_dev, status.st_ino
        self._log_bytes_max = LOG_BYTES_MAX

    def _begin(self, generation: int, seq: int, *, is_empty: bool, unclaimed: bool) -> JournalPlace:
        """A log with nothing in it. A rotation that was cut off may have left one of this name."""
        if not os.path.isdir(self.folder):
            make_durable_folder(self.folder)
            self._share(self.folder)
        self.let_go()
        path = log_path(self.folder, generation)
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        self._adopt(os.open(path, flags, 0o600))
        self._share(path)
        self._generation = generation
        self._dirty = True
        self._lacking |= not is_empty
        base = "nothing" if is_empty else "snapshot"
        self._append(self._head(generation, seq, base, unclaimed=unclaimed))
        os.fsync(self._fd)
        sync_folder(self.folder)
        return JournalPlace(generation, seq, os.fstat(self._fd).st_size)

    def _share(self, path: str) -> None:
        """What was just made, the folder or a file, is for those whom the index is for: who shares
        the store goes on with it, whoever made it."""
        index = os.path.join(os.path.dirname(self.folder), "index")
        like = index if path == self.folder else os.path.join(index, "data.mdb")
        with contextlib.suppress(FileNotFoundError):  # as a store begins
            follow(path, os.stat(like))

    def _head(self, generation: int, seq: int, base: str, *, unclaimed: bool) -> bytes:
        """The first block of a file. `base` is what its entries are applied to: the snapshot of the
        generation, or nothing, as in a new store. castore.json is in it: it may be lost as well."""
        config = json.loads(encode_config(self._config))
        fields = {"generation": generation, "base": base, "config": config}
        if unclaimed:
            fields["unclaimed"] = True
        payload = json.dumps(fields).encode()
        return encode_block(Kind.HEAD, seq, 0, payload, raw_bytes=len(payload), flags=FLAG_LAST)


def _has_unclaimed(index: Index, txn: Txn) -> bool:
    """Whether chunks are, or were before the row that says so was damaged."""
    try:
        unclaimed = read_unclaimed(index, txn)
    except FormatError:
        return True
    return unclaimed is not None and unclaimed.chunks > 0


def _may_rotate(index: Index) -> bool:
    """Whether it takes but a moment, and no older generation has names that the index lacks."""
    with index.gate, index.snapshot() as txn:
        if txn.get(UNCLAIMED, db=index.meta) is not None:
            return False
        rows = [int(txn.stat(table)["entries"]) for table in (index.names, index.segments)]
    return sum(rows) <= ROWS_AT_CLOSE_MAX


def read_place(index: Index, txn: Snapshot | Txn) -> JournalPlace | None:
    """Raises FormatError if more than a bit of it is damaged."""
    row = txn.get(PLACE, db=index.meta)
    return None if row is None else JournalPlace.mended(bytes(row))


def read_unclaimed(index: Index, txn: Snapshot | Txn) -> Unclaimed | None:
    """Raises FormatError."""
    row = txn.get(UNCLAIMED, db=index.meta)
    return None if row is None else Unclaimed.decode(bytes(row))
