"""Stores in which every chunk that can have a base is stored as a delta: of what it resembles, or
else of whatever chunk of an older object comes first.

`pytest --deltas` runs all tests so, `@pytest.mark.deltas` one of them, and both the programs that
they start, through `in_children/sitecustomize.py`. What tests put are mostly random bytes: their
deltas are a few bytes larger than the chunks, which no writer would keep and no reader accept. Here
both do.
"""

from __future__ import annotations

import contextlib
import os
import sys
import zlib
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import castore
from castore.format.frame import (
    CODEC_DELTA,
    FRAME_HEAD_BYTES_MAX,
    FRAME_HEADER_BYTES,
    FrameHeader,
    decode_frame_header,
)
from castore.format.index import decode_record
from castore.local import lookup, older
from castore.local.older import OlderObject
from castore.s3 import catalog
from castore.s3.cache.store import StoreCache
from castore.s3.older import OlderVersion
from castore.s3.versions import Version
from castore.stream import alignment, bases, lookalikes, resembling, session
from castore.stream.codec import delta_frame
from castore.stream.delta import encode_delta
from castore.stream.session import Encoded, NewFrame
from castore.system import isolated
from castore.system.lmdb_env import Index

ENVIRONMENT = "CASTORE_TESTS_FORCE_DELTAS"
SURPLUS_BYTES_MAX = DELTA_HEAD_BYTES = 4  # of a delta's payload over its chunk
IN_CHILDREN = Path(__file__).resolve().parent / "in_children"

find_older = older.find_older
find_older_version = catalog.find_older
encode_all = session._encode_all
_PAYLOAD_AT = 12  # in a frame's header
# A child that looks at an index is given no path to where `sitecustomize` is.
_IN_ISOLATION = (
    f"import sys; sys.path.insert(0, {str(IN_CHILDREN)!r}); import sitecustomize; del sys.path[0]; "
)


def with_surplus(frame: bytes | memoryview) -> FrameHeader:
    """The header at the start of a frame, also that of a delta larger than its chunk."""
    head = bytes(frame[:FRAME_HEAD_BYTES_MAX])
    if len(head) >= FRAME_HEADER_BYTES and head[4] == CODEC_DELTA:
        raw_bytes = int.from_bytes(head[8:_PAYLOAD_AT], "little")
        payload_bytes = int.from_bytes(head[_PAYLOAD_AT : _PAYLOAD_AT + 4], "little")
        if raw_bytes < payload_bytes <= raw_bytes + SURPLUS_BYTES_MAX:
            head = head[:_PAYLOAD_AT] + head[8:_PAYLOAD_AT] + head[_PAYLOAD_AT + 4 :]
            return decode_frame_header(head)._replace(payload_bytes=payload_bytes)
    return decode_frame_header(frame)


def all_encoded(chunks: list[NewFrame], level: int) -> list[Encoded]:
    return [encoded(chunk, level) for chunk in chunks]


def encoded(chunk: NewFrame, level: int) -> Encoded:
    """A delta of one or more of the bases, if there is any, whatever its size."""
    if not chunk.bases:
        return encode_all([chunk], level)[0]
    used = chunk.bases[: 1 + zlib.crc32(chunk.chunk_id) % len(chunk.bases)]
    payload = encode_delta(chunk.raw, [base.raw for base in used])
    frame = delta_frame(
        payload or bytes(DELTA_HEAD_BYTES) + chunk.raw,
        [base.chunk[:2] for base in used],
        chunk.chunk_id,
        len(chunk.raw),
        sha256=chunk.sha256,
        id_of_sha256=bool(chunk.sha256),
    )
    return Encoded(frame, tuple(base.chunk for base in used))


def any_older(
    index: Index,
    name: bytes,
    like: bytes | None,
    known: older.FoldersKnown,
    *,
    beside: bool = True,
) -> OlderObject | None:
    """What the name resembles, or else the next object with chunks in the order of names: of each
    object, whatever was found before."""
    found = find_older(index, name, like, known)
    if found is not None:
        return found
    with index.gate, index.snapshot() as txn:
        rows = [(bytes(key), bytes(raw)) for key, raw in txn.cursor(db=index.names)]
    for _, raw in sorted(rows, key=lambda row: (row[0] < name, row[0])):
        with contextlib.suppress(castore.CastoreError):
            record = decode_record(raw)
            if not record.is_inline:
                return OlderObject(index, record)
    return None


