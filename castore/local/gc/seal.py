"""Ending the packs of writers that did not: they were killed, or never closed the store.

Such a pack is whole up to where a commit made it durable, and says so only to who reads it frame by
frame. The footer is appended as the writer would have done it, behind whatever the writer left of a
frame or of a footer.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import TypeAlias

from castore.errors import FormatError
from castore.format.frame import FRAME_HEAD_BYTES_MAX, decode_frame_header
from castore.format.pack import (
    PACK_HEADER_BYTES,
    PACK_TRAILER_BYTES,
    PackEntry,
    decode_trailer,
    encode_footer,
    entry_of,
)
from castore.local.locks import PackLocks
from castore.local.packs import LocalPacks
from castore.stream.codec import check_frame
from castore.system.fileio import descriptor, storage_error, write_all

Read: TypeAlias = Callable[[int, int], bytes]


def seal_packs(
    packs: LocalPacks, ends: Iterable[tuple[bytes, int]], *, seed: int, dry_run: bool
) -> int:
    """Seal those of the packs that have no footer and that no live writer has; how many. With each
    comes where its frames end that are durable. One that is damaged before is left as it is, and so
    is one that we may only read, another user's. Raises StoreFull, StoreIOError; what is sealed
    then stays so."""
    sealed = 0
    for pack_id, end in ends:
        with PackLocks(packs) as locks:
            if locks.take(pack_id):
                sealed += _seal(packs.path(pack_id), end, seed, dry_run=dry_run)
    return sealed


def _seal(path: str, end: int, seed: int, *, dry_run: bool) -> bool:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise storage_error(error, path) from error
    try:
        size = os.fstat(fd).st_size

        def read(begin: int, end: int) -> bytes:
            return os.pread(fd, min(end, size) - begin, begin)

        if size < end or _is_sealed(read, size):
            return False
        entries = _frames(read, size, end, seed)
        if entries is None:
            return False
        if dry_run:
            return os.access(path, os.W_OK)
        return _append(path, encode_footer(entries, size), size)
    except OSError as error:
        raise storage_error(error, path) from error
    finally:
        os.close(fd)


def _append(path: str, footer: bytes, end: int) -> bool:
    """False where we may not: packs of a store that users share are their writers' to write to."""
    try:
        with descriptor(path, os.O_WRONLY) as fd:
            write_all(fd, [footer], end)
    except PermissionError:
        return False
    return True


def _is_sealed(read: Read, size: int) -> bool:
    try:
        decode_trailer(read(max(0, size - PACK_TRAILER_BYTES), size), size)
    except FormatError:
        return False
    return True


def _frames(read: Read, size: int, end: int, seed: int) -> list[PackEntry] | None:
    """The frames up to `end`, by their headers, and those behind it that are whole; None if no
    frame ends at `end`."""
    entries, at = [], PACK_HEADER_BYTES
    while at < size:
        try:
            entry = entry_of(decode_frame_header(read(at, at + FRAME_HEAD_BYTES_MAX)), at)
            if at >= end:
                frame = read(at, at + entry.stored_bytes)
                check_frame(frame, entry.chunk_id, entry.raw_bytes, seed)
        except FormatError:
            break
        entries.append(entry)
        at += entry.stored_bytes
    ends = {PACK_HEADER_BYTES, *(entry.offset + entry.stored_bytes for entry in entries)}
    return entries if end in ends else None
