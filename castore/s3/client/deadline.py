"""A bound on what one request takes, whatever the server does.

A socket's timeout is for each piece that it waits for: a server that sends a byte a minute would be
listened to for ever. So a request has the two timeouts together, and then as long as at least
BYTES_PER_SECOND_MIN go through. When that is over, its connection is shut down from outside, which
ends the read or write that its thread is in.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from typing import Any

from castore.system.clock import boot_clock

BYTES_PER_SECOND_MIN = 16 << 10
# From when a write is asked for to when it is signed, if it was decided by what may not hold for
# ever, as pins do not: the machine may sleep in between.
SIGNED_WITHIN_S = 600.0

_current = threading.local()


class Deadline:
    """Of one request: entered by the thread that sends it, watched by the one that waits for it."""

    def __init__(self, timeout_s: float, *, decided: bool) -> None:
        """`decided`: it is a write by what was seen before."""
        self.expired = False
        self._decided = decided
        self._timeout_s = timeout_s
        self._asked = boot_clock()
        self._began: float | None = None  # not while it waits for its turn
        self._moved = 0
        self._connection: Any = None
        self._socket: socket.socket | None = None

    def __enter__(self) -> Deadline:
        self._began = time.monotonic()
        _current.deadline = self
        return self

    def __exit__(self, *_: object) -> None:
        _current.deadline = None

    def is_late(self) -> bool:
        """Whether it was asked for too long ago for what is signed by now."""
        return self._decided and boot_clock() - self._asked > SIGNED_WITHIN_S

    def left_s(self) -> float:
        """At least so long it still has."""
        if self._began is None:
            return self._timeout_s
        allowed = self._timeout_s + self._moved / BYTES_PER_SECOND_MIN
        return max(0.0, self._began + allowed - time.monotonic())

    def expire(self) -> bool:
        """Shut its connection down; False if there is none yet."""
        self.expired = True
        connection = self._connection
        found = getattr(connection, "sock", None) or self._socket
        if not isinstance(found, socket.socket):
            return False
        with contextlib.suppress(OSError):  # it is closed by now
            # Not TLS's own way, which writes to what another thread is reading from.
            socket.socket.shutdown(found, socket.SHUT_RDWR)
        return True

    def use(self, connection: Any) -> None:
        """What the request is sent on. A connection lets go of its socket once it knows that the
        reply is its last; the reply goes on reading from it."""
        self._connection = connection
        self._socket = getattr(connection, "sock", None) or self._socket

    def moved(self, size: int) -> None:
        self._moved += size


def deadline_here() -> Deadline | None:
    """Of the request that this thread is sending."""
    found: Deadline | None = getattr(_current, "deadline", None)
    return found


def note_moved(size: int) -> None:
    """So many bytes went through, either way."""
    deadline = deadline_here()
    if deadline is not None:
        deadline.moved(size)
