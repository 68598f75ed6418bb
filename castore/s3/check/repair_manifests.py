"""Repairing manifests that do not decode, or are not as they were put.

One that had a bit flipped is put right. Of one that can be read in part the object is put together
later, by who finds its chunks. Any other goes, and its name with it, once a copy of it is below
`quarantine/`: with it no collector would say what is garbage.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import NamedTuple

from castore.check.bitflip import corrected
from castore.check.objects import inline_fault
from castore.check.salvage import PREFIX, note
from castore.errors import FormatError, UnsupportedFormat
from castore.format.config import StoreConfig
from castore.format.index import INLINE_BYTES_LIMIT
from castore.format.s3 import encode_manifest
from castore.format.s3_batches import decode_tombstone, digest_of, is_tombstone
from castore.format.segment import decode_segment
from castore.s3.catalog import S3Catalog
from castore.s3.check.mended import mended
from castore.s3.check.outcome import Outcome
from castore.s3.client.bucket import Bucket, KeyAbsent, PreconditionFailed
from castore.s3.etags import batched_etag, is_batched
from castore.s3.keys import name_key
from castore.s3.manifests import decode_own_head
from castore.s3.namespace.writing import Namespace
from castore.s3.versions import Version
from castore.stream.codec import chunk_id_of
from castore.stream.reports import CheckReport
from castore.stream.session import WriteSession

RAW_BYTES_MAX = 64 << 10  # of a manifest whose every bit is tried


class Partly(NamedTuple):
    """An object whose manifest can be read in part: its segments with their ends, some of which may
    not decode, and where below `quarantine/` all of the manifest is kept."""

    version: Version
    segments: list[tuple[int, bytes]]
    copy: str


class ManifestRepair:
    """Of the names that a check found such manifests of. What comes of it is added to `outcome`,
    and `partly` are those of which there is more to be done."""

    def __init__(
        self,
        bucket: Bucket,
        names: Namespace,
        catalog: S3Catalog,
        config: StoreConfig,
        session: Callable[[], WriteSession],
        outcome: Outcome,
    ) -> None:
        """`names` know nothing from a cache; a `session` puts what is noted."""
        self._bucket = bucket
        self._names = names
        self._catalog = catalog
        self._config = config
        self._session = session
        self._outcome = outcome
        self.partly: list[Partly] = []

    def run(self, report: CheckReport) -> None:
        """Those that do not decode: with them no collector would say what is garbage."""
        for problem in report.problems:
            if problem.kind == "manifest":
                for name in problem.names:
                    with contextlib.suppress(KeyAbsent):  # deleted meanwhile
                        self._repair_manifest(name.encode())

    def _repair_manifest(self, name: bytes) -> None:
        try:
            reply = self._bucket.get(name_key(name))
        except KeyAbsent:
            self._repair_batched(name)
            return
        deleted = self._config.batches and is_tombstone(reply.size)
        decode = decode_tombstone if deleted else self._decode
        try:
            decode(reply.body)
            return
        except (FormatError, UnsupportedFormat) as error:
            fault = error
        right = left = None
        if len(reply.body) <= RAW_BYTES_MAX:
            right = corrected(reply.body, decode)
        if right is None and not deleted:
            left = mended(reply.body, self._config.store_id)
            with contextlib.suppress(FormatError, UnsupportedFormat):
                if left is not None:
                    self._decode(left.raw)
                    right = left.raw
        self._catalog.forget(name)
        if right is not None:
            if self._outcome.write_over(name, reply.etag, right):
                self._outcome.done.append(f"the manifest of {name.decode()!r} had one bit flipped")
        elif deleted:
            if self._names.delete(name, reply.etag):
                self._outcome.done.append(f"{name.decode()!r} is deleted: what says so was damaged")
        elif left is not None:
            copy = self._outcome.keep(name_key(name), reply.body)
            self.partly.append(Partly(Version(name, reply.etag, left.head), left.segments, copy))
        elif not isinstance(fault, UnsupportedFormat):  # which a later castore can read
            self._give_up(name, reply.etag, self._outcome.keep_copy(name_key(name)), str(fault))

    def _repair_batched(self, name: bytes) -> None:
        """A manifest in a batch, which its digest tells."""
        etag = self._names.etag_of(name)
        if etag is None or not is_batched(etag):
            return
        reply = self._names.first(name, INLINE_BYTES_LIMIT + RAW_BYTES_MAX)
        assert reply is not None  # no condition was set
        if batched_etag(digest_of(reply.body)) == etag:
            return
        right = None

        def is_right(raw: bytes) -> None:
            if batched_etag(digest_of(raw)) != etag:
                raise FormatError("another's digest")

        if len(reply.body) <= RAW_BYTES_MAX:
            right = corrected(reply.body, is_right)
        self._catalog.forget(name)
        if right is not None:
            head = decode_own_head(right, self._config.store_id)

            def body(nonce: bytes, number: int | None) -> bytes:
                return encode_manifest(self._config, nonce, head.record, [], [], number)

            with contextlib.suppress(PreconditionFailed):  # put meanwhile
                self._names.put(name, body, if_match=etag)
                self._outcome.done.append(f"the manifest of {name.decode()!r} had one bit flipped")
            return
        self._give_up(
            name, etag, self._outcome.keep(name_key(name), reply.body), "its manifest is damaged"
        )

    def _give_up(self, name: bytes, etag: str, copy: str, why: str) -> None:
        """The version that has this ETag, whose manifest is beyond repair, and kept as `copy`."""
        # Another name for each version: what is told of one lost before stays.
        told = chunk_id_of(b"\0".join((name, etag.encode())), 0).hex()
        facts: dict[str, object] = {"name": name.decode(), "manifest": copy, "why": why}
        note(self._session(), PREFIX + told.encode() + b".json", facts)
        if self._names.delete(name, etag):
            self._outcome.lose(name, f"has no readable manifest: it is now {copy}")

    def _decode(self, raw: bytes) -> None:
        """Raises FormatError unless all of the manifest is as it was written."""
        head = decode_own_head(raw, self._config.store_id)
        if head.record.is_inline:
            fault = inline_fault(head.record, self._config)
            if fault:
                raise FormatError(fault)
        for place in head.segments:
            decode_segment(raw[place.offset : place.offset + place.length])
