"""gc: give back the space of what no name leads to."""

from __future__ import annotations

import dataclasses
import time
from argparse import Namespace

from castore.cli import exits
from castore.cli.opening import open_to_change, open_to_read
from castore.cli.output import (
    complain,
    human_size,
    open_progress,
    print_json,
    print_line,
    print_table,
)
from castore.gc import GcReport


def gc(arguments: Namespace) -> int:
    opening = open_to_read if arguments.dry_run else open_to_change
    with opening(arguments) as store, open_progress("gc") as bar:
        report = store.gc(
            dry_run=arguments.dry_run,
            grace=arguments.grace,
            max_repack_bytes=arguments.max_repack_bytes,
            alone=arguments.alone,
            carry_undeletable=arguments.carry_undeletable,
            progress=bar,
        )
    if arguments.json:
        print_json(dataclasses.asdict(report))
    else:
        _print_report(report)
    for damage in report.damaged:
        complain(
            f"chunk {damage.chunk_id} is damaged at byte {damage.offset} of pack "
            f"{damage.pack_id}, which was left as it is: {damage.reason}"
        )
    for pack_id in report.missing:
        complain(f"pack {pack_id} is missing, and names need it: restore it from a backup")
    for undeletable in report.undeletable:
        complain(f"pack {undeletable.pack_id} can't be removed: {undeletable.reason}")
    if report.undeletable:
        complain("let the server remove them and collect again, or go on: --carry-undeletable")
    if report.damaged or report.missing:
        return exits.CORRUPT
    return exits.FAILURE if report.undeletable else exits.OK


def _print_report(report: GcReport) -> None:
    if report.found_nothing:
        print_line(f"nothing to collect in {report.objects:,} objects")
    else:
        rows = [
            ("chunks", f"{report.chunks_removed:,}", f"removed, of {_all_chunks(report):,}"),
            ("packs", f"{report.packs_removed:,}", _packs(report)),
            ("rewritten", human_size(report.bytes_rewritten), "frames still in use, moved"),
            ("freed", human_size(report.bytes_freed), "on balance"),
        ]
        if report.packs_condemned:
            size = human_size(report.bytes_condemned)
            rows.append(("condemned", f"{report.packs_condemned:,}", f"packs, {size}"))
        if report.pins_expired:
            rows.append(("pins", f"{report.pins_expired:,}", "of writers that died, expired"))
        if report.caches_removed:
            size = human_size(report.cache_bytes_freed)
            rows.append(("caches", f"{report.caches_removed:,}", f"unused for 30 days, {size}"))
        print_table(rows, right=(1,))
        if report.dry_run:
            print_line("this is what would be done: nothing was")
    if report.come_again is not None:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(report.come_again))
        print_line(f"what is condemned can be removed from {when} on: collect again then")
    if report.packs_busy:
        print_line(f"{report.packs_busy:,} packs are left, whose writers are at work")


def _all_chunks(report: GcReport) -> int:
    return report.chunks + report.chunks_removed


def _packs(report: GcReport) -> str:
    return f"removed: {report.packs_rewritten:,} rewritten, {report.orphans_removed:,} orphans"
