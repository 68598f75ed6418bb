"""The exit codes, and the one line that an error gets."""

from __future__ import annotations

from castore.errors import (
    CastoreError,
    ChunkCorrupt,
    FormatError,
    IndexCorrupt,
    InvalidName,
    InvalidRange,
    NameNotFound,
    PackMissing,
    StoreBusy,
    StoreLocked,
)

OK = 0
FAILURE = 1
USAGE = 2
BUSY = 11  # another process is doing what one at a time may
CORRUPT = 13
NOT_FOUND = 14
INTERRUPTED = 130
BROKEN_PIPE = 141  # what the shell reports for a `cat` that its reader hung up on

CORRUPTIONS = (ChunkCorrupt, FormatError, PackMissing, IndexCorrupt)


class UsageError(Exception):
    """The command line does not say something that can be done."""


class Failure(Exception):
    """Something that the message says all about."""


def describe(error: BaseException) -> tuple[int, str]:
    """The exit code for an error, and its one line for stderr."""
    if isinstance(error, UsageError | InvalidName | InvalidRange):
        return USAGE, str(error)
    if isinstance(error, NameNotFound):
        return NOT_FOUND, str(error)
    if isinstance(error, CORRUPTIONS):
        return CORRUPT, str(error)
    if isinstance(error, StoreBusy | StoreLocked):
        return BUSY, str(error)
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED, "interrupted"
    if isinstance(error, CastoreError | Failure):
        return FAILURE, str(error)
    if isinstance(error, OSError) and error.strerror:
        return FAILURE, describe_os_error(error)
    facts = f": {error}" if str(error) else ""
    return FAILURE, (
        f"unexpected {type(error).__name__}{facts} (CASTORE_DEBUG=1 shows where it comes from)"
    )


def describe_os_error(error: OSError) -> str:
    """What the system said, of which files; without the error's number."""
    paths = [_text(path) for path in (error.filename, error.filename2) if path is not None]
    return f"{' -> '.join(paths)}: {error.strerror}" if paths else str(error.strerror)


def _text(path: object) -> str:
    return path.decode(errors="backslashreplace") if isinstance(path, bytes) else str(path)
