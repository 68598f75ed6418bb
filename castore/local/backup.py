"""Backups of a local store's index, where names are.

A backup is one file: LMDB's own copy of the index, consistent and compact, then castore.json
(without its seed no chunk can be checked), then a trailer with a checksum of both. It is taken
while the store is in use, in a process of its own (see `isolated`), read through from end to end
before it gets its name, and durable then. The packs are not in it: copy the folder packs/ after the
backup was taken, with anything that copies files, as what a pack holds never changes."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import threading
import time
from collections.abc import Iterator

import xxhash

from castore.errors import (
    CastoreError,
    FormatError,
    IndexChanged,
    IndexCorrupt,
    IndexIntact,
    NotAStore,
    StoreFull,
    StoreIOError,
    StoreNotFound,
)
from castore.format.backup import (
    BACKUP_TRAILER_BYTES,
    BackupTrailer,
    decode_backup_trailer,
    encode_backup_trailer,
)
from castore.format.config import StoreConfig, decode_config
from castore.local.config_repair import put_config
from castore.local.folder import (
    CONFIG,
    INDEX_BYTES_MIN,
    alone,
    check_index_in_place,
    find_config,
    no_store,
    read_config,
)
from castore.local.index_place import index_draft, take_place
from castore.local.journal.scan import read_journal
from castore.local.rebuild import Sources, replace_index
from castore.local.transplant import Transplanted, transplant
from castore.model import Progress
from castore.stream.operations import now_ns
from castore.stream.reports import BackupReport, CompactReport, RebuildReport
from castore.system import isolated
from castore.system.fileio import descriptor, of_file, sync_folder, typed_errors, write_all
from castore.system.lmdb_env import Index
from castore.system.translated import Translated
from castore.wording import counted

BLOCK_BYTES = 1 << 20
GROWTH_S = 0.2
DRAFT_S = 86400  # since the last change of a draft: nobody writes it any more
_DRAFT = re.compile(r"\.castore-[0-9a-f]{16}")


def back_up(
    root: str, path: str, *, read_only: bool = False, progress: Progress | None = None
) -> BackupReport:
    """Write a backup of the index of the store in the folder `root` to a file, which is replaced in
    one step; drafts of backups that were killed, beside it, go when they are a day old. `progress`
    counts the bytes of the index three times: it is copied, read through and summed.

    Raises IndexCorrupt if the index is damaged: the file stays as it was then; IsADirectoryError,
    FileExistsError for what is no file; StoreFull, StoreIOError."""
    path = os.path.realpath(path)
    if os.path.isdir(path):
        raise IsADirectoryError(errno.EISDIR, "a backup is a file, and this is a folder", path)
    if os.path.exists(path) and not os.path.isfile(path):
        raise FileExistsError(
            errno.EEXIST, "a backup is a file, and this is a device or pipe", path
        )
    draft = os.path.join(os.path.dirname(path), f".castore-{os.urandom(8).hex()}")
    with _errors_of(path):
        try:
            _remove_drafts(os.path.dirname(path))
            os.mkdir(draft, 0o700)
        except OSError as error:
            raise of_file(error, os.path.dirname(path)) from None
        try:
            data = os.path.join(draft, "data.mdb")
            with descriptor(data, os.O_RDWR | os.O_CREAT | os.O_EXCL) as fd:
                names = _copy(root, draft, fd, read_only=read_only, progress=progress)
                size = _finish(fd, root, progress)
            os.rename(data, path)
            sync_folder(os.path.dirname(path))
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return BackupReport(path, size, names)


def _copy(root: str, draft: str, fd: int, *, read_only: bool, progress: Progress | None) -> int:
    """Copy the index to the draft's open file, and look through that; how many names it has."""
    index_path = os.path.join(root, "index")
    with _growth(fd, progress):
        _copy_index(index_path, fd, read_only=read_only)
    index_bytes = os.fstat(fd).st_size
    if progress is not None:
        progress.set_size(3 * index_bytes)
    # A copy that can't be read is no backup, and now is the time to find out.
    looked = _run("look_through", index_path, path=draft)
    if progress is not None:
        progress.relative_update(index_bytes)
    if looked["damaged"]:
        raise IndexCorrupt(
            f"the index {index_path} has {counted(looked['damaged'], 'damaged row')}, and no "
            "backup was taken: castore check says which"
        )
    return looked["names"]


