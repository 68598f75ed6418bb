"""The keys that castore gives what it stores, told from those of others.

A console puts a folder's marker beside them, `names/` say, another program whatever it likes. That
is nobody's to read, count or remove: a check names it, and all else goes on as if it were not
there.
"""

from __future__ import annotations

import re

from castore.errors import InvalidName
from castore.format.s3 import GC_STATE_KEY, pack_key
from castore.model import encode_name
from castore.s3.client.bucket import Bucket, Listed

NAMES, PACKS, PINS, HINTS, GC = "names/", "packs/", "pins/", "index/", "gc/"
LISTS = f"{GC}condemned/"
_PACK = re.compile(f"{PACKS}([0-9a-f]{{32}})-[0-9a-f]{{16}}")
_PIN = re.compile(f"{PINS}([0-9a-f]{{16}})/[0-9]{{1,9}}")
_GC = re.compile(f"{GC_STATE_KEY}|{LISTS}[0-9]{{1,18}}")
_HINTS = re.compile(f"{HINTS}[0-9a-f]{{2}}/[0-9a-f]{{32}}")


def name_of(entry: Listed) -> bytes | None:
    """The name whose manifest this is."""
    if not entry.key.startswith(NAMES) or (not entry.size and entry.key.endswith("/")):
        return None  # a manifest has bytes, a folder's marker has none
    try:
        return encode_name(entry.key.removeprefix(NAMES))
    except InvalidName:
        return None


def pack_of(entry: Listed) -> bytes | None:
    """The id of the pack that this is."""
    match = _PACK.fullmatch(entry.key)
    pack_id = bytes.fromhex(match[1]) if match is not None else b""
    return pack_id if match is not None and pack_key(pack_id) == entry.key else None


def listed_packs(bucket: Bucket) -> dict[bytes, int]:
    """All packs, and their bytes."""
    found = {pack_of(entry): entry.size for entry in bucket.list(PACKS)}
    return {pack_id: size for pack_id, size in found.items() if pack_id is not None}


def session_of_pin(key: str) -> bytes | None:
    """The session that wrote the pin."""
    match = _PIN.fullmatch(key)
    return None if match is None else bytes.fromhex(match[1])


def is_hints(key: str) -> bool:
    return _HINTS.fullmatch(key) is not None


def is_collectors(key: str) -> bool:
    """Whether it is what collectors announce, or did."""
    return _GC.fullmatch(key) is not None
