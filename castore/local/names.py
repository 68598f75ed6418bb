"""Changes of names, applied inside a commit's transaction."""

from __future__ import annotations

from castore.errors import NameExists, NameNotFound, ObjectChanged
from castore.format.index import Record, decode_record
from castore.local.tables import NameRows
from castore.stream.operations import (
    Copy,
    Delete,
    DeletePrefix,
    Draft,
    Operation,
    Publish,
    SetAttributes,
    same_bytes,
)


class NameChanges:
    """Applies operations to names inside a commit's transaction, and keeps count."""

    def __init__(self, names: NameRows, numbers: dict[Draft, int]) -> None:
        """`numbers` are the manifests of the drafts that the operations publish."""
        self._names = names
        self._numbers = numbers
        self.changed: dict[bytes, bytes | None] = {}  # and the row of each by now
        self.deleted = 0

    def apply(self, operation: Operation) -> None:
        match operation:
            case Publish(name, record, draft, if_absent, over):
                if over is not None:
                    record = record._replace(mode=self._same(name, over).mode)
                if draft is not None:
                    record = record._replace(manifest=self._numbers[draft])
                self._set(name, record, if_absent)
            case Copy():
                self._copy(operation)
            case SetAttributes(name):
                raw = self._names.get(name)
                if raw is None:
                    raise NameNotFound(name.decode())
                self._set(name, operation.of(decode_record(raw)), False)
            case Delete(name):
                if not self._drop(name):
                    raise NameNotFound(name.decode())
                self.deleted += 1
            case DeletePrefix(prefix):
                for name in self._names.below(prefix):
                    self._drop(name)
                    self.deleted += 1

    def _copy(self, copy: Copy) -> None:
        raw = self._names.get(copy.source)
        if raw is None:
            raise NameNotFound(copy.source.decode())
        if copy.if_absent and copy.target in self._names:
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
        if if_absent and name in self._names:
            raise NameExists(name.decode())
        self.changed[name] = self._names.put(name, record)

    def _same(self, name: bytes, record: Record) -> Record:
        """What the name maps to, if that has the record's bytes. Raises ObjectChanged."""
        raw = self._names.get(name)
        if raw is None or not same_bytes(found := decode_record(raw), record):
            raise ObjectChanged(name.decode())
        return found

    def _drop(self, name: bytes) -> bool:
        there = self._names.delete(name)
        if there:
            self.changed[name] = None
        return there
