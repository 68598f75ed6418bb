"""castore.json on S3: read, made by the first to put, and made again when it was lost.

Every manifest, also one in a batch, and every pack says what was in it, so that it is lost for good
only with all of them. A prefix that has some of these and no castore.json is never made a new store
of: that would get another seed, and nothing of the old one could be read any more.
"""

from __future__ import annotations

import contextlib
import errno
import time
from collections import Counter
from collections.abc import Iterator
from itertools import chain, islice

from castore.check.config import config_anew
from castore.errors import (
    ConfigLost,
    FormatError,
    NotAStore,
    RemoteError,
    StoreIOError,
    StoreNotFound,
    UnsupportedFormat,
)
from castore.format.config import StoreConfig, encode_config
from castore.format.pack import PACK_HEADER_BYTES, decode_pack_config, decode_pack_header
from castore.format.s3 import MANIFEST_MAGIC, decode_manifest_head
from castore.format.s3_batches import decode_batch_head, is_tombstone
from castore.s3.batch_root import create_root
from castore.s3.client.bucket import Bucket, KeyAbsent, OutcomeUnknown, PreconditionFailed
from castore.s3.client.probe import probe
from castore.s3.client.put_once import put_once
from castore.s3.keys import (
    BATCHES,
    CONFIG_KEY,
    DAMAGED,
    GC,
    HINTS,
    LISTINGS,
    NAMES,
    PACKS,
    PINS,
    PROBE,
    PROPOSALS,
    QUARANTINE,
    SAMPLES,
    batch_of,
    new_proposal_key,
    pack_of,
)
from castore.s3.quarantine import keep_copy
from castore.s3.told import undamaged
from castore.stream.config import parse_config

PROPOSAL_S = 2.5  # more than the second that S3 rounds times to
PROPOSAL_ATTEMPTS = 3
CONFIG_BYTES_MAX = 1 << 17
WITNESSES_MAX = 16  # packs, and as many manifests and batches, that are asked
HEAD_BYTES_MAX = 1 << 20
BATCH_HEAD_BYTES_MAX = 8 << 20  # of all that has the names of a batch

_KINDS = (PACKS, NAMES, BATCHES)  # of what says what was in castore.json
_OURS = (NAMES, BATCHES, PACKS, PINS, GC, HINTS, SAMPLES, LISTINGS, DAMAGED, QUARANTINE)


def read_config(bucket: Bucket) -> StoreConfig | None:
    """None if there is none. Raises ConfigLost, UnsupportedFormat."""
    url = bucket.settings.url

    def read() -> StoreConfig:
        return parse_config(bucket.get(CONFIG_KEY, byte_range=(0, CONFIG_BYTES_MAX)).body, url)

    try:
        return undamaged(read)
    except KeyAbsent:
        return None
    except UnsupportedFormat:
        raise
    except FormatError as error:
        raise ConfigLost(f"{error}: castore -r {url} check --repair makes it again") from error


def server_time(bucket: Bucket) -> float:
    """Seconds since the epoch, by the clock of the server that has the store. Raises ConfigLost,
    StoreNotFound."""
    try:
        now = bucket.head(CONFIG_KEY).date
    except KeyAbsent:
        raise_if_lost(bucket)
        raise store_not_found(bucket.settings.url) from None
    if not now:
        raise RemoteError(f"{bucket.settings.url}: the server sends no Date")
    return now


def store_not_found(url: str) -> StoreNotFound:
    said = f"there is no store at {url}: check the URL, or make one with a put"
    return StoreNotFound(errno.ENOENT, said)


def create(bucket: Bucket, config: StoreConfig) -> StoreConfig:
    """Make the store, unless another does at the same time; the config that it has then. Raises
    NotAStore, ConfigLost."""
    url = bucket.settings.url
    for entry in bucket.list():
        if entry.key == CONFIG_KEY:
            break  # another made it just now
        if entry.key.startswith(_OURS):
            raise_if_lost(bucket)
        if not entry.key.startswith(PROBE):
            raise NotAStore(
                f"{url} is not empty and not a castore store ({entry.key!r} is there): choose an "
                "empty prefix"
            )
    else:
        _write_config(bucket, config)
    written = read_config(bucket)
    if written is None:
        raise StoreIOError(f"{url} could not be made: repeat it")
    return written


# ---------------------------------------------------------------- a castore.json that is lost


def raise_if_lost(bucket: Bucket, *, recoverable: bool = True) -> None:
    """Raises ConfigLost if what is there is a store whose castore.json is not."""
    url = bucket.settings.url
    for _ in chain.from_iterable(_witnesses(bucket, kind) for kind in _KINDS):
        remedy = (
            f"castore -r {url} check --repair makes it again from what packs and manifests say"
            if recoverable
            else "its packs and manifests, of an older castore or damaged, do not say what it was: "
            "put a copy of it back"
        )
        raise ConfigLost(f"castore.json of the store {url} is gone or damaged: {remedy}")


