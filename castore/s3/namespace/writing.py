"""Changing what names map to, each by a request of its own, or many by one batch."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import NamedTuple, TypeAlias, TypeVar

from castore.errors import StoreIOError
from castore.format.index import Record
from castore.format.s3 import with_nonce
from castore.format.s3_batches import (
    BATCH_ID_BYTES,
    Drop,
    Root,
    RootEntry,
    ToBatch,
    digest_of,
    encode_batch,
    encode_tombstone,
    to_delete,
)
from castore.s3.batch_root import SeenRoot, in_order
from castore.s3.batches import BatchGone, Found
from castore.s3.client.bucket import KeyAbsent, PreconditionFailed, Reply
from castore.s3.client.delete_version import delete_version, delete_versions
from castore.s3.client.put_once import NONCE_BYTES, Landed, put_once
from castore.s3.etags import WEAK, batched_etag, is_batched, is_marked, real
from castore.s3.keys import name_key
from castore.s3.namespace.listing import Listing
from castore.s3.namespace.look import ATTEMPTS, READ_S, Now, busy
from castore.s3.presence import singles_of
from castore.s3.told import undamaged
from castore.system.clock import boot_clock
from castore.system.workers import Workers, results_of

BATCH_NAMES_MIN = 64  # fewer are as cheap one by one, and sooner
BATCH_NAMES_MAX = 8192
BATCH_BYTES_MAX = 16 << 20
ENTRIES_MAX = 8192  # of the root: with more, names are put one by one until a collection
DECISIVE_S = 60.0  # far less than READ_S: for so long one root counts for what one commit changes

T = TypeVar("T")

# Of a nonce, and of the number of the root that decided it, if one did.
MakeBody: TypeAlias = Callable[[bytes, "int | None"], bytes]


class ToPut(NamedTuple):
    name: bytes
    record: Record
    make_body: MakeBody


class Decisive(NamedTuple):
    """A root by which many names are changed, and when it was asked for, by `boot_clock`."""

    seen: SeenRoot
    began: float

    @property
    def is_new(self) -> bool:
        return boot_clock() - self.began < DECISIVE_S


class Namespace(Listing):
    """See the module."""

    def decisive(self) -> Decisive | None:
        """What the root says now, for who is to change many names; None without batches."""
        began = boot_clock()
        return None if self.batches is None else Decisive(self.batches.fresh(), began)

    def put(
        self,
        name: bytes,
        make_body: MakeBody,
        *,
        if_none_match: bool = False,
        if_match: str | None = None,
        by: Decisive | None = None,
    ) -> Landed:
        """As `put_once`, at a name and with its ETag. What has that in a batch `by` a root that was
        read for many names is taken for being no single, which its condition finds out."""
        conditional = if_none_match or (if_match is not None and is_marked(if_match))
        if self.batches is None or not conditional:
            return put_once(
                self.bucket,
                name_key(name),
                lambda nonce: make_body(nonce, None),
                if_none_match=if_none_match,
                if_match=if_match,
            )
        for _ in range(ATTEMPTS):
            try:
                landed = self._decide(name, if_match, make_body, by)
            except BatchGone as gone:
                self._forget(gone)
                continue
            if landed is not None:
                return landed
            by = None
        raise busy(name)

    def delete(self, name: bytes, etag: str, by: Decisive | None = None) -> bool:
        """Have what was just seen to have this ETag deleted; False if it was overwritten since. As
        `delete_version`; `by` as in `put`, and read since the name was seen."""
        key, batches = name_key(name), self.batches
        if batches is None:
            return delete_version(self.bucket, key, etag)

        def tombstone(nonce: bytes, number: int | None) -> bytes:
            return encode_tombstone(self.store_id, nonce, number)

        while True:
            began = boot_clock() if by is None else by.began
            if is_batched(etag) or self._is_covered(name, by):  # read after the name was seen
                break
            if boot_clock() - began < READ_S:  # else a batch may have come, and gone
                return delete_version(self.bucket, key, real(etag))
            by = None
        try:
            self.put(name, tombstone, if_match=etag, by=by)
        except PreconditionFailed:
            return self.etag_of(name) is None
        return True

    def delete_many(self, versions: Sequence[tuple[bytes, str]]) -> set[bytes]:
        """Have up to 1,000 names deleted in one request, each if it still has the ETag that it was
        just seen to have; those that are known to be gone."""
        plain = [(name, etag) for name, etag in versions if not is_marked(etag)]
        if self.batches is not None and plain:
            covered = self.covered([name for name, _ in plain])
            plain = [each for each in plain if each[0] not in covered]
        if not plain:
            return set()
        gone = delete_versions(self.bucket, [(name_key(name), etag) for name, etag in plain])
        return {name for name, _ in plain if name_key(name) in gone}

    def covered(self, names: Collection[bytes]) -> set[bytes]:
        """Those that a batch has of which the root tells that is read now, whatever counts. Raises
        StoreBusy."""
        batches = self.batches
        assert batches is not None
        return self._by_root(
            names, lambda root: {name for name in names if batches.covers(root, name)}
        )

    def in_batches(self, names: Collection[bytes]) -> dict[bytes, Found]:
        """What counts of batches and drops, by the root that is read now, for those names that they
        say something of. Raises StoreBusy."""
        batches = self.batches
        assert batches is not None

        def find(root: Root) -> dict[bytes, Found]:
            found = ((name, batches.find(root, name)) for name in names)
            return {name: each for name, each in found if each is not None}

        return self._by_root(names, find)

    def drop(self, prefix: bytes) -> SeenRoot | None:
        """Have all names deleted that batches have and that begin with the prefix, before singles
        are. The root that told of them, or of none; None in a store without batches. Raises what
        swapping the root does."""
        batches = self.batches
        if batches is None:
            return None
        before: SeenRoot | None = None

        def drop(seen: SeenRoot) -> Root | None:
            nonlocal before
            before, root = seen, seen.root
            if not root.having_below(prefix):
                return None
            others = [each for each in root.drops if not each.prefix.startswith(prefix)]
            drops = (*others, Drop(root.version + 1, batches.now(), prefix))
            return root._replace(drops=drops)

        batches.swap(drop)
        return before

    def put_batched(
        self, names: Sequence[ToPut], requests: Workers
    ) -> dict[bytes, tuple[str, bytes]]:
        """Put those of the names, which are in order, into batches that are to be there; (ETag,
        manifest) of each. The others are to be put one by one: those that are singles, or all if
        they are too few. Raises what a Bucket and `Batches.swap` do."""
        batches = self.batches
        if batches is None or len(names) < BATCH_NAMES_MIN:
            return {}
        root = batches.make()
        if len(root.entries) >= ENTRIES_MAX:
            return {}
        singles = singles_of(self.bucket, requests, [each.name for each in names])
        left = [each for each in names if each.name not in singles]
        if len(left) < BATCH_NAMES_MIN:
            return {}
        began = boot_clock()
        put: dict[bytes, tuple[str, bytes]] = {}
        writing = []
        for group in _groups(left):
            writing.append(requests.submit(self._write, group, root.version + 1))
            put |= {
                each.name: (batched_etag(digest_of(each.manifest)), each.manifest) for each in group
            }
        self._name(results_of(writing), began)
        self._put_anew([each.name for each in left], requests)
        return put

    def delete_batched(self, names: Sequence[bytes], requests: Workers) -> bool:
        """Have names deleted, in order, by batches that say so: of those that were just seen in
        batches, in a list or each by itself, and so were no singles. What is put for itself since
        counts. False if they are too few, and are to be deleted one by one. Raises what a Bucket
        and `Batches.swap` do."""
        batches = self.batches
        if batches is None or len(names) < BATCH_NAMES_MIN:
            return False
        root = batches.fresh().root
        if len(root.entries) >= ENTRIES_MAX:
            return False
        began = boot_clock()
        groups = [
            [to_delete(name) for name in names[i : i + BATCH_NAMES_MAX]]
            for i in range(0, len(names), BATCH_NAMES_MAX)
        ]
        writing = [requests.submit(self._write, group, root.version + 1) for group in groups]
        self._name(results_of(writing), began)
        return True

    # ------------------------------------------------------------ below

    def _name(self, entries: Sequence[RootEntry], began: float) -> None:
        """Have the root tell of batches that were written since `began`."""
        batches = self.batches
        assert batches is not None

        def add(seen: SeenRoot) -> Root:
            number = seen.root.version + 1
            at = batches.now()
            added = [entry._replace(number=number, at=at) for entry in entries]
            return seen.root._replace(entries=in_order([*seen.root.entries, *added]))

        batches.swap(add, began=began)

    def _is_covered(self, name: bytes, by: Decisive | None) -> bool:
        assert self.batches is not None
        if by is not None:
            with suppress(BatchGone):
                return self.batches.covers(by.seen.root, name)
        return bool(self.covered([name]))

    def _by_root(self, names: Collection[bytes], look: Callable[[Root], T]) -> T:
        """What it sees of these names, by the root that is read now."""
        assert self.batches is not None
        for _ in range(ATTEMPTS):
            root = self.batches.fresh().root
            try:
                return look(root)
            except BatchGone as gone:
                self._forget(gone)
        raise busy(next(iter(names)))

    def _decide(
        self, name: bytes, expected: str | None, make_body: MakeBody, by: Decisive | None
    ) -> Landed | None:
        """Put it if the name maps to the version with the ETag `expected`, or to nothing (None).
        None if something came between. Raises PreconditionFailed, BatchGone."""
        now: Now | None
        if by is not None and by.is_new and expected and self._in_batch(name, expected, by.seen):
            began, now = by.began, Now(expected, None, None, by.seen)
        else:
            began, now = boot_clock(), self.look(name, 0, decisive=True)
        assert now is not None
        assert now.seen is not None
        if now.etag != expected:
            raise PreconditionFailed(name_key(name))
        single, version = now.single, now.seen.root.version
        # Over what always counts nothing else decides.
        strong = single is not None and single.number is None
        if single is not None and single.number is not None and single.number > version:
            return None  # the root was read first, and is older than what the single was decided by
        number = None if strong else version

        def body(nonce: bytes) -> bytes:
            if boot_clock() - began > READ_S:
                raise StoreIOError(f"it took too long to put {name.decode()!r}: repeat it")
            return make_body(nonce, number)

        try:
            landed = put_once(
                self.bucket,
                name_key(name),
                body,
                if_none_match=single is None,
                if_match=None if single is None else real(single.etag),
            )
        except PreconditionFailed as refusal:
            if refusal.any_unknown:
                raise
            return None
        return landed if strong else landed._replace(etag=WEAK + landed.etag)

    def _write(self, group: Sequence[ToBatch], number: int) -> RootEntry:
        assert self.batches is not None
        batch_id = secrets.token_bytes(BATCH_ID_BYTES)
        raw, index_bytes = encode_batch(self.store_id, group, number)
        self.batches.put(batch_id, raw, index_bytes)
        first, last = group[0].name, group[-1].name
        return RootEntry(batch_id, 0, len(raw), 0, 0, index_bytes, len(group), first, last)

    def _put_anew(self, names: Sequence[bytes], requests: Workers) -> None:
        """Singles that came while a batch did, strong ones, as they are but for their ETag: who
        deletes one and read the root before the batch was there looks again."""
        came = singles_of(self.bucket, requests, names).values()
        results_of([requests.submit(self._renew, single.key) for single in came])

    def _renew(self, key: str) -> None:
        def read() -> Reply:
            there = self.bucket.get(key)
            if not there.size % 2:
                with_nonce(there.body, bytes(NONCE_BYTES))  # it is put as it was read
            return there

        while True:
            try:
                there = undamaged(read)
                if there.size % 2:
                    return  # it is weak
                put_once(self.bucket, key, partial(with_nonce, there.body), if_match=there.etag)
            except KeyAbsent:
                return
            except PreconditionFailed:
                continue  # another by now
            return


def _groups(names: Sequence[ToPut]) -> Iterator[list[ToBatch]]:
    """With their manifests, so many as one batch may have."""
    group: list[ToBatch] = []
    size = 0
    for name, record, make_body in names:
        manifest = make_body(secrets.token_bytes(NONCE_BYTES), None)
        if group and (len(group) >= BATCH_NAMES_MAX or size + len(manifest) > BATCH_BYTES_MAX):
            yield group
            group, size = [], 0
        group.append(ToBatch(name, manifest, record))
        size += len(manifest)
    if group:
        yield group
