"""A plain file as what is put: as it was at one moment, or not at all.

A file that is overwritten in place while it is read would be stored as a mix that never was. So its
size and times are compared before and after; where they changed, or are too young to tell, it is
read once more. Two readings that find the same bytes are proof, too: a file that only grows is
stored as long as it was at first."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import xxhash

from castore.errors import SourceChanged
from castore.format.config import StoreConfig
from castore.format.index import Record
from castore.model import Progress
from castore.stream.bases import FindAlignment
from castore.stream.chunker import Chunker
from castore.stream.codec import ChunksEtag
from castore.stream.etags import chunk_id_in, is_etag_of
from castore.stream.operations import Draft
from castore.stream.session import WriteSession
from castore.stream.writer import ObjectWriter, read_blocks
from castore.system.fileio import of_file
from castore.system.mapping import Mapping
from castore.system.statuses import FileStatus, Status

try:
    from castore import _native
except ImportError:
    _native = None  # type: ignore[assignment]

READINGS_MAX = 4
HASH_BYTES = 4 << 20
YOUNG_NS = 20_000_000  # two changes that are closer than a tick of the clock have the same time
COARSE_NS = 2_000_000_000  # what is also a tick where times are whole seconds: on FAT, every other


class StoredContent(NamedTuple):
    """What a file held: the object's record, its draft unless it is inline. The state of the file
    that was read, and its fingerprint, which is 0 if it may have changed since and be in the same
    state."""

    record: Record
    draft: Draft | None
    status: Status
    fingerprint: int


class SourceFile(NamedTuple):
    """An open file, and what it was like when it was opened."""

    fd: int
    path: str
    status: os.stat_result

    @property
    def is_regular(self) -> bool:
        return stat.S_ISREG(self.status.st_mode)


@contextlib.contextmanager
def opened(
    path: str, *, regular: bool = False, may_follow: Callable[[str], None] | None = None
) -> Iterator[SourceFile]:
    """`may_follow` is asked before a symlink is followed, and may raise. Raises OSError with the
    path; SourceChanged if it has to be a regular file and is none."""
    # O_NONBLOCK: what was a file when it was listed, and is a pipe now, is not waited for.
    flags = os.O_RDONLY | os.O_CLOEXEC | (os.O_NONBLOCK if regular else 0)
    try:
        fd = os.open(path, flags if may_follow is None else flags | os.O_NOFOLLOW)
    except OSError as error:
        if may_follow is None or error.errno != errno.ELOOP:
            raise of_file(error, path) from None
        may_follow(path)
        with opened(path, regular=regular) as source:
            yield source
        return
    try:
        source = SourceFile(fd, path, os.fstat(fd))
        if stat.S_ISDIR(source.status.st_mode):
            raise IsADirectoryError(errno.EISDIR, "is a folder, not a file", path)
        if regular and not source.is_regular:
            raise SourceChanged(f"{path} is no regular file: nothing of it was published")
        yield source
    finally:
        os.close(fd)


def read_at_once(source: SourceFile) -> bytes | None:
    """All bytes of a small regular file, as it was when it was opened; None if one reading does not
    tell them: it was changed just now, or holds something else than its size says. Raises OSError
    with the path."""
    status = source.status
    if status.st_size and is_young(status):
        return None
    try:
        raw = os.pread(source.fd, status.st_size + 1, 0)
    except OSError as error:
        raise of_file(error, source.path) from None
    whole = len(raw) == status.st_size and _is_same(status, os.fstat(source.fd))
    return raw if whole else None


def read_together(
    paths: Sequence[str], bytes_max: int, *, folder: int | None = None
) -> list[tuple[bytes, Status] | None]:
    """All bytes of each of these files, and its state, as `read_at_once` gives them. None for what
    that does not give them of, is larger, a symlink, or can't be read; and without the extension
    for all: who reads one by itself is told why. Paths are from the open `folder`, if there is
    one."""
    if _native is None:
        return [None] * len(paths)
    now_ns = time.time_ns()  # before the first is read
    encoded = tuple(map(os.fsencode, paths))
    if folder is None:
        found = _native.read_files(encoded, bytes_max)
    else:
        found = _native.read_files(encoded, bytes_max, folder)
    read: list[tuple[bytes, Status] | None] = []
    for each in found:
        # What is young may change again within the same tick of the clock.
        if each is None or (each[0] and _is_young_at(now_ns, each[6])):
            read.append(None)
        else:
            read.append((each[0], FileStatus(*each[1:])))
    return read


def store_file(
    session: WriteSession,
    source: SourceFile,
    progress: Progress | None,
    align: FindAlignment | None,
) -> StoredContent:
    """Store the file's bytes. Nothing is visible yet. `align` as ObjectWriter's.

    Raises SourceChanged for one that is cut short or does not hold still; OSError with the path for
    one that can't be read."""
    if progress is not None and source.is_regular:
        progress.set_size(source.status.st_size)
    counted = None if progress is None else _Once(progress)
    before: Record | None = None
    for reading in range(READINGS_MAX):
        status = os.fstat(source.fd) if reading else source.status
        young = status.st_size > 0 and is_young(status)
        if counted is not None:
            counted.again()
        record, draft = _read(session, source, status, before, counted, align)
        if not source.is_regular or (not young and _is_same(status, os.fstat(source.fd))):
            return StoredContent(record, draft, status, fingerprint(status))
        if before is not None and record.etag == before.etag:
            # Of what was young as it was read, not as old as it is by now.
            state = 0 if young else fingerprint(status)
            return StoredContent(record, draft, status, state)
        if draft is not None:
            session.drop(draft)
        before = record
    raise SourceChanged(
        f"{source.path} was changed each time it was read: nothing of it was published; put it "
        "when nobody writes to it"
    )


