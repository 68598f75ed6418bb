"""What a journal holds, read with no trust in it (see `journal` for how it comes about).

`read_journal` finds out, with each block's checksum compared: from which snapshot to begin, which
transactions follow, and what is missing; `JournalReading.state` and `changes` give the entries.
Bytes that are no block are stepped over: a commit that was cut off leaves them, and loses nothing
by it; what is lost the numbers of the transactions show.
"""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field

from castore.format.journal import Entry, JournalPlace, Kind, Piece, decode_entries
from castore.local.journal.files import (
    FOLDER,
    Block,
    blocks,
    generations,
    log_path,
    snapshot_path,
)


@dataclass(slots=True)
class _File:
    """A log or a snapshot. `seqs`, `begins` and `ends` are of the transactions that count."""

    path: str
    base: str = ""
    seq: int = 0  # of the head: what was committed before
    config: str = ""
    unclaimed: bool = False
    seqs: array[int] = field(default_factory=lambda: array("Q"))
    begins: array[int] = field(default_factory=lambda: array("Q"))
    ends: array[int] = field(default_factory=lambda: array("Q"))
    newest: int = 0  # that is known to be committed
    whole: bool = False  # of a snapshot: it has its end, and every part


@dataclass(slots=True)
class JournalReading:
    """`gaps` says, in words, what is missing; with none, what it gives is all that was committed up
    to transaction `seq`, of which `newest` and all before are known to have been."""

    gaps: list[str] = field(default_factory=list)
    seq: int = 0
    newest: int = 0
    generation: int = 0
    configs: list[str] = field(default_factory=list)  # castore.json, as the heads have it
    unclaimed: bool = False  # chunks were when one of its files was begun, and none were given up
    known: list[int] = field(default_factory=list)  # the generations that there are files of
    log_bytes: int = 0
    snapshot_bytes: int = 0
    _snapshot: _File | None = None
    _logs: list[_File] = field(default_factory=list)

    @property
    def is_there(self) -> bool:
        return self._snapshot is not None or bool(self._logs)

    @property
    def complete(self) -> bool:
        return self.is_there and not self.gaps

    def state(self) -> Iterator[Entry]:
        """The entries of the snapshot, if there is one."""
        if self._snapshot is not None:
            yield from _entries(self._snapshot.path, 0, None, Kind.STATE)

    def changes(self, after: int = 0, upto: int | None = None) -> Iterator[Entry]:
        """The entries of the transactions behind number `after`, up to number `upto`, in order."""
        for log in self._logs:
            for seq, begin, end in zip(log.seqs, log.begins, log.ends, strict=True):
                if seq > after and (upto is None or seq <= upto):
                    yield from _entries(log.path, begin, end, Kind.CHANGES)

    @property
    def has_newest(self) -> bool:
        """Whether there was a transaction since it began."""
        return any(self.newest in log.seqs for log in self._logs)

    def newest_entries(self) -> Iterator[Entry]:
        """What the last transaction did that is known to have been committed; where there is none,
        the names that the journal begins with."""
        if self.has_newest:
            yield from self.changes(self.newest - 1, self.newest)
        else:  # a collection may have taken segments since
            yield from (entry for entry in self.state() if not isinstance(entry, Piece))

    def is_ahead_of(self, place: JournalPlace | None) -> bool:
        """Whether it has transactions that were committed, and that an index does not know of which
        has `place`."""
        if place is None:
            return self.is_there
        # A generation with a snapshot was begun by a rotation, which the index knew of. One without
        # may be of a commit under way, or cut off: the index learns of it with that.
        return self.newest > place.seq or (
            self._snapshot is not None
            and self.generation > place.generation
            and place.generation not in self.known
        )

    def has_from(self, seq: int) -> bool:
        """Whether every transaction behind number `seq` is there."""
        return not self.gaps and bool(self._logs) and self._logs[0].seq <= seq


