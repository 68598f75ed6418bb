"""Changes of names, applied inside a commit's transaction."""

from __future__ import annotations

import contextlib
from itertools import takewhile

from castore.errors import FormatError, NameExists, NameNotFound
from castore.format.index import Record, Totals, decode_record, encode_record
from castore.stream.operations import Copy, Delete, DeletePrefix, Draft, Operation, Publish
from castore.system.lmdb_env import Index, Txn


class NameChanges:
    """Applies operations to names inside a commit's transaction, and keeps count."""

    def __init__(self, index: Index, txn: Txn, totals: Totals, numbers: dict[Draft, int]) -> None:
        self._index = index
        self._numbers = numbers
        self._txn = txn
        self.totals = totals
        self.changed: list[bytes] = []
        self.deleted = 0

    def apply(self, operation: Operation) -> None:
        match operation:
            case Publish(name, record, draft, if_absent):
                if draft is not None:
                    record = record._replace(manifest=self._numbers[draft])
                self._set(name, record, if_absent)
            case Copy():
                self._copy(operation)
            case Delete(name):
                if not self._drop(name):
                    raise NameNotFound(name.decode())
                self.deleted += 1
            case DeletePrefix(prefix):
                for name in self._below(prefix):
                    self._drop(name)
                    self.deleted += 1

    def _copy(self, copy: Copy) -> None:
        raw = self._txn.get(copy.source, db=self._index.names)
        if raw is None:
            raise NameNotFound(copy.source.decode())
        if copy.if_absent and self._txn.get(copy.target, db=self._index.names) is not None:
            raise NameExists(copy.target.decode())
        if copy.source == copy.target:
            return
        record = decode_record(raw)
        if copy.rename:
            self._drop(copy.source)
        else:
            record = record._replace(mtime_ns=copy.mtime_ns)
        self._set(copy.target, record, False)

    def _set(self, name: bytes, record: Record, if_absent: bool) -> None:
        if if_absent and self._txn.get(name, db=self._index.names) is not None:
            raise NameExists(name.decode())
        self._drop(name)
        self._txn.put(name, encode_record(record), db=self._index.names)
        self._count(record, +1)
        self.changed.append(name)

    def _drop(self, name: bytes) -> bool:
        raw = self._txn.pop(name, db=self._index.names)
        if raw is None:
            return False
        # A damaged record must not keep its name from being replaced or deleted; the totals, which
        # are only statistics, then keep what it counted for.
        with contextlib.suppress(FormatError):
            self._count(decode_record(raw), -1)
        self.changed.append(name)
        return True

    def _count(self, record: Record, sign: int) -> None:
        self.totals.logical_bytes += sign * record.size
        if record.is_inline:
            self.totals.inline_raw_bytes += sign * record.size
            self.totals.inline_stored_bytes += sign * record.stored_bytes

    def _below(self, prefix: bytes) -> list[bytes]:
        with self._txn.cursor(db=self._index.names) as cursor:
            if not (cursor.set_range(prefix) if prefix else cursor.first()):
                return []
            return [
                bytes(name)
                for name in takewhile(
                    lambda name: name.startswith(prefix), cursor.iternext(values=False)
                )
            ]
