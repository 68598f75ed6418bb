"""rm, cp and mv: names come and go, bytes stay where they are."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from castore.cli import exits
from castore.cli.exits import UsageError
from castore.cli.output import object_document, print_json
from castore.cli.stores import open_to_change
from castore.errors import NameNotFound
from castore.model import ObjectInfo, as_prefix, encode_name

if TYPE_CHECKING:
    from castore.store import Store


def rm(arguments: Namespace) -> int:
    names = list(dict.fromkeys(arguments.names))
    if arguments.recursive:
        return _rm_folders(arguments, names)
    with open_to_change(arguments) as store:
        try:
            with store.transaction() as transaction:
                for name in names:
                    transaction.delete(name)
        except NameNotFound as error:
            raise of_folder(store, error, f"rm -R {error.name}") from error
    _print_removed(transaction.deleted, arguments)
    return exits.OK


def prefix_to_fill(target: str) -> str:
    """As `as_prefix`. Raises InvalidName for one that no name can have: once, not for each file."""
    prefix = as_prefix(target)
    if prefix:
        encode_name(prefix + "x")  # the shortest that may be below it
    return prefix


def cp(arguments: Namespace) -> int:
    with open_to_change(arguments) as store:
        return _transfer(store, arguments, rename=False)


def mv(arguments: Namespace) -> int:
    with open_to_change(arguments) as store:
        return _transfer(store, arguments, rename=True)


def _transfer(store: Store, arguments: Namespace, *, rename: bool) -> int:
    if_absent: bool = arguments.if_absent
    pairs = _folder_pairs(store, arguments) if arguments.recursive else [_pair(arguments)]
    try:
        with store.transaction() as transaction:
            take = transaction.rename if rename else transaction.copy
            for source, target in pairs:
                take(source, target, if_absent=if_absent)
    except NameNotFound as error:
        raise of_folder(store, error, f"{arguments.verb} -R {arguments.source} TARGET") from error
    if arguments.json:
        for info in _copied(store, arguments, {target for _, target in pairs}):
            print_json(object_document(info))
    return exits.OK


def _copied(store: Store, arguments: Namespace, targets: set[str]) -> Iterator[ObjectInfo]:
    """What they map to, without those that somebody deleted since."""
    if arguments.recursive:  # on S3 a list takes one request for many of them
        found = store.list(as_prefix(arguments.target))
        yield from (info for info in found if info.name in targets)
        return
    for target in targets:
        with suppress(NameNotFound):
            yield store.info(target)


def _folder_pairs(store: Store, arguments: Namespace) -> list[tuple[str, str]]:
    source, target = as_prefix(arguments.source), as_prefix(arguments.target)
    for inner, outer in ((target, source), (source, target)):
        if inner.startswith(outer):  # one name's target could be another one's source
            raise UsageError(f"{inner or '/'} lies below {outer or '/'}: go by another prefix")
    names = list(store.names(source))
    if not names:
        raise NameNotFound(source)
    return [(name, target + name[len(source) :]) for name in names]


def _pair(arguments: Namespace) -> tuple[str, str]:
    source: str = arguments.source
    target: str = arguments.target
    if target.endswith("/"):
        target = target.lstrip("/") + source.rsplit("/", 1)[-1]
    return source, target


def of_folder(store: Store, error: NameNotFound, instead: str) -> Exception:
    """The error for a name that is not there, or that is only a folder of others."""
    name = error.name.rstrip("/")
    if name and next(store.names(name + "/"), None) is not None:
        return exits.Failure(f"{name} is a folder: castore {instead}", exits.NOT_FOUND)
    return error


@contextmanager
def naming_folders(store: Store, instead: str) -> Iterator[None]:
    """Where a name is only a folder of others, `instead` with it for {} is what to call."""
    try:
        yield
    except NameNotFound as error:
        raise of_folder(store, error, instead.format(error.name.rstrip("/"))) from error


def _rm_folders(arguments: Namespace, names: list[str]) -> int:
    stems = [name.rstrip("/") for name in names]
    if "" in stems:
        # An unset variable in front of a '/' should not cost a whole store.
        raise UsageError("rm -R does not remove everything: delete the store's folder instead")
    with open_to_change(arguments) as store, store.transaction() as transaction:
        kinds = {stem: store.kind(stem) for stem in stems}
        folders = [stem for stem, kind in kinds.items() if kind.is_folder]
        for stem, kind in kinds.items():
            if not any(kind):
                raise NameNotFound(stem)
            if any(stem.startswith(f"{folder}/") for folder in folders):
                continue  # it goes with that
            if kind.is_folder:
                transaction.delete_prefix(stem)
            if kind.is_object:
                transaction.delete(stem)
    _print_removed(transaction.deleted, arguments)
    return exits.OK


def _print_removed(count: int, arguments: Namespace) -> None:
    if arguments.json:
        print_json({"removed": count})
