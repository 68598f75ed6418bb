"""What a name maps to: the manifest that counts, in an object of its own (a single), or in a part
of a batch (docs/design/0022-batches.md has the rules, and why they are right).

Whoever reads or writes manifests does it by names and ETags, as if each were an object. An ETag
tells what has it: that of a single which always counts is the server's; that of one which was
decided by the root of batches, and that of a manifest in a batch, are marked. In a store without
batches each call is one request, as it is for a single that always counts.
"""

from __future__ import annotations

from typing import NamedTuple

from castore.errors import StoreBusy
from castore.format.config import StoreConfig
from castore.format.s3 import decode_manifest_head, manifest_head_bytes, manifest_number
from castore.format.s3_batches import decode_tombstone, is_tombstone
from castore.model import ObjectInfo
from castore.s3.batch_root import SeenRoot
from castore.s3.batches import Batches, BatchGone, Found
from castore.s3.cache.store import StoreCache
from castore.s3.client.bucket import Bucket, KeyAbsent, Reply
from castore.s3.etags import WEAK, batched_etag, is_batched, is_marked, real
from castore.s3.keys import name_key
from castore.system.clock import boot_clock

READ_S = 1800.0  # between two requests of one read, and between a root and what is decided by it
LOOK_BYTES = 16 << 10  # of a single: nearly always its head
ATTEMPTS = 50  # at what others change meanwhile: each time one of them succeeded


class Single(NamedTuple):
    """What is at a name's own key. `number` is None for one that is strong; `reply` has its first
    bytes, and `etag` is marked as theirs is."""

    etag: str
    number: int | None
    deleted: bool
    reply: Reply


class Now(NamedTuple):
    """What was found of a name: its single, what batches say of it, the root that says so, and the
    ETag of what counts, None if the name maps to nothing. A strong single says all."""

    etag: str | None
    single: Single | None
    found: Found | None = None
    seen: SeenRoot | None = None


class Singles:
    """Manifests at their names' own keys, whether they count or not: see `Look`."""

    def __init__(self, bucket: Bucket, config: StoreConfig) -> None:
        self._bucket = bucket
        self._batches = config.batches

    def are(self, size: int) -> bool:
        """Whether what has so many bytes is one, and not a tombstone."""
        return not (self._batches and is_tombstone(size))

    def first(self, name: bytes, size: int, unless: str | None = None) -> Reply | None:
        key = name_key(name)
        reply = self._bucket.get(key, byte_range=(0, size), if_none_match=unless)
        if reply is not None and not self.are(reply.size):
            raise KeyAbsent(key)
        return reply

    def part(self, name: bytes, etag: str, begin: int, end: int) -> bytes | None:
        reply = self._bucket.get(name_key(name), byte_range=(begin, end))
        return reply.body if reply.etag == etag else None


