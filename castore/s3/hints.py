"""Hints: what the packs that others uploaded hold, so that it need not be uploaded again.

Each writer puts the footers of its packs, many in one object, under `hints/`; the others read what
is new there, once, before they first look chunks up. Only ever hints: a chunk that they do not tell
of is uploaded again, and a pack that they tell of is looked for before it is relied on.

Objects of few packs add up, so a writer that finds many merges them into one, if its own is among
the first of them: of many writers that end at once, a few do. Two that do so at once only tell
everything twice, and a reader that finds an object gone between its listing and its
reading misses it until it opens the store again.

Of a store of many packs nobody reads all of them: beyond READ_BYTES_MAX, what samples cover is read
where it tells of one of the chunks that are looked up (see `samples`).
"""

from __future__ import annotations

import contextlib
import os
import random
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise

from castore.errors import CastoreError
from castore.format.pack import PackEntry
from castore.format.s3_samples import is_sampled
from castore.format.s3_told import decode_hints, encode_hints
from castore.model import Location
from castore.s3.cache.store import StoreCache
from castore.s3.client.bucket import Bucket
from castore.s3.keys import HINTS, SAMPLES, is_hints, new_hints_key
from castore.s3.samples import Sampled, write_samples
from castore.s3.told import read_told
from castore.s3.untold import FEW_CHUNKS, Untold
from castore.system.forks import ForkLock, Rank
from castore.system.workers import Future, Workers

FRAMES_MAX = 1 << 16  # told of in one object, of about 2 MB: what 4 GiB of packs hold
SMALL_BYTES = 1 << 20  # an object that may be merged
SMALL_MAX = 32  # of them, before they are
MERGERS = 4  # whose objects sort first, out of however many there are
MERGED_BYTES_MAX = 4 << 20  # at once, the smallest first: in memory it is ten times that
READ_AT_ONCE = 16
# New to a machine, before its first put: more are read only as they are needed. It takes 4 seconds,
# most of which is to remember them.
READ_BYTES_MAX = 16 << 20
# Objects, and more as chunks are looked up: to read one costs a third of what keeping a chunk
# for a month does. Else each of a thousand machines that come at once would read what all others
# have told of.
READ_LEAST = 32
SAMPLE_BYTES = 8 << 20  # of hints that no samples cover, before some are written
ASKED_FIRST = 8  # chunks looked up by samples; twice as many each time that none of them leads on
ASKED_MAX = 56  # in vain, of one batch
LARGE_FRAMES = 32  # of a pack that a long stream filled, and not a small object alone
REMEMBERED_MAX = 1 << 20  # chunks that were looked up in vain

Pack = tuple[bytes, Sequence[PackEntry]]


