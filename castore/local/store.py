"""A local store's folder: made once, opened once per process, shared by all Stores on it.

castore.json   what is fixed for its life; it is what makes a folder a store
castore.gc     held by the one process that collects
castore.lock   held shared by every process that has it open, with the pid namespace in it
index/         LMDB
journal/       every change of a name, for when the index is lost
packs/         packs
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from castore.errors import NotAStore, StoreIOError, StoreLocked, StoreNotFound
from castore.format.config import StoreConfig, encode_config
from castore.local.catalog import LocalCatalog
from castore.local.folder import (
    CONFIG,
    check_index_in_place,
    find_config,
    read_config,
    share,
    write_new,
)
from castore.local.journal.files import journal_bytes
from castore.local.journal.log import Journal
from castore.local.packs import LocalPacks
from castore.local.session import LocalSession
from castore.model import Progress, StoreStats
from castore.stream.chunker import Chunker
from castore.stream.config import new_config
from castore.stream.session import WriteSession
from castore.system import forks
from castore.system.fileio import (
    make_durable_folder,
    of_file,
    put_in_place,
    sync_folder,
    typed_errors,
)
from castore.system.forks import ForkLock, Rank
from castore.system.lmdb_env import open_index
from castore.system.lockfile import LockFile
from castore.system.workers import Workers, usable_cores

if TYPE_CHECKING:
    from castore.stream.reports import BackupReport, CheckReport, GcOptions, GcReport, RebuildReport

THREADS_MAX = 8


class LocalStore:
    """The layers below a Store on one folder. `close` it as often as it was opened."""

    threads = min(usable_cores(), THREADS_MAX)
    compression_level = 1

    def __init__(self, root: str, config: StoreConfig, *, read_only: bool) -> None:
        self.root = root
        self.config = config
        self.references = 1
        self._read_only = read_only
        self._lock: LockFile | None = None
        if not read_only:
            self._share()
        try:
            check_index_in_place(root)
            self._index = open_index(os.path.join(root, "index"), create=False, lock_free=read_only)
            try:
                self.journal = Journal(root, config)
                self.catalog = LocalCatalog(self._index, self.journal, config)
                self.packs = LocalPacks(os.path.join(root, "packs"), config.store_id)
            except BaseException:
                self._index.close()
                raise
        except BaseException:
            self._let_go()
            raise
        forks.register(self)

    @property
    def writable(self) -> bool:
        return self._index.writable

    def take_locks(self) -> None:
        """Somebody in this process is to write."""
        if self._read_only:
            self._share()
            self._index.take_locks()
            self.catalog.check_whose()
            self._read_only = False

    def session(
        self, workers: Workers, chunker: Chunker, *, level: int, deltas: bool
    ) -> LocalSession:
        return LocalSession(
            self.catalog,
            self.packs,
            workers,
            self.config,
            chunker,
            compression_level=level,
            deltas=deltas,
        )

    def check(self, *, fraction: float, progress: Progress | None) -> CheckReport:
        from castore.local.check.run import check_local

        return check_local(
            self.root,
            fraction=fraction,
            threads=self.threads,
            progress=progress,
            read_only=self._read_only,
        )

    def repair(
        self,
        session: Callable[[], WriteSession],
        found: CheckReport | None,
        *,
        packs_are_lost: bool,
        progress: Progress | None,
    ) -> CheckReport:
        from castore.local.check.repair import LocalRepair
        from castore.local.check.repair_packs import Parts

        parts = Parts(self.root, self.config, self._index, self.catalog, self.packs, session)
        mend = LocalRepair(parts)
        return mend.check_and_repair(
            found, packs_are_lost=packs_are_lost, threads=self.threads, progress=progress
        )

    def rebuild_index(self, *, progress: Progress | None) -> RebuildReport:
        raise StoreLocked(
            errno.EAGAIN, f"the store {self.root} is open: close it, and call castore.rebuild_index"
        )

    def back_up(self, path: str, *, progress: Progress | None) -> BackupReport:
        from castore.local.backup import back_up

        self.journal.sync()
        return back_up(self.root, path, read_only=self._read_only, progress=progress)

    def remove_old_versions(self, name: bytes, *, below: bool) -> int:
        """A folder keeps none."""
        return 0

    def stats(self) -> StoreStats:
        """From counters that every commit keeps, and the sizes of the pack files."""
        totals, objects, chunks, _, index_bytes = self.catalog.totals()
        packs = [size for _, size in self.packs.list()]
        return StoreStats(
            objects=objects,
            chunks=chunks,
            packs=len(packs),
            logical_bytes=totals.logical_bytes,
            unique_bytes=totals.chunk_raw_bytes + totals.inline_raw_bytes,
            stored_bytes=totals.chunk_stored_bytes + totals.inline_stored_bytes,
            pack_bytes=sum(packs),
            index_bytes=index_bytes,
            journal_bytes=journal_bytes(self.journal.folder),
            deltas=totals.deltas,
            delta_raw_bytes=totals.delta_raw_bytes,
            delta_stored_bytes=totals.delta_stored_bytes,
            delta_bases=totals.delta_bases,
        )

    def gc(self, options: GcOptions, *, progress: Progress | None) -> GcReport:
        """`grace_s`, `alone` and `carry_undeletable` are of no use here: what others rely on
        is known, not guessed."""
        from castore.local.gc.collect import collect  # seldom needed

        return collect(
            self.root,
            self.catalog,
            self.packs,
            seed=self.config.seed,
            options=options,
            progress=progress,
        )

    def close(self) -> None:
        with _registry_lock:
            self.references -= 1
            if self.references > 0:
                return
            try:
                self.packs.close()
                self.journal.close(self._index)
            finally:  # also of an interrupt: there is no second try
                try:
                    for key in [key for key, store in _registry.items() if store is self]:
                        del _registry[key]
                    self._index.close()
                    self.journal.let_go()  # a commit that came in between had opened it again
                finally:
                    self._let_go()

    def keep_lock_to_the_end(self) -> None:
        """Of the process: else Python warns of its file where nobody closed the store."""
        if self._lock is not None and not self._lock.closed:
            self._lock.keep_to_the_end()

    def _share(self) -> None:
        self._lock = share(self.root)

    def _let_go(self) -> None:
        if self._lock is not None:
            self._lock.close_unless_replaced()
        self._lock = None

    def after_fork_in_child(self) -> None:
        # The shared lock is one open file description with the parent's: a descriptor of our own
        # keeps it when the parent exits.
        inherited, self._lock = self._lock, None
        if inherited is not None:
            with contextlib.suppress(OSError, StoreLocked, StoreIOError):
                self._share()
            inherited.close_unless_replaced()


# ---------------------------------------------------------------- opening

_registry: dict[tuple[int, int], LocalStore] = {}
_registry_lock = ForkLock(Rank.STORES)


def _at_exit() -> None:
    """End the packs of stores that nobody closed, as closing would have."""
    for store in list(_registry.values()):
        store.packs.retire_at_exit()
        store.keep_lock_to_the_end()


atexit.register(_at_exit)


def open_local(
    path: str, *, create: bool, read_only: bool, chunk_bytes_avg: int, collision_guard: str | None
) -> LocalStore:
    """The process's one LocalStore on `path`, made if it is not there and `create` is true."""
    root = os.path.realpath(path)
    with _registry_lock, typed_errors(root):
        config = find_config(root)
        if config is None:
            if not create or read_only:
                made = "" if strangers_in(root) else ", or make one with a put"
                raise StoreNotFound(
                    errno.ENOENT, f"there is no store at {root}: check the path{made}"
                )
            _create(root, chunk_bytes_avg, collision_guard)
            config = read_config(root)
            assert config is not None
        status = os.stat(root)
        key = (status.st_dev, status.st_ino)
        store = _registry.get(key)
        if store is not None and store.references:  # else its closing was interrupted
            if not read_only:
                store.take_locks()
            store.references += 1
            return store
        store = _registry[key] = LocalStore(root, config, read_only=read_only)
        return store


