"""backup, restore and index rebuild: an index is copied, put back, made anew."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import asdict
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
from castore.cli.stores import expected_there, open_to_read, store_path
from castore.wording import counted

if TYPE_CHECKING:
    from castore.stream.reports import RebuildReport


def backup(arguments: Namespace) -> int:
    _refuse_stream(arguments.file)
    with open_to_read(arguments) as store, open_progress("backup") as progress:
        report = store.backup(arguments.file, progress=progress)
    if arguments.json:
        print_json(asdict(report))
    else:
        print_line(f"{report.path}: {counted(report.names, 'name')}, {human_size(report.bytes)}")
    return exits.OK


def restore(arguments: Namespace) -> int:
    import castore

    _refuse_stream(arguments.file)
    report = castore.restore(arguments.file, store_path(arguments), force=arguments.force)
    return _print(report, arguments)


def _refuse_stream(path: str) -> None:
    if path == "-":
        raise UsageError("a backup is a file: give a path (./- for a file that is named so)")


def index(arguments: Namespace) -> int:
    import castore

    if arguments.action == "compact":
        with expected_there():
            compacted = castore.compact_index(store_path(arguments))
        if arguments.json:
            print_json(asdict(compacted))
        else:
            sizes = (human_size(compacted.bytes_before), human_size(compacted.bytes_after))
            print_line(f"{counted(compacted.names, 'name')}, {sizes[0]} before, {sizes[1]} now")
        return exits.OK
    with expected_there(), open_progress("packs") as progress:
        report = castore.rebuild_index(store_path(arguments), progress=progress)
    return _print(report, arguments)


def _print(report: RebuildReport, arguments: Namespace) -> int:
    if arguments.json:
        print_json(asdict(report))
    else:
        print_line(
            f"{counted(report.names, 'name')}, {counted(report.chunks, 'chunk')} in "
            f"{counted(report.packs, 'pack')}; "
            f"index rows of chunks: {report.chunk_rows_added:,} added, "
            f"{report.chunk_rows_dropped:,} removed; "
            f"{counted(report.extents_moved, 'part')} of objects led to another copy"
        )
        if report.replayed:
            print_line(f"{counted(report.replayed, 'change')} of names taken from the journal")
        if report.kept:
            print_line(f"the old index is in {report.kept}: remove it when all is well")
    why = "can't be read in full: bring the packs that it needs back, and run castore check"
    complain_each([f"{name} {why}" for name in report.lost], arguments)
    for names in report.lost_names:
        complain(f"{names} are lost: a backup may have them (castore restore)")
    if report.unclaimed_chunks:
        complain(
            f"{human_size(report.unclaimed_bytes)} in {counted(report.unclaimed_chunks, 'chunk')} "
            "that no name leads to were stored after these names were: gc leaves them until it is "
            "told to --accept-unclaimed"
        )
    return exits.NOT_FOUND if report.lost or report.lost_names else exits.OK
