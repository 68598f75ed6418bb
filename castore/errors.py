"""Every error that castore raises on purpose.

Each carries the facts as fields, names the thing and the remedy in its message, and also subclasses
the builtin that a caller would catch, so that `except FileNotFoundError` works without importing
this module. Absent is not failed: `NameNotFound` means the name is definitely not there.

>>> try:
...     store.gets("no such name")
... except FileNotFoundError as error:
...     error.name
'no such name'
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final


class CastoreError(Exception):
    """The base of every error below. Its text is its message alone, without the number that OSError
    puts before it, and it comes out of a pickle with all its fields."""

    def __str__(self) -> str:
        return getattr(self, "strerror", None) or super().__str__()

    def __reduce__(self) -> tuple[Any, ...]:
        # What a class of errors is made of differs, and what an exception is made of does not.
        return _again, (type(self), super().__reduce__()[1]), self.__dict__


def _again(kind: type[CastoreError], args: tuple[Any, ...]) -> CastoreError:
    error = kind.__new__(kind, *args)
    super(CastoreError, error).__init__(*args)
    return error


class NameNotFound(CastoreError, FileNotFoundError):
    """No object has this name; or, of one that ends with "/", none has a name that starts so."""

    def __init__(self, name: str) -> None:
        what = "there is nothing below" if name.endswith("/") else "no object is named"
        super().__init__(errno.ENOENT, f"{what} {name!r}")
        self.name = name


def unraised(error: NameNotFound) -> NameNotFound:
    """The same, to be returned in a list: without where it was raised, which tells nothing of a
    name that is not there. Its frames, and the server's answer with its own, are kilobytes for each
    of maybe very many."""
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)


class NameExists(CastoreError, FileExistsError):
    """An object already has this name, and the caller asked for it not to be replaced."""

    def __init__(self, name: str) -> None:
        super().__init__(
            errno.EEXIST,
            f"an object is already named {name!r}: choose another name, or delete it first",
        )
        self.name = name


class UnpublishedResourceWarning(ResourceWarning):
    """What was written to a file is not kept: the file was dropped unclosed, or closed while an
    exception was being handled. Shown by default, unlike other ResourceWarnings: it tells of a
    loss."""


class InvalidName(CastoreError, ValueError):
    """The name is empty, too long, or has a NUL, a leading `/`, or a `.` or `..` component."""


class InvalidRange(CastoreError, ValueError):
    """A byte range that is negative, reversed, or not two integers."""


class StoreNotFound(CastoreError, FileNotFoundError):
    """There is no store at this path, and the caller asked for none to be made."""


class NotAStore(CastoreError, ValueError):
    """The path holds something that is not a castore store, or may not hold one."""


UPGRADE: Final = ": upgrade castore"  # how the messages of UnsupportedFormat end


class UnsupportedFormat(CastoreError, ValueError):
    """The store was written by a newer castore."""


class ReadOnlyStore(CastoreError, PermissionError):
    """A write to a store that was opened with `read_only=True`."""


class PermissionDenied(CastoreError, PermissionError):
    """The user may not read, or not write, a file of the store."""

    def __init__(self, path: str) -> None:
        super().__init__(
            errno.EACCES,
            f"no permission for {path}: use the store as the user who made it, or have them share "
            "it (chmod -R g+rX to let a group read)",
            path,
        )
        self.path = path


class StoreClosed(CastoreError, ValueError):
    """The store was closed (or was inherited through a fork by an object that can't reopen it)."""


class StoreLocked(CastoreError, BlockingIOError):
    """The store is in use from where it can't be shared, such as another pid namespace."""


class StoreBusy(CastoreError, BlockingIOError):
    """Somebody else is doing to the store what only one can do at a time, such as collecting."""

    def __init__(self, message: str) -> None:
        super().__init__(errno.EAGAIN, message)


class IndexChanged(StoreBusy):
    """The index was written to while it was read by somebody who may not lock it, and what was read
    is no state that it ever had: repeat it."""


class StoreFull(CastoreError, OSError):
    """The disk or the index is full: nothing was published; free some space and repeat."""

    def __init__(self, message: str) -> None:
        super().__init__(errno.ENOSPC, message)


class StoreIOError(CastoreError, OSError):
    """The operating system failed a read or a write of the store (EIO, EMFILE, ...)."""

    def __init__(self, message: str, code: int = errno.EIO) -> None:
        super().__init__(code, message)


class PackPoisoned(StoreIOError):
    """An fsync of this pack failed: what was in it since its last good fsync is not stored."""


class CommitUnknown(StoreIOError):
    """The commit failed in a way that does not tell whether it landed: look before you repeat."""


class FileStillOpen(CastoreError, ValueError):
    """A file that belongs to a transaction was not closed before its end: whether it is whole is
    not known, so nothing was published."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"{name!r} was opened in the transaction and not closed: close it before the end. "
            "Nothing is published"
        )
        self.name = name


class ObjectChanged(CastoreError, OSError):
    """A name maps to other bytes than when its file was pickled, or opened to append to it."""

    def __init__(self, name: str) -> None:
        super().__init__(
            errno.ESTALE, f"{name!r} was put anew or deleted since it was opened: open it again"
        )
        self.name = name


class SourceChanged(CastoreError, OSError):
    """The file that was being put was truncated, or changed again and again, while it was read:
    nothing of it was published."""

    def __init__(self, message: str) -> None:
        super().__init__(errno.EIO, message)


class TimeOutOfRange(CastoreError, ValueError):
    """A time that no record can hold: it is not within the years 1678 to 2261."""

    _held = "a record can hold the years 1678 to 2261: touch the file"

    def __init__(self, what: str, time_ns: int) -> None:
        super().__init__(f"the time of {what} is {time_ns / 1e9:.0f} s from 1970, and {self._held}")
        self.what = what
        self.time_ns = time_ns


class ClockOutOfRange(TimeOutOfRange):
    """So is that of this machine's clock, or it is before 1970: it is no fault of a file."""

    _held = "a store can hold the years 1970 to 2261: set the clock"

    def __init__(self, time_ns: int) -> None:
        super().__init__("this machine's clock", time_ns)


class FormatError(CastoreError, ValueError):
    """Bytes of the store that do not parse: a frame, footer, segment, record or config."""


class ConfigLost(FormatError):
    """A store's castore.json is gone or damaged, while what the store holds is there. None is made
    anew: nothing of the old store could be read with it."""


class ManifestUnreadable(FormatError):
    """What a name maps to can't be read, so that what it needs is not known."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(
            f"the manifest of {name!r} can't be read ({reason}): put the name again or delete it"
        )
        self.name = name
        self.reason = reason


class ChunkCorrupt(CastoreError, OSError):
    """A chunk's frame does not decode to bytes of its id, and there is no other copy."""

    def __init__(self, chunk_id: bytes, pack_id: bytes, offset: int, reason: str) -> None:
        super().__init__(
            errno.EIO,
            f"chunk {chunk_id.hex()} is corrupt at byte {offset} of pack {pack_id.hex()} "
            f"({reason}): castore check --repair keeps what is left",
        )
        self.chunk_id = chunk_id
        self.pack_id = pack_id
        self.offset = offset
        self.reason = reason


class PackMissing(CastoreError, OSError):
    """A pack that the index names is not there: data was lost outside castore."""

    def __init__(self, pack_id: bytes) -> None:
        super().__init__(
            errno.EIO, f"pack {pack_id.hex()} is missing from the store: restore it from a backup"
        )
        self.pack_id = pack_id


class IndexCorrupt(CastoreError, OSError):
    """LMDB found its own file damaged."""

    def __init__(self, message: str) -> None:
        super().__init__(errno.EIO, message)


def index_lost(what: str) -> IndexCorrupt:
    """The error for an index that is damaged or gone, with the ways out."""
    return IndexCorrupt(
        f"{what}: make it anew (castore index rebuild), or restore it from a backup (castore "
        "restore)"
    )


class NotLocal(CastoreError, ValueError):
    """A store on S3, and something that only a local store has a use for."""


class CostsNothing(CastoreError, ValueError):
    """A local store, and a bound in dollars: what a collection does there costs none."""

    def __init__(self, root: str) -> None:
        super().__init__(
            f"a collection of {root}, on this machine, costs nothing but the bytes that it copies: "
            "bound these (--max-repack-bytes, or max_repack_bytes=)"
        )
        self.root = root


class IndexIntact(CastoreError, FileExistsError):
    """The index that a backup would replace is whole, and the caller did not insist."""

    def __init__(self, message: str) -> None:
        super().__init__(errno.EEXIST, message)


class CollectionRefused(StoreIOError):
    """A collector does not begin, as it could not tell what is garbage. Nothing was changed."""


class RepairRefused(StoreIOError):
    """More packs are missing than are there, as where packs/ is not mounted: a repair would take
    for lost what may come back. Nothing was changed."""


class UnclaimedData(CollectionRefused):
    """Packs hold what no name leads to because names were lost, not because they were deleted."""

    def __init__(self, root: str, reason: str) -> None:
        super().__init__(f"nothing is collected in {root}: {reason}")
        self.root = root
        self.reason = reason


class ClockSkewed(CollectionRefused):
    """The server's clock and this machine's are too far apart to tell how old anything is."""

    def __init__(self, url: str, skew_s: float) -> None:
        ahead = "ahead of" if skew_s > 0 else "behind"
        super().__init__(
            f"the clock of {url} is {abs(skew_s):.0f} s {ahead} this machine's: set the wrong one "
            "right and collect again"
        )
        self.url = url
        self.skew_s = skew_s


class StateWentBackwards(CollectionRefused):
    """`gc/state` is older than one that this machine has seen: the store was put back to an earlier
    one, or something else writes there."""

    def __init__(self, url: str, version: int, seen: int, cache: str) -> None:
        super().__init__(
            f"{url}/gc/state is at version {version}, and this machine has seen {seen}: if the "
            f"store was restored on purpose, and no writer is at work since before, remove {cache} "
            "and collect again"
        )
        self.url = url
        self.version = version
        self.seen = seen
        self.cache = cache


class PreconditionsIgnored(CollectionRefused):
    """The server does not honour what keeps a collector and the writers apart: `ignored` is the
    header, `instead` what is done with it, as `castore doctor` says it; `says` is that in words."""

    def __init__(self, endpoint: str, ignored: str, instead: str = "ignored") -> None:
        self.says = f"{endpoint}: {ignored} is {instead}"
        if instead == "ignored":
            self.says = f"{endpoint} ignores {ignored}"
        super().__init__(
            f"{self.says}: collect there only while nobody writes, and say so "
            "(--alone, or alone=True)"
        )
        self.endpoint = endpoint
        self.ignored = ignored
        self.instead = instead


class RemoteError(StoreIOError):
    """S3 failed a request, again and again where that is worth trying."""

    def __init__(self, message: str, status: int = 0, s3_code: str = "") -> None:
        super().__init__(message)
        self.status = status  # of HTTP; 0 when there was no answer
        self.s3_code = s3_code


class BucketNotFound(StoreNotFound):
    """There is no such bucket at this endpoint."""

    def __init__(self, bucket: str, endpoint: str) -> None:
        super().__init__(
            errno.ENOENT,
            f"there is no bucket {bucket!r} at {endpoint}: create it, or check its name and the "
            "endpoint",
        )
        self.bucket = bucket
        self.endpoint = endpoint


class AccessDenied(CastoreError, PermissionError):
    """The credentials are valid, and may not do this."""

    def __init__(self, action: str, url: str, reason: str = "") -> None:
        why = f" ({reason})" if reason else ""
        super().__init__(
            errno.EACCES, f"{action} is denied on {url}{why}: allow it in the IAM or bucket policy"
        )
        self.action = action
        self.url = url
        self.reason = reason


class CredentialsError(CastoreError, PermissionError):
    """No credentials were found, or the server does not accept them: expired, unknown, wrong."""

    def __init__(self, message: str) -> None:
        super().__init__(errno.EACCES, message)


class WrongRegion(CastoreError, OSError):
    """The bucket is in another region."""

    def __init__(self, bucket: str, region: str, used: str) -> None:
        where = f"region {region}" if region else "another region"
        which = region or "<the bucket's region>"
        super().__init__(
            errno.EREMOTE, f"bucket {bucket!r} is in {where}, not in {used}: set region={which}"
        )
        self.bucket = bucket
        self.region = region  # "" if the server didn't say
        self.used = used


class EndpointUnreachable(CastoreError, ConnectionError):
    """Nothing answers at the endpoint, or nothing that may be trusted."""

    def __init__(self, endpoint: str, reason: str) -> None:
        super().__init__(
            errno.EHOSTUNREACH,
            f"{endpoint} can't be reached ({reason}): check endpoint_url, and that the server is "
            "up",
        )
        self.endpoint = endpoint
        self.reason = reason


@contextmanager
def needs_installed(package: str, remedy: str) -> Iterator[None]:
    """Around imports of a package that need not be there: where it is not, the ModuleNotFoundError
    says what to install."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != package:
            raise
        raise ModuleNotFoundError(
            f"{package} is not installed: pip install '{remedy}'", name=package
        ) from error


def fault_of(decode: Callable[..., object], *args: object) -> str:
    """Why bytes do not decode; "" if they do."""
    try:
        decode(*args)
    except (FormatError, UnsupportedFormat) as error:
        return str(error)
    return ""


def describe_os_error(error: OSError) -> str:
    """What the system said, of which files, in one line: `a -> b: No space left on device`.

    Without the error's number, which OSError puts before it."""
    paths = [_text(path) for path in (error.filename, error.filename2) if path is not None]
    said = f"{' -> '.join(paths)}: {error.strerror}" if paths else str(error.strerror)
    return f"{said}: give it more (ulimit -v)" if error.errno == errno.ENOMEM else said


def describe_shortage(error: BaseException) -> str:
    """What to do about too little memory or too few threads, of which Python has errors of several
    kinds, in one line; "" for any other error."""
    if isinstance(error, RuntimeError) and "start new thread" in str(error):
        return "no further thread can be started: allow more of them (ulimit -u), or memory (-v)"
    # A module is imported when it is first needed, and its library has to be mapped then.
    unmapped = isinstance(error, ImportError) and any(
        said in str(error) for said in ("failed to map segment", "annot allocate memory")
    )
    if unmapped or isinstance(error, MemoryError):
        return "there is not enough memory for it: give it more (ulimit -v)"
    return ""


def _text(path: object) -> str:
    return path.decode(errors="backslashreplace") if isinstance(path, bytes) else str(path)
