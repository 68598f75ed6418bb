"""What a repair would do about what a check found, in words. Pure."""

from __future__ import annotations

from collections import Counter

from castore.errors import UPGRADE, RepairRefused, UnsupportedFormat
from castore.stream.reports import CheckReport
from castore.wording import counted

COUNTED = {
    "config": "write castore.json anew, as castore does, with all that it says, or said",
    "batches": "put right, or make anew, what says which names are in batches; of a batch that is "
    "beyond that, the names that only it has are lost",
    "chunk row": "lead {row} of chunks to a frame, or drop what has none: such a chunk is stored "
    "anew by the next put of it",
    "segment": "put right what has one bit flipped, or its key damaged, in {segment}",
    "pack row": "write {row} of packs anew",
    "stray": "move {file} below packs/ to where each belongs, or below quarantine/ if that is "
    "nowhere",
    "pending row": "drop damaged rows of objects that were being put",
    "change row": "drop what a collection that was cut off left in the index",
    "meta": "put right, or drop, what can't be: {row} of the index",
    "totals": "count the totals anew",
    "gc state": "put a flipped bit right in what collectors announce; if their list of condemned "
    "packs is lost, condemn all packs that no name has",
    "hints": "move {object} of hints that can't be read below quarantine/",
    "samples": "move {object} of samples that can't be read below quarantine/",
    "listing": "move {listing} that can't be read below quarantine/",
    "pin": "move {pin} that can't be read below quarantine/, each once it is a week old",
}
THINGS = ("file", "listing", "object", "pin", "row", "segment")


def plan(report: CheckReport) -> list[str]:
    """A line for each step; none if there is nothing that a repair could do."""
    steps = []
    packs: dict[str, None] = {}
    missing: dict[str, None] = {}
    counts: Counter[str] = Counter()
    for problem in report.problems:
        if (problem.kind, problem.severity) == ("config", "corrupt"):
            continue  # what it was can't be told
        counts[problem.kind] += 1
        if problem.kind in ("pack", "frame") and problem.pack:
            is_gone = problem.kind == "pack" and problem.what.endswith("is missing")
            (missing if is_gone else packs)[problem.pack] = None
    for pack in packs:
        steps.append(
            f"copy the intact frames of pack {pack} to a new pack, and keep it below quarantine/"
        )
    steps += [f"read what was in pack {pack} from other packs, if they have it" for pack in missing]
    steps += [
        f"{name}: read it from other copies of its chunks; if there are none, move it below "
        "quarantine/, with its intact bytes"
        for name in report.damaged_names
    ]
    for kind, text in COUNTED.items():
        if counts[kind]:
            words = {thing: counted(counts[kind], thing) for thing in THINGS}
            steps.append(text.format(**words))
    return steps


def refuse_later(report: CheckReport, store: str) -> None:
    """Raises UnsupportedFormat where a record, or a pack, is of a later castore's: to that one it
    is whole, and only that one can tell what it leads to. (It has its checksum: no flipped bit made
    it so.)"""
    for problem in report.problems:
        if problem.kind in ("record", "pack") and problem.what.endswith(UPGRADE):
            raise UnsupportedFormat(f"{store} is repaired by a later castore only: {problem.what}")


def refuse_most_missing(report: CheckReport, store: str) -> None:
    """Raises RepairRefused where more packs are missing than are there."""
    missing, there = len(report.missing_packs), report.packs
    if missing > there:
        raise RepairRefused(
            f"{store} lacks {counted(missing, 'pack')}, and has {there:,}: bring packs/ back first "
            "(is it mounted?), or say that they are lost (packs_are_lost=True)"
        )
