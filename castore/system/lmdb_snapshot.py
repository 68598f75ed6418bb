"""One state of an index, as its readers have it, whoever reads for them: LMDB, or `lmdb_unlocked`
where no lock is taken."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

from castore.errors import IndexChanged
from castore.system.lmdb_errors import LmdbError, typed

TRIES = 50  # of a reading without a lock
_CHANGED = (
    "the index was changed while it was read by who may not lock it: repeat it (to be counted as a "
    "reader takes write permission on index/lock.mdb)"
)

T = TypeVar("T")
Table: TypeAlias = Any  # lmdb's own class of it is private


class Snapshot:
    """A read transaction, in whose `with` LMDB's errors become ours. It is gone when that ends,
    even if a traceback keeps the names that it had: lmdb gives up the reader's slot only with the
    object, and a fork must find none."""

    __slots__ = ("_last_transaction", "_path", "_txn")

    def __init__(self, txn: Any, path: str, last_transaction: Callable[[], int] | None) -> None:
        """The last is for where it is read without a lock: its number, at the end."""
        self._txn = txn
        self._path = path
        self._last_transaction = last_transaction

    def get(self, key: bytes, *, db: Table) -> Any:
        return self._txn.get(key, None, db)

    def cursor(self, *, db: Table) -> Any:
        return self._txn.cursor(db)

    def key_before(self, key: bytes, *, db: Table) -> bytes | None:
        """The last key that sorts before this one."""
        with self.cursor(db=db) as cursor:
            found = cursor.prev() if cursor.set_range(key) else cursor.last()
            return bytes(cursor.key()) if found else None

    def key_behind(self, key: bytes, *, db: Table) -> bytes | None:
        """The first key that sorts behind this one."""
        with self.cursor(db=db) as cursor:
            return bytes(cursor.key()) if cursor.set_range(key + b"\0") else None

    def id(self) -> int:
        """The number of the transaction whose state it shows."""
        return int(self._txn.id())

    def stat(self, db: Table) -> dict[str, int]:
        counts: dict[str, int] = self._txn.stat(db)
        return counts

    def __enter__(self) -> Snapshot:
        return self

    def __exit__(self, _: object, error: BaseException | None, trace: object) -> None:
        txn, self._txn = self._txn, None
        if self._last_transaction is not None and self._last_transaction() > txn.id() + 1:
            del txn
            raise IndexChanged(_CHANGED) from error
        if isinstance(error, LmdbError):
            del txn
            raise typed(error, self._path) from error


def repeated(read: Callable[[], T]) -> T:
    """Where an index is read without a lock, what was changed meanwhile is read again."""
    for _ in range(TRIES):
        with contextlib.suppress(IndexChanged):
            return read()
    return read()
