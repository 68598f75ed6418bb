"""Frames to chunks: fetched together with what deltas among them need, decoded, and checked.

A mismatch is looked at once more through a new mapping, or another request, then raises
ChunkCorrupt: never wrong bytes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import TypeAlias

from castore.errors import ChunkCorrupt, FormatError
from castore.model import StoredChunk
from castore.stream.backend import NOTHING_HELD, Held, Packs
from castore.stream.codec import decode_frame, no_base
from castore.system.forks import ForkLock, Rank

Bytes: TypeAlias = bytes | memoryview


class DecodedChunks:
    """The chunks decoded last, up to a number of bytes: the next small read nearby costs no
    decoding. Raw frames are not kept: they are as near in the mapped pack."""

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self._bytes = 0
        self._chunks: OrderedDict[bytes, bytes] = OrderedDict()
        self._lock = ForkLock(Rank.LEAF)

    def get(self, chunks: Sequence[tuple[bytes, int]]) -> list[bytes | None]:
        """The chunks, by id and size, where they are here."""
        if not self._chunks:
            return [None] * len(chunks)
        found: list[bytes | None] = []
        with self._lock:
            for chunk_id, raw_bytes in chunks:
                raw = self._chunks.get(chunk_id)
                if raw is not None and len(raw) == raw_bytes:
                    self._chunks.move_to_end(chunk_id)
                    found.append(raw)
                else:
                    found.append(None)
        return found

    def put(self, chunk_id: bytes, raw: Bytes) -> None:
        """Unless it is a view of a raw frame."""
        if not isinstance(raw, bytes):
            return
        with self._lock:
            if chunk_id in self._chunks or len(raw) > self.bytes_max:
                return
            self._chunks[chunk_id] = raw
            self._bytes += len(raw)
            while self._bytes > self.bytes_max:
                self._bytes -= len(self._chunks.popitem(last=False)[1])


class Decoder:
    """Chunks that are decoded together: all frames that they take are fetched at once, when this is
    made. Bases that are among `kept` are not fetched, and those that are decoded go there: deltas
    that follow may have the same ones."""

    def __init__(
        self,
        packs: Packs,
        seed: int,
        chunks: Sequence[StoredChunk],
        held: Held,
        kept: DecodedChunks,
    ) -> None:
        self._packs = packs
        self._seed = seed
        self._chunks = chunks
        self._kept = kept
        bases = {base.chunk_id: base for chunk in chunks for base in chunk.location.bases}
        here = kept.get([base[:2] for base in bases.values()]) if bases else ()
        self._bases: dict[bytes, Bytes] = {
            chunk_id: raw for chunk_id, raw in zip(bases, here, strict=True) if raw is not None
        }
        self._left = {
            chunk_id: base for chunk_id, base in bases.items() if chunk_id not in self._bases
        }
        places = [chunk.location for chunk in (*self._left.values(), *chunks)]
        self._frames: Sequence[Bytes] | None  # of the bases that are left, then of the chunks
        try:
            self._frames = packs.frames(places, held)
        except FormatError:  # a pack that is too short for one of them
            self._frames = None
        self._base_frames = dict(zip(self._left, self._frames or (), strict=False))

    def all(self) -> list[Bytes]:
        """The chunks. Raises ChunkCorrupt, PackMissing."""
        return self._decode(0, len(self._chunks))

    def parts(self, part_bytes: int) -> Iterator[list[Bytes]]:
        """The same, about so many bytes at a time."""
        first = total = 0
        for i, chunk in enumerate(self._chunks, 1):
            total += chunk.raw_bytes
            if total >= part_bytes or i == len(self._chunks):
                yield self._decode(first, i)
                first, total = i, 0

    def _decode(self, begin: int, end: int) -> list[Bytes]:
        chunks = self._chunks[begin:end]
        if self._frames is None:
            return self._again(chunks)
        behind = len(self._base_frames)
        frames = self._frames[behind + begin : behind + end]
        decoded: list[Bytes] = []
        bad = []
        seed, base_of = self._seed, self._base
        for (chunk_id, raw_bytes, location), frame in zip(chunks, frames, strict=True):
            base = base_of if location.bases else no_base
            try:
                decoded.append(decode_frame(frame, chunk_id, raw_bytes, seed, base))
            except FormatError:
                bad.append(len(decoded))
                decoded.append(b"")
        if bad:
            for i, raw in zip(bad, self._again([chunks[i] for i in bad]), strict=True):
                decoded[i] = raw
        return decoded

    def _decoded(self, chunk: StoredChunk, frame: Bytes) -> Bytes:
        chunk_id, raw_bytes, location = chunk
        base = self._base if location.bases else no_base
        return decode_frame(frame, chunk_id, raw_bytes, self._seed, base)

    def _again(self, chunks: Sequence[StoredChunk]) -> list[Bytes]:
        """Those that do not match their ids, once more: in one go, as a cache may have damaged all
        of them. Raises ChunkCorrupt."""
        self._packs.forget(*(chunk.location for chunk in chunks))
        try:
            frames = self._packs.frames([chunk.location for chunk in chunks], NOTHING_HELD)
        except FormatError as error:
            if len(chunks) == 1:
                raise _corrupt(chunks[0], error) from error
            return [raw for chunk in chunks for raw in self._again([chunk])]
        decoded = []
        for chunk, frame in zip(chunks, frames, strict=True):
            try:
                decoded.append(self._decoded(chunk, frame))
            except FormatError as error:
                raise _corrupt(chunk, error) from error
        return decoded

    # ------------------------------------------------------------ bases

    def _base(self, chunk_id: bytes, raw_bytes: int) -> Bytes:
        """The bytes of a base that a frame names: decoded when the first delta needs it, which then
        finds it in the processor's cache. Raises FormatError for one that the index does not know
        the delta to have, and ChunkCorrupt."""
        raw = self._bases.get(chunk_id)
        if raw is None and chunk_id in self._left:
            raw = self._decode_base(chunk_id)
        if raw is None or len(raw) != raw_bytes:
            raise FormatError(f"the frame is a delta of chunk {chunk_id.hex()}, which is not known")
        return raw

    def _decode_base(self, chunk_id: bytes) -> Bytes:
        frame = self._base_frames.get(chunk_id)
        if frame is not None:
            try:
                return self._keep(self._left[chunk_id], frame)
            except FormatError:
                pass
        self._decode_bases_again()
        return self._bases[chunk_id]

    def _decode_bases_again(self) -> None:
        """All that are left, as those that are bad are fetched in one go."""
        bad = []
        for base in list(self._left.values()):
            frame = self._base_frames.get(base.chunk_id)
            try:
                if frame is not None:
                    self._keep(base, frame)
                    continue
            except FormatError:
                pass
            bad.append(base)
        for base, raw in zip(bad, self._again(bad), strict=True):
            self._found(base.chunk_id, raw)

    def _keep(self, base: StoredChunk, frame: Bytes) -> Bytes:
        chunk_id, raw_bytes, _ = base
        raw = decode_frame(frame, chunk_id, raw_bytes, self._seed)
        self._found(chunk_id, raw)
        return raw

    def _found(self, chunk_id: bytes, raw: Bytes) -> None:
        self._bases[chunk_id] = raw
        del self._left[chunk_id]
        self._kept.put(chunk_id, raw)


def _corrupt(chunk: StoredChunk, error: FormatError) -> ChunkCorrupt:
    return ChunkCorrupt(chunk.chunk_id, *chunk.location.place, str(error))
