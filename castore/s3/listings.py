"""Listings: what names map to, many in one object, so that a list costs no request a name.

A LIST tells each name's ETag, and neither the object's size nor its time: its manifest has them.
So a writer that has put many names says at its end what they map to, under `listings/`, and a
collection puts together what there is. Who lists reads that, and asks for the manifests of the
other names alone. What is told counts only for the very ETag that the LIST shows: nothing is ever
stale, and what is missing, damaged or out of date costs time alone. Readers write nothing.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import chain, islice

from castore.errors import CastoreError
from castore.format.index import Record
from castore.format.s3 import NameFacts, decode_listing, encode_listing
from castore.s3.client.bucket import Bucket
from castore.s3.keys import LISTINGS, listing_count, new_listing_key
from castore.s3.told import read_told
from castore.system.forks import ForkLock, Rank
from castore.system.workers import Workers

NAMES_MAX = 4096  # told of in one object, of some 500 KB
TELL_MIN = 16  # fewer are not worth a request
ASK_MIN = 8  # names that nothing is known of, before what others tell is asked for
ASK_AGAIN_S = 5.0
KNOWN_MAX = 100_000  # names, in memory: some 40 MB
READ_MAX = 1000  # objects, each time it is asked
KEYS_MAX = 32  # of small objects, before a collection puts them together


class Listings:
    """Of one Store; thread-safe."""

    def __init__(self, bucket: Bucket, store_id: bytes, requests: Workers) -> None:
        self._bucket = bucket
        self._store_id = store_id
        self._requests = requests
        self._lock = ForkLock(Rank.STORES)
        self._pid = os.getpid()
        self._new: dict[bytes, NameFacts] = {}
        self._known: dict[bytes, NameFacts] = {}
        self._seen: set[str] = set()
        self._asked_at: float | None = None

    def tell(self, name: bytes, etag: str, record: Record) -> None:
        """Of a name that this process has put."""
        with self._lock:
            if self._pid != os.getpid():  # the parent tells of its own
                self._new, self._pid = {}, os.getpid()
            self._new[name] = NameFacts.of(name, etag, record)
            if len(self._new) >= NAMES_MAX:
                self._put()

    def records(self, listed: Iterable[tuple[bytes, str]]) -> dict[bytes, Record]:
        """What is told of those names, with those ETags."""
        listed = list(listed)
        found = self._found(listed)
        if len(listed) - len(found) >= ASK_MIN and self._learn():
            found = self._found(listed)
        return found

    def close(self) -> None:
        """Tell of the rest. That it fails is no reason for the closing to fail."""
        with self._lock:
            if self._pid == os.getpid() and len(self._new) >= TELL_MIN:
                self._put()

    def _found(self, listed: Iterable[tuple[bytes, str]]) -> dict[bytes, Record]:
        known = self._known
        return {
            name: facts.record
            for name, etag in listed
            if (facts := known.get(name)) is not None and facts.etag == etag
        }

    def _put(self) -> None:
        facts, self._new = list(self._new.values()), {}
        with contextlib.suppress(CastoreError):
            self._seen.add(put_listing(self._bucket, self._store_id, facts))

    def _learn(self) -> bool:
        """Read what others told since; whether there was anything."""
        with self._lock:
            now = time.monotonic()
            if self._asked_at is not None and now - self._asked_at < ASK_AGAIN_S:
                return False
            self._asked_at = now
            # Who may not read them, as where a policy names the other prefixes alone, asks for each
            # manifest. A server that is not there says so then.
            with contextlib.suppress(CastoreError):
                keys = [key for key in listed_listings(self._bucket) if key not in self._seen]
                read = partial(read_told, self._bucket, self._store_id, decode=decode_listing)
                reading = [(key, self._requests.submit(read, key)) for key in keys[:READ_MAX]]
                for key, future in reading:
                    told = future.result() or ()
                    self._seen.add(key)
                    if len(self._known) + len(told) <= KNOWN_MAX:
                        self._known.update((facts.name, facts) for facts in told)
                return bool(reading)
            return False


def listed_listings(bucket: Bucket) -> dict[str, int]:
    """The keys of all that there are, and of how many names each tells."""
    return {
        entry.key: count
        for entry in bucket.list(LISTINGS)
        if (count := listing_count(entry.key)) is not None
    }


def put_listing(bucket: Bucket, store_id: bytes, facts: list[NameFacts]) -> str:
    """The key that it is at."""
    key = new_listing_key(len(facts))
    bucket.put(key, encode_listing(store_id, facts), idempotent=True)
    return key


def rewrite_listings(
    bucket: Bucket, store_id: bytes, names: int, facts: Iterator[NameFacts]
) -> None:
    """Tell of all `names` names anew, as `facts` gives them in order, if what is told of them is
    scattered, lacks many, or is out of date for the most part."""
    before = listed_listings(bucket)
    told = sum(before.values())
    is_scattered = len(before) > KEYS_MAX + names // NAMES_MAX
    lacks_many = names - told >= max(4 * TELL_MIN, names // 8)
    is_old = told > 2 * names + NAMES_MAX
    if not (is_scattered or lacks_many or is_old):
        return
    while part := list(islice(facts, NAMES_MAX)):
        put_listing(bucket, store_id, part)
    bucket.delete_many(list(before))


def facts_of(pages: Iterable[list[tuple[bytes, str, Record]]]) -> Iterator[NameFacts]:
    return (NameFacts.of(*each) for each in chain.from_iterable(pages))
