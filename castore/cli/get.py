"""get and cat: objects to files and to standard output."""

from __future__ import annotations

import os
from argparse import Namespace
from typing import TYPE_CHECKING

from castore.cli import exits
from castore.cli.exits import Failure, UsageError
from castore.cli.leftout import LeftOut, one_by_one
from castore.cli.names import naming_folders
from castore.cli.output import (
    ProgressBar,
    object_document,
    open_progress,
    print_json,
    stdout,
)
from castore.cli.stores import open_to_read
from castore.errors import CastoreError, NameNotFound, describe_os_error
from castore.model import ObjectInfo, as_prefix, encode_name, sort_key
from castore.system.fileio import write_stream
from castore.wording import counted

if TYPE_CHECKING:
    from castore.store import Store
    from castore.transfer.outcomes import Outcome

COPY_BYTES = 1 << 20
_OF_FOLDER = "get -R {} FOLDER"  # what gets all below a name


def get(arguments: Namespace) -> int:
    if arguments.recursive:
        return _get_folder(arguments)
    *names, target = arguments.names if len(arguments.names) > 1 else [*arguments.names, "."]
    if target == "-":
        _refuse_json(arguments)
        return _print_objects(names, arguments)
    is_folder = os.path.isdir(target)
    if len(names) > 1 and not is_folder:
        raise UsageError(
            f"to get {counted(len(names), 'object')}, end with a folder; {target!r} is none"
        )
    if target.endswith("/") and not is_folder:
        raise Failure(f"there is no folder {target}: make it first")
    paths = {_path_of(name, target) if is_folder else target: name for name in names}
    if len(paths) < len(names):
        raise UsageError(
            f"two of the names would be written to the same file in {target!r}: get "
            "each to a FILE of its own"
        )
    label = names[0] if len(names) == 1 else counted(len(names), "object")
    with open_to_read(arguments) as store, open_progress(label) as progress:
        if progress is not None:
            progress.fix_size(sum(_size_of(store, name) for name in names))

        def write(path: str) -> None:
            with naming_folders(store, _OF_FOLDER):
                info = _written(store, paths[path], path, progress, goes_on=len(paths) > 1)
            if arguments.json:
                print_json({"file": path, **object_document(info)})

        return one_by_one(list(paths), write, arguments, names=paths)


def _size_of(store: Store, name: str) -> int:
    """0 for what is missing or damaged: why, is told when it is its turn."""
    try:
        return store.size(name)
    except (NameNotFound, *exits.DAMAGE):
        return 0


def _written(
    store: Store, name: str, path: str, progress: ProgressBar | None, *, goes_on: bool
) -> ObjectInfo:
    """Raises Failure for what keeps this file from being written, and not the others that come
    after it."""
    if os.path.isdir(path):  # which `Store.get` takes for where to put the file
        raise Failure(f"{path} is a folder")
    try:
        return store.get(name, path, progress=progress)
    except OSError as error:
        from castore.transfer.export import NO_MORE_WRITES

        if not goes_on or isinstance(error, CastoreError) or error.errno in NO_MORE_WRITES:
            raise
        raise Failure(describe_os_error(error)) from error


def cat(arguments: Namespace) -> int:
    _refuse_json(arguments)
    if arguments.range is None:
        return _print_objects(arguments.names, arguments)
    if len(arguments.names) > 1:
        raise UsageError("--range takes one NAME")
    [name] = arguments.names
    with open_to_read(arguments) as store, naming_folders(store, _OF_FOLDER):
        _copy_range(store, name, *arguments.range)
    return exits.OK


def _refuse_json(arguments: Namespace) -> None:
    if arguments.json:
        raise UsageError(
            "objects that are printed are no JSON: leave --json out, or see castore stat --json"
        )


def _print_objects(names: list[str], arguments: Namespace) -> int:
    with open_to_read(arguments) as store:

        def write(name: str) -> None:
            with naming_folders(store, _OF_FOLDER):
                store.get(name, stdout().buffer)

        return one_by_one(names, write, arguments)


def _get_folder(arguments: Namespace) -> int:
    if len(arguments.names) != 2:
        raise UsageError("get -R takes a prefix and a folder: castore get -R PREFIX FOLDER")
    prefix, folder = arguments.names
    from castore.cli.transfer import write_folder  # one object is got without

    last = ""

    def tell(outcome: Outcome) -> None:
        """Unless it was told of before the damage was met."""
        nonlocal last
        if outcome.info is not None and sort_key(outcome.what) > sort_key(last):
            last = outcome.what
            if arguments.json:
                path = os.path.join(folder, last[len(as_prefix(prefix)) :])
                print_json({"file": path, **object_document(outcome.info)})

    return write_folder(arguments, prefix, folder, keep=False, tell=tell, finish=LeftOut.finish)


def _copy_range(store: Store, name: str, begin: int, end: int | None) -> None:
    output = stdout().buffer
    with store.open(name, "rb") as source:
        size = source.info.size
        left = max(0, (size if end is None else min(end, size)) - begin)
        if left:
            source.seek(begin)
        while left:
            block = source.read(min(left, COPY_BYTES))
            if not block:
                raise Failure(f"{name} ended {counted(left, 'byte')} early")
            write_stream(output, block)
            left -= len(block)


def _path_of(name: str, folder: str) -> str:
    encode_name(name)  # one that can't be is wrong by itself
    last = name.rsplit("/", 1)[-1]
    if not last:
        raise UsageError(f"{name!r} ends with '/': give the file to write it to")
    return os.path.join(folder, last)
