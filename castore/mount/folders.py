"""What a mount knows of folders, and no store does: those that are empty, their times and modes.
Not for several threads at once."""

from __future__ import annotations

import time
from typing import Any

from castore.mount.names import parent

MODE = 0o755


class Folders:
    """Folders go by their names in the store; "" is the whole store's."""

    def __init__(self) -> None:
        self._made: dict[str, None] = {}
        self._times: dict[str, int] = {}
        self._modes: dict[str, int] = {}
        self._all: tuple[dict[str, Any], ...] = (self._made, self._times, self._modes)
        self._began_ns = time.time_ns()

    def is_made(self, name: str) -> bool:
        """Whether it is there even if nothing is in it."""
        return name in self._made

    def made_in(self, folder: str) -> list[str]:
        """Those right in a folder."""
        return [name for name in self._made if parent(name) == folder]

    def mode(self, name: str) -> int:
        """Its permission bits."""
        return self._modes.get(name, MODE)

    def mtime_ns(self, name: str) -> int:
        """When something was put into it or taken out through this mount; else when that began."""
        return self._times.get(name, self._began_ns)

    def make(self, name: str, mode: int) -> None:
        self._made[name] = None
        self._modes[name] = mode
        self._times[name] = time.time_ns()
        self.touch(name)

    def touch(self, name: str) -> None:
        """What has this name came or went: the folder that it is in stays, be it empty."""
        folder = parent(name)
        self._times[folder] = time.time_ns()
        while folder:
            self._made[folder] = None
            folder = parent(folder)

    def set_mode(self, name: str, mode: int) -> None:
        self._modes[name] = mode

    def set_time(self, name: str, mtime_ns: int) -> None:
        self._times[name] = mtime_ns

    def remove(self, name: str) -> None:
        for known in self._all:
            known.pop(name, None)
        self.touch(name)

    def rename(self, old: str, new: str) -> None:
        """With all that are in it."""
        below = old + "/"
        for known in self._all:
            for name in [name for name in known if name == old or name.startswith(below)]:
                known[new + name[len(old) :]] = known.pop(name)
        self.touch(old)
        self.touch(new)