def read_journal(root: str) -> JournalReading:
    """Of the store in the folder `root`."""
    reading = JournalReading()
    folder = os.path.join(root, FOLDER)
    reading.known = known = generations(folder)
    logs = {g: _read_file(log_path(folder, g), Kind.CHANGES) for g in known}
    for generation in reversed(known):
        snapshot = _read_file(snapshot_path(folder, generation), Kind.STATE)
        log = logs[generation]
        if snapshot is not None and (snapshot.whole or generation == known[0]):
            reading._snapshot = snapshot
            reading.unclaimed |= snapshot.unclaimed
            reading.snapshot_bytes = os.path.getsize(snapshot.path)
        if reading._snapshot is not None or (log is not None and log.base == "nothing"):
            known = [g for g in known if g >= generation]
            break
    else:
        if known:
            reading.gaps.append("it has no beginning")
    if reading._snapshot is not None and not reading._snapshot.whole:
        reading.gaps.append("its snapshot is damaged")
    for generation in known:
        log = logs[generation]
        if log is None:
            reading.gaps.append(f"the log of generation {generation} is gone, or has no head")
            continue
        _follow(reading, generation, log)
    return reading


def _follow(reading: JournalReading, generation: int, log: _File) -> None:
    """Put a log behind those that come before it."""
    before = reading.seq if reading._logs else log.seq
    reading.configs.append(log.config)
    reading.unclaimed |= log.unclaimed
    reading.log_bytes += os.path.getsize(log.path)
    if reading._logs and not log.seqs and log.seq <= before:
        return  # a rotation began it, and was cut off
    if log.seq > before:
        reading.gaps.append(f"transactions {before + 1} to {log.seq} are missing")
    # One that begins earlier is of an index that was older: what both have stays.
    last = log.seq
    for seq in log.seqs:
        if seq > last + 1:
            reading.gaps.append(f"transactions {last + 1} to {seq - 1} are missing")
        last = seq
    reading.seq = last
    reading.newest = log.newest
    reading._logs.append(log)
    reading.generation = generation


def _read_file(path: str, kind: Kind) -> _File | None:
    """What is in a log or a snapshot; None if there is none, or it has no head."""
    found, parts, begin, complete = _File(path), 0, 0, False
    try:
        for block in blocks(path):
            head = block.head
            if head.kind == Kind.HEAD and not found.base:
                _read_head(found, block)
            elif head.kind == Kind.DONE:
                found.newest = max(found.newest, head.seq)
            elif head.kind == Kind.UNDONE:
                _undo(found, head.seq, int.from_bytes(block.payload()[:8], "little"))
            elif head.kind == kind:
                if head.part == 0:
                    parts, begin = 0, block.begin
                    if kind is Kind.CHANGES:
                        _supersede(found, head.seq)
                complete = head.part == parts
                parts += 1
                if complete and head.is_last and kind is Kind.CHANGES:
                    found.seqs.append(head.seq)
                    found.begins.append(begin)
                    found.ends.append(block.end)
                    found.newest = max(found.newest, head.seq - 1)
                found.whole = complete and head.is_last
                parts = parts if complete else -1
    except FileNotFoundError:
        return None
    return found if found.base else None


def _supersede(found: _File, seq: int) -> None:
    """A transaction that begins takes the place of those with its number, or later ones."""
    while found.seqs and found.seqs[-1] >= seq:
        found.seqs.pop()
        found.begins.pop()
        found.ends.pop()


def _undo(found: _File, seq: int, end: int) -> None:
    if found.seqs and found.seqs[-1] == seq and found.ends[-1] <= end:
        _supersede(found, seq)


def _read_head(found: _File, block: Block) -> None:
    try:
        fields = json.loads(block.payload())
        found.base, found.seq = str(fields["base"]), block.head.seq
        found.newest = found.seq
        found.config = json.dumps(fields["config"], indent=2) + "\n"
        found.unclaimed = bool(fields.get("unclaimed"))
    except (ValueError, KeyError, TypeError):
        found.base = ""


def _entries(path: str, begin: int, end: int | None, kind: Kind) -> Iterator[Entry]:
    for block in blocks(path, begin, end):
        if block.head.kind == kind:
            yield from decode_entries(block.payload())
