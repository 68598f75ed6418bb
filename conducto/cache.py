"""A folder as one `.tar.gz`, and back. Both ways stream: memory does not grow with the folder.

`save` writes the same bytes for the same folder (sorted names, no owners, times as they are), and
leaves the compressing to the store (`stored_gzip.py` has the why and the numbers). `restore` takes
the archive for hostile, and `restore_dir` for a place where others can write: it unpacks into a new
private folder inside, up to the stream's last checksum, looks at all that is in the way, and only
then moves things into place by renaming, all by descriptors and never through a symbolic link. So
a refused archive restores nothing, and each file appears whole; a disk that fails between two
renames can leave some files new and some old.
"""

from __future__ import annotations

import errno
import io
import os
import stat
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, NamedTuple

import xxhash

from castore.errors import SourceChanged
from conducto.errors import CacheRefused, NotCacheable
from conducto.merge import Folder, Merge
from conducto.staging import STAGING, enter, made, staged
from conducto.stored_gzip import Sink, StoredGzip
from conducto.tar import BLOCK_BYTES, PIECE_BYTES, Limits, Member, TarReader, clean_link, clean_name
from conducto.unpacked import Unpacked

EXPANSION_FREE_BYTES = 64 << 20  # any archive may unpack to this much
YOUNG_NS = 20_000_000  # two changes that are closer than a tick of the clock have the same time
COARSE_NS = 2_000_000_000  # what is also a tick where times are whole seconds: on FAT, every other
NO_SYMLINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS}  # as FAT and exFAT
Parts = tuple[str, ...]
LIMITS = Limits()


def save(save_dir: str | os.PathLike[str], sink: Sink, limits: Limits = LIMITS) -> None:
    """Write the archive of a folder, or of one file, to `sink`.

    Names in it start with the folder's own name, as `tar` would have it from outside; those of
    `save_dir="."` don't. Raises NotCacheable, and SourceChanged for a file that did not hold still:
    what `sink` has by then is of no use.
    """
    root = os.path.normpath(os.fspath(save_dir))
    name = "" if root == "." else os.path.basename(root)
    if name == "..":
        name = os.path.basename(os.path.abspath(root))
    _refuse_open_stores(root)  # the folders in it are asked about one by one
    real = os.path.realpath(root)
    out = StoredGzip(sink)
    counted = {"files and folders": (0, limits.members_max), "folders": (0, limits.folders_max)}
    for entry in _walk(real, name, real, os.stat(root), 0):
        for what in counted if stat.S_ISDIR(entry.info.st_mode) else ["files and folders"]:
            count, most = counted[what]
            if count == most:
                raise NotCacheable(root, f"it holds more than {most} {what}")
            counted[what] = (count + 1, most)
        try:
            clean_name(os.fsencode(entry.name), limits)
        except CacheRefused as error:
            raise NotCacheable(entry.path, str(error)) from None
        if stat.S_ISREG(entry.info.st_mode):
            _save_file(out, entry.name, entry.path)
        elif entry.name:
            out.write(_header(entry.name, entry.info, entry.link))
        out.boundary()
    out.write(bytes(2 * BLOCK_BYTES))
    out.close()


def restore(
    archive: BinaryIO,
    archive_bytes: int,
    restore_dir: str | os.PathLike[str],
    limits: Limits = LIMITS,
) -> None:
    """Unpack `archive`, `archive_bytes` long, into `restore_dir`, which is made if need be."""
    target = os.fspath(restore_dir)
    _refuse_open_stores(target)
    bytes_max = EXPANSION_FREE_BYTES + limits.expansion_max * archive_bytes
    stream = Unpacked(archive, min(bytes_max, limits.bytes_max))
    with made(target) as target_fd, staged(target_fd) as staging_fd:
        with _Unpacking(staging_fd, limits) as unpacking:
            reader = TarReader(stream.read, limits)
            for member in reader:
                unpacking.put(member, reader.pieces())
            while stream.read(PIECE_BYTES):
                pass  # to the end: only there is the checksum of it all
        merge = Merge(staging_fd, target_fd, unpacking.root)
        merge.scan()
        merge.move()


class _Entry(NamedTuple):
    """Something to save: its name in the archive, where its content is, and where it leads if it is
    a symbolic link."""

    name: str
    path: str
    info: os.stat_result
    link: str = ""


