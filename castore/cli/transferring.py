"""export and import: objects to plain files and back, going on where the last one stopped."""

from __future__ import annotations

from argparse import Namespace
from typing import TYPE_CHECKING

from castore.cli import exits
from castore.cli.opening import open_to_fill, open_to_read
from castore.cli.output import complain, counted, human_size, open_progress, print_json, print_line

if TYPE_CHECKING:
    from castore.transfer import TransferReport


def export(arguments: Namespace) -> int:
    with open_to_read(arguments) as store, open_progress(arguments.prefix) as progress:
        report = store.export_folder(arguments.prefix, arguments.folder, progress=progress)
    _print(report, "written", arguments)
    if report.damaged:
        return exits.CORRUPT
    return exits.FAILURE if report.left_out else exits.OK


def import_(arguments: Namespace) -> int:
    with open_to_fill(arguments) as store, open_progress(arguments.folder) as progress:
        report = store.import_folder(arguments.folder, arguments.prefix, progress=progress)
    _print(report, "put", arguments)
    return exits.FAILURE if report.left_out else exits.OK


def _print(report: TransferReport, done: str, arguments: Namespace) -> None:
    for what, reason in report.left_out:
        complain(f"{what} is left out: {reason}")
    if arguments.json:
        print_json(vars(report))
    else:
        print_line(
            f"{counted(report.files, 'file')} {done} ({human_size(report.bytes)}), "
            f"{report.same_files:,} the same already ({human_size(report.same_bytes)}), "
            f"{len(report.left_out):,} left out"
        )
