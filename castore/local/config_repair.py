"""castore.json of a local store where it is lost, or has other bytes than castore writes: found in
what has a copy of it, and put in its place.
"""

from __future__ import annotations

import contextlib
import os

from castore.check.config import config_anew
from castore.errors import ConfigLost, FormatError
from castore.format.config import StoreConfig
from castore.local import meta
from castore.local.folder import CONFIG, alone, find_config, read_config, write_new
from castore.local.index_place import meta_row, status_at
from castore.local.journal.scan import read_journal
from castore.stream.config import parse_config
from castore.system.fileio import follow, sync_folder, typed_errors


def known_config(root: str) -> tuple[bytes, StoreConfig] | None:
    """castore.json, and what it says; where it is lost or damaged, from what has a copy of it.
    Raises UnsupportedFormat for what a later castore wrote: it is not put back to what it was."""
    with contextlib.suppress(FormatError):
        config = read_config(root)
        if config is not None:
            return _raw_config(root), config
    for text in read_journal(root).configs:
        with contextlib.suppress(FormatError):
            raw = text.encode()
            return raw, parse_config(raw, root)
    return _config_of_index(root)


def repair_config(root: str) -> str:
    """Make castore.json again if it is lost or damaged; what was done, "" for nothing. Raises
    ConfigLost where neither the journal nor the index says what it was; StoreLocked while anybody
    has the store open; UnsupportedFormat, StoreFull, StoreIOError."""
    with typed_errors(root):
        try:
            find_config(root)
            return ""
        except ConfigLost as lost:
            with alone(root):
                found = known_config(root)
                if found is None:
                    raise lost
                put_config(root, found[0])
    return "castore.json was lost, and is made again from what the journal or the index says"


def _config_of_index(root: str) -> tuple[bytes, StoreConfig] | None:
    raw = meta_row(os.path.join(root, "index"), meta.CONFIG)
    with contextlib.suppress(FormatError):
        return None if raw is None else (raw, parse_config(raw, root))
    return None


def put_config(root: str, raw: bytes) -> None:
    """castore.json, where the folder has none that is the same; a damaged one is kept aside."""
    path = os.path.join(root, CONFIG)
    with contextlib.suppress(FileNotFoundError):
        if _raw_config(root) == raw:
            return
        os.rename(path, f"{path}.before-{os.urandom(3).hex()}")
    _put_in_place(root, path, raw)


def rewrite_config(root: str) -> list[str]:
    """Write castore.json as castore does, where it says the same in other bytes; what was done. The
    store may be in use: at no moment there is none."""
    path = os.path.join(root, CONFIG)
    found = _raw_config(root)
    anew = config_anew(found, parse_config(found, root))
    if anew is None:
        return []
    kept = f"{path}.before-{os.urandom(3).hex()}"
    write_new(kept, found)
    _put_in_place(root, path, anew)
    return [f"castore.json is written anew, as castore does; the old one is {kept}"]


def _put_in_place(root: str, path: str, raw: bytes) -> None:
    draft = f"{path}.{os.urandom(8).hex()}"
    write_new(draft, raw)
    index = status_at(os.path.join(root, "index/data.mdb"))
    if index is not None:
        follow(draft, index)
    os.rename(draft, path)
    sync_folder(root)


def _raw_config(root: str) -> bytes:
    with open(os.path.join(root, CONFIG), "rb") as file:
        return file.read(1 << 17)
