"""Both scopes of a user's store as one, for file systems: `pipeline/NAME` and `user/NAME`."""

from __future__ import annotations

import builtins
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from castore.errors import (
    FileStillOpen,
    InvalidName,
    NameExists,
    NameNotFound,
    ObjectChanged,
    unraised,
)
from conducto.errors import ContextError
from conducto.names import called, key_of

if TYPE_CHECKING:
    import castore

PIPELINE, USER = "pipeline", "user"


class Scopes:
    """Where each scope's names begin in the store."""

    def __init__(self, pipeline_id: str | None) -> None:
        self.prefixes: dict[str, str] = {USER: "data/"}
        if pipeline_id is not None:
            self.prefixes = {PIPELINE: f"pipelines/{pipeline_id}/data/", **self.prefixes}

    def key(self, name: str) -> str:
        """Raises InvalidName, ContextError."""
        scope, slash, inner = name.partition("/")
        prefix = self._prefix(name, scope)
        if not slash:
            raise InvalidName(f"{name!r} is a scope: an object's name goes on behind it")
        return key_of(prefix, inner)

    def name(self, key: str) -> str:
        """What the caller calls it. The key is in one of the scopes."""
        for scope, prefix in self.prefixes.items():
            if key.startswith(prefix):
                return f"{scope}/{key[len(prefix) :]}"
        raise InvalidName(f"{key!r} is in no scope")

    def starts(self, prefix: str) -> Iterator[str]:
        """What keys begin with whose names begin with `prefix`, which may end anywhere."""
        scope, slash, inner = prefix.partition("/")
        if slash:
            yield self._prefix(prefix, scope) + inner
            return
        yield from (start for name, start in self.prefixes.items() if name.startswith(scope))

    def _prefix(self, name: str, scope: str) -> str:
        if scope == PIPELINE and scope not in self.prefixes:
            raise ContextError(
                f"{name!r} is a pipeline's: set CONDUCTO_PIPELINE_ID, or give pipeline_id"
            )
        if scope not in self.prefixes:
            raise InvalidName(f"{name!r} is in no scope: names begin with pipeline/ or user/")
        return self.prefixes[scope]


class ScopedStore:
    """A store by the names of its scopes; what each method does is what `castore.Store` does."""

    def __init__(self, store: castore.Store, scopes: Scopes) -> None:
        self.whole = store
        self._scopes = scopes

    @property
    def closed(self) -> bool:
        return self.whole.closed

    @property
    def threads(self) -> int:
        return self.whole.threads

    @property
    def small_together(self) -> int:
        return self.whole.small_together

    def close(self) -> None:
        self.whole.close()

    def info(self, name: str) -> castore.ObjectInfo:
        with self._called(name) as key:
            return self.whole.info(key)._replace(name=name)

    def size(self, name: str) -> int:
        return self.info(name).size

    def exists(self, name: str) -> bool:
        return "/" in name and self.whole.exists(self._scopes.key(name))

    def kind(self, name: str) -> Any:
        """As castore's; a scope is a folder if there is anything in it."""
        if "/" in name:
            return self.whole.kind(self._scopes.key(name))
        [start] = self._scopes.starts(name + "/")
        return self.whole.kind(start.rstrip("/"))._replace(is_object=False)

    def names(self, prefix: str = "") -> Iterator[str]:
        for start in self._scopes.starts(prefix):
            yield from map(self._scopes.name, self.whole.names(start))

    def list(self, prefix: str = "", **options: Any) -> Iterator[castore.ObjectInfo]:
        for start in self._scopes.starts(prefix):
            for info in self.whole.list(start, **options):
                yield info._replace(name=self._scopes.name(info.name))

    def scandir(self, folder: str = "", **options: Any) -> Iterator[Any]:
        folder = folder.strip("/")
        for start in self._scopes.starts(f"{folder}/" if folder else ""):
            entries = self.whole.scandir(start, **options)
            if not folder:
                first = next(entries, None)
                if first is not None:
                    scope = self._scopes.name(start).rstrip("/")
                    yield first._replace(name=scope, is_folder=True, info=None)
                continue
            for entry in entries:
                info = entry.info
                name = self._scopes.name(entry.name)
                yield entry._replace(name=name, info=info and info._replace(name=name))

    def gets(self, name: str, *args: Any, **options: Any) -> bytes:
        with self._called(name) as key:
            return self.whole.gets(key, *args, **options)

    def gets_many(self, name: str, *args: Any, **options: Any) -> Any:
        with self._called(name) as key:
            return self.whole.gets_many(key, *args, **options)

    def gets_ranges(self, wanted: Sequence[tuple[str, Any]]) -> Sequence[bytes | Exception]:
        found: builtins.list[bytes | Exception] = []
        asked: dict[int, tuple[str, Any]] = {}
        for at, (name, byte_range) in enumerate(wanted):
            found.append(b"")
            try:
                with self._called(name) as key:
                    asked[at] = key, byte_range
            except Exception as error:
                found[at] = error
        for at, part in zip(asked, self.whole.gets_ranges([*asked.values()]), strict=True):
            found[at] = part
            if isinstance(part, Exception):
                try:
                    with self._called(wanted[at][0]):
                        raise part
                except NameNotFound as error:
                    found[at] = unraised(error)
                except Exception as error:  # the same, by the name that it was asked by
                    found[at] = error
        return found

    def small_many(self, names: Sequence[str]) -> Sequence[tuple[castore.ObjectInfo, bytes] | None]:
        reads = self.whole.small_many([*map(self._scopes.key, names)])
        return [
            read and (read[0]._replace(name=name), read[1])
            for name, read in zip(names, reads, strict=True)
        ]

    def infos_together(self, names: Sequence[str]) -> dict[str, castore.ObjectInfo]:
        called = {self._scopes.key(name): name for name in names}
        found = self.whole.infos_together([*called])
        return {called[key]: info._replace(name=called[key]) for key, info in found.items()}

    def get(
        self, name: str, file: Any, *, listed: castore.ObjectInfo | None = None, **options: Any
    ) -> castore.ObjectInfo:
        with self._called(name) as key:
            listed = listed and listed._replace(name=key)
            return self.whole.get(key, file, listed=listed, **options)._replace(name=name)

    def open(self, name: str, mode: str = "rb", *, etag: str | None = None) -> Any:
        with self._called(name) as key:
            return _renamed(self.whole.open(key, mode, etag=etag), name)

    def transaction(self) -> ScopedTransaction:
        return ScopedTransaction(self.whole.transaction(), self._scopes)

    @contextmanager
    def _called(self, name: str) -> Iterator[str]:
        if "/" not in name:  # a scope, or nothing that there is
            raise NameNotFound(name)
        key = self._scopes.key(name)
        with called(name, key):
            yield key


