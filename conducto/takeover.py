"""What the first Conducto kept as plain files on this machine, put into the store.

Beside the store, in the profile's folder, it had the user's files below `data/` and those of each
pipeline below `pipelines/<id>/data/`. Those are their names in the store, too.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple, TypedDict

from castore.errors import ClockOutOfRange, InvalidName, NameExists, SourceChanged, TimeOutOfRange
from conducto import context
from conducto.errors import ContextError

if TYPE_CHECKING:
    import castore

GROUP_FILES_MAX = 500  # a commit for each file would wait for the disk as often
GROUP_BYTES_MAX = 256 << 20
NOT_THERE = (FileNotFoundError, NotADirectoryError)


class TakenOver(TypedDict):
    """How many files were put, how many names the store has already, and, by path, why others were
    left out."""

    put: int
    there_already: int
    left_out: dict[str, str]


class _Kept(NamedTuple):
    """A file, the name it goes under, and its size in bytes."""

    name: str
    path: str
    size: int


def take_over(*, local: bool | None = None, profile: str | None = None) -> TakenOver:
    """Put each file that the first Conducto kept into the store, with its mode and time, unless
    there is an object with its name. The files stay. To repeat it is to go on."""
    if not context.is_local(local):
        raise ContextError("what is taken over is on this machine: say so, with --local")
    store = context.open_store(local=True, profile=profile)
    done: TakenOver = {"put": 0, "there_already": 0, "left_out": {}}
    for files in _groups(_files(os.path.dirname(store.path), done["left_out"])):
        _put(store, files, done)
    return done


def _files(base: str, left_out: dict[str, str]) -> Iterator[_Kept]:
    """Every regular file that was kept. No link is followed. What can't be looked at is left out:
    only what is not there was never kept."""

    def unreadable(error: OSError) -> None:
        left_out[str(error.filename)] = error.strerror or str(error)

    pipelines = os.path.join(base, "pipelines")
    ids: list[str] = []
    try:
        ids = sorted(os.listdir(pipelines))
    except OSError as error:
        if not isinstance(error, NOT_THERE):
            unreadable(error)
    for kept in ["data", *(f"pipelines/{each}/data" for each in ids)]:
        link = _link_to(base, kept)
        if link is not None and os.path.lexists(os.path.join(base, kept)):
            left_out[link] = "it is a symbolic link"
            continue
        for path in _paths_below(os.path.join(base, kept), unreadable):
            try:
                status = os.lstat(path)
            except OSError as error:
                unreadable(error)
                continue
            if stat.S_ISREG(status.st_mode):
                yield _Kept(os.path.relpath(path, base), path, status.st_size)
            else:
                left_out[path] = "it is no regular file"


def _paths_below(top: str, unreadable: Callable[[OSError], None]) -> Iterator[str]:
    """Of all that is no folder, links included."""

    def failed(error: OSError) -> None:
        if error.filename != top or not isinstance(error, NOT_THERE):
            unreadable(error)

    for folder, folders, files in os.walk(top, onerror=failed):
        folders.sort()
        links = [each for each in folders if os.path.islink(os.path.join(folder, each))]
        yield from (os.path.join(folder, each) for each in sorted(files + links))


def _link_to(base: str, kept: str) -> str | None:
    """The first symbolic link on the way down from `base`, if there is one."""
    path = base
    for part in kept.split("/"):
        path = os.path.join(path, part)
        if os.path.islink(path):
            return path
    return None


def _groups(files: Iterable[_Kept]) -> Iterator[list[_Kept]]:
    """The files in order, so many as one commit may put."""
    group: list[_Kept] = []
    group_bytes = 0
    for each in files:
        if group and (len(group) == GROUP_FILES_MAX or group_bytes + each.size > GROUP_BYTES_MAX):
            yield group
            group, group_bytes = [], 0
        group.append(each)
        group_bytes += each.size
    if group:
        yield group


def _put(store: castore.Store, files: list[_Kept], done: TakenOver) -> None:
    """Put those of these files whose names are free, in one commit, and count all of them."""
    put = there_already = 0
    left_out: dict[str, str] = {}
    try:
        with store.transaction() as transaction:
            for name, path, _ in files:
                try:
                    written = os.stat(path).st_mtime_ns
                    transaction.put(name, path, if_absent=True, mtime_ns=written)
                    put += 1
                except NameExists:
                    there_already += 1
                except ClockOutOfRange:  # nor could any other file be put
                    raise
                except (InvalidName, SourceChanged, TimeOutOfRange) as error:
                    left_out[path] = str(error)
                except OSError as error:
                    if error.filename != path:  # it is not about this file
                        raise
                    left_out[path] = error.strerror or str(error)
    except NameExists:  # somebody else put it since: the others go one by one
        if len(files) > 1:
            for each in files:
                _put(store, [each], done)
            return
        put, there_already = 0, 1
    done["put"] += put
    done["there_already"] += there_already
    done["left_out"] |= left_out
