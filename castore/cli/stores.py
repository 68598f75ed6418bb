"""Which store a command means, and how it opens it."""

from __future__ import annotations

import contextlib
import os
from argparse import Namespace
from collections.abc import Iterator
from typing import TYPE_CHECKING

from castore.cli import exits
from castore.cli.exits import Failure, UsageError
from castore.cli.output import complain
from castore.errors import CastoreError, NotAStore
from castore.urls import local_folder

if TYPE_CHECKING:
    from castore.store import Store


def open_to_read(arguments: Namespace) -> Store:
    """The store that the command names; it must exist, and nothing in it is changed."""
    return _open_there(arguments, read_only=True)


def open_to_change(arguments: Namespace) -> Store:
    """The store that the command names; it must exist."""
    return _open_there(arguments, read_only=False)


def open_to_fill(arguments: Namespace) -> Store:
    """The store that the command names, made on the spot if there is none."""
    path = store_path(arguments)
    folder = local_store_folder(path)
    if folder is None:
        from castore.errors import BucketNotFound, StoreNotFound

        try:
            return _open(path, create=False, read_only=False)
        except BucketNotFound:
            raise
        except StoreNotFound:
            is_new = True
    else:
        is_new = not os.path.exists(os.path.join(folder, "castore.json"))
    store = _open(path, create=True, read_only=False)
    if is_new:
        complain(f"created store at {path}")
    return store


def store_path(arguments: Namespace) -> str:
    path: str | None = arguments.store
    if path is None:  # an empty one, as of a variable that is not set, means no other store
        path = os.environ.get("CASTORE_STORE", "")
    if not path:
        raise UsageError("which store? Give -r PATH (--store PATH) or set CASTORE_STORE=PATH")
    local_store_folder(path)
    return path


def local_store_folder(path: str) -> str | None:
    """None for a store on S3. Raises UsageError for what names no store."""
    with places_refused():
        return local_folder(path)


@contextlib.contextmanager
def places_refused() -> Iterator[None]:
    """A path or URL that no store can have, or that says what is no setting, is wrong usage."""
    try:
        yield
    except ValueError as error:
        if isinstance(error, CastoreError):
            raise
        raise UsageError(str(error)) from error


@contextlib.contextmanager
def expected_there() -> Iterator[None]:
    """Where a store must exist: what is there, and no store, is none there, either."""
    with places_refused():
        try:
            yield
        except NotAStore as error:
            raise Failure(str(error), exits.NO_STORE) from error


def _open_there(arguments: Namespace, *, read_only: bool) -> Store:
    with expected_there():
        return _open(store_path(arguments), create=False, read_only=read_only)


def _open(path: str, *, create: bool, read_only: bool) -> Store:
    import castore  # its attributes load the store, lmdb and zstandard: not before this

    with places_refused():
        return castore.open(path, create=create, read_only=read_only)