class Hints:
    """Of one Store; thread-safe."""

    def __init__(
        self, bucket: Bucket, store_id: bytes, cache: StoreCache, requests: Workers
    ) -> None:
        self._bucket = bucket
        self._store_id = store_id
        self._cache = cache
        self._requests = requests
        self._lock = ForkLock(Rank.STORES)  # of what is read
        # Of what is to be told, by the threads that who reads waits for; never with the other.
        self._telling = ForkLock(Rank.STORES)
        self._pid = os.getpid()
        self._read = False
        self._listing: tuple[int, Future[dict[str, int]]] | None = None  # of which process
        self._unread: list[str] = []  # keys
        self._begun = 0  # how many of them were
        self._known_keys: set[str] = set()  # whose chunks are remembered
        self._sampled = Sampled(bucket, store_id, requests)
        self._asked: set[bytes] = set()
        self._small: dict[str, int] = {}  # sizes by key
        self._untold = Untold(cache, store_id)
        self._looked_up = 0  # chunks
        self._packs: list[Pack] = []
        self._frames = 0  # in these
        self._next: dict[bytes, bytes] = {}  # the pack that was uploaded behind each large one

    def prefetch(self) -> None:
        """Many chunks will be looked up soon: begin to find out what there is to be read."""
        with self._lock:
            if not self._read and self._listing is None:
                listing = self._requests.submit(listed_hints, self._bucket)
                self._listing = os.getpid(), listing

    def read(self, chunks: int = sys.maxsize) -> None:
        """Learn what others have stored since this machine looked last, as far as it is worth it
        for so many chunks to be looked up."""
        with self._lock:
            self._looked_up += chunks
            if not self._read:
                if self._looked_up < FEW_CHUNKS and self._untold.were_listed():
                    return
                self._list()
            count = max(READ_LEAST, self._looked_up) - self._begun
            if self._unread and count > 0:
                part, self._unread = self._unread[:count], self._unread[count:]
                self._begun += len(part)
                self._learn(part)

    def known(self, chunk_ids: Sequence[bytes]) -> dict[bytes, Location]:
        """Where these chunks are, as far as others have told, or this machine has stored them."""
        self.read(len(chunk_ids))
        known = self._cache.known(chunk_ids)
        if not self._sampled:
            return known
        with self._lock:
            left = [
                chunk_id
                for chunk_id in dict.fromkeys(chunk_ids)
                if is_sampled(chunk_id) and chunk_id not in known and chunk_id not in self._asked
            ]
            asked, count = 0, ASKED_FIRST
            while left and asked < ASKED_MAX:
                now, left = left[:count], left[count:]
                asked += len(now)
                if len(self._asked) > REMEMBERED_MAX:
                    self._asked.clear()
                self._asked.update(now)
                telling = self._sampled.telling_of(now) - self._known_keys
                if telling:
                    self._learn(sorted(telling))
                    known = self._cache.known(chunk_ids)
                    left = [chunk_id for chunk_id in left if chunk_id not in known]
                    asked, count = 0, ASKED_FIRST
                else:
                    count *= 2
        return known

    def following(self, pack_ids: Collection[bytes], count: int) -> set[bytes]:
        """Up to `count` packs that were uploaded next behind these, as far as this Store has been
        told: what a stream that is known goes on with."""
        found: dict[bytes, None] = {}
        at = [*pack_ids]
        while at and len(found) < count:
            at = [i for i in map(self._next.get, at) if i is not None and i not in found]
            found.update(dict.fromkeys(at[: count - len(found)]))
        return {*found}

    def tell(self, packs: Sequence[Pack]) -> None:
        """Packs that are uploaded."""
        with self._telling:
            if self._pid != os.getpid():  # the parent tells of its own
                self._packs, self._frames, self._pid = [], 0, os.getpid()
            self._packs += packs
            self._frames += sum(len(entries) for _, entries in packs)
            if self._frames >= FRAMES_MAX:
                with contextlib.suppress(CastoreError):
                    self._put()

    def told(self) -> list[str]:
        """The keys of all that tells of packs now."""
        return [*listed_hints(self._bucket), *(e.key for e in self._bucket.list(SAMPLES))]

    def replace(self, before: Sequence[str], packs: Iterable[Pack]) -> None:
        """Tell of these packs in place of what was `told` before they were listed; what is told
        since may be of others."""
        with self._telling:
            self._packs = list((dict(self._packs) | dict(packs)).items())
            self._frames, self._small = 0, {}
            self._put()
            self._bucket.delete_many(before)
            self._untold.drop([pack_id for pack_id, _ in self._untold.packs()])

    def retain(self, list_packs: Callable[[], Collection[bytes]]) -> None:
        """Tell of none but the packs that there are: a collection has removed others that are yet
        to be told of. What is uploaded after they are listed is none of these."""
        with self._telling:
            told = {pack_id for pack_id, _ in [*self._packs, *self._untold.packs()]}
        gone = told.difference(list_packs())
        with self._telling:
            self._packs = [pack for pack in self._packs if pack[0] not in gone]
            self._frames = sum(len(entries) for _, entries in self._packs)
            self._untold.drop(gone)

    def close(self, requests: Workers) -> None:
        """Tell of the rest, or leave it to a later process of this machine. That it fails is no
        reason for the closing to fail."""
        with self._telling, contextlib.suppress(CastoreError):
            if self._pid == os.getpid() and self._packs and not self._untold.leave(self._packs):
                left = dict(self._untold.packs())
                self._packs = list((left | dict(self._packs)).items())
                own = min(self._put())
                self._untold.drop(left)
                before_us = sum(key < own for key in self._small)
                if len(self._small) > SMALL_MAX and before_us < MERGERS:
                    self._merge(requests)

    def _list(self) -> None:
        """Find out what there is to be read."""
        seen = self._cache.hints_seen()
        pid, listing = self._listing or (0, None)
        self._listing = None
        if listing is None or pid != os.getpid():  # the thread at it is the parent's
            listed = listed_hints(self._bucket)
        else:
            listed = listing.result()
        self._known_keys = seen & listed.keys()
        new = [key for key in listed if key not in seen]
        random.shuffle(new)  # several machines that are at it each read others
        if sum(listed[key] for key in new) > READ_BYTES_MAX:
            self._read_some(new, listed)
        else:
            self._unread = sorted(new, key=listed.__getitem__, reverse=True)  # which tell most
            self._untold.note_listed()
        if gone := seen.difference(listed):
            self._cache.note_hints((), gone)
        self._small = {key: size for key, size in listed.items() if size < SMALL_BYTES}
        self._read = True

    def _learn(self, keys: Sequence[str]) -> dict[str, list[tuple[bytes, list[PackEntry]]]]:
        """Read these, and remember their chunks; what they tell."""
        told = {}
        for i in range(0, len(keys), READ_AT_ONCE):
            part = keys[i : i + READ_AT_ONCE]
            futures = [self._requests.submit(self._read_one, key) for key in part]
            for key, future in zip(part, futures, strict=True):
                told[key] = future.result() or []
                self._cache.add_chunks(told[key])
                self._note_order(told[key])
            self._cache.note_hints(part)
        self._known_keys.update(keys)
        return told

    def _note_order(self, packs: Sequence[Pack]) -> None:
        large = [pack_id for pack_id, entries in packs if len(entries) >= LARGE_FRAMES]
        self._next.update(pairwise(large))

    def _read_some(self, new: Sequence[str], listed: Mapping[str, int]) -> None:
        """Read what no samples cover, as much as is bearable, and leave samples of that for those
        who come next."""
        covered = self._sampled.read()
        left = [key for key in new if key not in covered]
        total = 0
        reading = [key for key in left if (total := total + listed[key]) <= READ_BYTES_MAX]
        del reading[max(READ_LEAST, self._looked_up) :]
        told = self._learn(reading)
        if sum(listed[key] for key in reading) >= SAMPLE_BYTES:
            with contextlib.suppress(CastoreError):
                write_samples(self._bucket, self._store_id, told)

    def _put(self) -> list[str]:
        """Write what is to be told; under which keys."""
        keys = []
        packs, self._packs, self._frames = self._packs, [], 0
        for part in in_parts(packs):
            raw = encode_hints(self._store_id, part)
            key = new_hints_key()
            self._bucket.put(key, raw, idempotent=True)
            self._cache.note_hints([key])
            self._known_keys.add(key)
            keys.append(key)
            if len(raw) < SMALL_BYTES:
                self._small[key] = len(raw)
        return keys

    def _merge(self, requests: Workers) -> None:
        merged, total = [], 0
        for key, size in sorted(self._small.items(), key=lambda item: item[1]):
            if total + size > MERGED_BYTES_MAX:
                break
            merged.append(key)
            total += size
        told: dict[bytes, Sequence[PackEntry]] = {}
        read: list[str] = []  # others are gone, or only a later castore can read them
        for key, reading in [(key, requests.submit(self._read_one, key)) for key in merged]:
            packs = reading.result()
            if packs is not None:
                told.update(packs)
                read.append(key)
            del self._small[key]
        self._packs = list(told.items())
        self._put()
        self._bucket.delete_many(read)

    def _read_one(self, key: str) -> list[tuple[bytes, list[PackEntry]]] | None:
        return read_told(self._bucket, self._store_id, key, decode_hints)