def any_older_version(
    cache: StoreCache,
    in_memory: Collection[bytes],
    known: Callable[[bytes], Version | None],
    name: bytes,
    like: bytes | None,
    *,
    beside: bool = True,
) -> OlderVersion | None:
    """The same on S3, of what this machine knows."""
    found = find_older_version(cache, in_memory, known, name, like, beside=True)
    if found is not None:
        return found
    names, beside = {*in_memory}, cache.name_behind(b"")
    while beside is not None:
        names.add(beside)
        beside = cache.name_behind(beside)
    for each in sorted(names, key=lambda each: (each < name, each)):
        found = find_older_version(cache, (), known, each, None, beside=True)
        if found is not None:
            return found
    return None


class AnyLookAlikes(lookalikes.LookAlikes):
    """One that never gives up, and takes the full frame of the same stream that came last for every
    other chunk of which nothing is found."""

    def candidates(
        self,
        raw: Any,
        aligned: list[alignment.Candidate],
        beside: alignment.Alignment | None,
        begin: int,
    ) -> list[alignment.Candidate]:
        self._lost = 0
        found = super().candidates(raw, aligned, beside, begin) or aligned
        self.looks = True
        own = [base for base in self._bases.values() if base.chunk_id in self._own]
        if found or not own or not zlib.crc32(raw) % 2 or self.bytes_of(own[-1]) is None:
            return found
        return [alignment.Candidate(own[-1], 0.0)]


class AnyAlignment(alignment.Alignment):
    """One that never gives up, and takes what lies about there where nothing is found."""

    def candidates(self, begin: int, end: int, raw: Any) -> list[alignment.Candidate]:
        self._lost = 0
        found = super().candidates(begin, end, raw)
        if found:
            return found
        at = begin % self.size
        around = self.older.covering(at, at + 20_000)
        there = {base: None for e in around for base in e.location.bases or (e.stored,)}
        return [
            alignment.Candidate(base, 0.0)
            for base in list(there)[: alignment.BASES_MAX]
            if self.bytes_of(base) is not None
        ]


@contextlib.contextmanager
def forced() -> Iterator[None]:
    """In this process, and in those that it starts meanwhile."""
    undo: list[tuple[Any, str, Any]] = []
    before = {name: os.environ.get(name) for name in (ENVIRONMENT, "PYTHONPATH")}
    os.environ[ENVIRONMENT] = "1"
    os.environ["PYTHONPATH"] = with_children(before["PYTHONPATH"] or "")
    try:
        _force(undo)
        yield
    finally:
        for module, name, real in reversed(undo):
            setattr(module, name, real)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def are_forced() -> bool:
    return ENVIRONMENT in os.environ


def with_children(python_path: str) -> str:
    """The path of a program that is started, in which deltas are forced if they are here."""
    parts = python_path.split(os.pathsep) if python_path else []
    if are_forced() and str(IN_CHILDREN) not in parts:
        parts.insert(0, str(IN_CHILDREN))
    return os.pathsep.join(parts)


def force_for_good() -> None:
    """In a process that was started."""
    _force([])


def _force(undo: list[tuple[Any, str, Any]]) -> None:
    for module, name, value in (
        (resembling, "Alignment", AnyAlignment),
        (bases, "LookAlikes", AnyLookAlikes),
        (session, "_encode_all", all_encoded),
        (lookup, "find_older", any_older),
        (catalog, "find_older", any_older_version),
        (isolated, "_PROGRAM", _IN_ISOLATION + isolated._PROGRAM),
    ):
        undo.append((module, name, getattr(module, name)))
        setattr(module, name, value)
    for module in list(sys.modules.values()):
        if getattr(module, "decode_frame_header", None) is decode_frame_header and (
            module is not sys.modules[__name__]
        ):
            undo.append((module, "decode_frame_header", decode_frame_header))
            module.decode_frame_header = with_surplus  # type: ignore[attr-defined]
