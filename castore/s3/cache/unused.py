"""The folders that stores on S3 leave in the user's cache when they are gone.

A cache's name does not say where the store is, so that whether the store still exists can't be told
from here. So it goes by use: a cache is removed when nobody has it open and nobody had for 30 days.
What is lost then is time, never data: a store that is used again after that fills its cache anew.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import time

from castore.s3.cache.folder import cache_root
from castore.s3.cache.index import boot_id

UNUSED_S = 30 * 86400
_CACHE = re.compile(r"[0-9a-f]{32}")
_PUT_AWAY = re.compile(r"[0-9a-f]{32}\.[0-9a-f]{12}")  # renamed by who was about to remove it
_PARTS = {"index", "users", "frames"}


def collect_caches(*, dry_run: bool) -> tuple[int, int]:
    """Remove the caches that nobody uses any more: how many, and their bytes. Whatever can't be
    looked at or removed is left."""
    root, count, freed = cache_root(), 0, 0
    if root is None:
        return 0, 0
    try:
        names = os.listdir(root)
    except OSError:
        return 0, 0
    for name in names:
        path = os.path.join(root, name)
        put_away = _PUT_AWAY.fullmatch(name) is not None
        if not (put_away or _CACHE.fullmatch(name)) or os.path.islink(path):
            continue
        try:
            if not _is_unused(path):
                continue
            size = _size(path)
            if not dry_run:
                doomed = path if put_away else f"{path}.{secrets.token_hex(6)}"
                if not put_away:
                    # Who opens it from now on makes a new one.
                    os.rename(path, doomed)
                shutil.rmtree(doomed)
        except OSError:
            continue
        count, freed = count + 1, freed + size
    return count, freed


def _is_unused(path: str) -> bool:
    """Who opens a cache puts a file into `users`, and takes it out at the end: that it was there
    stays in the folder's time."""
    entries = set(os.listdir(path))
    if not entries <= _PARTS:
        return False  # not of ours
    users = os.path.join(path, "users")
    if "users" in entries and any(user.startswith(f"{boot_id()}.") for user in os.listdir(users)):
        return False
    times = [os.stat(os.path.join(path, entry)).st_mtime for entry in entries]
    return time.time() - max([os.stat(path).st_mtime, *times]) > UNUSED_S


def _size(path: str) -> int:
    return sum(
        os.lstat(os.path.join(folder, file)).st_size
        for folder, _, files in os.walk(path)
        for file in files
    )
