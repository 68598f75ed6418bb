"""export and import: objects to plain files and back, going on where the last one stopped."""

from __future__ import annotations

from argparse import Namespace
from typing import TYPE_CHECKING

from castore.cli.exits import UsageError
from castore.cli.leftout import LeftOut
from castore.cli.output import counted, human_size, open_progress, print_json, print_line
from castore.cli.salvage import read_all
from castore.cli.stores import open_to_fill

if TYPE_CHECKING:
    from castore.store import Store


def export(arguments: Namespace) -> int:
    if arguments.folder == "-":
        raise UsageError("export writes files: give a folder (./- for one that is named so)")
    from castore.system.open_folders import refuse_open_store_paths
    from castore.transfer import THREADS_MAX, export_folder

    def work(store: Store, is_damaged: bool) -> int:
        left_out = LeftOut(arguments)
        with open_progress(arguments.prefix) as progress:
            refuse_open_store_paths(arguments.folder)
            for outcome in export_folder(
                store,
                arguments.prefix,
                arguments.folder,
                keep_time=True,
                skip_same=True,
                past_damage=is_damaged,
                threads=THREADS_MAX,
                progress=progress,
            ):
                left_out.add(outcome)
        return _finish(left_out, "written", arguments)

    return read_all(arguments, work)


def import_(arguments: Namespace) -> int:
    from castore.transfer import THREADS_MAX, ImportOptions, import_folder

    left_out = LeftOut(arguments)
    with open_to_fill(arguments) as store, open_progress(arguments.folder) as progress:
        for outcome in import_folder(
            store,
            arguments.folder,
            arguments.prefix,
            ImportOptions(checksum=arguments.checksum),
            threads=THREADS_MAX,
            progress=progress,
        ):
            left_out.add(outcome)
    return _finish(left_out, "put", arguments)


def _finish(left_out: LeftOut, done: str, arguments: Namespace) -> int:
    report = left_out.report
    code = left_out.finish()
    if arguments.json:
        print_json(vars(report))
    else:
        print_line(
            f"{counted(report.files, 'file')} {done} ({human_size(report.bytes)}), "
            f"{report.same_files:,} the same already ({human_size(report.same_bytes)}), "
            f"{len(report.left_out):,} left out"
        )
    return code
