"""gc: give back the space of what no name leads to."""

from __future__ import annotations

import dataclasses
import time
from argparse import Namespace

from castore.cli import exits
from castore.cli.output import (
    complain,
    human_size,
    open_progress,
    print_json,
    print_line,
    print_table,
)
from castore.cli.stores import open_to_change, open_to_read
from castore.stream.reports import GcReport
from castore.wording import counted


def gc(arguments: Namespace) -> int:
    opening = open_to_read if arguments.dry_run else open_to_change
    with opening(arguments) as store, open_progress("gc") as bar:
        report = store.gc(
            dry_run=arguments.dry_run,
            grace_s=arguments.grace,
            repack_below=arguments.repack_below,
            max_repack_bytes=arguments.max_repack_bytes,
            max_cost=arguments.max_cost,
            horizon_s=arguments.horizon,
            alone=arguments.alone,
            carry_undeletable=arguments.carry_undeletable,
            accept_unclaimed=arguments.accept_unclaimed,
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
        print_line(f"nothing to collect in {counted(report.objects, 'object')}")
    else:
        print_table(_rows(report), right=(1,))
        if report.dry_run:
            print_line("this is what would be done: nothing was")
    if report.repack_requests:
        print_line(_cost(report))
    if report.bytes_left:
        left = human_size(report.bytes_left)
        print_line(f"{left} of garbage stay in packs that are in use otherwise")
    if report.next_run_at is not None:
        minute = -(-report.next_run_at // 60) * 60  # the first that is not too early
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(minute))
        print_line(f"what is condemned can be removed from {when} on: collect again then")
    if report.packs_busy:
        print_line(f"{counted(report.packs_busy, 'pack')} left, whose writers are at work")


def _rows(report: GcReport) -> list[tuple[str, str, str]]:
    """What was done, and no zeros: a store on S3 counts no chunks, and at first condemns only."""
    would_be = "would be " if report.dry_run else ""
    freed = "freed" if report.bytes_freed >= 0 else "used"
    net = "net of what is rewritten" if report.bytes_freed >= 0 else "more than before"
    packs = "pack" if report.packs_condemned == 1 else "packs"
    rows = [
        (report.chunks_removed, "chunks", f"{would_be}removed, of {_all_chunks(report):,}"),
        (report.manifests_removed, "manifests", f"{would_be}removed: no name leads to them"),
        (report.packs_removed, "packs", _packs(report)),
        (report.packs_sealed, "packs", f"{would_be}sealed, whose writers had ended without"),
        (human_size(report.bytes_rewritten), "rewritten", _rewritten(report)),
        (human_size(abs(report.bytes_freed)), freed, net),
        (report.packs_condemned, "condemned", f"{packs}, {human_size(report.bytes_condemned)}"),
        (report.pins_expired, "pins", "of writers that died, expired"),
        (report.batches_rewritten, "batches", "of names rewritten, of which few counted any more"),
        (report.batches_removed, "batches", "of names removed: nothing needs them"),
        (report.tombstones_removed, "tombstones", "of names that no batch has any more, removed"),
        (
            report.leftovers_removed,
            "leftovers",
            "of restores, rebuilds or who made the store, removed",
        ),
        (
            report.caches_removed,
            "caches",
            f"unused for 30 days, {human_size(report.cache_bytes_freed)}",
        ),
    ]
    return [
        (what, found if isinstance(found, str) else f"{found:,}", more)
        for found, what, more in rows
        if found not in (0, "0 B")
    ]


def _cost(report: GcReport) -> str:
    """Of repacking on S3."""
    costs, frees = ("would cost", "free") if report.dry_run else ("costs", "frees")
    requests = counted(report.repack_requests, "request")
    manifests = counted(report.repack_manifests, "manifest")
    return (
        f"repacking {costs} ${report.repack_cost:.4f}, for {requests} "
        f"({manifests} put anew), and {frees} {human_size(report.repack_bytes_freed)}, which saves "
        f"${report.repack_saves:.4f} within the horizon"
    )


def _all_chunks(report: GcReport) -> int:
    return report.chunks + report.chunks_removed


def _packs(report: GcReport) -> str:
    """Those that were rewritten are told of where they are: on S3 they go with a later run."""
    orphans = f", {report.orphans_removed:,} of which no commit had named"
    would_be = "would be " if report.dry_run else ""
    return f"{would_be}removed{orphans * (report.orphans_removed > 0)}"


def _rewritten(report: GcReport) -> str:
    would_be = "would be " if report.dry_run else ""
    return f"{would_be}copied from {counted(report.packs_rewritten, 'pack')}: still in use"
