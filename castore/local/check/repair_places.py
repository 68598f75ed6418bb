"""Packs that are where no reader looks for them, moved to their places; what is no pack, away."""

from __future__ import annotations

import contextlib
import os

from castore.errors import FormatError, UnsupportedFormat
from castore.format.pack import PACK_HEADER_BYTES, decode_pack_header
from castore.local.pack_files import is_file, list_strays, pack_path
from castore.system.fileio import adopt_folder, sync_folder


def mend_places(root: str) -> list[str]:
    """What was done, in words. Nobody has these files open: there is nothing that leads to them."""
    packs = os.path.join(root, "packs")
    strays = list(list_strays(packs))
    strays.sort(key=lambda stray: is_file(stray[1]))  # folders are in the way of files
    done = []
    for pack_id, path in strays:
        target = pack_path(packs, pack_id)
        if _is_pack(path, pack_id) and not os.path.lexists(target):
            done.append(f"{path} is moved to where readers look for it: {target}")
        else:
            target = _free(os.path.join(root, "quarantine", os.path.basename(path)))
            done.append(f"{path} is no pack, or not in its place: it is now {target}")
        _move(root, path, target)
    return done


def make_folder(folder: str, root: str) -> None:
    """Make a folder of the store in `root`, durably, for all who share the store."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(folder, 0o700)
        adopt_folder(folder, root)
    sync_folder(os.path.dirname(folder))


def _is_pack(path: str, pack_id: bytes) -> bool:
    if not is_file(path):
        return False
    with open(path, "rb") as file:
        try:
            return decode_pack_header(file.read(PACK_HEADER_BYTES))[1] == pack_id
        except (FormatError, UnsupportedFormat):
            return False


def _free(path: str) -> str:
    number = 0
    while os.path.lexists(found := f"{path}.{number}" if number else path):
        number += 1
    return found


def _move(root: str, path: str, target: str) -> None:
    make_folder(os.path.dirname(target), root)
    os.rename(path, target)
    sync_folder(os.path.dirname(target))
    sync_folder(os.path.dirname(path))
