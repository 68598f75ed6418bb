"""The file system for callers with an event loop of their own, such as zarr.

Each coroutine runs the method of the same name on a thread of the loop's default executor, which
bounds how many run at once. A store has no other waiting to give away: its reads and writes are
planned, and handed to threads, as wholes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper

if TYPE_CHECKING:
    import castore


class AsyncCastoreFileSystem(AsyncFileSystemWrapper):  # type: ignore[misc]  # fsspec is untyped
    """What `fsspec.filesystem("castore", asynchronous=True)` is: `_cat_file`, `_pipe_file`,
    `_cat_ranges`, `_ls`, `_info`, `_find`, `_put`, `_rm` and the others as coroutines.

    Files, transactions and fingerprints are those of `sync_fs`, without a coroutine.
    """

    def to_dict(self, *, include_password: bool = True) -> dict[str, Any]:
        """As fsspec's: what it is made from again, also by `to_json`, asynchronous as well."""
        below = self.sync_fs.to_dict(include_password=include_password)
        return {**below, "asynchronous": True}

    def __reduce__(self) -> tuple[Any, ...]:
        """In another process the loop is that of who uses it there."""
        return _around, (self.sync_fs,)

    @property
    def store(self) -> castore.Store:
        opened: castore.Store = self.sync_fs.store
        return opened

    @property
    def transaction(self) -> Any:
        return self.sync_fs.transaction

    def start_transaction(self) -> Any:
        return self.sync_fs.start_transaction()

    def end_transaction(self) -> None:
        self.sync_fs.end_transaction()

    def open(self, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        return self.sync_fs.open(path, mode, **kwargs)

    def unstrip_protocol(self, name: str) -> str:
        url: str = self.sync_fs.unstrip_protocol(name)
        return url

    def invalidate_cache(self, path: str | None = None) -> None:
        self.sync_fs.invalidate_cache(path)

    def sign(self, path: str, expiration: int = 100, **kwargs: Any) -> Any:
        return self.sync_fs.sign(path, expiration, **kwargs)

    def url(self, path: str, **kwargs: Any) -> Any:
        return self.sync_fs.url(path, **kwargs)

    def modified(self, path: str) -> Any:
        return self.sync_fs.modified(path)

    created = modified

    def ukey(self, path: str) -> Any:
        return self.sync_fs.ukey(path)

    def checksum(self, path: str) -> Any:
        return self.sync_fs.checksum(path)


def _around(fs: Any) -> AsyncCastoreFileSystem:
    return AsyncCastoreFileSystem(fs, asynchronous=True)
