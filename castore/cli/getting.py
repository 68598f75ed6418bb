"""get and cat: objects to files and to standard output."""

from __future__ import annotations

import contextlib
import os
from argparse import Namespace
from collections.abc import Iterator
from typing import TYPE_CHECKING

from castore.cli import exits
from castore.cli.exits import Failure, UsageError
from castore.cli.naming import of_folder
from castore.cli.opening import open_to_read
from castore.cli.output import (
    ProgressBar,
    complain,
    object_document,
    open_progress,
    print_json,
    stdout,
)
from castore.errors import NameNotFound
from castore.model import ObjectInfo, as_prefix

if TYPE_CHECKING:
    from castore.store import Store

COPY_BYTES = 1 << 20


def get(arguments: Namespace) -> int:
    if arguments.recursive:
        return _get_folder(arguments)
    *names, target = arguments.names if len(arguments.names) > 1 else [*arguments.names, "."]
    if target == "-":
        return _get_to_stdout(arguments, names)
    is_folder = os.path.isdir(target)
    if len(names) > 1 and not is_folder:
        raise UsageError(f"to get {len(names)} objects, end with a folder; {target!r} is none")
    if target.endswith("/") and not is_folder:
        raise Failure(f"there is no folder {target}")
    paths = {_path_of(name, target) if is_folder else target: name for name in names}
    if len(paths) < len(names):
        raise UsageError(f"two of the names would be written to the same file in {target!r}")
    label = names[0] if len(names) == 1 else f"{len(names)} objects"
    with (
        open_to_read(arguments) as store,
        _folders_named(store),
        open_progress(label) as progress,
    ):
        if progress is not None:
            progress.fix_size(sum(store.size(name) for name in names))
        for path, name in paths.items():
            _print_file(store.get(name, path, progress=progress), path, arguments)
    return exits.OK


def cat(arguments: Namespace) -> int:
    _refuse_json(arguments)
    if arguments.range is not None and len(arguments.names) > 1:
        raise UsageError("--range takes one NAME")
    with open_to_read(arguments) as store, _folders_named(store):
        for name in arguments.names:
            if arguments.range is None:
                store.get(name, stdout().buffer)
            else:
                _copy_range(store, name, *arguments.range)
    return exits.OK


def _refuse_json(arguments: Namespace) -> None:
    if arguments.json:
        raise UsageError(
            "objects that are printed are no JSON: leave --json out, or see castore stat --json"
        )


def _get_to_stdout(arguments: Namespace, names: list[str]) -> int:
    _refuse_json(arguments)
    with open_to_read(arguments) as store, _folders_named(store):
        for name in names:
            store.get(name, stdout().buffer)
    return exits.OK


def _get_folder(arguments: Namespace) -> int:
    if len(arguments.names) != 2:
        raise UsageError("get -R takes a prefix and a folder: castore get -R PREFIX FOLDER")
    stem, folder = arguments.names
    from castore.local import refuse_open_store_paths  # loads lmdb: as late as the store itself

    prefix = as_prefix(stem)
    stem = prefix.rstrip("/")
    with open_to_read(arguments) as store, open_progress(stem or "all") as progress:
        refuse_open_store_paths(folder)  # as each file would, but before a folder is made there
        if progress is not None:
            progress.fix_size(sum(info.size for info in store.list(prefix)))
        return _get_all(store, prefix, folder, arguments, progress)


def _get_all(
    store: Store, prefix: str, folder: str, arguments: Namespace, progress: ProgressBar | None
) -> int:
    code = exits.OK
    found = False
    for name in store.names(prefix):
        inner = name[len(prefix) :]
        found = True
        if "" in inner.split("/"):
            # 'a/' and 'a//b' are names, but no paths: they would land on 'a' or 'a/b'.
            complain(f"{name} is left out: it has an empty part, which a file's path can't have")
            code = max(code, exits.FAILURE)
            continue
        path = os.path.join(folder, inner)
        try:
            os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise Failure(f"{name} can't be written to {path}: a file is in its way") from error
        try:
            if os.path.isdir(path):
                raise Failure(f"{name} can't be written to {path}: it is a folder")
            _print_file(store.get(name, path, progress=progress), path, arguments)
        except exits.DAMAGE as error:
            # One damaged object does not take the others' bytes away.
            complain(f"{name} is left out: {error}")
            code = exits.CORRUPT
    if not found and prefix:
        raise NameNotFound(prefix)
    return code


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
                raise Failure(f"{name} ended {left} bytes early")
            output.write(block)
            left -= len(block)


def _path_of(name: str, folder: str) -> str:
    last = name.rsplit("/", 1)[-1]
    if not last:
        raise UsageError(f"{name!r} ends with '/': give the file to write it to")
    return os.path.join(folder, last)


@contextlib.contextmanager
def _folders_named(store: Store) -> Iterator[None]:
    try:
        yield
    except NameNotFound as error:
        raise of_folder(store, error, f"get -R {error.name.rstrip('/')} FOLDER") from error


def _print_file(info: ObjectInfo, path: str, arguments: Namespace) -> None:
    if arguments.json:
        print_json({"file": path, **object_document(info)})
