"""The verbs that store bytes, and file objects."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, overload

from castore.errors import NameExists, NameNotFound
from castore.format.index import Record
from castore.model import ObjectInfo, Progress, encode_name
from castore.objectfile import ObjectReader, ObjectWriterFile
from castore.store.reads import ReadVerbs
from castore.stream.appending import begin_as
from castore.stream.operations import Publish
from castore.stream.resembling import resembling
from castore.stream.small import Buffer
from castore.stream.writer import ObjectWriter
from castore.system.fileio import new_file_mode
from castore.system.locks import Lock
from castore.transaction import Readable, StrPath, Transaction, object_info


class ObjectVerbs(ReadVerbs):
    """See `castore.Store`."""

    def put(
        self,
        name: str,
        file: StrPath | Readable,
        *,
        if_absent: bool = False,
        progress: Progress | None = None,
        like: str | None = None,
    ) -> ObjectInfo:
        """Store a file, or what a binary file object has left to read, under the name.

        A path's permission bits are kept; the object of a file object gets those of a new file
        (0666, less the umask). Durable when this returns; visible whole or not at all. A file that
        is changed while it is read is read again; one that only grows is stored as it was when it
        was opened.

        Chunks that are new may be stored as deltas of those of the object that it resembles: the
        one `like` names or, if none is named, the one that the name has until then, or one whose
        name is near.

        Raises FileNotFoundError, IsADirectoryError (of the file); NameNotFound, if there is no
        object `like`; NameExists, if the name is taken and `if_absent`; SourceChanged, if the file
        is cut short or does not hold still; StoreFull; ReadOnlyStore; InvalidName.

        >>> store.put("dumps/monday.sql", "monday.sql").size
        20
        >>> store.put("dumps/monday.sql", "monday.sql", if_absent=True)
        Traceback (most recent call last):
        castore.errors.NameExists: ...
        """
        with self._transaction(of_one=True) as transaction:
            return transaction.put(name, file, if_absent=if_absent, progress=progress, like=like)

    def puts(
        self,
        name: str,
        data: Buffer,
        *,
        if_absent: bool = False,
        mode: int | None = None,
        like: str | None = None,
    ) -> ObjectInfo:
        """Store bytes, or any C-contiguous buffer, under the name.

        `mode` is its permission bits, by default those of a new file (0666, less the umask); `like`
        is as for `put`. Raises as `put` does; TypeError for a str, and for a buffer that is not
        C-contiguous, as an array in Fortran order; ValueError for a mode that is more than such
        bits.

        >>> info = store.puts("greeting", b"hello, world", mode=0o600)
        >>> info.size, oct(info.mode)
        (12, '0o600')
        """
        with self._transaction(of_one=True) as transaction:
            return transaction.puts(name, data, if_absent=if_absent, mode=mode, like=like)

    def puts_many(
        self,
        objects: Mapping[str, Buffer] | Iterable[tuple[str, Buffer]],
        *,
        if_absent: bool = False,
        mode: int | None = None,
    ) -> list[ObjectInfo]:
        """Store many objects, each from its bytes, in one commit; what became of each, in order.

        For small objects several times as fast as a `puts` for each in a transaction: they are
        looked up, compressed and written many at a time. Of a name that comes twice the last wins.
        Raises as `puts` does, and none of them is put then; on S3 as `transaction` says.

        >>> infos = store.puts_many({"rows/1": b"one", "rows/2": b"two"})
        >>> store.gets_ranges([("rows/1", None), ("rows/2", None)])
        [b'one', b'two']
        """
        with self._transaction() as transaction:
            return transaction.puts_many(objects, if_absent=if_absent, mode=mode)

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
        return self._transaction()

    def _transaction(self, *, of_one: bool = False) -> Transaction:
        return Transaction(self._session(of_one=of_one), self._catalog, self._reader)

    # ------------------------------------------------------------ file objects
    @overload
    def open(
        self, name: str, mode: Literal["rb"] = "rb", *, etag: str | None = None
    ) -> ObjectReader: ...
    @overload
    def open(
        self,
        name: str,
        mode: Literal["wb", "xb", "ab"],
        *,
        etag: None = None,
        like: str | None = None,
    ) -> ObjectWriterFile: ...
    @overload
    def open(
        self, name: str, mode: str, *, etag: str | None = None, like: str | None = None
    ) -> ObjectReader | ObjectWriterFile: ...

    def open(
        self, name: str, mode: str = "rb", *, etag: str | None = None, like: str | None = None
    ) -> ObjectReader | ObjectWriterFile:
        """The object as a binary file object.

        "rb" reads one version of it, seekably, whatever happens to the name meanwhile. "wb" writes
        a new one, published when it is closed and not at all if the `with` block raises; "xb"
        refuses a name that is taken, now and when it is closed. "ab" writes one that begins as the
        object there is, if there is one, and keeps its mode bits: no data moves but for the last
        chunk. It is published over that version and no other: ObjectChanged if the name maps to
        other bytes when it is closed, NameExists if there was no such name and now is. `like` is as
        for `put`, and of no use to a reader.

        With `etag`, as `info` and lists have it, "rb" reads those bytes of the name and no others.
        On S3 nothing is asked where that version of the object is known; else, ObjectChanged if the
        name maps to other bytes by now.

        Raises NameNotFound, NameExists, ObjectChanged, ReadOnlyStore, ValueError for another mode,
        or for an etag that can't be one or is of no use.

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
            pinned = self._reader.pin(key, None if etag is None else _digest(etag))
            return ObjectReader(
                self._reader,
                pinned,
                object_info(name, pinned.record),
                readahead_bytes=self._readahead_bytes,
            )
        if mode not in ("wb", "xb", "ab"):
            raise ValueError(f"mode is 'rb', 'wb', 'xb' or 'ab', not {mode!r}")
        if etag is not None:
            raise ValueError(f"an etag is for what is read, and not for mode {mode!r}")
        return self._open_to_write(name, key, mode, like)

    def _open_to_write(
        self, name: str, key: bytes, mode: str, like: str | None
    ) -> ObjectWriterFile:
        self._check_writable()
        if mode == "xb" and self._catalog.record(key) is not None:
            raise NameExists(name)
        liked = None if like is None else encode_name(like)
        if like is not None and self._catalog.record(encode_name(like)) is None:
            raise NameNotFound(like)
        session = self._session(of_one=True)
        over: Record | None = None
        try:
            align = resembling(session, self._catalog, self._reader, key, liked)
            if mode == "ab":
                writer, over = begin_as(session, self._reader, key, align)
            else:
                writer = ObjectWriter(session, align=align)
        except BaseException:
            session.close()
            raise
        if_absent = mode == "xb" or (mode == "ab" and over is None)
        writing, pid = Lock(), os.getpid()  # a session is for one thread at a time

        def exclusively() -> AbstractContextManager[Any]:
            # In a forked child a thread that is not there may have the lock, and nothing can be
            # published.
            return writing if os.getpid() == pid else nullcontext()

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

        begin = (0 if over is None else over.size) if mode == "ab" else None
        return ObjectWriterFile(
            name, writer, publish, discard, exclusively=exclusively, begin=begin
        )


def _digest(etag: str) -> bytes:
    if re.fullmatch("[0-9a-fA-F]{32}", etag) is None:
        raise ValueError(f"an etag is 32 hex digits, as info() has it, and not {etag!r}")
    return bytes.fromhex(etag)
