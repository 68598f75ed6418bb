"""Puts and changes of names that become visible together."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Protocol

from castore.catalog.operations import Copy, Delete, DeletePrefix, Operation, Publish
from castore.errors import NameExists, StoreClosed
from castore.format_index import Record
from castore.local import refuse_open_store_paths
from castore.mapping import Mapping
from castore.model import ObjectInfo, Progress, encode_name, encode_prefix
from castore.session import WriteSession
from castore.writer import ObjectWriter, read_blocks

MODE_DEFAULT = 0o644

StrPath = str | os.PathLike[str]


class Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


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
        mtime_ns: int | None = None,
    ) -> ObjectInfo:
        """As Store.put; visible at the end of the block. `mtime_ns`, since the epoch, is what the
        object's time is to be, if it is not now."""
        self._check(name, if_absent)
        with self._writing(progress) as writer:
            if isinstance(file, (str, os.PathLike)):
                mode = _write_path(writer, os.fspath(file), progress)
            else:
                read = getattr(file, "read", None)
                if read is None:
                    raise TypeError(
                        f"file is a path or a binary file object, not {type(file).__name__}; "
                        "puts takes bytes"
                    )
                mode = MODE_DEFAULT
                for block in read_blocks(read):
                    writer.write(block)
            return self._publish(name, writer, mode, if_absent, mtime_ns)

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
        if not 0 <= mode <= 0o7777:
            raise ValueError(f"mode is permission bits, 0 to 0o7777, not {mode:#o}")
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

    def _publish(
        self,
        name: str,
        writer: ObjectWriter,
        mode: int,
        if_absent: bool,
        mtime_ns: int | None = None,
    ) -> ObjectInfo:
        record, draft = writer.finish(mode)
        if mtime_ns is not None:
            record = record._replace(mtime_ns=mtime_ns)
        self._operations.append(Publish(encode_name(name), record, draft, if_absent))
        return object_info(name, record)


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
        mappable = stat.S_ISREG(status.st_mode) and status.st_size > writer.inline_bytes_max
        if progress is not None and stat.S_ISREG(status.st_mode):
            progress.set_size(status.st_size)
        if mappable and Mapping.guarded:
            writer.write_file(fd, status.st_size, path)
        else:
            with os.fdopen(fd, "rb", buffering=0, closefd=False) as file:
                for block in read_blocks(file.read):
                    writer.write(block)
        return stat.S_IMODE(status.st_mode)
    finally:
        os.close(fd)


def object_info(name: str, record: Record) -> ObjectInfo:
    """A record as the API shows it."""
    return ObjectInfo(
        name,
        record.size,
        record.mtime_ns / 1e9,
        record.mode,
        record.etag.hex(),
        record.chunks,
        record.stored_bytes,
    )
