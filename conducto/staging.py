"""Folders by descriptors: in a place where others can write too, a path may lead elsewhere at any
moment. What is made is entered by its own name, from the folder that it was made in, and never
through a link."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from conducto.errors import CacheRefused

STAGING_PREFIX = ".conducto-restore-"
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
    can be renamed. It goes, with what is left in it."""
    name = STAGING_PREFIX + os.urandom(8).hex()
    os.mkdir(name, 0o700, dir_fd=target_fd)
    try:
        fd = enter(name, target_fd)
    except BaseException:
        with suppress(OSError):  # something else is in its place
            os.rmdir(name, dir_fd=target_fd)
        raise
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
