"""What a disk may hold after the power went: the files of a recorded process, at any moment, with
all, some or none of what it had not synced.

A write counts once its file was synced after it (or at once, where the file is open with O_DSYNC);
a name in a folder once the folder was. Of the rest any part may be there: of a file's writes any of
them, each torn between sectors; of a folder's changes the first ones, as file systems keep those
in order.
"""

from __future__ import annotations

import json
import os
import random
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

SECTOR_BYTES = 512
_HEAD = struct.Struct("<5Q")
_HERE = Path(__file__).parent
_SOURCE = _HERE / "lost_writes.c"


class Event(NamedTuple):
    """A call that was made: C create, M make a folder, W write, D write through, T set the size,
    S sync, N rename, L link, U remove."""

    what: str
    inode: int
    number: int
    path: str  # the bytes that were written, as latin-1, for W and D
    other: str


def build(folder: Path) -> Path:
    """The recorder, as a library. Raises OSError without a C compiler."""
    library = folder / "recorder.so"
    command = ["cc", "-shared", "-fPIC", "-O1", "-o", library, _SOURCE, "-lpthread"]
    subprocess.run(command, check=True)
    return library


def record(library: Path, program: str, root: Path, *arguments: str) -> list[Event]:
    """Run a Python program, and give what it did below `root`."""
    log = root.with_suffix(".log")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(_HERE), os.environ.get("PYTHONPATH", "")]),
        "LD_PRELOAD": str(library),
        "RECORD_ROOT": str(root),
        "RECORD_LOG": str(log),
    }
    command = [sys.executable, "-c", program, str(root), *arguments]
    subprocess.run(command, env=environment, check=True, timeout=300)
    return list(_events(log.read_bytes()))


def _events(raw: bytes) -> Iterator[Event]:
    at = 0
    while at < len(raw):
        what, inode, number, size, other = _HEAD.unpack_from(raw, at)
        at += _HEAD.size
        first, second = raw[at : at + size], raw[at + size : at + size + other]
        at += size + other
        yield Event(chr(what), inode, number, first.decode("latin-1"), second.decode("latin-1"))


@dataclass
class _File:
    synced: bytearray = field(default_factory=bytearray)
    pending: list[tuple[int, bytes | None]] = field(default_factory=list)  # None: set the size

    def sync(self) -> None:
        for offset, data in self.pending:
            _apply(self.synced, offset, data)
        self.pending.clear()


@dataclass
class _Folder:
    synced: dict[str, _File | _Folder] = field(default_factory=dict)
    pending: list[tuple[str, _File | _Folder | None]] = field(default_factory=list)

    def now(self, changes: int | None = None) -> dict[str, _File | _Folder]:
        entries = dict(self.synced)
        for name, entry in self.pending[:changes]:
            if entry is None:
                entries.pop(name, None)
            else:
                entries[name] = entry
        return entries

    def sync(self) -> None:
        self.synced, self.pending = self.now(), []


class Disk:
    """The state of a folder's files as events happen."""

    def __init__(self, root: Path) -> None:
        self._root = str(root)
        self._top = _Folder()
        self._files: dict[int, _File] = {}

    def apply(self, event: Event) -> None:
        what, path = event.what, event.path
        if what == "C":
            made = self._files[event.inode] = _File()
            self._enter(path, made)
        elif what == "M":
            self._enter(path, _Folder())
        elif what in "WDT":
            file = self._files[event.inode]
            data = None if what == "T" else path.encode("latin-1")
            if what == "D":
                _apply(file.synced, event.number, data)
            else:
                file.pending.append((event.number, data))
        elif what == "S":
            synced = self._find(path)
            if synced is not None:
                synced.sync()
        elif what == "N":
            moved = self._find(path)
            assert moved is not None
            self._enter(event.other, moved)
            self._enter(path, None)
        elif what == "L":
            linked = self._find(path)
            self._enter(event.other, linked)
        else:
            self._enter(path, None)

    def write_image(self, target: Path, chance: random.Random, keep: float) -> None:
        """What may be left, of which about the share `keep` of what was not synced."""
        _write(self._top, target, chance, keep)

    def _parts(self, path: str) -> list[str]:
        assert path == self._root or path.startswith(self._root + "/")
        return [part for part in path[len(self._root) :].split("/") if part]

    def _find(self, path: str) -> _File | _Folder | None:
        at: _File | _Folder | None = self._top
        for part in self._parts(path):
            assert isinstance(at, _Folder)
            at = at.now().get(part)
        return at

    def _enter(self, path: str, entry: _File | _Folder | None) -> None:
        folder, name = path.rsplit("/", 1)
        parent = self._find(folder)
        assert isinstance(parent, _Folder)
        parent.pending.append((name, entry))


def _apply(content: bytearray, offset: int, data: bytes | None) -> None:
    if data is None:
        del content[offset:]
        content.extend(bytes(offset - len(content)))
        return
    if len(content) < offset:
        content.extend(bytes(offset - len(content)))
    content[offset : offset + len(data)] = data


def _write(folder: _Folder, target: Path, chance: random.Random, keep: float) -> None:
    target.mkdir(mode=0o700)
    whole = keep in (0, 1)
    kept = round(keep * len(folder.pending))
    changes = kept if whole else chance.randint(0, len(folder.pending))
    for name, entry in folder.now(changes).items():
        if isinstance(entry, _Folder):
            _write(entry, target / name, chance, keep)
            continue
        content = bytearray(entry.synced)
        for offset, data in entry.pending:
            if chance.random() < keep:
                _apply_torn(content, offset, data, chance, 1 if whole else keep)
        (target / name).write_bytes(content)


def _apply_torn(
    content: bytearray, offset: int, data: bytes | None, chance: random.Random, keep: float
) -> None:
    if data is None or chance.random() < 0.5:
        _apply(content, offset, data)
        return
    at = 0
    while at < len(data):
        end = min(len(data), (offset + at) // SECTOR_BYTES * SECTOR_BYTES + SECTOR_BYTES - offset)
        if chance.random() < keep or keep == 1:
            _apply(content, offset + at, data[at:end])
        at = end


def announcements(events: list[Event], name: str) -> list[tuple[int, dict[str, object]]]:
    """The JSON lines that were written to the file of this name, each with how many events there
    were when it was."""
    files = {e.inode for e in events if e.what == "C" and e.path.endswith("/" + name)}
    return [
        (i, json.loads(line))
        for i, event in enumerate(events)
        if event.what in "WD" and event.inode in files
        for line in event.path.splitlines()
    ]
