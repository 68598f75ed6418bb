"""Which names of a store the paths below a mount are, and what is there."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import TypeVar

import castore
from castore.errors import NameNotFound
from castore.model import NAME_BYTES_MAX, DirEntry, ObjectInfo, encode_name
from castore.mount.errnos import fail
from castore.system.clock import boot_clock
from castore.system.locks import Lock

Answer = TypeVar("Answer")
RESERVED = ".castore-open-"  # right below a mount, for what is moved out of the way there
REMEMBERED_MAX = 10_000  # answers
TRIES = 3  # at what others change between two questions


class Roots:
    """Where in the store the paths begin: a prefix for the whole mount (the key ""), or one for
    each folder right below it. Prefixes are empty, or end with a slash."""

    def __init__(self, prefixes: Mapping[str, str]) -> None:
        for folder, prefix in prefixes.items():
            if "/" in folder or (not folder and len(prefixes) > 1):
                raise ValueError(f"{folder!r} can't be a folder right below a mount")
            if prefix:
                encode_name(prefix)
                if not prefix.endswith("/"):
                    raise ValueError(f"the prefix {prefix!r} does not end with a slash")
        self._prefixes = dict(prefixes)
        self.are_folders = "" not in self._prefixes
        longest = max(len(prefix.encode()) for prefix in self._prefixes.values())
        self.name_bytes_max = NAME_BYTES_MAX - longest

    def folders(self) -> list[str]:
        return list(self._prefixes) if self.are_folders else []

    def is_root(self, path: str) -> bool:
        """Whether the path (without its first slash) is a folder that is there by itself."""
        return not path or (self.are_folders and path in self._prefixes)

    def name(self, path: str) -> str:
        """The name of a file, or of a folder that is none by itself, at the path. Raises
        InvalidName; IsADirectoryError for the others; FileNotFoundError beside them."""
        if self.is_root(path):
            fail(errno.EISDIR)
        folder, _, rest = path.partition("/") if self.are_folders else ("", "", path)
        if folder not in self._prefixes:
            fail(errno.ENOENT)
        name = self._prefixes[folder] + rest
        encode_name(name)
        return name

    def new_name(self, path: str) -> str:
        """The name of what is to be made at the path. Raises as `name` does; PermissionError for
        what would be right below a mount of several folders, or has a name that is reserved."""
        if path.startswith(RESERVED) or (
            self.are_folders and "/" not in path and not self.is_root(path)
        ):
            fail(errno.EACCES)
        return self.name(path)

    def path(self, name: str) -> str:
        """The path, with its first slash, of what has the name."""
        for folder, prefix in self._prefixes.items():
            if name.startswith(prefix):
                return f"/{folder}/{name[len(prefix) :]}" if folder else f"/{name[len(prefix) :]}"
        raise ValueError(f"{name!r} is below no prefix of the mount")

    def folder_name(self, path: str) -> str:
        """The name of the folder at the path: "" for the whole store."""
        if self.is_root(path):  # what several folders are in has no name: ""
            return self._prefixes.get(path, "").rstrip("/")
        return self.name(path)


class Names:
    """What is at names of a store. `fresh_s`: for how many seconds an answer is good: 0 where to
    ask costs next to nothing."""

    def __init__(self, store: castore.Store, fresh_s: float) -> None:
        self._store = store
        self._fresh_s = fresh_s
        self._lock = Lock()
        self._changes = 0  # what was asked before one of them is not remembered
        self._known: dict[tuple[str, str], tuple[float, object]] = {}

    def look(self, name: str) -> tuple[ObjectInfo | None, bool]:
        """(the object's info, whether it is a folder). A folder comes before an object of the same
        name, as there can be but one at a path: what is below it must be within reach."""
        return self._ask("look", name, self._look)

    def listing(self, folder: str) -> list[DirEntry]:
        """What is right in a folder, but for what no path leads to: empty and undecodable parts."""
        return self._ask("list", folder, self._list)

    def forget(self) -> None:
        """Something was changed through this mount."""
        if self._fresh_s:
            with self._lock:
                self._changes += 1
                self._known.clear()

    def _look(self, name: str) -> tuple[ObjectInfo | None, bool]:
        for _ in range(TRIES):
            is_object, is_folder = self._store.kind(name)
            if is_folder or not is_object:
                return None, is_folder
            with suppress(NameNotFound):  # deleted just now, or moved into a folder of its name
                return self._store.info(name), False
        return None, False

    def _list(self, folder: str) -> list[DirEntry]:
        # By the way the objects' infos are known: what lists a folder then looks at each.
        return list(_shown(self._store.scandir(folder, details=bool(self._fresh_s)), folder))

    def _ask(self, verb: str, name: str, ask: Callable[[str], Answer]) -> Answer:
        if not self._fresh_s:
            return ask(name)
        now = boot_clock()
        with self._lock:
            until, answer = self._known.get((verb, name), (0.0, None))
            changes = self._changes
        if now < until:
            return answer  # type: ignore[return-value]  # of the same verb
        answer = ask(name)
        with self._lock:
            if changes != self._changes:
                return answer
            if len(self._known) >= REMEMBERED_MAX:
                self._known.clear()
            self._known[verb, name] = now + self._fresh_s, answer
            if verb == "list":
                for entry in answer:  # type: ignore[attr-defined]
                    if not entry.is_folder:
                        self._known["look", entry.name] = now + self._fresh_s, (entry.info, False)
            return answer


def _shown(entries: Iterator[DirEntry], folder: str) -> Iterator[DirEntry]:
    seen: set[str] = set()
    objects: list[DirEntry] = []
    for entry in entries:
        last = base(entry.name)
        try:
            last.encode()
        except UnicodeEncodeError:
            continue
        if not last or entry.name.strip("/") == folder.strip("/") or entry.name.endswith("/"):
            continue
        if entry.is_folder:
            seen.add(last)
            yield entry
        else:
            objects.append(entry)
    yield from (entry for entry in objects if base(entry.name) not in seen)


def base(name: str) -> str:
    return name.rsplit("/", 1)[-1]


def parent(name: str) -> str:
    return name.rpartition("/")[0]