def _remove_drafts(folder: str) -> None:
    """What backups that were killed left in the folder a day ago or more: copies of all names."""
    try:
        entries = os.scandir(folder)
    except PermissionError:  # to write a backup takes no right to list the folder
        return
    for entry in entries:
        if not _DRAFT.fullmatch(entry.name) or not entry.is_dir(follow_symlinks=False):
            continue  # a file of this name is of an interrupted get
        with contextlib.suppress(FileNotFoundError):  # another backup is at it
            if entry.stat(follow_symlinks=False).st_uid != os.geteuid():
                continue
            newest = max(os.stat(path).st_mtime for path in (entry, *os.scandir(entry)))
            if time.time() - newest > DRAFT_S:
                shutil.rmtree(entry.path)


def _copy_index(index_path: str, fd: int, *, read_only: bool) -> None:
    for last in (False, False, True):
        try:
            _run("copy_index", index_path, path=index_path, fd=fd, read_only=read_only, fds=(fd,))
            return
        except IndexChanged:
            if last:
                raise
            read_only = False
            os.truncate(fd, os.lseek(fd, 0, os.SEEK_SET))


def _run(
    function: str, index_path: str, *, fds: tuple[int, ...] = (), **arguments: object
) -> dict[str, int]:
    task = f"castore.local.index_walk:{function}"
    with typed_errors(index_path):
        return next(iter([*isolated.run(task, index_path, fds=fds, **arguments)]), {})


@contextlib.contextmanager
def _growth(fd: int, progress: Progress | None) -> Iterator[None]:
    """LMDB copies in one call, in another process: how far it is is seen by the file."""
    if progress is None:
        yield
        return
    ended = threading.Event()
    counted = 0

    def count() -> None:
        nonlocal counted
        grown = os.fstat(fd).st_size - counted
        if grown > 0:  # less, where the copy begins anew
            counted += grown
            progress.relative_update(grown)

    def watch() -> None:
        while not ended.wait(GROWTH_S):
            count()

    thread = threading.Thread(target=watch, name="castore-backup")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    count()


def _finish(fd: int, root: str, progress: Progress | None) -> int:
    """Write what follows the index, and make all of it durable; its size in bytes."""
    with typed_errors(root), open(os.path.join(root, CONFIG), "rb") as file:
        config = file.read(1 << 17)
    decode_config(config)
    index_bytes = os.fstat(fd).st_size
    checksum = xxhash.xxh3_64()
    for block in _blocks(fd, index_bytes):
        checksum.update(block)
        if progress is not None:
            progress.relative_update(len(block))
    checksum.update(config)
    trailer = BackupTrailer(index_bytes, len(config), now_ns(), checksum.intdigest())
    size = write_all(fd, [config, encode_backup_trailer(trailer)], index_bytes)
    os.fsync(fd)
    return size


def compact(root: str) -> CompactReport:
    """Give back what the index of the store in the folder `root` keeps of pages that are free: it
    is copied without them, read through, and takes the old one's place. Raises StoreLocked while
    anybody has the store open; StoreNotFound, NotAStore; IndexCorrupt, StoreFull, StoreIOError:
    nothing was changed."""
    index_path = os.path.join(root, "index")
    if find_config(root) is None:
        raise no_store(root)
    if os.path.islink(index_path):
        raise StoreIOError(
            f"{index_path} is a symbolic link, and what it leads to can't be replaced in one step: "
            "put it there itself first"
        )
    with _errors_of(root), typed_errors(root), alone(root):
        check_index_in_place(root)
        before = os.path.getsize(os.path.join(index_path, "data.mdb"))
        with index_draft(root) as draft:
            data = os.path.join(draft, "data.mdb")
            with descriptor(data, os.O_RDWR | os.O_CREAT | os.O_EXCL) as fd:
                _copy_index(index_path, fd, read_only=False)
                looked = _run("look_through", index_path, path=draft)
                os.fsync(fd)
                after = os.fstat(fd).st_size
            kept = take_place(root, draft)
        # It is done: what can't be removed of the old one is a collection's, as after a rebuild.
        shutil.rmtree(kept, ignore_errors=True)
    return CompactReport(looked["names"], before, after)


# ---------------------------------------------------------------- restoring


