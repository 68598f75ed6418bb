"""Folders to import, and what is in them."""

from __future__ import annotations

import os
import random
from pathlib import Path


def make_tree(folder: Path) -> dict[str, tuple[bytes, int, int]]:
    """Path -> (bytes, mode, time in ns), of what was made."""
    choose = random.Random(5)
    made = {}
    for i, name in enumerate(("a", "b/c", "b/d.txt", "b.txt", "e/f/g", "empty", ".hidden", "ü/é")):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        raw = choose.randbytes(choose.randrange(30_000)) if name != "empty" else b""
        path.write_bytes(raw)
        mode, time_ns = 0o600 + i, 1_600_000_000_123_456_789 + i * 10**9
        path.chmod(mode)
        os.utime(path, ns=(time_ns, time_ns))
        made[name] = raw, mode, time_ns
    return made


def tree(folder: Path) -> dict[str, tuple[bytes, int, int]]:
    return {
        path.relative_to(folder).as_posix(): (
            path.read_bytes(),
            path.stat().st_mode & 0o7777,
            path.stat().st_mtime_ns,
        )
        for path in folder.rglob("*")
        if path.is_file()
    }
