"""What a check of either kind of store finds: what each problem is called, and which names it takes
with it. Collected while names are walked, told of at the end, one Problem for each thing that is
wrong and not for each name."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace

from castore.check.objects import Faulty
from castore.check.packs import PackReading
from castore.model import Location
from castore.stream.reports import Problem, Severity
from castore.wording import counted

NAMES_MAX = 10_000  # listed for one problem; the others are only counted


class Findings:
    """What is wrong, so far. `problems` gives it, with the names that each thing takes with it."""

    def __init__(self, readings: Mapping[bytes, PackReading]) -> None:
        """`readings` are what the packs that are there hold, by id; they may be added to."""
        self._readings = readings
        self._problems: dict[tuple[str, str, int], Problem] = {}
        self._names: defaultdict[tuple[str, str, int], dict[str, None]] = defaultdict(dict)
        self._more: defaultdict[tuple[str, str, int], int] = defaultdict(int)

    def __len__(self) -> int:
        return len(self._problems)

    def add(
        self,
        kind: str,
        severity: Severity,
        what: str,
        *names: str,
        pack_id: bytes = b"",
        chunk_id: bytes = b"",
    ) -> None:
        """See Problem. `names` are those that can't be read in full because of it."""
        pack, chunk = pack_id.hex(), chunk_id.hex()
        self._add((kind + what, pack, -1), Problem(kind, severity, what, names, pack, chunk=chunk))

    def add_object(self, name: str, faulty: Faulty) -> None:
        """What is wrong with the object of a name: its manifest, or a frame of it."""
        chunk = faulty.chunk
        if chunk is None:
            what = f"the {faulty.part} of {name!r}: {faulty.what}"
            self.add(faulty.part, "corrupt", what, name)
        elif chunk.location.pack_id not in self._readings:
            self.add_missing_pack(chunk.location.pack_id, name)
        else:
            severity: Severity = "missing" if faulty.missing else "corrupt"
            self._add_frame(chunk.location, chunk.chunk_id, faulty.what, severity, name)

    def add_pack(
        self,
        reading: PackReading,
        severity: Severity,
        *names: str,
        durable_bytes: int | None = None,
    ) -> None:
        """What is wrong with a pack itself, whether or not a name needs it; of its frames only
        those that begin within `durable_bytes`: no name needs what was never made durable, and a
        crash leaves it torn."""
        pack_id = reading.pack_id
        for fault in reading.faults:
            what = f"pack {pack_id.hex()}: {fault}"
            self.add("pack", severity, what, *names, pack_id=pack_id)
        odd = {offset: f"{fault}, though it decodes" for offset, fault in reading.odd.items()}
        for offset, fault in {**reading.bad, **odd}.items():
            if durable_bytes is None or offset < durable_bytes:
                entry = reading.frames.at(offset)
                chunk_id = b"" if entry is None else entry.chunk_id
                self._add_frame(Location(pack_id, offset, 0), chunk_id, fault, severity)

    def add_frame(self, at: Location, chunk_id: bytes, fault: str) -> None:
        """A bad frame that no name needs, and that is relied on all the same."""
        self._add_frame(at, chunk_id, fault, "corrupt")

    def add_missing_pack(self, pack_id: bytes, name: str | None = None) -> None:
        what = f"pack {pack_id.hex()} is missing"
        self._add(
            ("", pack_id.hex(), -1), Problem("pack", "missing", what, pack=pack_id.hex()), name
        )

    def problems(self) -> Iterator[Problem]:
        for key, problem in self._problems.items():
            names = (*problem.names, *self._names[key])
            what = problem.what
            if self._more[key]:
                what += f" ({counted(self._more[key], 'more name')})"
            yield replace(problem, names=names, what=what)

    def _add_frame(
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

    def _add(self, key: tuple[str, str, int], problem: Problem, name: str | None = None) -> None:
        self._problems.setdefault(key, problem)
        if name is not None:
            self._name(key, name)

    def _name(self, key: tuple[str, str, int], name: str) -> None:
        if len(self._names[key]) < NAMES_MAX:
            self._names[key][name] = None
        elif name not in self._names[key]:
            self._more[key] += 1
