"""Objects of a local store that were read lately: segments that need not be read again.

A manifest is immutable, so its segments stay what they are until a collector or a repair moves
frames: then all are forgotten.
"""

from __future__ import annotations

from bisect import bisect_right

from castore.errors import FormatError
from castore.format.index import decode_record, manifest_of, segment_key
from castore.format.segment import Segment, decode_segment
from castore.model import SEGMENT_EXTENTS_MAX
from castore.system.lmdb_env import Index
from castore.system.lmdb_errors import damaged
from castore.system.lmdb_snapshot import Snapshot

HOT_OBJECTS_MAX = 64
HOT_SEGMENTS_MAX = 256  # of all of them; one is 35 KiB


class HotObject:
    """An object that was read lately: its record as stored, decoded, and some of its segments,
    sorted."""

    __slots__ = ("ends", "raw", "record", "segments")

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        self.record = decode_record(raw)
        self.segments: list[Segment] = []
        self.ends: list[int] = []


class HotObjects:
    def __init__(self, index: Index) -> None:
        self._index = index
        self._hot: dict[bytes, HotObject] = {}
        self._segments = 0

    def of(self, name: bytes, raw: bytes) -> HotObject:
        """What is remembered of the object that has this record."""
        hot = self._hot.get(name)
        if hot is None or hot.raw != raw:
            known = self._hot
            if len(known) >= HOT_OBJECTS_MAX:
                # The oldest go. In one step, as no iterator of a dict is that others forget from.
                for old in list(known)[: HOT_OBJECTS_MAX // 4]:
                    known.pop(old, None)
            hot = known[name] = HotObject(bytes(raw))
        return hot

    def forget(self, name: bytes) -> None:
        self._hot.pop(name, None)

    def forget_all(self) -> None:
        self._hot = {}
        self._segments = 0

    def segment(self, txn: Snapshot, hot: HotObject, at: int) -> Segment:
        """The one that holds the byte at the offset `at`."""
        i = bisect_right(hot.ends, at)
        if i < len(hot.ends) and hot.segments[i].begin <= at:
            return hot.segments[i]
        # Of a huge object the next read will hardly want the same segment: it is read in place.
        keep = hot.record.chunks <= HOT_SEGMENTS_MAX * SEGMENT_EXTENTS_MAX
        manifest = hot.record.manifest
        with txn.cursor(db=self._index.segments) as cursor:
            if (
                not cursor.set_range(segment_key(manifest, at + 1))
                or manifest_of(bytes(cursor.key())) != manifest
            ):
                what = f"it has no segment for byte {at} of an object"
                raise damaged(self._index.path, what)
            raw = cursor.value()
            segment = decode_segment(bytes(raw) if keep else raw, manifest=manifest, verify=keep)
        if not segment.begin <= at < segment.end:
            raise FormatError(f"segment [{segment.begin}, {segment.end}) is not where it says")
        if not keep:
            return segment
        if self._segments >= HOT_SEGMENTS_MAX:
            # Start over: as good as an order of use for reads at random, and free for the others.
            for each in (hot, *self._hot.values()):
                each.segments.clear()
                each.ends.clear()
            self._segments = i = 0
        hot.segments.insert(i, segment)
        hot.ends.insert(i, segment.end)
        self._segments += 1
        return segment