def _walk(root: str, name: str, path: str, info: os.stat_result, depth: int) -> Iterator[_Entry]:
    """Everything there, a folder before what it holds. `depth` is how far below `root` it is."""
    if stat.S_ISLNK(info.st_mode):
        yield _linked(root, _Entry(name, path, info), depth)
        return
    if not stat.S_ISREG(info.st_mode) and not stat.S_ISDIR(info.st_mode):
        raise NotCacheable(path, "it is neither a file nor a folder")
    if stat.S_ISDIR(info.st_mode):
        _refuse_open_stores(path)
    yield _Entry(name, path, info)
    if stat.S_ISDIR(info.st_mode):
        with _still_there(path), os.scandir(path) as entries:
            inside = sorted(entries, key=lambda entry: os.fsencode(entry.name))
        for entry in inside:
            child = f"{name}/{entry.name}" if name else entry.name
            with _still_there(entry.path):
                below = entry.stat(follow_symlinks=False)
            if STAGING.fullmatch(entry.name) and stat.S_ISDIR(below.st_mode):
                continue  # what a restore left that was killed, or is at work on
            yield from _walk(root, child, entry.path, below, depth + 1)


def _linked(root: str, entry: _Entry, depth: int) -> _Entry:
    """A symbolic link as it is saved: where it leads inside the folder, wherever that is restored.
    One to a file outside is that file: a virtual environment's own Python, for one."""
    with _still_there(entry.path):
        target = os.readlink(entry.path)
    if clean_link(os.fsencode(target), depth - 1) is not None:
        return entry._replace(link=target)
    real = os.path.realpath(entry.path)
    if os.path.commonpath([real, root]) == root:
        return entry._replace(link=os.path.relpath(real, os.path.dirname(entry.path)))
    _refuse_open_stores(real)
    try:
        info = os.stat(real)
    except FileNotFoundError:
        raise NotCacheable(entry.path, f"it is a link to {target!r}, which is not there") from None
    if not stat.S_ISREG(info.st_mode):
        raise NotCacheable(entry.path, f"it is a link to {target!r}, outside and no file")
    return entry._replace(path=real, info=info)


def _save_file(out: StoredGzip, name: str, path: str) -> None:
    # What was a file a moment ago may be a link or a FIFO now: neither is followed or waited for.
    with _still_there(path):
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(fd, "rb", buffering=0) as file:
        info = os.fstat(fd)
        young = _is_young(info)
        if not stat.S_ISREG(info.st_mode):
            raise NotCacheable(path, "it is neither a file nor a folder")
        out.write(_header(name, info))
        read = xxhash.xxh3_128()
        for piece in _pieces(file, info.st_size, path):
            read.update(piece)
            out.write(piece)
        out.write(bytes(-info.st_size % BLOCK_BYTES))
        if young or _state(os.fstat(fd)) != _state(info):
            # It may have been rewritten meanwhile. That two readings agree is proof of the content,
            # as of a log that only grew.
            file.seek(0)
            again = xxhash.xxh3_128()
            for piece in _pieces(file, info.st_size, path):
                again.update(piece)
            if again.digest() != read.digest():
                raise SourceChanged(f"{path!r} was changed while it was read")


def _is_young(info: os.stat_result) -> bool:
    """Whether a change of the file now might leave its times as they are."""
    whole_seconds = info.st_ctime_ns % 10**9 == 0
    return time.time_ns() - info.st_ctime_ns < YOUNG_NS + COARSE_NS * whole_seconds


