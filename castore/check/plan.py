"""What a repair would do about what a check found, in words. Pure."""

from __future__ import annotations

from collections import Counter

from castore.stream.reports import CheckReport

COUNTED = {
    "chunk row": "lead {} rows of chunks to their frames, or drop those that have none: what they "
    "are of is stored anew by the next put of it",
    "segment": "put {} segments whose keys are damaged where they belong",
    "pack row": "write the rows of {} packs anew",
    "meta": "put right, or drop, {} rows of the index that say what can't be",
    "totals": "count the totals anew",
    "gc state": "put a flipped bit right in what collectors announce; if their list of condemned "
    "packs is lost, condemn all packs that no name has",
    "hints": "write the hints anew",
    "samples": "remove them",
    "pin": "move {} pins that can't be read below quarantine/",
}


def plan(report: CheckReport) -> list[str]:
    """A line for each step; none if there is nothing that a repair could do."""
    steps = []
    packs: dict[str, None] = {}
    missing: dict[str, None] = {}
    counts: Counter[str] = Counter()
    for problem in report.problems:
        counts[problem.kind] += 1
        if problem.kind in ("pack", "frame") and problem.pack:
            is_gone = problem.kind == "pack" and problem.what.endswith("is missing")
            (missing if is_gone else packs)[problem.pack] = None
    for pack in packs:
        steps.append(
            f"copy the intact frames of pack {pack} to a new pack, and move it to quarantine/"
        )
    steps += [f"read what was in pack {pack} from other packs, if they have it" for pack in missing]
    steps += [
        f"{name}: read it from other copies of its chunks; if there are none, move it below "
        "quarantine/, with its intact bytes"
        for name in report.damaged_names
    ]
    steps += [text.format(counts[kind]) for kind, text in COUNTED.items() if counts[kind]]
    return steps
