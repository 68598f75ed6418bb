"""What listings showed, for whom it need not be asked for again: fsspec's `use_listings_cache`.

Only what lists showed of objects is kept, and never that something is not there. What the file
system changes itself is asked for again at once; what others change, when the time is over.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from castore.model import DirEntry, ObjectInfo
from castore.system.clock import boot_clock
from castore.system.forks import ForkLock, Rank

NAMES_MAX = 100_000  # some 40 MB

T = TypeVar("T", ObjectInfo, DirEntry)


class ShownNames:
    """Of one file system; thread-safe."""

    def __init__(
        self,
        *,
        use_listings_cache: bool = False,
        listings_expiry_time: float | None = None,
        max_paths: int | None = None,
    ) -> None:
        """`listings_expiry_time` is in seconds, None is until `forget`; `max_paths` names are kept
        at most."""
        self.is_used = use_listings_cache
        self._expiry_s = listings_expiry_time
        self._names_max = NAMES_MAX if max_paths is None else max_paths
        self._lock = ForkLock(Rank.LEAF)
        self._changes = 0  # what was listed before one of them counts no more
        self._infos: dict[str, tuple[int, float, ObjectInfo]] = {}

    def noted(self, listed: Iterable[T]) -> Iterator[T]:
        """The same, kept as it passes."""
        if not self.is_used:
            yield from listed
            return
        changes, at = self._changes, boot_clock()
        for each in listed:
            info = each.info if isinstance(each, DirEntry) else each
            if info is not None:
                with self._lock:
                    self._infos.pop(info.name, None)
                    self._infos[info.name] = changes, at, info
                    if len(self._infos) > self._names_max:
                        del self._infos[next(iter(self._infos))]
            yield each

    def get(self, name: str) -> ObjectInfo | None:
        """What was shown of it, if that still counts."""
        changes, at, info = self._infos.get(name, (-1, 0.0, None))
        if changes != self._changes:
            return None
        if self._expiry_s is not None and boot_clock() - at >= self._expiry_s:
            return None
        return info

    def forget(self) -> None:
        """Ask for everything again."""
        with self._lock:
            self._changes += 1
            self._infos = {}
