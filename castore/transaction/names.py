"""The verbs on names: changes by which no data moves, and the names that there will be."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from castore.errors import InvalidName
from castore.model import NAME_BYTES_MAX, decode_name, encode_name, encode_prefix
from castore.stream.operations import (
    Copy,
    Delete,
    DeletePrefix,
    SetAttributes,
    check_mode,
    check_time,
    names_after,
    now_ns,
)
from castore.transaction.lifecycle import Lifecycle


class NameVerbs(Lifecycle):
    """See `castore.Transaction`."""

    def copy(self, source: str, target: str, *, if_absent: bool = False) -> None:
        """As `Store.copy`; visible at the end of the block.

        A missing source, or with `if_absent` a target that is there, raises at the end.
        """
        keys = encode_name(source), self._check(target, False)
        self._add(Copy(*keys, now_ns(), if_absent))

    def rename(self, source: str, target: str, *, if_absent: bool = False) -> None:
        """As `Store.rename`; visible at the end of the block.

        A missing source, or with `if_absent` a target that is there, raises at the end.
        """
        keys = encode_name(source), self._check(target, False)
        self._add(Copy(*keys, now_ns(), if_absent, rename=True))

    def set_attributes(
        self, name: str, *, mode: int | None = None, mtime_ns: int | None = None
    ) -> None:
        """As `Store.set_attributes`; visible at the end of the block, where a missing name raises
        NameNotFound."""
        key = self._check(name, False)
        if mode is not None:
            check_mode(mode)
        if mtime_ns is not None:
            check_time(name, mtime_ns)
        self._add(SetAttributes(key, mode, mtime_ns))

    def delete(self, name: str) -> None:
        """As `Store.delete`; a missing name raises NameNotFound at the end of the block."""
        self._add(Delete(self._check(name, False)))

    def delete_prefix(self, prefix: str, *, unbounded: bool = False) -> None:
        """As `Store.delete_prefix`; how many there were is in `deleted` after the end.

        >>> _ = store.puts("logs/a", b""), store.puts("logs/b", b"")
        >>> with store.transaction() as t:
        ...     t.delete_prefix("logs")
        >>> t.deleted
        2
        """
        self._check("prefix", False)
        encoded = encode_prefix(prefix)
        if not unbounded:
            if not encoded:
                raise InvalidName("prefix '': say unbounded=True for every name of the store")
            encoded = encoded.removesuffix(b"/") + b"/"
        if len(encoded) <= NAME_BYTES_MAX:
            self._add(DeletePrefix(encoded))

    def names(self, prefix: str = "") -> Iterator[str]:
        """The names that start with `prefix`, sorted by their UTF-8 bytes, as they would be if the
        block ended now. Raises InvalidName for a prefix that is no text.

        >>> _ = store.puts("logs/a", b""), store.puts("logs/b", b"")
        >>> with store.transaction() as t:
        ...     t.rename("logs/a", "logs/c")
        ...     list(t.names("logs/"))
        ['logs/b', 'logs/c']
        """
        self._check("prefix", False)
        encoded = encode_prefix(prefix)
        pages = self._catalog.names(encoded) if len(encoded) <= NAME_BYTES_MAX else ()
        names = names_after([*self._operations], encoded, chain.from_iterable(pages))
        return (decode_name(name) for name in names)
