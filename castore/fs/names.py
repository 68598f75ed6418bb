"""Names: copied, moved and removed. What is done to many is planned first, and is one commit."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping
from typing import Any

from fsspec.core import has_magic
from fsspec.utils import other_paths, stringify_path

from castore.errors import InvalidName, NameNotFound
from castore.fs.opening import StoreFileSystem
from castore.fs.places import (
    Place,
    as_given,
    is_into,
    join,
    last_part,
    one_or_several,
    parents,
    place_of_file,
    places_of_folder,
)
from castore.model import Kind


class NameVerbs(StoreFileSystem):
    """See `castore.fs.CastoreFileSystem`."""

    def copy(
        self,
        path1: Any,
        path2: Any,
        recursive: bool = False,
        maxdepth: int | None = None,
        on_error: str | None = None,
        **kwargs: Any,
    ) -> None:
        """As fsspec's, in one commit: no data moves."""
        places = self._places(path1, self, path2, recursive, maxdepth, after=True)
        kinds = self._kinds_after(place.source for place in places if place.is_file is None)
        ignores = on_error == "ignore" or (on_error is None and recursive)
        gone: set[str] = set()
        while True:
            try:
                self._copy([each for each in places if each.source not in gone], kinds, ignores)
                return
            except NameNotFound as error:  # deleted since it was found
                if not ignores or error.name in gone:
                    raise
                gone.add(error.name)

    def _copy(self, places: Iterable[Place], kinds: Mapping[str, Kind], ignores: bool) -> None:
        objects = []
        for source, target, is_file in places:
            kind = None if is_file else kinds[source]
            if kind is None or kind.is_object:
                objects.append((source, target))
            elif not kind.is_folder and not ignores:  # a folder comes with what is in it
                raise NameNotFound(source)
        with self._together():
            for source, target in objects:
                with self._changes(create=False) as changes:
                    changes.copy(source, self._target(source, target))

    def cp_file(self, path1: str, path2: str, **kwargs: Any) -> None:
        self.copy([path1], [path2])

    def mv(
        self,
        path1: Any,
        path2: Any,
        recursive: bool = False,
        maxdepth: int | None = None,
        **kwargs: Any,
    ) -> None:
        """One commit, of what is there when it begins: what `maxdepth` leaves out stays, and what
        others put meanwhile. A folder goes with `recursive` only, and in a list that goes to a list
        not at all."""
        path1, path2 = as_given(path1, path2)
        one = isinstance(path1, str) and isinstance(path2, str)
        source, target = self._strip_protocol(path1), self._strip_protocol(path2)
        kind = self._kind_after(source) if one else Kind(False, False)
        if one and not (source and any(kind)) and not has_magic(source):
            raise NameNotFound(source)
        if kind.is_folder and not kind.is_object and not recursive:
            raise IsADirectoryError(f"{source} is a folder: mv it with recursive=True")
        if not any(kind) or maxdepth is not None:
            if one and not recursive:
                for name, what in self._expanded(path1, False, None).items():
                    if what == "directory":
                        raise IsADirectoryError(f"{name} is a folder: mv it with recursive=True")
            self._move(self._places(path1, self, path2, recursive, maxdepth, after=True))
            return
        if is_into(self, path2) and (kind.is_object or not path1.endswith("/")):
            target = join(target, last_part(source))
        with self._changes(create=False) as changes:
            for name in [source] if kind.is_object else list(changes.names(source + "/")):
                changes.rename(name, f"{target}{name[len(source) :]}".lstrip("/"))

    def _move(self, places: Iterable[Place]) -> None:
        """Only what was found goes: what others put since then stays where they put it."""
        for source in dict.fromkeys(place.source for place in places if not place.is_file):
            kind = self._kind_after(source)
            if kind.is_folder and not kind.is_object:
                raise IsADirectoryError(f"{source} is a folder: mv it by itself")
            if not kind.is_object:
                raise NameNotFound(source)
        with self._changes(create=False) as changes:
            for source, target, _ in places:
                changes.rename(source, self._target(source, target))

    def _target(self, source: str, target: str) -> str:
        name: str = self._strip_protocol(target)
        # What marks a folder, as some programs have it, goes on to mark one.
        return f"{name}/" if source.endswith("/") else name

    def rm_file(self, path: str) -> None:
        with self._changes(create=False) as changes:
            changes.delete(self._strip_protocol(path))

    _rm = rm_file

    def rm(self, path: Any, recursive: bool = False, maxdepth: int | None = None) -> None:
        """Remove names, all in one commit: if one is not there, none.

        A folder goes with `recursive` only; all of the store, where "/" says so: an empty path is a
        mistake. Of an empty list there is nothing to remove.
        """
        path = one_or_several(path)
        if path == []:
            return
        for each in [path] if isinstance(path, str) else path:
            if stringify_path(each) in ("", f"{self.protocol}://"):
                raise ValueError(f"the path {each!r} is empty: '/' is all of the store")
        whole = recursive and maxdepth is None
        types = self._expanded(path, recursive and not whole, maxdepth, after=True)
        if whole:
            self._remove_whole(types)
            return
        if self._intrans:  # what is no folder may have been put in it
            unknown = self._kinds_after(name for name, kind in types.items() if not kind)
            types |= {name: "directory" for name, kind in unknown.items() if kind == (False, True)}
        folders = [name for name, kind in types.items() if kind == "directory" or not name]
        if folders and not recursive:
            raise _is_folder(folders[0] or "/")
        try:
            with self._changes(create=False) as changes:
                for name, kind in types.items():
                    if name and kind != "directory":
                        changes.delete(name)
        except NameNotFound as error:
            if self.isdir(error.name):
                raise _is_folder(error.name) from None
            raise

    def _remove_whole(self, names: Iterable[str]) -> None:
        if self._has_changes:
            kinds = {name: self._kind_after(name) for name in names}
        else:
            kinds = self._kinds(names)
        absent = [name for name, kind in kinds.items() if not any(kind)]
        if absent:
            raise NameNotFound(absent[0])
        folders = {name for name, kind in kinds.items() if kind.is_folder}
        with self._changes(create=False) as changes:
            for name, kind in kinds.items():
                if not folders.isdisjoint(parents(name)):
                    continue  # it goes with one of them
                if kind.is_object:
                    changes.delete(name)
                if kind.is_folder:
                    changes.delete_prefix(name, unbounded=not name)

    def rmdir(self, path: str) -> None:
        """Raises: a folder that is there is not empty."""
        name = self._strip_protocol(path)
        kind = self._kind(name)
        if kind.is_object:
            raise NotADirectoryError(errno.ENOTDIR, "is a file, not a folder", name)
        if not kind.is_folder:
            raise NameNotFound(name)
        if self._has_below(name):
            raise OSError(errno.ENOTEMPTY, "the folder is not empty: rm it with recursive", name)

    def sign(self, path: str, expiration: int = 100, **kwargs: Any) -> str:
        """Raises NotImplementedError: there is nothing to sign."""
        raise NotImplementedError(
            "an object of castore is chunks in packs, and no server hands it out by a URL; what "
            "fsspec opens is unstrip_protocol(path)"
        )

    def url(self, path: str, **kwargs: Any) -> str:
        """Raises NotImplementedError, as `sign`."""
        return self.sign(path)

    def _kind_after(self, path: str) -> Kind:
        """As `_kind`, after what was changed so far in the transaction, if one has begun."""
        name = self._strip_protocol(path)
        if not self._has_changes or not name:
            kind: Kind = self._kind(name)
            return kind
        try:
            names = self.transaction.changes(create=False).names
            is_folder = next(names(name + "/"), None) is not None
            return Kind(next(names(name), None) == name, is_folder)
        except (FileNotFoundError, InvalidName):  # as for `_kind`
            return Kind(False, False)

    def _exists_after(self, name: str) -> bool:
        """As `exists`, in the same way."""
        return any(self._kind_after(name))

    def _kinds_after(self, names: Iterable[str]) -> dict[str, Kind]:
        """As `_kinds`, in the same way; but what the store has as an object is one, also if it was
        removed: the commit says so."""
        kinds: dict[str, Kind] = self._kinds(names)
        if self._has_changes:
            others = [name for name, kind in kinds.items() if not kind.is_object]
            kinds |= {name: self._kind_after(name) for name in others}
        return kinds

    def _tree_after(self, name: str, maxdepth: int | None) -> dict[str, str]:
        """As `_tree`, in the same way, without the folders in it."""
        kind = self._kind_after(name)
        tree = {name: "file" if kind.is_object else "directory"} if any(kind) else {}
        inside = self._find_after(name, maxdepth) if kind.is_folder else []
        return {**dict.fromkeys(inside, "file"), **tree}

    def _find_after(self, name: str, maxdepth: int | None) -> list[str]:
        """As `find`, in the same way."""
        if not self._has_changes:
            found: list[str] = self.find(name, maxdepth=maxdepth)
            return found
        below = name + "/" if name else ""
        names = self.transaction.changes(create=False).names(below)
        return [
            each for each in names if maxdepth is None or each[len(below) :].count("/") < maxdepth
        ]

    def _places(
        self,
        source: Any,
        target_fs: Any,
        target: Any,
        recursive: bool,
        maxdepth: int | None,
        *,
        after: bool = False,
    ) -> list[Place]:
        """Where everything goes that is copied from here. As fsspec has it, but that a name that is
        there is no pattern. With `after`, one that a transaction has put is there, too."""
        source, target = as_given(source, target)
        if isinstance(source, list) and isinstance(target, list):
            names = self._strip_protocol(source)
            return [Place(*each, None) for each in zip(names, target, strict=True)]
        one = isinstance(source, str)
        if one and isinstance(target, str):
            name = self._strip_protocol(source)
            kind = self._kind_after(name) if after else self._kind(name)
            if kind.is_object:
                return [place_of_file(name, target_fs, target)]
            if kind.is_folder:
                find = self._find_after if after else self.find
                inside = find(name, maxdepth=maxdepth) if recursive else []
                return list(places_of_folder(source, name, inside, target_fs, target))
        types = self._expanded(source, recursive, maxdepth, after=after)
        if one and (not recursive or maxdepth is not None):
            types = {name: kind for name, kind in types.items() if kind != "directory"}
        if isinstance(target, str) and types:
            into = not has_magic(source) and not source.endswith("/") if one else False
            exists = into and is_into(target_fs, target)
            exists = exists or (one and has_magic(source) and len(types) == 1)
            target = other_paths(
                list(types), target_fs._strip_protocol(target), exists=exists, flatten=not one
            )
        return [
            Place(name, to, kind == "file" or None)
            for (name, kind), to in zip(types.items(), target if types else (), strict=True)
            if kind != "directory"
        ]


def _is_folder(name: str) -> IsADirectoryError:
    return IsADirectoryError(f"{name} is a folder: rm it with recursive=True")
