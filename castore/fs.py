"""castore for fsspec, and so for pandas, pyarrow, dask, zarr and whatever else takes its URLs.

    fs = fsspec.filesystem("castore", store="/path/to/store")
    fsspec.open("castore://tables/day.parquet", store="/path/to/store")
    fsspec.open("castore://tables/day.parquet::file:///path/to/store")
    fs = fsspec.filesystem("castore", store="s3://bucket/prefix?region=eu-west-1")

Without a `store`, $CASTORE_STORE names it. Paths are object names, a leading '/' is dropped, and
folders are implied by '/': `mkdir` has nothing to do, and an empty folder is none. The store is
opened when it is first needed, and made only by a write. A write is published when its file is
closed, or all of a `with fs.transaction` at its end; one that raises in its `with` publishes
nothing. On S3, what is one commit here goes name by name. A store opened here stays open: fsspec
keeps and shares its instances.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, BinaryIO

from fsspec.callbacks import DEFAULT_CALLBACK
from fsspec.spec import AbstractFileSystem
from fsspec.utils import isfilelike, stringify_path, tokenize

import castore
from castore.errors import NameExists, NameNotFound
from castore.model import ObjectInfo

Info = dict[str, Any]


class CastoreFileSystem(AbstractFileSystem):  # type: ignore[misc]  # fsspec is untyped
    """A castore store as an fsspec file system; see the module for paths and URLs."""

    protocol = "castore"
    root_marker = ""

    def __init__(
        self,
        store: str | os.PathLike[str] | None = None,
        *,
        read_only: bool = False,
        fo: str | None = None,
        target_protocol: str | None = None,
        target_options: dict[str, Any] | None = None,
        **storage_options: Any,
    ) -> None:
        """`fo` and `target_protocol` are what a chained URL gives: the store's own path."""
        super().__init__(**storage_options)
        if target_protocol not in (None, "file", "local"):
            raise ValueError(f"a castore store can't be opened through {target_protocol!r}")
        path = store or fo or os.environ.get("CASTORE_STORE")
        if not path:
            raise ValueError("which store? Give store=PATH or set CASTORE_STORE=PATH")
        self.store_path = os.fspath(path)
        self.read_only = read_only
        self._store: castore.Store | None = None

    @property
    def store(self) -> castore.Store:
        """The open Store; raises StoreNotFound where there is none yet."""
        return self._open_store(create=False)

    @property
    def fsid(self) -> str:
        if self.store_path.startswith("s3://"):
            return f"castore_{self.store_path}"
        return f"castore_{os.path.abspath(self.store_path)}"

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(each) for each in path]
        path = stringify_path(path)
        for marker in ("castore://", "castore::"):
            if path.startswith(marker):
                path = path[len(marker) :]
        return path.strip("/")

    # ------------------------------------------------------------------ what is there

    def info(self, path: str, **kwargs: Any) -> Info:
        name = self._strip_protocol(path)
        if not name:
            return _folder("")
        try:
            return _file(self.store.info(name))
        except NameNotFound:
            if self._has_below(name):
                return _folder(name)
            raise

    def exists(self, path: str, **kwargs: Any) -> bool:
        try:
            self.info(path)
        except (FileNotFoundError, ValueError):  # a name that can't be is not there
            return False
        return True

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> list[Any]:
        name = self._strip_protocol(path)
        prefix = name + "/" if name else ""
        found: dict[tuple[str, str], Info] = {}
        for info in self.store.list(prefix):
            inner, slash, _ = info.name[len(prefix) :].partition("/")
            if inner:
                entry = _folder(prefix + inner) if slash else _file(info)
                found[entry["name"], entry["type"]] = entry
        if not found and name:
            found[name, "file"] = _file(self.store.info(name))
        entries = [found[key] for key in sorted(found)]
        return entries if detail else [entry["name"] for entry in entries]

    def find(
        self,
        path: str,
        maxdepth: int | None = None,
        withdirs: bool = False,
        detail: bool = False,
        **kwargs: Any,
    ) -> Any:
        if maxdepth is not None and maxdepth < 1:
            raise ValueError("maxdepth must be at least 1")
        name = self._strip_protocol(path)
        prefix = name + "/" if name else ""
        found: dict[str, Info] = {}
        for info in self.store.list(prefix):
            parts = info.name[len(prefix) :].split("/")
            if withdirs:
                for depth in range(1, min(len(parts), (maxdepth or len(parts)) + 1)):
                    folder = prefix + "/".join(parts[:depth])
                    found.setdefault(folder, _folder(folder))
            if maxdepth is None or len(parts) <= maxdepth:
                found[info.name] = _file(info)
        if name and withdirs and found:
            found.setdefault(name, _folder(name))
        if name and not found and self.store.exists(name):
            found[name] = _file(self.store.info(name))
        return {each: found[each] for each in sorted(found)} if detail else sorted(found)

    def modified(self, path: str) -> datetime:
        """When the object was last put."""
        return datetime.fromtimestamp(self.store.info(self._strip_protocol(path)).mtime, tz=UTC)

    created = modified  # an object is never changed in place

    def ukey(self, path: str) -> str:
        """The content's fingerprint: the same for equal bytes in one store."""
        return self.store.info(self._strip_protocol(path)).etag

    def checksum(self, path: str) -> int:
        return int(tokenize(self.ukey(path)), 16)

    # ------------------------------------------------------------------ bytes out

    def cat_file(
        self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any
    ) -> bytes:
        name = self._strip_protocol(path)
        return self.store.gets(name, self._byte_range(name, start, end))

    def cat_ranges(
        self,
        paths: list[str],
        starts: int | list[int | None] | None,
        ends: int | list[int | None] | None,
        max_gap: int | None = None,
        on_error: str = "return",
        **kwargs: Any,
    ) -> list[Any]:
        """The ranges in order; those of one object are read in one plan (`max_gap` is its own)."""
        if not isinstance(paths, list):
            raise TypeError("paths is a list of paths")
        all_starts = starts if isinstance(starts, list) else [starts] * len(paths)
        all_ends = ends if isinstance(ends, list) else [ends] * len(paths)
        if not len(paths) == len(all_starts) == len(all_ends):
            raise ValueError("paths, starts and ends differ in length")
        places: dict[str, list[int]] = {}
        for at, path in enumerate(paths):
            places.setdefault(self._strip_protocol(path), []).append(at)
        results: list[Any] = [None] * len(paths)
        for name, ats in places.items():
            try:
                ranges = [self._byte_range(name, all_starts[at], all_ends[at]) for at in ats]
                parts: Sequence[Any] = self.store.gets_many(name, ranges)
            except Exception as error:
                if on_error != "return":
                    raise
                parts = [error] * len(ats)
            for at, part in zip(ats, parts, strict=True):
                results[at] = part
        return results

    def get_file(
        self,
        rpath: str,
        lpath: Any = None,
        callback: Any = DEFAULT_CALLBACK,
        outfile: BinaryIO | None = None,
        **kwargs: Any,
    ) -> None:
        name = self._strip_protocol(rpath)
        if outfile is None and isfilelike(lpath):
            outfile = lpath
        if outfile is not None:
            self.store.get(name, outfile, progress=callback)
        elif self.isdir(name):
            os.makedirs(lpath, exist_ok=True)
        else:
            os.makedirs(os.path.dirname(os.path.abspath(lpath)), exist_ok=True)
            self.store.get(name, lpath, progress=callback)

    # ------------------------------------------------------------------ bytes in

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
        if self._intrans:
            super().put_file(lpath, rpath, callback=callback, mode=mode, **kwargs)
            return
        self._open_store(create=True).put(
            self._strip_protocol(rpath), lpath, if_absent=mode == "create", progress=callback
        )

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        if self._intrans:
            super().pipe_file(path, value, mode=mode, **kwargs)
            return
        self._open_store(create=True).puts(
            self._strip_protocol(path), value, if_absent=mode == "create"
        )

    def _open(
        self,
        path: str,
        mode: str = "rb",
        block_size: int | None = None,
        autocommit: bool = True,
        cache_options: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """The store does its own caching: `block_size` and `cache_options` change nothing."""
        name = self._strip_protocol(path)
        if mode == "rb":
            file = self.store.open(name, "rb")
            file.size = file.info.size  # type: ignore[attr-defined]  # what fsspec's files have
            return file
        if mode not in ("wb", "xb"):
            raise NotImplementedError(f"castore opens files with 'rb', 'wb' and 'xb', not {mode!r}")
        store = self._open_store(create=True)
        if mode == "xb" and store.exists(name):
            raise NameExists(name)
        writer = store.open(name, mode)
        return writer if autocommit else _DeferredFile(writer)

    # ------------------------------------------------------------------ names

    def cp_file(self, path1: str, path2: str, **kwargs: Any) -> None:
        source = self._strip_protocol(path1)
        try:
            self.store.copy(source, self._strip_protocol(path2))
        except NameNotFound:
            if not self._has_below(source):  # a folder comes into being with what is in it
                raise

    def mv(
        self,
        path1: Any,
        path2: Any,
        recursive: bool = False,
        maxdepth: int | None = None,
        **kwargs: Any,
    ) -> None:
        """One commit for a file or a whole folder; lists and globs go by copy and remove."""
        if not isinstance(path1, str) or not isinstance(path2, str) or maxdepth is not None:
            super().mv(path1, path2, recursive=recursive, maxdepth=maxdepth, **kwargs)
            return
        source, target = self._strip_protocol(path1), self._strip_protocol(path2)
        is_file = self.store.exists(source)
        if not is_file and any(magic in source for magic in "*?["):
            super().mv(path1, path2, recursive=recursive, maxdepth=maxdepth, **kwargs)
            return
        if path2.endswith("/") or self.isdir(target):
            into = is_file or not path1.endswith("/")
            target = f"{target}/{source.rsplit('/', 1)[-1]}".lstrip("/") if into else target
        if is_file:
            self.store.rename(source, target)
            return
        if not self._has_below(source):
            raise NameNotFound(source)
        if not recursive:
            raise IsADirectoryError(f"{source} is a folder: mv it with recursive=True")
        names = list(self.store.names(source + "/"))
        with self.store.transaction() as transaction:
            for name in names:
                transaction.rename(name, f"{target}{name[len(source) :]}".lstrip("/"))

    def rm_file(self, path: str) -> None:
        self.store.delete(self._strip_protocol(path))

    _rm = rm_file

    def rm(self, path: Any, recursive: bool = False, maxdepth: int | None = None) -> None:
        """All of it in one commit. A folder goes with `recursive` only."""
        expanded = self.expand_path(path, recursive=recursive, maxdepth=maxdepth)
        with self.store.transaction() as transaction:
            for name in expanded:
                if self.store.exists(name):
                    transaction.delete(name)
                elif not self._has_below(name):
                    raise NameNotFound(name)
                elif not recursive:
                    raise IsADirectoryError(f"{name} is a folder: rm it with recursive=True")

    # ------------------------------------------------------------------ in here

    def _open_store(self, *, create: bool) -> castore.Store:
        if self._store is None:
            self._store = castore.open(
                self.store_path, create=create and not self.read_only, read_only=self.read_only
            )
        return self._store

    def _has_below(self, name: str) -> bool:
        return next(iter(self.store.names(name + "/")), None) is not None

    def _byte_range(self, name: str, start: int | None, end: int | None) -> tuple[int, int] | None:
        """fsspec's start and end, which count from the end where negative, as a byte range."""
        if start is None and end is None:
            return None
        begin = 0 if start is None else start
        stop = sys.maxsize if end is None else end
        if begin < 0 or stop < 0:
            size = self.store.size(name)
            begin = max(0, begin + size) if begin < 0 else begin
            stop = max(0, stop + size) if stop < 0 else stop
        return begin, max(begin, stop)


class _DeferredFile(io.BufferedIOBase):
    """A file written in an fsspec transaction: closing it publishes nothing, `commit` does."""

    def __init__(self, writer: Any) -> None:
        self._writer = writer

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        written: int = self._writer.write(data)
        return written

    def tell(self) -> int:
        position: int = self._writer.tell()
        return position

    def commit(self) -> None:
        self._writer.close()

    def discard(self) -> None:
        self._writer.abort()


def _file(info: ObjectInfo) -> Info:
    return {
        "name": info.name,
        "size": info.size,
        "type": "file",
        "mtime": info.mtime,
        "mode": info.mode,
        "ETag": info.etag,
        "stored_bytes": info.stored_bytes,
    }


def _folder(name: str) -> Info:
    return {"name": name, "size": 0, "type": "directory"}
