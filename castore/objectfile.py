"""Objects as file objects: what `Store.open` returns."""

from __future__ import annotations

import io
import sys
import warnings
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from operator import index
from types import TracebackType
from typing import Any

from castore.errors import CastoreError, NameExists, ObjectChanged, UnpublishedResourceWarning
from castore.model import ObjectInfo
from castore.stream.chunkreader import ChunkReader, Pinned
from castore.stream.readahead import ReadAhead
from castore.stream.small import bytes_of
from castore.stream.writer import ObjectWriter
from castore.system.unwinding import Unwinding, leaves_with

if not sys.warnoptions:  # who set some decides
    warnings.simplefilter("default", UnpublishedResourceWarning)

BUFFER_BYTES = 64 << 10
_dropped: deque[Callable[[], None]] = deque()


def discard_dropped() -> None:
    """Discard the new objects whose files were dropped unclosed since the last call. Python lets go
    of what is in a cycle at any moment, in any thread, whatever locks that thread holds, and to
    discard an object takes locks and, on S3, requests: it waits until somebody uses a store."""
    while _dropped:
        try:
            discard = _dropped.popleft()
        except IndexError:  # another thread was faster
            return
        try:
            discard()
        except CastoreError as error:  # not of the store that is being used
            warnings.warn(
                f"an object was dropped unclosed, and what it left stays: {error}",
                ResourceWarning,
                stacklevel=3,
            )


class PlannedReader(io.BufferedReader):
    """A buffer before what plans its reads: a large read is told to it whole, as the buffer asks
    for it in two."""

    raw: PlannedRaw

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and index(size) > BUFFER_BYTES:
            self.raw.expect(self.tell() + index(size))
        return super().read(size)


class PlannedRaw(io.RawIOBase):
    """What a PlannedReader reads from."""

    def expect(self, until: int) -> None:
        """What is read next goes on up to the offset `until`, unless there is a seek first."""
        raise NotImplementedError


class ObjectReader(PlannedReader):
    """One version of an object, as a seekable binary file, whatever happens to its name meanwhile.

    A read fetches all that it needs together; while reads follow each other, what comes next is
    read ahead. Reads and `readinto`s larger than the buffer go straight to the caller's memory.
    `info` is what the name mapped to when it was opened. Reading raises ChunkCorrupt, PackMissing.

    >>> _ = store.puts("greeting", b"hello, world")
    >>> with store.open("greeting") as file:
    ...     file.seek(-5, os.SEEK_END)
    ...     file.read()
    7
    b'world'
    """

    def __init__(
        self, reader: ChunkReader, pinned: Pinned, info: ObjectInfo, *, readahead_bytes: int
    ) -> None:
        super().__init__(_RawObject(reader, pinned, readahead_bytes), BUFFER_BYTES)
        self.info = info

    def __reduce_ex__(self, protocol: Any, /) -> Any:
        raise TypeError("an open object can't be pickled: pickle the Store and open it there")


class _RawObject(PlannedRaw):
    def __init__(self, reader: ChunkReader, pinned: Pinned, readahead_bytes: int) -> None:
        self._bytes: ReadAhead | None = ReadAhead(reader, pinned, ahead_bytes_max=readahead_bytes)
        self._size = pinned.record.size
        self._at = 0
        self._until = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def expect(self, until: int) -> None:
        self._until = until

    def readinto(self, buffer: Any, /) -> int:
        with memoryview(buffer).cast("B") as target:
            # What fills the buffer at the end of a large read gets no more than that.
            expected = self._until - self._at
            wanted = target[:expected] if 0 < expected < BUFFER_BYTES else target
            read = self._open().read_into(self._at, wanted, self._until)
        self._at += read
        return read

    def readall(self) -> bytes:
        raw = self._open().read_to_end(self._at)
        self._at += len(raw)
        return raw

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}.get(whence)
        if base is None:
            raise ValueError(f"whence must be 0, 1 or 2, not {whence}")
        if base + offset < 0:
            raise ValueError(f"can't seek to {base + offset}, before the object's start")
        self._at = base + offset
        self._until = 0
        return self._at

    def tell(self) -> int:
        return self._at

    def close(self) -> None:
        opened, self._bytes = self._bytes, None  # the mappings go with it
        if opened is not None:
            opened.close()
        super().close()

    def _open(self) -> ReadAhead:
        if self._bytes is None:
            raise ValueError("I/O operation on closed file")
        return self._bytes


