"""Who makes a request: FUSE says by which thread, and Linux what becomes of its process."""

from __future__ import annotations

import os
from typing import NamedTuple

_EXITING = 0x4  # PF_EXITING of the kernel
_FLAGS, _EXIT_CODE = 6, 49  # in /proc/PID/stat, behind the name


class Caller(NamedTuple):
    """`process` is 0 where it can't be told: in another pid namespace, or without /proc. `thread`
    is Linux's number of the one of its threads that asks."""

    process: int
    is_killed: bool
    thread: int = 0


UNKNOWN = Caller(0, False)


def caller_of(thread: int) -> Caller:
    """The process of a thread, and whether a signal is what ends it.

    When a process ends, the kernel closes its files, and the request for that looks as one of a
    program that closed them itself. But what it ends with is known by then.
    """
    if thread <= 0:
        return UNKNOWN
    try:
        with open(f"/proc/{thread}/status", "rb") as file:
            status = file.read()
        with open(f"/proc/{thread}/stat", "rb") as file:
            stat = file.read()
    except OSError:
        return UNKNOWN
    _, found, rest = status.partition(b"\nTgid:")
    fields = stat.rpartition(b")")[2].split()
    if not found or len(fields) <= _EXIT_CODE:
        return UNKNOWN
    ends_by_signal = bool(int(fields[_EXIT_CODE]) & 0x7F)
    is_killed = bool(int(fields[_FLAGS]) & _EXITING) and ends_by_signal
    return Caller(int(rest.split(None, 1)[0]), is_killed, thread)


def has_open(process: int, path: str) -> bool:
    """Whether a descriptor of the process is of the file at the path, by what Linux calls it."""
    folder = f"/proc/{process}/fd"
    try:
        return any(_target(f"{folder}/{number}") == path for number in os.listdir(folder))
    except OSError:
        return False


def _target(link: str) -> str:
    try:
        return os.readlink(link)
    except OSError:  # closed just now
        return ""
