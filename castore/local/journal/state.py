"""How a store's index and its journal stand to each other."""

from __future__ import annotations

import contextlib
import os
from typing import NamedTuple

from castore.errors import FormatError
from castore.format.journal import JournalPlace, Unclaimed
from castore.local.journal.files import FOLDER
from castore.local.journal.log import read_place, read_unclaimed
from castore.local.journal.scan import JournalReading, read_journal
from castore.system.fileio import storage_error
from castore.system.lmdb_env import Index
from castore.wording import counted


class JournalState(NamedTuple):
    """`gaps` says, in words, what the journal lacks; `is_behind`, whether the index lacks what the
    journal has; `unclaimed`, what the index is known to lack."""

    reading: JournalReading
    gaps: list[str]
    is_behind: bool
    unclaimed: Unclaimed | None

    @property
    def refusal(self) -> str:
        """Why nothing may be collected; "" if it may."""
        if self.unclaimed is not None and self.unclaimed.chunks:
            chunks = counted(self.unclaimed.chunks, "chunk")
            return (
                f"{self.unclaimed.stored_bytes:,} bytes in {chunks} that "
                "no name leads to were stored after the names of its index were: their names are "
                "lost. Restore a newer backup (castore restore), or give them up (castore gc "
                "--accept-unclaimed, accept_unclaimed=True)"
            )
        if self.is_behind or self.unclaimed is not None:
            return (
                "its index is older than its journal, which has names that were put since: take "
                "them from there (castore index rebuild), or give them up (castore gc "
                "--accept-unclaimed, accept_unclaimed=True)"
            )
        return ""


def judge(root: str, index: Index) -> JournalState:
    """Of the store in the folder `root`, which may be in use. Raises FormatError if the index's
    row of what is unclaimed is damaged."""
    while True:
        before = _place(index)
        try:
            reading = read_journal(root)
        except FileNotFoundError:
            continue  # see below
        except OSError as error:
            raise storage_error(error, os.path.join(root, FOLDER)) from error
        after = _place(index)
        # A rotation takes files away while they are read: then it is all read again.
        if before == after or (before and after and before.generation == after.generation):
            break
    gaps = list(reading.gaps)
    if before is None and not reading.is_there:
        gaps.append("it was never begun")
    elif before is not None and before.seq > reading.seq:
        gaps.append(f"transactions {reading.seq + 1} to {before.seq} are missing")
    with index.gate, index.snapshot() as txn:
        unclaimed = read_unclaimed(index, txn)
    return JournalState(reading, gaps, reading.is_ahead_of(after), unclaimed)


def _place(index: Index) -> JournalPlace | None:
    """None also for one that is damaged, which a check says on its own."""
    with index.gate, index.snapshot() as txn, contextlib.suppress(FormatError):
        return read_place(index, txn)
    return None
