"""What is there: listings, and what single names are."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from fsspec.core import has_magic
from fsspec.utils import stringify_path, tokenize

from castore.errors import InvalidName, NameNotFound, StoreNotFound
from castore.fs.files import Info, file_entry
from castore.fs.opening import StoreFileSystem
from castore.model import DirEntry, Kind, ObjectInfo
from castore.system.workers import map_at_once

TRIES = 3  # where what is there and what is below it do not fit, as others change it


class ListingVerbs(StoreFileSystem):
    """See `castore.fs.CastoreFileSystem`."""

    def info(self, path: str, **kwargs: Any) -> Info:
        name = self._strip_protocol(path)
        if not name:
            return _folder("")
        tries = TRIES
        while True:
            try:
                return file_entry(self._object(name))
            except NameNotFound:
                kind, tries = self.store.kind(name), tries - 1
                if kind.is_folder:
                    return _folder(name)
                if not kind.is_object or not tries:  # else it came since
                    raise

    def sizes(self, paths: list[str]) -> list[int | None]:
        """The size in bytes of each, in order, None of a folder; of many at once. Raises
        FileNotFoundError."""
        names = [self._strip_protocol(path) for path in paths]
        listed = self.store.infos_together(names)

        def size(name: str) -> int | None:
            info = listed.get(name)
            found: int | None = self.size(name) if info is None else info.size
            return found

        return list(map_at_once(size, names, threads=self._threads_of(names)))

    def exists(self, path: str, **kwargs: Any) -> bool:
        return self._is_shown(path) or any(self._kind(path))

    def isdir(self, path: str) -> bool:
        """Of what is both an object and a folder: False."""
        if self._is_shown(path):
            return False
        kind = self._kind(path)
        return kind.is_folder and not kind.is_object

    def isfile(self, path: str) -> bool:
        return self._is_shown(path) or self._kind(path).is_object

    def ls(
        self, path: str, detail: bool = True, *, kinds_only: bool = False, **kwargs: Any
    ) -> list[Any]:
        """As fsspec's; with `kinds_only` a file's size is None, and nothing else is told of it."""
        name = self._strip_protocol(path)
        entries = self._entries(name, details=detail and not kinds_only)
        if not detail:
            return [entry.name for entry in entries]
        return [_entry(entry) for entry in entries]

    def walk(
        self,
        path: str,
        maxdepth: int | None = None,
        topdown: bool = True,
        on_error: Any = "omit",
        **kwargs: Any,
    ) -> Iterator[Any]:
        """As fsspec's: each folder is listed when its turn comes. Without `detail` nothing is read
        of the files in it."""
        if not kwargs.get("detail"):
            kwargs["kinds_only"] = self._kinds_only
        # A generator itself, by which fsspec tells what it can make no coroutine of.
        yield from super().walk(path, maxdepth, topdown, on_error, **kwargs)

    def find(
        self,
        path: str,
        maxdepth: int | None = None,
        withdirs: bool = False,
        detail: bool = False,
        *,
        prefix: str = "",
        kinds_only: bool = False,
        **kwargs: Any,
    ) -> Any:
        """What is below the path, by name; with `prefix`, where what follows the path's own '/'
        begins with it. Nothing where there is nothing, be it that the store is yet to be made.
        `kinds_only` as for `ls`."""
        if maxdepth is not None and maxdepth < 1:
            raise ValueError("maxdepth must be at least 1")
        try:
            self._open_store(create=False)
        except StoreNotFound:
            if not self._makes_store:
                raise
            return {} if detail else []
        name, details = self._strip_protocol(path), detail and not kinds_only
        found = self._found(name, prefix, maxdepth, withdirs, details)
        if not detail:
            return sorted(found)
        return {each: found[each] or _unread(each) for each in sorted(found)}

    def du(
        self,
        path: str,
        total: bool = True,
        maxdepth: int | None = None,
        withdirs: bool = False,
        **kwargs: Any,
    ) -> Any:
        """As fsspec's: the bytes of all objects below, or of each; a folder by itself has none."""
        found = self.find(path, maxdepth=maxdepth, withdirs=withdirs, detail=True)
        sizes = {name: info["size"] for name, info in found.items()}
        return sum(sizes.values()) if total else sizes

    def modified(self, path: str) -> datetime:
        """When the object was last put."""
        return datetime.fromtimestamp(self._object(self._strip_protocol(path)).mtime, tz=UTC)

    created = modified  # an object is never changed in place

    def ukey(self, path: str) -> str:
        """The content's fingerprint: the same for equal bytes in one store."""
        return self._object(self._strip_protocol(path)).etag

    def checksum(self, path: str) -> int:
        return int(tokenize(self.ukey(path)), 16)

    def expand_path(
        self, path: Any, recursive: bool = False, maxdepth: int | None = None, **kwargs: Any
    ) -> list[str]:
        """The names that are meant.

        A name that is there is itself, whatever is in it: only what is not is taken for a pattern.
        """
        return list(self._expanded(path, recursive, maxdepth))

    def glob(self, path: str, maxdepth: int | None = None, **kwargs: Any) -> Any:
        """What matches the pattern; a name that is there is itself. Without `detail` nothing is
        read of the files."""
        name = self._strip_protocol(path)
        if not has_magic(name) or not self.exists(name):
            if not kwargs.get("detail"):
                kwargs["kinds_only"] = self._kinds_only
            return super().glob(stringify_path(path), maxdepth, **kwargs)
        return {name: self.info(name)} if kwargs.get("detail") else [name]

    def _expanded(
        self, path: Any, recursive: bool, maxdepth: int | None, *, after: bool = False
    ) -> dict[str, str]:
        """The names that are meant, sorted, each with what it is: "file", "directory", or "" where
        nobody looked. Raises FileNotFoundError, which is NameNotFound where names were given, if
        there is nothing.

        With `after`, names that a transaction has put are there, too; a pattern matches none of
        them.
        """
        if maxdepth is not None and maxdepth < 1:
            raise ValueError("maxdepth must be at least 1")
        given = [path] if isinstance(path, (str, os.PathLike)) else list(path)
        if not given:  # fsspec's own, too, take it for a mistake
            raise FileNotFoundError(errno.ENOENT, "no path is given: the list is empty")
        found: dict[str, str] = {}
        for name in self._strip_protocol(given):
            exists = self._exists_after if after else self.exists
            if has_magic(name) and not exists(name):
                matched = super().glob(
                    name, maxdepth=maxdepth, detail=True, kinds_only=self._kinds_only
                )
                found |= {each: info["type"] for each, info in matched.items()}
                deeper = None if maxdepth is None else maxdepth - 1
                if recursive and deeper != 0:
                    for each, kind in self._kinds(matched).items():
                        found |= self._tree(each, kind, deeper)
            elif recursive and after and self._has_changes:
                found |= self._tree_after(name, maxdepth)
            elif recursive:
                found |= self._tree(name, self._kind(name), maxdepth)
            else:
                found.setdefault(name, "")
        if not found:
            raise NameNotFound(", ".join(map(stringify_path, given)))
        return {name: found[name] for name in sorted(found)}

    def _tree(self, name: str, kind: Kind, maxdepth: int | None) -> dict[str, str]:
        """A name and what is below it, each with what it is."""
        tree = {name: "file" if kind.is_object else "directory"} if any(kind) else {}
        if kind.is_folder:
            found = self._found(name, "", maxdepth, True, False)
            types = {each: info.get("type", "file") for each, info in found.items()}
            tree = {**types, **tree}
        return tree

    def _found(
        self, name: str, prefix: str, maxdepth: int | None, withdirs: bool, detail: bool
    ) -> dict[str, Info]:
        """As `find`, in no order: what is known of each, {} of an object without `detail`."""
        for _ in range(TRIES):
            found, any_below = self._found_below(name, prefix, maxdepth, withdirs, detail)
            if found or prefix or not name:
                return found
            kind = self.store.kind(name)
            if kind.is_object:
                with suppress(NameNotFound):
                    return {name: file_entry(self._object(name)) if detail else {}}
            if any_below or not any(kind):  # else it went since, or what is in it came
                break
        return {}

    def _found_below(
        self, name: str, prefix: str, maxdepth: int | None, withdirs: bool, detail: bool
    ) -> tuple[dict[str, Info], bool]:
        """That, but for the name itself; and whether there is anything below it, however deep."""
        found: dict[str, Info] = {}
        any_below = False
        if maxdepth == 1 and not prefix:  # what is in the folders in it is not looked at
            for entry in self._shown.noted(self.store.scandir(name, details=detail)):
                any_below = True
                if not entry.is_folder:
                    found[entry.name] = {} if entry.info is None else file_entry(entry.info)
                elif withdirs:
                    found.setdefault(entry.name, _folder(entry.name))
        else:
            below = name + "/" if name else ""
            for each, info in self._listed(below + prefix, detail):
                any_below = True
                parts = each[len(below) :].split("/")
                if withdirs:
                    for depth in range(1, min(len(parts), (maxdepth or len(parts)) + 1)):
                        folder = below + "/".join(parts[:depth])
                        found.setdefault(folder, _folder(folder))
                if maxdepth is None or len(parts) <= maxdepth:
                    found[each] = info
        if name and withdirs and found and not prefix:
            found.setdefault(name, _folder(name))
        return found, any_below

    @property
    def _kinds_only(self) -> bool:
        """Whether files need not be read where nobody asks for details: for listings that count for
        a time they are."""
        return not self._shown.is_used

    def _entries(self, name: str, *, details: bool) -> list[DirEntry]:
        """What is right in the folder, in order; of what is none, itself. Raises NameNotFound."""
        tries = TRIES
        while True:
            listed = list(self._shown.noted(self.store.scandir(name, details=details)))
            # Without its own, which ends with a slash.
            entries = [entry for entry in listed if entry.name.strip("/") != name]
            if entries or not name:
                break
            try:
                if details:
                    return [DirEntry(name, False, self._object(name))]
                return [DirEntry(self._existing(name), False, None)]
            except NameNotFound:
                if listed:
                    break  # a folder of which there is only what marks it
                tries -= 1
                if not tries or not any(self.store.kind(name)):  # else it came since
                    raise
        return sorted(entries, key=lambda entry: (entry.name, not entry.is_folder))

    def _object(self, name: str) -> ObjectInfo:
        """Raises NameNotFound."""
        return self._shown.get(name) or self.store.info(name)

    def _is_shown(self, path: str) -> bool:
        return self._shown.get(self._strip_protocol(path)) is not None

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

    def _kinds(self, names: Iterable[str]) -> dict[str, Kind]:
        """What each is, many looked at once."""
        wanted = list(dict.fromkeys(names))
        kinds = map_at_once(self._kind, wanted, threads=self._threads_of(wanted))
        return dict(zip(wanted, kinds, strict=True))

    def _threads_of(self, names: Sequence[str]) -> int:
        """That look them up: none where there is no server that is waited for."""
        waits = self.store.small_together == 1
        return 2 * self.store.threads if waits and len(names) > 1 else 0

    def _existing(self, name: str) -> str:
        if not self.store.exists(name):
            raise NameNotFound(name)
        return name

    def _listed(self, prefix: str, detail: bool) -> Iterator[tuple[str, Info]]:
        """The names below, with nothing of what they are where nobody asks for it."""
        if detail:
            listed = self._shown.noted(self.store.list(prefix))
            return ((info.name, file_entry(info)) for info in listed)
        return ((name, {}) for name in self.store.names(prefix))


def _entry(entry: DirEntry) -> Info:
    if entry.is_folder:
        return _folder(entry.name)
    return _unread(entry.name) if entry.info is None else file_entry(entry.info)


def _folder(name: str) -> Info:
    return {"name": name, "size": 0, "type": "directory"}


def _unread(name: str) -> Info:
    """Of an object of which nothing more is known."""
    return {"name": name, "size": None, "type": "file"}
