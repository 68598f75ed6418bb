"""The verbs on contents: each stores bytes now, and publishes their name at the end."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal, Protocol

from castore.errors import NameNotFound
from castore.format.index import Record
from castore.model import ObjectInfo, Progress, decode_name, encode_name
from castore.objectfile import ObjectWriterFile
from castore.stream.appending import begin_as
from castore.stream.bases import FindAlignment
from castore.stream.fileputs import FileOptions, FilePut, FilePuts
from castore.stream.operations import Draft, Publish, check_mode, check_time
from castore.stream.resembling import resembling
from castore.stream.small import (
    SMALL_BYTES_MAX,
    Buffer,
    SmallGroups,
    SmallObject,
    Stored,
    bytes_of,
    in_groups,
    store_small,
)
from castore.stream.sourcefile import opened, store_file
from castore.stream.writer import ObjectWriter, read_blocks
from castore.system.fileio import new_file_mode
from castore.system.open_folders import refuse_open_store_paths
from castore.transaction.lifecycle import Lifecycle
from castore.urls import text_of

StrPath = str | os.PathLike[str]


class Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


class ObjectVerbs(Lifecycle):
    """See `castore.Transaction`."""

    _new_mode: int | None = None  # of an object that is no file's, once it is known

    def put(
        self,
        name: str,
        file: StrPath | Readable,
        *,
        if_absent: bool = False,
        progress: Progress | None = None,
        mtime_ns: int | None = None,
        mode: int | None = None,
        like: str | None = None,
    ) -> ObjectInfo:
        """As `Store.put`; visible at the end of the block.

        `mtime_ns`, in nanoseconds since the epoch, is what the object's time is to be, if it is not
        now; `mode` its permission bits, if they are not the file's, or a new file's. Raises as
        `Store.put`; TimeOutOfRange for a time that no record can hold; ValueError for a mode that
        is more than such bits; TypeError for what is neither a path nor a file object.
        """
        align = self._resembling(self._check(name, if_absent), like)
        if mtime_ns is not None:
            check_time(name, mtime_ns)
        if mode is not None:
            check_mode(mode)
        if isinstance(file, (str, os.PathLike)):
            path = text_of(file)
            refuse_open_store_paths(path)
            with self._exclusively(), opened(path) as source:
                record, draft, *_ = store_file(self._session, source, progress, align)
            if mode is not None:
                record = record._replace(mode=mode)
            return self._publish(name, record, draft, if_absent, mtime_ns)
        read = getattr(file, "read", None)
        if read is None:
            raise TypeError(
                f"file is a path or a binary file object, not {type(file).__name__}; "
                "puts takes bytes"
            )
        with self._writing(progress, align) as writer:
            for block in read_blocks(read):
                writer.write(block)
            finished = writer.finish(self._mode if mode is None else mode)
        # Behind the block: of what is published the writer can't be abandoned any more.
        return self._publish(name, *finished, if_absent, mtime_ns)

    def put_files(
        self, files: Sequence[FilePut], options: FileOptions
    ) -> list[tuple[ObjectInfo, bool] | Exception]:
        """Put regular files: what the object of each is, and whether that was the same already, or
        the error that keeps it alone from being put. Raises as `put` does."""
        if options.skip_same or options.if_absent:
            self._expect(file.name for file in files)
        with self._exclusively():
            puts = FilePuts(self._session, self._record, self._resembling, options)
            stored = puts.put(files)
        put: list[tuple[ObjectInfo, bool] | Exception] = []
        for file, each in zip(files, stored, strict=True):
            if isinstance(each, Exception):
                put.append(each)
            elif each.is_there:
                put.append((object_info(file.name, each.record), True))
            else:
                info = self._publish(file.name, each.record, each.draft, options.if_absent)
                put.append((info, each.same))
        return put

    def puts(
        self,
        name: str,
        data: Buffer,
        *,
        if_absent: bool = False,
        mode: int | None = None,
        like: str | None = None,
    ) -> ObjectInfo:
        """As `Store.puts`; visible at the end of the block.

        >>> with store.transaction() as t:
        ...     info = t.puts("a", b"123")
        >>> info.size
        3
        """
        mode = self._mode if mode is None else mode
        check_mode(mode)
        with bytes_of(data) as view, self._exclusively():
            align = self._resembling(self._check(name, if_absent), like)
            if len(view) <= SMALL_BYTES_MAX:
                [stored] = store_small(self._session, [SmallObject(bytes(view), mode, align)])
            else:
                stored = self._store_large(view, mode, align)
            return self._publish(name, *stored, if_absent)

    def puts_many(
        self,
        objects: Mapping[str, Buffer] | Iterable[tuple[str, Buffer]],
        *,
        if_absent: bool = False,
        mode: int | None = None,
    ) -> list[ObjectInfo]:
        """As `Store.puts_many`; visible at the end of the block. None of them is put if it raises.

        >>> with store.transaction() as t:
        ...     infos = t.puts_many({"a": b"1", "b": b"22"})
        >>> [info.size for info in infos]
        [1, 2]
        """
        mode = self._mode if mode is None else mode
        check_mode(mode)
        pairs = objects.items() if isinstance(objects, Mapping) else objects
        keys: list[bytes] = []
        stored: list[Stored] = []
        small = SmallGroups(self._session)
        try:
            for group in in_groups(pairs):
                if if_absent:
                    self._expect(name for name, _ in group)
                keys += (self._check(name, if_absent) for name, _ in group)
                aligns = map(self._resembling, keys[-len(group) :])
                raws = [raw for _, raw in group]
                with self._exclusively():
                    if len(raws[0]) > SMALL_BYTES_MAX:
                        stored += small.finish()
                        stored.append(self._store_large(raws[0], mode, next(aligns)))
                        continue
                    these = [
                        SmallObject(bytes(raw), mode, align)
                        for raw, align in zip(raws, aligns, strict=True)
                    ]
                    stored += small.put(these)
            with self._exclusively():
                stored += small.finish()
            made = [Publish(key, *each, if_absent) for key, each in zip(keys, stored, strict=True)]
            self._add(*made)
        except BaseException:
            with self._exclusively():
                for _, draft in stored:
                    if draft is not None:
                        self._session.drop(draft)
            raise
        return [object_info(decode_name(each.name), each.record) for each in made]

    def open(
        self, name: str, mode: Literal["wb", "xb", "ab"] = "wb", *, like: str | None = None
    ) -> ObjectWriterFile:
        """A new object as a binary file object, visible at the end of the block.

        `mode` and `like` are as in `Store.open`: "xb" refuses a name that is taken, now and at the
        end. "ab" begins as the object that the store has now, and is refused at the end, with
        ObjectChanged or NameExists, if the name maps to other bytes by then, be it by this
        transaction. A file that was neither closed by then, nor aborted, makes the commit raise
        FileStillOpen.

        >>> with store.transaction() as t:
        ...     with t.open("log") as file:
        ...         file.write(b"one line")
        8
        >>> store.gets("log")
        b'one line'
        """
        if mode not in ("wb", "xb", "ab"):
            raise ValueError(f"mode is 'wb', 'xb' or 'ab', not {mode!r}")
        key = self._check(name, mode == "xb")
        over: Record | None = None
        align = self._resembling(key, like)
        with self._exclusively():
            if mode == "ab":
                writer, over = begin_as(self._session, self._reader, key, align)
            else:
                writer = ObjectWriter(self._session, align=align)
        if_absent = mode == "xb" or (mode == "ab" and over is None)
        self._unfinished.append(name)

        def publish(writer: ObjectWriter) -> ObjectInfo:
            self._check(name, False)
            with self._exclusively():
                self._unfinished.remove(name)
                finished = writer.finish(self._mode if over is None else over.mode)
                return self._publish(name, *finished, if_absent, over=over)

        def discard(writer: ObjectWriter) -> None:
            with self._exclusively():
                writer.abandon()

        def give_up(writer: ObjectWriter) -> None:
            self._unfinished.remove(name)
            discard(writer)

        file = ObjectWriterFile(
            name,
            writer,
            publish,
            give_up,
            dropped=discard,
            exclusively=self._exclusively,
            begin=(0 if over is None else over.size) if mode == "ab" else None,
        )
        self._files.add(file)
        return file

    @property
    def _mode(self) -> int:
        # No cached_property: before Python 3.12 that has a lock of its own, which a fork in another
        # thread leaves taken in the child for good.
        if self._new_mode is None:
            self._new_mode = new_file_mode()
        return self._new_mode

    def _store_large(self, raw: Buffer, mode: int, align: FindAlignment | None) -> Stored:
        with self._writing(None, align) as writer:
            writer.write(raw)
            return writer.finish(mode)

    @contextlib.contextmanager
    def _writing(
        self, progress: Progress | None, align: FindAlignment | None
    ) -> Iterator[ObjectWriter]:
        with self._exclusively():
            writer = ObjectWriter(self._session, progress, align)
            try:
                yield writer
            except BaseException:
                writer.abandon()
                raise

    def _resembling(self, key: bytes, like: str | None = None) -> FindAlignment | None:
        """Raises NameNotFound if there is no object `like` that."""
        if like is not None and self._record(encode_name(like)) is None:
            raise NameNotFound(like)
        liked = None if like is None else encode_name(like)
        return resembling(self._session, self._catalog, self._reader, key, liked)

    def _publish(
        self,
        name: str,
        record: Record,
        draft: Draft | None,
        if_absent: bool,
        mtime_ns: int | None = None,
        over: Record | None = None,
    ) -> ObjectInfo:
        if mtime_ns is not None:
            record = record._replace(mtime_ns=mtime_ns)
        self._add(Publish(encode_name(name), record, draft, if_absent, over))
        return object_info(name, record)


def object_info(name: str, record: Record) -> ObjectInfo:
    """A record as the API shows it."""
    return ObjectInfo(
        name,
        record.size,
        record.mtime_ns,
        record.mode,
        record.etag.hex(),
        record.chunks,
        record.stored_bytes,
        record.deltas,
    )
