"""put: files, folders and standard input."""

from __future__ import annotations

import os
import stat
import sys
from argparse import Namespace
from collections.abc import Iterable
from contextlib import nullcontext
from typing import TYPE_CHECKING

from castore.cli import exits
from castore.cli.exits import Failure, UsageError
from castore.cli.leftout import LeftOut
from castore.cli.names import prefix_to_fill
from castore.cli.output import (
    ProgressBar,
    complain,
    object_document,
    open_progress,
    print_json,
)
from castore.cli.stores import open_to_fill, store_path
from castore.model import ObjectInfo, as_prefix, encode_name
from castore.stream.fileputs import FileOptions
from castore.system.walk import FoundFile, Skipped, walk
from castore.transfer.imports import Source, batches, import_folder, outcome_of_skipped
from castore.wording import counted

if TYPE_CHECKING:
    from castore.store import Store


def put(arguments: Namespace) -> int:
    if arguments.like is not None:
        encode_name(arguments.like)
        if arguments.recursive or len(arguments.paths) > 2:
            raise UsageError("--like is for one file")
    if arguments.paths[0] == "-" and len(arguments.paths) <= 2:
        return _put_stdin(arguments)
    if arguments.recursive:
        if len(arguments.paths) > 2:
            raise UsageError("put -R takes one folder and the prefix to put it below")
        if os.path.isdir(arguments.paths[0]):
            return _put_folder(arguments)
    return _put_files(arguments)


def plan_files(paths: list[str]) -> list[Source]:
    """The names that `put FILE`, `put FILE NAME` and `put FILE... PREFIX/` mean.

    Everything that can be told without reading the files is checked here, before anything is put.
    """
    *files, target = paths if len(paths) > 1 else [*paths, "/"]
    if not target:
        raise UsageError("the name is empty: give one, or a prefix such as '/'")
    is_prefix = target.endswith("/")
    if len(files) > 1 and not is_prefix:
        raise UsageError(
            f"to put {counted(len(files), 'file')}, end with a prefix, such as {target + '/'!r}; "
            f"{target!r} is one name"
        )
    sources: dict[str, Source] = {}
    for path in files:
        name = as_prefix(target) + os.path.basename(path) if is_prefix else target
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            raise Failure(
                f"{path} is a folder: castore put -R {path} {target.lstrip('/') or 'PREFIX'}"
            )
        encode_name(name)
        if name in sources:
            raise UsageError(f"{sources[name].path} and {path} would both be put as {name!r}")
        sources[name] = Source(path, name, status.st_size, stat.S_ISREG(status.st_mode))
    return list(sources.values())


def _put_stdin(arguments: Namespace) -> int:
    if arguments.recursive:
        raise UsageError("put -R takes a folder, not standard input")
    name = arguments.paths[-1]
    if len(arguments.paths) < 2 or name.endswith("/"):
        raise UsageError("standard input has no name of its own: castore put - NAME")
    encode_name(name)
    if sys.stdin is None:
        raise Failure("standard input is closed")
    with open_to_fill(arguments) as store, open_progress(name) as progress:
        # Unbuffered, so that a Ctrl-C between two blocks is not left waiting for the next ones.
        stdin = getattr(sys.stdin.buffer, "raw", sys.stdin.buffer)
        info = store.put(
            name, stdin, if_absent=arguments.if_absent, progress=progress, like=arguments.like
        )
    _print_objects([info], arguments)
    return exits.OK


def _put_files(arguments: Namespace) -> int:
    sources = plan_files(arguments.paths)
    label = sources[0].name if len(sources) == 1 else counted(len(sources), "file")
    size = sum(source.size for source in sources)
    with open_to_fill(arguments) as store, open_progress(label, size) as progress:
        _put_in_batches(store, sources, arguments, progress)
    return exits.OK


def _put_folder(arguments: Namespace) -> int:
    folder, *targets = arguments.paths
    prefix = prefix_to_fill(targets[0] if targets else os.path.basename(os.path.abspath(folder)))
    report = LeftOut(arguments)
    skipped = _skipped_of_all(folder, store_path(arguments))
    if skipped is not None:
        for each in skipped:
            report.add(outcome_of_skipped(each))
        code = report.finish()
        what = "file that can be put" if code else "regular files"
        complain(f"{folder} holds no {what}: nothing to put")
        return code
    options = FileOptions(keep_time=False, skip_same=False, if_absent=arguments.if_absent)
    with open_to_fill(arguments) as store, open_progress(folder) as progress:
        try:
            for outcome in import_folder(
                store, folder, prefix, options, threads=store.threads, progress=progress
            ):
                report.add(outcome)
                _print_objects([] if outcome.info is None else [outcome.info], arguments)
        except BaseException:
            _complain_of_the_rest(report.report.files)
            raise
    return report.finish()


def _skipped_of_all(folder: str, store_folder: str) -> list[Skipped] | None:
    """What is left out of a folder in which there is no file; None for one in which there is."""
    skipped: list[Skipped] = []
    for each in walk(folder, leave_out=store_folder):
        if isinstance(each, FoundFile):
            return None
        skipped.append(each)
    return skipped


def _put_in_batches(
    store: Store, sources: Iterable[Source], arguments: Namespace, progress: ProgressBar | None
) -> None:
    published = 0
    try:
        for batch in batches(sources):
            _print_objects(_put_batch(store, batch, arguments, progress), arguments)
            published += len(batch)
    except BaseException:
        _complain_of_the_rest(published)
        raise


def _complain_of_the_rest(published: int) -> None:
    if published:
        complain(f"{counted(published, 'file')} put, and not all the others, because of:")


def _put_batch(
    store: Store, batch: list[Source], arguments: Namespace, progress: ProgressBar | None
) -> list[ObjectInfo]:
    infos = []
    with store.transaction() as transaction:
        for source in batch:
            # Else it is a pipe, such as the shell's <(command).
            path = source.path
            with nullcontext(path) if source.is_regular else open(path, "rb") as file:
                info = transaction.put(
                    source.name,
                    file,
                    if_absent=arguments.if_absent,
                    progress=progress,
                    like=arguments.like,
                )
            infos.append(info)
    return infos


def _print_objects(infos: list[ObjectInfo], arguments: Namespace) -> None:
    if arguments.json:
        for info in infos:
            print_json(object_document(info))
