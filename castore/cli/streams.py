"""Standard output and standard error that lose nothing.

Python's own drop what a short write leaves over where they are unbuffered, fail where the other
end is slow and the descriptor in non-blocking mode, and end the program at a character that the
locale's encoding does not have."""

from __future__ import annotations

import io
import os
import select
import sys
from contextlib import suppress
from typing import Any, TextIO

ERRORS = {True: "surrogateescape", False: "backslashreplace"}


def take_over_streams() -> None:
    """For a process whose streams are its own."""
    # A path that is not UTF-8 comes out as the bytes that it is; what an encoding does not have,
    # escaped.
    sys.stdout = _taken(sys.stdout, lambda encoding: ERRORS[encoding in ("utf8", "utf-8")])
    sys.stderr = _taken(sys.stderr, lambda _: "backslashreplace")


def discard(stream: TextIO) -> None:
    """Nothing of what is written to it is wanted any more, nor what it still has: Python flushes it
    once more on its way out, and has an exit code of its own (120) if that fails."""
    with suppress(OSError, ValueError):  # one that is no file has nothing to flush either
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class _Patient(io.RawIOBase):
    """A descriptor that is waited for. Its number stays another one's to close."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._fd

    def isatty(self) -> bool:
        return os.isatty(self._fd)

    def write(self, data: Any, /) -> int:
        while True:
            try:
                return os.write(self._fd, data)
            except BlockingIOError:
                select.select([], [self._fd], [])


def _taken(stream: TextIO | None, errors: Any) -> TextIO | None:
    if not isinstance(stream, io.TextIOWrapper):
        return stream  # closed, or somebody else's
    encoding = stream.encoding.lower()
    stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(_Patient(stream.fileno())),
        encoding=encoding,
        errors=errors(encoding),
        line_buffering=stream.line_buffering or stream.isatty(),
        write_through=False,
    )
