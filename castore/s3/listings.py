"""Listings: what names map to, many in one object, so that a list costs no request a name.

A LIST tells each name's ETag, and neither the object's size nor its time: its manifest has them.
So a writer that has put many names says at its end what they map to, under `listings/`, and a
collection puts together what there is. Who lists reads that, and asks for the manifests of the
other names alone. A listing's key follows from the first name that it tells of, and its ETag: who
lists a folder with many names, or all of a store, asks for the one that begins with the first that
is not known, and lists the listings only if that does not do. What is told counts only for the very
ETag that the LIST shows: nothing is ever stale, and what is missing, damaged or out of date costs
time alone. Readers write nothing. Of names in batches nothing is told here: the batches do it.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import chain, groupby, islice

from castore.errors import CastoreError
from castore.format.index import Record
from castore.format.s3_told import NameFacts, decode_listing, encode_listing
from castore.s3.client.bucket import Bucket, Listed
from castore.s3.etags import is_batched
from castore.s3.keys import LISTINGS, is_listing, listing_key
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
FOLDER_MIN = 512  # names in one folder, which begin a listing of their own
GUESS_MIN = 256  # names that nothing is known of, before the listing of their first is asked for
MISSED_MAX = 10_000  # of those that were not there, in memory


class Listings:
    """Of one Store; thread-safe."""

    def __init__(self, bucket: Bucket, store_id: bytes, requests: Workers) -> None:
        self._bucket = bucket
        self._store_id = store_id
        self._requests = requests
        self._lock = ForkLock(Rank.STORES)  # of what is read
        # Of what is to be told, by the threads that who reads waits for; never with the other.
        self._telling = ForkLock(Rank.STORES)
        self._pid = os.getpid()
        self._new: dict[bytes, NameFacts] = {}
        self._known: dict[bytes, NameFacts] = {}
        self._seen: dict[str, str] = {}  # listings that were read or put, with their ETags
        self._missed: set[str] = set()
        self._asked_at: float | None = None

    def tell(self, name: bytes, etag: str, record: Record) -> None:
        """Of a name that this process has put."""
        with self._telling:
            if self._pid != os.getpid():  # the parent tells of its own
                self._new, self._pid = {}, os.getpid()
            self._new[name] = NameFacts.of(name, etag, record)
            if len(self._new) >= NAMES_MAX:
                self._put()

    def records(self, listed: Iterable[tuple[bytes, str]]) -> dict[bytes, Record]:
        """What is told of those names, with those ETags."""
        listed = list(listed)
        found, before = self._found(listed), -1
        while len(found) > before and len(listed) - len(found) >= GUESS_MIN:
            before = len(found)
            first = next(each for each in listed if each[0] not in found)
            if self._guess(listing_key(*first)):
                found = self._found(listed)
        if len(listed) - len(found) >= ASK_MIN and self._learn():
            found = self._found(listed)
        return found

    def close(self) -> None:
        """Tell of the rest. That it fails is no reason for the closing to fail."""
        with self._telling:
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
        facts, self._new = sorted(self._new.values()), {}
        with contextlib.suppress(CastoreError):
            for part in parts(facts):
                if len(part) >= TELL_MIN:
                    self._seen.update([put_listing(self._bucket, self._store_id, part)])

    def _guess(self, key: str) -> bool:
        """Read the listing with this key, if there is one; whether there was anything. Nothing has
        to be listed for that, however many listings the store has."""
        with self._lock:
            if key in self._missed:
                return False
            try:
                told = read_told(self._bucket, self._store_id, key, decode_listing)
            except CastoreError:  # the next list asks again: it may be there all the same
                return False
            if told:
                self._seen[key] = ""
                while self._known and len(self._known) + len(told) > KNOWN_MAX:
                    del self._known[next(iter(self._known))]
                self._known.update((facts.name, facts) for facts in told)
            elif len(self._missed) < MISSED_MAX:
                self._missed.add(key)
            return bool(told)

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
                there = listed_listings(self._bucket)
                # Of one that was read without a list, it is not known which version it was: this.
                self._seen |= {key: there[key].etag for key in there if self._seen.get(key) == ""}
                keys = [key for key, entry in there.items() if self._seen.get(key) != entry.etag]
                read = partial(read_told, self._bucket, self._store_id, decode=decode_listing)
                reading = [(key, self._requests.submit(read, key)) for key in keys[:READ_MAX]]
                for key, future in reading:
                    told = future.result() or ()
                    self._seen[key] = there[key].etag
                    if len(self._known) + len(told) <= KNOWN_MAX:
                        self._known.update((facts.name, facts) for facts in told)
                return bool(reading)
            return False


def listed_listings(bucket: Bucket) -> dict[str, Listed]:
    """All that there are, by their keys."""
    return {entry.key: entry for entry in bucket.list(LISTINGS) if is_listing(entry.key)}


def put_listing(bucket: Bucket, store_id: bytes, facts: list[NameFacts]) -> tuple[str, str]:
    """(its key, its ETag)."""
    key = listing_key(facts[0].name, facts[0].etag)
    return key, bucket.put(key, encode_listing(store_id, facts), idempotent=True).etag


def rewrite_listings(
    bucket: Bucket, store_id: bytes, names: int, full_bytes: int, facts: Iterable[NameFacts]
) -> None:
    """Tell of all `names` names anew, as `facts` gives them in order, if what is told of them is
    scattered, lacks many, or is out of date for the most part. `full_bytes` is what it takes to
    tell of each once."""
    before = listed_listings(bucket)
    told_bytes = sum(entry.size for entry in before.values())
    is_scattered = len(before) > KEYS_MAX + names // GUESS_MIN
    lacks_bytes = full_bytes - told_bytes
    lacks_many = names > 0 and lacks_bytes * names >= max(4 * TELL_MIN, names // 8) * full_bytes
    is_old = told_bytes > 2 * full_bytes + NAMES_MAX * 100
    if not (is_scattered or lacks_many or is_old):
        return
    kept = {put_listing(bucket, store_id, part)[0] for part in parts(facts)}
    bucket.delete_many([key for key in before if key not in kept])


def parts(facts: Iterable[NameFacts]) -> Iterator[list[NameFacts]]:
    """What is told, in order of the names, in parts of one object each. A folder with many names
    begins one, so that who lists the folder finds it by its first name."""
    part: list[NameFacts] = []
    for _, folder in groupby(facts, key=lambda each: each.name.rpartition(b"/")[0]):
        first = list(islice(folder, FOLDER_MIN))
        if part and len(first) == FOLDER_MIN:
            yield part
            part = []
        for each in chain(first, folder):
            part.append(each)
            if len(part) == NAMES_MAX:
                yield part
                part = []
    if part:
        yield part


def facts_of(pages: Iterable[list[tuple[bytes, str, Record]]]) -> Iterator[NameFacts]:
    """Of those that are not in batches, which tell of themselves."""
    return (
        NameFacts.of(name, etag, record)
        for name, etag, record in chain.from_iterable(pages)
        if not is_batched(etag)
    )
