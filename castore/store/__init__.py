"""Opening a store, and its verbs: validate, delegate.

The knobs have their defaults here, those of every kind of store in `handle`, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from castore.local.store import open_local
from castore.objectfile import discard_dropped
from castore.store.handle import CACHE_BYTES, DELTA, READAHEAD_BYTES
from castore.store.whole import WholeVerbs, check_fraction
from castore.stream.backend import Backend
from castore.transaction import StrPath, Transaction
from castore.urls import local_folder, text_of

__all__ = ["Store", "Transaction", "check_fraction", "open_store", "refuse_strangers"]


def open_store(
    url_or_path: StrPath,
    *,
    create: bool = True,
    read_only: bool = False,
    chunk_bytes_avg: int = 65536,
    collision_guard: str | None = None,
    compression_level: int | None = None,
    delta: bool = DELTA,
    cache_bytes: int = CACHE_BYTES,
    readahead_bytes: int = READAHEAD_BYTES,
    disk_cache_bytes: int | None = None,
    threads: int | None = None,
    endpoint_url: str | None = None,
    region: str | None = None,
    profile: str | None = None,
    addressing_style: str | None = None,
    sse: str | None = None,
    sse_kms_key_id: str | None = None,
    storage_class: str | None = None,
    upload_checksum: str | None = None,
    connect_timeout_s: float | None = None,
    read_timeout_s: float | None = None,
    max_concurrency: int | None = None,
) -> Store:
    """Open the store in a local folder or at `s3://bucket/prefix`.

    It is made if it is not there and `create` is true. Close it with `close`, or use `with`.

    Fixed when a store is made, and ignored afterwards:

    - `chunk_bytes_avg`: the average chunk, in bytes, a multiple of 256. The smallest is a quarter
      of that, the largest four times it.
    - `collision_guard`: None, or "sha256" for bytes from people who are not trusted.

    For this Store object:

    - `read_only`: nothing of the store is written to.
    - `compression_level`: zstd's, -7 to 22, for chunks that are new. By default 1 in a folder; on
      S3, where what is sent costs more time than this does, 3.
    - `delta`: chunks that are new may be stored as deltas of those of an object that they resemble,
      if the C extension is built.
    - `cache_bytes`: the most memory for chunks decoded last, in bytes.
    - `readahead_bytes`: the most that each open file decodes ahead of a sequential reader, in bytes
      (0: nothing).
    - `threads`: how many encode and decode. By default one per core, within a limit; on S3 8.
    - `disk_cache_bytes`: on S3, the most frames kept on disk, in bytes (0: none; by default 10 GiB,
      or a tenth of the free disk if that is less).

    The others are settings of S3, and a folder takes none of them: docs/s3.md lists them. They may
    also come from the URL's query (`?endpoint_url=...&region=...`) or the environment, in that
    order. `connect_timeout_s` and `read_timeout_s` are in seconds, `max_concurrency` counts
    requests in flight.

    Raises StoreNotFound, NotAStore, UnsupportedFormat, StoreLocked, StoreFull, PermissionError;
    FormatError where castore.json is damaged, or gone from what is a store, IndexCorrupt where the
    index is; StoreIOError; ValueError for a setting that can't be; on S3 also AccessDenied,
    CredentialsError, WrongRegion, EndpointUnreachable, RemoteError.

    >>> with castore.open("folder/store") as store:
    ...     store.puts("greeting", b"hello").size
    5
    >>> castore.open("nowhere", create=False)
    Traceback (most recent call last):
    castore.errors.StoreNotFound: ...
    """
    url = text_of(url_or_path, "a store's path")
    if compression_level is not None and not -7 <= compression_level <= 22:
        raise ValueError(f"compression_level is from -7 to 22, not {compression_level}")
    if min(cache_bytes, readahead_bytes, disk_cache_bytes or 0) < 0:
        raise ValueError("cache_bytes, readahead_bytes and disk_cache_bytes must not be negative")
    if threads is not None and threads < 1:
        raise ValueError("threads must be at least 1")
    remote = {
        "endpoint_url": endpoint_url,
        "region": region,
        "profile": profile,
        "addressing_style": addressing_style,
        "sse": sse,
        "sse_kms_key_id": sse_kms_key_id,
        "storage_class": storage_class,
        "upload_checksum": upload_checksum,
        "connect_timeout_s": connect_timeout_s,
        "read_timeout_s": read_timeout_s,
        "max_concurrency": max_concurrency,
    }
    options: dict[str, Any] = {
        "compression_level": compression_level,
        "delta": delta,
        "cache_bytes": cache_bytes,
        "readahead_bytes": readahead_bytes,
        "disk_cache_bytes": disk_cache_bytes,
        "threads": threads,
        **{name: value for name, value in remote.items() if value is not None},
    }
    path = local_folder(url)
    backend: Backend
    if path is None:
        from castore.s3.client.settings import parse_settings
        from castore.s3.store import open_remote  # loads botocore

        backend = open_remote(
            parse_settings(url, **remote),
            create=create,
            read_only=read_only,
            chunk_bytes_avg=chunk_bytes_avg,
            collision_guard=collision_guard,
            frames_bytes_max=disk_cache_bytes,
        )
    else:
        refuse_strangers(path, remote)
        backend = open_local(
            path,
            create=create,
            read_only=read_only,
            chunk_bytes_avg=chunk_bytes_avg,
            collision_guard=collision_guard,
        )
    discard_dropped()
    return Store(
        backend,
        read_only=read_only,
        compression_level=compression_level,
        delta=delta,
        cache_bytes=cache_bytes,
        readahead_bytes=readahead_bytes,
        threads=threads,
        reopen=partial(
            open_store,
            backend.root if path is not None else url,
            create=False,
            read_only=read_only,
            **options,
        ),
    )


def refuse_strangers(path: str, remote: Mapping[str, Any]) -> None:
    """Raises ValueError for settings of S3 that a local store is given."""
    strangers = [name for name, value in remote.items() if value is not None]
    if strangers:
        raise ValueError(f"{path} is no store on S3, which alone has {', '.join(strangers)}")


class Store(WholeVerbs):
    """Objects by name, in a folder or on S3; `castore.open` makes one.

    Safe for many threads and processes at once; opens itself anew in a forked child and where it is
    unpickled.

    A name is 1 to 480 bytes of UTF-8, with no NUL, no `/` at the start, and no `.` or `..` between
    slashes; anything else raises InvalidName. Sizes and offsets are in bytes, byte ranges
    half-open: `(begin, end)` has the byte at `begin` and not the one at `end`. A store that was
    closed raises StoreClosed. `progress`, where it is taken, is told bytes, as fsspec's callbacks
    are.

    In the examples `store` is a new one.
    """
