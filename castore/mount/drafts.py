"""The files that are being written through a mount, by their names. Not for several threads at
once."""

from __future__ import annotations

from collections.abc import Iterator

from castore.mount.callers import Caller
from castore.mount.draft import Draft
from castore.mount.names import parent


class Drafts:
    def __init__(self) -> None:
        self._by_name: dict[str, list[Draft]] = {}

    def __bool__(self) -> bool:
        return bool(self._by_name)

    def __iter__(self) -> Iterator[Draft]:
        return iter([draft for drafts in self._by_name.values() for draft in drafts])

    def at(self, name: str) -> list[Draft]:
        """Those of a name, the latest first."""
        return list(reversed(self._by_name.get(name, ())))

    def of(self, name: str, caller: Caller) -> Draft | None:
        """The one that the caller's process is writing: that is what it sees of the file. None,
        too, where all that it has written is published."""
        for draft in self.at(name):
            if draft.process == caller.process and not draft.is_settled:
                return draft
        return None

    def names_in(self, folder: str) -> list[str]:
        """Those right in a folder."""
        return [name for name in self._by_name if parent(name) == folder]

    def under(self, name: str) -> list[Draft]:
        """Those of a name, and of all that are below it as a folder."""
        below = name + "/"
        return [each for each in self if each.name == name or each.name.startswith(below)]

    def add(self, draft: Draft) -> None:
        self._by_name.setdefault(draft.name, []).append(draft)

    def drop(self, draft: Draft) -> None:
        """It was closed."""
        drafts = self._by_name.get(draft.name, [])
        if draft in drafts:
            drafts.remove(draft)
            if not drafts:
                del self._by_name[draft.name]

    def remove(self, name: str) -> list[Draft]:
        """The name was deleted, or another file got it: nothing of them will be published."""
        drafts = self._by_name.pop(name, [])
        for draft in drafts:
            draft.removed = True
        return drafts

    def rename(self, old: str, new: str) -> None:
        """A file, or what is in a folder, is published under another name from now on."""
        below = old + "/"
        for name in list(self._by_name):
            if name == old or name.startswith(below):
                drafts = self._by_name.pop(name)
                for draft in drafts:
                    draft.name = new + name[len(old) :]
                self._by_name[new + name[len(old) :]] = drafts
