"""Backups of a local store's index (see FORMAT.md)."""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

import xxhash

from castore.errors import FormatError, UnsupportedFormat
from castore.format import VERSION

BACKUP_MAGIC: Final = b"castback"
_BACKUP = struct.Struct("<QQIIQQ8s")
BACKUP_TRAILER_BYTES: Final = _BACKUP.size  # 48

_checksum = xxhash.xxh3_64_intdigest


class BackupTrailer(NamedTuple):
    """The end of a backup: LMDB's data file, then castore.json, then this. `checksum` is xxh3-64 of
    all that comes before the trailer."""

    index_bytes: int
    config_bytes: int
    created_ns: int
    checksum: int


def encode_backup_trailer(trailer: BackupTrailer) -> bytes:
    head = _BACKUP.pack(
        trailer.index_bytes,
        trailer.created_ns,
        trailer.config_bytes,
        VERSION,
        trailer.checksum,
        0,
        b"",
    )[:-16]
    return head + _checksum(head).to_bytes(8, "little") + BACKUP_MAGIC


def decode_backup_trailer(raw: bytes, backup_bytes: int) -> BackupTrailer:
    """From the last BACKUP_TRAILER_BYTES bytes of a backup of `backup_bytes` bytes."""
    if len(raw) != BACKUP_TRAILER_BYTES:
        raise FormatError(f"backup is cut short at {backup_bytes} bytes")
    index_bytes, created_ns, config_bytes, version, checksum, own, magic = _BACKUP.unpack(raw)
    if magic != BACKUP_MAGIC or _checksum(raw[:-16]) != own:
        raise FormatError("backup has no whole trailer: it is cut short, or no backup at all")
    if version > VERSION:
        raise UnsupportedFormat(f"backup has format version {version}: upgrade castore")
    if version < 1 or index_bytes + config_bytes + BACKUP_TRAILER_BYTES != backup_bytes:
        raise FormatError(f"backup claims {index_bytes} bytes of index")
    return BackupTrailer(index_bytes, config_bytes, created_ns, checksum)
