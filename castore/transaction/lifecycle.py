"""What a transaction has gathered, and its end: a commit of all of it, or nothing."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Self

from castore.errors import FileStillOpen, FormatError, NameExists, StoreClosed
from castore.format.index import Record
from castore.model import encode_name
from castore.objectfile import ObjectWriterFile
from castore.stream.backend import Catalog
from castore.stream.operations import Operation
from castore.stream.reader import Reader
from castore.stream.session import WriteSession
from castore.system.forks import ForkLock, Rank
from castore.system.locks import Lock


class Lifecycle:
    """What the verbs of a transaction have in common: see `castore.Transaction`."""

    def __init__(self, session: WriteSession, catalog: Catalog, reader: Reader) -> None:
        self.deleted = 0  # names deleted, once it is committed
        self._session = session
        self._catalog = catalog
        self._expected: dict[bytes, Record | None] = {}
        self._reader = reader
        self._operations: list[Operation] = []
        self._open = True
        self._adding = ForkLock(Rank.LEAF)  # held for a moment: an operation is in, or too late
        self._storing = Lock()  # a session is for one thread at a time
        self._files: weakref.WeakSet[ObjectWriterFile] = weakref.WeakSet()
        self._unfinished: list[str] = []  # names of files that were neither closed nor aborted

    def commit(self) -> None:
        """Publish all of it.

        Raises FileStillOpen, NameExists, NameNotFound, ObjectChanged, StoreFull, and nothing is
        published; on S3 what was put before the failure may be there. Raises CommitUnknown where it
        can't be told.
        """
        with self._ending():
            if self._unfinished:
                raise FileStillOpen(self._unfinished[0])
            if self._operations:
                with self._exclusively():  # what is being stored is too late, and has to end
                    self.deleted = self._session.commit(self._operations)

    def abort(self) -> None:
        """Publish nothing of it. Idempotent, and of no use after a commit."""
        if self._open:
            with self._ending():
                pass

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.commit()
        else:
            self.abort()

    @contextlib.contextmanager
    def _ending(self) -> Iterator[None]:
        with self._adding:
            self._check_open()
            self._open = False
        try:
            yield
        finally:
            for file in list(self._files):
                file.abort()
            self._session.close()

    @contextlib.contextmanager
    def _exclusively(self) -> Iterator[None]:
        # In a forked child the lock may be held by a thread that does not exist there.
        self._session.check_process()
        with self._storing:
            yield

    def _add(self, *operations: Operation) -> None:
        """Unless it has ended since the method began: nobody would commit it."""
        with self._adding:
            self._check_open()
            self._operations += operations

    def _check_open(self) -> None:
        if not self._open:
            raise StoreClosed("the transaction has ended: begin another")

    def _check(self, name: str, if_absent: bool) -> bytes:
        """The name's key. Raises StoreClosed, InvalidName; if it is not to be taken, NameExists."""
        self._check_open()
        key = encode_name(name)
        # The commit decides; this only spares storing what can't be published.
        if if_absent and self._record(key) is not None:
            raise NameExists(name)
        return key

    def _expect(self, names: Iterable[str]) -> None:
        """What these names map to is asked for at once, and not once more for each."""
        keys = [encode_name(name) for name in names]
        self._expected |= {**dict.fromkeys(keys), **self._catalog.records(keys)}

    def _record(self, key: bytes) -> Record | None:
        """What the name maps to. None also for a record that is damaged: it is to be replaced."""
        if key in self._expected:
            return self._expected[key]
        try:
            return self._catalog.record(key)
        except FormatError:
            return None
