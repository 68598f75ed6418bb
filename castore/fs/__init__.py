"""castore for fsspec, and so for pandas, pyarrow, dask, zarr and whatever else takes its URLs.

    fs = fsspec.filesystem("castore", store="/path/to/store")
    fsspec.open("castore://tables/day.parquet", store="/path/to/store")
    fsspec.open("castore://tables/day.parquet::file:///path/to/store")
    fsspec.open("castore://%2Fpath%2Fto%2Fstore@/tables/day.parquet")  # see `castore.fs.locations`
    fs = fsspec.filesystem("castore", store="s3://bucket/prefix?region=eu-west-1")

Without a `store`, $CASTORE_STORE names it. Paths are object names, a leading '/' is dropped; one
that is there is itself, and only what is not is taken for a pattern (`*?[`). Folders are implied by
'/': `mkdir` has nothing to do, and an empty folder is none. The store is
opened when it is first needed, and made only by a write. A write is published when its file is
closed, or all of a `with fs.transaction` at its end, with what is copied, moved and removed in it;
one that raises in its `with` publishes nothing. On S3, what is one commit here goes name by name. A
store opened here stays open, as fsspec keeps and shares its instances: where somebody closes it,
the next use opens it again.
"""

from __future__ import annotations

import contextlib
import errno
import inspect
import os
import sys
import threading
import weakref
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, BinaryIO

from fsspec.callbacks import DEFAULT_CALLBACK
from fsspec.compression import compr
from fsspec.config import apply_config
from fsspec.core import get_compression, has_magic
from fsspec.implementations.local import LocalFileSystem
from fsspec.spec import AbstractFileSystem
from fsspec.utils import isfilelike, stringify_path, tokenize

import castore
from castore.errors import InvalidName, NameNotFound, StoreNotFound
from castore.fs.files import CastoreFile, CastoreTransaction, CompressedWriter, Info, file_entry
from castore.fs.locations import chained_store, split_store, url_with_store
from castore.model import Kind
from castore.store import open_store
from castore.urls import local_folder

OPEN_OPTIONS = frozenset(inspect.signature(open_store).parameters) - {"url_or_path"}
FSSPEC_OPTIONS = {"loop", "use_listings_cache", "listings_expiry_time", "max_paths"}


class _Resolved(type(AbstractFileSystem)):  # type: ignore[misc]  # fsspec is untyped
    """Says which store is meant before fsspec looks among the instances that it keeps, by their
    arguments. A relative path, or none, means another store after a chdir, in another process, or
    with another environment."""

    def __call__(
        cls,
        store: str | os.PathLike[str] | None = None,
        *,
        fo: str | None = None,
        target_protocol: str | None = None,
        target_options: dict[str, Any] | None = None,
        asynchronous: bool = False,
        **storage_options: Any,
    ) -> Any:
        """`fo` and what begins with `target_` are what a chained URL gives: the store's own
        place."""
        chained, settings = chained_store(fo, target_protocol, target_options, OPEN_OPTIONS)
        options = {**apply_config(cls, storage_options), **settings}
        where = store or chained or options.pop("store", None) or os.environ.get("CASTORE_STORE")
        if not where:
            raise ValueError("which store? Give store=PATH or set CASTORE_STORE=PATH")
        fs = super().__call__(**{**options, "store": _absolute(where)})
        if not asynchronous:
            return fs
        from castore.fs.asynchronous import AsyncCastoreFileSystem

        return AsyncCastoreFileSystem(fs, asynchronous=True, loop=options.get("loop"))


