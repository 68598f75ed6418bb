"""A folder as one `.tar.gz`, and back. Both ways stream: memory does not grow with the folder.

`save` writes the same bytes for the same folder (sorted names, no owners, times as they are), and
leaves the compressing to the store (`stored_gzip.py` has the why and the numbers). `restore` takes
the archive for hostile: it unpacks into a new private folder inside `restore_dir`, up to the
stream's last checksum, looks at all that is in the way, and only then moves things into place by
renaming, never through a symbolic link. So a refused archive restores nothing, and each file
appears whole; a disk that fails between two renames can leave some files new and some old.
"""

from __future__ import annotations

import gzip
import os
import shutil
import stat
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO

from castore.errors import SourceChanged
from conducto.errors import CacheRefused, NotCacheable
from conducto.merge import Folders, Merge, Parts
from conducto.stored_gzip import Sink, StoredGzip
from conducto.tar import BLOCK_BYTES, PIECE_BYTES, Limits, Member, TarReader, clean_name

EXPANSION_FREE_BYTES = 64 << 20  # any archive may unpack to this much
STAGING_PREFIX = ".conducto-restore-"
LIMITS = Limits()


def save(save_dir: str | os.PathLike[str], sink: Sink, limits: Limits = LIMITS) -> None:
    """Write the archive of a folder, or of one file, to `sink`.

    Names in it start with the folder's own name, as `tar` would have it from outside; those of
    `save_dir="."` don't.
    """
    root = os.path.normpath(os.fspath(save_dir))
    name = {"..": os.path.basename(os.path.abspath(root)), ".": ""}.get(root, root)
    name = os.path.basename(name)
    _refuse_open_stores(root)  # the folders in it are asked about one by one
    walk = _walk(name, os.path.realpath(root), os.stat(root))
    out = StoredGzip(sink)
    for members, (member, path, info) in enumerate(walk, 1):
        if members > limits.members_max:
            raise NotCacheable(root, f"it holds more than {limits.members_max} files and folders")
        try:
            clean_name(os.fsencode(member), limits)
        except CacheRefused as error:
            raise NotCacheable(path, str(error)) from None
        if stat.S_ISREG(info.st_mode):
            _save_file(out, member, path)
        elif member:
            out.write(_header(member, info))
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
    stream = _Unpacked(archive, min(bytes_max, limits.bytes_max))
    with _made(target), _staging(target) as staging:
        folders = _unpack(stream, staging, limits)
        with Merge(staging, target, folders) as merge:
            merge.look()
            merge.move()


def _walk(name: str, path: str, info: os.stat_result) -> Iterator[tuple[str, str, os.stat_result]]:
    """(name in the archive, path, stat) of everything there, a folder before what it holds."""
    if stat.S_ISLNK(info.st_mode):
        raise NotCacheable(path, "it is a symbolic link, which no restore would make")
    if not stat.S_ISREG(info.st_mode) and not stat.S_ISDIR(info.st_mode):
        raise NotCacheable(path, "it is neither a file nor a folder")
    if stat.S_ISDIR(info.st_mode):
        _refuse_open_stores(path)
    yield name, path, info
    if stat.S_ISDIR(info.st_mode):
        with os.scandir(path) as entries:
            inside = sorted(entries, key=lambda entry: os.fsencode(entry.name))
        for entry in inside:
            child = f"{name}/{entry.name}" if name else entry.name
            yield from _walk(child, entry.path, entry.stat(follow_symlinks=False))


def _save_file(out: StoredGzip, name: str, path: str) -> None:
    # What was a file a moment ago may be a link or a FIFO now: neither is followed or waited for.
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(fd, "rb", buffering=0) as file:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            raise NotCacheable(path, "it is neither a file nor a folder")
        out.write(_header(name, info))
        left = info.st_size
        while left:
            piece = file.read(min(left, PIECE_BYTES))
            if not piece:
                raise SourceChanged(f"{path!r} got shorter while it was read")
            out.write(piece)
            left -= len(piece)
        out.write(bytes(-info.st_size % BLOCK_BYTES))