class Look:
    """Of one store. Thread-safe."""

    def __init__(self, bucket: Bucket, config: StoreConfig, cache: StoreCache) -> None:
        self.bucket = bucket
        self.store_id = config.store_id
        self.batches = Batches(bucket, config.store_id, cache) if config.batches else None

    def close(self) -> None:
        if self.batches is not None:
            self.batches.close()

    def first(self, name: bytes, size: int, unless: str | None = None) -> Reply | None:
        """The first `size` bytes of the name's manifest, or all; None if its ETag is `unless`.
        Raises KeyAbsent, and what reading a batch does."""
        if self.batches is None:
            return self.bucket.get(name_key(name), byte_range=(0, size), if_none_match=unless)
        for _ in range(ATTEMPTS):
            try:
                now = self.look(name, size, unless)
                if now is None:
                    return None
                if now.etag is None:
                    raise KeyAbsent(name_key(name))
                if now.etag == unless:
                    return None
                if not is_batched(now.etag):
                    assert now.single is not None
                    return now.single.reply
                return self._read(now, size)
            except BatchGone as gone:
                self._forget(gone)
        raise busy(name)

    def part(self, name: bytes, etag: str, begin: int, end: int) -> bytes | None:
        """Bytes `[begin, end)` of the version of the name with this ETag; None if the name has
        another by now. Raises KeyAbsent."""
        if self.batches is not None and is_batched(etag):
            found = self._in_batch(name, etag, self.batches.fresh())
            return None if found is None else self.batches.read(found, begin, end)
        reply = self.bucket.get(name_key(name), byte_range=(begin, end))
        return reply.body if reply.etag == real(etag) else None

    def batched(self, name: bytes, etag: str, size: int) -> Reply | None:
        """The first `size` bytes of the manifest that was just seen to count and to have this ETag,
        if it is in a batch; else, or if that can't be told from what is in memory, None."""
        if self.batches is None or not is_batched(etag) or (seen := self.batches.seen) is None:
            return None
        found = self._in_batch(name, etag, seen)
        if found is None:
            return None
        try:
            return self._read(Now(etag, None, found), size)
        except BatchGone:
            return None

    def listed_in_batch(self, listed: ObjectInfo, size: int) -> Reply | None:
        """The first `size` bytes of the manifest of what a list just showed, if that is in a batch;
        else, or if that can't be told from what is in memory, None."""
        if self.batches is None or (seen := self.batches.seen) is None:
            return None
        name = listed.name.encode()
        try:
            found = self.batches.find(seen.root, name)
        except BatchGone:
            return None
        if found is None or (row := found.there) is None:
            return None
        shown = listed.etag, listed.mode, listed.mtime_ns
        if (row.record.etag.hex(), row.record.mode, row.record.mtime_ns) != shown:
            return None
        return self.batched(name, etag_in_batch(found), size)

    def etag_of(self, name: bytes) -> str | None:
        """That of the name's manifest; None if it maps to nothing."""
        if self.batches is None:
            try:
                return self.bucket.head(name_key(name)).etag
            except KeyAbsent:
                return None
        return self.now(name).etag

    # ------------------------------------------------------------ below

    def now(self, name: bytes) -> Now:
        """What it maps to, in a store with batches. Raises StoreBusy."""
        for _ in range(ATTEMPTS):
            try:
                now = self.look(name, 0)
                assert now is not None  # no condition was set
                return now
            except BatchGone as gone:
                self._forget(gone)
        raise busy(name)

    def look(
        self, name: bytes, size: int, unless: str | None = None, *, decisive: bool = False
    ) -> Now | None:
        """With the first `size` bytes of its single; None if that is strong and has the ETag
        `unless`. `decisive`: the root is read in any case. Raises BatchGone, StoreBusy."""
        batches = self.batches
        assert batches is not None
        while True:
            began, known = boot_clock(), batches.seen
            likely = is_batched(unless) if unless is not None else batches.known(name)
            at_once = batches.begin() if decisive or likely else None
            strong = unless if unless is not None and not is_marked(unless) else None
            try:
                single = self._single(name, size, strong)
                if single is None:
                    return None
            except KeyAbsent:
                single = None
            is_strong = single is not None and single.number is None
            if single is not None and is_strong and not decisive:
                return Now(None if single.deleted else single.etag, single)
            seen = batches.fresh() if at_once is None else at_once.result()
            found = batches.find(seen.root, name)
            if not is_strong and self._is_doubtful(name, seen, found, single, known):
                # What was put, and seen by others, before that came is not to be missed.
                was = None if single is None else real(single.etag)
                if self._etag_at(name) != was:
                    continue
            if boot_clock() - began > READ_S:
                continue
            counts = found is not None and not is_strong
            if counts and single is not None and found is not None and single.number is not None:
                counts = single.number < found.number
            if counts and found is not None:
                etag = None if found.there is None else etag_in_batch(found)
            else:
                etag = None if single is None or single.deleted else single.etag
            return Now(etag, single, found if counts else None, seen)

    def _single(self, name: bytes, size: int, strong: str | None) -> Single | None:
        """None if it has the ETag `strong`. Raises KeyAbsent, StoreBusy."""
        for _ in range(ATTEMPTS):
            reply = self.bucket.get(
                name_key(name), byte_range=(0, max(size, LOOK_BYTES)), if_none_match=strong
            )
            if reply is None:
                return None
            deleted = is_tombstone(reply.size)
            if deleted:
                _, number = decode_tombstone(reply.body)
            else:
                number = manifest_number(reply.body)
                if number is not None and not self._verify(name, reply):
                    continue
            if number is None:
                return Single(reply.etag, None, deleted, reply)
            etag = WEAK + reply.etag
            return Single(etag, number, deleted, reply._replace(etag=etag))
        raise busy(name)

    def _verify(self, name: bytes, reply: Reply) -> bool:
        """That a number is what was written, before anything is decided by it: raises FormatError.
        False where the rest of the head can't be had, as it was overwritten or went since."""
        raw = reply.body
        size = manifest_head_bytes(raw, whole=False)
        if size > len(raw):
            try:
                rest = self.bucket.get(name_key(name), byte_range=(len(raw), size))
            except KeyAbsent:
                return False
            if rest.etag != reply.etag:
                return False
            raw += rest.body
        decode_manifest_head(raw)
        return True

    def _is_doubtful(
        self,
        name: bytes,
        seen: SeenRoot,
        found: Found | None,
        single: Single | None,
        known: SeenRoot | None,
    ) -> bool:
        """Whether what counts, or what does not as it is retired, may have come to do so since the
        single was asked for: the root that was `known` then does not tell."""
        assert self.batches is not None
        newest = known.root.version if known is not None else -1
        if found is not None and found.number > newest:
            return True
        counts = -1 if found is None else found.number
        if single is not None and single.number is not None:
            counts = max(counts, single.number)
        return self.batches.retired_number(seen.root, name) > counts

    def _etag_at(self, name: bytes) -> str | None:
        """That of its single, as the server has it."""
        try:
            return self.bucket.head(name_key(name)).etag
        except KeyAbsent:
            return None

    def _in_batch(self, name: bytes, etag: str, seen: SeenRoot) -> Found | None:
        """Where a manifest of the name is that has this ETag, if it is what batches say."""
        assert self.batches is not None
        try:
            found = self.batches.find(seen.root, name)
        except BatchGone:
            return None
        if found is None or found.there is None or etag_in_batch(found) != etag:
            return None
        return found

    def _read(self, now: Now, size: int) -> Reply:
        batches, etag, found = self.batches, now.etag, now.found
        assert batches is not None
        assert etag is not None
        assert found is not None
        assert found.row is not None
        return Reply(batches.read(found, 0, size), etag, found.row.length, 0.0)

    def _forget(self, gone: BatchGone) -> None:
        """A batch that is gone was collected, and a newer root does not tell of it; or it is lost:
        raises it then."""
        assert self.batches is not None
        if self.batches.has(gone.batch_id):
            raise gone


def etag_in_batch(found: Found) -> str:
    """Empty for a drop."""
    return "" if found.row is None else batched_etag(found.row.digest)


def busy(name: bytes) -> StoreBusy:
    return StoreBusy(f"{name.decode()!r} kept changing: repeat it")