class CastoreFileSystem(AbstractFileSystem, metaclass=_Resolved):  # type: ignore[misc]
    """A castore store as an fsspec file system; see the module for paths and URLs.

    `store` is a path or a URL, and made absolute at once; without one, $CASTORE_STORE is. The other
    options are those of `castore.open` and of fsspec itself; with `asynchronous` the answer is an
    `AsyncCastoreFileSystem` over one of these. Raises ValueError for a store that can't be one,
    TypeError for options that nobody knows.

    >>> fs = castore.fs.CastoreFileSystem("store")
    >>> with fs.open("tables/a", "wb") as file:
    ...     file.write(b"12345")
    5
    >>> fs.cat_file("tables/a", start=1, end=3)
    b'23'
    >>> fs.ls("tables", detail=False)
    ['tables/a']
    >>> fs.store.close()
    """

    protocol = "castore"
    root_marker = ""
    transaction_type = CastoreTransaction

    def __init__(self, store: str, **storage_options: Any) -> None:
        strangers = storage_options.keys() - OPEN_OPTIONS - FSSPEC_OPTIONS
        if strangers:
            raise TypeError(
                f"there is no storage option {', '.join(sorted(strangers))} of castore: there are "
                f"{', '.join(['store', *sorted(OPEN_OPTIONS)])}"
            )
        super().__init__(store=store, **storage_options)
        self.store_path = store
        self._open_options = {
            name: value for name, value in storage_options.items() if name in OPEN_OPTIONS
        }
        create = bool(self._open_options.pop("create", True))
        self._makes_store = create and not self._open_options.get("read_only", False)
        self._store: castore.Store | None = None
        self._batch = _Batch()

    @property
    def store(self) -> castore.Store:
        """The open Store; raises StoreNotFound where there is none yet."""
        return self._open_store(create=False)

    @property
    def fsid(self) -> str:
        return f"castore_{self.store_path}"

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(each) for each in path]
        path = stringify_path(path)
        if path.startswith(f"{cls.protocol}://"):
            path = split_store(path[len(cls.protocol) + 3 :])[1]
        elif path.startswith(f"{cls.protocol}::"):
            path = path[len(cls.protocol) + 2 :]
        return path.strip("/")

    @classmethod
    def _get_kwargs_from_urls(cls, path: str) -> dict[str, Any]:
        marker = f"{cls.protocol}://"
        store = split_store(path[len(marker) :])[0] if path.startswith(marker) else None
        return {} if store is None else {"store": store}

    def unstrip_protocol(self, name: str) -> str:
        """The name's URL, which says which store it is in: it means the same everywhere."""
        return url_with_store(self.protocol, self.store_path, self._strip_protocol(name))

    # ------------------------------------------------------------------ what is there

    def info(self, path: str, **kwargs: Any) -> Info:
        name = self._strip_protocol(path)
        if not name:
            return _folder("")
        try:
            return file_entry(self.store.info(name))
        except NameNotFound:
            if self._has_below(name):
                return _folder(name)
            raise

    def exists(self, path: str, **kwargs: Any) -> bool:
        return any(self._kind(path))

    def isdir(self, path: str) -> bool:
        """Of what is both an object and a folder: False."""
        kind = self._kind(path)
        return kind.is_folder and not kind.is_object

    def isfile(self, path: str) -> bool:
        return self._kind(path).is_object

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> list[Any]:
        name = self._strip_protocol(path)
        entries = [
            entry
            for entry in self.store.scandir(name, details=detail)
            if entry.name.strip("/") != name  # its own, which ends with a slash
        ]
        entries.sort(key=lambda entry: (entry.name, not entry.is_folder))
        if not entries and name:
            return [file_entry(self.store.info(name))] if detail else [self._existing(name)]
        if not detail:
            return [entry.name for entry in entries]
        return [
            _folder(entry.name) if entry.info is None else file_entry(entry.info)
            for entry in entries
        ]

    def find(
        self,
        path: str,
        maxdepth: int | None = None,
        withdirs: bool = False,
        detail: bool = False,
        *,
        prefix: str = "",
        **kwargs: Any,
    ) -> Any:
        """What is below the path, by name; with `prefix`, where what follows the path's own '/'
        begins with it. Nothing where there is nothing, be it that the store is yet to be made."""
        if maxdepth is not None and maxdepth < 1:
            raise ValueError("maxdepth must be at least 1")
        try:
            self._open_store(create=False)
        except StoreNotFound:
            if not self._makes_store:
                raise
            return {} if detail else []
        name = self._strip_protocol(path)
        below = name + "/" if name else ""
        found: dict[str, Info] = {}
        for each, info in self._listed(below + prefix, detail):
            parts = each[len(below) :].split("/")
            if withdirs:
                for depth in range(1, min(len(parts), (maxdepth or len(parts)) + 1)):
                    folder = below + "/".join(parts[:depth])
                    found.setdefault(folder, _folder(folder))
            if maxdepth is None or len(parts) <= maxdepth:
                found[each] = info
        if name and withdirs and found and not prefix:
            found.setdefault(name, _folder(name))
        if name and not found and not prefix and self.store.exists(name):
            found[name] = file_entry(self.store.info(name)) if detail else {}
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
        """The half-open ranges `[start, end)`, in bytes, in order.

        Those of one object are read in one plan (`max_gap` is its own), several objects at once.
        """
        if not isinstance(paths, list):
            raise TypeError("paths is a list of paths")
        all_starts = starts if isinstance(starts, list) else [starts] * len(paths)
        all_ends = ends if isinstance(ends, list) else [ends] * len(paths)
        if not len(paths) == len(all_starts) == len(all_ends):
            raise ValueError("paths, starts and ends differ in length")
        results: list[Any] = [None] * len(paths)
        wanted: dict[int, tuple[str, tuple[int, int] | None]] = {}
        for at, path in enumerate(paths):
            name = self._strip_protocol(path)
            try:
                wanted[at] = name, self._byte_range(name, all_starts[at], all_ends[at])
            except Exception as error:
                if on_error != "return":
                    raise
                results[at] = error
        for at, part in zip(wanted, self.store.gets_ranges([*wanted.values()]), strict=True):
            if isinstance(part, Exception) and on_error != "return":
                raise part
            results[at] = part
        return results

    def cat(
        self, path: Any, recursive: bool = False, on_error: str = "raise", **kwargs: Any
    ) -> Any:
        """As fsspec's; several objects are read at once."""
        one = self._strip_protocol(path) if isinstance(path, (str, os.PathLike)) else None
        names = self.expand_path(path, recursive=recursive)
        if names == [one] or kwargs:
            return super().cat(path, recursive, on_error, **kwargs)
        found: dict[str, Any] = {}
        parts = self.store.gets_ranges([(name, None) for name in names])
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
        **kwargs: Any,
    ) -> None:
        name = self._strip_protocol(rpath)
        if outfile is None and isfilelike(lpath):
            outfile = lpath
        if outfile is not None:
            self.store.get(name, outfile, progress=callback)
            return
        os.makedirs(os.path.dirname(os.path.abspath(lpath)), exist_ok=True)
        try:
            self.store.get(name, lpath, progress=callback)
        except NameNotFound:  # a folder is asked for too, in a tree of them
            if not self.isdir(name):
                raise
            os.makedirs(lpath, exist_ok=True)

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
        name = self._strip_protocol(rpath)
        with self._changes(create=True) as changes:
            changes.put(name, lpath, if_absent=mode == "create", progress=callback)

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        with self._changes(create=True) as changes:
            changes.puts(self._strip_protocol(path), value, if_absent=mode == "create")

    def pipe(self, path: Any, value: bytes | None = None, **kwargs: Any) -> None:
        """One commit for all of a mapping."""
        with self._together():
            super().pipe(path, value, **kwargs)

    def touch(self, path: str, truncate: bool = True, **kwargs: Any) -> None:
        """Put an empty object; without `truncate`, give one that is there a new time: no data
        moves."""
        if truncate or not self.isfile(path):
            self.pipe_file(path, b"", **kwargs)
            return
        with self.open(path, "ab"):
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
        """As fsspec's. What compresses into a file publishes it when it is closed."""
        path = self._strip_protocol(path)
        compression = get_compression(path, compression)
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
            return CastoreFile(self, self.store.open(name, "rb"), blocksize)
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
        return file

    # ------------------------------------------------------------------ names

    def expand_path(
        self, path: Any, recursive: bool = False, maxdepth: int | None = None, **kwargs: Any
    ) -> list[str]:
        """The names that are meant.

        A name that is there is itself, whatever is in it: only what is not is taken for a pattern.
        """
        one = isinstance(path, (str, os.PathLike))
        found: set[str] = set()
        others = []
        for each in self._strip_protocol([path] if one else list(path)):
            if not has_magic(each) or not self.exists(each):
                others.append(each)
                continue
            found.add(each)
            if recursive:
                found.update(self.find(each, maxdepth=maxdepth, withdirs=True))
        try:
            if others or not found:
                found.update(super().expand_path(others, recursive, maxdepth, **kwargs))
        except FileNotFoundError:
            if not found:
                raise
        return sorted(found)

    def glob(self, path: str, maxdepth: int | None = None, **kwargs: Any) -> Any:
        """What matches the pattern; a name that is there is itself."""
        name = self._strip_protocol(path)
        if not has_magic(name) or not self.exists(name):
            return super().glob(path, maxdepth, **kwargs)
        return {name: self.info(name)} if kwargs.get("detail") else [name]

    def get(
        self,
        rpath: Any,
        lpath: Any,
        recursive: bool = False,
        callback: Any = DEFAULT_CALLBACK,
        maxdepth: int | None = None,
        **kwargs: Any,
    ) -> None:
        if isinstance(lpath, (str, os.PathLike)):
            local = LocalFileSystem()
            into = lpath if isinstance(lpath, str) else os.fspath(lpath)
            rpath, lpath = _literally(self, rpath, local, into, recursive, maxdepth) or (
                rpath,
                lpath,
            )
        super().get(rpath, lpath, recursive, callback, maxdepth, **kwargs)

    def put(
        self,
        lpath: Any,
        rpath: Any,
        recursive: bool = False,
        callback: Any = DEFAULT_CALLBACK,
        maxdepth: int | None = None,
        **kwargs: Any,
    ) -> None:
        if isinstance(rpath, str):
            local = LocalFileSystem()
            lpath, rpath = _literally(local, lpath, self, rpath, recursive, maxdepth) or (
                lpath,
                rpath,
            )
        with self._together():
            super().put(lpath, rpath, recursive, callback, maxdepth, **kwargs)

    def copy(
        self,
        path1: Any,
        path2: Any,
        recursive: bool = False,
        maxdepth: int | None = None,
        on_error: str | None = None,
        **kwargs: Any,
    ) -> None:
        if isinstance(path2, str):
            path1, path2 = _literally(self, path1, self, path2, recursive, maxdepth) or (
                path1,
                path2,
            )
        with self._together():
            super().copy(path1, path2, recursive, maxdepth, on_error, **kwargs)

    def cp_file(self, path1: str, path2: str, **kwargs: Any) -> None:
        source = self._strip_protocol(path1)
        is_there = bool(source) and self.store.exists(source)
        if not source or (not is_there and self._has_below(source)):
            return  # a folder comes into being with what is in it
        if not is_there and not self._intrans:
            raise NameNotFound(source)
        with self._changes(create=False) as changes:
            changes.copy(source, self._strip_protocol(path2))

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
        is_folder = not is_file and self._has_below(source)
        if not is_file and not is_folder:
            if not has_magic(source):
                raise NameNotFound(source)
            super().mv(path1, path2, recursive=recursive, maxdepth=maxdepth, **kwargs)
            return
        if path2.endswith("/") or self.isdir(target):
            into = is_file or not path1.endswith("/")
            target = _join(target, _last(source)) if into else target
        if is_folder and not recursive:
            raise IsADirectoryError(f"{source} is a folder: mv it with recursive=True")
        names = [source] if is_file else list(self.store.names(source + "/"))
        with self._changes(create=False) as changes:
            for name in names:
                changes.rename(name, f"{target}{name[len(source) :]}".lstrip("/"))

    def rm_file(self, path: str) -> None:
        with self._changes(create=False) as changes:
            changes.delete(self._strip_protocol(path))

    _rm = rm_file

    def rm(self, path: Any, recursive: bool = False, maxdepth: int | None = None) -> None:
        """Remove names, all in one commit.

        A folder goes with `recursive` only; all of the store, where "/" says so: an empty path is a
        mistake.
        """
        for each in [path] if isinstance(path, (str, os.PathLike)) else path:
            if stringify_path(each) in ("", f"{self.protocol}://"):
                raise ValueError(f"the path {each!r} is empty: '/' is all of the store")
        expanded = self.expand_path(path, recursive=recursive, maxdepth=maxdepth)
        with self._changes(create=False) as changes:
            for name in expanded:
                if name and self.store.exists(name):
                    changes.delete(name)
                elif name and not self._has_below(name):
                    raise NameNotFound(name)
                elif not recursive:
                    raise IsADirectoryError(f"{name} is a folder: rm it with recursive=True")

    def rmdir(self, path: str) -> None:
        """Raises: a folder that is there is not empty."""
        name = self._strip_protocol(path)
        if self.info(name)["type"] == "file":
            raise NotADirectoryError(errno.ENOTDIR, "is a file, not a folder", name)
        if self._has_below(name):
            raise OSError(errno.ENOTEMPTY, "the folder is not empty: rm it with recursive", name)

    def sign(self, path: str, expiration: int = 100, **kwargs: Any) -> str:
        """Raises NotImplementedError: there is nothing to sign."""
        raise NotImplementedError(
            "an object of castore is chunks in packs, and no server hands it out by a URL; what "
            "fsspec opens is unstrip_protocol(path)"
        )

    url = sign

    # ------------------------------------------------------------------ in here

    def _open_store(self, *, create: bool) -> castore.Store:
        store = self._store
        if store is None or store.closed:
            create = create and self._makes_store
            store = self._store = _opened(self.store_path, self._open_options, create=create)
        return store

    @contextlib.contextmanager
    def _changes(self, *, create: bool) -> Iterator[castore.Transaction]:
        """What gathers changes: until its end in a `with fs.transaction`, or in `_together`, else
        for this call."""
        if self._intrans:
            yield self.transaction.changes(create=create)
        elif self._batch.begun:
            if self._batch.changes is None:
                self._batch.changes = self._open_store(create=create).transaction()
            yield self._batch.changes
        else:
            with self._open_store(create=create).transaction() as changes:
                yield changes

    @contextlib.contextmanager
    def _together(self) -> Iterator[None]:
        """All that this thread changes meanwhile is one commit, or nothing if it raises."""
        batch = self._batch
        if self._intrans or batch.begun:
            yield
            return
        batch.begun = True
        try:
            yield
            if batch.changes is not None:
                batch.changes.commit()
        except BaseException:
            if batch.changes is not None:
                batch.changes.abort()
            raise
        finally:
            batch.begun, batch.changes = False, None

    def _has_below(self, name: str) -> bool:
        return self.store.kind(name).is_folder if name else any(True for _ in self.store.names())

    def _kind(self, path: str) -> Kind:
        name = self._strip_protocol(path)
        if not name:
            return Kind(False, True)
        try:
            return self.store.kind(name)
        except (FileNotFoundError, InvalidName):  # a name that can't be is not there
            return Kind(False, False)

    def _existing(self, name: str) -> str:
        if not self.store.exists(name):
            raise NameNotFound(name)
        return name

    def _listed(self, prefix: str, detail: bool) -> Iterator[tuple[str, Info]]:
        """The names below, with nothing of what they are where nobody asks for it."""
        if detail:
            return ((info.name, file_entry(info)) for info in self.store.list(prefix))
        return ((name, {}) for name in self.store.names(prefix))

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


