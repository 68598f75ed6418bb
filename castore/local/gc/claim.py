"""What a collection of a local store does besides: it keeps the journal of names small and whole,
and takes what restores and rebuilds left behind.

It does not begin where chunks are unclaimed: what no name leads to may be all that is left of an
object, when the index is older than the packs.
"""

from __future__ import annotations

import calendar
import os
import shutil
import time
from contextlib import suppress

from castore.errors import UnclaimedData
from castore.local.folder import is_config_draft
from castore.local.index_place import ASIDE, DRAFT
from castore.local.journal.log import LOG_BYTES_MIN, UNCLAIMED, Journal
from castore.local.journal.state import judge
from castore.system.fileio import typed_errors
from castore.system.lmdb_env import Index

KEPT_S = 30 * 86400  # an index that was replaced


def claim(root: str, index: Index, journal: Journal, *, accept: bool, dry_run: bool) -> None:
    """Raises UnclaimedData if the index lacks names of what is in the packs, unless the loss is
    accepted: that is so from then on."""
    state = judge(root, index)
    if not state.refusal:
        return
    if not accept:
        raise UnclaimedData(root, state.refusal)
    if dry_run:
        return
    journal.rotate(index, claimed=True)  # what it had of the names that are given up goes
    with index.write_gate, index.errors, index.begin() as txn:
        txn.delete(UNCLAIMED, db=index.meta)


def tend(root: str, index: Index, journal: Journal) -> None:
    """Begin the journal anew if it lacks something, or has grown past what it stands for. Raises
    StoreFull, StoreIOError."""
    state = judge(root, index)
    reading = state.reading
    bound = max(LOG_BYTES_MIN, reading.snapshot_bytes)
    if state.gaps or len(reading.known) > 1 or reading.log_bytes > bound:
        journal.rotate(index)


def remove_leftovers(root: str, *, dry_run: bool) -> tuple[int, int]:
    """(how many, bytes) of indexes that were never finished, of those that were replaced a month
    ago, and of drafts of castore.json. Whoever makes an index has the store alone, so nobody does
    now; beside a dry run, a collection may take one. Raises StoreIOError, PermissionError."""
    with typed_errors(root):
        return _remove_leftovers(root, dry_run=dry_run)


def _remove_leftovers(root: str, *, dry_run: bool) -> tuple[int, int]:
    count = size = 0
    for name in sorted(os.listdir(root)):
        path = os.path.join(root, name)
        if is_config_draft(name) and not os.path.isdir(path):
            with suppress(FileNotFoundError):
                size += os.lstat(path).st_blocks * 512
                count += 1
                if not dry_run:
                    os.unlink(path)
            continue
        if os.path.islink(path) or not os.path.isdir(path):
            continue  # none that castore made
        if name.startswith(DRAFT) or (name.startswith(ASIDE) and _is_old(name)):
            with suppress(FileNotFoundError):
                size += sum(entry.stat().st_blocks * 512 for entry in os.scandir(path))
                count += 1
            if not dry_run:
                with typed_errors(path):
                    shutil.rmtree(path)
    return count, size


def _is_old(name: str) -> bool:
    stamp = name.removeprefix(ASIDE)[:15]
    try:
        replaced = calendar.timegm(time.strptime(stamp, "%Y%m%d-%H%M%S"))
    except ValueError:
        return False
    return time.time() - replaced > KEPT_S
