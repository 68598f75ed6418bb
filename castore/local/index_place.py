"""A local store's index as a folder that another may take the place of: drafts of it, and what was
replaced and is kept, lie beside it. What they hold is read here without LMDB: it may be damaged.
"""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
import time
from collections.abc import Iterator

from castore.errors import FormatError, IndexCorrupt, UnsupportedFormat
from castore.local.folder import CONFIG, INDEX_BYTES_MIN
from castore.system.fileio import adopt, descriptor, follow, sync_folder
from castore.system.lmdb_pages import IndexPages

DRAFT = "index.new-"
ASIDE = "index.before-"


@contextlib.contextmanager
def index_draft(root: str) -> Iterator[str]:
    """A new folder for an index that is to take the place; where that fails, it is removed."""
    draft = os.path.join(root, DRAFT + os.urandom(6).hex())
    try:
        os.mkdir(draft, 0o700)
        yield draft
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def take_place(root: str, draft: str) -> str:
    """The draft becomes the index; where the old one is then. Where the second of the two renames
    fails, as on a full disk, the first is taken back. Who is killed between them leaves a store
    that says that its index is gone, and another rebuild or restore goes on from there."""
    path = os.path.join(root, "index")
    _share(draft, path)
    sync_folder(draft)
    now = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    kept = os.path.join(root, f"{ASIDE}{now}-{os.urandom(3).hex()}")
    try:
        os.rename(path, kept)
    except FileNotFoundError:
        kept = ""
    try:
        os.rename(draft, path)
    except BaseException:
        if kept:
            os.rename(kept, path)
        raise
    sync_folder(root)
    return kept


def _share(draft: str, index: str) -> None:
    """The draft is for those whom the index was for that it takes the place of: others who share
    the store could read nothing of it any more. Where that is gone, for those whom castore.json is
    for; to write to if they may write to the store."""
    root = os.path.dirname(index)
    data, config = (
        status_at(each) for each in (os.path.join(index, "data.mdb"), os.path.join(root, CONFIG))
    )
    for made in (draft, *glob.glob(os.path.join(glob.escape(draft), "*.mdb"))):
        like = status_at(index) if made == draft else data
        if like is not None:
            follow(made, like)
        elif config is not None and config.st_mode & 0o044:
            with descriptor(made) as fd:
                adopt(fd, root, as_lock=True)
        elif os.geteuid() == 0:
            store = os.stat(root)
            os.chown(made, store.st_uid, store.st_gid)


def status_at(path: str) -> os.stat_result | None:
    """None where nothing is. Raises OSError."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        return os.stat(path)
    return None


def drafts(root: str) -> list[str]:
    return _beside(root, DRAFT)


def kept_aside(root: str) -> list[str]:
    return _beside(root, ASIDE)


def _beside(root: str, prefix: str) -> list[str]:
    return glob.glob(os.path.join(glob.escape(root), prefix + "*"))


def last_index(root: str) -> tuple[str, bool]:
    """The folder of the index, or of the last one that there was; whether it may be of weeks ago.

    If the last rebuild was killed between its two renames, the index is where the first put it, and
    its draft is there as well: it is put back. Without one, what was kept aside is older than the
    index that took its place, and is lost."""
    path = os.path.join(root, "index")
    kept = kept_aside(root)
    if not kept or os.path.exists(path):
        return path, False
    if not drafts(root):
        return max(kept), True
    os.rename(max(kept), path)
    sync_folder(root)
    return path, False


# ---------------------------------------------------------------- what is in one


def has_index(folder: str) -> bool:
    """Whether there is anything to be read of one in the folder."""
    try:
        with descriptor(os.path.join(folder, "data.mdb")) as fd:
            return os.fstat(fd).st_size >= INDEX_BYTES_MIN and bool(IndexPages(fd, folder).meta)
    except (FileNotFoundError, IndexCorrupt):
        return False


def has_names(folder: str) -> bool:
    """Whether the table of names can be found in an index: one page lists all tables."""
    with descriptor(os.path.join(folder, "data.mdb")) as fd:
        return b"names" in IndexPages(fd, folder).tables()


def meta_row(folder: str, key: bytes) -> bytes | None:
    """Of the index in the folder, which may be damaged, or none."""
    lost = (FormatError, UnsupportedFormat, IndexCorrupt, FileNotFoundError)
    with contextlib.suppress(*lost), descriptor(os.path.join(folder, "data.mdb")) as fd:
        pages = IndexPages(fd, folder)
        table = pages.tables().get(b"meta")
        return dict(pages.rows(table)).get(key) if table else None
    return None
