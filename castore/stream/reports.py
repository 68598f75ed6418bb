"""What is asked of the verbs that are done to a whole store, and what they report."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal, TypeAlias

from castore.stream.prices import HORIZON_S, Prices

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
    repack_below: float | None
    max_repack_bytes: int | None
    alone: bool
    carry_undeletable: bool
    accept_unclaimed: bool = False
    max_cost: float | None = None
    horizon_s: float = HORIZON_S
    prices: Prices = field(default_factory=Prices)

    @property
    def repacks(self) -> bool:
        """Whether any pack may be rewritten."""
        return self.repack_below is None or self.repack_below > 0


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


@dataclass(slots=True)
class GcReport:
    """What a collection took; with `dry_run`, what one would have taken. Sizes are in bytes.

    - `objects`, `chunks`: what is there and live. `chunks_removed`, `manifests_removed`: what is
      not; on S3 the latter are those that a batch of names hides.
    - `packs_removed`: all packs that were deleted. Of these, `orphans_removed` were never named by
      a commit, and `packs_rewritten` had live frames, which were moved; `bytes_rewritten` were
      written for it. `bytes_freed` is what there is less of.
    - `packs_busy`: garbage, at least for the most part, but of writers that live.
    - `packs_sealed`: of writers that ended without, in a local store. Nothing was wrong with them.
    - `leftovers_removed`: what restores and rebuilds, and who made the store, left behind.
    - `caches_removed`, `cache_bytes_freed`: caches of stores on S3 that this machine does not use.
    - `damaged`: frames that names need and that are damaged. `missing`: packs that names need and
      that are not there.
    - `duration_s`: how long it took, in seconds.

    On S3 garbage is condemned first, and removed by a collection after the grace:

    - `packs_condemned`, of `bytes_condemned`, wait for that.
    - `next_run_at`: when that is, in seconds since the epoch by the server's clock; None if nothing
      waits.
    - `pins_expired`: left by writers that died, a week ago or more.
    - `undeletable`: packs that the server does not remove.
    - `repack_manifests`, `repack_requests`, `repack_cost`: what rewriting takes, of manifests that
      are put anew, of requests, and in dollars by the prices that were given; estimated before.
    - `repack_bytes_freed`, `repack_saves`: the bytes of which there are less for it, once the old
      packs are removed, and the dollars that saves within the horizon.
    - `batches_rewritten`: batches of names that had mostly what does not count any more, or were
      small. `batches_removed`: those that nothing needs. `tombstones_removed`: what said that names
      are deleted that no batch has any more.
    - `bytes_left`: of garbage that stays in packs that are not rewritten, as that would cost more
      than it saves, or is not to be done.
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
    repack_manifests: int = 0
    repack_requests: int = 0
    repack_cost: float = 0.0
    repack_bytes_freed: int = 0
    repack_saves: float = 0.0
    batches_rewritten: int = 0
    batches_removed: int = 0
    tombstones_removed: int = 0
    bytes_left: int = 0
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
            or self.batches_rewritten
            or self.batches_removed
            or self.tombstones_removed
            or self.undeletable
        )


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong.

    - `kind`: of what: index, config, journal, record, manifest, segment, chunk row, pack row,
      pending row, change row, meta, totals, pack, frame, stray, batches, pin, gc state, hints,
      samples, listing, key, object.
    - `severity`: "corrupt" is what is not as it was written, "missing" what is not there, "warning"
      what costs nobody any data.
    - `what`: in words.
    - `names`: those that can't be read in full because of it.
    - `pack` (hex) and `offset` (bytes): where, if it is one frame's; `chunk` (hex) where its id is
      known.
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
    """What a check found, and with `repaired`, what a repair did. Sizes are in bytes.

    - `problems`: what is wrong. `damaged_names` are the names that can't be read in full.
    - `read_frames`, `read_bytes`: what was decoded and compared with its ids.
    - `garbage`: what nothing leads to, so that the next collection takes it, or condemns it: how
      many of each kind ("packs", "pins", ...), and `garbage_bytes` altogether. It is no problem.
    - `packs_read`: for a repair that follows: what was read of a store on S3, if all of it was.
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

    def count_garbage(self, kind: str, size: int = 0, *, number: int = 1) -> None:
        if number:
            self.garbage[kind] = self.garbage.get(kind, 0) + number
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
        """Whether there is no problem, not even a warning."""
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
    """What became of an index. Sizes are in bytes.

    - `lost`: names that can't be read in full, as what they need is in no pack.
    - `lost_names`: in words, what names can't be read at all, or may be missing.
    - `kept`: where the old index is now, empty if there was none.
    - `replayed`: how often the journal put or deleted a name.
    - `unclaimed_chunks`, of `unclaimed_bytes` as stored: they came after the names that are known.
      A collection leaves them until it is told not to.
    """

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