class _Batch(threading.local):
    """What `_together` gathers, by thread: begun when something is first changed."""

    begun = False
    changes: castore.Transaction | None = None


_stores: weakref.WeakValueDictionary[str, castore.Store] = weakref.WeakValueDictionary()
_stores_lock = threading.Lock()


def _forget_lock() -> None:
    # Another thread may have held it across the fork, and does not exist in the child.
    global _stores_lock
    _stores_lock = threading.Lock()


os.register_at_fork(after_in_child=_forget_lock)


def _opened(path: str, options: dict[str, Any], *, create: bool) -> castore.Store:
    """One Store for all instances of a process that want the same: fsspec makes one a thread."""
    key = repr((path, sorted(options.items())))
    with _stores_lock:
        store = _stores.get(key)
        if store is None or store.closed:
            store = _stores[key] = castore.open(path, create=create, **options)
        return store


def _absolute(store: str | os.PathLike[str]) -> str:
    """A store's path or URL so that it means the same everywhere. Raises ValueError."""
    url = os.fspath(store)
    if not isinstance(url, str):
        raise TypeError(f"a store's path is a str, not {type(url).__name__}")
    folder = local_folder(url)
    return url if folder is None else os.path.abspath(folder)


def _literally(
    source_fs: AbstractFileSystem,
    source: Any,
    target_fs: AbstractFileSystem,
    target: str,
    recursive: bool,
    maxdepth: int | None,
) -> tuple[list[str], list[str]] | None:
    """Where everything goes, if the source is there and fsspec would take its name for a pattern,
    or, as it is in no folder, for the folder that it is in; else None."""
    if not isinstance(source, str):
        return None
    name = source_fs._strip_protocol(source)
    if not name or not (has_magic(name) or "/" not in name) or not source_fs.exists(name):
        return None
    into = target.endswith("/") or target_fs.isdir(target)
    root = target_fs._strip_protocol(target)
    if source_fs.isfile(name):
        return [name], [_join(root, _last(name)) if into else root]
    if into and not source.endswith("/"):
        root = _join(root, _last(name))
    inside = source_fs.find(name, maxdepth=maxdepth) if recursive else []
    return inside, [_join(root, each[len(name) + 1 :]) for each in inside]


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _last(name: str) -> str:
    return name.rsplit("/", 1)[-1]


def _folder(name: str) -> Info:
    return {"name": name, "size": 0, "type": "directory"}
