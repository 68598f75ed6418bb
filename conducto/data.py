"""`co.data.pipeline` and `co.data.user`: objects by name, in the user's store.

Names are those of the caller: a leading `/` is dropped, `..` is refused, and "directories" are
only what the `/` in names suggests (`directories`).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, BinaryIO, Literal, overload

from castore.errors import NameNotFound, SourceChanged
from conducto import context
from conducto.archive import archive, archive_quiet
from conducto.data_scope import Scope
from conducto.directories import delete_tree, folder_of, has_below, is_directory
from conducto.errors import CacheNotFound, ContextError
from conducto.names import (
    cache_folder,
    cache_name,
    called,
    cleaned_name,
    cleaned_prefix,
    is_all,
    key_of,
)

if TYPE_CHECKING:
    import castore
    from castore import ObjectReader, ObjectWriterFile

__all__ = ["ContextError", "archive", "archive_quiet", "pipeline", "user"]

Path = str | os.PathLike[str]
Names = list[str]  # inside the classes `list` is a method

SAVES_MAX = 4  # of a cache, where its files are rewritten meanwhile


class _Data(Scope):
    """What both scopes do. Sizes and ranges are in bytes.

    A missing name raises FileNotFoundError, a name that can't be one ValueError.
    """

    @classmethod
    def get(cls, name: str, file: Path | BinaryIO, local: bool | None = None) -> None:
        """Write the object to `file`, a path or a binary file object.

        A path is replaced atomically and gets the object's mode bits; in a folder, the file is
        named like the last part of `name`. `local` overrides the mode for this call.

        >>> co.data.user.put("dumps/monday.sql", "monday.sql")
        >>> co.data.user.get("dumps/monday.sql", "restored.sql")
        """
        with cls._reading(name, local) as (store, key):
            store.get(key, file)

    @classmethod
    def gets(cls, name: str, *, byte_range: Sequence[int] | None = None) -> bytes:
        """The object's bytes, or those of the half-open `byte_range`, `[begin, end)`.

        `end` past the object's size is clamped; None or `[]` is the whole object. A range that is
        negative, reversed or not two integers raises ValueError.

        >>> co.data.user.puts("greeting", b"hello, world")
        >>> co.data.user.gets("greeting", byte_range=[7, 12])
        b'world'
        """
        with cls._reading(name) as (store, key):
            return store.gets(key, byte_range)

    @overload
    @classmethod
    def open(cls, name: str, mode: Literal["rb"] = "rb") -> ObjectReader: ...
    @overload
    @classmethod
    def open(cls, name: str, mode: Literal["wb", "xb", "ab"]) -> ObjectWriterFile: ...
    @classmethod
    def open(
        cls, name: str, mode: Literal["rb", "wb", "xb", "ab"] = "rb"
    ) -> ObjectReader | ObjectWriterFile:
        """The object as a binary file object.

        "rb" reads one version of it, seekably. "wb" writes a new one, published when it is closed
        and not at all if the `with` block raises; "xb" refuses a name that is taken. "ab" writes
        one that begins as the object there is, of which no data moves; if that changed by the time
        it is closed, `castore.errors.ObjectChanged`. What a versioned bucket keeps of older
        versions stays until the next `put` or `puts`.

        IsADirectoryError where objects lie below `name`; FileExistsError; ValueError for another
        mode.

        >>> with co.data.user.open("log", "wb") as file:
        ...     file.write(b"one line")
        8
        >>> with co.data.user.open("log") as file:
        ...     file.read(3)
        b'one'
        """
        if mode == "rb":
            with cls._reading(name) as (store, key):
                reader = store.open(key)
            reader.info = reader.info._replace(name=name)
            return reader
        store, key = cls._writing(name)
        with called(name, key):
            writer = store.open(key, mode)
        writer.name = name
        return writer

    @classmethod
    def put(cls, name: str, file: Path | BinaryIO, skip_cleanup: bool = False) -> None:
        """Store a file, with its mode bits, or what a binary file object holds.

        What a versioned bucket would keep of the name's older versions is removed then, if it can
        be, unless `skip_cleanup`. IsADirectoryError where objects lie below `name`.
        """
        store, key = cls._writing(name)
        store.put(key, file)
        if not skip_cleanup:
            store.remove_old_versions(key)

    @classmethod
    def puts(cls, name: str, obj: bytes | bytearray | memoryview) -> None:
        """Store bytes, or any other object with the buffer interface.

        ValueError for anything else; IsADirectoryError where objects lie below `name`.

        >>> co.data.user.puts("settings.json", b"{}")
        >>> co.data.user.size("settings.json")
        2
        """
        data = _as_bytes(obj)
        store, key = cls._writing(name)
        store.puts(key, data)
        store.remove_old_versions(key)

    @classmethod
    def delete(cls, name: str, recursive: bool = False) -> None:
        """Delete the object; with `recursive`, also all that lie below `name` + "/".

        In local mode that is one step; in the cloud they go name by name. IsADirectoryError for a
        name that only has others below it, without `recursive`.

        >>> co.data.user.puts("logs/monday", b"")
        >>> co.data.user.delete("logs", recursive=True)
        """
        with cls._reading(name) as (store, key):
            if recursive:
                if not delete_tree(store, key):
                    raise NameNotFound(name)
                store.remove_old_versions(key)
                store.remove_old_versions(folder_of(key), below=True)
                return
            try:
                store.delete(key)
            except NameNotFound:
                if has_below(store, key):
                    raise is_directory(name, "delete it with recursive") from None
                raise
            store.remove_old_versions(key)

    @classmethod
    def list(cls, prefix: str = "") -> Names:
        """The names of objects that start with `prefix`, in the caller's spelling and sorted.

        `prefix` is a plain string; "" and "." are all of them.

        >>> co.data.user.puts("a/1", b""), co.data.user.puts("b/1", b"")
        (None, None)
        >>> co.data.user.list("a")
        ['a/1']
        """
        scope, (slashes, start) = cls._scope(), cleaned_prefix(prefix)
        store = cls._store_if_any()
        names = [] if store is None else store.names(scope + start)
        return [slashes + name[len(scope) :] for name in names]

    @classmethod
    def exists(cls, name: str) -> bool:
        """Whether there is an object with this name, or one below it; for "" and ".", any."""
        key = cls._scope() if is_all(name) else cls._key(name)
        store = cls._store_if_any()
        if store is None:
            return False
        return has_below(store, key) if key.endswith("/") else any(store.kind(key))

    @classmethod
    def size(cls, name: str) -> int:
        """The object's size in bytes."""
        with cls._reading(name) as (store, key):
            return store.size(key)

    @classmethod
    def info(cls, name: str) -> castore.ObjectInfo:
        """Its size in bytes, time, mode bits, etag, chunks and stored bytes; `name` as given.

        >>> co.data.user.puts("settings.json", b"{}")
        >>> co.data.user.info("settings.json").size
        2
        """
        with cls._reading(name) as (store, key):
            return store.info(key)._replace(name=name)

    @classmethod
    def url(cls, name: str, path_only: bool = True) -> str:
        """Where the app shows the object.

        The path, which suits the app's own pages, or with `path_only=False` the whole URL, which
        needs CONDUCTO_AUTO_URL. Raises ContextError without it, or without a pipeline's id.
        """
        from urllib.parse import quote

        base = ""
        if not path_only:
            base = os.environ.get("CONDUCTO_AUTO_URL", "").rstrip("/")
            if not base:
                raise ContextError("a whole URL needs the app's address: set CONDUCTO_AUTO_URL")
        pipeline_id = context.pipeline_id(cls._pipeline_id)
        cls._key(name)
        path = f"{quote(pipeline_id)}/{cls.__name__}/{quote(cleaned_name(name))}"
        return f"{base}/gw/manager/data/{path}"

    @classmethod
    def save_cache(cls, name: str, checksum: str, save_dir: Path) -> None:
        """Keep a copy of the folder as `conducto-cache/<name>/<checksum>.tar.gz`.

        Symbolic links stay links; one to a file outside the folder becomes that file. A device, or
        a link that leads outside to anything else, raises NotCacheable, and nothing is kept. Each
        file is kept as it was at one moment: where one is rewritten or vanishes meanwhile, all is
        saved anew; SourceChanged, and nothing is kept, where that goes on.

        >>> co.data.user.save_cache("deps", "3f2a", "project")
        >>> co.data.user.restore_cache("deps", "3f2a", "again")
        >>> sorted(os.listdir("again"))
        ['project']
        """
        from conducto import cache

        store, key = cls._store(), cls._cache_key(name, checksum)
        for left in reversed(range(SAVES_MAX)):
            try:
                with store.open(key, "wb") as file:
                    cache.save(save_dir, file)
                break
            except SourceChanged:
                if not left:
                    raise
        store.remove_old_versions(key)

    @classmethod
    def restore_cache(cls, name: str, checksum: str, restore_dir: Path) -> None:
        """Put the cached folder back, under its own name in `restore_dir`.

        What was kept as "." lies in `restore_dir` itself. Files that are there already are
        replaced, others stay. Nothing is restored from an archive that is malformed, not safe, or
        has symbolic links where the file system has none: CacheRefused. CacheNotFound where there
        is no such cache.
        """
        from conducto import cache

        key, store = cls._cache_key(name, checksum), cls._store_if_any()
        if store is None:
            raise CacheNotFound(cache_name(name, checksum))
        try:
            file = store.open(key)
        except NameNotFound:
            raise CacheNotFound(cache_name(name, checksum)) from None
        with file:
            cache.restore(file, file.info.size, restore_dir)

    @classmethod
    def cache_exists(cls, name: str, checksum: str) -> bool:
        """Whether there is a cache with this name and checksum."""
        key, store = cls._cache_key(name, checksum), cls._store_if_any()
        return store is not None and store.exists(key)

    @classmethod
    def clear_cache(cls, name: str, checksum: str | None = None) -> None:
        """Delete the cache with this checksum, or all of this name.

        All means those below `name` + "/" too, never those of another name that starts the same.
        CacheNotFound where there is none with this checksum.
        """
        store = cls._store_if_any()
        if checksum is None:
            folder = folder_of(key_of(cls._scope(), cache_folder(name)))
            if store is not None and store.delete_prefix(folder):
                store.remove_old_versions(folder, below=True)
            return
        key = cls._cache_key(name, checksum)
        if store is None:
            raise CacheNotFound(cache_name(name, checksum))
        try:
            store.delete(key)
        except NameNotFound:
            raise CacheNotFound(cache_name(name, checksum)) from None
        store.remove_old_versions(key)

    @classmethod
    def _cache_key(cls, name: str, checksum: str) -> str:
        return key_of(cls._scope(), cache_name(name, checksum))


class pipeline(_Data):
    """Objects of one pipeline, which CONDUCTO_PIPELINE_ID names.

    They go when it is archived.
    """

    @classmethod
    def _scope(cls) -> str:
        return f"pipelines/{context.pipeline_id(cls._pipeline_id)}/data/"


class user(_Data):
    """Objects of the user, kept until they are deleted."""

    @classmethod
    def _scope(cls) -> str:
        return "data/"


def _as_bytes(obj: object) -> bytes | memoryview:
    try:
        view = memoryview(obj)  # type: ignore[arg-type]
    except TypeError:
        shown = repr(obj)
        if len(shown) > 200:
            shown = shown[:200] + "..."
        raise ValueError(f"Expected object of type bytes, but got {shown}") from None
    return view if view.c_contiguous else view.tobytes()
