"""Which store a file system is of, and what of it is open."""

from __future__ import annotations

import contextlib
import inspect
import os
import threading
import weakref
from collections.abc import Iterator
from typing import Any

from fsspec.config import apply_config
from fsspec.spec import AbstractFileSystem
from fsspec.utils import stringify_path

import castore
from castore.fs.files import CastoreTransaction
from castore.fs.locations import chained_store, split_store, url_with_store
from castore.fs.shown import ShownNames
from castore.system.locks import Lock
from castore.urls import local_folder, text_of

_PARAMETERS = inspect.signature(castore.open).parameters
OPEN_OPTIONS = frozenset(_PARAMETERS) - {"url_or_path"}
FSSPEC_OPTIONS = {"use_listings_cache", "listings_expiry_time", "max_paths"}
_NONE_BY_DEFAULT = FSSPEC_OPTIONS | {
    name for name, parameter in _PARAMETERS.items() if parameter.default is None
}


class Resolved(type(AbstractFileSystem)):  # type: ignore[misc]  # fsspec is untyped
    """Says which store is meant before fsspec looks among the instances that it keeps, by their
    arguments. A relative path, or none, means another store after a chdir, in another process, or
    with another environment."""

    def __call__(
        cls,
        store: str | os.PathLike[str] | None = None,
        *,
        fo: str | None = None,
        target_protocol: str | None = None,
        target_options: dict[str, Any] | None = None,
        asynchronous: bool = False,
        **storage_options: Any,
    ) -> Any:
        """`fo` and what begins with `target_` are what a chained URL gives: the store's own
        place."""
        chained, settings = chained_store(fo, target_protocol, target_options, OPEN_OPTIONS)
        given = {**apply_config(cls, storage_options), **settings}
        # fsspec makes no JSON of None; what it means is the same without it.
        options = {
            name: value
            for name, value in given.items()
            if value is not None or name not in _NONE_BY_DEFAULT
        }
        where = store or chained or options.pop("store", None) or os.environ.get("CASTORE_STORE")
        if not where:
            raise ValueError("which store? Give store=PATH or set CASTORE_STORE=PATH")
        loop = options.pop("loop", None)  # has no use but there
        fs = super().__call__(**{**options, "store": _absolute(where)})
        if not asynchronous:
            return fs
        from castore.fs.asynchronous import AsyncCastoreFileSystem

        return AsyncCastoreFileSystem(fs, asynchronous=True, loop=loop)


class StoreFileSystem(AbstractFileSystem, metaclass=Resolved):  # type: ignore[misc]
    """See `castore.fs.CastoreFileSystem`."""

    protocol = "castore"
    root_marker = ""
    transaction_type = CastoreTransaction

    def __init__(self, store: str, **storage_options: Any) -> None:
        strangers = storage_options.keys() - OPEN_OPTIONS - FSSPEC_OPTIONS
        if strangers:
            raise TypeError(
                f"there is no storage option {', '.join(sorted(strangers))} of castore: there are "
                f"{', '.join(['store', *sorted(OPEN_OPTIONS)])}"
            )
        super().__init__(store=store, **storage_options)
        self.store_path = store
        self._open_options = {
            name: value for name, value in storage_options.items() if name in OPEN_OPTIONS
        }
        create = bool(self._open_options.pop("create", True))
        self._makes_store = create and not self._open_options.get("read_only", False)
        self._store: castore.Store | None = None
        self._batch = _Batch()
        self._shown = ShownNames(
            **{name: value for name, value in storage_options.items() if name in FSSPEC_OPTIONS}
        )

    @property
    def store(self) -> castore.Store:
        """The open Store; raises StoreNotFound where there is none yet."""
        return self._open_store(create=False)

    @property
    def fsid(self) -> str:
        return f"castore_{self.store_path}"

    def invalidate_cache(self, path: str | None = None) -> None:
        """Ask for what listings showed again, where `use_listings_cache` is."""
        self._shown.forget()

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(each) for each in path]
        path = stringify_path(path)
        if path.startswith(f"{cls.protocol}://"):
            path = split_store(path[len(cls.protocol) + 3 :])[1]
        elif path.startswith(f"{cls.protocol}::"):
            path = path[len(cls.protocol) + 2 :]
        return path.strip("/")

    @classmethod
    def _get_kwargs_from_urls(cls, path: str) -> dict[str, Any]:
        marker = f"{cls.protocol}://"
        store = split_store(path[len(marker) :])[0] if path.startswith(marker) else None
        return {} if store is None else {"store": store}

    def unstrip_protocol(self, name: str) -> str:
        """The name's URL, which says which store it is in: it means the same everywhere."""
        return url_with_store(self.protocol, self.store_path, self._strip_protocol(name))

    def _open_store(self, *, create: bool) -> castore.Store:
        store = self._store
        if store is None or store.closed:
            create = create and self._makes_store
            store = self._store = _opened(self.store_path, self._open_options, create=create)
        return store

    def start_transaction(self) -> Any:
        """As `with fs.transaction`, until `end_transaction`. Raises ValueError where one has
        begun."""
        self.transaction.start()
        return self.transaction

    @property
    def _has_changes(self) -> bool:
        """Whether something was changed in the transaction that has begun."""
        return bool(self._intrans and self.transaction.has_changes)

    @contextlib.contextmanager
    def _changes(self, *, create: bool) -> Iterator[castore.Transaction]:
        """What gathers changes: until its end in a `with fs.transaction`, or in `_together`, else
        for this call."""
        if self._intrans:
            yield self.transaction.changes(create=create)
        elif self._batch.begun:
            if self._batch.changes is None:
                self._batch.changes = self._open_store(create=create).transaction()
            yield self._batch.changes
        else:
            try:
                with self._open_store(create=create).transaction() as changes:
                    yield changes
            finally:
                self._shown.forget()

    @contextlib.contextmanager
    def _together(self) -> Iterator[None]:
        """All that this thread changes meanwhile is one commit, or nothing if it raises."""
        batch = self._batch
        if self._intrans or batch.begun:
            yield
            return
        batch.begun = True
        try:
            yield
            if batch.changes is not None:
                batch.changes.commit()
        except BaseException:
            if batch.changes is not None:
                batch.changes.abort()
            raise
        finally:
            batch.begun, batch.changes = False, None
            self._shown.forget()


class _Batch(threading.local):
    """What `_together` gathers, by thread: begun when something is first changed."""

    begun = False
    changes: castore.Transaction | None = None


_stores: weakref.WeakValueDictionary[str, castore.Store] = weakref.WeakValueDictionary()
_stores_lock = Lock()


def _forget_lock() -> None:
    # Another thread may have held it across the fork, and does not exist in the child.
    global _stores_lock
    _stores_lock = Lock()


os.register_at_fork(after_in_child=_forget_lock)


def _opened(path: str, options: dict[str, Any], *, create: bool) -> castore.Store:
    """One Store for all instances of a process that want the same: fsspec makes one a thread."""
    key = repr((path, sorted(options.items())))
    with _stores_lock:
        store = _stores.get(key)
        if store is None or store.closed:
            store = _stores[key] = castore.open(path, create=create, **options)
        return store


def _absolute(store: str | os.PathLike[str]) -> str:
    """A store's path or URL so that it means the same everywhere. Raises ValueError."""
    url = text_of(store, "a store's path")
    folder = local_folder(url)
    return url if folder is None else os.path.abspath(folder)
