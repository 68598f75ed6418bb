"""Names of a store on S3, put and deleted by a writer: each is one object, changed by one request.

Whether an attempt landed may stay unknown. The writer's lease learns that, as its pins must stay
then, and the caller by CommitUnknown.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from castore.errors import CastoreError, CommitUnknown, NameExists, NameNotFound
from castore.format.index import Record
from castore.format.pack import StoreConfig
from castore.format.s3 import encode_manifest
from castore.format.segment import decode_segment
from castore.s3.catalog import S3Catalog
from castore.s3.client.bucket import Bucket, OutcomeUnknown, PreconditionFailed
from castore.s3.client.delete_version import delete_version, etag_at
from castore.s3.client.put_once import Landed, put_once
from castore.s3.keys import name_key
from castore.s3.lease import WriterLease

Segments = Sequence[tuple[int, bytes]]  # (end offset, encoded), in order


class NameWriter:
    """Those that one commit publishes; thread-safe."""

    def __init__(
        self, bucket: Bucket, config: StoreConfig, catalog: S3Catalog, lease: WriterLease
    ) -> None:
        self._bucket = bucket
        self._config = config
        self._catalog = catalog
        self._lease = lease

    def etag(self, name: bytes) -> str | None:
        """That of what the name maps to now; None if to nothing."""
        return etag_at(self._bucket, name_key(name))

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
        stored_bytes = 0
        for _, raw in segments:
            segment = decode_segment(raw)
            packs.update(dict.fromkeys(segment.packs))
            stored_bytes += segment.stored_bytes
        record = record._replace(manifest=0)
        if segments:  # frames that were moved may take more or less than those before
            record = record._replace(manifest=1, stored_bytes=stored_bytes)
        body = b""

        def make_body(nonce: bytes) -> bytes:
            nonlocal body
            self._lease.check_age()
            body = encode_manifest(self._config, nonce, record, list(packs), segments)
            return body

        with self._lease.naming():
            landed = self._land(name, make_body, if_absent, if_match)
        if not landed.any_unknown:
            self._catalog.remember(name, landed.etag, body)

    def delete(self, name: bytes, etag: str, record: Record | None = None) -> None:
        """Delete the name, which was just seen with this ETag. What came after goes, too: of one
        that has a `record`, only what a collector wrote anew. Raises CommitUnknown."""
        try:
            newer: str | None = etag
            while newer is not None and not delete_version(self._bucket, name_key(name), newer):
                newer = self.etag(name) if record is None else self._etag_of(name, record)
        except OutcomeUnknown as error:
            raise CommitUnknown(
                f"whether {name.decode()!r} was deleted is not known ({error.__cause__}): look "
                "before you repeat it"
            ) from error
        self._catalog.forget(name)

    def _land(
        self,
        name: bytes,
        make_body: Callable[[bytes], bytes],
        if_absent: bool,
        if_match: str | None,
    ) -> Landed:
        """Put a manifest; the session learns whether an attempt of it may land later."""
        lease = self._lease
        try:
            landed = put_once(
                self._bucket,
                name_key(name),
                make_body,
                if_none_match=if_absent,
                if_match=if_match,
            )
        except PreconditionFailed as error:
            lease.any_unknown = lease.any_unknown or error.any_unknown
            raise NameExists(name.decode()) from error
        except OutcomeUnknown as error:
            lease.any_unknown = True
            raise CommitUnknown(
                f"whether {name.decode()!r} was put is not known: look before you repeat it "
                f"({error.__cause__})"
            ) from error
        except CastoreError:
            raise  # no attempt of it may land
        except BaseException:
            lease.any_unknown = True  # an interrupt: of the attempt under way nothing is known
            raise
        lease.landed(landed)
        return landed

    def _etag_of(self, name: bytes, record: Record) -> str | None:
        """The ETag that the name has now, if it still maps to this."""
        try:
            version = self._catalog.current(name)
        except NameNotFound:
            return None
        there = version.head.record
        same = (there.etag, there.mtime_ns) == (record.etag, record.mtime_ns)
        return version.etag if same else None
