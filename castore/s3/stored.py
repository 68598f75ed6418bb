"""Frames as they are in packs, to be stored once more elsewhere."""

from __future__ import annotations

from collections.abc import Sequence

from castore.errors import FormatError
from castore.format.frame import decode_frame_header
from castore.model import Location
from castore.s3.packs import GAP_BYTES, S3Packs
from castore.stream.codec import Frame, stored_frame


class StoredFrames:
    """Of a store; thread-safe."""

    def __init__(self, packs: S3Packs, seed: int) -> None:
        self._packs = packs
        self._seed = seed

    def at(
        self, locations: Sequence[Location], *, gap_bytes: int = GAP_BYTES
    ) -> list[Frame | FormatError]:
        """The frames, checked against the ids in their heads; or why one is none. What does not
        match is fetched once more. Raises PackMissing."""
        found = self._fetched(locations, gap_bytes)
        return [self._frame(location, raw) for location, raw in zip(locations, found, strict=True)]

    def _fetched(
        self, locations: Sequence[Location], gap_bytes: int = GAP_BYTES
    ) -> list[bytes | memoryview]:
        """As stored, each; nothing where a pack ends before."""
        try:
            return list(self._packs.frames_across(locations, gap_bytes))
        except FormatError:
            if len(locations) == 1:
                return [b""]
            return [raw for location in locations for raw in self._fetched([location])]

    def _frame(self, location: Location, raw: bytes | memoryview) -> Frame | FormatError:
        try:
            return self._decoded(raw)
        except FormatError:
            self._packs.forget(location)
            try:
                return self._decoded(self._fetched([location])[0])
            except FormatError as error:
                return error

    def _decoded(self, raw: bytes | memoryview) -> Frame:
        header = decode_frame_header(raw)
        return stored_frame(bytes(raw), header.chunk_id, header.raw_bytes, self._seed)
