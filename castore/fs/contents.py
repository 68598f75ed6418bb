"""Bytes out and in: whole objects, ranges, and file objects."""

from __future__ import annotations

import errno
import os
import sys
from contextlib import suppress
from typing import Any, BinaryIO

from fsspec.callbacks import DEFAULT_CALLBACK
from fsspec.compression import compr
from fsspec.core import get_compression
from fsspec.utils import isfilelike, stringify_path

from castore.errors import NameExists, NameNotFound, ObjectChanged, PackMissing
from castore.fs.files import CastoreFile, CompressedWriter
from castore.fs.opening import StoreFileSystem
from castore.model import ObjectInfo
from castore.objectfile import ObjectReader
from castore.stream.operations import now_ns
from castore.system.workers import map_at_once


class ContentVerbs(StoreFileSystem):
    """See `castore.fs.CastoreFileSystem`."""

    def cat_file(
        self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any
    ) -> bytes:
        name = self._strip_protocol(path)
        if _from_the_end(start, end):
            return self._part(name, start, end)
        return self.store.gets(name, _byte_range(start, end))

    def cat_ranges(
        self,
        paths: list[str],
        starts: int | list[int | None] | None,
        ends: int | list[int | None] | None,
        max_gap: int | None = None,
        on_error: str = "return",
        **kwargs: Any,
    ) -> list[Any]:
        """The half-open ranges `[start, end)`, in bytes, in order.

        Those of one object are read in one plan (`max_gap` is its own), several objects at once;
        what counts from the end by itself, of one version.
        """
        if not isinstance(paths, list):
            raise TypeError("paths is a list of paths")
        all_starts = starts if isinstance(starts, list) else [starts] * len(paths)
        all_ends = ends if isinstance(ends, list) else [ends] * len(paths)
        if not len(paths) == len(all_starts) == len(all_ends):
            raise ValueError("paths, starts and ends differ in length")
        results: list[Any] = [None] * len(paths)
        names = self._strip_protocol(paths)
        bounds = list(zip(all_starts, all_ends, strict=True))
        at_ends = [at for at, each in enumerate(bounds) if _from_the_end(*each)]
        others = [at for at, each in enumerate(bounds) if not _from_the_end(*each)]

        def read(at: int) -> bytes | Exception:
            try:
                return self._part(names[at], *bounds[at])
            except Exception as error:
                return error

        threads = 2 * self.store.threads if len(at_ends) > 1 else 0
        for at, part in zip(at_ends, map_at_once(read, at_ends, threads=threads), strict=True):
            results[at] = part
        ranges = [(names[at], _byte_range(*bounds[at])) for at in others]
        for at, part in zip(others, self.store.gets_ranges(ranges), strict=True):
            results[at] = part
        failures = [part for part in results if isinstance(part, Exception)]
        if failures and on_error != "return":
            raise failures[0]
        return results

    def cat(
        self, path: Any, recursive: bool = False, on_error: str = "raise", **kwargs: Any
    ) -> Any:
        """As fsspec's; several objects are read at once."""
        one = self._strip_protocol(path) if isinstance(path, (str, os.PathLike)) else None
        types = self._expanded(path, recursive, None)
        names = [name for name, kind in types.items() if not recursive or kind != "directory"]
        if names == [one]:
            return super().cat(path, recursive, on_error, **kwargs)
        found: dict[str, Any] = {}
        parts = self.cat_ranges(names, kwargs.get("start"), kwargs.get("end"))
        for name, part in zip(names, parts, strict=True):
            if isinstance(part, Exception) and on_error == "raise":
                raise part
            if not isinstance(part, Exception) or on_error == "return":
                found[name] = part
        return found

    def get_file(
        self,
        rpath: str,
        lpath: Any = None,
        callback: Any = DEFAULT_CALLBACK,
        outfile: BinaryIO | None = None,
        *,
        listed: ObjectInfo | None = None,
        **kwargs: Any,
    ) -> None:
        """As fsspec's; `listed` is as for `castore.Store.get`. Raises IsADirectoryError for a path
        that is a folder."""
        name = self._strip_protocol(rpath)
        if outfile is None and isfilelike(lpath):
            outfile = lpath
        if outfile is not None:
            self.store.get(name, outfile, progress=callback, listed=listed)
            return
        os.makedirs(os.path.dirname(os.path.abspath(lpath)), exist_ok=True)
        try:
            if os.path.isdir(lpath):
                # What the store would write into it may be the file of another object.
                self.store.info(name)
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(lpath))
            self.store.get(name, lpath, progress=callback, listed=listed)
        except NameNotFound:  # a folder is asked for too, in a tree of them
            if not self.isdir(name):
                raise
            self._refuse_content(f"{name}/")
            os.makedirs(lpath, exist_ok=True)

    def _refuse_content(self, marker: str) -> None:
        """Raises IsADirectoryError if what marks a folder has content: no file can have that name,
        and it would be lost."""
        with suppress(NameNotFound):
            if self.store.size(marker):
                raise IsADirectoryError(errno.EISDIR, "no file can have this name", marker)

    def put_file(
        self,
        lpath: Any,
        rpath: str,
        callback: Any = DEFAULT_CALLBACK,
        mode: str = "overwrite",
        **kwargs: Any,
    ) -> None:
        if os.path.isdir(lpath):
            return
        name = self._strip_protocol(rpath)
        with self._changes(create=True) as changes:
            changes.put(name, lpath, if_absent=mode == "create", progress=callback)

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        with self._changes(create=True) as changes:
            changes.puts(self._strip_protocol(path), value, if_absent=mode == "create")

    def pipe(self, path: Any, value: bytes | None = None, **kwargs: Any) -> None:
        """One commit for all of a mapping, whose small values are stored many at a time."""
        if path and isinstance(path, dict):
            objects = {self._strip_protocol(each): data for each, data in path.items()}
            with self._changes(create=True) as changes:
                changes.puts_many(objects, if_absent=kwargs.get("mode") == "create")
        else:  # of one, or nothing at all
            super().pipe(stringify_path(path), value, **kwargs)

    def touch(self, path: str, truncate: bool = True, **kwargs: Any) -> None:
        """Put an empty object; without `truncate`, give one that is there a new time: no data
        moves."""
        if truncate:
            self.pipe_file(path, b"", **kwargs)
            return
        if self._has_changes:
            if self._kind_after(path).is_object:  # it may have been put in the transaction
                with self._changes(create=False) as changes:
                    changes.set_attributes(self._strip_protocol(path), mtime_ns=now_ns())
                return
            if self._kind(path).is_object:  # it was removed in it
                self.pipe_file(path, b"", **kwargs)
                return
        # What another puts meanwhile has a new time, too, and its bytes are not taken away.
        with suppress(NameExists, ObjectChanged), self.open(path, "ab"):
            pass

    def open(
        self,
        path: str,
        mode: str = "rb",
        block_size: int | None = None,
        cache_options: dict[str, Any] | None = None,
        compression: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """As fsspec's. What compresses into a file publishes it when it is closed.

        Raises NotImplementedError for a zip that is to be appended to.
        """
        path = self._strip_protocol(path)
        compression = get_compression(path, compression)
        if compression == "zip" and "a" in mode:  # who reads two of them finds the last alone
            raise NotImplementedError("a zip is not appended to: what is in it would be lost")
        if compression is None or "r" in mode or "b" not in mode:
            return super().open(path, mode, block_size, cache_options, compression, **kwargs)
        file = super().open(path, mode, block_size, cache_options, **kwargs)
        try:
            return CompressedWriter(file, compr[compression])
        except BaseException:
            file.abort()
            raise

    def _open(
        self,
        path: str,
        mode: str = "rb",
        block_size: int | None = None,
        autocommit: bool = True,
        cache_options: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """The store does its own caching: `cache_options` changes nothing."""
        name = self._strip_protocol(path)
        blocksize = block_size or self.blocksize
        if mode == "rb":
            return CastoreFile(self, self._open_object(name), blocksize)
        if mode not in ("wb", "xb", "ab"):
            modes = "'rb', 'wb', 'xb' and 'ab'"
            raise NotImplementedError(f"castore opens files with {modes}, not {mode!r}")
        file: Any
        if autocommit:
            file = self._open_store(create=True).open(name, mode)
        elif self._intrans:
            file = self.transaction.changes(create=True).open(name, mode)
        else:
            raise ValueError("autocommit=False is for files of a `with fs.transaction`")
        file.fs, file.path, file.blocksize = self, name, blocksize
        file.when_published = self._shown.forget
        return file

    def _open_object(self, name: str) -> ObjectReader:
        shown = self._shown.get(name)
        if shown is not None:
            try:
                return self.store.open(name, "rb", etag=shown.etag)
            except (NameNotFound, ObjectChanged, PackMissing):
                self._shown.forget()  # it is another by now
        return self.store.open(name, "rb")

    def _part(self, name: str, start: int | None, end: int | None) -> bytes:
        """What lies between, of one version: what its end is, and what is there."""
        with self.store.open(name, "rb") as file:
            begin, stop, _ = slice(start, end).indices(file.info.size)
            file.seek(begin)
            return file.read(max(0, stop - begin))


def _from_the_end(start: int | None, end: int | None) -> bool:
    """Whether it takes the object's size to know what is meant."""
    return (start or 0) < 0 or (end or 0) < 0


def _byte_range(start: int | None, end: int | None) -> tuple[int, int] | None:
    """fsspec's start and end, neither of them from the end, as a byte range."""
    if start is None and end is None:
        return None
    begin = 0 if start is None else start
    return begin, max(begin, sys.maxsize if end is None else end)
