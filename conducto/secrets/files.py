"""Files for their owner alone, replaced whole and durably, under a lock."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_DRAFT = ".draft"


def read(path: str, bytes_max: int) -> bytes | None:
    """What is in the file, up to one byte more than `bytes_max`; None if there is no file."""
    try:
        with open(path, "rb") as file:
            return file.read(bytes_max + 1)
    except FileNotFoundError:
        return None


def replace(path: str, data: bytes) -> None:
    """Make `data` the file's content: durably, and after a crash at any moment the file is the old
    or the new one, whole. Its folder's lock is held."""
    folder, name = os.path.split(path)
    _remove_drafts(folder, name)
    draft = os.path.join(folder, f".{name}.{os.urandom(8).hex()}{_DRAFT}")
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            _adopt(fd, folder)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.rename(draft, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(draft)
        raise
    _sync(folder)


@contextmanager
def locked(path: str) -> Iterator[None]:
    """Have the lock of this file, which is made, with its folder, if it is not there. Waits for
    who has it; a process that dies lets it go."""
    _make_folder(os.path.dirname(path))
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        _adopt(fd, os.path.dirname(path))
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _remove_drafts(folder: str, name: str) -> None:
    """What was being written when a process was killed."""
    for each in os.listdir(folder):
        if each.startswith(f".{name}.") and each.endswith(_DRAFT):
            os.unlink(os.path.join(folder, each))


def _make_folder(folder: str) -> None:
    if os.path.isdir(folder):
        return
    above = os.path.dirname(folder)
    _make_folder(above)
    with suppress(FileExistsError):
        os.mkdir(folder, 0o700)
        _adopt(folder, above)
    _sync(above)


def _adopt(made: int | str, folder: str) -> None:
    """What root makes in somebody's folder (by sudo) is theirs."""
    owner = os.stat(folder)
    if os.geteuid() == 0 != owner.st_uid:
        os.chown(made, owner.st_uid, owner.st_gid)


def _sync(folder: str) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
