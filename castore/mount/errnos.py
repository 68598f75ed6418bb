"""Which number a program is given for what went wrong."""

from __future__ import annotations

import errno
import os
from typing import NoReturn

from castore.errors import (
    CastoreError,
    CommitUnknown,
    FormatError,
    InvalidName,
    NameExists,
    NameNotFound,
    ObjectChanged,
    ReadOnlyStore,
    StoreBusy,
    StoreClosed,
    StoreFull,
    StoreLocked,
    TimeOutOfRange,
)

_NUMBERS: tuple[tuple[type[BaseException], int], ...] = (  # the first that fits
    (NameNotFound, errno.ENOENT),
    (NameExists, errno.EEXIST),
    (ReadOnlyStore, errno.EROFS),
    (PermissionError, errno.EACCES),
    (StoreFull, errno.ENOSPC),
    (StoreBusy, errno.EBUSY),  # not EAGAIN, which programs take for a pipe that is empty
    (StoreLocked, errno.EBUSY),
    (ObjectChanged, errno.ESTALE),
    (TimeOutOfRange, errno.EOVERFLOW),
    (CommitUnknown, errno.EIO),
    (FormatError, errno.EIO),
    (StoreClosed, errno.EIO),
    (UnicodeError, errno.EILSEQ),
    (MemoryError, errno.ENOMEM),
)


def errno_of(error: BaseException) -> int:
    """The number for an error of castore or of the system; EIO for one that nobody foresaw."""
    if isinstance(error, InvalidName):
        return _of_name(error)
    if isinstance(error, PermissionError) and not isinstance(error, CastoreError):
        return error.errno or errno.EACCES  # EPERM stays what it is
    for kind, number in _NUMBERS:
        if isinstance(error, kind):
            return number
    if isinstance(error, OSError) and error.errno:
        return error.errno
    return errno.EIO


def fail(number: int) -> NoReturn:
    """Raise the system's error of that number."""
    raise OSError(number, os.strerror(number))


def is_foreseen(error: BaseException) -> bool:
    """Whether it is of a kind that need not be told in full to whoever runs the mount."""
    return isinstance(error, CastoreError | OSError | UnicodeError | MemoryError)


def _of_name(error: InvalidName) -> int:
    text = str(error)
    if "the most is" in text:
        return errno.ENAMETOOLONG
    return errno.EILSEQ if "not valid Unicode" in text else errno.EINVAL
