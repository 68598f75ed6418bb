"""rm, cp and mv: names come and go, bytes stay where they are."""

from __future__ import annotations

from argparse import Namespace

from castore.cli import exits
from castore.cli.exits import UsageError
from castore.cli.opening import open_to_change
from castore.cli.output import object_document, print_json
from castore.errors import NameNotFound


def rm(arguments: Namespace) -> int:
    names = list(dict.fromkeys(arguments.names))
    if arguments.recursive:
        return _rm_folders(arguments, names)
    with open_to_change(arguments) as store, store.transaction() as transaction:
        for name in names:
            transaction.delete(name)
    _print_removed(transaction.deleted, arguments)
    return exits.OK


def cp(arguments: Namespace) -> int:
    target = _target(arguments)
    with open_to_change(arguments) as store:
        store.copy(arguments.source, target, if_absent=arguments.if_absent)
        if arguments.json:
            print_json(object_document(store.info(target)))
    return exits.OK


def mv(arguments: Namespace) -> int:
    target = _target(arguments)
    with open_to_change(arguments) as store:
        store.rename(arguments.source, target, if_absent=arguments.if_absent)
        if arguments.json:
            print_json(object_document(store.info(target)))
    return exits.OK


def _rm_folders(arguments: Namespace, names: list[str]) -> int:
    stems = [name.rstrip("/") for name in names]
    if "" in stems:
        # An unset variable in front of a '/' should not cost a whole store.
        raise UsageError("rm -R does not remove everything: delete the store's folder instead")
    with open_to_change(arguments) as store, store.transaction() as transaction:
        for stem in stems:
            is_object = store.exists(stem)
            if not is_object and next(store.names(stem + "/"), None) is None:
                raise NameNotFound(stem)
            transaction.delete_prefix(stem + "/")
            if is_object:
                transaction.delete(stem)
    _print_removed(transaction.deleted, arguments)
    return exits.OK


def _target(arguments: Namespace) -> str:
    target: str = arguments.target
    if not target.endswith("/"):
        return target
    source: str = arguments.source
    return target.lstrip("/") + source.rsplit("/", 1)[-1]


def _print_removed(count: int, arguments: Namespace) -> None:
    if arguments.json:
        print_json({"removed": count})