def repair_config(bucket: Bucket) -> str:
    """Have the castore.json there that packs and manifests say was there, in the bytes that castore
    writes; what was done for it, "" if there was nothing to do, or nothing is there that says. What
    was in its place is kept below `quarantine/`. Raises ConfigLost where what is there does not
    say, or not with one voice."""
    try:
        there = bucket.get(CONFIG_KEY, byte_range=(0, CONFIG_BYTES_MAX)).body
    except KeyAbsent:
        there = None
    url = bucket.settings.url
    found = None
    if there is not None:
        with contextlib.suppress(FormatError):
            found = parse_config(there, url)
    votes = Counter(_told(bucket))
    if there is not None and found is not None and (not votes or found in votes):
        return _rewrite(bucket, there, found)  # others than it may have been copied here
    if not votes:
        raise_if_lost(bucket, recoverable=False)
        return ""
    first = votes.most_common(2)
    if len(first) > 1 and first[0][1] == first[1][1]:
        raise ConfigLost(
            f"what is at {url} belongs to several stores: put the right castore.json back by hand"
        )
    copy = None if there is None else keep_copy(bucket, CONFIG_KEY, there)
    # Who else repairs it puts the same.
    bucket.put(CONFIG_KEY, encode_config(first[0][0]), idempotent=True)
    was = "gone" if copy is None else f"damaged (the old one is {copy})"
    return f"castore.json was {was}, and is made again from what packs and manifests say"


def _rewrite(bucket: Bucket, there: bytes, config: StoreConfig) -> str:
    """castore.json as castore writes it, where it says the same in other bytes; what was done."""
    anew = config_anew(there, config)
    if anew is None:
        return ""
    copy = keep_copy(bucket, CONFIG_KEY, there)
    bucket.put(CONFIG_KEY, anew, idempotent=True)
    return f"castore.json is written anew, as castore does; the old one is {copy}"


def _told(bucket: Bucket) -> Iterator[StoreConfig]:
    """What packs and manifests say of their store, of some of each."""
    for kind in _KINDS:
        told = (config for config in _witnesses(bucket, kind) if config is not None)
        yield from islice(told, WITNESSES_MAX)


def _witnesses(bucket: Bucket, kind: str) -> Iterator[StoreConfig | None]:
    """What each pack, or manifest, or the first one of each batch, says of its store; None for one
    that is damaged or too old."""
    for entry in bucket.list(kind):
        try:
            if kind == NAMES:
                raw = bucket.get(entry.key, byte_range=(0, HEAD_BYTES_MAX)).body
                if raw[:4] == MANIFEST_MAGIC:
                    yield decode_manifest_head(raw).config
                elif is_tombstone(len(raw)):
                    continue
            elif kind == BATCHES:
                if batch_of(entry.key) is not None and (raw := _first_of(bucket, entry.key)):
                    yield decode_manifest_head(raw).config
            elif pack_of(entry.key) is not None:
                raw = bucket.get(entry.key, byte_range=(0, PACK_HEADER_BYTES)).body
                decode_pack_header(raw)
                yield decode_pack_config(raw)
        except KeyAbsent:
            continue
        except (FormatError, UnsupportedFormat):
            yield None


def _first_of(bucket: Bucket, key: str) -> bytes:
    """The first manifest of the batch; nothing where all that it says is that names are deleted.
    Raises FormatError, KeyAbsent."""
    raw = bucket.get(key, byte_range=(0, HEAD_BYTES_MAX)).body
    try:
        names = decode_batch_head(raw).names
    except FormatError:
        if len(raw) < HEAD_BYTES_MAX:
            raise
        raw = bucket.get(key, byte_range=(0, BATCH_HEAD_BYTES_MAX)).body
        names = decode_batch_head(raw).names
    if not names.rows:
        raise FormatError("batch has no names")
    first = next((row for row in names.rows if not row.deleted), None)
    if first is None:
        return b""
    return bucket.get(key, byte_range=(first.offset, first.end)).body


# ---------------------------------------------------------------- making it


def _write_config(bucket: Bucket, config: StoreConfig) -> None:
    """What is read back afterwards counts: of several that create it at once, all use what one of
    them wrote."""
    features = probe(bucket)
    # Batches of names stand on compare-and-swap.
    batches = features.if_none_match and features.if_match_put and features.if_match_delete
    config = config._replace(batches=batches)
    raw = encode_config(config)
    if not features.if_none_match:
        _write_what_was_proposed_first(bucket, raw)
        return
    with contextlib.suppress(PreconditionFailed, OutcomeUnknown):
        put_once(bucket, CONFIG_KEY, lambda _: raw, if_none_match=True)
        if config.batches:
            create_root(bucket, config.store_id)


def _write_what_was_proposed_first(bucket: Bucket, raw: bytes) -> None:
    """Where the server ignores If-None-Match, whoever writes castore.json writes the same bytes:
    the proposal that came first by the server's clock, `raw` if it is ours.

    We look at the proposals so long after ours that any that we do not see is later than it by
    that clock, whatever its resolution. They are removed only once castore.json is there, so it is
    read after they are listed.
    """
    _propose(bucket, raw)
    time.sleep(PROPOSAL_S)
    proposals = sorted(bucket.list(PROPOSALS), key=lambda entry: (entry.modified, entry.key))
    if proposals and read_config(bucket) is None:
        with contextlib.suppress(KeyAbsent):  # removed: castore.json is there by now
            first = bucket.get(proposals[0].key)
            bucket.put(CONFIG_KEY, first.body, idempotent=True)
    bucket.delete_many([entry.key for entry in proposals])


def _propose(bucket: Bucket, raw: bytes) -> None:
    """Each attempt under a key of its own: one that landed again would be dated anew."""
    for left in reversed(range(PROPOSAL_ATTEMPTS)):
        try:
            bucket.put(new_proposal_key(), raw)
            return
        except OutcomeUnknown as lost:
            if not left:
                raise StoreIOError(
                    f"{bucket.settings.url} could not be made ({lost.__cause__}): repeat it"
                ) from lost
