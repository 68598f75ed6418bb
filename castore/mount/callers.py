"""Who makes a request: FUSE says by which thread, and Linux what becomes of its process."""

from __future__ import annotations

import os
from typing import NamedTuple

_EXITING = 0x4  # PF_EXITING of the kernel
_FLAGS, _EXIT_CODE = 6, 49  # in /proc/PID/stat, behind the name


class Caller(NamedTuple):
    """`process` is 0 where it can't be told: in another pid namespace, or without /proc. `thread`
    is Linux's number of the one of its threads that asks. `is_changing`: it becomes another
    program (`execve`), which closes some of its files."""

    process: int
    is_killed: bool
    thread: int = 0
    is_changing: bool = False


UNKNOWN = Caller(0, False)


def caller_of(thread: int) -> Caller:
    """The process of a thread, and whether a signal is what ends it.

    When a process ends, the kernel closes its files, and the request for that looks as one of a
    program that closed them itself. But what it ends with is known by then.

    One that becomes another program is not to be asked for more than its `status`: Linux answers
    the rest when it has done so, after its files are closed, and that is what waits for us.
    """
    if thread <= 0:
        return UNKNOWN
    try:
        with open(f"/proc/{thread}/status", "rb") as file:
            status = _fields(file.read())
        stat = b""
        if b"VmSize" not in status:  # at its end it lets go of its memory before its files
            with open(f"/proc/{thread}/stat", "rb") as file:
                stat = file.read()
    except OSError:
        return UNKNOWN
    if b"Tgid" not in status:
        return UNKNOWN
    # Until the new program is loaded it has nothing that it could run.
    is_changing = status.get(b"VmExe") == status.get(b"VmLib") == b"0"
    return Caller(int(status[b"Tgid"]), _is_killed(stat), thread, is_changing)


def _fields(status: bytes) -> dict[bytes, bytes]:
    """The first word of each, without its unit."""
    lines = (line.partition(b":") for line in status.splitlines())
    return {name: value.split(None, 1)[0] for name, _, value in lines if value.strip()}


def _is_killed(stat: bytes) -> bool:
    fields = stat.rpartition(b")")[2].split()
    if len(fields) <= _EXIT_CODE:
        return False
    ends_by_signal = bool(int(fields[_EXIT_CODE]) & 0x7F)
    return bool(int(fields[_FLAGS]) & _EXITING) and ends_by_signal


def has_open(process: int, path: str) -> bool:
    """Whether a descriptor of the process is of the file at the path, by what Linux calls it. Not
    to be asked of one that is changing, see `caller_of`."""
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