class ObjectWriterFile(io.RawIOBase):
    """A new object being written: it is published when it is closed. Several threads may write.

    Not if the `with` block raises, on `abort()`, or when it is dropped unclosed.

    Nor is it published where something else closes it because of an exception: a text layer or a
    compressor around it, in whose `with` one was raised, or a `finally`. `castore.system.unwinding`
    has how that is known. Where the caller need not know of it, an UnpublishedResourceWarning says
    so.

    >>> with store.open("log", "wb") as file:
    ...     file.write(b"one line")
    8
    >>> store.gets("log")
    b'one line'
    """

    def __init__(
        self,
        name: str,
        writer: ObjectWriter,
        publish: Callable[[ObjectWriter], ObjectInfo],
        discard: Callable[[ObjectWriter], None],
        *,
        dropped: Callable[[ObjectWriter], None] | None = None,
        exclusively: Callable[[], AbstractContextManager[None]] = nullcontext,
        begin: int | None = None,
    ) -> None:
        """`dropped` takes the place of `discard` where it was not asked for; `exclusively` is held
        while the writer is written to; `begin` is how many bytes the writer has already, of an
        object that is appended to. `name`, which may be set, is what it is called in messages."""
        self.name = name
        self.mode = "wb" if begin is None else "ab"
        # Once it is closed; of an append, with the mode bits of when it was opened, though those
        # that were given since stay.
        self.info: ObjectInfo | None = None
        self.when_published: Callable[[], None] | None = None  # called also if that failed
        self._writer: ObjectWriter | None = writer
        self._publish = publish
        self._discard = discard
        self._drop = dropped or discard
        self._exclusively = exclusively
        self._unwinding: Unwinding | None = Unwinding()
        self._lost = False
        self._at = begin or 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        if isinstance(data, str):
            raise TypeError("a bytes-like object is required, not 'str'")
        with bytes_of(data) as view:  # outside of `_take`: what is no buffer spoils nothing
            if self._lost:  # a layer that is dropped writes what it still has
                self._at += view.nbytes
            else:
                self._take(view)
            return view.nbytes

    def readinto(self, buffer: Any, /) -> int:
        raise io.UnsupportedOperation("not readable")

    def tell(self) -> int:
        return self._at

    def close(self) -> None:
        """Publish the object, unless an exception is being handled that was raised after it was
        opened. Raises what `put` does."""
        unwinding, self._unwinding = self._unwinding, None
        try:
            writer = self._let_go()
            if writer is None or unwinding is None:
                return
            error = unwinding.raised()
            if error is None:
                try:
                    self.info = self._publish(writer)
                except (NameExists, ObjectChanged) as refused:
                    raise type(refused)(self.name) from None
                finally:
                    if self.when_published is not None:
                        self.when_published()
                return
            self._discard(writer)
            if not leaves_with(error):
                self._warn(
                    f"it was closed while {type(error).__name__} was being handled. To keep what "
                    "was written until then, close it outside of the except or finally",
                    stacklevel=2,
                )
        finally:
            super().close()

    def abort(self) -> None:
        """Close it and publish nothing. Idempotent."""
        self._unwinding = None
        writer = self._let_go()
        if writer is not None:
            self._discard(writer)
        super().close()

    discard = abort  # what fsspec calls it

    def lose(self) -> None:
        """What follows is no longer taken, nor what was written kept: a layer around it, which
        will still write and close, failed."""
        writer, self._writer = self._writer, None
        self._unwinding = None
        self._lost = True
        if writer is not None:
            _dropped.append(partial(self._drop, writer))

    def _take(self, view: memoryview) -> None:
        if self._writer is None:
            raise ValueError("I/O operation on closed file")
        try:
            with self._exclusively():
                self._take_alone(view)
        except BaseException:
            self.abort()  # some of the data may be taken: what would be published has a hole in it
            raise

    def _take_alone(self, view: memoryview) -> None:
        if self._writer is None:  # another thread closed it
            raise ValueError("I/O operation on closed file")
        try:
            self._writer.write(view)
            self._at += view.nbytes
        except BaseException:
            self.abort()  # at once, as another thread may be about to close, and to publish it
            raise

    def _let_go(self) -> ObjectWriter | None:
        """What is written to, unless that has ended. Who still writes, in another thread, comes to
        an end first."""
        if self._writer is None:
            return None
        try:
            with self._exclusively():
                writer, self._writer = self._writer, None
                return writer
        finally:
            self._writer = None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            self.abort()
        else:
            self.close()

    def __reduce_ex__(self, protocol: Any, /) -> Any:
        # Of a copy, too: as it is dropped, what was written is discarded.
        raise TypeError("an object that is being written can't be copied or pickled")

    def __del__(self) -> None:
        # RawIOBase would close, which publishes; but nobody said that the object is whole.
        if getattr(self, "_writer", None) is not None:
            self._dealloc_warn(self)
            super().close()

    def _dealloc_warn(self, dropped: object, /) -> None:
        """What Python's own layers (TextIOWrapper, BufferedWriter) call below them when they were
        dropped unclosed, and are about to close all the same."""
        if self._writer is not None:
            self.lose()
            self._warn("its file was dropped unclosed. Close it, or use `with`", stacklevel=3)

    def _warn(self, why: str, *, stacklevel: int) -> None:
        message = f"{self.name!r} is not published: {why}"
        warnings.warn(message, UnpublishedResourceWarning, stacklevel + 1, source=self)
