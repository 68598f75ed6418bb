"""Where the packs of a local store are: `packs/<first two digits>/<id>.pack`, and nowhere else."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator

from castore.system.fileio import storage_error

PACK_NAME = re.compile(r"[0-9a-f]{32}\.pack")


def pack_path(folder: str, pack_id: bytes) -> str:
    """Where readers look for a pack; `folder` is the store's `packs`."""
    name = pack_id.hex()
    return os.path.join(folder, name[:2], f"{name}.pack")


def is_file(path: str) -> bool:
    """Whether there is a file, or a link to one. Raises PermissionDenied, StoreIOError."""
    status = _look_at(path, follow=True)
    return status is not None and stat.S_ISREG(status.st_mode)


def file_bytes(path: str) -> int | None:
    """None if nothing is there. Raises PermissionDenied, StoreIOError."""
    status = _look_at(path, follow=True)
    return None if status is None else status.st_size


def list_packs(folder: str) -> Iterator[tuple[bytes, str]]:
    """(pack id, path) of every pack file that is where readers look for it, in order. Raises
    PermissionDenied, StoreIOError."""
    for pack_id, path in _named_as_packs(folder):
        if path == pack_path(folder, pack_id) and is_file(path):
            yield pack_id, path


def list_strays(folder: str) -> Iterator[tuple[bytes, str]]:
    """(pack id, path) of what is called as a pack is, and is none that a reader could find: in the
    wrong place, or no file. Raises PermissionDenied, StoreIOError."""
    for pack_id, path in _named_as_packs(folder):
        in_place = path == pack_path(folder, pack_id) and is_file(path)
        # Unless it was collected just now.
        if not in_place and _look_at(path, follow=False) is not None:
            yield pack_id, path


def _look_at(path: str, *, follow: bool) -> os.stat_result | None:
    """None if nothing is there. What may not be looked at, as in a folder without its x bit, and
    what the disk does not tell of, is not missing. Raises PermissionDenied, StoreIOError."""
    try:
        return os.stat(path, follow_symlinks=follow)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return None
        raise storage_error(error, path) from error


def _gone(error: OSError) -> None:
    """One that can't be read is not one without packs. Raises PermissionDenied, StoreIOError."""
    if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
        raise storage_error(error, error.filename) from error


def _named_as_packs(folder: str) -> Iterator[tuple[bytes, str]]:
    for inner, folders, names in os.walk(folder, onerror=_gone):
        folders.sort()
        for name in sorted([*names, *folders]):
            if PACK_NAME.fullmatch(name):
                yield bytes.fromhex(name.removesuffix(".pack")), os.path.join(inner, name)
