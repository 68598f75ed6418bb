"""A folder that objects are written into as files: nothing lands outside of it.

Every step on the way to a file is taken from an open folder to one inside it (`dir_fd`), and never
through a symlink: what somebody swaps for a link meanwhile can't lead a file elsewhere."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import unicodedata
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from castore.errors import InvalidName
from castore.model import encode_name
from castore.system.fileio import write_all
from castore.system.locks import Lock
from castore.system.open_folders import open_store_of

try:
    from castore import _native
except ImportError:
    _native = None  # type: ignore[assignment]

_FOLDER = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_DRAFT = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
FILE_BITS = 0o777  # setuid, setgid and sticky are not given to a file by somebody's store


class InTheWay(Exception):
    """Why a name can't be a file in this folder."""


class OutFolder:
    """The folder at `path`, which is made where it is not there. For several threads at once."""

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            os.makedirs(path, exist_ok=True)
        except FileExistsError:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path) from None
        self._fd = os.open(path, (_FOLDER | os.O_RDONLY) & ~os.O_NOFOLLOW)
        self._lock = Lock()
        self._spelled: dict[str, str] | None = {} if ignores_case(self._fd) else None
        # The last folder in it, and the open store that it is in: files come folder by folder.
        self._asked: tuple[str | None, str | None] = (None, None)

    def close(self) -> None:
        os.close(self._fd)

    def claim(self, inner: str) -> list[str]:
        """The parts of the path of a file in this folder. Raises InTheWay for what can't be one,
        lies inside a store that this process has open, or is one with another name's that was
        claimed before."""
        parts = inner.split("/")
        if "" in parts:
            raise InTheWay("it has an empty part, which a file's path can't have")
        try:
            encode_name(inner)
            os.fsencode(inner)
        except InvalidName as error:
            raise InTheWay(str(error)) from None
        except UnicodeEncodeError as error:
            raise InTheWay(f"the locale has no such name of a file: {error}") from None
        store = self._store_of(inner.rpartition("/")[0])
        if store is not None:
            raise InTheWay(f"{os.path.join(self.path, inner)} lies inside the open store {store}")
        if self._spelled is not None:
            with self._lock:
                other = self._spelled.setdefault(_folded(inner), inner)
            if other != inner:
                raise InTheWay(f"it would be one file with {other!r}: the folder ignores case")
        return parts

    def _store_of(self, folder: str) -> str | None:
        asked = self._asked
        if asked[0] != folder:
            asked = self._asked = folder, open_store_of(os.path.join(self.path, folder))
        return asked[1]

    @contextlib.contextmanager
    def opened(self, parts: Sequence[str], *, make: bool = True) -> Iterator[int]:
        """A descriptor of the folder that these lead to, which it is to `make` where it is not
        there. Raises InTheWay, OSError."""
        fd = os.dup(self._fd)
        try:
            for i, part in enumerate(parts):
                inside = _enter(fd, part, os.path.join(self.path, *parts[: i + 1]), make=make)
                os.close(fd)
                fd = inside
            yield fd
        finally:
            os.close(fd)


