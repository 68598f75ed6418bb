"""mount and umount: a store as a folder."""

from __future__ import annotations

import os
from argparse import Namespace

from castore.cli import exits
from castore.cli.exits import Failure, UsageError
from castore.cli.output import complain
from castore.cli.stores import local_store_folder, open_to_fill, open_to_read, store_path
from castore.model import as_prefix


def mount(arguments: Namespace) -> int:
    from castore.mount import MountUnavailable, serve, unavailable
    from castore.mount import mount as begin

    if len(arguments.places) > 2:
        raise UsageError("mount takes [STORE] FOLDER (see castore mount --help)")
    *stores, folder = arguments.places
    if stores:
        [arguments.store] = stores
    reason = unavailable()
    if reason is not None:
        raise Failure(reason)
    prefixes = {"": as_prefix(arguments.prefix)}
    opening = open_to_fill if arguments.writable else open_to_read
    with opening(arguments) as store:
        place = store_path(arguments)
        if arguments.foreground:
            serve(
                store,
                folder,
                prefixes=prefixes,
                writable=arguments.writable,
                on_mounted=lambda: complain(f"{place} is mounted at {folder}"),
            )
            return exits.OK
    local = local_store_folder(place)
    try:
        begin(
            place if local is None else os.path.abspath(local),
            folder,
            prefixes=prefixes,
            writable=arguments.writable,
            quiet=not os.isatty(2),  # it would keep a pipe open for as long as it is there
        )
    except MountUnavailable as error:
        raise Failure(str(error)) from error
    return exits.OK


def umount(arguments: Namespace) -> int:
    from castore.mount import unmount

    unmount(arguments.folder, lazily=arguments.lazy)
    return exits.OK
