"""What in a store on S3 is alive: which packs names refer to, and which ones writers rely on.

Everything is listed to its end, and in this order: packs, pins, names. A pack that is listed had
its writer's pin before, and whatever a pin no longer there protected has its name by then: the
other way around, a name could come between.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

from castore.errors import FormatError
from castore.format.s3 import session_of
from castore.format.s3_gc import PackIds, decode_pin
from castore.format.s3_told import listed_bytes
from castore.model import Stages
from castore.s3.client.bucket import KeyAbsent, Listed
from castore.s3.gc.memory import CollectorMemory
from castore.s3.keys import NAMES, PINS, listed_packs, name_of, session_of_pin
from castore.s3.manifests import decode_own_head, read_manifest
from castore.s3.packs import absent_packs
from castore.s3.parts import Parts
from castore.s3.told import undamaged

HEAD_BYTES = 16 << 10  # of a manifest, in the first request
PAGE_NAMES = 1000
PIN_S = 7 * 86_400  # a writer's session is over after one day


@dataclass(slots=True)
class Pins:
    """What writers that are at work rely on."""

    sessions: set[bytes] = field(default_factory=set)
    packs: set[bytes] = field(default_factory=set)

    def protect(self, pack_id: bytes) -> bool:
        return pack_id in self.packs or session_of(pack_id) in self.sessions


class S3Marker:
    """Of one store; it changes nothing."""

    def __init__(self, parts: Parts, memory: CollectorMemory, stages: Stages) -> None:
        self.objects = 0  # in the last listing of names
        self.listed_bytes = 0  # that listings take which tell of all of them
        self.referred: set[bytes] = set()  # packs that these had
        self._bucket = parts.bucket
        self._store_id = parts.config.store_id
        self._requests = parts.requests
        self._memory = memory
        self._stages = stages

    def packs(self) -> dict[bytes, int]:
        """All packs, and their bytes."""
        return listed_packs(self._bucket)

    def garbage(self, packs: dict[bytes, int], *, expired_before: float) -> dict[bytes, int]:
        """Those of `packs`, which were listed before, that nothing protects now, and their bytes.
        Raises ManifestUnreadable, FormatError."""
        pins = self.pins(expired_before)
        left = {i: size for i, size in packs.items() if not pins.protect(i)}
        self.referred = set()
        for referred in self.references():
            self.referred |= referred
            for pack_id in referred:
                left.pop(pack_id, None)
        return left

    def missing(self, packs: dict[bytes, int]) -> list[bytes]:
        """Those that are not there, of what names referred to when garbage was last looked for
        among all `packs`; one that was not listed may have been put since."""
        unlisted = self.referred - packs.keys()
        return sorted(absent_packs(self._bucket, self._requests, unlisted))

    # ------------------------------------------------------------ pins

    def expired_pins(self, expired_before: float) -> list[str]:
        """Keys of pins that were written before this time, in seconds by the server's clock."""
        return [entry.key for entry in self._listed_pins() if entry.modified < expired_before]

    def pins(self, expired_before: float) -> Pins:
        pins = Pins()
        listed = [entry for entry in self._listed_pins() if entry.modified >= expired_before]
        for i in range(0, len(listed), PAGE_NAMES):
            page = [entry.key for entry in listed[i : i + PAGE_NAMES]]
            for reading in [self._requests.submit(self._read_pin, key) for key in page]:
                session, packs = reading.result()
                pins.sessions.add(session)
                pins.packs.update(packs)
        return pins

    def _listed_pins(self) -> Iterator[Listed]:
        return (e for e in self._bucket.list(PINS) if session_of_pin(e.key) is not None)

    def _read_pin(self, key: str) -> tuple[bytes, list[bytes]]:
        """A session that removed it meanwhile has ended: its names are there to be listed."""
        session = session_of_pin(key)
        assert session is not None
        try:
            store_id, owner, packs = undamaged(lambda: decode_pin(self._bucket.get(key).body))
        except KeyAbsent:
            return session, []
        if (store_id, owner) != (self._store_id, session):
            raise FormatError(f"the pin {key!r} is of another store or session: remove it")
        return session, packs

    # ------------------------------------------------------------ names

    def references(self) -> Iterator[set[bytes]]:
        """The packs that the names refer to, some names at a time."""
        self.objects, self.listed_bytes, after = 0, 0, b""
        self._stages.begin_stage("marking", 0)
        entries = (
            (name, entry)
            for entry in self._bucket.list(NAMES)
            if (name := name_of(entry)) is not None
        )
        while page := list(islice(entries, PAGE_NAMES)):
            listed = [(name, entry.etag) for name, entry in page]
            size = sum(entry.size for _, entry in page)
            known = self._memory.packs_of(listed)
            reading = [
                (name, self._requests.submit(self._read_packs, name))
                for name, _ in listed
                if name not in known
            ]
            read = {name: found for name, future in reading if (found := future.result())}
            self._memory.remember(after, listed, read)
            self.objects += len(known) + len(read)
            self.listed_bytes += sum(listed_bytes(*each) for each in listed)
            after = listed[-1][0]
            self._stages.relative_update(size)
            yield {i for packs in known.values() for i in packs} | {
                i for _, packs in read.values() for i in packs
            }
        self._memory.remember(after, [], {})

    def _read_packs(self, name: bytes) -> tuple[str, PackIds] | None:
        """(ETag, packs) of what the name maps to now; None if it is gone since it was listed."""

        def packs(etag: str, raw: bytes) -> tuple[str, PackIds]:
            return etag, tuple(decode_own_head(raw, self._store_id).packs)

        try:
            return read_manifest(self._bucket, name, HEAD_BYTES, packs)
        except KeyAbsent:
            return None