def fingerprint(status: Status) -> int:
    """Tells one state of a file from another one of the same size and time, by what no program can
    set: 64 bits of its inode and the time of its last change; 0 if that is too young to tell."""
    if is_young(status):
        return 0
    facts = status.st_ino.to_bytes(16, "little") + status.st_ctime_ns.to_bytes(
        16, "little", signed=True
    )
    return xxhash.xxh3_64_intdigest(facts) or 1


def has_content(
    fd: int, size: int, etag: bytes, *, inline: bool, chunker: Chunker, config: StoreConfig
) -> bool:
    """Whether the file open at `fd` is `size` bytes long and has the content of the object of this
    etag: it is cut and hashed as it would be for a put."""
    if inline:
        raw = os.pread(fd, size + 1, 0)
        return len(raw) == size and is_etag_of(raw, etag, config)
    found = ChunksEtag(config.seed)
    buffer = bytearray()
    at, final = 0, False
    while not final:
        block = os.pread(fd, HASH_BYTES, at)
        at += len(block)
        buffer += block
        final = not block
        used = 0
        with memoryview(buffer) as view:
            for end in chunker.cuts(view, 0, final):
                found.update(chunk_id_in(view[used:end], config))
                used = end
        del buffer[:used]
    return at == size and found.matches(etag)


def is_young(status: Status) -> bool:
    """Whether a change of the file now might leave its times as they are."""
    return _is_young_at(time.time_ns(), status.st_ctime_ns)


def _is_young_at(now_ns: int, ctime_ns: int) -> bool:
    whole_seconds = ctime_ns % 1_000_000_000 == 0
    return now_ns - ctime_ns < YOUNG_NS + COARSE_NS * whole_seconds


def _read(
    session: WriteSession,
    source: SourceFile,
    status: os.stat_result,
    before: Record | None,
    progress: Progress | None,
    align: FindAlignment | None,
) -> tuple[Record, Draft | None]:
    """One reading; after another one, of as many bytes as that."""
    writer = ObjectWriter(session, progress, align)
    try:
        _feed(writer, source, status, None if before is None else before.size)
        return writer.finish(stat.S_IMODE(status.st_mode))
    except BaseException:
        writer.abandon()
        raise


def _feed(
    writer: ObjectWriter, source: SourceFile, status: os.stat_result, bytes_max: int | None
) -> None:
    """Files of /proc claim to be empty; only one that claims a size can be mapped. Without the
    extension, a mapping that is cut short would kill the process."""
    size = status.st_size if bytes_max is None else bytes_max
    if source.is_regular and size > writer.inline_bytes_max and Mapping.guarded:
        writer.write_file(source.fd, size, source.path)
        return
    if source.is_regular:
        os.lseek(source.fd, 0, os.SEEK_SET)
    left = sys.maxsize if bytes_max is None else bytes_max
    with os.fdopen(source.fd, "rb", buffering=0, closefd=False) as file:
        for block in read_blocks(_naming(source.path, file.read)):
            writer.write(block[:left])
            left -= min(left, len(block))
            if not left:
                return


def _naming(path: str, read: Callable[[int], bytes | None]) -> Callable[[int], bytes]:
    def reading(size: int) -> bytes:
        try:
            block = read(size)
        except OSError as error:
            raise of_file(error, path) from error
        if block is None:  # of one that has no end, as /proc/kmsg, and is not waited for
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN), path)
        return block

    return reading


def _is_same(before: os.stat_result, after: os.stat_result) -> bool:
    return _facts(before) == _facts(after)


def _facts(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


class _Once:
    """Progress of several readings, in which each byte counts once."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._counted = self._done = 0

    def again(self) -> None:
        self._done = 0

    def set_size(self, size: int) -> None:
        pass

    def relative_update(self, inc: int = 1) -> None:
        self._done += inc
        if self._done > self._counted:
            self._progress.relative_update(self._done - self._counted)
            self._counted = self._done
