"""check: what is wrong with a store, and its repair."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections import Counter
from dataclasses import fields
from typing import TYPE_CHECKING

from castore.cli import exits
from castore.cli.exits import UsageError
from castore.cli.output import (
    complain,
    complain_each,
    human_size,
    open_progress,
    print_json,
    print_line,
)
from castore.cli.stores import expected_there, open_to_change, store_path
from castore.errors import ConfigLost
from castore.wording import counted

if TYPE_CHECKING:
    from castore.stream.reports import CheckReport

NAMES_SHOWN = 20  # of one problem; --verbose and --json have them all
SINGULAR = {"batches": "batch"}  # kinds of garbage that lose more than an s
ALIKE_SHOWN = 5  # problems of one kind with one pack, or with the index


def check(arguments: Namespace) -> int:
    if (arguments.yes or arguments.packs_are_lost) and not arguments.repair:
        raise UsageError("--yes and --packs-are-lost go with --repair")
    if arguments.read_data and arguments.repair:
        raise UsageError("--repair reads all data: leave out --read-data")
    import castore

    read_data = 1.0 if arguments.repair else arguments.read_data
    store = store_path(arguments)
    try:
        with expected_there(), open_progress("check") as progress:
            report = castore.check_store(store, read_data=read_data, progress=progress)
    except ConfigLost as lost:
        if not arguments.repair or not _repair_config(store, lost, arguments):
            raise
        return check(arguments)
    _print(report, arguments)
    if not arguments.repair or report.clean:
        return report.exit_code
    return _repair(report, arguments)


def _repair_config(store: str, lost: ConfigLost, arguments: Namespace) -> bool:
    """Nothing else can be looked at before; False if the user does not agree."""
    from castore.maintenance import repair_config

    complain(str(lost))
    if not arguments.yes and not _agreed():
        complain("nothing was done: repeat it with --yes to repair")
        return False
    repaired = repair_config(store)
    if repaired:
        complain(f"done: {repaired}")
    return bool(repaired)


def _repair(report: CheckReport, arguments: Namespace) -> int:
    """What would be done has been said before anything is."""
    from castore.check.plan import plan, refuse_later

    refuse_later(report, store_path(arguments))
    if len(report.missing_packs) > report.packs and not arguments.packs_are_lost:
        complain(
            f"more packs are missing ({len(report.missing_packs):,}) than there are "
            f"({report.packs:,}): bring packs/ back first (is it mounted?), or repeat with "
            "--packs-are-lost"
        )
        return report.exit_code
    steps = plan(report)
    if not steps:
        complain("there is nothing that a repair could do about that")
        return report.exit_code
    complain_each([f"to do: {step}" for step in steps], arguments)
    if not arguments.yes and not _agreed():
        complain("nothing was done: repeat it with --yes to repair")
        return report.exit_code
    with open_to_change(arguments) as store, open_progress("repair") as progress:
        lost = arguments.packs_are_lost
        after = store.check(repair=report, packs_are_lost=lost, progress=progress)
    complain_each([f"done: {step}" for step in after.repaired], arguments)
    _print(after, arguments)
    return after.exit_code


def _agreed() -> bool:
    if sys.stdin is None or not sys.stdin.isatty() or sys.stderr is None:
        return False
    print("castore: repair? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _print(report: CheckReport, arguments: Namespace) -> None:
    if arguments.json:
        for problem in report.worst_first():
            print_json(problem.document())
        told = [each.name for each in fields(report) if each.name not in ("problems", "packs_read")]
        facts = {name: getattr(report, name) for name in told}
        print_json({"exit_code": report.exit_code, "damaged_names": report.damaged_names, **facts})
        return
    _print_problems(report, everything=arguments.verbose)
    if report.garbage:
        kinds = ", ".join(
            counted(count, SINGULAR.get(kind, kind.removesuffix("s")), kind)
            for kind, count in report.garbage.items()
        )
        print_line(f"garbage, for the next gc: {kinds}; {human_size(report.garbage_bytes)}")
    verdict = {exits.OK: "whole", exits.FAILURE: "whole, with warnings"}.get(report.exit_code)
    if verdict is None:
        lost_only = all(problem.kind == "object" for problem in report.problems)
        verdict = "mended, but for what is lost" if lost_only else "damaged"
    were = "was" if report.read_frames == 1 else "were"
    print_line(
        f"{verdict}: {counted(report.names, 'name')}, "
        f"{counted(report.packs, 'pack')}, {counted(report.frames, 'frame')}, of which "
        f"{report.read_frames:,} {were} read ({human_size(report.read_bytes)}); "
        f"{counted(len(report.damaged_names), 'name')} can't be read in full"
    )


def _print_problems(report: CheckReport, *, everything: bool) -> None:
    """One pack that is cut short is wrong for each of its frames, and for each row of a chunk."""
    alike: Counter[tuple[str, str, str]] = Counter()
    for problem in report.worst_first():
        kind = problem.severity, problem.kind, problem.pack
        alike[kind] += 1
        if alike[kind] > ALIKE_SHOWN and not everything:
            continue
        print_line(f"{problem.severity}: {problem.what}")
        shown = len(problem.names) if everything else NAMES_SHOWN
        for name in problem.names[:shown]:
            print_line(f"    {name}")
        if len(problem.names) > shown:
            print_line(f"    and {counted(len(problem.names) - shown, 'more name')}")
    for (severity, what, pack), count in alike.items():
        if count > ALIKE_SHOWN and not everything:
            where = f", of pack {pack}" if pack else ""
            more = f"{count - ALIKE_SHOWN:,} more like it ({what}{where})"
            print_line(f"{severity}: and {more}; --verbose lists all")