def _header(name: str, info: os.stat_result) -> bytes:
    header = tarfile.TarInfo(name)
    header.mode = stat.S_IMODE(info.st_mode) & 0o777
    seconds, nanoseconds = divmod(max(info.st_mtime_ns, 0), 10**9)
    header.mtime = seconds
    if nanoseconds:
        header.pax_headers = {"mtime": f"{seconds}.{nanoseconds:09d}"}
    if stat.S_ISDIR(info.st_mode):
        header.type = tarfile.DIRTYPE
    else:
        header.size = info.st_size
    return header.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


class _Unpacked:
    """What is inside the gzip stream, up to a number of bytes. A plain tar is taken too: that is
    what the first Conducto kept under these names."""

    def __init__(self, archive: BinaryIO, bytes_max: int) -> None:
        zipped = archive.read(2) == b"\x1f\x8b"
        archive.seek(0)
        self._file = gzip.GzipFile(fileobj=archive) if zipped else archive
        self._bytes_max = bytes_max
        self._bytes_read = 0

    def read(self, size: int) -> bytes:
        try:
            data = self._file.read(size)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise CacheRefused(f"the archive is damaged or cut short: {error}") from error
        self._bytes_read += len(data)
        if self._bytes_read > self._bytes_max:
            raise CacheRefused(f"the archive unpacks to more than {self._bytes_max} bytes")
        return data


def _unpack(stream: _Unpacked, staging: str, limits: Limits) -> Folders:
    """Everything in the archive, into an empty folder of ours; the folders' modes and times are
    for later, as they could keep us from filling them."""
    reader = TarReader(stream.read, limits)
    folders: Folders = {}
    names_bytes = 0

    def make_folder(parts: Parts) -> None:
        nonlocal names_bytes
        names_bytes += len(os.fsencode("/".join(parts)))
        if names_bytes > limits.folder_names_bytes_max:
            raise CacheRefused("the archive has too many folders")
        try:
            os.mkdir(os.path.join(staging, *parts), 0o700)
        except FileExistsError:
            raise _twice(parts) from None
        folders[parts] = None

    for member in reader:
        for depth in range(1, len(member.parts)):
            if member.parts[:depth] not in folders:
                make_folder(member.parts[:depth])
        if not member.is_folder:
            _unpack_file(reader, member, os.path.join(staging, *member.parts))
        elif member.parts:
            if member.parts not in folders:
                make_folder(member.parts)
            elif folders[member.parts] is not None:
                raise _twice(member.parts)
            folders[member.parts] = (member.mode, member.mtime_ns)
    while stream.read(PIECE_BYTES):
        pass  # to the end: only there is the checksum of it all
    return folders


def _unpack_file(reader: TarReader, member: Member, path: str) -> None:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise _twice(member.parts) from None
    with open(fd, "wb", buffering=0) as file:
        for piece in reader.pieces():
            view = memoryview(piece)
            while view:
                view = view[file.write(view) :]
        os.fchmod(fd, member.mode)
        os.utime(fd, ns=(member.mtime_ns, member.mtime_ns))


def _twice(parts: Parts) -> CacheRefused:
    return CacheRefused(f"the archive has {'/'.join(parts)!r} twice")


@contextmanager
def _made(folder: str) -> Iterator[None]:
    """Makes the folder, and unmakes what it made when the block raises."""
    missing = []
    while folder and not os.path.isdir(folder):
        missing.append(folder)
        folder = os.path.dirname(folder)
    try:
        for path in reversed(missing):
            with suppress(FileExistsError):  # "a/.", or made by someone else just now
                os.mkdir(path)
        yield
    except BaseException:
        for path in missing:
            with suppress(OSError):  # not empty: no longer ours alone
                os.rmdir(path)
        raise


@contextmanager
def _staging(folder: str) -> Iterator[str]:
    """A private folder inside `folder`, so on its file system: what is in it can be renamed."""
    path = tempfile.mkdtemp(prefix=STAGING_PREFIX, dir=folder)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _refuse_open_stores(path: str) -> None:
    from castore.store import refuse_open_store_paths

    refuse_open_store_paths(path)
