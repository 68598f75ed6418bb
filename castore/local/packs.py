"""Packs as files: written once by appending (`pack`), read through mmap.

A pack belongs to the process that made it, which holds `flock(LOCK_EX)` on it from its creation
until what it holds is committed: a collector that can't get the lock leaves the pack alone.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterable, Sequence

from castore.errors import FormatError, PackMissing, StoreClosed
from castore.format.pack import PACK_HEADER_BYTES, decode_pack_header
from castore.local.pack import Pack, Placement
from castore.local.pack_files import file_bytes, list_packs, pack_path
from castore.model import Location
from castore.stream.backend import NOTHING_HELD, Held
from castore.stream.codec import Frame
from castore.system import forks
from castore.system.fileio import adopt, adopt_folder, storage_error, sync_folder
from castore.system.forks import ForkLock, Rank
from castore.system.lockfile import LockFile
from castore.system.mapping import Mapping
from castore.wording import counted

PACK_BYTES_MAX = 256 << 20
MAPPINGS_MAX = 512  # kept for the next read; whoever holds one keeps it longer
# Of frames that were read, whose pages stay mapped. What is read again and again at random takes a
# little longer with less; and who watches resident memory, as Dask does, ends a process with more.
READ_BYTES_MAX = 512 << 20
AT_HAND_BYTES_MAX = 64 << 20  # of frames that deltas are made of, whose pages stay mapped


class LocalPacks:
    """The packs folder of one store, shared by all Stores of the process on that path."""

    task_bytes = 2 << 20

    def __init__(self, root: str, store_id: bytes) -> None:
        self.root = root
        self._store = os.path.dirname(root)
        self._store_id = store_id
        self._lock = ForkLock(Rank.PACKS)
        self._closed = False
        self._durable_folders: set[str] = set()
        self._open: Pack | None = None
        self._sealed: set[Pack] = set()  # still held by puts that have not committed
        self._mapped: dict[bytes, Mapping] = {}
        self._at_hand_bytes = self._read_bytes = 0
        self._pid = os.getpid()
        forks.register(self)

    # ------------------------------------------------------------ writing

    def append(self, frames: Sequence[Frame], placement: Placement) -> list[Location]:
        """Write frames at the end of the open pack. They are not durable before
        `placement.sync()`, and no other process may remove them before `release(placement)`."""
        with self._lock:
            self._check_pid()
            if self._closed:
                raise StoreClosed("the store was closed meanwhile: open it again")
            pack = self._open
            if pack is None or not pack.usable:
                self._retire()
                pack = self._open = self._create()
            if pack not in placement.upto:
                placement.upto[pack] = pack.size
                pack.users.add(placement)
            locations = pack.append(frames)
            placement.upto[pack] = pack.size
            if pack.size >= PACK_BYTES_MAX:
                self._retire()
            return locations

    def create(self, placement: Placement) -> Pack:
        """A pack that no other put appends to, for who writes a whole one."""
        with self._lock:
            self._check_pid()
            if self._closed:
                raise StoreClosed("the store was closed meanwhile: open it again")
            pack = self._create()
            self._sealed.add(pack)  # no put will be offered it
            placement.upto[pack] = pack.size
            pack.users.add(placement)
            return pack

    def retire(self) -> None:
        """End the open pack, so that a collector can have what this process is done with."""
        with self._lock:
            self._check_pid()
            self._retire()

    def retire_at_exit(self) -> None:
        """`retire`, for a process that ends without closing the store; unless a thread is amid an
        append, which may never end."""
        if self._lock.acquire(blocking=False):
            try:
                self._check_pid()
                self._retire()
            finally:
                self._lock.release()

    def own(self, placement: Placement) -> Pack:
        """A pack that this put holds the lock of, made if it has none yet: others can see by it
        that the put is alive."""
        with self._lock:
            if not placement.upto:
                self.append([], placement)
            return next(iter(placement.upto))

    def release(self, placement: Placement, *, only: set[Pack] | None = None) -> None:
        """The put has committed, or is over: let go of its packs, or of `only` those."""
        with self._lock:
            for pack in list(placement.upto if only is None else only):
                placement.upto.pop(pack, None)
                pack.users.discard(placement)
            self._close_unused()

    def give_up(self, placement: Placement) -> None:
        """The put has failed: let go of its packs, and end the open one, if it has frames in it, so
        that any collector can have what nobody will commit."""
        with self._lock:
            if self._open in placement.upto:
                self._retire()
            self.release(placement)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            if self._pid == os.getpid():
                self._retire()
                self._close_unused()
            self._mapped.clear()

    def _retire(self) -> None:
        pack, self._open = self._open, None
        if pack is None:
            return
        if pack.named or pack.users:
            pack.seal()
        if pack.users:
            self._sealed.add(pack)
        else:
            pack.close()

    def _close_unused(self) -> None:
        for pack in [pack for pack in self._sealed if not pack.users]:
            pack.close()
            self._sealed.discard(pack)

    def _create(self) -> Pack:
        while True:
            pack_id = os.urandom(16)
            path = self.path(pack_id)
            folder = os.path.dirname(path)
            try:
                self._make_durable(folder)
                file = LockFile(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
            except FileExistsError:
                continue
            except OSError as error:
                raise storage_error(error, path) from error
            try:
                if file.take():
                    adopt(file.fileno(), self._store)
                    # A collector may have taken the empty file before the lock was ours.
                    if os.fstat(file.fileno()).st_nlink:
                        pack = Pack(path, file, self._store_id, pack_id)
                        sync_folder(folder)
                        return pack
                else:  # somebody looks whether it is locked; a collector may be about to take it
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(path)
            except BaseException as error:  # an interrupt, too: its traceback keeps the file
                file.close()
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
                if isinstance(error, OSError):
                    raise storage_error(error, path) from error
                raise
            file.close()

    def _make_durable(self, folder: str) -> None:
        if folder in self._durable_folders:
            return
        # Also where another process has just made them, and not synced yet.
        for made in (self.root, folder):
            with contextlib.suppress(FileExistsError):
                os.mkdir(made, 0o700)
                adopt_folder(made, self._store)
            sync_folder(os.path.dirname(made))
        self._durable_folders.add(folder)

    # ------------------------------------------------------------ reading

    def path(self, pack_id: bytes) -> str:
        return pack_path(self.root, pack_id)

    def mapping(self, pack_id: bytes, end: int) -> Mapping:
        """A mapping of at least the first `end` bytes of a pack. Hold it to keep the bytes, even
        when the pack is removed. Raises PackMissing, or FormatError if it ends before `end`."""
        mapping = self._mapped.get(pack_id)
        # One that has lost pages says so for good, of what was restored since, too.
        if mapping is not None and len(mapping) >= end and not mapping.damaged:
            return mapping
        return self._map(pack_id, end)

    def frames(self, places: Sequence[Location], held: Held) -> Sequence[memoryview]:
        found = []
        pack, mapped = b"", memoryview(b"")  # the last one's: neighbours share it
        for pack_id, offset, stored_bytes, _ in places:
            end = offset + stored_bytes
            if pack_id != pack or len(mapped) < end:
                mapping = held.get(pack_id)
                if mapping is None or len(mapping) < end or mapping.damaged:
                    mapping = self.mapping(pack_id, end)
                pack, mapped = pack_id, memoryview(mapping)
            found.append(mapped[offset:end])
        self._read_bytes += sum([place.stored_bytes for place in places])
        if self._read_bytes > READ_BYTES_MAX:
            # Reads that go on for long would have all packs resident.
            self._read_bytes = 0
            self._unmap_pages()
        return found

    def at_hand(self, place: Location) -> memoryview:
        [frame] = self.frames([place], NOTHING_HELD)
        self._at_hand_bytes += place.stored_bytes
        if self._at_hand_bytes > AT_HAND_BYTES_MAX:
            # A large put reads all of an older object; what is read again is in the page cache.
            self._at_hand_bytes = 0
            self._unmap_pages()
        return frame

    def _unmap_pages(self) -> None:
        for mapping in list(self._mapped.values()):
            mapping.advise_dontneed(0, len(mapping))

    def hold(self, pack_ids: Collection[bytes]) -> Held:
        """Mappings of all that the packs hold now."""
        held = {}
        for pack_id in pack_ids:
            size = file_bytes(self.path(pack_id))
            if size is None:
                raise PackMissing(pack_id)
            mapped = self._mapped.get(pack_id)
            if mapped is not None and len(mapped) > size:
                self._mapped.pop(pack_id, None)  # it was cut short outside
            held[pack_id] = self.mapping(pack_id, size)
        return held

    def let_go(self, places: Sequence[Location], held: Held) -> None:
        """Unmap the pages just read, so that what a large get has mapped stays bounded; they stay
        in the page cache."""
        spans: dict[bytes, tuple[int, int]] = {}
        for pack_id, offset, stored_bytes, _ in places:
            low, high = spans.get(pack_id, (offset, offset))
            spans[pack_id] = min(low, offset), max(high, offset + stored_bytes)
        for pack_id, (low, high) in spans.items():
            if pack_id in held:
                held[pack_id].advise_dontneed(low, high - low)

    def forget(self, *locations: Location) -> None:
        for location in locations:
            self.unmap(location.pack_id)

    def unmap(self, pack_id: bytes) -> None:
        """Keep no mapping of the pack for later reads."""
        self._mapped.pop(pack_id, None)

    def list(self) -> Iterable[tuple[bytes, int]]:
        """(pack id, bytes) of every pack file."""
        for pack_id, path in list_packs(self.root):
            size = file_bytes(path)
            if size is not None:  # a collector may have removed it since it was listed
                yield pack_id, size

    def _map(self, pack_id: bytes, end: int) -> Mapping:
        path = self.path(pack_id)
        try:
            mapping = Mapping(path)
        except FileNotFoundError:
            raise PackMissing(pack_id) from None
        except ValueError as error:  # an empty file can't be mapped
            raise FormatError(f"pack {path} is empty") from error
        except OSError as error:
            raise storage_error(error, path) from error
        if len(mapping) < max(end, PACK_HEADER_BYTES):
            raise FormatError(
                f"pack {path} has {counted(len(mapping), 'byte')}, and should have {end:,}"
            )
        store_id, found = decode_pack_header(memoryview(mapping)[:PACK_HEADER_BYTES])
        if store_id != self._store_id or found != pack_id:
            raise FormatError(
                f"pack {path} is another store's, or another pack: restore it from a backup"
            )
        # The oldest go. In one step, as no iterator of a dict is that other threads put to.
        for old in list(self._mapped)[: max(0, len(self._mapped) - MAPPINGS_MAX + 1)]:
            self._mapped.pop(old, None)
        self._mapped[pack_id] = mapping
        return mapping

    # ------------------------------------------------------------ forks

    def after_fork_in_child(self) -> None:
        # The flocks are the parent's, through the descriptions we share: to unlock here would
        # unlock there. Closing our descriptors does not.
        for pack in [*self._sealed, *([self._open] if self._open else [])]:
            pack.abandon()
        self._sealed.clear()
        self._open = None
        self._pid = os.getpid()

    def _check_pid(self) -> None:
        if self._pid != os.getpid():  # a fork that ran no hooks
            self.after_fork_in_child()
