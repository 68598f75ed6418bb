"""Writing to files so that all of it arrives, and stays."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import os
import select
import signal
import stat
from collections.abc import Iterator, Sequence
from functools import partial
from types import CodeType
from typing import Any, Protocol

from castore.errors import (
    CastoreError,
    PermissionDenied,
    StoreFull,
    StoreIOError,
    StoreNotFound,
    describe_os_error,
)
from castore.system.translated import Translated

NO_HARD_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS}  # as FAT and exFAT
_IOV_MAX = 512
_LINKS_MAX = 40  # as many as the system follows


class Writable(Protocol):
    def write(self, data: Any, /) -> Any: ...


def write_all(fd: int, parts: Sequence[bytes | memoryview], offset: int) -> int:
    """Write `parts` one behind the other from `offset`; the offset behind the last."""
    for i in range(0, len(parts), _IOV_MAX):
        batch = list(parts[i : i + _IOV_MAX])
        while batch:
            written = os.pwritev(fd, batch, offset)
            offset += written
            while batch and written >= len(batch[0]):
                written -= len(batch.pop(0))
            if written:
                batch[0] = memoryview(batch[0])[written:]
    return offset


def write_stream(file: Writable, part: bytes | memoryview) -> None:
    """All of it, in order, also where `write` takes only some or would block: a raw stream, or one
    whose descriptor is in non-blocking mode."""
    left = memoryview(part).cast("B")
    while left:
        try:
            written = file.write(left)
        except BlockingIOError as error:
            _wait_until_writable(file)
            written = getattr(error, "characters_written", 0)  # only a buffer says how many
        if written is None:
            if not isinstance(file, io.RawIOBase):
                return  # it says nothing, and so took all
            _wait_until_writable(file)
            written = 0
        left = left[written:]


def _wait_until_writable(file: Any) -> None:
    ready = select.poll()  # `select` takes no descriptor above 1,023
    ready.register(file.fileno(), select.POLLOUT)
    ready.poll()


def descriptor_of(path: str) -> int | None:
    """The descriptor of this process that /dev/stdout, /dev/fd/63 and the like stand for. What it
    leads to may have no path, and if it has, may be written to from where others left off."""
    here = {"/dev/fd", f"/proc/{os.getpid()}/fd"}
    for _ in range(_LINKS_MAX):
        folder, leaf = os.path.split(path)
        is_number = leaf.isascii() and leaf.isdecimal() and len(leaf) < 10
        if is_number and os.path.realpath(folder) in here:
            return int(leaf)
        try:
            path = os.path.join(folder, os.readlink(path))
        except OSError:
            return None
    return None


@contextlib.contextmanager
def descriptor(path: str, flags: int = os.O_RDONLY, mode: int = 0o600) -> Iterator[int]:
    """The file, open until the end of the block, and in no program that is begun meanwhile. Not for
    what takes locks: an interrupt as it ends may leave it open. Raises OSError."""
    fd = os.open(path, flags | os.O_CLOEXEC, mode)
    try:
        yield fd
    finally:
        os.close(fd)


def status_of(fd: int) -> os.stat_result | None:
    """Of the file that is open by this number; None if none is. Raises OSError where the system
    does not tell."""
    try:
        return os.fstat(fd)
    except OSError as error:
        if error.errno != errno.EBADF:
            raise
        return None


def take_standard_descriptors() -> None:
    """Have the numbers 0 to 2 taken before a file gets one of them, where this process has closed
    them, as one does that becomes a daemon: what is printed then would be written into that file.
    To read from what takes them, or to print to it, fails as it did."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            with contextlib.suppress(OSError):  # no /dev/null, or no descriptor: who opens says it
                os.open(os.devnull, os.O_RDONLY if number else os.O_WRONLY)


def put_in_place(draft: str, path: str) -> None:
    """Have the file `draft` at `path`, where nothing is yet. It may still be at its own name then.
    Raises FileExistsError, of who was slower than another process; OSError."""
    try:
        os.link(draft, path)
    except OSError as error:
        if error.errno not in NO_HARD_LINKS:
            raise
        with descriptor(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY) as folder:
            fcntl.flock(folder, fcntl.LOCK_EX)  # a rename would replace the other's
            if os.path.lexists(path):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path) from None
            os.rename(draft, path)


def sync_folder(folder: str) -> None:
    """Make the folder's entries durable."""
    with descriptor(folder, os.O_RDONLY | os.O_DIRECTORY) as fd:
        os.fsync(fd)


