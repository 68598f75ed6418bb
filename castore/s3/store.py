"""A store under `s3://bucket/prefix`: what it is, opened once per Store. It wires the layers
and delegates; what is where in the bucket, `keys` says.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

from castore.errors import CastoreError, NotLocal
from castore.format.config import StoreConfig
from castore.model import Progress, Stages, StoreStats
from castore.s3.cache.folder import cache_folder
from castore.s3.cache.store import StoreCache
from castore.s3.catalog import S3Catalog
from castore.s3.client.bucket import Bucket
from castore.s3.client.settings import S3Settings
from castore.s3.client.versions import remove_old_versions
from castore.s3.condemned import CondemnedPacks
from castore.s3.creation import create as create_store
from castore.s3.creation import raise_if_lost, read_config, repair_config, store_not_found
from castore.s3.hints import Hints
from castore.s3.keys import listed_packs, name_key
from castore.s3.lease import WriterLease
from castore.s3.namespace.writing import Namespace
from castore.s3.outdated import forget_outdated
from castore.s3.packs import S3Packs
from castore.s3.parts import Parts
from castore.s3.session import S3Session
from castore.s3.stats import count
from castore.s3.uploads import UPLOADS_MAX
from castore.stream.chunker import Chunker, ChunkSizes
from castore.stream.config import new_config
from castore.stream.session import WriteSession
from castore.system.forks import ForkLock, Rank
from castore.system.workers import InFlight, Workers

if TYPE_CHECKING:
    from castore.stream.reports import BackupReport, CheckReport, GcOptions, GcReport, RebuildReport


class S3Store:
    """The layers below one Store on S3."""

    writable = True
    _is_open = False  # not before it is made
    threads = 8  # they wait for requests more than they decode
    compression_level = 3  # what is sent, and paid for each month, costs more than a core

    def __init__(
        self, bucket: Bucket, config: StoreConfig, *, frames_bytes_max: int | None
    ) -> None:
        self.root = bucket.settings.url
        self.config = config
        self._bucket = bucket
        self._requests = Workers(bucket.settings.max_concurrency)
        self._cache = StoreCache(
            cache_folder(config.store_id, bucket.place), frames_bytes_max=frames_bytes_max
        )
        self._hints = Hints(bucket, config.store_id, self._cache, self._requests)
        self._names = Namespace(bucket, config, self._cache)
        self.catalog = S3Catalog(bucket, self._names, config.store_id, self._cache, self._requests)
        self.packs = S3Packs(bucket, self._cache.frames, self._requests)
        self._parts = Parts(
            bucket,
            config,
            self._cache,
            self._names,
            self.catalog,
            self.packs,
            self._hints,
            self._requests,
        )
        self._lock = ForkLock(Rank.STORES)
        self._budget = InFlight(UPLOADS_MAX)
        self._condemned = CondemnedPacks(bucket, config.store_id)
        self._lease: WriterLease | None = None
        self._pid = os.getpid()
        self._is_open = True
        _open.add(self)

    def session(self, workers: Workers, chunker: Chunker, *, level: int, deltas: bool) -> S3Session:
        with self._lock:
            self._drop_parents_uploads()
            before = self._lease
            # One that fails in another thread may end the lease at any moment.
            if before is None or not before.join():
                _end_with_child()
                self._lease = self._new_lease()
                self._lease.join()
                if before is not None:
                    before.close()
            assert self._lease is not None
            return S3Session(
                self._parts,
                self._lease,
                self._budget,
                workers,
                chunker,
                compression_level=level,
                deltas=deltas,
            )

    @contextlib.contextmanager
    def _collector_session(self) -> Iterator[S3Session]:
        """One that copies frames as they are, and is over, with its pins, when it ends."""
        with self._lock:
            self._drop_parents_uploads()
        config = self.config
        chunker = Chunker(
            ChunkSizes(config.chunk_bytes_min, config.chunk_bytes_avg, config.chunk_bytes_max)
        )
        lease = self._new_lease()
        lease.join()
        try:
            session = S3Session(
                self._parts,
                lease,
                self._budget,
                self._requests,
                chunker,
                compression_level=self.compression_level,
                deltas=True,  # it makes none, but what it moves may be a base of later ones
            )
            try:
                yield session
            finally:
                session.close()
        finally:
            lease.close()

    def _drop_parents_uploads(self) -> None:
        """In a forked child, of what is under way nothing ever ends: it is not to be waited for."""
        if self._pid != os.getpid():
            self._budget = InFlight(UPLOADS_MAX)
            self._pid = os.getpid()

    def _new_lease(self) -> WriterLease:
        return WriterLease(self._bucket, self.config.store_id, self._requests, self._condemned)

    def _end_session(self) -> None:
        """What this Store wrote and nobody names any more is garbage as well: further puts begin
        another session, and the pins go with the last put that is under way."""
        with self._lock:
            if self._lease is not None and self._pid == os.getpid():
                self._lease.close()
                self._lease = None

    def check(self, *, fraction: float, progress: Progress | None) -> CheckReport:
        from castore.s3.check.check import open_check  # seldom needed, as are those below

        with open_check(self._parts, Stages(progress)) as check:
            return check.run(fraction)

    def repair(
        self,
        session: Callable[[], WriteSession],
        found: CheckReport | None,
        *,
        packs_are_lost: bool,
        progress: Progress | None,
    ) -> CheckReport:
        from castore.s3.check.repair import repair

        self._end_session()
        return repair(self._parts, session, found, packs_are_lost=packs_are_lost, progress=progress)

    def rebuild_index(self, *, progress: Progress | None) -> RebuildReport:
        from castore.s3.rebuild import rebuild_index

        return rebuild_index(self._parts, progress=progress)

    def back_up(self, path: str, *, progress: Progress | None) -> BackupReport:
        raise NotLocal(f"{self.root} needs no backup of its index: its names are in S3")

    def remove_old_versions(self, name: bytes, *, below: bool) -> int:
        return remove_old_versions(self._bucket.settings, name_key(name), below=below)

    def stats(self) -> StoreStats:
        return count(self._parts)

    def gc(self, options: GcOptions, *, progress: Progress | None) -> GcReport:
        from castore.s3.gc.collect import collect

        ending: set[bytes] = set()
        with self._lock:
            if options.dry_run and self._lease is not None and self._lease.idle:
                ending = {self._lease.id}  # as if it ended
        if not options.dry_run:
            self._end_session()
        report = collect(self._parts, self._collector_session, options, progress, ending)
        if report.packs_removed:
            self._hints.retain(lambda: listed_packs(self._bucket).keys())
        if not options.dry_run:  # whoever collects each day may never be closed
            forget_outdated(self._parts, self._requests)
        return report

    def close(self) -> None:
        self._is_open = False
        _open.discard(self)
        end_dropped()
        try:
            # What is under way may rely on the pins, and has yet to be told of.
            self._requests.close()
        finally:  # also of an interrupt: there is no second try
            try:
                _end(self._parts, None if self._lease is None else self._lease.abandon)
            finally:
                self._names.close()
                self._bucket.close()

    def __del__(self) -> None:
        # Files, lists and transactions of it may go on: what they need stays.
        if self._is_open and self._pid == os.getpid():
            unpin = None if self._lease is None else self._lease.close
            _dropped.append((self._pid, partial(_end, self._parts, unpin)))


# Those that nobody has closed.
_open: weakref.WeakSet[S3Store] = weakref.WeakSet()
# What ends those that were dropped unclosed. Python lets go of what is in a cycle at any moment, in
# any thread, whatever locks that thread holds, and to end one takes locks and requests. What was
# dropped before a fork, by whom it was dropped (a process) ends.
_dropped: deque[tuple[int, Callable[[], None]]] = deque()


def _end(parts: Parts, unpin: Callable[[], None] | None) -> None:
    """Let the pins go, tell others of what was stored, and let go of the cache, which is not to
    grow with all that ever was."""
    closing = Workers(parts.bucket.settings.max_concurrency)
    try:
        unpinned = None if unpin is None else closing.submit(unpin)
        parts.hints.close(closing)
        parts.catalog.listings.close()
        if unpinned is not None:
            unpinned.result()
        forget_outdated(parts, closing)
    finally:
        closing.close()
        parts.cache.close()


def end_dropped() -> None:
    """Do for stores that were dropped unclosed what closing them would have."""
    while _dropped:
        with contextlib.suppress(CastoreError, IndexError):  # another thread was faster
            process, end = _dropped.popleft()
            if process == os.getpid():
                end()


def _at_exit() -> None:
    """Close those that nobody closed: others would not learn what was stored, its pins would stay
    for a week, and this machine would begin a new cache when it starts again."""
    for store in list(_open):
        if store._pid == os.getpid():  # what a child does not use is its parent's
            with contextlib.suppress(CastoreError):
                store.close()
    end_dropped()


atexit.register(_at_exit)


def _end_with_child() -> None:
    """A child of multiprocessing, as the workers of its pools are, ends without what `atexit` was
    told, but not without what multiprocessing was told in it."""
    global _child
    process = sys.modules.get("multiprocessing.process")
    util = sys.modules.get("multiprocessing.util")
    if process is None or util is None or process.parent_process() is None:
        return
    if _child != os.getpid():
        _child = os.getpid()
        util.Finalize(None, _at_exit, exitpriority=0)


_child = 0  # the one of multiprocessing that was told


def open_remote(
    settings: S3Settings,
    *,
    create: bool,
    read_only: bool,
    chunk_bytes_avg: int,
    collision_guard: str | None,
    frames_bytes_max: int | None,
) -> S3Store:
    """The store at `settings`, made if it is not there and `create` is true. Raises StoreNotFound,
    ConfigLost, NotAStore, and what a Bucket raises."""
    end_dropped()
    bucket = Bucket(settings)
    try:
        config = read_config(bucket)
        if config is None:
            if not create or read_only:
                raise_if_lost(bucket)
                raise store_not_found(settings.url)
            config = create_store(bucket, new_config(chunk_bytes_avg, collision_guard))
        return S3Store(bucket, config, frames_bytes_max=frames_bytes_max)
    except BaseException:
        bucket.close()
        raise


def repair_remote_config(settings: S3Settings) -> str:
    """Before a store is repaired that may have lost its castore.json: see `repair_config`."""
    with Bucket(settings) as bucket:
        return repair_config(bucket)
