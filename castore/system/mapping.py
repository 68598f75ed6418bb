"""Files mapped read-only: the C extension's mapping, or Python's where that isn't built.

The extension's keeps no descriptor open and survives a file that is truncated under it: the lost
pages read as zeros, and `damaged` says so. Python's `mmap` can't do either: such a read kills the
process with SIGBUS. `Mapping.guarded` tells which one it is, so that the reader of a file that
others may change can `read()` it instead.
"""

from __future__ import annotations

import errno
import mmap
import os
import stat
from typing import TYPE_CHECKING, ClassVar

__all__ = ["Mapping", "PlainMapping", "start_writeback"]

_Path = str | bytes | os.PathLike[str] | os.PathLike[bytes]


class PlainMapping(mmap.mmap):
    """What `castore._native.Mapping` offers, as far as Python's `mmap` goes.

    Offset (a multiple of the page size) and length in bytes; length -1 is up to the end of the
    file. A descriptor given stays the caller's.
    """

    guarded: ClassVar[bool] = False
    damaged: ClassVar[bool] = False

    def __new__(
        cls, file: int | _Path, length: int = -1, *, offset: int = 0, populate: bool = False
    ) -> PlainMapping:
        if length < -1 or offset < 0 or offset % mmap.PAGESIZE:
            raise ValueError(
                "length must not be negative (-1: up to the end), and offset must be a multiple "
                "of the page size"
            )
        descriptor = file if isinstance(file, int) else os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            available = _regular_file_size(descriptor) - offset
            if available < 0 or length > available:
                raise ValueError("the mapping would reach past the end of the file")
            size = available if length < 0 else length
            if size == 0:
                return _EmptyMapping()  # type: ignore[return-value]
            flags = mmap.MAP_SHARED | (getattr(mmap, "MAP_POPULATE", 0) if populate else 0)
            return super().__new__(
                cls, descriptor, size, flags=flags, prot=mmap.PROT_READ, offset=offset
            )
        finally:
            if not isinstance(file, int):
                os.close(descriptor)

    def advise_dontneed(self, offset: int, length: int, /) -> None:
        """Let go of the whole pages within the range: they are read again when next touched."""
        begin, end = _clamped(offset, length, len(self))
        begin = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE
        end = end if end == len(self) else end // mmap.PAGESIZE * mmap.PAGESIZE
        if begin < end:
            self.madvise(mmap.MADV_DONTNEED, begin, end - begin)


class _EmptyMapping(bytes):
    """An empty file: the kernel maps nothing of no length."""

    guarded: ClassVar[bool] = False
    damaged: ClassVar[bool] = False

    def advise_dontneed(self, offset: int, length: int, /) -> None:
        _clamped(offset, length, 0)

    def close(self) -> None:
        pass


def _regular_file_size(descriptor: int) -> int:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        code = errno.EISDIR if stat.S_ISDIR(status.st_mode) else errno.ENODEV
        raise OSError(code, os.strerror(code))
    return status.st_size


def _clamped(offset: int, length: int, size: int) -> tuple[int, int]:
    if offset < 0 or length < 0:
        raise ValueError("offset and length must not be negative")
    begin = min(offset, size)
    return begin, min(begin + length, size)


if TYPE_CHECKING:
    from castore._native import Mapping, start_writeback
else:
    try:
        from castore._native import Mapping, start_writeback
    except ImportError:
        Mapping = PlainMapping

        def start_writeback(fd: int, offset: int, length: int, /) -> None:
            """Only ever a hint, and Python has no call for it."""
