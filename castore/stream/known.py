"""Rows of chunks to the places of their frames: a delta's row names its bases, whose rows lead
on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from castore.format.index import ChunkRow
from castore.model import Location, StoredChunk


def located(
    rows: Mapping[bytes, ChunkRow],
    look_up: Callable[[Iterable[bytes]], Mapping[bytes, ChunkRow]],
) -> dict[bytes, Location]:
    """Where each chunk is, those that a delta decodes with included. `look_up` is asked, once, for
    the rows that are not among `rows`.

    A delta one of whose bases has no row, or has one that leads to a delta itself, is left out, as
    if it were not known: what is lost by that is deduplication.
    """
    wanted = {base for row in rows.values() for base in row.bases}
    if not wanted:
        return {chunk_id: row.location for chunk_id, row in rows.items()}
    missing = wanted - rows.keys()
    known = {**rows, **(look_up(missing) if missing else {})}
    bases = {
        chunk_id: StoredChunk(chunk_id, known[chunk_id].raw_bytes, known[chunk_id].location)
        for chunk_id in wanted
        if chunk_id in known and not known[chunk_id].bases
    }
    return {
        chunk_id: row.location._replace(bases=tuple(bases[base] for base in row.bases))
        for chunk_id, row in rows.items()
        if all(base in bases for base in row.bases)
    }
