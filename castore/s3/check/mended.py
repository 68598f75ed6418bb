"""What can be read of a manifest that is damaged.

Its head and its segments have a checksum each: so a flipped bit in one is put right by itself,
however large the others are, and a segment that is beyond that takes no other with it. Pure.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import NamedTuple

from castore.check.bitflip import corrected
from castore.errors import FormatError, UnsupportedFormat
from castore.format.s3 import MANIFEST_HEADER_BYTES, ManifestHead, manifest_head_bytes
from castore.format.segment import decode_segment
from castore.s3.manifests import decode_own_head

HEAD_BYTES_MAX = 4 << 20  # that of an object of some 10 TB


class Mended(NamedTuple):
    """The head of a manifest, (end, as stored) of its segments, some of which may not decode, or be
    cut short, and all of it as stored."""

    head: ManifestHead
    segments: list[tuple[int, bytes]]
    raw: bytes


def mended(raw: bytes, store_id: bytes) -> Mended | None:
    """As much of it as can be read; None if its head can't be, or it has no segments."""
    begin = _head(raw, store_id)
    if begin is None:
        return None
    head = decode_own_head(begin, store_id)
    if not head.segments:
        return None
    segments = [
        (place.end, _segment(raw[place.offset : place.offset + place.length]))
        for place in head.segments
    ]
    last = head.segments[-1]
    behind = raw[last.offset + last.length :]
    return Mended(head, segments, b"".join([begin, *(part for _, part in segments), behind]))


def _head(raw: bytes, store_id: bytes) -> bytes | None:
    """Its bytes, as they were written."""
    rest = raw[MANIFEST_HEADER_BYTES:HEAD_BYTES_MAX]
    decode = partial(decode_own_head, store_id=store_id)
    with suppress(FormatError, UnsupportedFormat):
        decode(raw)
        return raw[: manifest_head_bytes(raw, whole=False)]
    # First what says how long the head is.
    header = corrected(raw[:MANIFEST_HEADER_BYTES], lambda header: decode(header + rest))
    if header is not None:
        return (header + rest)[: manifest_head_bytes(header, whole=False)]
    with suppress(FormatError, UnsupportedFormat):
        return corrected(raw[: manifest_head_bytes(raw, whole=False)], decode)
    return None


def _segment(raw: bytes) -> bytes:
    try:
        decode_segment(raw)
    except FormatError:
        return corrected(raw, decode_segment) or raw
    return raw
