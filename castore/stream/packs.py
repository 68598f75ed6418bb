"""Where frames are: `local` reads them from mapped files.

What a reader asks of any kind is below; a writer's half belongs to each kind's session.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final, Protocol, TypeAlias

from castore.model import Extent, Location

Held: TypeAlias = Mapping[bytes, Any]  # by pack id: what keeps a pack readable
NOTHING_HELD: Final[Held] = {}


class Packs(Protocol):
    @property
    def task_bytes(self) -> int:
        """How much of an object one thread fetches and decodes at a time."""

    def frames(self, extents: Sequence[Extent], held: Held) -> Sequence[bytes | memoryview]:
        """The extents' frames, in their order. Raises PackMissing, or FormatError if a pack is too
        short; what the frames hold is for the caller to check."""

    def hold(self, pack_ids: Collection[bytes]) -> Held:
        """Keep the packs readable for as long as the answer is kept. Raises PackMissing."""

    def let_go(self, extents: Sequence[Extent], held: Held) -> None:
        """The extents' frames will not be read again soon."""

    def forget(self, *locations: Location) -> None:
        """Fetch the frames anew at their next use: their bytes were not what they should be."""
