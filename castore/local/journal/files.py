"""The files of a journal: their names, and what a part of one tells."""

from __future__ import annotations

import contextlib
import os
import re

from castore.errors import FormatError
from castore.format.journal import BLOCK_HEADER_BYTES, Kind, decode_block_head
from castore.system.fileio import descriptor, sync_folder, typed_errors

FOLDER = "journal"
TAIL_BYTES_MAX = 1 << 20  # looked at, of what others appended
_NAME = re.compile(r"([0-9a-f]{16})\.(log|snapshot)")


def log_path(folder: str, generation: int) -> str:
    return os.path.join(folder, f"{generation:016x}.log")


def snapshot_path(folder: str, generation: int) -> str:
    return os.path.join(folder, f"{generation:016x}.snapshot")


def generations(folder: str) -> list[int]:
    """Those that there is a file of, in order."""
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    return sorted({int(match[1], 16) for match in map(_NAME.fullmatch, names) if match})


def snapshot_bytes(folder: str) -> int:
    """Of the newest one that there is."""
    for generation in reversed(generations(folder)):
        with contextlib.suppress(FileNotFoundError):
            return os.stat(snapshot_path(folder, generation)).st_size
    return 0


def journal_bytes(folder: str) -> int:
    """Raises StoreIOError, PermissionDenied."""
    size = 0
    with typed_errors(folder), contextlib.suppress(FileNotFoundError):
        for entry in os.scandir(folder):
            with contextlib.suppress(FileNotFoundError):
                size += entry.stat().st_size
    return size


def remove_before(folder: str, generation: int) -> None:
    for name in os.listdir(folder):
        stem, _, kind = name.partition(".")
        with contextlib.suppress(FileNotFoundError, ValueError):
            if kind in ("log", "snapshot", "draft") and int(stem, 16) < generation:
                os.unlink(os.path.join(folder, name))
    sync_folder(folder)


def newest_of(path: str) -> int:
    """The number of the last transaction that is known to be committed by the log at `path`."""
    try:
        with descriptor(path) as fd:
            size = os.fstat(fd).st_size
            parts = [(0, TAIL_BYTES_MAX), (max(0, size - TAIL_BYTES_MAX), TAIL_BYTES_MAX)]
            return max(newest_committed(os.pread(fd, size, at)) for at, size in parts)
    except FileNotFoundError:
        return 0


def newest_committed(part: bytes) -> int:
    """The number of the last transaction in a part of a log that is known to be committed: a DONE
    says so, every transaction of the one before it, and what a log begins with of those before it.
    """
    newest, at = 0, 0
    while True:
        with contextlib.suppress(FormatError):
            head = decode_block_head(part[at : at + BLOCK_HEADER_BYTES])
            if head.kind in (Kind.DONE, Kind.HEAD):
                newest = max(newest, head.seq)
            elif head.kind == Kind.CHANGES:
                newest = max(newest, head.seq - 1)
            at += BLOCK_HEADER_BYTES + head.payload_bytes
            continue
        at = part.find(b"CJNL", at + 1)
        if at < 0:
            return newest


def append_all(fd: int, block: bytes) -> None:
    view = memoryview(block)
    while view:
        view = view[os.write(fd, view) :]
