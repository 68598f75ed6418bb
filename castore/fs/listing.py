"""What is there: listings, and what single names are."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from fsspec.core import has_magic
from fsspec.utils import tokenize

from castore.errors import InvalidName, NameNotFound, StoreNotFound
from castore.fs.files import Info, file_entry
from castore.fs.opening import StoreFileSystem
from castore.model import Kind


class ListingVerbs(StoreFileSystem):
    """See `castore.fs.CastoreFileSystem`."""

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


def _folder(name: str) -> Info:
    return {"name": name, "size": 0, "type": "directory"}
