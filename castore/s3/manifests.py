"""Manifests of a store on S3, read in parts: the head first, and more where it is needed.

A name may be put anew between two requests. So each part is asked for with the ETag of the first,
and the reader begins again where it is another.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

from castore.errors import FormatError, ManifestUnreadable
from castore.format.s3 import (
    MANIFEST_HEADER_BYTES,
    ManifestHead,
    decode_manifest_head,
    manifest_head_bytes,
)
from castore.s3.client.bucket import KeyAbsent, Reply
from castore.s3.told import undamaged

T = TypeVar("T")


class Overwritten(Exception):
    """What the name maps to changed, or went, between two requests for parts of it."""


class Names(Protocol):
    """Where manifests are read: see `castore.s3.namespace.look.Look`."""

    def first(self, name: bytes, size: int, unless: str | None = None) -> Reply | None: ...

    def part(self, name: bytes, etag: str, begin: int, end: int) -> bytes | None: ...


def read_manifest(
    names: Names,
    name: bytes,
    first_bytes: int,
    use: Callable[[str, bytes], T],
    *,
    unless: str | None = None,
    whole: bool,
) -> T | None:
    """What `use` makes of the ETag and the first bytes, with its head at least, of what the name
    maps to now; None if that has the ETag `unless`. If not `whole`, an inline object's bytes may be
    missing. Raises KeyAbsent; ManifestUnreadable where `use` raises FormatError, twice."""

    def read() -> T | None:
        while True:
            reply = names.first(name, first_bytes, unless)
            if reply is None:
                return None
            try:
                return use(reply.etag, read_head(names, name, reply, whole=whole))
            except Overwritten:
                continue

    try:
        return undamaged(read)
    except FormatError as error:
        raise ManifestUnreadable(name.decode(), str(error)) from error


def read_head(names: Names, name: bytes, first: Reply, *, whole: bool = True) -> bytes:
    """The `first` bytes of the name's manifest, and as many more as its head takes, if `whole` with
    an inline object's bytes. Raises FormatError, Overwritten."""
    header = first.body[:MANIFEST_HEADER_BYTES]
    size = manifest_head_bytes(header)
    if size > first.size:
        raise FormatError(f"its head takes {size} of its {first.size} bytes")
    size = manifest_head_bytes(header, whole=whole)
    if size <= len(first.body):
        return first.body
    return first.body + read_part(names, name, first.etag, len(first.body), size)


def read_part(names: Names, name: bytes, etag: str, begin: int, end: int) -> bytes:
    """Bytes `[begin, end)` of the version with this ETag. Raises Overwritten."""
    try:
        part = names.part(name, etag, begin, end)
    except KeyAbsent:
        raise Overwritten from None
    if part is None:
        raise Overwritten
    return part


def decode_own_head(raw: bytes, store_id: bytes) -> ManifestHead:
    """As `decode_manifest_head`; FormatError also for another store's."""
    head = decode_manifest_head(raw)
    if head.store_id != store_id:
        raise FormatError("it belongs to another store")
    return head
