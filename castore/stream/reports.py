"""Garbage collection: what no name leads to goes, whoever writes meanwhile.

`local` collects a local store, `s3` one on S3, `caches` the folders that stores on S3 left in the
user's cache. Below is what a collection of any kind is
asked, and what it reports.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class GcOptions:
    """What is asked of one collection: see `Store.gc`."""

    dry_run: bool
    grace_seconds: float
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
    `packs_condemned` wait for that until `come_again`, in seconds since the epoch by the server's
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
    come_again: float | None = None
    undeletable: tuple[Undeletable, ...] = ()
    seconds: float = 0.0

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
