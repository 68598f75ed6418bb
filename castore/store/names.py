"""The verbs on names: what there is, and changes by which no data moves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain
from typing import TypeVar

from castore.errors import NameNotFound
from castore.model import (
    NAME_BYTES_MAX,
    DirEntry,
    Kind,
    ObjectInfo,
    as_prefix,
    decode_name,
    encode_name,
    encode_prefix,
)
from castore.store.objects import ObjectVerbs
from castore.stream.backend import Entry
from castore.transaction import object_info

T = TypeVar("T")


class NameVerbs(ObjectVerbs):
    """See `castore.Store`."""

    def info(self, name: str) -> ObjectInfo:
        """What the name maps to. Raises NameNotFound.

        >>> _ = store.puts("numbers", bytes(range(256)) * 4096)
        >>> info = store.info("numbers")
        >>> info.size, info.chunks > 0
        (1048576, True)
        """
        self._check_open()
        record = self._catalog.record(encode_name(name))
        if record is None:
            raise NameNotFound(name)
        return object_info(name, record)

    def size(self, name: str) -> int:
        """Bytes of the object. Raises NameNotFound.

        >>> _ = store.puts("greeting", b"hello, world")
        >>> store.size("greeting")
        12
        """
        return self.info(name).size

    def exists(self, name: str) -> bool:
        """Whether an object has exactly this name.

        >>> _ = store.puts("logs/monday", b"")
        >>> store.exists("logs/monday"), store.exists("logs")
        (True, False)
        """
        self._check_open()
        return self._catalog.record(encode_name(name)) is not None

    def names(self, prefix: str = "") -> Iterator[str]:
        """The names that start with `prefix`, sorted by their UTF-8 bytes.

        Read in pages: names that come and go meanwhile may be missed or seen. Raises InvalidName
        for a prefix that is no text.

        >>> for name in ["logs/tuesday", "logs/monday", "logs.txt"]:
        ...     _ = store.puts(name, b"")
        >>> list(store.names("logs/"))
        ['logs/monday', 'logs/tuesday']
        """
        return map(decode_name, self._each(self._catalog.names, prefix))

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """The objects whose names start with `prefix`, in the order of `names`, each as `info` has
        it.

        >>> _ = store.puts("a", b"1"), store.puts("b", b"22")
        >>> [(info.name, info.size) for info in store.list()]
        [('a', 1), ('b', 2)]
        """
        found = self._each(self._catalog.pages, prefix)
        return (object_info(decode_name(name), record) for name, record in found)

    def scandir(self, folder: str = "", *, details: bool = True) -> Iterator[DirEntry]:
        """What is right in a folder, by name: objects, and the folders that names below it imply.

        "" is the whole store's. What is in the folders below is not looked at. Without `details`
        the objects' `info` is None, and on S3 nothing is asked but the list itself. Raises
        InvalidName.

        >>> _ = store.puts("a/b", b"1"), store.puts("c", b"22")
        >>> [(entry.name, entry.is_folder) for entry in store.scandir()]
        [('a', True), ('c', False)]
        >>> next(store.scandir("a")).info.size
        1
        """
        read = partial(self._catalog.level, with_records=details)
        return map(_dir_entry, self._each(read, as_prefix(folder)))

    def _each(self, read: Callable[[bytes], Iterable[Iterable[T]]], prefix: str) -> Iterator[T]:
        """What is on all the pages; none are read where no name can begin so."""
        self._check_open()
        encoded = encode_prefix(prefix)
        return chain.from_iterable(read(encoded) if len(encoded) <= NAME_BYTES_MAX else ())

    def kind(self, name: str) -> Kind:
        """Whether it is an object, and whether it is a folder: the start of others' names, behind
        which they go on with '/'. It may be both. On S3 that is one request. Raises InvalidName.

        >>> _ = store.puts("a/b", b"1")
        >>> store.kind("a")
        Kind(is_object=False, is_folder=True)
        """
        self._check_open()
        return Kind(*self._catalog.kind(encode_name(name)))

    def copy(self, source: str, target: str, *, if_absent: bool = False) -> None:
        """Give the object a second name: no data moves.

        What `target` was is replaced, but for `if_absent`. Raises NameNotFound, NameExists,
        ReadOnlyStore.

        >>> _ = store.puts("tables/a", b"1")
        >>> store.copy("tables/a", "tables/b")
        >>> store.gets("tables/b")
        b'1'
        """
        with self.transaction() as transaction:
            transaction.copy(source, target, if_absent=if_absent)

    def rename(self, source: str, target: str, *, if_absent: bool = False) -> None:
        """Move the object to another name: no data moves.

        In a local store it is one step; on S3 the new name is put, then the old one deleted, if it
        still is what was copied. Raises NameNotFound, NameExists (with `if_absent`), ReadOnlyStore.

        >>> _ = store.puts("draft", b"1")
        >>> store.rename("draft", "final")
        >>> list(store.names())
        ['final']
        """
        with self.transaction() as transaction:
            transaction.rename(source, target, if_absent=if_absent)

    def set_attributes(
        self, name: str, *, mode: int | None = None, mtime_ns: int | None = None
    ) -> None:
        """Give the object other permission bits, or another time: no data moves.

        `mtime_ns` is in nanoseconds since the epoch; None leaves either as it is. Raises
        NameNotFound, ReadOnlyStore, TimeOutOfRange, ValueError for a mode that is more than
        permission bits.

        >>> _ = store.puts("script", b"#!/bin/sh")
        >>> store.set_attributes("script", mode=0o755)
        >>> oct(store.info("script").mode)
        '0o755'
        """
        with self.transaction() as transaction:
            transaction.set_attributes(name, mode=mode, mtime_ns=mtime_ns)

    def delete(self, name: str) -> None:
        """Remove the name. Its bytes stay until they are collected (`gc`).

        Raises NameNotFound, ReadOnlyStore.

        >>> _ = store.puts("a", b"1")
        >>> store.delete("a")
        >>> store.exists("a")
        False
        """
        with self.transaction() as transaction:
            transaction.delete(name)

    def delete_prefix(self, prefix: str, *, unbounded: bool = False) -> int:
        """Remove every name below a folder; how many there were.

        "project" and "project/" are both the folder: neither "project2/a" is below it, nor an
        object "project". With `unbounded`, every name that starts with `prefix`, whatever follows;
        "" is what all names start with, and raises InvalidName without it. In a local store it is
        one step; on S3 names go by the thousand, and to repeat it is to go on. Raises
        ReadOnlyStore.

        >>> for name in ["project/a", "project/b", "project2/a"]:
        ...     _ = store.puts(name, b"")
        >>> store.delete_prefix("project")
        2
        """
        with self.transaction() as transaction:
            transaction.delete_prefix(prefix, unbounded=unbounded)
        return transaction.deleted

    def remove_old_versions(self, name: str, *, below: bool = False) -> int:
        """In a bucket that keeps versions, remove those of what the name mapped to before; how
        many.

        With `below`, those of all names that begin with `name`. A deleted or overwritten name can't
        be brought back then. A best effort: what can't be removed, for want of rights or because
        the server fails, stays. Anywhere else there is nothing to remove. Raises InvalidName,
        ReadOnlyStore.
        """
        backend = self._check_writable()
        key = encode_prefix(name) if below else encode_name(name)
        return backend.remove_old_versions(key, below=below)


def _dir_entry(entry: Entry) -> DirEntry:
    name, record, is_folder = decode_name(entry.name), entry.record, entry.is_folder
    info = None if record is None else object_info(name, record)
    return DirEntry(name.removesuffix("/") if is_folder else name, is_folder, info)
