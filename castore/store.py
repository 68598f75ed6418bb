"""Opening a store, and its verbs: validate, delegate.

The knobs have their defaults here and nowhere else.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, overload

from castore.errors import CastoreError, NameExists, NameNotFound, ReadOnlyStore, StoreClosed
from castore.local.store import open_local
from castore.model import (
    NAME_BYTES_MAX,
    DirEntry,
    Kind,
    ObjectInfo,
    Progress,
    RangePlan,
    StoreStats,
    encode_name,
    encode_prefix,
)
from castore.objectfile import ObjectReader, ObjectWriterFile, discard_dropped
from castore.stream.appending import begin_as
from castore.stream.backend import Backend
from castore.stream.chunker import Chunker, ChunkSizes
from castore.stream.operations import Publish
from castore.stream.reader import Pinned, Reader
from castore.stream.session import WriteSession
from castore.stream.sourcefile import has_content
from castore.stream.writer import ObjectWriter
from castore.system.fileio import Writable, descriptor_of, new_file_mode, of_file
from castore.system.forks import ForkLock, Rank
from castore.system.open_folders import refuse_open_store_paths
from castore.system.outfolder import replacing
from castore.system.workers import Workers
from castore.transaction import Readable, StrPath, Transaction, object_info
from castore.urls import local_folder

if TYPE_CHECKING:  # loaded by those who need it
    from castore.stream.reports import BackupReport, CheckReport, GcReport, RebuildReport
    from castore.transfer import TransferReport

__all__ = ["Store", "Transaction", "open_store"]


def open_store(
    url_or_path: StrPath,
    *,
    create: bool = True,
    read_only: bool = False,
    chunk_bytes_avg: int = 65536,
    collision_guard: str | None = None,
    compression_level: int = 1,
    cache_bytes: int = 32 << 20,
    readahead_bytes: int = 16 << 20,
    disk_cache_bytes: int | None = None,
    threads: int | None = None,
    endpoint_url: str | None = None,
    region: str | None = None,
    profile: str | None = None,
    addressing_style: str | None = None,
    sse: str | None = None,
    sse_kms_key_id: str | None = None,
    storage_class: str | None = None,
    upload_checksum: str | None = None,
    connect_timeout_s: float | None = None,
    read_timeout_s: float | None = None,
    max_concurrency: int | None = None,
) -> Store:
    """Open the store in a local folder or at `s3://bucket/prefix`.

    It is made if it is not there and `create` is true. Close it with `close`, or use `with`.

    Fixed when a store is made, and ignored afterwards:

    - `chunk_bytes_avg`: the average chunk, in bytes, a multiple of 256. The smallest is a quarter
      of that, the largest four times it.
    - `collision_guard`: None, or "sha256" for bytes from people who are not trusted.

    For this Store object:

    - `read_only`: nothing of the store is written to.
    - `compression_level`: zstd's, -7 to 22, for chunks that are new.
    - `cache_bytes`: the most memory for chunks decoded last, in bytes.
    - `readahead_bytes`: the most that each open file decodes ahead of a sequential reader, in bytes
      (0: nothing).
    - `threads`: how many encode and decode. By default one per core, within a limit; on S3 8.
    - `disk_cache_bytes`: on S3, the most frames kept on disk, in bytes (0: none; by default 10 GiB,
      or a tenth of the free disk if that is less).

    The others are settings of S3, and a folder takes none of them: the README lists them. They may
    also come from the URL's query (`?endpoint_url=...&region=...`) or the environment, in that
    order. `connect_timeout_s` and `read_timeout_s` are in seconds, `max_concurrency` counts
    requests in flight.

    Raises StoreNotFound, NotAStore, UnsupportedFormat, StoreLocked, StoreFull, PermissionError,
    ValueError for a setting that can't be; on S3 also AccessDenied, CredentialsError, WrongRegion,
    EndpointUnreachable, RemoteError.

    >>> with castore.open("folder/store") as store:
    ...     store.puts("greeting", b"hello").size
    5
    >>> castore.open("nowhere", create=False)
    Traceback (most recent call last):
    castore.errors.StoreNotFound: ...
    """
    url = os.fspath(url_or_path)
    if not isinstance(url, str):
        raise TypeError(f"a store's path is a str, not {type(url).__name__}")
    if not -7 <= compression_level <= 22:
        raise ValueError(f"compression_level is from -7 to 22, not {compression_level}")
    if min(cache_bytes, readahead_bytes, disk_cache_bytes or 0) < 0:
        raise ValueError("cache_bytes, readahead_bytes and disk_cache_bytes must not be negative")
    if threads is not None and threads < 1:
        raise ValueError("threads must be at least 1")
    remote = {
        "endpoint_url": endpoint_url,
        "region": region,
        "profile": profile,
        "addressing_style": addressing_style,
        "sse": sse,
        "sse_kms_key_id": sse_kms_key_id,
        "storage_class": storage_class,
        "upload_checksum": upload_checksum,
        "connect_timeout_s": connect_timeout_s,
        "read_timeout_s": read_timeout_s,
        "max_concurrency": max_concurrency,
    }
    options: dict[str, Any] = {
        "compression_level": compression_level,
        "cache_bytes": cache_bytes,
        "readahead_bytes": readahead_bytes,
        "disk_cache_bytes": disk_cache_bytes,
        "threads": threads,
        **{name: value for name, value in remote.items() if value is not None},
    }
    path = local_folder(url)
    backend: Backend
    if path is None:
        from castore.s3.client.settings import parse_settings
        from castore.s3.store import open_remote  # loads boto3

        backend = open_remote(
            parse_settings(url, **remote),
            create=create,
            read_only=read_only,
            chunk_bytes_avg=chunk_bytes_avg,
            collision_guard=collision_guard,
            frames_bytes_max=disk_cache_bytes,
        )
    else:
        strangers = [name for name, value in remote.items() if value is not None]
        if strangers:
            raise ValueError(f"{path} is no store on S3, which alone has {', '.join(strangers)}")
        backend = open_local(
            path,
            create=create,
            read_only=read_only,
            chunk_bytes_avg=chunk_bytes_avg,
            collision_guard=collision_guard,
        )
    discard_dropped()
    return Store(
        backend,
        read_only=read_only,
        compression_level=compression_level,
        cache_bytes=cache_bytes,
        readahead_bytes=readahead_bytes,
        threads=threads,
        reopen=partial(
            open_store,
            backend.root if path is not None else url,
            create=False,
            read_only=read_only,
            **options,
        ),
    )


class Store:
    """Objects by name, in a folder or on S3; `castore.open` makes one.

    Safe for many threads and processes at once; opens itself anew in a forked child and where it is
    unpickled.

    A name is 1 to 480 bytes of UTF-8, with no NUL, no `/` at the start, and no `.` or `..` between
    slashes; anything else raises InvalidName. Sizes and offsets are in bytes, byte ranges
    half-open: `(begin, end)` has the byte at `begin` and not the one at `end`. A store that was
    closed raises StoreClosed. `progress`, where it is taken, is told bytes, as fsspec's callbacks
    are.

    In the examples `store` is a new one.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        read_only: bool = False,
        compression_level: int = 1,
        cache_bytes: int = 32 << 20,
        readahead_bytes: int = 16 << 20,
        threads: int | None = None,
        reopen: Callable[[], Store] | None = None,
    ) -> None:
        """A Store on a kind of store of your own, which it closes; else use `castore.open`.

        The settings are those of `castore.open`. `reopen`, which is pickled in place of the Store,
        opens it again in another process; without it, it can't be pickled.
        """
        self.path = backend.root
        self.read_only = read_only
        self._reopen = reopen
        self._level = compression_level
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
            backend.catalog,
            backend.packs,
            self._workers,
            config,
            cache_bytes=cache_bytes,
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

        A path's permission bits are kept; the object of a file object gets those of a new file
        (0666, less the umask). Durable when this returns; visible whole or not at all. A file that
        is changed while it is read is read again; one that only grows is stored as it was when it
        was opened.

        Raises FileNotFoundError, IsADirectoryError (of the file); NameExists, if the name is taken
        and `if_absent`; SourceChanged, if the file is cut short or does not hold still; StoreFull;
        ReadOnlyStore; InvalidName.

        >>> store.put("dumps/monday.sql", "monday.sql").size
        20
        >>> store.put("dumps/monday.sql", "monday.sql", if_absent=True)
        Traceback (most recent call last):
        castore.errors.NameExists: ...
        """
        with self.transaction() as transaction:
            return transaction.put(name, file, if_absent=if_absent, progress=progress)

    def puts(
        self,
        name: str,
        data: bytes | bytearray | memoryview,
        *,
        if_absent: bool = False,
        mode: int | None = None,
    ) -> ObjectInfo:
        """Store bytes, or any contiguous buffer, under the name.

        `mode` is its permission bits, by default those of a new file (0666, less the umask). Raises
        as `put` does; TypeError for a str; ValueError for a mode that is more than such bits.

        >>> info = store.puts("greeting", b"hello, world", mode=0o600)
        >>> info.size, oct(info.mode)
        (12, '0o600')
        """
        with self.transaction() as transaction:
            return transaction.puts(name, data, if_absent=if_absent, mode=mode)

    # ------------------------------------------------------------ get

    def gets(self, name: str, byte_range: Sequence[int] | None = None) -> bytes:
        """The object's bytes, or those of the half-open range `(begin, end)` of it.

        An end past the size is clamped, a begin at or past it gives b""; None and `[]` mean all.
        Reads only the chunks that cover the range.

        Raises NameNotFound, InvalidRange (before anything is read), ChunkCorrupt, PackMissing.

        >>> _ = store.puts("greeting", b"hello, world")
        >>> store.gets("greeting", (7, 12))
        b'world'
        >>> store.gets("greeting", (7, 1_000_000))
        b'world'
        >>> store.gets("no such name")
        Traceback (most recent call last):
        castore.errors.NameNotFound: [Errno 2] no object is named 'no such name'
        """
        self._check_open()
        return self._reader.ranges(encode_name(name), [byte_range])[0]

    def gets_many(self, name: str, byte_ranges: Sequence[Sequence[int] | None]) -> list[bytes]:
        """The bytes of each half-open range, all of the same version of the object.

        Ranges close to each other are fetched together. Raises as `gets` does.

        >>> _ = store.puts("greeting", b"hello, world")
        >>> store.gets_many("greeting", [(7, 12), (0, 5)])
        [b'world', b'hello']
        """
        self._check_open()
        return self._reader.ranges(encode_name(name), list(byte_ranges))

    def gets_ranges(
        self, wanted: Sequence[tuple[str, Sequence[int] | None]]
    ) -> list[bytes | Exception]:
        """The bytes of each `(name, half-open range)`, in order, several objects at once.

        Those of one object are of one version, and one plan. What can't be read has the exception
        that `gets_many` would raise for its object in place of its bytes.

        >>> _ = store.puts("greeting", b"hello, world")
        >>> store.gets_ranges([("greeting", (0, 5)), ("absent", None), ("greeting", (7, 12))])
        [b'hello', NameNotFound(2, "no object is named 'absent'"), b'world']
        """
        self._check_open()
        places: dict[str, list[int]] = {}
        for place, (name, _) in enumerate(wanted):
            places.setdefault(name, []).append(place)

        def read(name: str) -> Sequence[bytes | Exception]:
            try:
                return self.gets_many(name, [wanted[place][1] for place in places[name]])
            except Exception as error:
                return [error] * len(places[name])

        found: list[bytes | Exception] = [b""] * len(wanted)
        parts = map(read, places) if len(places) == 1 else self._workers.map_ahead(read, places)
        for ats, each in zip(places.values(), parts, strict=True):
            for at, part in zip(ats, each, strict=True):
                found[at] = part
        return found

    def get(
        self, name: str, file: StrPath | Writable, *, progress: Progress | None = None
    ) -> ObjectInfo:
        """Write the object to a path, or to a binary file object.

        A path is replaced atomically and gets the object's permission bits (but for setuid, setgid
        and sticky); a folder means a file in it with the last part of the name; a device, a pipe or
        an open descriptor (`/dev/stdout`) is written to. Nothing is synced to disk: as with `cp`,
        the system does that in its own time.

        Raises NameNotFound, ChunkCorrupt, PackMissing, and what writing to the file raises.

        >>> _ = store.put("dumps/monday.sql", "monday.sql")
        >>> store.get("dumps/monday.sql", "restored.sql").size
        20
        """
        self._check_open()
        pinned = self._reader.pin(encode_name(name))
        info = object_info(name, pinned.record)
        if progress is not None:
            progress.set_size(info.size)
        if not isinstance(file, (str, os.PathLike)):
            self._reader.copy_to_stream(pinned, file, progress)
            return info
        path = os.fspath(file)
        if os.path.isdir(path):
            path = os.path.join(path, name.rsplit("/", 1)[-1])
        if not path or path.endswith(os.sep):
            raise FileNotFoundError(errno.ENOENT, "there is no such folder", path)
        descriptor = descriptor_of(path)
        if descriptor is not None:
            with _errors_of(path), open(os.dup(descriptor), "wb", buffering=0) as stream:
                self._reader.copy_to_stream(pinned, stream, progress)
            return info
        path = os.path.realpath(path)
        refuse_open_store_paths(path)
        if os.path.exists(path) and not os.path.isfile(path):
            with _errors_of(path), open(path, "wb", buffering=0) as stream:
                self._reader.copy_to_stream(pinned, stream, progress)
            return info
        folder = os.path.dirname(path)
        with _errors_of(path if os.path.isdir(folder) else folder), replacing(path) as draft:
            self._reader.copy_to_file(pinned, draft.fd, progress)
            draft.finish(info.mode)
        return info

    def get_into(self, name: str, fd: int, *, progress: Progress | None = None) -> ObjectInfo:
        """Write the object to an empty regular file that is open at the descriptor `fd`.

        Its mode and time stay as they are. Raises as `get` does.
        """
        self._check_open()
        pinned = self._reader.pin(encode_name(name))
        info = object_info(name, pinned.record)
        if progress is not None:
            progress.set_size(info.size)
        self._reader.copy_to_file(pinned, fd, progress)
        return info

    def has_content(self, info: ObjectInfo, fd: int) -> bool:
        """Whether the regular file open at `fd` has the bytes of this version of an object.

        The file is read and hashed, and the store is not.
        """
        return has_content(
            fd,
            info.size,
            bytes.fromhex(info.etag),
            inline=info.chunks == 0,
            chunker=self._chunker,
            config=self._config,
        )

    # ------------------------------------------------------------ file objects

    @overload
    def open(self, name: str, mode: Literal["rb"] = "rb") -> ObjectReader: ...
    @overload
    def open(self, name: str, mode: Literal["wb", "xb", "ab"]) -> ObjectWriterFile: ...
    @overload
    def open(self, name: str, mode: str) -> ObjectReader | ObjectWriterFile: ...

    def open(self, name: str, mode: str = "rb") -> ObjectReader | ObjectWriterFile:
        """The object as a binary file object.

        "rb" reads one version of it, seekably, whatever happens to the name meanwhile. "wb" writes
        a new one, published when it is closed and not at all if the `with` block raises; "xb"
        refuses a name that is taken, now and when it is closed. "ab" writes one that begins as the
        object there is, if there is one, and keeps its mode bits: no data moves but for the last
        chunk. It is published over that version and no other: ObjectChanged if the name maps to
        other bytes when it is closed, NameExists if there was no such name and now is.

        Raises NameNotFound, NameExists, ObjectChanged, ReadOnlyStore, ValueError for another mode.

        >>> with store.open("log", "wb") as file:
        ...     file.write(b"one line")
        8
        >>> with store.open("log") as file:
        ...     file.read(3)
        b'one'
        """
        self._check_open()
        key = encode_name(name)
        if mode in ("rb", "r"):
            pinned = self._reader.pin(key)
            return ObjectReader(
                self._reader,
                pinned,
                object_info(name, pinned.record),
                readahead_bytes=self._readahead_bytes,
            )
        if mode not in ("wb", "xb", "ab"):
            raise ValueError(f"mode is 'rb', 'wb', 'xb' or 'ab', not {mode!r}")
        self._check_writable()
        if mode == "xb" and self._catalog.record(key) is not None:
            raise NameExists(name)
        old = self._pinned(key) if mode == "ab" else None
        over = None if old is None else old.record
        if_absent = mode == "xb" or (mode == "ab" and over is None)
        session = self._session()

        def publish(writer: ObjectWriter) -> ObjectInfo:
            try:
                record, draft = writer.finish(new_file_mode() if over is None else over.mode)
                session.commit([Publish(key, record, draft, if_absent, over)])
                return object_info(name, record)
            finally:
                session.close()

        def discard(writer: ObjectWriter) -> None:
            writer.abandon()
            session.close()

        writer = ObjectWriter(session)
        if old is not None:
            try:
                begin_as(writer, self._reader, old)
            except BaseException:
                discard(writer)
                raise
        begin = (0 if over is None else over.size) if mode == "ab" else None
        return ObjectWriterFile(name, writer, publish, discard, begin=begin)

    def _pinned(self, key: bytes) -> Pinned | None:
        """What the name maps to, if anything."""
        try:
            return self._reader.pin(key)
        except NameNotFound:
            return None

    # ------------------------------------------------------------ names

    def info(self, name: str) -> ObjectInfo:
        """What the name maps to. Raises NameNotFound.

        >>> _ = store.puts("numbers", bytes(range(256)) * 4096)
        >>> info = store.info("numbers")
        >>> info.size, info.chunks > 0
        (1048576, True)
        """
        self._check_open()
        record = self._catalog.record(encode_name(name))
        if record is None:
            raise NameNotFound(name)
        return object_info(name, record)

    def size(self, name: str) -> int:
        """Bytes of the object. Raises NameNotFound.

        >>> _ = store.puts("greeting", b"hello, world")
        >>> store.size("greeting")
        12
        """
        return self.info(name).size

    def exists(self, name: str) -> bool:
        """Whether an object has exactly this name.

        >>> _ = store.puts("logs/monday", b"")
        >>> store.exists("logs/monday"), store.exists("logs")
        (True, False)
        """
        self._check_open()
        return self._catalog.record(encode_name(name)) is not None

    def names(self, prefix: str = "") -> Iterator[str]:
        """The names that start with `prefix`, sorted by their UTF-8 bytes.

        Read in pages: names that come and go meanwhile may be missed or seen. Raises InvalidName
        for a prefix that is no text.

        >>> for name in ["logs/tuesday", "logs/monday", "logs.txt"]:
        ...     _ = store.puts(name, b"")
        >>> list(store.names("logs/"))
        ['logs/monday', 'logs/tuesday']
        """
        self._check_open()
        encoded = encode_prefix(prefix)
        if len(encoded) > NAME_BYTES_MAX:
            return iter(())

        def pages() -> Iterator[str]:
            for page in self._catalog.names(encoded):
                yield from (_shown(name) for name in page)

        return pages()

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """The objects whose names start with `prefix`, in the order of `names`, each as `info` has
        it.

        >>> _ = store.puts("a", b"1"), store.puts("b", b"22")
        >>> [(info.name, info.size) for info in store.list()]
        [('a', 1), ('b', 2)]
        """
        self._check_open()
        encoded = encode_prefix(prefix)
        if len(encoded) > NAME_BYTES_MAX:
            return iter(())

        def pages() -> Iterator[ObjectInfo]:
            for page in self._catalog.pages(encoded):
                for name, record in page:
                    yield object_info(_shown(name), record)

        return pages()

    def scandir(self, folder: str = "", *, details: bool = True) -> Iterator[DirEntry]:
        """What is right in a folder, by name: objects, and the folders that names below it imply.

        "" is the whole store's. What is in the folders below is not looked at. Without `details`
        the objects' `info` is None, and on S3 nothing is asked but the list itself. Raises
        InvalidName.

        >>> _ = store.puts("a/b", b"1"), store.puts("c", b"22")
        >>> [(entry.name, entry.is_folder) for entry in store.scandir()]
        [('a', True), ('c', False)]
        >>> next(store.scandir("a")).info.size
        1
        """
        self._check_open()
        prefix = encode_prefix(folder.rstrip("/") + "/" if folder.strip("/") else "")
        if len(prefix) > NAME_BYTES_MAX:
            return iter(())

        def pages() -> Iterator[DirEntry]:
            for page in self._catalog.level(prefix, with_records=details):
                for entry in page:
                    name = _shown(entry.name)
                    if entry.is_folder:
                        yield DirEntry(name.removesuffix("/"), True, None)
                    else:
                        record = entry.record
                        info = None if record is None else object_info(name, record)
                        yield DirEntry(name, False, info)

        return pages()

    def kind(self, name: str) -> Kind:
        """Whether it is an object, and whether it is a folder: the start of others' names, behind
        which they go on with '/'. It may be both. On S3 that is one request. Raises InvalidName.

        >>> _ = store.puts("a/b", b"1")
        >>> store.kind("a")
        Kind(is_object=False, is_folder=True)
        """
        self._check_open()
        return Kind(*self._catalog.kind(encode_name(name)))

    def copy(self, source: str, target: str, *, if_absent: bool = False) -> None:
        """Give the object a second name: no data moves.

        What `target` was is replaced, but for `if_absent`. Raises NameNotFound, NameExists,
        ReadOnlyStore.

        >>> _ = store.puts("tables/a", b"1")
        >>> store.copy("tables/a", "tables/b")
        >>> store.gets("tables/b")
        b'1'
        """
        with self.transaction() as transaction:
            transaction.copy(source, target, if_absent=if_absent)

    def rename(self, source: str, target: str, *, if_absent: bool = False) -> None:
        """Move the object to another name: no data moves.

        In a local store it is one step; on S3 the new name is put, then the old one deleted, if it
        still is what was copied. Raises NameNotFound, NameExists (with `if_absent`), ReadOnlyStore.

        >>> _ = store.puts("draft", b"1")
        >>> store.rename("draft", "final")
        >>> list(store.names())
        ['final']
        """
        with self.transaction() as transaction:
            transaction.rename(source, target, if_absent=if_absent)

    def delete(self, name: str) -> None:
        """Remove the name. Its bytes stay until they are collected (`gc`).

        Raises NameNotFound, ReadOnlyStore.

        >>> _ = store.puts("a", b"1")
        >>> store.delete("a")
        >>> store.exists("a")
        False
        """
        with self.transaction() as transaction:
            transaction.delete(name)

    def delete_prefix(self, prefix: str, *, unbounded: bool = False) -> int:
        """Remove every name below a folder; how many there were.

        "project" and "project/" are both the folder: neither "project2/a" is below it, nor an
        object "project". With `unbounded`, every name that starts with `prefix`, whatever follows;
        "" is what all names start with, and raises InvalidName without it. In a local store it is
        one step; on S3 names go one after another, and to repeat it is to go on. Raises
        ReadOnlyStore.

        >>> for name in ["project/a", "project/b", "project2/a"]:
        ...     _ = store.puts(name, b"")
        >>> store.delete_prefix("project")
        2
        """
        with self.transaction() as transaction:
            transaction.delete_prefix(prefix, unbounded=unbounded)
        return transaction.deleted

    def remove_old_versions(self, name: str, *, below: bool = False) -> int:
        """In a bucket that keeps versions, remove those of what the name mapped to before; how
        many.

        With `below`, those of all names that begin with `name`. A deleted or overwritten name can't
        be brought back then. A best effort: what can't be removed, for want of rights or because
        the server fails, stays. Anywhere else there is nothing to remove. Raises InvalidName,
        ReadOnlyStore.
        """
        backend = self._check_writable()
        key = encode_prefix(name) if below else encode_name(name)
        return backend.remove_old_versions(key, below=below)

    def transaction(self) -> Transaction:
        """Several changes in one commit: at the end of the `with` block, or none if it raises.

        On S3 all data is stored first, then the names are put, the last one last. See
        `Transaction`. Raises ReadOnlyStore.

        >>> with store.transaction() as t:
        ...     _ = t.put("dumps/monday.sql", "monday.sql")
        ...     _ = t.puts("dumps/_SUCCESS", b"")
        >>> list(store.names("dumps/"))
        ['dumps/_SUCCESS', 'dumps/monday.sql']
        """
        return Transaction(self._session(), self._catalog.record)

    # ------------------------------------------------------------ the store

    def explain_range(self, name: str, byte_range: Sequence[int] | None = None) -> RangePlan:
        """What `gets(name, byte_range)` would touch. Raises as `gets` does.

        >>> _ = store.puts("zeros", bytes(10_000_000))
        >>> store.explain_range("zeros", (0, 100)).chunks
        1
        """
        self._check_open()
        return self._reader.explain(encode_name(name), byte_range)

    def stats(self) -> StoreStats:
        """How many objects, chunks, packs and bytes there are.

        In a local store from counters that every commit keeps; on S3 by reading every manifest that
        is not cached.

        >>> _ = store.puts("a", bytes(100_000)), store.puts("b", bytes(100_000))
        >>> stats = store.stats()
        >>> stats.objects, stats.logical_bytes
        (2, 200000)
        """
        return self._check_open().stats()

    def gc(
        self,
        *,
        dry_run: bool = False,
        grace_s: float = 86_400.0,
        repack_below: float = 0.5,
        max_repack_bytes: int | None = None,
        alone: bool = False,
        carry_undeletable: bool = False,
        accept_unclaimed: bool = False,
        progress: Progress | None = None,
    ) -> GcReport:
        """Collect garbage: free the space of what no name leads to, while others read and write.

        It may be killed at any moment: the next one finishes.

        - `dry_run`: nothing is changed, and the report says what would be.
        - `grace_s`: on S3, for how many seconds what was condemned is kept, for readers. A local
          store knows what its readers and writers rely on and needs none.
        - `repack_below`: packs of whose bytes less than this share (0 to 1) are in use are
          rewritten, and small ones merged when they are many.
        - `max_repack_bytes`: the most that is copied for that, in bytes.
        - `alone`: nobody else writes. For servers that ignore preconditions.
        - `carry_undeletable`: packs that the server does not remove stay condemned, and the
          collection goes on without them.
        - `accept_unclaimed`: collect also what lost its names (see below), once and for all.

        On S3 what is garbage is condemned by one collection and removed by one that comes after the
        grace; the report's `next_run_at` says when. A local store's collection refuses to begin
        where names are known to be lost, so that what no name leads to may be all that is left of
        them, as after the restore of an older backup.

        Raises UnclaimedData then; StoreBusy while another collection runs; FormatError if something
        that a name leads to can't be read, before anything is taken; CollectionRefused where a
        server does not allow for a safe one; ReadOnlyStore; StoreFull, StoreIOError.

        >>> _ = store.puts("zeros", bytes(1_000_000))
        >>> store.delete("zeros")
        >>> report = store.gc()
        >>> report.objects, report.chunks_removed > 0
        (0, True)
        """
        backend = self._check_open() if dry_run else self._check_writable()
        if not 0 <= repack_below <= 1:
            raise ValueError(f"repack_below is from 0 to 1, not {repack_below}")
        if grace_s < 0 or (max_repack_bytes is not None and max_repack_bytes < 0):
            raise ValueError("grace_s and max_repack_bytes must not be negative")
        from castore.s3.cache.unused import collect_caches  # seldom needed
        from castore.stream.reports import GcOptions

        options = GcOptions(
            dry_run=dry_run,
            grace_s=grace_s,
            repack_below=repack_below,
            max_repack_bytes=max_repack_bytes,
            alone=alone,
            carry_undeletable=carry_undeletable,
            accept_unclaimed=accept_unclaimed,
        )
        report = backend.gc(options, progress=progress)
        # What stores on S3 left on this machine when they were gone is nobody else's to take.
        report.caches_removed, report.cache_bytes_freed = collect_caches(dry_run=dry_run)
        return report

    def check(
        self,
        read_data: bool | float = False,
        repair: bool | CheckReport = False,
        progress: Progress | None = None,
    ) -> CheckReport:
        """Whether the store is whole, and with `repair`, its mending.

        Every extent's frame is in its pack; manifests and index agree with the packs and with each
        other. With `read_data`, all frames (or, for a number from 0 to 1, that share of them, at
        random) are decoded and compared with their ids. The report names the objects that can't be
        read in full.

        With `repair`, all data is read, and what is wrong is mended as far as it can be: nothing is
        removed that may be of use, but moved below `quarantine/`, objects under names there. The
        report is then that of another check, and names what is lost; its `repaired` says what was
        done. In place of True, `repair` may be the report of a check with all data read, just now.

        Raises IndexCorrupt where LMDB's pages are damaged; StoreLocked; ReadOnlyStore (a repair);
        ValueError for a share that is none.

        >>> _ = store.puts("greeting", b"hello, world")
        >>> report = store.check(read_data=True)
        >>> report.clean, report.exit_code
        (True, 0)
        """
        backend = self._check_open()
        fraction = check_fraction(read_data)
        if repair is False:
            return backend.check(fraction=fraction, progress=progress)
        self._check_writable()  # before anything is looked at or mended
        found = None if repair is True else repair
        return backend.repair(self._session, found, progress=progress)

    def export_folder(
        self, prefix: str, folder: StrPath, *, progress: Progress | None = None
    ) -> TransferReport:
        """Write every object below `prefix` + "/" (all for "") to a plain file below the folder.

        It gets the object's permission bits and time. Files that are the same already, in size,
        mode, time and content, are left as they are. What can't be written is left out and named in
        the report: a name that can't be a path there or leads through a symlink, a damaged object,
        a folder without permission. Nothing is written outside the folder.

        Raises NameNotFound if there is nothing below; OSError for a disk that is full or fails.

        >>> _ = store.puts("project/notes/monday", b"all well")
        >>> report = store.export_folder("project", "exported")
        >>> os.listdir("exported/notes")
        ['monday']
        """
        from castore.transfer import export_folder, report_of

        return report_of(
            export_folder(
                self,
                prefix,
                self._folder(folder),
                keep_time=True,
                skip_same=True,
                threads=self._workers.threads,
                progress=progress,
            )
        )

    def import_folder(
        self,
        folder: StrPath,
        prefix: str = "",
        *,
        checksum: bool = False,
        progress: Progress | None = None,
    ) -> TransferReport:
        """Put every regular file below the folder as `prefix` + "/" and its path in it.

        The objects get the files' permission bits and times. Published in batches, each whole or
        not at all (on S3, each file whole): to repeat it is to go on. What can't be read or named
        is left out and named in the report.

        A file is not read if it is in the state in which it was imported before: of the same size,
        mode, time, inode and ctime. With `checksum` all files are read.

        Raises FileNotFoundError, NotADirectoryError, ReadOnlyStore, StoreFull.

        >>> report = store.import_folder("project", "projects/a")
        >>> list(store.names())
        ['projects/a/main.py', 'projects/a/notes/monday']
        """
        from castore.transfer import ImportOptions, import_folder, report_of

        options = ImportOptions(checksum=checksum)
        outcomes = import_folder(
            self,
            self._folder(folder),
            prefix,
            options,
            threads=self._workers.threads,
            progress=progress,
        )
        return report_of(outcomes)

    def _folder(self, folder: StrPath) -> str:
        self._check_open()
        refuse_open_store_paths(folder)
        return os.fspath(folder)

    def rebuild_index(self, progress: Progress | None = None) -> RebuildReport:
        """On S3, make this machine's cache and the hints for others anew, from packs and names.

        A local store must not be open for it: see `castore.rebuild_index`. Raises StoreLocked.
        """
        return self._check_open().rebuild_index(progress=progress)

    def backup(self, dest: StrPath, *, progress: Progress | None = None) -> BackupReport:
        """Write a consistent copy of a local store's index, where its names are, to a file.

        The store may be in use. Durable when this returns. `castore.restore` puts it back.

        Raises NotLocal on S3; IndexCorrupt, StoreFull, StoreIOError: the file is as it was then.

        >>> _ = store.puts("greeting", b"hello, world")
        >>> store.backup("names.backup").names
        1
        """
        backend = self._check_open()
        refuse_open_store_paths(dest)
        return backend.back_up(os.fspath(dest), progress=progress)

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._backend is None

    def close(self) -> None:
        """Let go of the store; files opened from it can still be read. Idempotent."""
        with self._closing:
            backend, self._backend = self._backend, None
        discard_dropped()
        if backend is not None:
            self._workers.close()
            backend.close()

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

    def _session(self) -> WriteSession:
        backend = self._check_writable()
        return backend.session(self._workers, self._chunker, level=self._level)


@contextlib.contextmanager
def _errors_of(path: str) -> Iterator[None]:
    """What goes wrong with a file is said of it: a descriptor has no name, and a draft's says
    nothing. What the store itself can't do is a CastoreError."""
    try:
        yield
    except OSError as error:
        if isinstance(error, CastoreError):
            raise
        raise of_file(error, path) from error


def _shown(name: bytes) -> str:
    """One that is not UTF-8, in a damaged index, does not end a listing: it comes with its bytes
    escaped, as a str that no object can have as its name."""
    return name.decode("utf-8", "surrogateescape")


def check_fraction(read_data: bool | float) -> float:
    """How much of the data `read_data` means. Raises ValueError."""
    fraction = float(read_data)
    if not 0 <= fraction <= 1:
        raise ValueError(f"read_data is a bool, or a fraction from 0 to 1, not {read_data!r}")
    return fraction