def strangers_in(root: str) -> list[str]:
    """What is in the folder, if it is one, besides what a creation that was cut off leaves."""
    if not os.path.isdir(root):
        return []
    found = os.listdir(root)
    begun = any(name.startswith(CONFIG) for name in found)
    return [
        name
        for name in found
        if not name.startswith("castore.") and not (begun and name == "index")
    ]


def store_around(root: str) -> str | None:
    """The store that the folder lies inside, if any."""
    while (above := os.path.dirname(root)) != root:
        if os.path.exists(os.path.join(above, CONFIG)):
            return above
        root = above
    return None


def _create(root: str, chunk_bytes_avg: int, collision_guard: str | None) -> None:
    config = new_config(chunk_bytes_avg, collision_guard)
    around = store_around(root)
    if around is not None:
        raise NotAStore(f"{root} lies inside the store {around}: stores can't be nested")
    strangers = strangers_in(root)
    if os.path.exists(os.path.join(root, CONFIG)):
        return  # another process was faster
    if strangers:
        kind = "an LMDB environment" if "data.mdb" in strangers else "not empty"
        raise NotAStore(
            f"{root} is {kind} and not a castore store: choose a new or an empty folder"
        )
    make_durable_folder(root)
    draft = os.path.join(root, f"{CONFIG}.{os.urandom(8).hex()}")
    try:
        write_new(draft, encode_config(config))
    except OSError as error:
        raise of_file(error, root) from None
    # Before castore.json: a store whose index is missing has lost it. If this fails, the draft
    # stays, and tells the next to try whose index/ this is.
    open_index(os.path.join(root, "index")).close()
    sync_folder(os.path.join(root, "index"))  # also if another process has just made it
    # Of two processes that create it at once, the loser opens what the winner made, whose
    # collection may have taken the draft.
    try:
        put_in_place(draft, os.path.join(root, CONFIG))
    except FileExistsError:
        pass
    except FileNotFoundError:
        if not os.path.exists(os.path.join(root, CONFIG)):
            raise
    with contextlib.suppress(FileNotFoundError):
        os.unlink(draft)
    sync_folder(root)
