"""What lies below a name, which the `/` in names suggests, and nothing else makes.

An object and names below it may exist side by side, as on S3; but to put an object where there are
only names below is refused, since it is far more often a mistake. Nothing here holds a lock between
that look and the put. `key` is the name in the store, and `name` what the caller wrote.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from castore.errors import NameNotFound
from conducto import context
from conducto.errors import NameIsFolder, NotTakenOver

if TYPE_CHECKING:
    import castore

DELETES_MAX = 5  # rounds, where others put or delete the object meanwhile


def refuse_directory(store: castore.Store, key: str, name: str) -> None:
    """Raises IsADirectoryError where an object would be put in the place of names below it."""
    if key.endswith("/"):
        raise is_directory(name, "an object's name does not end in '/'")
    if has_below(store, key) and not store.exists(key):
        raise is_directory(name, "other objects lie below it")


def is_directory(name: str, why: str) -> IsADirectoryError:
    return IsADirectoryError(errno.EISDIR, f"Is a directory ({why})", name)


def missing(store: castore.Store, key: str, name: str) -> NameNotFound:
    """Why there is no object with the name."""
    if has_below(store, key):
        return NameIsFolder(name)
    return absent(store.path, key, name)


def absent(url: str, key: str, name: str) -> NameNotFound:
    """As `missing`, where nothing has that name or lies below it in the store at `url`."""
    left = context.left_behind(url, key)
    return NameNotFound(name) if left is None else NotTakenOver(name, left)


def delete_tree(store: castore.Store, key: str) -> int:
    """Delete the object and all below it, in one commit where there is one; how many there were."""
    deleted = 0
    for _ in range(DELETES_MAX):
        is_there = not key.endswith("/") and store.exists(key)
        try:
            with store.transaction() as transaction:
                transaction.delete_prefix(folder_of(key))
                if is_there:
                    transaction.delete(key)
        except NameNotFound:  # somebody else deleted it just now: begin anew, with what is below it
            deleted += 1
            continue
        deleted += transaction.deleted
        # Else it may have come between the look and the commit, which would go on without it.
        if is_there or key.endswith("/") or not store.exists(key):
            break
    return deleted


def has_below(store: castore.Store, key: str) -> bool:
    return next(iter(store.names(folder_of(key))), None) is not None


def folder_of(key: str) -> str:
    return key if key.endswith("/") else key + "/"
