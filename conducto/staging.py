"""Folders by descriptors: in a place where others can write too, a path may lead elsewhere at any
moment. What is made is entered by its own name, from the folder that it was made in, and never
through a link."""

from __future__ import annotations

import fcntl
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from conducto.errors import CacheRefused

STAGING_PREFIX = ".conducto-restore-"
STAGING = re.compile(re.escape(STAGING_PREFIX) + "[0-9a-f]{16}")  # the names of these folders
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def enter(name: str, folder_fd: int) -> int:
    """A descriptor of the folder `name` in another; OSError if it is none, or a link to one."""
    return os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=folder_fd)


@contextmanager
def entered(name: str, folder_fd: int) -> Iterator[int]:
    fd = enter(name, folder_fd)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def made(folder: str) -> Iterator[int]:
    """A descriptor of the folder, which is made, with those that it is in, if it is not there; and
    unmade when the block raises."""
    path, missing = folder, []
    while True:
        try:
            fds = [os.open(path or ".", _FOLDER)]
            break
        except FileNotFoundError:
            path, name = os.path.split(os.path.abspath(path))
            missing.append(name)
    new: list[int] = []  # which of `missing` are ours
    missing.reverse()
    try:
        for at, name in enumerate(missing):
            with suppress(FileExistsError):  # made by someone else just now
                os.mkdir(name, dir_fd=fds[-1])
                new.append(at)
            fds.append(enter(name, fds[-1]))
        yield fds[-1]
    except BaseException:
        for at in reversed(new):
            with suppress(OSError):  # not empty: no longer ours alone
                os.rmdir(missing[at], dir_fd=fds[at])
        raise
    finally:
        for fd in fds:
            os.close(fd)


@contextmanager
def staged(target_fd: int) -> Iterator[int]:
    """A descriptor of a new private folder inside `target_fd`, so on its file system: what is in it
    can be renamed. It goes, with what is left in it; that of a process which was killed goes with
    the next."""
    _remove_left(target_fd)
    name, fd = _made_own(target_fd)
    try:
        own, others = os.fstat(fd), os.fstat(target_fd)
        if own.st_uid != os.geteuid() and others.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise CacheRefused(
                "somebody put another folder in the place of the one to restore into"
            )
        try:
            yield fd
        finally:
            _empty(fd)
            with suppress(FileNotFoundError):
                there = os.stat(name, dir_fd=target_fd, follow_symlinks=False)
                if os.path.samestat(there, own):
                    os.rmdir(name, dir_fd=target_fd)
    finally:
        os.close(fd)


def _made_own(target_fd: int) -> tuple[str, int]:
    """Its name and descriptor. It is locked for as long as that is open."""
    while True:
        name = STAGING_PREFIX + os.urandom(8).hex()
        os.mkdir(name, 0o700, dir_fd=target_fd)
        try:
            fd = enter(name, target_fd)
        except FileNotFoundError:  # taken for one that was left, as it was not locked yet
            continue
        except BaseException:
            with suppress(OSError):  # something else is in its place
                os.rmdir(name, dir_fd=target_fd)
            raise
        with suppress(OSError):  # no locks here: then nobody takes it for one that was left
            fcntl.flock(fd, fcntl.LOCK_EX)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.stat(name, dir_fd=target_fd), os.fstat(fd)):
                return name, fd
        os.close(fd)  # gone, as above


def _remove_left(target_fd: int) -> None:
    """Remove what processes left that were killed, as nobody has it locked. Not where others can
    write: they could have put anything of ours in its place."""
    if os.fstat(target_fd).st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return
    for name in os.listdir(target_fd):
        if name.startswith(STAGING_PREFIX):
            # It is in use, or no folder, or cannot be emptied: whoever restores need not care.
            with suppress(OSError), entered(name, target_fd) as fd:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _empty(fd)
                os.rmdir(name, dir_fd=target_fd)


def _empty(folder_fd: int) -> None:
    with os.scandir(folder_fd) as entries:
        found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    for name, is_folder in found:
        if is_folder:
            with entered(name, folder_fd) as fd:
                _empty(fd)
            os.rmdir(name, dir_fd=folder_fd)
        else:
            os.unlink(name, dir_fd=folder_fd)
