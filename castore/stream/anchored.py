"""What the chunks of a stream may be made of, with the anchors of it: each is read, and has its
anchors found, once. Both the alignment and the look-alikes ask for the same bases, and for the
anchors of the same new chunk: with each finding its own, a next release of Django took 1.05 of the
processor's time."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from castore.model import StoredChunk
from castore.stream.anchors import anchors_of

if TYPE_CHECKING:
    from castore._native import Anchors

BASES_MAX = 1024  # whose anchors are kept: 80 MB of chunks, 5 MB of anchors

Read: TypeAlias = Callable[[StoredChunk], bytes | memoryview | None]


class AnchoredBases:
    """Of one stream. Not for several threads at once."""

    def __init__(self, read: Read) -> None:
        """`read` returns the bytes of a base that has its place, or None if they are not to be
        had."""
        self.read = read
        self._of_bases: OrderedDict[StoredChunk, Anchors] = OrderedDict()
        self._last: tuple[bytes, Anchors] | None = None

    def of_base(self, base: StoredChunk) -> Anchors | None:
        """Its anchors; None if its bytes are not to be had."""
        found = self._of_bases.get(base)
        if found is not None:
            self._of_bases.move_to_end(base)
            return found
        raw = self.read(base)
        if raw is None:
            return None
        found = self._of_bases[base] = anchors_of(raw)
        if len(self._of_bases) > BASES_MAX:
            self._of_bases.popitem(last=False)
        return found

    def of_new(self, raw: bytes) -> Anchors:
        """Those of a chunk at hand, which is likely to be asked about once more."""
        if self._last is None or self._last[0] is not raw:
            self._last = raw, anchors_of(raw)
        return self._last[1]