@contextmanager
def _still_there(path: str) -> Iterator[None]:
    """What is gone since it was listed may be elsewhere by now, under a name that was passed."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        raise SourceChanged(f"{path!r} vanished while its folder was read") from error


def _pieces(file: io.FileIO, size: int, path: str) -> Iterator[bytes]:
    """The next `size` bytes of the file. Raises SourceChanged where it has fewer."""
    left = size
    while left:
        piece = file.read(min(left, PIECE_BYTES))
        if not piece:
            raise SourceChanged(f"{path!r} got shorter while it was read")
        yield piece
        left -= len(piece)


def _state(info: os.stat_result) -> tuple[int, int, int]:
    """What differs after any change but one within a tick of the clock: the time of the last change
    is what no program can set back."""
    return info.st_size, info.st_mtime_ns, info.st_ctime_ns


def _header(name: str, info: os.stat_result, link: str = "") -> bytes:
    header = tarfile.TarInfo(name)
    header.mode = stat.S_IMODE(info.st_mode) & 0o777
    seconds, nanoseconds = divmod(abs(info.st_mtime_ns), 10**9)
    sign = "-" * (info.st_mtime_ns < 0)
    header.mtime = 0 if sign else seconds
    if nanoseconds or sign:
        header.pax_headers = {"mtime": f"{sign}{seconds}.{nanoseconds:09d}"}
    if stat.S_ISDIR(info.st_mode):
        header.type = tarfile.DIRTYPE
    elif link:
        header.type = tarfile.SYMTYPE
        header.linkname = link
    else:
        header.size = info.st_size
    return header.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


class _Unpacking:
    """Puts an archive's members into an empty folder of ours. Its folders are open from there down
    to where the last member went; their modes and times are for later, as they could keep us from
    filling them."""

    def __init__(self, staging_fd: int, limits: Limits) -> None:
        self.root = Folder()
        self._limits = limits
        self._folders = self._entered = 0
        self._names: list[str] = []
        self._open = [(staging_fd, self.root)]

    def __enter__(self) -> _Unpacking:
        return self

    def __exit__(self, *_: object) -> None:
        self._leave(0)

    def put(self, member: Member, pieces: Iterator[bytes]) -> None:
        """Raises CacheRefused for what was there before in the archive."""
        if member.is_folder:
            folder = self._enter(member.parts)[1]
            if member.parts:
                if folder.attributes is not None:
                    raise _twice(member.parts)
                folder.attributes = (member.mode, member.mtime_ns)
            return
        folder_fd, _ = self._enter(member.parts[:-1])
        try:
            if member.link:
                _unpack_link(member, folder_fd)
            else:
                _unpack_file(member, folder_fd, pieces)
        except FileExistsError:
            raise _twice(member.parts) from None

    def _enter(self, parts: Parts) -> tuple[int, Folder]:
        common = 0
        while common < min(len(parts), len(self._names)) and parts[common] == self._names[common]:
            common += 1
        self._leave(common)
        self._entered += len(parts) - common
        if self._entered > self._limits.entered_max:
            raise CacheRefused("the archive goes through too many folders: it is in no order")
        for at in range(common, len(parts)):
            name, (above_fd, above) = parts[at], self._open[-1]
            if name not in above.inside:
                self._make(name, above_fd, above, parts[: at + 1])
            self._open.append((enter(name, above_fd), above.inside[name]))
            self._names.append(name)
        return self._open[-1]

    def _make(self, name: str, above_fd: int, above: Folder, parts: Parts) -> None:
        self._folders += 1
        if self._folders > self._limits.folders_max:
            raise CacheRefused("the archive has too many folders")
        try:
            os.mkdir(name, 0o700, dir_fd=above_fd)
        except FileExistsError:
            raise _twice(parts) from None
        above.inside[name] = Folder()

    def _leave(self, depth: int) -> None:
        while len(self._names) > depth:
            self._names.pop()
            os.close(self._open.pop()[0])


def _unpack_file(member: Member, folder_fd: int, pieces: Iterator[bytes]) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(member.parts[-1], flags, 0o600, dir_fd=folder_fd)
    with open(fd, "wb", buffering=0) as file:
        for piece in pieces:
            view = memoryview(piece)
            while view:
                view = view[file.write(view) :]
        os.fchmod(fd, member.mode)
        os.utime(fd, ns=(member.mtime_ns, member.mtime_ns))


def _unpack_link(member: Member, folder_fd: int) -> None:
    name, times = member.parts[-1], (member.mtime_ns, member.mtime_ns)
    try:
        os.symlink(member.link, name, dir_fd=folder_fd)
    except OSError as error:
        if error.errno not in NO_SYMLINKS:
            raise
        raise CacheRefused(
            f"{'/'.join(member.parts)!r} is a symbolic link, and the file system of the folder to "
            "restore into has none"
        ) from error
    os.utime(name, ns=times, dir_fd=folder_fd, follow_symlinks=False)


def _twice(parts: Parts) -> CacheRefused:
    return CacheRefused(f"the archive has {'/'.join(parts)!r} twice")


def _refuse_open_stores(path: str) -> None:
    import castore

    castore.refuse_open_store_paths(path)
