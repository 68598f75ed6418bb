"""The files of a journal: their names, and the blocks in one."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from typing import NamedTuple

from castore.errors import FormatError
from castore.format.journal import (
    BLOCK_HEADER_BYTES,
    FLAG_ZSTD,
    JOURNAL_MAGIC,
    BlockHead,
    Kind,
    block_is_whole,
    decode_block_head,
)
from castore.stream.codec import decode_block_payload
from castore.system.fileio import descriptor, storage_error, sync_folder, typed_errors

FOLDER = "journal"
SCAN_BYTES = 1 << 20
_NAME = re.compile(r"([0-9a-f]{16})\.(log|snapshot)")


class Block(NamedTuple):
    head: BlockHead
    begin: int
    end: int
    raw: bytes

    def payload(self) -> bytes:
        """Raises FormatError."""
        return decode_block_payload(
            self.raw[BLOCK_HEADER_BYTES:],
            self.head.raw_bytes,
            compressed=bool(self.head.flags & FLAG_ZSTD),
        )


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
    """`newest_committed` of the log at `path`, all of it; 0 where there is none."""
    try:
        with descriptor(path) as fd:
            return newest_committed(fd, 0)
    except FileNotFoundError:
        return 0


def newest_committed(fd: int, begin: int) -> int:
    """The number of the last transaction that is known to be committed by what a log has from
    `begin` on: a DONE says so, every transaction of the one before it, and what a log begins with
    of those before it. To the end of the log: one transaction may take more than any window."""
    newest = 0
    for block in _blocks(fd, begin, os.fstat(fd).st_size):
        if block.head.kind in (Kind.DONE, Kind.HEAD):
            newest = max(newest, block.head.seq)
        elif block.head.kind == Kind.CHANGES:
            newest = max(newest, block.head.seq - 1)
    return newest


def blocks(path: str, begin: int = 0, end: int | None = None) -> Iterator[Block]:
    """The whole blocks in a file, or in `[begin, end)` of it. Raises FileNotFoundError."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as error:  # what can't be read is not absent
        raise storage_error(error, path) from error
    try:
        yield from _blocks(fd, begin, os.fstat(fd).st_size if end is None else end)
    finally:
        os.close(fd)


def _blocks(fd: int, at: int, size: int) -> Iterator[Block]:
    while at < size:
        block = _block(fd, at, size)
        if block is not None:
            yield block
        at = block.end if block is not None else _next_magic(fd, at + 1, size)


def _block(fd: int, at: int, size: int) -> Block | None:
    raw = os.pread(fd, BLOCK_HEADER_BYTES, at)
    try:
        head = decode_block_head(raw)
    except FormatError:
        return None
    end = at + BLOCK_HEADER_BYTES + head.payload_bytes
    raw += os.pread(fd, head.payload_bytes, at + BLOCK_HEADER_BYTES)
    return Block(head, at, end, raw) if end <= size and block_is_whole(raw, head) else None


def _next_magic(fd: int, at: int, size: int) -> int:
    while at < size:
        window = os.pread(fd, SCAN_BYTES, at)
        found = window.find(JOURNAL_MAGIC)
        if found >= 0:
            return at + found
        if len(window) < SCAN_BYTES:
            return size
        at += SCAN_BYTES - len(JOURNAL_MAGIC) + 1
    return size


def append_all(fd: int, block: bytes) -> None:
    view = memoryview(block)
    while view:
        view = view[os.write(fd, view) :]
