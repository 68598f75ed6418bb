"""Files that must not be opened while their store is."""

from __future__ import annotations

import os

from castore.errors import NotAStore
from castore.system.lmdb_env import index_folders


def refuse_open_store_paths(path: str | os.PathLike[str]) -> None:
    """Raises NotAStore if the file lies inside a store that this process has open, or inside the
    cache of one on S3.

    To open and close LMDB's files anywhere else in the process would drop its locks, and another
    process could then reuse pages that are being read here.
    """
    root = open_store_of(path)
    if root is not None:
        is_store = os.path.exists(os.path.join(root, "castore.json"))
        what = "the open store" if is_store else "the cache of an open store,"
        raise NotAStore(f"{os.fspath(path)} lies inside {what} {root}")


def open_store_of(path: str | os.PathLike[str]) -> str | None:
    """The store that this process has open, or the cache of one, in which a path lies."""
    folders = index_folders()
    if not folders:
        return None
    real = os.path.realpath(path)
    for folder in folders:
        root = os.path.realpath(os.path.dirname(folder))  # of a store or of a cache: in its index/
        if real == root or real.startswith(root + os.sep):
            return root
    return None
