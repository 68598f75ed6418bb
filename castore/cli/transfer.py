"""export and import: objects to plain files and back, going on where the last one stopped."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Callable
from typing import TYPE_CHECKING

from castore.cli.exits import UsageError
from castore.cli.leftout import LeftOut
from castore.cli.names import prefix_to_fill
from castore.cli.output import human_size, open_progress, print_json, print_line
from castore.cli.salvage import read_all
from castore.cli.stores import open_to_fill
from castore.wording import counted

if TYPE_CHECKING:
    from castore.store import Store
    from castore.transfer.outcomes import Outcome


def export(arguments: Namespace) -> int:
    return write_folder(
        arguments,
        arguments.prefix,
        arguments.folder,
        keep=True,
        tell=lambda _: None,
        finish=lambda left_out: _finish(left_out, "written", arguments),
    )


def write_folder(
    arguments: Namespace,
    prefix: str,
    folder: str,
    *,
    keep: bool,
    tell: Callable[[Outcome], object],
    finish: Callable[[LeftOut], int],
) -> int:
    """Write all below a prefix to files, of a store whose index may be damaged. With `keep` files
    get their objects' times, and those that are the same already are kept; `tell` is told of each,
    and `finish` gives the exit code."""
    if folder == "-":
        verb = f"{arguments.verb} -R" if arguments.verb == "get" else arguments.verb
        raise UsageError(f"{verb} writes files: give a folder (./- for one that is named so)")
    # As late as the store itself: they load lmdb.
    from castore.system.open_folders import refuse_open_store_paths
    from castore.transfer.export import export_folder

    def work(store: Store, is_damaged: bool) -> int:
        left_out = LeftOut(arguments)
        with open_progress(prefix) as progress:
            refuse_open_store_paths(folder)
            for outcome in export_folder(
                store,
                prefix,
                folder,
                keep_time=keep,
                skip_same=keep,
                past_damage=is_damaged,
                threads=store.threads,
                progress=progress,
            ):
                left_out.add(outcome)
                tell(outcome)
        return finish(left_out)

    return read_all(arguments, work)


def import_(arguments: Namespace) -> int:
    from castore.stream.fileputs import FileOptions
    from castore.transfer.imports import import_folder

    left_out = LeftOut(arguments)
    # Before there is a store for nothing.
    prefix = prefix_to_fill(arguments.prefix)
    if not os.path.isdir(arguments.folder):
        os.listdir(arguments.folder)  # says which error it is
    with open_to_fill(arguments) as store, open_progress(arguments.folder) as progress:
        for outcome in import_folder(
            store,
            arguments.folder,
            prefix,
            FileOptions(checksum=arguments.checksum),
            threads=store.threads,
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
