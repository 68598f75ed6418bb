"""What a transfer asks of a store, what becomes of each entry, and the work on many at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal, NamedTuple, Protocol, TypeVar

from castore.model import ObjectInfo, Progress
from castore.system.locks import Lock
from castore.system.workers import Workers
from castore.transaction import Transaction

THREADS_MAX = 4  # each may hold the buffers of a put

T = TypeVar("T")
R = TypeVar("R")
Fault = Literal["", "on purpose", "name", "damaged", "missing", "other"]


class SmallObjects(Protocol):
    """What is asked of a Store for small objects."""

    @property
    def small_together(self) -> int: ...

    def small_many(self, names: Sequence[str]) -> Sequence[tuple[ObjectInfo, bytes] | None]: ...


class Objects(SmallObjects, Protocol):
    """What is asked of a Store."""

    path: str

    def names(self, prefix: str = "") -> Iterator[str]: ...

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]: ...

    def info(self, name: str) -> ObjectInfo: ...

    def get_into(
        self,
        name: str,
        fd: int,
        *,
        progress: Progress | None = None,
        listed: ObjectInfo | None = None,
    ) -> ObjectInfo: ...

    def has_content(self, info: ObjectInfo, file: int | bytes) -> bool: ...

    def transaction(self) -> Transaction: ...


class Outcome(NamedTuple):
    """What became of a file or of an object: `what` is its path or its name. `info` is that of the
    object that was written or put, or is the same already; without one it was left out, for the
    reason given."""

    what: str
    info: ObjectInfo | None = None
    same: bool = False
    reason: str = ""
    fault: Fault = ""


class TransferReport:
    """Files that were written (or put), and those that were the same already; sizes in bytes.
    `left_out` says for each that was not: its name or path, and why. `failures` is how many of
    these are missing from the result (all but what nobody wants in it: the store itself, the
    remains of an interrupted get). Of these, `damaged` and `missing` are objects whose data is
    damaged or gone; `refused` are files whose name no object can have."""

    def __init__(self) -> None:
        self.files = 0
        self.bytes = 0
        self.same_files = 0
        self.same_bytes = 0
        self.failures = 0
        self.damaged = 0
        self.missing = 0
        self.refused = 0
        self.left_out: list[tuple[str, str]] = []

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"TransferReport({fields})"

    def add(self, outcome: Outcome) -> None:
        info, fault = outcome.info, outcome.fault
        if info is None:
            self.left_out.append((outcome.what, outcome.reason))
            self.failures += fault != "on purpose"
            self.damaged += fault == "damaged"
            self.missing += fault == "missing"
            self.refused += fault == "name"
        elif outcome.same:
            self.same_files += 1
            self.same_bytes += info.size
        else:
            self.files += 1
            self.bytes += info.size


def report_of(outcomes: Iterable[Outcome]) -> TransferReport:
    report = TransferReport()
    for outcome in outcomes:
        report.add(outcome)
    return report


class _Stopped(Exception):
    """Another entry failed, or the user interrupted: the rest is given up."""


class Shared:
    """The progress of many entries at once, and the way to stop all of them. An entry counts its
    size in the end, whatever of it was moved."""

    def __init__(self, progress: Progress | None) -> None:
        self.stop = threading.Event()
        self._progress = progress
        self._lock = Lock()

    def again(self) -> Shared:
        """What is done once more, and was counted before. It stops with the rest."""
        uncounted = Shared(None)
        uncounted.stop = self.stop
        return uncounted

    def fix_size(self, size: int) -> None:
        if self._progress is not None:
            self._progress.set_size(size)

    def check(self) -> None:
        """Raises if all is to stop."""
        if self.stop.is_set():
            raise _Stopped

    def entry(self, size: int) -> _Entry:
        return _Entry(self, size)

    def advance(self, done: int) -> None:
        if self._progress is not None and done > 0:
            with self._lock:
                self._progress.relative_update(done)


class _Entry:
    def __init__(self, shared: Shared, size: int) -> None:
        self._shared = shared
        self._left = size

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._shared.advance(self._left)

    def set_size(self, size: int) -> None:
        pass

    def relative_update(self, inc: int = 1) -> None:
        self._shared.check()
        self._left -= inc
        self._shared.advance(inc)


def ahead(
    work: Callable[[T], R], items: Iterable[T], threads: int, stop: threading.Event
) -> Iterator[R]:
    """`work` on each, some at once; in order. The first error ends it."""
    workers = Workers(threads)  # not the store's, on which what `work` waits for is done
    try:
        yield from workers.map_ahead(work, items)
    except BaseException:
        stop.set()
        raise
    finally:
        workers.close()
