"""Reading what is left of a local store whose index is damaged.

LMDB stops at a damaged page. So the rows that can be read, page by page and without LMDB, are
copied to an index of their own, in a temporary folder over the same packs: a store that can only be
read, and in which nothing is in the way. Which names are lost, it says.
"""

from __future__ import annotations

import contextlib
import os
from argparse import Namespace
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from castore.cli import exits
from castore.cli.output import complain
from castore.cli.stores import local_store_folder, open_to_read, store_path
from castore.errors import IndexCorrupt

if TYPE_CHECKING:
    from castore.store import Store


def read_all(arguments: Namespace, work: Callable[[Store, bool], int]) -> int:
    """The exit code of `work` on the store that the command names. If its index turns out to be
    damaged, `work` is done anew on what can be read of it, and is told so."""
    try:
        with open_to_read(arguments) as store:
            return work(store, False)
    except IndexCorrupt as error:
        folder = local_store_folder(store_path(arguments))
        if folder is None:
            raise
        with _salvaged(os.path.realpath(folder), error) as store:
            work(store, True)
        return exits.CORRUPT


@contextlib.contextmanager
def _salvaged(root: str, error: IndexCorrupt) -> Iterator[Store]:
    """Raises IndexCorrupt if no names can be read."""
    import shutil  # these are for a damaged index alone
    import tempfile

    import castore
    from castore.local.transplant import transplant_file
    from castore.system.lmdb_env import open_index

    with tempfile.TemporaryDirectory(prefix="castore-") as folder:
        index = open_index(os.path.join(folder, "index"), sync=False)
        try:
            lost = transplant_file(os.path.join(root, "index"), index).lost_names
        except FileNotFoundError:  # it is gone, which `error` says, with the ways out
            raise error from None
        finally:
            index.close()
        complain(f"{error}; what can be read of it follows")
        for what in lost:
            complain(f"lost: {what}")
        shutil.copyfile(os.path.join(root, "castore.json"), os.path.join(folder, "castore.json"))
        os.symlink(os.path.join(root, "packs"), os.path.join(folder, "packs"))
        with castore.open(folder, create=False, read_only=True) as store:
            yield store
