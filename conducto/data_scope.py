"""Where the names of `co.data` are: a scope of the user's store, whose names all begin with what
the caller does not write.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, ClassVar, TypeVar

from castore.errors import NameNotFound
from conducto import context
from conducto.directories import absent, missing, refuse_directory
from conducto.names import called, key_of

if TYPE_CHECKING:
    import castore

Bound = TypeVar("Bound", bound="Scope")


class Scope:
    """Of a pipeline, or of the user; a class of it is used, and none is made."""

    _pipeline_id: ClassVar[str | None] = None
    _local: ClassVar[bool | None] = None
    _profile: ClassVar[str | None] = None

    @classmethod
    def bound(
        cls: type[Bound],
        *,
        pipeline_id: str | None = None,
        local: bool | None = None,
        profile: str | None = None,
    ) -> type[Bound]:
        """The same scope with these fixed, whatever the environment says.

        None leaves one as it is here.

        >>> co.data.pipeline.bound(pipeline_id="7").list()
        []
        """
        given = {"_pipeline_id": pipeline_id, "_local": local, "_profile": profile}
        fixed = {name: value for name, value in given.items() if value is not None}
        same = {"__doc__": cls.__doc__, "__module__": cls.__module__}
        return type(cls.__name__, (cls,), {**fixed, **same})

    @classmethod
    def prefix(cls) -> str:
        """What stands before the caller's names in the store; it ends with a slash."""
        return cls._scope()

    @classmethod
    def _scope(cls) -> str:
        raise NotImplementedError

    @classmethod
    def _store(cls) -> castore.Store:
        return context.open_store(local=cls._local, profile=cls._profile)

    @classmethod
    def _store_if_any(cls) -> castore.Store | None:
        return context.find_store(local=cls._local, profile=cls._profile)

    @classmethod
    @contextmanager
    def _reading(cls, name: str, local: bool | None = None) -> Iterator[tuple[castore.Store, str]]:
        """The store, and the name in it, of what has to be there already."""
        local = cls._local if local is None else local
        key, store = cls._key(name), context.find_store(local=local, profile=cls._profile)
        if store is None:
            url = context.store_url(local=local, profile=cls._profile)
            raise absent(url, key, name)
        try:
            with called(name, key):
                yield store, key
        except NameNotFound:
            raise missing(store, key, name) from None

    @classmethod
    def _writing(cls, name: str) -> tuple[castore.Store, str]:
        """The store, and the name in it, of what is to be put. Raises IsADirectoryError where other
        objects lie below the name."""
        store, key = cls._store(), cls._key(name)
        refuse_directory(store, key, name)
        return store, key

    @classmethod
    def _key(cls, name: str) -> str:
        return key_of(cls._scope(), name)
