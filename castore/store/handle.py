"""A store that is open: its layers, and what each verb asks before it begins."""

from __future__ import annotations

import errno
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from castore.errors import ReadOnlyStore, StoreClosed
from castore.objectfile import discard_dropped
from castore.stream.backend import Backend
from castore.stream.chunker import Chunker, ChunkSizes
from castore.stream.reader import Reader
from castore.stream.session import Unlike, WriteSession
from castore.system.forks import ForkLock, Rank
from castore.system.workers import Workers

DELTA = True
CACHE_BYTES = 32 << 20
READAHEAD_BYTES = 16 << 20


class Handle:
    """What the verbs of a Store have in common: see `castore.Store`."""

    def __init__(
        self,
        backend: Backend,
        *,
        read_only: bool = False,
        compression_level: int | None = None,
        delta: bool = DELTA,
        cache_bytes: int = CACHE_BYTES,
        readahead_bytes: int = READAHEAD_BYTES,
        threads: int | None = None,
        reopen: Callable[[], Handle] | None = None,
    ) -> None:
        """A Store on a kind of store of your own, which it closes; else use `castore.open`.

        The settings are those of `castore.open`. `reopen`, which is pickled in place of the Store,
        opens it again in another process; without it, it can't be pickled.
        """
        self.path = backend.root
        self.read_only = read_only
        self._reopen = reopen
        self._level = backend.compression_level if compression_level is None else compression_level
        self._delta = delta
        self._unlike = Unlike()
        self._readahead_bytes = readahead_bytes
        config = backend.config
        self._backend: Backend | None = backend
        self._closing = ForkLock(Rank.LEAF)
        self._catalog = backend.catalog
        self._config = config
        self._chunker = Chunker(
            ChunkSizes(config.chunk_bytes_min, config.chunk_bytes_avg, config.chunk_bytes_max)
        )
        self._workers = Workers(threads or backend.threads)
        self._reader = Reader(
            backend.catalog, backend.packs, self._workers, config, cache_bytes=cache_bytes
        )

    @property
    def threads(self) -> int:
        """How many threads encode and decode."""
        return self._workers.threads

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._backend is None

    def close(self) -> None:
        """Let go of the store; files opened from it can still be read. Idempotent."""
        backend: Backend | None = None
        try:
            with self._closing:
                backend, self._backend = self._backend, None
            discard_dropped()
            if backend is not None:
                self._workers.close()
        finally:  # also if an interrupt ends the wait for the threads: it can't be closed again
            if backend is not None:
                backend.close()

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<castore.Store {self.path!r}{' closed' if self._backend is None else ''}>"

    def __reduce__(self) -> tuple[Any, ...]:
        if self._reopen is None:
            raise TypeError(f"the store {self.path} can't be pickled: no `reopen` was given")
        return self._reopen, ()

    def _check_open(self) -> Backend:
        if self._backend is None:
            raise StoreClosed(f"the store {self.path} is closed: open it again")
        return self._backend

    def _check_writable(self) -> Backend:
        backend = self._check_open()
        if self.read_only:
            raise ReadOnlyStore(
                errno.EACCES,
                f"the store {self.path} is open for reading only: open it without read_only",
            )
        if not backend.writable:
            raise ReadOnlyStore(
                errno.EACCES,
                f"no permission to write to the store {self.path}: it is another user's, or its "
                "disk is read-only",
            )
        discard_dropped()
        return backend

    def _session(self, *, of_one: bool = False) -> WriteSession:
        """`of_one` object."""
        backend = self._check_writable()
        session = backend.session(
            self._workers, self._chunker, level=self._level, deltas=self._delta
        )
        session.unlike = self._unlike
        if of_one:
            session.expect_one()
        return session
