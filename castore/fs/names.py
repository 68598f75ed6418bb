"""Names: copied, moved and removed, and whole folders in and out."""

from __future__ import annotations

import errno
import os
from typing import Any

from fsspec.callbacks import DEFAULT_CALLBACK
from fsspec.core import has_magic
from fsspec.implementations.local import LocalFileSystem
from fsspec.spec import AbstractFileSystem
from fsspec.utils import stringify_path

from castore.errors import NameNotFound
from castore.fs.opening import StoreFileSystem


class NameVerbs(StoreFileSystem):
    """See `castore.fs.CastoreFileSystem`."""

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
