"""What is asked of the verbs that are done to a whole store, and what they report."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal, TypeAlias

Severity: TypeAlias = Literal["corrupt", "missing", "warning"]

CLEAN: Final = 0
WARNINGS: Final = 1
CORRUPT: Final = 13
MISSING: Final = 14


@dataclass(frozen=True, slots=True)
class GcOptions:
    """What is asked of one collection: see `Store.gc`."""

    dry_run: bool
    grace_s: float
    repack_below: float
    max_repack_bytes: int | None
    alone: bool
    carry_undeletable: bool
    accept_unclaimed: bool = False


@dataclass(frozen=True, slots=True)
class Damage:
    """A frame that names need and that does not hold its chunk. It was left where it is."""

    pack_id: str
    offset: int
    chunk_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Undeletable:
    """A pack that is garbage and that the server does not remove."""

    pack_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class GcReport:
    """What a collection took; with `dry_run`, what one would have taken. Sizes are in bytes.

    `packs_rewritten` are those whose live frames were moved, `bytes_rewritten` what was written for
    it; `packs_removed` counts them too, and packs that nothing refers to, of which
    `orphans_removed` were never named by a commit. `packs_busy` are garbage, at least for the most
    part, but of writers that live. `packs_sealed` are of writers that ended without, on a local
    store: nothing was wrong with them. `leftovers_removed` are indexes that restores and rebuilds
    left behind. `missing` are packs that names need and that are not there.

    On S3 garbage is condemned first, and removed by a collection after the grace:
    `packs_condemned` wait for that until `next_run_at`, in seconds since the epoch by the server's
    clock. `pins_expired` were left by writers that died, a week ago or more.
    """

    dry_run: bool
    objects: int = 0
    chunks: int = 0
    chunks_removed: int = 0
    manifests_removed: int = 0
    packs_removed: int = 0
    orphans_removed: int = 0
    packs_rewritten: int = 0
    packs_sealed: int = 0
    packs_busy: int = 0
    bytes_freed: int = 0
    bytes_rewritten: int = 0
    leftovers_removed: int = 0
    caches_removed: int = 0
    cache_bytes_freed: int = 0
    damaged: tuple[Damage, ...] = ()
    missing: tuple[str, ...] = ()
    packs_condemned: int = 0
    bytes_condemned: int = 0
    pins_expired: int = 0
    next_run_at: float | None = None
    undeletable: tuple[Undeletable, ...] = ()
    duration_s: float = 0.0

    @property
    def found_nothing(self) -> bool:
        """Whether there was nothing to take."""
        return not (
            self.chunks_removed
            or self.manifests_removed
            or self.packs_removed
            or self.packs_sealed
            or self.bytes_rewritten
            or self.leftovers_removed
            or self.caches_removed
            or self.packs_condemned
            or self.pins_expired
            or self.undeletable
        )


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
    packs_read: Any = field(default=None, repr=False, compare=False)

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


@dataclass(frozen=True, slots=True)
class BackupReport:
    """A backup that was taken: the file, its size in bytes, and how many names are in it."""

    path: str
    bytes: int
    names: int


@dataclass(frozen=True, slots=True)
class CompactReport:
    """How many names an index has, and how large its file was and is, in bytes."""

    names: int
    bytes_before: int
    bytes_after: int


@dataclass(slots=True)
class RebuildReport:
    """What became of an index. `lost` are the names that can't be read in full, as what they need
    is in no pack; `lost_names` says, in words, what names can't be read at all, or may be missing;
    `kept` is where the old index is now, empty if there was none.

    `replayed` is how often the journal put or deleted a name. `unclaimed_chunks`, of
    `unclaimed_bytes` as stored, came after the names that are known: a collection leaves them until
    it is told not to."""

    names: int = 0
    chunks: int = 0
    packs: int = 0
    chunk_rows_added: int = 0
    chunk_rows_dropped: int = 0
    extents_moved: int = 0
    lost: list[str] = field(default_factory=list)
    lost_names: list[str] = field(default_factory=list)
    kept: str = ""
    replayed: int = 0
    unclaimed_chunks: int = 0
    unclaimed_bytes: int = 0
