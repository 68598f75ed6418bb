"""Files of a folder as what is put: small ones many at a time, all others one by one."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple, TypeAlias

from castore.errors import (
    CastoreError,
    ClockOutOfRange,
    NameExists,
    NotAStore,
    SourceChanged,
    TimeOutOfRange,
)
from castore.format.index import Record
from castore.model import Progress, encode_name
from castore.stream.bases import FindAlignment
from castore.stream.operations import Draft, check_time
from castore.stream.session import WriteSession
from castore.stream.small import GROUP_BYTES, SMALL_BYTES_MAX, SmallGroups, SmallObject, Stored
from castore.stream.sourcefile import (
    StoredContent,
    fingerprint,
    opened,
    read_at_once,
    read_together,
    store_file,
)
from castore.system.open_folders import open_store_of, refuse_open_store_paths
from castore.system.statuses import Status, lstat_all

READ_TOGETHER = 64  # files
# Of this process or system, for any file.
NO_MORE_FILES = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}


class FileOptions(NamedTuple):
    """`keep_time` gives an object its file's time. `skip_same` does not read files that are in the
    state in which they were put; `checksum` reads these, too. `if_absent` leaves out what has a
    name that is taken."""

    keep_time: bool = True
    skip_same: bool = True
    checksum: bool = False
    if_absent: bool = False


class FilePut(NamedTuple):
    """A regular file, the name that it is to go under, and what is told of its progress."""

    path: str
    name: str
    entry: AbstractContextManager[Progress]


class StoredFile(NamedTuple):
    """The record of a file's object; it is to be published unless it `is_there` already. `same`:
    so are its bytes, mode and time."""

    record: Record
    draft: Draft | None
    same: bool
    is_there: bool = False


class _LookedAt(NamedTuple):
    """What was told of a file together with others: what its name maps to, where that matters;
    whether it is unchanged since; and if not, its bytes and its state, if it is small."""

    old: Record | None = None
    is_unchanged: bool = False
    read: tuple[bytes, Status] | None = None


class _Small(NamedTuple):
    """A small file, read whole, of one moment, that waits for the rest of its group."""

    at: int  # among the files
    raw: bytes
    status: Status
    old: Record | None


Result: TypeAlias = StoredFile | Exception


class FilePuts:
    """Stores the files of one commit. Nothing is visible yet."""

    def __init__(
        self,
        session: WriteSession,
        record: Callable[[bytes], Record | None],
        resembling: Callable[[bytes], FindAlignment | None],
        options: FileOptions,
    ) -> None:
        """`record` gives what a name maps to, `resembling` what its object may be a delta of."""
        self._session = session
        self._record = record
        self._resembling = resembling
        self._options = options
        self._clear: dict[str, bool] = {}  # by folder
        self._group: list[_Small] = []
        self._group_bytes = 0
        self._small = SmallGroups(session)
        self._begun: list[_Small] = []  # what `_small` has not told of yet

    def put(self, files: Sequence[FilePut]) -> list[Result]:
        """What became of each: for one that can't be put, the error, which is of it alone. Raises
        any other."""
        results: list[Result | None] = []
        for first in range(0, len(files), READ_TOGETHER):
            some = files[first : first + READ_TOGETHER]
            looked_at = self._look_at(some)
            for at, (file, told) in enumerate(zip(some, looked_at, strict=True), first):
                with file.entry as progress:
                    try:
                        results.append(self._put(at, file, told, progress))
                    except Exception as error:
                        if not _is_of_file(error, file.path):
                            raise
                        results.append(error)
                if self._group_bytes >= GROUP_BYTES:
                    self._store_group(files, results)
        self._store_group(files, results)
        self._finished(self._small.finish(), results)
        return [result for result in results if result is not None]

    def _look_at(self, files: Sequence[FilePut]) -> list[_LookedAt]:
        """All of these by few calls. What can't be told so is told of each by itself."""
        told = [_LookedAt()] * len(files)
        ats = [at for at, file in enumerate(files) if self._is_clear(os.path.dirname(file.path))]
        options = self._options
        if options.skip_same or options.if_absent:
            for at in ats:
                told[at] = _LookedAt(self._record(encode_name(files[at].name)))
        known = [at for at in ats if told[at].old is not None]
        if options.if_absent:
            ats = [at for at in ats if told[at].old is None]
        elif known and not options.checksum:
            statuses = lstat_all([files[at].path for at in known])
            for at, status in zip(known, statuses, strict=True):
                old = told[at].old
                if old is not None and not isinstance(status, OSError):
                    told[at] = _LookedAt(old, is_unchanged(old, status))
            ats = [at for at in ats if not told[at].is_unchanged]
        read = read_together([files[at].path for at in ats], SMALL_BYTES_MAX)
        for at, each in zip(ats, read, strict=True):
            told[at] = told[at]._replace(read=each)
        return told

    def _put(self, at: int, file: FilePut, told: _LookedAt, progress: Progress) -> Result | None:
        """None for one that waits in the group."""
        path, key, options = file.path, encode_name(file.name), self._options
        if told.old is not None and told.is_unchanged:
            return StoredFile(told.old, None, same=True, is_there=True)
        if told.read is not None:
            raw, status = told.read
            self._check_time(path, status)
            self._wait(_Small(at, raw, status, told.old), progress)
            return None
        if options.if_absent and self._record(key) is not None:
            raise NameExists(file.name)
        if not self._is_clear(os.path.dirname(path)):
            refuse_open_store_paths(path)
        with opened(path, regular=True, may_follow=refuse_open_store_paths) as source:
            self._check_time(path, source.status)
            old = self._record(key) if options.skip_same else None
            if old is not None and not options.checksum and is_unchanged(old, source.status):
                return StoredFile(old, None, same=True, is_there=True)
            small = source.status.st_size <= SMALL_BYTES_MAX
            whole = read_at_once(source) if small else None
            if whole is not None:
                self._wait(_Small(at, whole, source.status, old), progress)
                return None
            align = self._resembling(key)
            stored = store_file(self._session, source, progress, align)
        self._check_time(path, stored.status)  # it may have been touched since
        return self._stored(stored, old)

    def _wait(self, small: _Small, progress: Progress) -> None:
        """Put it with the others of the group."""
        self._group.append(small)
        self._group_bytes += len(small.raw)
        progress.relative_update(len(small.raw))

    def _is_clear(self, folder: str) -> bool:
        """Whether what is in it, but for what symlinks lead to, is in no open store."""
        clear = self._clear.get(folder)
        if clear is None:
            clear = self._clear[folder] = open_store_of(folder or ".") is None
        return clear

    def _store_group(self, files: Sequence[FilePut], results: list[Result | None]) -> None:
        """Begin with the group; the one before is finished then."""
        group, self._group, self._group_bytes = self._group, [], 0
        objects = [
            SmallObject(
                each.raw,
                stat.S_IMODE(each.status.st_mode),
                self._resembling(encode_name(files[each.at].name)),
            )
            for each in group
        ]
        stored = self._small.put(objects)
        self._begun += group
        self._finished(stored, results)

    def _finished(self, stored: Sequence[Stored], results: list[Result | None]) -> None:
        for each, (record, draft) in zip(self._begun, stored, strict=False):
            content = StoredContent(record, draft, each.status, fingerprint(each.status))
            results[each.at] = self._stored(content, each.old)
        del self._begun[: len(stored)]

    def _stored(self, stored: StoredContent, old: Record | None) -> StoredFile:
        record, draft, status, state = stored
        mtime_ns = status.st_mtime_ns if self._options.keep_time else record.mtime_ns
        record = record._replace(source=state, mtime_ns=mtime_ns)
        return StoredFile(record, draft, same=old is not None and old[:4] == record[:4])

    def _check_time(self, path: str, status: Status) -> None:
        if self._options.keep_time:
            check_time(path, status.st_mtime_ns)


def is_unchanged(record: Record, status: Status) -> bool:
    """Whether the file is in the state in which it was put: also where another one has its size,
    mode and time."""
    return (
        record.size == status.st_size
        and record.mode == stat.S_IMODE(status.st_mode)
        and record.mtime_ns == status.st_mtime_ns
        and record.source == fingerprint(status) != 0
    )


def _is_of_file(error: Exception, path: str) -> bool:
    """Whether it keeps this file alone from being put. An error of the store's own files is another
    one's, or a CastoreError."""
    if isinstance(error, ClockOutOfRange):
        return False
    if isinstance(error, CastoreError):
        return isinstance(error, (SourceChanged, NameExists, NotAStore, TimeOutOfRange))
    return (
        isinstance(error, OSError) and error.filename == path and error.errno not in NO_MORE_FILES
    )
