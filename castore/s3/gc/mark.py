"""What in a store on S3 is alive: which packs names refer to, and which ones writers rely on.

Everything is listed to its end, and in this order: packs, pins, names. A pack that is listed had
its writer's pin before, and whatever a pin no longer there protected has its name by then: the
other way around, a name could come between.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field
from itertools import islice

from castore.errors import FormatError
from castore.format.s3 import session_of
from castore.format.s3_gc import References, decode_pin
from castore.format.s3_told import listed_bytes
from castore.format.segment import decode_segment
from castore.model import Stages
from castore.s3.client.bucket import KeyAbsent, Listed
from castore.s3.gc.listing import list_names, list_packs
from castore.s3.gc.live import frames_by_pack
from castore.s3.gc.memory import CollectorMemory
from castore.s3.keys import PINS, name_of, session_of_pin
from castore.s3.manifests import decode_own_head, read_manifest, read_part
from castore.s3.namespace.look import Singles
from castore.s3.packs import absent_packs
from castore.s3.parts import Parts
from castore.s3.told import undamaged

HEAD_BYTES = 16 << 10  # of a manifest, in the first request,
WHOLE_BYTES = 256 << 10  # or if its frames are wanted
PART_BYTES = 8 << 20
PAGE_NAMES = 1000
START_EVERY = 20_000  # names: where another listing is begun the next time
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

    def __init__(
        self,
        parts: Parts,
        memory: CollectorMemory,
        stages: Stages,
        *,
        with_frames: bool = False,
        ended: Set[bytes] = frozenset(),
    ) -> None:
        """`with_frames`: what is read of a manifest are its frames, too, as somebody will want
        them. Pins of sessions that are `ended` do not count."""
        self._ended = ended
        self._with_frames = with_frames
        self.packs_made: dict[bytes, float] = {}  # when, by the server, of those listed last
        self.objects = 0  # in the last listing of names
        self.tombstones = 0
        self.listed_bytes = 0  # that listings take which tell of all of them
        self.referred: set[bytes] = set()  # packs that these had
        self._bucket = parts.bucket
        self._names = parts.names
        self._singles = Singles(parts.bucket, parts.config)
        self._store_id = parts.config.store_id
        self._requests = parts.requests
        self._memory = memory
        self._stages = stages

    def packs(self) -> dict[bytes, int]:
        """All packs, and their bytes."""
        sizes, self.packs_made = {}, {}
        for pack_id, entry in list_packs(self._bucket, self._requests):
            sizes[pack_id] = entry.size
            if self._with_frames:
                self.packs_made[pack_id] = entry.modified
        return sizes

    def garbage(self, packs: dict[bytes, int], *, expired_before: float) -> dict[bytes, int]:
        """Those of `packs`, which were listed before, that nothing protects now, and their bytes.
        Raises ManifestUnreadable, FormatError."""
        pins = self.pins(expired_before)
        left = {i: size for i, size in packs.items() if not pins.protect(i)}
        self.referred = set()
        for page in self.references():
            referred = {pack_id for _, each in page.values() for pack_id in each.packs}
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
        for entry in self._bucket.list(PINS):
            session = session_of_pin(entry.key)
            if session is not None and session not in self._ended:
                yield entry

    def _read_pin(self, key: str) -> tuple[bytes, list[bytes]]:
        """A session that removed it meanwhile has ended: its names are there to be listed."""
        session = session_of_pin(key)
        assert session is not None
        try:
            store_id, owner, packs = undamaged(lambda: decode_pin(self._bucket.get(key).body))
        except KeyAbsent:
            return session, []
        except FormatError as error:
            raise FormatError(
                f"the pin {key!r} can't be read ({error}): remove it once its writer has ended; a "
                "repair removes it when it is a week old"
            ) from error
        if (store_id, owner) != (self._store_id, session):
            raise FormatError(f"the pin {key!r} is of another store or session: remove it")
        return session, packs

    # ------------------------------------------------------------ names

    def references(
        self, *, with_frames: bool = False
    ) -> Iterator[Mapping[bytes, tuple[str, References]]]:
        """What the names refer to, and by which ETag, some names at a time. What is in a batch is
        only counted: it refers to no packs. A single may, whether it counts or not."""
        self.objects, self.tombstones, self.listed_bytes, after = 0, 0, 0, b""
        self._stages.begin_stage("marking", 0)
        listed_names = list_names(self._bucket, self._requests, self._memory.starts())
        entries = self._counted(listed_names)
        starts: list[bytes] = []
        unmarked = 0  # names since the last of these
        while page := list(islice(entries, PAGE_NAMES)):
            listed = [(name, entry.etag) for name, entry in page]
            found = self._referred(after, listed, with_frames=with_frames)
            self.listed_bytes += sum(listed_bytes(*each) for each in listed)
            after = listed[-1][0]
            unmarked += len(page)
            if unmarked >= START_EVERY:
                starts.append(after)
                unmarked = 0
            self._stages.relative_update(sum(entry.size for _, entry in page))
            yield found
        self._memory.remember(after, [], {})
        self._memory.remember_starts(starts)

    def count(self) -> None:
        """Only list the names: `objects` and `tombstones` are how many there are."""
        self.objects, self.tombstones = 0, 0
        for _ in self._counted(list_names(self._bucket, self._requests, self._memory.starts())):
            """Nothing is read of them."""

    def _counted(self, listed_names: Iterator[Listed]) -> Iterator[tuple[bytes, Listed]]:
        for single, counts in self._names.merged(listed_names):
            name = None if counts is None else name_of(counts)
            self.objects += name is not None
            name = None if single is None else name_of(single)
            if single is not None and name is not None:
                if self._singles.are(single.size):
                    yield name, single
                else:
                    self.tombstones += 1

    def _referred(
        self, after: bytes, listed: list[tuple[bytes, str]], *, with_frames: bool
    ) -> dict[bytes, tuple[str, References]]:
        """Of the names listed, those that are there, from what is remembered or is read now."""
        known = self._memory.references_of(listed, with_frames=with_frames)
        reading = [
            (name, self._requests.submit(self._read, name))
            for name, _ in listed
            if name not in known
        ]
        read = {name: found for name, future in reading if (found := future.result())}
        self._memory.remember(after, listed, read)
        return {name: (etag, known[name]) for name, etag in listed if name in known} | read

    def _read(self, name: bytes) -> tuple[str, References] | None:
        """(ETag, what it refers to) of what the name maps to now; None if it is gone since it was
        listed."""

        def referred(etag: str, raw: bytes) -> tuple[str, References]:
            head = decode_own_head(raw, self._store_id)
            if not self._with_frames:
                return etag, References(tuple(head.packs))
            frames = {pack_id: array("Q") for pack_id in head.packs}
            at = 0  # where `raw` begins in the manifest
            for place in head.segments:
                end = place.offset + place.length
                if end > at + len(raw):
                    at = place.offset
                    last = head.segments[-1]
                    upto = max(end, min(at + PART_BYTES, last.offset + last.length))
                    raw = read_part(self._singles, name, etag, at, upto)
                frames_by_pack(decode_segment(raw[place.offset - at : end - at]), frames)
            if len(frames) > len(head.packs):
                raise FormatError("a segment leads to a pack that its manifest does not tell of")
            return etag, References(tuple(frames), tuple(frames.values()))

        first_bytes = WHOLE_BYTES if self._with_frames else HEAD_BYTES
        try:
            return read_manifest(self._singles, name, first_bytes, referred, whole=False)
        except KeyAbsent:
            return None