def restore(
    source: str, root: str, *, force: bool = False, progress: Progress | None = None
) -> RebuildReport:
    """Put the index of a backup back into a store's folder, whose index is lost or damaged; what
    was there is kept beside it. The rows of chunks and packs are made to fit the packs that are
    there, and the report tells which names need packs that are not.

    Raises FormatError if `source` is no whole backup; NotAStore if it is another store's;
    IndexIntact if there is an index that is whole, unless `force`; UnsupportedFormat where a later
    castore wrote castore.json; StoreLocked while anybody has the store open."""
    root = os.path.realpath(root)
    with _errors_of(root), open(source, "rb") as file:
        fd = file.fileno()
        trailer, raw_config = _trailer_of(fd, source)
        config = decode_config(raw_config)
        if not os.path.isdir(root):
            raise StoreNotFound(
                errno.ENOENT, f"there is no folder {root}: put the store's packs/ into it first"
            )
        _check_folder(root, config)
        with typed_errors(root), alone(root):
            intact = _is_intact(root)
            if intact is not None and not force:
                raise IndexIntact(
                    f"the index of {root} is whole, with {counted(intact, 'name')}: to go back "
                    "to the backup all the same, insist (--force)"
                )

            def take_rows(index: Index) -> Transplanted:
                taken = transplant(fd, source, index, trailer.index_bytes)
                if taken.has_packs and not os.path.isdir(os.path.join(root, "packs")):
                    raise NotAStore(f"{root} has no packs: put the store's packs/ into it first")
                if not taken.whole:
                    raise FormatError(f"{source}: the backup is damaged: take another")
                return taken

            # Of an index that is whole the names are known: who goes back does not want them.
            journal = None if intact is not None else read_journal(root)
            report = replace_index(root, config, Sources(take_rows, journal, True), progress)
            put_config(root, raw_config)
    return report


def _trailer_of(fd: int, source: str) -> tuple[BackupTrailer, bytes]:
    size = os.fstat(fd).st_size
    try:
        raw = os.pread(fd, BACKUP_TRAILER_BYTES, max(0, size - BACKUP_TRAILER_BYTES))
        trailer = decode_backup_trailer(raw, size)
    except FormatError as error:
        raise FormatError(f"{source}: {error}") from None
    checksum = xxhash.xxh3_64()
    end = trailer.index_bytes + trailer.config_bytes
    for block in _blocks(fd, end):
        checksum.update(block)
    if checksum.intdigest() != trailer.checksum:
        raise FormatError(f"{source}: the backup is damaged: take another")
    return trailer, os.pread(fd, trailer.config_bytes, trailer.index_bytes)


def _check_folder(root: str, config: StoreConfig) -> None:
    """It is this store's, or was: castore.json may be lost or damaged, too."""
    try:
        found = read_config(root)
    except FormatError:
        return
    if found is None:
        ours = ("castore.", "index", "journal", "packs", "quarantine")
        if not all(name.startswith(ours) for name in os.listdir(root)):
            raise NotAStore(f"{root} is no store, and not empty: choose the store's, or a new one")
    elif found.store_id != config.store_id:
        raise NotAStore(
            f"the backup is of another store than {root}: restore it to its own, or to a new "
            "folder with its packs/"
        )


def _is_intact(root: str) -> int | None:
    """How many names the index has, if there is one that is whole."""
    path = os.path.join(root, "index")
    try:
        if os.stat(os.path.join(path, "data.mdb")).st_size < INDEX_BYTES_MIN:
            return None
        looked = _run("look_through", path, path=path)
    except (FileNotFoundError, IndexCorrupt):
        return None
    return None if looked["damaged"] else looked["names"]


def _blocks(fd: int, end: int) -> Iterator[bytes]:
    at = 0
    while at < end:
        block = os.pread(fd, min(BLOCK_BYTES, end - at), at)
        if not block:
            return
        at += len(block)
        yield block


def _errors_of(path: str) -> Translated:
    def typed(error: BaseException) -> Exception | None:
        if not isinstance(error, OSError):
            return None
        if error.errno in (errno.ENOSPC, errno.EDQUOT):  # a StoreFull, too, which names a draft
            return StoreFull(f"no space left for {path}: free some and repeat")
        of_disk = error.errno in (errno.EIO, errno.EMFILE, errno.ENFILE, errno.EROFS)
        if isinstance(error, CastoreError) or not of_disk:
            return None
        return StoreIOError(f"{path}: {error.strerror}", error.errno or errno.EIO)

    return Translated(typed)
