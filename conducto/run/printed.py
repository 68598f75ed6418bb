"""What commands print, as far as a runner looks at it."""

from __future__ import annotations

from conducto.nodes import TreeError

TAIL_BYTES = 4096
LINE_BYTES_MAX = 64 << 20
TREE_BEGINS = b'{"conducto":'


class Tail:
    """The end of what is printed."""

    def __init__(self) -> None:
        self._kept = b""

    def feed(self, piece: bytes) -> None:
        self._kept = (self._kept + piece[-TAIL_BYTES:])[-TAIL_BYTES:]

    @property
    def text(self) -> bytes:
        return self._kept


class TreeCatcher:
    """The last line printed that is a tree: that begins with {"conducto":."""

    def __init__(self) -> None:
        self._line = bytearray()
        self._tree: bytes | None = None
        self._too_long = False

    def feed(self, piece: bytes) -> None:
        *whole, last = piece.split(b"\n")
        for part in whole:
            self._add(part)
            self._end_line()
        self._add(last)

    def tree(self) -> bytes:
        """Raises TreeError where there was none."""
        self._end_line()
        if self._tree is not None:
            return self._tree
        if self._too_long:
            raise TreeError(f"it printed a tree of over {LINE_BYTES_MAX} bytes")
        raise TreeError(
            "it printed no tree: a line of JSON that begins with " + TREE_BEGINS.decode()
        )

    def _add(self, part: bytes) -> None:
        self._line += part[: LINE_BYTES_MAX + 1 - len(self._line)]

    def _end_line(self) -> None:
        if self._line.startswith(TREE_BEGINS):
            self._too_long = len(self._line) > LINE_BYTES_MAX
            self._tree = None if self._too_long else bytes(self._line)
        self._line.clear()
