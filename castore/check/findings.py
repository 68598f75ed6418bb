"""Which names each thing that is wrong takes with it: collected while an index is walked, told of
at the end, one Problem for each thing and not for each name."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace

from castore.model import Extent, Location
from castore.stream.reports import Problem, Severity

NAMES_MAX = 10_000  # listed for one problem; the others are only counted


class Findings:
    def __init__(self) -> None:
        self._problems: dict[tuple[str, str, int], Problem] = {}
        self._names: defaultdict[tuple[str, str, int], dict[str, None]] = defaultdict(dict)
        self._more: defaultdict[tuple[str, str, int], int] = defaultdict(int)

    def __len__(self) -> int:
        return len(self._problems)

    def add(self, problem: Problem) -> None:
        self._add((problem.kind + problem.what, problem.pack, problem.offset), problem)

    def missing_pack(self, pack_id: bytes, name: str | None) -> None:
        what = f"pack {pack_id.hex()} is missing"
        self._add(
            ("", pack_id.hex(), -1), Problem("pack", "missing", what, pack=pack_id.hex()), name
        )

    def bad_frame(
        self,
        location: Location,
        chunk_id: bytes,
        reason: str,
        severity: Severity,
        name: str | None = None,
    ) -> None:
        """A frame that is damaged, or is not where something says."""
        pack = location.pack_id.hex()
        what = f"the frame at byte {location.offset} of pack {pack}: {reason}"
        problem = Problem("frame", severity, what, (), pack, location.offset, chunk_id.hex())
        self._add(("", pack, location.offset), problem, name)

    def named(self, extent: Extent, name: str) -> None:
        """Whatever is known to be wrong with the extent's frame takes this name with it."""
        self._name(("", extent.location.pack_id.hex(), extent.location.offset), name)

    def problems(self) -> Iterator[Problem]:
        for key, problem in self._problems.items():
            names = (*problem.names, *self._names[key])
            what = problem.what
            if self._more[key]:
                what += f" ({self._more[key]} more names)"
            yield replace(problem, names=names, what=what)

    def _add(self, key: tuple[str, str, int], problem: Problem, name: str | None = None) -> None:
        self._problems.setdefault(key, problem)
        if name is not None:
            self._name(key, name)

    def _name(self, key: tuple[str, str, int], name: str) -> None:
        if len(self._names[key]) < NAMES_MAX:
            self._names[key][name] = None
        elif name not in self._names[key]:
            self._more[key] += 1
