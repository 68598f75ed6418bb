"""What a collection of a local store works on, as its steps take it."""

from __future__ import annotations

from dataclasses import dataclass

from castore.local.packs import LocalPacks
from castore.model import Stages
from castore.stream.reports import GcReport
from castore.system.lmdb_env import Index


@dataclass(frozen=True, slots=True)
class Parts:
    """`report` is filled in as it goes; with its `dry_run` nothing else is changed."""

    index: Index
    packs: LocalPacks
    seed: int
    report: GcReport
    stages: Stages