class Draft:
    """A new file, open at `fd`, that is to take another one's place."""

    def __init__(self) -> None:
        self.fd = -1

    def finish(self, mode: int, mtime_ns: int | None = None) -> None:
        """It is whole: what is left is its mode, less the bits that nobody's store may set, and its
        time, if that is not to be now."""
        # A file system that has no permission bits, as a USB stick's, takes the bytes nevertheless.
        with contextlib.suppress(PermissionError):
            os.fchmod(self.fd, mode & FILE_BITS)
        if mtime_ns is not None:
            os.utime(self.fd, ns=(mtime_ns, mtime_ns))

    def close(self) -> None:
        """Idempotent. Raises OSError: a network's file system may say only now that there is no
        room."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


@contextlib.contextmanager
def replacing(leaf: str, *, folder: int | None = None) -> Iterator[Draft]:
    """A new file that takes the place of `leaf`, a path or a name in the open folder, if the block
    succeeds; else nothing is left of it."""
    path = os.path.join(os.path.dirname(leaf), _draft_name())
    draft = Draft()
    try:
        # Within the `try`: an interrupt may come as soon as the file is there.
        draft.fd = os.open(path, _DRAFT, 0o600, dir_fd=folder)
        yield draft
        draft.close()
        os.rename(path, leaf, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path, dir_fd=folder)
        raise
    finally:
        draft.close()


def _draft_name() -> str:
    return f".castore-{os.urandom(8).hex()}"


class NewFile(NamedTuple):
    """A file to be, of these bytes, permission bits and time (None: now)."""

    leaf: str
    raw: bytes | memoryview
    mode: int
    mtime_ns: int | None


def write_small(folder: int, files: Sequence[NewFile], *, replace: bool = False) -> list[bool]:
    """Write files in the open folder, each as `replacing` and `finish` do; only those that are not
    there yet, unless it is to `replace` what is. Whether each is in its place: of one that is not,
    nothing is left, and nothing of the name was touched. Why, is told to who writes it by itself.
    A file that comes meanwhile is replaced."""
    if _native is None:
        return [_written(folder, file, replace=replace) for file in files]
    drafts = os.urandom(8 * len(files)).hex()
    errors = _native.write_files(
        folder,
        tuple(
            (
                b".castore-%b" % drafts[i * 16 : i * 16 + 16].encode(),
                os.fsencode(leaf),
                raw,
                mode & FILE_BITS,
                mtime_ns,
            )
            for i, (leaf, raw, mode, mtime_ns) in enumerate(files)
        ),
        replace,
    )
    return [not error for error in errors]


def _written(folder: int, file: NewFile, *, replace: bool) -> bool:
    try:
        if not replace and status_in(folder, file.leaf) is not None:
            return False
        with replacing(file.leaf, folder=folder) as draft:
            write_all(draft.fd, [file.raw], 0)
            draft.finish(file.mode, file.mtime_ns)
    except OSError:
        return False
    return True


def status_in(folder: int, leaf: str) -> os.stat_result | None:
    """None if there is nothing of this name. Raises OSError, as where the name is too long."""
    try:
        return os.stat(leaf, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None


def status_if_new(folder: int, mode: int, mtime_ns: int) -> os.stat_result | None:
    """What a new file in the open folder shows of this mode and time once it was given them; None
    where none can be made."""
    probe = _draft_name()
    draft = Draft()
    try:
        # Within the `try`: an interrupt may come as soon as the file is there.
        draft.fd = os.open(probe, _DRAFT, 0o600, dir_fd=folder)
        draft.finish(mode, mtime_ns)
        return os.fstat(draft.fd)
    except OSError:
        return None
    finally:
        with contextlib.suppress(OSError):
            draft.close()
        with contextlib.suppress(OSError):
            os.unlink(probe, dir_fd=folder)


def ignores_case(folder: int) -> bool:
    """Whether names that differ in case alone are one name in the open folder, as on macOS."""
    probe = f".castore-a{os.urandom(7).hex()}0"
    try:
        # A folder, which takes no descriptor, and within the `try`: an interrupt may come at once.
        os.mkdir(probe, 0o700, dir_fd=folder)
        return status_in(folder, probe.upper()) is not None
    except OSError:  # whatever it is, the first file will say it
        return False
    finally:
        with contextlib.suppress(OSError):
            os.rmdir(probe, dir_fd=folder)


def _folded(inner: str) -> str:
    # Folders that ignore case hold 'é' to be one with 'e' and an accent, too.
    return unicodedata.normalize("NFD", unicodedata.normalize("NFD", inner).casefold())


def _enter(fd: int, part: str, path: str, *, make: bool) -> int:
    """The folder `part` in the open folder, which it is to `make` if there is none."""
    for _ in range(2):
        try:
            return os.open(part, _FOLDER, dir_fd=fd)
        except FileNotFoundError:
            if not make:
                raise
            with contextlib.suppress(FileExistsError):
                os.mkdir(part, dir_fd=fd)
        except OSError:
            status = status_in(fd, part)
            if status is None or stat.S_ISDIR(status.st_mode):
                raise
            kind = "symlink" if stat.S_ISLNK(status.st_mode) else "file"
            raise InTheWay(f"{path} is a {kind}") from None
    return os.open(part, _FOLDER, dir_fd=fd)
