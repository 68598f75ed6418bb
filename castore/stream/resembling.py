"""What a new object's chunks may be stored as deltas of."""

from __future__ import annotations

from functools import partial

from castore.stream.alignment import Alignment
from castore.stream.anchored import AnchoredBases
from castore.stream.backend import Catalog
from castore.stream.bases import FindAlignment
from castore.stream.chunkreader import ChunkReader
from castore.stream.delta import can_encode
from castore.stream.session import WriteSession


def resembling(
    session: WriteSession,
    catalog: Catalog,
    reader: ChunkReader,
    name: bytes,
    like: bytes | None = None,
) -> FindAlignment | None:
    """How a writer finds what an object to be put under the name resembles: `like`, or whatever
    the catalog finds by the name. None where no deltas are wanted, or none can be made."""
    if not session.deltas or not can_encode():
        return None
    bases = AnchoredBases(reader.base)
    return FindAlignment(partial(_aligned, catalog, bases, name, like), bases)


def _aligned(
    catalog: Catalog, bases: AnchoredBases, name: bytes, like: bytes | None, *, beside: bool = True
) -> Alignment | None:
    older = catalog.older(name, like, beside=beside)
    return None if older is None else Alignment(older, older.size, bases)
