"""What the first Conducto kept as plain files on this machine, put into the store.

Beside the store, in the profile's folder, it had the user's files below `data/` and those of each
pipeline below `pipelines/<id>/data/`. Those are their names in the store, too.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from typing import TYPE_CHECKING, TypedDict

from castore.errors import InvalidName, NameExists, SourceChanged, TimeOutOfRange
from conducto import context
from conducto.errors import ContextError

if TYPE_CHECKING:
    import castore


NOT_THERE = (FileNotFoundError, NotADirectoryError)


class TakenOver(TypedDict):
    """How many files were put, how many names the store has already, and, by path, why others were
    left out."""

    put: int
    there_already: int
    left_out: dict[str, str]


def take_over(*, local: bool | None = None, profile: str | None = None) -> TakenOver:
    """Put each file that the first Conducto kept into the store, with its mode and time, unless
    there is an object with its name. The files stay. To repeat it is to go on."""
    if not context.is_local(local):
        raise ContextError("what is taken over is on this machine: say so, with --local")
    store = context.open_store(local=True, profile=profile)
    done: TakenOver = {"put": 0, "there_already": 0, "left_out": {}}
    for name, path in _files(os.path.dirname(store.path), done["left_out"]):
        try:
            if _put(store, name, path):
                done["put"] += 1
            else:
                done["there_already"] += 1
        except (InvalidName, SourceChanged, TimeOutOfRange) as error:
            done["left_out"][path] = str(error)
        except OSError as error:
            if error.filename != path:  # it is not about this file
                raise
            done["left_out"][path] = error.strerror or str(error)
    return done


def _files(base: str, left_out: dict[str, str]) -> Iterator[tuple[str, str]]:
    """(name, path) of every regular file that was kept. No link is followed. What can't be looked
    at is left out: only what is not there was never kept."""

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
        top = os.path.join(base, kept)

        def below(error: OSError, top: str = top) -> None:
            if error.filename != top or not isinstance(error, NOT_THERE):
                unreadable(error)

        for folder, folders, files in os.walk(top, onerror=below):
            folders.sort()
            links = [each for each in folders if os.path.islink(os.path.join(folder, each))]
            for each in sorted(files + links):
                path = os.path.join(folder, each)
                try:
                    regular = stat.S_ISREG(os.lstat(path).st_mode)
                except OSError as error:
                    unreadable(error)
                    continue
                if regular:
                    yield os.path.relpath(path, base), path
                else:
                    left_out[path] = "it is no regular file"


def _put(store: castore.Store, name: str, path: str) -> bool:
    """Whether there was no object with the name."""
    try:
        with store.transaction() as transaction:
            written = os.stat(path).st_mtime_ns
            transaction.put(name, path, if_absent=True, mtime_ns=written)
    except NameExists:
        return False
    return True
