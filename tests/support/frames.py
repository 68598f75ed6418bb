"""Frames made by hand."""

from __future__ import annotations

from castore.stream.codec import Frame, encode_frames


def encode_frame(
    raw: bytes, chunk_id: bytes, *, level: int = 1, sha256: bytes = b"", id_of_sha256: bool = False
) -> Frame:
    """One; with a `sha256` that its id is not of, as castore once wrote them."""
    chunks = [(raw, chunk_id, sha256)]
    return encode_frames(chunks, level=level, id_of_sha256=id_of_sha256)[0]
