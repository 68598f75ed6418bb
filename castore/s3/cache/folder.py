"""Where this machine keeps the cache of a store on S3, and whether the folder is ours to use.

A folder is named by the store's id and by where the store is: who may read a store could serve its
castore.json elsewhere, and what is remembered of that place would pass for the store's.

What another user could have put there is not used: neither frames, which are checked, nor the
index, a damaged one of which ends the process that opens it, nor links, which would be written
through.
"""

from __future__ import annotations

import hashlib
import os
import stat
import sys
import warnings

from castore.errors import CastoreError
from castore.system.fileio import make_durable_folder
from castore.urls import expand_home


class FolderNotOurs(CastoreError):
    """Others own the cache's folder, or may write there: no cache is kept."""


def cache_root() -> str | None:
    """CASTORE_CACHE_DIR, or `castore` in the platform's folder for caches; None, with a warning,
    for who has no home."""
    given = os.environ.get("CASTORE_CACHE_DIR")
    if given:
        return given
    mac = sys.platform == "darwin"
    above = None if mac else os.environ.get("XDG_CACHE_HOME")
    try:
        above = above or expand_home("~/Library/Caches" if mac else "~/.cache")
    except ValueError as error:
        warn_uncached(str(error))
        return None
    return os.path.join(above, "castore")


def cache_folder(store_id: bytes, place: str) -> str | None:
    """For the store with this id at `place`, which tells its endpoint, bucket and prefix."""
    root = cache_root()
    if root is None:
        return None
    name = hashlib.sha256(store_id + place.encode("utf-8", "surrogatepass")).hexdigest()[:32]
    return os.path.join(os.path.abspath(root), name)


def make_own_folder(path: str) -> None:
    """Have the cache's folder `path` there, for us alone. Raises FolderNotOurs, OSError."""
    root = os.path.dirname(path)
    make_durable_folder(root)
    _check_root(root)
    make_durable_folder(path)
    _check_ours(path)
    with os.scandir(path) as entries:
        for entry in entries:
            _check_ours(entry.path)
    for file in ("data.mdb", "lock.mdb"):
        _check_ours(os.path.join(path, "index", file))


def warn_uncached(why: str) -> None:
    warnings.warn(
        f"nothing is cached, so that each read asks S3 for all of it ({why}): set "
        "CASTORE_CACHE_DIR to a folder of your own",
        RuntimeWarning,
        stacklevel=2,
    )


def _check_root(root: str) -> None:
    """A folder for the caches of several users is fine as /tmp is: none can take another's."""
    status = os.stat(root)
    if status.st_uid not in (0, os.geteuid()):
        raise FolderNotOurs(f"{root} belongs to another user")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not status.st_mode & stat.S_ISVTX:
        raise FolderNotOurs(f"other users may write to {root}: chmod go-w it")


def _check_ours(path: str) -> None:
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return
    if stat.S_ISLNK(status.st_mode):
        raise FolderNotOurs(f"{path} is a link")
    if status.st_uid != os.geteuid():
        raise FolderNotOurs(f"{path} belongs to another user")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise FolderNotOurs(f"other users may write to {path}: chmod -R go-w it")