class ScopedTransaction:
    """A transaction by the names of the scopes."""

    def __init__(self, transaction: castore.Transaction, scopes: Scopes) -> None:
        self._whole = transaction
        self._scopes = scopes

    def put(self, name: str, *args: Any, **options: Any) -> castore.ObjectInfo:
        key = self._scopes.key(name)
        with called(name, key):
            return self._whole.put(key, *args, **options)._replace(name=name)

    def puts(self, name: str, *args: Any, **options: Any) -> castore.ObjectInfo:
        key = self._scopes.key(name)
        with called(name, key):
            return self._whole.puts(key, *args, **options)._replace(name=name)

    def puts_many(self, objects: Mapping[str, Any], **options: Any) -> list[castore.ObjectInfo]:
        keys = [self._scopes.key(name) for name in objects]
        try:
            infos = self._whole.puts_many(zip(keys, objects.values(), strict=True), **options)
        except NameExists as error:
            raise NameExists(self._scopes.name(error.name)) from None
        return [info._replace(name=name) for name, info in zip(objects, infos, strict=True)]

    def put_files(self, files: Sequence[Any], options: Any) -> builtins.list[Any]:
        keyed = [file._replace(name=self._scopes.key(file.name)) for file in files]
        put: builtins.list[Any] = []
        for file, each in zip(files, self._whole.put_files(keyed, options), strict=True):
            if isinstance(each, NameExists):
                put.append(NameExists(file.name))
            elif isinstance(each, Exception):
                put.append(each)
            else:
                put.append((each[0]._replace(name=file.name), each[1]))
        return put

    def open(self, name: str, *args: Any) -> Any:
        key = self._scopes.key(name)
        with called(name, key):
            return _renamed(self._whole.open(key, *args), name)

    def copy(self, source: str, target: str, **options: Any) -> None:
        self._whole.copy(self._scopes.key(source), self._scopes.key(target), **options)

    def rename(self, source: str, target: str, **options: Any) -> None:
        self._whole.rename(self._scopes.key(source), self._scopes.key(target), **options)

    def set_attributes(self, name: str, **options: Any) -> None:
        self._whole.set_attributes(self._scopes.key(name), **options)

    def delete(self, name: str) -> None:
        self._whole.delete(self._scopes.key(name))

    def delete_prefix(self, prefix: str, *, unbounded: bool = False) -> None:
        if not unbounded:
            prefix = prefix.rstrip("/") + "/"
        for start in self._scopes.starts(prefix):
            self._whole.delete_prefix(start, unbounded=True)

    def names(self, prefix: str = "") -> Iterator[str]:
        for start in self._scopes.starts(prefix):
            yield from map(self._scopes.name, self._whole.names(start))

    def commit(self) -> None:
        try:
            self._whole.commit()
        except (FileStillOpen, NameExists, NameNotFound, ObjectChanged) as error:
            raise type(error)(self._scopes.name(error.name)) from None

    def abort(self) -> None:
        self._whole.abort()

    def __enter__(self) -> ScopedTransaction:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: Any
    ) -> None:
        if error is None:
            self.commit()
        else:
            self.abort()


def _renamed(file: Any, name: str) -> Any:
    """An object's file, by the name that the caller has for it."""
    if file.readable():
        file.info = file.info._replace(name=name)
    else:
        file.name = name
    return file
