"""A store on S3 as a check looks at it: its packs, and its names as they are now.

Nothing is taken from this machine's cache. Packs are listed once, before the names that lead to
them; one that a name leads to and that was not there yet is asked for by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from castore.check.objects import Faulty, inline_fault, manifest_faults
from castore.check.packs import PackReading
from castore.check.scan import AHEAD, PackScan
from castore.check.source import Named
from castore.errors import FormatError, UnsupportedFormat
from castore.format.config import StoreConfig
from castore.format.s3 import ManifestHead
from castore.format.s3_batches import digest_of
from castore.format.segment import decode_segment
from castore.s3.client.bucket import Bucket, KeyAbsent, Listed, Reply
from castore.s3.etags import batched_etag, is_batched
from castore.s3.keys import NAMES, PACKS, name_of, pack_key, pack_of
from castore.s3.manifests import Overwritten, decode_own_head, read_head, read_part
from castore.s3.namespace.writing import Namespace
from castore.system.workers import Workers

FIRST_BYTES = 256 << 10
SPAN_BYTES_MAX = 8 << 20

# What a check of all data read, by pack: how it was listed, and what it holds.
PacksRead = dict[bytes, tuple[tuple[int, str], PackReading]]


class S3Source:
    """`odd_keys` are no packs and no names. `advance` is told the bytes of manifests."""

    put_whole = True

    def __init__(
        self,
        bucket: Bucket,
        names: Namespace,
        config: StoreConfig,
        requests: Workers,
        advance: Callable[[int], None],
    ) -> None:
        self.requests: Workers | None = requests
        self.gone: set[bytes] = set()
        self.odd_keys: list[str] = []
        self._bucket = bucket
        self._names = names
        self._config = config
        self._advance = advance
        self._listed: dict[bytes, tuple[int, str]] = {}  # (bytes, ETag)
        self._later: set[bytes] = set()  # packs that were not listed yet

    # ------------------------------------------------------------ packs

    def packs(self) -> dict[bytes, int]:
        for entry in self._bucket.list(PACKS):
            pack_id = pack_of(entry.key)
            if pack_id is None:
                self.odd_keys.append(entry.key)
            else:
                self._listed[pack_id] = entry.size, entry.etag
        return {pack_id: size for pack_id, (size, _) in self._listed.items()}

    def reader(self, pack_id: bytes) -> PackObject | None:
        """What a name leads to was there before: what is gone once stays so."""
        if pack_id not in self._listed and pack_id not in self.gone:
            try:
                there = self._bucket.head(pack_key(pack_id))
            except KeyAbsent:
                self.gone.add(pack_id)
            else:
                self._listed[pack_id] = there.size, there.etag
                self._later.add(pack_id)
        if pack_id in self.gone:
            return None
        return PackObject(self._bucket, pack_id, self._listed[pack_id][0], self.gone)

    def unchanged(self, before: PacksRead) -> list[PackReading]:
        """Of packs that are as they were in a check of all data `before`."""
        return [
            reading
            for pack_id, (listed, reading) in before.items()
            if self._listed.get(pack_id) == listed
        ]

    def all_read(self, scan: PackScan) -> PacksRead:
        """If all data was to be: without the packs that were looked at later."""
        there = scan.readings.items()
        return {i: (self._listed[i], reading) for i, reading in there if i not in self._later}

    # ------------------------------------------------------------ names

    def names(self, scan: PackScan) -> Iterator[Named]:
        """In no order; those that go meanwhile are left out."""
        assert self.requests is not None
        for found in self.requests.map_ahead(
            lambda listed: self._named(*listed, scan), self._listed_names(), ahead=AHEAD
        ):
            if found is not None:
                yield found

    def _listed_names(self) -> Iterator[tuple[bytes, Listed | None]]:
        """(name, what of it is in a batch); also of what says that a name is deleted."""
        for single, counts in self._names.merged(self._bucket.list(NAMES)):
            entry = counts or single
            assert entry is not None
            name = name_of(entry)
            if name is None:
                self.odd_keys.append(entry.key)
            else:
                self._advance(entry.size)
                yield name, entry if is_batched(entry.etag) else None

    def _named(self, name: bytes, in_batch: Listed | None, scan: PackScan) -> Named | None:
        """None if it went meanwhile, or is deleted."""
        if in_batch is not None:
            reply = self._names.batched(name, in_batch.etag, in_batch.size)
            if reply is not None and batched_etag(digest_of(reply.body)) == in_batch.etag:
                return Named(name.decode(), list(self._faults(name, reply, set(), scan)), ())
        asked = False
        while True:
            packs: set[bytes] = set()
            try:
                reply = self._names.first(name, FIRST_BYTES)
                assert reply is not None  # no condition was set
                faults = list(self._faults(name, reply, packs, scan))
                # A manifest that is damaged may only have been so on its way; and whatever is wrong
                # counts only if the name still maps to it.
                if any(fault.chunk is None for fault in faults) and not asked:
                    asked = True
                elif not faults or self._names.etag_of(name) == reply.etag:
                    return Named(name.decode(), faults, packs)
            except KeyAbsent:
                return None
            except Overwritten:
                continue
            except FormatError as error:  # what should say that it is deleted
                if asked:
                    return Named(name.decode(), [Faulty(str(error))], ())
                asked = True

    def _faults(
        self, name: bytes, first: Reply, packs: set[bytes], scan: PackScan
    ) -> Iterator[Faulty]:
        try:
            raw = read_head(self._names, name, first)
            head = decode_own_head(raw, self._config.store_id)
        except (FormatError, UnsupportedFormat) as error:
            yield Faulty(str(error))
            return
        packs.update(head.packs)
        if head.record.is_inline:
            fault = inline_fault(head.record, self._config)
            if fault:
                yield Faulty(fault)
            return
        scan.add(*(pack_id for pack_id in packs if pack_id not in scan.readings))
        end = head.segments[-1].offset + head.segments[-1].length
        if end > first.size:
            yield Faulty(f"it is cut short at {first.size} of {end} bytes")
            return
        segments = self._segments(name, first.etag, raw, head)
        try:
            yield from manifest_faults(head.record, segments, scan.readings, self._config.seed)
        except FormatError as error:
            yield Faulty(str(error))

    def _segments(self, name: bytes, etag: str, raw: bytes, head: ManifestHead) -> Iterator[bytes]:
        """As stored, one after the other: a manifest may be larger than memory."""
        told = set(head.packs)
        held, begin = raw, 0
        for place in head.segments:
            end = place.offset + place.length
            if end > begin + len(held):
                held = read_part(
                    self._names, name, etag, place.offset, max(end, place.offset + SPAN_BYTES_MAX)
                )
                begin = place.offset
            part = held[place.offset - begin : end - begin]
            if not told.issuperset(decode_segment(part).packs):
                raise FormatError("a segment leads to a pack that the head does not tell of")
            yield part


class PackObject:
    """A pack, of as many bytes as it was put with. One that is gone, as a collector took it, holds
    nothing, and is noted as such."""

    def __init__(self, bucket: Bucket, pack_id: bytes, size: int, gone: set[bytes]) -> None:
        self.size = size
        self._bucket = bucket
        self._pack_id = pack_id
        self._gone = gone

    def read(self, begin: int, end: int) -> bytes:
        end = min(end, self.size)  # what says where a frame is may be damaged
        if begin >= end:
            return b""
        try:
            return self._bucket.get(pack_key(self._pack_id), byte_range=(begin, end)).body
        except KeyAbsent:
            self._gone.add(self._pack_id)
            return b""
