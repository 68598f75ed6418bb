"""What is mounted on this machine, as Linux lists it."""

from __future__ import annotations

from typing import NamedTuple


class _Mount(NamedTuple):
    device: str
    source: str


def served_by(folder: str) -> int | None:
    """The process that serves the mount of a store at the folder, or None where there is none."""
    found = _at(folder)
    return None if found is None else int(found.source.removeprefix("castore-"))


def device_at(folder: str) -> str | None:
    """Linux's numbers for the device of the mount of a store at the folder."""
    found = _at(folder)
    return None if found is None else found.device


def _at(folder: str) -> _Mount | None:
    found = None
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            fields, _, rest = line.partition(" - ")
            kind, source = rest.split()[:2]
            _, _, device, _, path = fields.split()[:5]
            if kind == "fuse.castore" and _unescaped(path) == folder:
                found = _Mount(device, source)  # the last is on top
    return found


def _unescaped(path: str) -> str:
    for escaped, char in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        path = path.replace(escaped, char)
    return path
