"""The exit codes, and the one line that an error gets."""

from __future__ import annotations

from collections.abc import Iterable

from castore.errors import (
    CastoreError,
    ChunkCorrupt,
    CostsNothing,
    FormatError,
    IndexCorrupt,
    InvalidName,
    InvalidRange,
    NameNotFound,
    PackMissing,
    StoreBusy,
    StoreLocked,
    StoreNotFound,
    UnsupportedFormat,
    describe_os_error,
    describe_shortage,
)

OK = 0
FAILURE = 1
USAGE = 2
NO_STORE = 10  # nor, on S3, a bucket
BUSY = 11  # another process is doing what one at a time may
DENIED = 12  # by permissions or for want of valid credentials
CORRUPT = 13
NOT_FOUND = 14  # a name, or the data of one
INTERRUPTED = 130
BROKEN_PIPE = 141  # what the shell reports for a `cat` that its reader hung up on

TABLE = """\
  0  done; the store is whole
  1  failed, or some of it was left out; check: look at what it says
  2  wrong usage
 10  there is no store (or no bucket) there
 11  the store is busy: in use, or another gc is running
 12  no permission, or wrong credentials
 13  something is damaged
 14  something is missing: the name, or its data
130  interrupted
"""

DAMAGE = (ChunkCorrupt, FormatError, PackMissing, IndexCorrupt)
_CODES: tuple[tuple[type[Exception], int], ...] = (  # the first that fits
    (InvalidName, USAGE),
    (InvalidRange, USAGE),
    (CostsNothing, USAGE),
    (StoreNotFound, NO_STORE),
    (StoreBusy, BUSY),
    (StoreLocked, BUSY),
    (PermissionError, DENIED),
    (UnsupportedFormat, FAILURE),
    (FormatError, CORRUPT),
    (ChunkCorrupt, CORRUPT),
    (IndexCorrupt, CORRUPT),
    (NameNotFound, NOT_FOUND),
    (PackMissing, NOT_FOUND),
)


class UsageError(Exception):
    """The command line does not say something that can be done."""


class Failure(Exception):
    """Something that the message says all about."""

    def __init__(self, message: str, code: int = FAILURE) -> None:
        super().__init__(message)
        self.code = code


def describe(error: BaseException) -> tuple[int, str]:
    """The exit code for an error, and its one line for stderr."""
    code = code_of(error)
    if isinstance(error, KeyboardInterrupt):
        return code, "interrupted"
    if isinstance(error, UsageError | Failure | CastoreError):
        return code, str(error)
    if isinstance(error, OSError) and error.strerror:
        return code, describe_os_error(error)
    if shortage := describe_shortage(error):
        return code, shortage
    facts = f": {error}" if str(error) else ""
    return code, (
        f"unexpected {type(error).__name__}{facts} (CASTORE_DEBUG=1 shows where it comes from)"
    )


def code_of(error: BaseException) -> int:
    if isinstance(error, UsageError):
        return USAGE
    if isinstance(error, Failure):
        return error.code
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    return next((code for kind, code in _CODES if isinstance(error, kind)), FAILURE)


def worst(codes: Iterable[int]) -> int:
    """The exit code of many things of which some failed: damage before what is missing."""
    found = set(codes)
    return next((code for code in _WORST_FIRST if code in found), OK)


_WORST_FIRST = (CORRUPT, NOT_FOUND, FAILURE)
