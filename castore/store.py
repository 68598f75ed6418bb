"""Opening a store, and its verbs: validate, delegate.

The knobs have their defaults here and nowhere else.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, Literal, Protocol, overload

from castore.catalog.operations import Copy, Delete, DeletePrefix, Operation, Publish
from castore.chunker import Chunker, ChunkSizes
from castore.errors import NameExists, NameNotFound, ReadOnlyStore, StoreClosed
from castore.format import Record
from castore.local import LocalStore, open_local, refuse_open_store_paths
from castore.mapping import Mapping
from castore.model import (
    ObjectInfo,
    Progress,
    RangePlan,
    StoreStats,
    encode_name,
    encode_prefix,
)
from castore.objectfile import ObjectReader, ObjectWriterFile
from castore.reader import Reader, Writable
from castore.session import WriteSession
from castore.workers import Workers, usable_cores
from castore.writer import INLINE_BYTES_MAX, ObjectWriter, read_blocks

__all__ = ["Store", "Transaction", "open_store", "refuse_open_store_paths"]

StrPath = str | os.PathLike[str]
MODE_DEFAULT = 0o644
THREADS_MAX = 8


class Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


def open_store(
    path: StrPath,
    *,
    create: bool = True,
    read_only: bool = False,
    chunk_bytes_avg: int = 65536,
    collision_guard: str | None = None,
    compression_level: int = 1,
    cache_bytes: int = 32 << 20,
    threads: int | None = None,
) -> Store:
    """Open the store in a local folder, and make it first if it is not there and `create` is true.

    `chunk_bytes_avg` (bytes, a multiple of 256) and `collision_guard` (None or "sha256") are
    fixed when a store is made, and ignored afterwards. `compression_level` is zstd's, for chunks
    that are new; `cache_bytes` bounds the memory for chunks decoded last; `threads` defaults to
    the usable cores, 8 at the most.

    Raises StoreNotFound, NotAStore, UnsupportedFormat, StoreLocked, StoreFull, PermissionError.
    """
    path = os.fspath(path)
    if not isinstance(path, str):
        raise TypeError(f"a store's path is a str, not {type(path).__name__}")
    if "://" in path:
        scheme = path.partition("://")[0]
        if scheme != "file":
            raise ValueError(f"{scheme}:// stores are not supported by this version: use a path")
        path = path.removeprefix("file://")
    if not path:
        raise ValueError("a store's path must not be empty")
    if not -7 <= compression_level <= 22:
        raise ValueError(f"compression_level is from -7 to 22, not {compression_level}")
    if cache_bytes < 0 or (threads is not None and threads < 1):
        raise ValueError("cache_bytes must not be negative, and threads must be at least 1")
    options = {
        "compression_level": compression_level,
        "cache_bytes": cache_bytes,
        "threads": threads,
    }
    local = open_local(
        path,
        create=create,
        read_only=read_only,
        chunk_bytes_avg=chunk_bytes_avg,
        collision_guard=collision_guard,
    )
    return Store(local, read_only=read_only, options=options)


class Store:
    """Objects by name. Safe for many threads and processes at once; opens itself anew in a forked
    child and where it is unpickled. Names are 1-480 bytes of UTF-8; sizes and offsets are bytes;
    byte ranges are half-open `(begin, end)`."""

    def __init__(self, local: LocalStore, *, read_only: bool, options: dict[str, Any]) -> None:
        self.path = local.root
        self.read_only = read_only
        self._options = options
        self._level: int = options["compression_level"]
        config = local.config
        self._local: LocalStore | None = local
        self._catalog = local.catalog
        self._chunker = Chunker(ChunkSizes(config.chunk_min, config.chunk_avg, config.chunk_max))
        self._workers = Workers(options["threads"] or min(usable_cores(), THREADS_MAX))
        self._reader = Reader(
            local.catalog,
            local.packs,
            self._workers,
            config,
            cache_bytes=options["cache_bytes"],
        )

    # ------------------------------------------------------------ put

    def put(
        self,
        name: str,
        file: StrPath | Readable,
        *,
        if_absent: bool = False,
        progress: Progress | None = None,
    ) -> ObjectInfo:
        """Store a file, or what a binary file object has left to read, under the name.

        A path's permission bits are kept; the object of a file object gets 0644. Durable when
        this returns; visible whole or not at all.

        Raises FileNotFoundError, IsADirectoryError (of the file); NameExists, if the name is taken
        and `if_absent`; SourceChanged; StoreFull; ReadOnlyStore; InvalidName.
        """
        with self.transaction() as transaction:
            return transaction.put(name, file, if_absent=if_absent, progress=progress)

    def puts(
        self,
        name: str,
        data: bytes | bytearray | memoryview,
        *,
        if_absent: bool = False,
        mode: int = MODE_DEFAULT,
    ) -> ObjectInfo:
        """Store bytes, or any contiguous buffer, under the name. Raises as `put` does; TypeError
        for a str."""
        with self.transaction() as transaction:
            return transaction.puts(name, data, if_absent=if_absent, mode=mode)

    # ------------------------------------------------------------ get

    def gets(self, name: str, byte_range: Sequence[int] | None = None) -> bytes:
        """The object's bytes, or those of the half-open range `(begin, end)` of it.

        An end past the size is clamped, a begin at or past it gives b""; None and `[]` mean all.
        Reads only the chunks that cover the range.

        Raises NameNotFound, InvalidRange (before anything is read), ChunkCorrupt, PackMissing.
        """
        self._check_open()
        return self._reader.ranges(encode_name(name), [byte_range])[0]

    def gets_many(self, name: str, byte_ranges: Sequence[Sequence[int] | None]) -> list[bytes]:
        """The bytes of each range, all of the same version of the object. Raises as `gets` does."""
        self._check_open()
        return self._reader.ranges(encode_name(name), list(byte_ranges))

    def get(
        self, name: str, file: StrPath | Writable, *, progress: Progress | None = None
    ) -> ObjectInfo:
        """Write the object to a path, or to a binary file object.

        A path is replaced atomically and gets the object's permission bits; a folder means a file
        in it with the last part of the name. It is not synced to disk, as `cp` does not.

        Raises NameNotFound, ChunkCorrupt, PackMissing, and what writing to the file raises.
        """
        self._check_open()
        pinned = self._reader.pin(encode_name(name))
        info = _info(name, pinned.record)
        if progress is not None:
            progress.set_size(info.size)
        if not isinstance(file, (str, os.PathLike)):
            self._reader.copy_to_stream(pinned, file, progress)
            return info
        path = os.fspath(file)
        if os.path.isdir(path):
            path = os.path.join(path, name.rsplit("/", 1)[-1])
        refuse_open_store_paths(path)
        with _replacing(path, info.mode) as fd:
            self._reader.copy_to_file(pinned, fd, progress)
        return info

    # ------------------------------------------------------------ file objects

    @overload
    def open(self, name: str, mode: Literal["rb"] = "rb") -> ObjectReader: ...
    @overload
    def open(self, name: str, mode: Literal["wb", "xb"]) -> ObjectWriterFile: ...
    @overload
    def open(self, name: str, mode: str) -> ObjectReader | ObjectWriterFile: ...

    def open(self, name: str, mode: str = "rb") -> ObjectReader | ObjectWriterFile:
        """The object as a binary file object.

        "rb" reads one version of it, seekably, whatever happens to the name meanwhile. "wb"
        writes a new one, published when it is closed and not at all if the `with` block raises;
        "xb" refuses a name that is taken, now and when it is closed.

        Raises NameNotFound, NameExists, ReadOnlyStore, ValueError for another mode.
        """
        self._check_open()
        key = encode_name(name)
        if mode in ("rb", "r"):
            pinned = self._reader.pin(key)
            return ObjectReader(self._reader, pinned, _info(name, pinned.record))
        if mode not in ("wb", "xb"):
            raise ValueError(f"mode is 'rb', 'wb' or 'xb', not {mode!r}")
        session = self._session()
        if mode == "xb" and self._catalog.record(key) is not None:
            raise NameExists(name)

        def publish(writer: ObjectWriter) -> ObjectInfo:
            try:
                record, draft = writer.finish(MODE_DEFAULT)
                session.commit([Publish(key, record, draft, if_absent=mode == "xb")])
                return _info(name, record)
            finally:
                session.close()

        def discard(writer: ObjectWriter) -> None:
            writer.abandon()
            session.close()

        return ObjectWriterFile(ObjectWriter(session), publish, discard)

    # ------------------------------------------------------------ names

    def info(self, name: str) -> ObjectInfo:
        """Raises NameNotFound."""
        self._check_open()
        record = self._catalog.record(encode_name(name))
        if record is None:
            raise NameNotFound(name)
        return _info(name, record)

    def size(self, name: str) -> int:
        """Bytes of the object. Raises NameNotFound."""
        return self.info(name).size

    def exists(self, name: str) -> bool:
        """Whether an object has exactly this name."""
        self._check_open()
        return self._catalog.record(encode_name(name)) is not None

    def names(self, prefix: str = "") -> Iterator[str]:
        """The names that start with `prefix`, sorted by their UTF-8 bytes. Read in pages: names
        that come and go meanwhile may be missed or seen."""
        return (info.name for info in self.list(prefix))

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """The objects whose names start with `prefix`, as `names`."""
        self._check_open()
        encoded = encode_prefix(prefix)

        def pages() -> Iterator[ObjectInfo]:
            after = b""
            while page := self._catalog.page(encoded, after):
                for name, record in page:
                    yield _info(name.decode(), record)
                after = page[-1][0]

        return pages()

    def copy(self, source: str, target: str, *, if_absent: bool = False) -> None:
        """Give the object a second name: no data moves. Raises NameNotFound, NameExists."""
        with self.transaction() as transaction:
            transaction.copy(source, target, if_absent=if_absent)

    def rename(self, source: str, target: str, *, if_absent: bool = False) -> None:
        """Move the object to another name, in one step. Raises NameNotFound, NameExists."""
        with self.transaction() as transaction:
            transaction.rename(source, target, if_absent=if_absent)

    def delete(self, name: str) -> None:
        """Remove the name. Its bytes stay until they are collected. Raises NameNotFound."""
        with self.transaction() as transaction:
            transaction.delete(name)

    def delete_prefix(self, prefix: str) -> int:
        """Remove every name that starts with `prefix`, in one step; how many there were."""
        with self.transaction() as transaction:
            transaction.delete_prefix(prefix)
        return transaction.deleted

    def transaction(self) -> Transaction:
        """`with store.transaction() as t: t.put(...); t.delete(...)`: all of it in one commit at
        the end, or, if the block raises, none."""
        return Transaction(self._session(), self._catalog.record)

    # ------------------------------------------------------------ the store

    def explain_range(self, name: str, byte_range: Sequence[int] | None = None) -> RangePlan:
        """What `gets(name, byte_range)` would touch. Raises as `gets` does."""
        self._check_open()
        return self._reader.explain(encode_name(name), byte_range)

    def stats(self) -> StoreStats:
        """Totals, from counters that every commit keeps: it costs the same for any size."""
        local = self._check_open()
        totals, objects, chunks, _, index_bytes = self._catalog.totals()
        packs = list(local.packs.list())
        return StoreStats(
            objects=objects,
            chunks=chunks,
            packs=len(packs),
            logical_bytes=totals.logical_bytes,
            unique_bytes=totals.chunk_raw_bytes + totals.inline_raw_bytes,
            stored_bytes=totals.chunk_stored_bytes + totals.inline_stored_bytes,
            pack_bytes=sum(size for _, size in packs),
            index_bytes=index_bytes,
        )

    def close(self) -> None:
        """Let go of the store; files opened from it can still be read. Idempotent."""
        local, self._local = self._local, None
        if local is not None:
            self._workers.close()
            local.close()

    def __enter__(self) -> Store:
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
        return f"<castore.Store {self.path!r}{' closed' if self._local is None else ''}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickle, (self.path, self.read_only, self._options)

    def _check_open(self) -> LocalStore:
        if self._local is None:
            raise StoreClosed(f"the store {self.path} is closed")
        return self._local

    def _session(self) -> WriteSession:
        local = self._check_open()
        if self.read_only or not local.writable:
            raise ReadOnlyStore(errno.EACCES, f"the store {self.path} is open for reading only")
        return WriteSession(
            local.catalog,
            local.packs,
            self._workers,
            local.config,
            self._chunker,
            compression_level=self._level,
        )


class Transaction:
    """Puts and changes of names that become visible together, when the `with` block ends. Its
    operations apply in their order; reading the store meanwhile shows none of them."""

    def __init__(self, session: WriteSession, record: Callable[[bytes], Record | None]) -> None:
        self.deleted = 0  # names deleted, once it is committed
        self._session = session
        self._record = record
        self._operations: list[Operation] = []
        self._open = True

    def put(
        self,
        name: str,
        file: StrPath | Readable,
        *,
        if_absent: bool = False,
        progress: Progress | None = None,
    ) -> ObjectInfo:
        """As Store.put; visible at the end of the block."""
        self._check(name, if_absent)
        with self._writing(progress) as writer:
            if isinstance(file, (str, os.PathLike)):
                mode = _write_path(writer, os.fspath(file), progress)
            else:
                mode = MODE_DEFAULT
                for block in read_blocks(file.read):
                    writer.write(block)
            return self._publish(name, writer, mode, if_absent)

    def puts(
        self,
        name: str,
        data: bytes | bytearray | memoryview,
        *,
        if_absent: bool = False,
        mode: int = MODE_DEFAULT,
    ) -> ObjectInfo:
        """As Store.puts; visible at the end of the block."""
        if isinstance(data, str):
            raise TypeError("data is bytes or another buffer, not str: encode it first")
        self._check(name, if_absent)
        with self._writing(None) as writer, memoryview(data) as view:
            writer.write(view)
            return self._publish(name, writer, mode, if_absent)

    def copy(self, source: str, target: str, *, if_absent: bool = False) -> None:
        """As Store.copy; a missing source raises NameNotFound at the end of the block."""
        keys = encode_name(source), self._check(target, False)
        self._operations.append(Copy(*keys, time.time_ns(), if_absent))

    def rename(self, source: str, target: str, *, if_absent: bool = False) -> None:
        """As Store.rename; a missing source raises NameNotFound at the end of the block."""
        keys = encode_name(source), self._check(target, False)
        self._operations.append(Copy(*keys, time.time_ns(), if_absent, rename=True))

    def delete(self, name: str) -> None:
        """As Store.delete; a missing name raises NameNotFound at the end of the block."""
        self._operations.append(Delete(self._check(name, False)))

    def delete_prefix(self, prefix: str) -> None:
        """As Store.delete_prefix."""
        self._check("prefix", False)
        self._operations.append(DeletePrefix(encode_prefix(prefix)))

    def __enter__(self) -> Transaction:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._open = False
        try:
            if error is None and self._operations:
                self.deleted = self._session.commit(self._operations)
        finally:
            self._session.close()

    def _check(self, name: str, if_absent: bool) -> bytes:
        if not self._open:
            raise StoreClosed("the transaction has ended")
        key = encode_name(name)
        # The commit decides; this only spares storing what can't be published.
        if if_absent and self._record(key) is not None:
            raise NameExists(name)
        return key

    @contextlib.contextmanager
    def _writing(self, progress: Progress | None) -> Iterator[ObjectWriter]:
        writer = ObjectWriter(self._session, progress)
        try:
            yield writer
        except BaseException:
            writer.abandon()
            raise

    def _publish(self, name: str, writer: ObjectWriter, mode: int, if_absent: bool) -> ObjectInfo:
        record, draft = writer.finish(mode)
        self._operations.append(Publish(encode_name(name), record, draft, if_absent))
        return _info(name, record)


def _write_path(writer: ObjectWriter, path: str, progress: Progress | None) -> int:
    """Feed the file to the writer; its permission bits."""
    refuse_open_store_paths(path)
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        status = os.fstat(fd)
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, "is a folder, not a file", path)
        # Files of /proc claim to be empty; only one that claims a size can be mapped. Without the
        # extension, a mapping that is cut short would kill the process.
        mappable = stat.S_ISREG(status.st_mode) and status.st_size > INLINE_BYTES_MAX
        if progress is not None and stat.S_ISREG(status.st_mode):
            progress.set_size(status.st_size)
        if mappable and Mapping.guarded:
            writer.write_file(fd, status.st_size)
        else:
            with os.fdopen(fd, "rb", buffering=0, closefd=False) as file:
                for block in read_blocks(file.read):
                    writer.write(block)
        return stat.S_IMODE(status.st_mode)
    finally:
        os.close(fd)


@contextlib.contextmanager
def _replacing(path: str, mode: int) -> Iterator[int]:
    """A descriptor of a new file that takes `path`'s place if the block succeeds."""
    folder, name = os.path.split(path)
    if not name:
        raise IsADirectoryError(errno.EISDIR, "is a folder that does not exist", path)
    draft = os.path.join(folder, f".{name[:200]}.{secrets.token_hex(6)}")
    fd = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        try:
            yield fd
            os.fchmod(fd, mode)
        finally:
            os.close(fd)
        os.rename(draft, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(draft)
        raise


def _info(name: str, record: Record) -> ObjectInfo:
    return ObjectInfo(
        name,
        record.size,
        record.mtime_ns / 1e9,
        record.mode,
        record.etag.hex(),
        record.chunks,
        record.stored_bytes,
    )


def _unpickle(path: str, read_only: bool, options: dict[str, Any]) -> Store:
    return open_store(path, create=False, read_only=read_only, **options)
