"""The files and the transaction of `castore.fs`, with what fsspec's layers ask of them."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fsspec.transaction import Transaction as FsspecTransaction

import castore
from castore.model import ObjectInfo
from castore.objectfile import (
    BUFFER_BYTES,
    ObjectReader,
    ObjectWriterFile,
    PlannedRaw,
    PlannedReader,
)

if TYPE_CHECKING:
    from castore.fs import CastoreFileSystem

Info = dict[str, Any]


def file_entry(info: ObjectInfo) -> Info:
    """An object as fsspec's listings have it."""
    return {
        "name": info.name,
        "size": info.size,
        "type": "file",
        "mtime": info.mtime,
        "mode": info.mode,
        "ETag": info.etag,
        "stored_bytes": info.stored_bytes,
    }


class CastoreFile(PlannedReader):
    """One version of an object, with what fsspec's files have besides: `blockcache::` and `tar://`
    go by it. Pickled, it opens the same bytes again, where it was: ObjectChanged if the name has
    others by then."""

    def __init__(self, fs: CastoreFileSystem, opened: ObjectReader, blocksize: int) -> None:
        self._details = file_entry(opened.info)
        self._raw = _CachedRaw(opened.raw)
        opened.detach()
        super().__init__(self._raw, BUFFER_BYTES)
        self.fs = fs
        self.path: str = self._details["name"]
        self.size: int = self._details["size"]
        self.blocksize = blocksize

    @property
    def name(self) -> str:
        return self.path

    @property
    def mode(self) -> str:
        return "rb"

    def info(self) -> Info:
        """As `fs.info` was when the file was opened."""
        return dict(self._details)

    def readuntil(self, char: bytes = b"\n", blocks: int | None = None) -> bytes:
        """What is left up to the first `char`, with it, or to the end; looked through `blocks`
        bytes at a time."""
        start = self.tell()
        found = bytearray()
        while part := self.read(blocks or BUFFER_BYTES):
            searched = max(0, len(found) - len(char) + 1)  # it may lie across two
            found += part
            at = found.find(char, searched)
            if at >= 0:
                del found[at + len(char) :]
                self.seek(start + len(found))
                break
        return bytes(found)

    def discard(self) -> None:
        """As fsspec's: there is nothing to be thrown away of a file that is read."""

    @property
    def cache(self) -> Any:
        """What reads go through, if one of fsspec's caches was put here."""
        return self._raw.cache

    @cache.setter
    def cache(self, cache: Any) -> None:
        self._raw.cache = cache

    @property
    def closed(self) -> bool:
        return self._raw.closed

    @closed.setter
    def closed(self, closed: bool) -> None:
        """fsspec's caches say so after they have closed it."""
        if closed != self.closed:
            raise ValueError("close a file with close()")

    def _fetch_range(self, start: int, end: int) -> bytes:
        return self._raw.fetch(start, end)

    def __reduce_ex__(self, protocol: Any, /) -> Any:
        where = 0 if self.closed else self.tell()
        return _reopen, (self.fs, self.path, self.blocksize, self._details["ETag"], where)


class _CachedRaw(PlannedRaw):
    """An object's bytes, through a cache of fsspec's where there is one."""

    def __init__(self, raw: PlannedRaw) -> None:
        self.cache: Any = None
        self._below = raw

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        return self._below.seek(offset, whence)

    def tell(self) -> int:
        return self._below.tell()

    def expect(self, until: int) -> None:
        self._below.expect(until)

    def readinto(self, buffer: Any, /) -> int | None:
        if self.cache is None:
            return self._below.readinto(buffer)
        with memoryview(buffer).cast("B") as target:
            at = self.tell()
            data = self.cache._fetch(at, at + len(target))
            target[: len(data)] = data
        self.seek(at + len(data))
        return len(data)

    def readall(self) -> bytes:
        return super().readall() if self.cache is not None else self._below.readall()

    def fetch(self, start: int, end: int) -> bytes:
        at, done = self.tell(), 0
        data = bytearray(max(0, end - start))
        try:
            self._below.seek(start)
            with memoryview(data) as target:
                # One that is short of a chunk that can't be read is not the end.
                while done < len(data) and (read := self._below.readinto(target[done:])):
                    done += read
        finally:
            self._below.seek(at)
        return bytes(data[:done])

    def close(self) -> None:
        self._below.close()
        super().close()


def _reopen(fs: CastoreFileSystem, path: str, blocksize: int, etag: str, at: int) -> CastoreFile:
    file = CastoreFile(fs, fs.store.open(path, "rb", etag=etag), blocksize)
    file.seek(at)
    return file


class CompressedWriter(io.RawIOBase):
    """What compresses into a file, and publishes it when it is closed itself: compressors leave
    open what they write to."""

    def __init__(self, file: ObjectWriterFile, compress: Callable[..., Any]) -> None:
        self._file = file
        self._compressor = compress(file, mode="w")
        self._ended = False
        self.name = self.path = file.name
        self.mode = "wb"

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        written: int = self._compressor.write(data)
        return written

    def flush(self) -> None:
        if not self._ended:
            self._compressor.flush()

    def tell(self) -> int:
        position: int = self._compressor.tell()
        return position

    def close(self) -> None:
        """Publish what was written. Raises what `put` does."""
        if self._ended:
            return
        self._ended = True
        try:
            self._compressor.close()
        except BaseException:
            self._file.abort()
            raise
        finally:
            super().close()
        self._file.close()

    def abort(self) -> None:
        """Close it and publish nothing."""
        self._file.lose()
        self.close()

    discard = abort  # what fsspec calls it

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is not None:
            self.abort()
        else:
            self.close()

    def __del__(self) -> None:
        if not getattr(self, "_ended", True):
            self._dealloc_warn(self)
            self.close()

    def _dealloc_warn(self, dropped: object, /) -> None:
        self._file._dealloc_warn(dropped)


class CastoreTransaction(FsspecTransaction):  # type: ignore[misc]  # fsspec is untyped
    """`with fs.transaction`: one castore transaction, begun when something is first changed."""

    fs: CastoreFileSystem | None

    def __init__(self, fs: CastoreFileSystem, **options: Any) -> None:
        super().__init__(fs, **options)
        self._changes: castore.Transaction | None = None

    @property
    def has_changes(self) -> bool:
        """Whether anything was changed in it so far."""
        return self._changes is not None

    def changes(self, *, create: bool) -> castore.Transaction:
        """What gathers the changes; `create`, the store too if it is not there."""
        if self._changes is None:
            if self.fs is None:
                raise ValueError("the transaction has ended")
            self._changes = self.fs._open_store(create=create).transaction()
        return self._changes

    def start(self) -> None:
        """Raises ValueError where one has begun: what was put in that would be in neither."""
        if self.fs is None:
            raise ValueError("the transaction has ended")
        if self.fs._intrans:
            raise ValueError(
                "a transaction of this file system has begun, maybe in another thread: end it first"
                ", or give it up with transaction.complete(commit=False)"
            )
        super().start()

    def complete(self, commit: bool = True) -> None:
        """Publish all of it, or nothing. Raises FileStillOpen for a file that was not closed."""
        fs, self.fs = self.fs, None
        if fs is not None:
            fs._intrans = False
            fs._transaction = None
        try:
            self._end(commit=commit)
        finally:
            if fs is not None:
                fs.invalidate_cache()

    def _end(self, *, commit: bool) -> None:
        changes, self._changes = self._changes, None
        try:
            if changes is not None and commit:
                changes.commit()
            elif changes is not None:
                changes.abort()
        finally:
            self.files.clear()
