"""What makes a folder a local store, and who may use it: castore.json and castore.lock."""

from __future__ import annotations

import errno
import fcntl
import glob
import os
import re

from castore.errors import (
    ConfigLost,
    FormatError,
    NotAStore,
    StoreIOError,
    StoreLocked,
    StoreNotFound,
    index_lost,
)
from castore.format.config import StoreConfig
from castore.stream.config import parse_config
from castore.system.fileio import adopt, descriptor, is_interrupt, storage_error, write_all
from castore.system.lockfile import LockFile

CONFIG = "castore.json"
LOCK = "castore.lock"
WAY_BACK = (
    "castore check --repair, or castore index rebuild makes it again, from the journal or the "
    "index; or restore it from a backup (castore restore)"
)
_CONFIG_DRAFT = re.compile(re.escape(CONFIG) + r"\.[0-9a-f]{16}")
_SHORTAGES = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
INDEX_BYTES_MIN = 8192  # LMDB's two meta pages; it takes less for a new environment


def check_index_in_place(root: str) -> None:
    """Raises IndexCorrupt if there is none: it is made before castore.json, so that a store without
    one has lost it."""
    try:
        size = os.stat(os.path.join(root, "index", "data.mdb")).st_size
    except FileNotFoundError:
        size = 0
    if size < INDEX_BYTES_MIN:
        raise index_lost(f"the index of the store {root} is gone")


def no_store(root: str) -> StoreNotFound:
    return StoreNotFound(errno.ENOENT, f"there is no store at {root}: check the path")


def find_config(root: str) -> StoreConfig | None:
    """As `read_config`. Raises ConfigLost, too, if there was a castore.json, and it is gone."""
    config = read_config(root)
    if config is None:
        _refuse_lost(root)
        config = read_config(root)  # somebody else may just have made it
    return config


def _refuse_lost(root: str) -> None:
    """Raises ConfigLost if the folder, which had no castore.json, is a store all the same. One
    that was made meanwhile has one by now, and is none that lost it."""
    signs = ("index/data.mdb", "journal/*.log", "packs/??/*.pack")
    at = glob.escape(root)
    is_ours = os.path.exists(os.path.join(root, LOCK)) and not _is_begun(root)
    if not is_ours or not any(glob.glob(os.path.join(at, sign)) for sign in signs):
        return
    if os.path.exists(os.path.join(root, CONFIG)):
        return
    raise ConfigLost(f"{os.path.join(root, CONFIG)} is gone: {WAY_BACK}")


def _is_begun(root: str) -> bool:
    """Whether it is being made: its index then comes before its castore.json."""
    drafts = glob.glob(os.path.join(glob.escape(root), CONFIG + ".*"))
    packs = os.path.join(root, "packs")
    return any(".before-" not in draft for draft in drafts) and not os.path.exists(packs)


def is_config_draft(name: str) -> bool:
    """Of a file in the store's folder: who makes a store removes its own. Once castore.json is
    there, nobody needs one."""
    return _CONFIG_DRAFT.fullmatch(name) is not None


def write_new(path: str, raw: bytes) -> None:
    """A file that is not there yet, durable but for its name. Raises OSError."""
    with descriptor(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as fd:
        write_all(fd, [raw], 0)
        os.fsync(fd)


def read_config(root: str) -> StoreConfig | None:
    """What castore.json says, None if there is none. Raises ConfigLost if it is damaged;
    UnsupportedFormat, NotAStore."""
    try:
        with open(os.path.join(root, CONFIG), "rb") as file:
            return parse_config(file.read(1 << 17), root)
    except FormatError as error:
        raise ConfigLost(f"{error}: {WAY_BACK}") from error
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        place = "is a file" if os.path.exists(root) else "lies below a file"
        raise NotAStore(f"{root} {place}, not a store's folder") from None


# ---------------------------------------------------------------- pid namespaces


def share(root: str) -> LockFile | None:
    """Hold castore.lock shared, until what this gives is closed; None where it can't be written.

    LMDB tells live readers from dead ones by their pid, which means nothing in another pid
    namespace (another container on the same volume): it would free the pages that they read. The
    first to open writes its namespace into the file; who comes while it is held must be of the
    same one. Raises StoreLocked.
    """
    path = os.path.join(root, LOCK)
    try:
        lock = LockFile(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            return None
        raise storage_error(error, path) from error
    try:
        fd = lock.fileno()
        if not os.fstat(fd).st_size:
            adopt(fd, root, as_lock=True)
        ours = _pid_namespace()
        if lock.take():
            os.pwrite(fd, ours.ljust(64), 0)
        fcntl.flock(fd, fcntl.LOCK_SH)
        theirs = os.pread(fd, 64, 0).strip()
        if theirs != ours:
            raise StoreLocked(
                errno.EAGAIN,
                f"the store {root} is open in another pid namespace (another container): from here "
                "LMDB can't tell which of its readers live. Share the namespace (docker run "
                "--pid=container:NAME or --pid=host; shareProcessNamespace: true in Kubernetes), "
                "open it with read_only=True here, or use a store on S3",
            )
    except BaseException as error:  # an interrupt, too: its traceback keeps the file
        lock.close()
        if not isinstance(error, OSError) or isinstance(error, StoreLocked) or is_interrupt(error):
            raise
        if error.errno in (errno.ENOSPC, errno.EDQUOT, *_SHORTAGES):
            raise storage_error(error, path) from error
        raise StoreIOError(
            f"{path} can't be locked ({error.strerror}): is it on a network file system?",
            error.errno or errno.EIO,
        ) from error
    return lock


def alone(root: str) -> LockFile:
    """Have the store's folder to oneself: nobody has it open, and who opens it waits until what
    this gives is closed, as by a `with`. Raises StoreLocked if somebody, this process too, has it
    open."""
    lock = LockFile(os.path.join(root, LOCK), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW)
    try:
        if not lock.take():
            raise StoreLocked(
                errno.EAGAIN, f"the store {root} is in use: close it everywhere, and repeat"
            )
        os.pwrite(lock.fileno(), _pid_namespace().ljust(64), 0)
    except BaseException:
        lock.close()
        raise
    return lock


def _pid_namespace() -> bytes:
    """Raises OSError where it can't be found out for now: who takes that for a system that has none
    is another one to all others."""
    try:
        boot = _read_text("/proc/sys/kernel/random/boot_id")
        return f"{boot[:18]} {os.stat('/proc/self/ns/pid').st_ino}".encode()
    except OSError as error:
        if is_interrupt(error) or error.errno in _SHORTAGES:
            raise
        return b"no pid namespaces here"


def _read_text(path: str) -> str:
    with open(path, encoding="ascii") as file:
        return file.read().strip()
