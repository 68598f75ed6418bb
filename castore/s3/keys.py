"""Every key and prefix of a store on S3, and which of the keys that are there are its own.

A console puts a folder's marker beside them, `names/` say, another program whatever it likes. That
is nobody's to read, count or remove: a check names it, and all else goes on as if it were not
there.
"""

from __future__ import annotations

import re
import secrets
from typing import Final

import xxhash

from castore.errors import InvalidName
from castore.format.s3 import session_of
from castore.model import encode_name
from castore.s3.client.bucket import Bucket, Listed

CONFIG_KEY: Final = "castore.json"  # what is fixed for the store's life
PACKS: Final = "packs/"
NAMES: Final = "names/"  # manifests
BATCHES: Final = "batches/"  # many manifests in one object, and the root that tells of them
BATCHES_ROOT_KEY: Final = f"{BATCHES}root"
PINS: Final = "pins/"  # what writers rely on
HINTS: Final = "hints/"  # which chunks are in which packs
SAMPLES: Final = "samples/"  # which hints tell of which chunks, where there are many hints
LISTINGS: Final = "listings/"  # what names map to, for who lists
GC: Final = "gc/"  # what collectors are at
GC_STATE_KEY: Final = f"{GC}state"
CONDEMNED_LISTS: Final = f"{GC}condemned/"  # lists of packs
DAMAGED: Final = "damaged/"  # marks of packs that nothing is to rely on
DAMAGED_ANY: Final = f"{DAMAGED}marked"
QUARANTINE: Final = "quarantine/"  # copies that a repair keeps
PROBE: Final = "probe/"  # for moments, while the server is asked what it honours
PROPOSALS: Final = f"{PROBE}{CONFIG_KEY}/"

_PACK = re.compile(f"{PACKS}([0-9a-f]{{32}})-[0-9a-f]{{16}}")
_BATCH = re.compile(f"{BATCHES}([0-9a-f]{{32}})")
_PIN = re.compile(f"{PINS}([0-9a-f]{{16}})/[0-9]{{1,9}}")
_CONDEMNED = re.compile(f"{CONDEMNED_LISTS}([0-9]{{1,18}})")
_DAMAGED = re.compile(f"{DAMAGED}([0-9a-f]{{32}})(-[0-9a-f]{{16}})?")  # of earlier ones, without
_LISTING = re.compile(f"{LISTINGS}([1-9][0-9]{{0,6}}-)?[0-9a-f]{{32}}")  # before, with a count
_HINTS = re.compile(f"{HINTS}[0-9a-f]{{2}}/([0-9a-f]{{32}})")
_SAMPLES = re.compile(f"({SAMPLES}[0-9a-f]{{32}})(\\.head|/[0-9]{{1,5}})")


# ---------------------------------------------------------------- the keys it gives


def pack_key(pack_id: bytes) -> str:
    return f"{PACKS}{pack_id.hex()}-{session_of(pack_id).hex()}"


def name_key(name: bytes) -> str:
    return f"{NAMES}{name.decode()}"


def batch_key(batch_id: bytes) -> str:
    return f"{BATCHES}{batch_id.hex()}"


def pin_key(session: bytes, number: int) -> str:
    return f"{PINS}{session.hex()}/{number}"


def new_hints_key() -> str:
    return hints_key(secrets.token_bytes(16))


def hints_key(hints_id: bytes) -> str:
    name = hints_id.hex()
    return f"{HINTS}{name[:2]}/{name}"


def new_samples_key() -> str:
    """Of their head: it sorts before their shards, and is no folder where keys are paths."""
    return f"{SAMPLES}{secrets.token_hex(16)}.head"


def shard_key(samples_key: str, shard: int) -> str:
    return f"{samples_key.removesuffix('.head')}/{shard}"


def listing_key(name: bytes, etag: str) -> str:
    """Of the listing whose first name is this, with this ETag: who lists it, from there on, can ask
    for what follows without looking for it."""
    return LISTINGS + xxhash.xxh3_128_hexdigest(b"\0".join((name, etag.encode())))


def condemned_key(version: int) -> str:
    """Of the list that the state of that version is the first to refer to."""
    return f"{CONDEMNED_LISTS}{version}"


def new_damage_key(pack_id: bytes) -> str:
    """Each mark has one of its own, so that who takes one away takes no other."""
    return f"{DAMAGED}{pack_id.hex()}-{secrets.token_hex(8)}"


def new_proposal_key() -> str:
    return f"{PROPOSALS}{secrets.token_hex(16)}"


def quarantine_key(key: str) -> str:
    """Where a repair keeps what was at another key."""
    return f"{QUARANTINE}{key}"


# ---------------------------------------------------------------- what a key that is there is


def name_of(entry: Listed) -> bytes | None:
    """The name whose manifest this is."""
    if not entry.key.startswith(NAMES) or (not entry.size and entry.key.endswith("/")):
        return None  # a manifest has bytes, a folder's marker has none
    try:
        return encode_name(entry.key.removeprefix(NAMES))
    except InvalidName:
        return None


def pack_of(key: str) -> bytes | None:
    """The id of the pack that this is."""
    pack_id = _id_in(_PACK, key)
    return pack_id if pack_id is not None and pack_key(pack_id) == key else None


def batch_of(key: str) -> bytes | None:
    """The id of the batch that this is."""
    return _id_in(_BATCH, key)


def listed_packs(bucket: Bucket) -> dict[bytes, int]:
    """All packs, and their bytes."""
    found = {pack_of(entry.key): entry.size for entry in bucket.list(PACKS)}
    return {pack_id: size for pack_id, size in found.items() if pack_id is not None}


def session_of_pin(key: str) -> bytes | None:
    """The session that wrote the pin."""
    return _id_in(_PIN, key)


def damaged_pack_of(key: str) -> bytes | None:
    """The pack that this marks as damaged."""
    return _id_in(_DAMAGED, key)


def condemned_version(key: str) -> int | None:
    """The version of the state whose list this is."""
    match = _CONDEMNED.fullmatch(key)
    return None if match is None else int(match[1])


def is_hints(key: str) -> bool:
    return _HINTS.fullmatch(key) is not None


def hints_id_of(key: str) -> bytes:
    """What `hints_key` makes it of. Raises ValueError for other keys."""
    hints_id = _id_in(_HINTS, key)
    if hints_id is None:
        raise ValueError(f"{key!r} is not one of hints")
    return hints_id


def is_samples_head(key: str) -> bool:
    match = _SAMPLES.fullmatch(key)
    return match is not None and match[2] == ".head"


def samples_of_shard(key: str) -> str | None:
    """The key of the head of the samples that this is a shard of."""
    match = _SAMPLES.fullmatch(key)
    return f"{match[1]}.head" if match is not None and match[2] != ".head" else None


def is_listing(key: str) -> bool:
    return _LISTING.fullmatch(key) is not None


def is_collectors(key: str) -> bool:
    """Whether it is what collectors announce, or did."""
    return key == GC_STATE_KEY or condemned_version(key) is not None


def _id_in(pattern: re.Pattern[str], key: str) -> bytes | None:
    match = pattern.fullmatch(key)
    return None if match is None else bytes.fromhex(match[1])