def listed_hints(bucket: Bucket) -> dict[str, int]:
    """The keys of all that there are, and their bytes."""
    return {entry.key: entry.size for entry in bucket.list(HINTS) if is_hints(entry.key)}


def in_parts(packs: Iterable[Pack]) -> Iterator[list[Pack]]:
    """The packs in lists of about FRAMES_MAX frames."""
    part: list[Pack] = []
    frames = 0
    for pack in packs:
        part.append(pack)
        frames += len(pack[1])
        if frames >= FRAMES_MAX:
            yield part
            part, frames = [], 0
    if part:
        yield part


def rewrite_hints(
    bucket: Bucket,
    store_id: bytes,
    listed: dict[str, int],
    is_gone: Callable[[bytes], bool],
    *,
    covered: Collection[str] = (),
) -> None:
    """Take packs that are gone out of the hints `listed`, and put small objects of hints together.
    Those that replace others are there before the others go: a reader may be told twice, never
    less. Of what is left as it is, and that samples do not cover yet, samples are written, where
    that is much."""
    small = {key for key, size in listed.items() if size < SMALL_BYTES}
    merged = small if len(small) > SMALL_MAX else set()
    kept: dict[bytes, Sequence[PackEntry]] = {}
    replaced: list[str] = []
    sampled: dict[str, list[tuple[bytes, list[PackEntry]]]] = {}

    def put() -> None:
        """Write what is kept, and drop what it replaces."""
        for part in in_parts(kept.items()):
            bucket.put(new_hints_key(), encode_hints(store_id, part), idempotent=True)
        if replaced:
            bucket.delete_many(replaced)
        kept.clear()
        replaced.clear()

    for key in listed:
        packs = read_told(bucket, store_id, key, decode_hints)
        if packs is None:
            continue
        if key not in merged and not any(is_gone(i) for i, _ in packs):
            if key not in covered and listed[key] >= SMALL_BYTES:
                sampled[key] = packs
                if sum(listed[each] for each in sampled) >= READ_BYTES_MAX:
                    write_samples(bucket, store_id, sampled)
                    sampled.clear()
            continue
        kept.update((i, entries) for i, entries in packs if not is_gone(i))
        replaced.append(key)
        if sum(map(len, kept.values())) >= FRAMES_MAX:
            put()
    put()
    if sum(listed[key] for key in sampled) >= SAMPLE_BYTES:
        write_samples(bucket, store_id, sampled)
