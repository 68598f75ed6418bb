"""Files that must not be opened while their store is."""

from __future__ import annotations

import os

from castore.errors import NotAStore
from castore.system.lmdb_env import index_folders
from castore.urls import text_of


def refuse_open_store_paths(path: str | os.PathLike[str]) -> None:
    """Raises NotAStore if the file lies inside a store that this process has open, or inside the
    cache of one on S3; TypeError for a path of bytes.

    To open and close LMDB's files anywhere else in the process would drop its locks, and another
    process could then reuse pages that are being read here.
    """
    _refuse(path, open_store_of(text_of(path)))


def refuse_open_store_real_path(path: str) -> None:
    """The same of a path without symlinks, which are not looked for."""
    _refuse(path, _open_store_of_real(path))


def _refuse(path: str | os.PathLike[str], root: str | None) -> None:
    if root is not None:
        is_store = os.path.exists(os.path.join(root, "castore.json"))
        what = "the open store" if is_store else "the cache of an open store,"
        raise NotAStore(f"{os.fspath(path)} lies inside {what} {root}")


def open_store_of(path: str | os.PathLike[str]) -> str | None:
    """The store that this process has open, or the cache of one, in which a path lies."""
    return _open_store_of_real(os.path.realpath(path)) if index_folders() else None


def _open_store_of_real(path: str) -> str | None:
    for folder in index_folders():
        root = os.path.realpath(os.path.dirname(folder))  # of a store or of a cache: in its index/
        if path == root or path.startswith(root + os.sep):
            return root
    return None
