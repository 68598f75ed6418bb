"""What a check found, as values."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

if TYPE_CHECKING:
    from castore.s3.check.packs import PacksRead

Severity: TypeAlias = Literal["corrupt", "missing", "warning"]

CLEAN: Final = 0
WARNINGS: Final = 1
CORRUPT: Final = 13
MISSING: Final = 14


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong. `kind` says of what: index, config, journal, record, manifest,
    segment, chunk row, pack row, pending row, change row, meta, totals, pack, frame, pin, gc state,
    hints, key, object, orphan, lock.

    `corrupt` is what is not as it was written, `missing` what is not there, `warning` what costs
    nobody any data. `names` are those that can't be read in full because of it. Where it is one
    frame's: `pack` (hex) and `offset`, in bytes; `chunk` (hex) where its id is known.
    """

    kind: str
    severity: Severity
    what: str
    names: tuple[str, ...] = ()
    pack: str = ""
    offset: int = -1
    chunk: str = ""

    def document(self) -> dict[str, Any]:
        return asdict(self) | {"names": list(self.names)}

    @classmethod
    def of(cls, document: dict[str, Any]) -> Problem:
        return cls(**{**document, "names": tuple(document["names"])})


@dataclass(slots=True)
class CheckReport:
    """`read_bytes` of frames were decoded and compared with their ids, in `read_frames` frames.

    `garbage` is what nothing leads to, so that the next collection takes it, or condemns it: how
    many of each kind ("packs", "pins", ...), and `garbage_bytes` altogether. It is no problem.
    `packs_read` is for a repair that follows: what was read of a store on S3, if all of it was.
    """

    problems: list[Problem] = field(default_factory=list)
    names: int = 0
    packs: int = 0
    frames: int = 0
    read_frames: int = 0
    read_bytes: int = 0
    repaired: list[str] = field(default_factory=list)
    garbage: dict[str, int] = field(default_factory=dict)
    garbage_bytes: int = 0
    packs_read: PacksRead | None = field(default=None, repr=False, compare=False)

    def count_garbage(self, kind: str, size: int) -> None:
        self.garbage[kind] = self.garbage.get(kind, 0) + 1
        self.garbage_bytes += size

    @property
    def damaged_names(self) -> list[str]:
        """Every name that can't be read in full, once."""
        return sorted({name for problem in self.problems for name in problem.names})

    @property
    def missing_packs(self) -> set[str]:
        """Those that something leads to and that are not there, in hex."""
        return {p.pack for p in self.problems if (p.kind, p.severity) == ("pack", "missing")}

    @property
    def clean(self) -> bool:
        return not self.problems

    @property
    def exit_code(self) -> int:
        """0 clean, 1 nothing but warnings, 13 something is corrupt, 14 something is missing."""
        severities = {problem.severity for problem in self.problems}
        if "corrupt" in severities:
            return CORRUPT
        if "missing" in severities:
            return MISSING
        return WARNINGS if severities else CLEAN

    def worst_first(self) -> Iterator[Problem]:
        order = {"corrupt": 0, "missing": 1, "warning": 2}
        return iter(sorted(self.problems, key=lambda problem: order[problem.severity]))