def adopt(fd: int, root: str, *, as_lock: bool = False) -> None:
    """Have a file or folder that was just made in the store `root` belong to those whom the store
    belongs to. Its group, and others, may read if they may read the store's folder; write to
    folders, and to files that are there to be locked, if they may write to it. What root makes in
    somebody's store (by sudo) is theirs."""
    store, made = os.stat(root), os.fstat(fd)
    is_folder = stat.S_ISDIR(made.st_mode)
    bits = store.st_mode & (0o077 if is_folder else 0o066 if as_lock else 0o044)
    if bits and made.st_uid in (os.geteuid(), 0):
        # It is ours, so what refuses is a file system without permission bits: who may do what
        # there is said where it is mounted.
        with contextlib.suppress(PermissionError):
            os.fchmod(fd, stat.S_IMODE(made.st_mode) & 0o7700 | bits)
    if os.geteuid() == 0 != store.st_uid:
        os.fchown(fd, store.st_uid, store.st_gid)


def follow(path: str, like: os.stat_result) -> None:
    """Have a file or folder that was just made at `path` be for those whom `like` is for, which it
    takes the place of or stands beside: the rights of its group and of others, its group where we
    may give it, and its owner where root made it."""
    made = os.stat(path)
    if made.st_uid not in (os.geteuid(), 0):
        return
    if os.geteuid() == 0 and (made.st_uid, made.st_gid) != (like.st_uid, like.st_gid):
        os.chown(path, like.st_uid, like.st_gid)
    elif made.st_gid != like.st_gid:
        with contextlib.suppress(PermissionError):
            os.chown(path, -1, like.st_gid)
    mode = stat.S_IMODE(made.st_mode) & 0o7700 | like.st_mode & 0o077
    if mode != stat.S_IMODE(made.st_mode):  # not all file systems let that be said
        os.chmod(path, mode)


def adopt_folder(folder: str, root: str) -> None:
    with descriptor(folder, os.O_RDONLY | os.O_DIRECTORY) as fd:
        adopt(fd, root)


def make_durable_folder(folder: str) -> None:
    """Make the folder, and those above it, for the owner alone, durably."""
    if os.path.isdir(folder):
        return
    parent = os.path.dirname(os.path.abspath(folder))
    make_durable_folder(parent)
    try:
        os.mkdir(folder, 0o700)
    except FileExistsError:
        return
    sync_folder(parent)


def of_file(error: OSError, path: str) -> OSError:
    """The same error, said of `path`: a descriptor has no name, and a draft's says nothing."""
    return type(error)(error.errno, error.strerror, path)


def is_interrupt(error: OSError) -> bool:
    """Whether a signal handler raised it, as one that sets a limit of time raises TimeoutError, and
    it tells nothing of the file that was being worked on."""
    if error.errno is None:
        return True
    handlers = {_code(signal.getsignal(number)) for number in signal.valid_signals()}
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code in handlers:
            return True
        trace = trace.tb_next
    return False


def _code(handler: object) -> CodeType | None:
    while isinstance(handler, partial):
        handler = handler.func
    for called in (handler, getattr(handler, "__call__", None)):  # noqa: B004
        code = getattr(called, "__code__", None)
        if code is not None:
            return code  # type: ignore[no-any-return]
    return None


def storage_error(error: OSError, path: str) -> Exception:
    """The castore error for what the system said of a store's file or folder; what a signal handler
    raised, and what is castore's already and says all, goes on as it is."""
    typed = typed_error(error, path)
    if typed is None:
        raise error
    return typed


def typed_error(error: BaseException, path: str) -> Exception | None:
    """The same; None for what goes on as it is."""
    if not isinstance(error, OSError) or isinstance(error, CastoreError) or is_interrupt(error):
        return None
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreFull(f"no space left for {path}: free some and repeat")
    if isinstance(error, FileNotFoundError):
        return StoreNotFound(error.errno, f"{path}: its folder was removed while it was in use")
    if isinstance(error, PermissionError):
        return PermissionDenied(path)
    said = describe_os_error(OSError(error.errno, error.strerror, path))
    return StoreIOError(said, error.errno or errno.EIO)


def typed_errors(path: str) -> Translated:
    """Errors of the system within it, about files of a store, are castore's: of the file that they
    name, or of `path`."""

    def typed(error: BaseException) -> Exception | None:
        return typed_error(error, str(getattr(error, "filename", None) or path))

    return Translated(typed)


def new_file_mode() -> int:
    """The permission bits of a file that this process makes without saying which: 0666, less its
    umask."""
    return 0o666 & ~_umask()


def _umask() -> int:
    try:
        fd = os.open("/proc/self/status", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        pass  # not Linux
    else:
        try:
            _, said, rest = os.read(fd, 512).partition(b"\nUmask:")  # the second line
        finally:
            os.close(fd)
        if said:
            return int(rest.split(None, 1)[0], 8)
    # Asked for by setting it: what another thread makes meanwhile is private at worst.
    umask = os.umask(0o077)
    os.umask(umask)
    return umask
