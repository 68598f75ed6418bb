"""Stores on S3 that are damaged."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from s3_stores import Open
from servers import Server
from stores import contents, fill

import castore
from castore.errors import CastoreError
from castore.format.config import decode_config
from castore.format.s3_gc import GcState, encode_condemned, encode_state
from castore.s3.client.bucket import Bucket

VALUES = {**contents(names=8), "large inline": bytes(range(256)) * 40}
# Inline up to 64 KiB on S3: so that there are packs, these are larger.
VALUES |= {f"big/{i}": random.Random(i).randbytes(90_000) for i in range(3)}
VALUES["big/shared"] = VALUES["big/0"] + b"and more" * 200


@pytest.fixture
def remote(open_moto: Open) -> Open:
    """Opens a store that holds VALUES, in several packs; nothing is cached."""
    with open_moto() as store:
        fill(store, VALUES)
    machines = iter(range(1, 1000))
    return lambda **options: open_moto(next(machines), **options)


@pytest.fixture
def bucket(moto_server: Server, remote: Open) -> Iterator[Bucket]:
    with Bucket(moto_server.settings("store")) as opened:
        yield opened


def keys(bucket: Bucket, prefix: str) -> list[str]:
    return [entry.key for entry in bucket.list(prefix)]


def change(bucket: Bucket, key: str, raw: bytes) -> None:
    bucket.put(key, raw, idempotent=True)


def flipped(raw: bytes, bit: int) -> bytes:
    changed = bytearray(raw)
    changed[bit >> 3] ^= 1 << (bit & 7)
    return bytes(changed)


def read(store: castore.Store) -> dict[str, bytes]:
    found = {}
    for name in [name for page in store._catalog.names(b"") for name in page]:
        if not name.startswith(b"quarantine/"):
            try:
                found[name.decode()] = store.gets(name.decode())
            except CastoreError:
                continue
    return found


def flip_pack(bucket: Bucket) -> None:
    key = max(keys(bucket, "packs/"), key=lambda key: bucket.head(key).size)
    raw = bucket.get(key).body
    change(bucket, key, flipped(raw, 8 * 3000))


def flip_footer(bucket: Bucket) -> None:
    for key in keys(bucket, "packs/"):
        raw = bucket.get(key).body
        change(bucket, key, flipped(raw, 8 * (len(raw) - 60)))


def cut_pack(bucket: Bucket) -> None:
    key = max(keys(bucket, "packs/"), key=lambda key: bucket.head(key).size)
    change(bucket, key, bucket.get(key).body[:30_000])


def remove_pack(bucket: Bucket) -> None:
    bucket.delete_many([max(keys(bucket, "packs/"), key=lambda key: bucket.head(key).size)])


def flip_manifest(bucket: Bucket) -> None:
    raw = bucket.get("names/big/0").body
    change(bucket, "names/big/0", flipped(raw, 8 * 90))


def flip_segment(bucket: Bucket) -> None:
    raw = bucket.get("names/big/0").body
    change(bucket, "names/big/0", flipped(raw, 8 * (len(raw) - 100)))


def garble_segment(bucket: Bucket) -> None:
    raw = bucket.get("names/big/0").body
    middle = len(raw) * 2 // 3  # where ids, or places, of chunks are
    garbled = bytes(byte ^ 0x5A for byte in raw[middle : middle + 40])
    change(bucket, "names/big/0", raw[:middle] + garbled + raw[middle + 40 :])


def cut_manifest(bucket: Bucket) -> None:
    change(bucket, "names/big/0", bucket.get("names/big/0").body[:-100])


def garble_manifest(bucket: Bucket) -> None:
    change(bucket, "names/inline", b"garbled" + bucket.get("names/inline").body[7:])


def flip_hints(bucket: Bucket) -> None:
    key = keys(bucket, "hints/")[0]
    change(bucket, key, flipped(bucket.get(key).body, 99))


def condemn(bucket: Bucket) -> str:
    """As a collector does, a pack that is gone by now; the list's key."""
    store_id = decode_config(bucket.get("castore.json").body).store_id
    key = "gc/condemned/3"
    change(bucket, key, encode_condemned(store_id, bytes(16), [bytes(16)]))
    change(bucket, "gc/state", encode_state(GcState(4, "condemned", bytes(16), key)))
    return key


def flip_state(bucket: Bucket) -> None:
    condemn(bucket)
    change(bucket, "gc/state", flipped(bucket.get("gc/state").body, 8 * 36))


def flip_list(bucket: Bucket) -> None:
    key = condemn(bucket)
    change(bucket, key, flipped(bucket.get(key).body, 8 * 70))


def remove_list(bucket: Bucket) -> None:
    bucket.delete_many([condemn(bucket)])


def remove_list_and_pack(bucket: Bucket) -> None:
    remove_list(bucket)
    remove_pack(bucket)


DAMAGES = [
    flip_pack,
    flip_footer,
    cut_pack,
    remove_pack,
    flip_manifest,
    flip_segment,
    garble_segment,
    cut_manifest,
    garble_manifest,
    flip_hints,
    flip_state,
    flip_list,
    remove_list,
    remove_list_and_pack,
]
