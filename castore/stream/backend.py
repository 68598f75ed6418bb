"""What a kind of store supplies to `Store`: the layers below it, and what is done to all of it.

`castore/local/store.py` and `castore/s3/store.py` have the two that there are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from castore.format.pack import StoreConfig
from castore.local.session import WriteSession
from castore.model import Progress, StoreStats
from castore.stream.catalog import Catalog
from castore.stream.chunker import Chunker
from castore.stream.packs import Packs
from castore.system.workers import Workers

if TYPE_CHECKING:  # loaded by those who need it
    from castore.local.backup import BackupReport
    from castore.local.rebuild_rows import RebuildReport
    from castore.stream.check_report import CheckReport
    from castore.stream.reports import GcOptions, GcReport


class Backend(Protocol):
    """Raises what its layers raise: see the verbs of `Store`."""

    root: str
    config: StoreConfig
    threads: int

    @property
    def writable(self) -> bool: ...

    @property
    def catalog(self) -> Catalog: ...

    @property
    def packs(self) -> Packs: ...

    def session(self, workers: Workers, chunker: Chunker, *, level: int) -> WriteSession: ...

    def stats(self) -> StoreStats: ...

    def gc(self, options: GcOptions, *, progress: Progress | None) -> GcReport: ...

    def check(self, *, fraction: float, progress: Progress | None) -> CheckReport: ...

    def repair(
        self,
        session: Callable[[], WriteSession],
        found: CheckReport | None,
        *,
        progress: Progress | None,
    ) -> CheckReport:
        """`found` is what a check of all data has just found, so that the data need not be read
        again by a kind of store that can do without."""

    def back_up(self, path: str, *, progress: Progress | None) -> BackupReport: ...

    def rebuild_index(self, *, progress: Progress | None) -> RebuildReport: ...

    def close(self) -> None: ...
