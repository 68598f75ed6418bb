"""Names of a store on S3, put and deleted by a writer: each by a request, or in a
batch.

Whether an attempt landed may stay unknown. The writer's lease learns that, as its pins must stay
then, and the caller by CommitUnknown.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from castore.errors import CommitUnknown, NameExists, NameNotFound, ObjectChanged
from castore.format.index import Record
from castore.format.s3 import encode_manifest
from castore.format.segment import decode_segment
from castore.s3.batch_root import SeenRoot
from castore.s3.client.bucket import OutcomeUnknown, PreconditionFailed
from castore.s3.client.put_once import Landed
from castore.s3.commit import each_over
from castore.s3.etags import is_batched
from castore.s3.lease import WriterLease
from castore.s3.namespace.writing import Decisive, MakeBody, ToPut
from castore.s3.parts import Parts
from castore.s3.versions import Version
from castore.stream.operations import Copy, Operation, Publish, same_bytes
from castore.system.workers import Future, results_of
from castore.wording import counted

Segments: TypeAlias = Sequence[tuple[int, bytes]]  # (end offset, encoded), in order

DELETES_MIN = 8  # names that go by one request; fewer go one by one
DELETES_MAX = 1000  # names in one request, of S3

# Names with their ETags, and the request that deletes them, if it is one for all.
_Deletion: TypeAlias = "tuple[Sequence[tuple[bytes, str]], Future[set[bytes]] | None]"


class NameWriter:
    """Those that one commit publishes; thread-safe."""

    def __init__(self, parts: Parts, lease: WriterLease) -> None:
        self._names = parts.names
        self._config = parts.config
        self._catalog = parts.catalog
        self._lease = lease
        self._requests = parts.requests
        self._by: Decisive | None = None

    def expect_many(self, count: int) -> None:
        """So many versions, which were just seen, are about to be replaced or deleted, each by
        itself: one root tells of all, and not one of each; nor is a single asked for again."""
        self._by = self._names.decisive() if count else None

    def etags(self, present: set[bytes], absent: set[bytes]) -> dict[bytes, str]:
        """The ETags of those names that map to something. Of those that ought to be `present`, none
        is taken for gone because a list does not show it."""
        found = self._names.etags(present | absent, self._requests)
        return found | self._names.heads(present - found.keys(), self._requests)

    def publish(self, publish: Publish) -> None:
        """Put what a writer made. Raises what `put` does; ObjectChanged."""
        name, record, draft, if_absent, over = publish
        segments = [] if draft is None else draft.segments
        if over is None:
            self.put(name, record, segments, if_absent=if_absent)
            return
        while True:
            version = self._unchanged(name, over)
            record = record._replace(mode=version.head.record.mode)
            try:
                self.put(name, record, segments, if_match=version.etag)
                return
            except NameExists:  # changed since: look again
                continue

    def publish_batched(self, publishes: Sequence[Publish]) -> list[Publish]:
        """Put those of them into batches that can be; the others, which are to be put one by one.
        Raises CommitUnknown, and what a Bucket raises."""
        small = [
            it
            for it in sorted(publishes, key=lambda it: it.name)
            if it.draft is None and not it.if_absent and it.over is None
        ]
        try:
            with self._lease.naming():
                put = self._names.put_batched([self._to_put(it) for it in small], self._requests)
        except OutcomeUnknown as error:
            raise CommitUnknown(
                f"whether {counted(len(small), 'name')} were put is not known "
                f"({error.__cause__}): look before you repeat it"
            ) from error
        self._catalog.remember_batched(put)
        return [it for it in publishes if it.name not in put]

    def _to_put(self, publish: Publish) -> ToPut:
        record = publish.record._replace(manifest=0)

        def make_body(nonce: bytes, number: int | None) -> bytes:
            self._lease.check_age()
            return encode_manifest(self._config, nonce, record, [], [], number)

        return ToPut(publish.name, record, make_body)

    def compare(self, operations: Sequence[Operation]) -> None:
        """Of several operations, one that is over what changed is sure to fail. Raises
        ObjectChanged."""

        def check(publish: Publish, over: Record, where: bytes) -> None:
            try:
                self._unchanged(where, over)
            except ObjectChanged:  # by the name that it is over
                raise ObjectChanged(publish.name.decode()) from None

        if len(operations) > 1:
            results_of(
                [
                    self._requests.submit(check, publish, over, before)
                    for publish, over, before in each_over(operations)
                    if isinstance(before, bytes)
                ]
            )

    def _unchanged(self, name: bytes, record: Record) -> Version:
        """What the name maps to, if that has the record's bytes, as what a collector or a repair
        made of it has. Raises ObjectChanged."""
        with contextlib.suppress(NameNotFound):
            version = self._catalog.current(name)
            if same_bytes(version.head.record, record):
                return version
        raise ObjectChanged(name.decode())

    def copy(self, copy: Copy, version: Version, segments: Segments) -> None:
        """Put the version of its source under its target; of a `rename`, delete the source if it
        still is that."""
        record = version.head.record
        if not copy.rename:
            record = record._replace(mtime_ns=copy.mtime_ns)
        self.put(copy.target, record, segments, if_absent=copy.if_absent)
        if copy.rename:
            self.delete(copy.source, version.etag, version.head.record)

    def put(
        self,
        name: bytes,
        record: Record,
        segments: Segments,
        *,
        if_absent: bool = False,
        if_match: str | None = None,
    ) -> None:
        """Put the name's manifest, of (end offset, encoded) segments; with `if_match` over that
        ETag and nothing else.

        Raises NameExists where the condition does not hold; CommitUnknown; what a Bucket raises.
        """
        packs: dict[bytes, None] = {}
        stored_bytes = deltas = 0
        for _, raw in segments:
            segment = decode_segment(raw)
            packs.update(dict.fromkeys(segment.packs))
            stored_bytes, deltas = stored_bytes + segment.stored_bytes, deltas + segment.deltas
        record = record._replace(manifest=0)
        if segments:  # frames that were moved may take more or less than those before
            record = record._replace(manifest=1, stored_bytes=stored_bytes, deltas=deltas)
        body = b""

        def make_body(nonce: bytes, number: int | None) -> bytes:
            nonlocal body
            self._lease.check_age()
            body = encode_manifest(self._config, nonce, record, list(packs), segments, number)
            return body

        with self._lease.naming():
            landed = self._land(name, make_body, if_absent, if_match)
        if not landed.any_unknown:
            self._catalog.remember(name, landed.etag, body)

    def put_over(self, version: Version, record: Record, segments: Segments) -> bool:
        """Put this over the version and over nothing else; False if there is another. Raises
        CommitUnknown."""
        try:
            self.put(version.name, record, segments, if_match=version.etag)
        except NameExists:
            return False
        return True

    def delete(self, name: bytes, etag: str, record: Record | None = None) -> None:
        """Delete the name, which was just seen with this ETag. What came after goes, too: of one
        that has a `record`, only what a collector wrote anew. Raises CommitUnknown."""
        try:
            newer: str | None = etag
            by = self._by
            while newer is not None and not self._names.delete(name, newer, by):
                by = None  # it was read before
                newer = self._names.etag_of(name) if record is None else self._etag_of(name, record)
        except OutcomeUnknown as error:
            raise CommitUnknown(
                f"whether {name.decode()!r} was deleted is not known ({error.__cause__}): look "
                "before you repeat it"
            ) from error
        self._catalog.forget(name)

    def delete_all(self, names: Sequence[bytes], seen: Mapping[bytes, str]) -> int:
        """Delete the names, whatever they map to by then; how many. `seen` are ETags that were just
        seen. Raises NameNotFound for one that was not seen and is not there, CommitUnknown."""
        entries = [(name, seen[name]) for name in names if name in seen]
        others = [name for name in names if name not in seen]
        there = self._names.heads(others, self._requests)
        for name in others:
            if name not in there:
                raise NameNotFound(name.decode())
        entries += there.items()
        batched = [name for name, etag in entries if is_batched(etag)]
        if self._delete_batched(sorted(batched)):
            entries = [each for each in entries if not is_batched(each[1])]
        self._end(self._begin(entries))
        return len(names)

    def _delete_batched(self, names: Sequence[bytes]) -> bool:
        """Have those deleted by batches that were just seen in some; False if they are too few."""
        try:
            if not self._names.delete_batched(names, self._requests):
                return False
        except OutcomeUnknown as error:
            raise CommitUnknown(
                f"whether {counted(len(names), 'name')} were deleted is not known "
                f"({error.__cause__}): look before you repeat it"
            ) from error
        self._catalog.forget(*names)
        return True

    def delete_below(self, prefix: bytes) -> int:
        """Delete all names that begin with `prefix`; how many there were. Raises CommitUnknown."""
        deleted = 0
        under_way: list[_Deletion] = []
        before = self._drop(prefix)
        try:
            for listed in self._catalog.listed(prefix, by=before):
                deleted += len(listed)
                singles = [each for each in listed if not is_batched(each[1])]
                self._catalog.forget(*(name for name, etag in listed if is_batched(etag)))
                ending, under_way = under_way, self._begin(singles)
                self._end(ending)  # while the next page is listed, this one is deleted
        finally:
            self._end(under_way)
        return deleted

    def _drop(self, prefix: bytes) -> SeenRoot | None:
        try:
            return self._names.drop(prefix)
        except OutcomeUnknown as error:
            raise CommitUnknown(
                f"whether what begins with {prefix.decode()!r} was deleted is not known "
                f"({error.__cause__}): look before you repeat it"
            ) from error

    def _begin(self, entries: Sequence[tuple[bytes, str]]) -> list[_Deletion]:
        """Begin to delete names, each just seen with its ETag: many in one request, few by one
        each, of which more servers honour the condition."""
        if len(entries) < DELETES_MIN:
            return [(entries, None)]
        parts = [entries[i : i + DELETES_MAX] for i in range(0, len(entries), DELETES_MAX)]
        return [(part, self._requests.submit(self._names.delete_many, part)) for part in parts]

    def _end(self, deletions: Sequence[_Deletion]) -> None:
        """Wait for that, and see to what is left of it, name by name."""
        left: list[tuple[bytes, str]] = []
        failures = []
        for entries, deleting in deletions:
            if deleting is None:
                left += entries
                continue
            error = deleting.exception()
            if error is not None:
                failures.append(error)
                continue
            gone = deleting.result()
            self._catalog.forget(*gone)
            left += [(name, etag) for name, etag in entries if name not in gone]
        self.expect_many(len(left))
        # None of them is to land when the caller has been told that one failed.
        results_of([self._requests.submit(self.delete, *each) for each in left])
        if failures:
            raise failures[0]

    def _land(
        self,
        name: bytes,
        make_body: MakeBody,
        if_absent: bool,
        if_match: str | None,
    ) -> Landed:
        """Put a manifest; the session learns whether an attempt of it may land later."""
        lease = self._lease
        try:
            landed = lease.note(
                lambda: self._names.put(
                    name, make_body, if_none_match=if_absent, if_match=if_match, by=self._by
                )
            )
        except PreconditionFailed as error:
            raise NameExists(name.decode()) from error
        except OutcomeUnknown as error:
            raise CommitUnknown(
                f"whether {name.decode()!r} was put is not known: look before you repeat it "
                f"({error.__cause__})"
            ) from error
        lease.check_time(landed)
        return landed

    def _etag_of(self, name: bytes, record: Record) -> str | None:
        """The ETag that the name has now, if it still maps to this."""
        try:
            version = self._catalog.current(name)
        except NameNotFound:
            return None
        there = version.head.record
        same = there[:4] == record[:4]  # size, time, mode and etag
        return version.etag if same else None
