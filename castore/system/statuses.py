"""What files are, asked of many by one call.

With one for each, threads that work side by side wait for each other's Python at every file: an
import of 10,000 small ones did so for half of its time."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeAlias

try:
    from castore import _native
except ImportError:
    _native = None  # type: ignore[assignment]


class FileStatus(NamedTuple):
    """What is asked of a file's os.stat_result."""

    st_mode: int
    st_size: int
    st_dev: int
    st_ino: int
    st_mtime_ns: int
    st_ctime_ns: int


Status: TypeAlias = os.stat_result | FileStatus


def lstat_all(paths: Sequence[str]) -> Iterator[Status | OSError]:
    """What os.lstat returns, or raises, for each of these, at most 4,096."""
    if _native is None:
        yield from map(_lstat, paths)
        return
    found = _native.stat_files(tuple(map(os.fsencode, paths)))
    for path, each in zip(paths, found, strict=True):
        yield _lstat(path) if each is None else FileStatus(*each)


def _lstat(path: str) -> Status | OSError:
    try:
        return os.lstat(path)
    except OSError as error:
        return error
