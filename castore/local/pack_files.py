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
    """Whether there is a file, or a link to one. What the disk does not tell of may well be there.
    Raises PermissionDenied, StoreIOError."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except OSError as error:
        if error.errno != errno.ELOOP:
            _gone(error)
        return False


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
        if not in_place and os.path.lexists(path):  # and was not collected just now
            yield pack_id, path


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
