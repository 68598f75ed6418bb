"""Plain files to objects: in batches, each of which is published whole."""

from __future__ import annotations

import contextlib
import os
import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple, TypeAlias

from castore.errors import CastoreError, FormatError, InvalidName, NameExists, NameNotFound
from castore.model import ObjectInfo, Progress, as_prefix, encode_name
from castore.stream.fileputs import FileOptions, FilePut
from castore.stream.small import SMALL_BYTES_MAX
from castore.system.walk import FoundFile, Skipped, reason, walk
from castore.transfer.outcomes import (
    THREADS_MAX,
    Fault,
    Objects,
    Outcome,
    Shared,
    ahead,
)

BATCH_FILES_MAX = 2000
BATCH_BYTES_MAX = 256 << 20
# What is in its record, as up to 64 KiB are on S3, is in memory until the commit.
BATCH_SMALL_BYTES_MAX = 32 << 20
DRAFT = re.compile(r"\.castore-[0-9a-f]{16}")

Put: TypeAlias = tuple[ObjectInfo, bool] | Exception  # as Transaction.put_files gives it


class Source(NamedTuple):
    """A file and the name it goes under."""

    path: str
    name: str
    size: int
    is_regular: bool = True


def import_folder(
    store: Objects,
    folder: str,
    prefix: str,
    options: FileOptions,
    *,
    threads: int,
    progress: Progress | None,
) -> Iterator[Outcome]:
    """Put every regular file below the folder as `prefix` + "/" and its path in it, in batches that
    are each published whole, several at a time.

    Raises FileNotFoundError, NotADirectoryError.
    """
    if not os.path.isdir(folder):
        os.listdir(folder)  # says which error it is
    shared = Shared(progress)
    if progress is not None:
        found = walk(folder, leave_out=store.path)
        shared.fix_size(sum(each.size for each in found if isinstance(each, FoundFile)))

    def put(batch: list[Source]) -> list[Outcome]:
        return put_files(store, batch, options, shared)

    left_out: deque[Outcome] = deque()
    sources = _sources(folder, as_prefix(prefix), store.path, left_out)
    for outcomes in ahead(put, batches(sources), min(threads, THREADS_MAX), shared.stop):
        yield from _drained(left_out)
        yield from outcomes
    yield from _drained(left_out)


def batches(sources: Iterable[Source]) -> Iterator[list[Source]]:
    """`sources` in order, in groups that are each small enough for one transaction."""
    batch: list[Source] = []
    batch_bytes = small_bytes = 0
    for source in sources:
        small = source.size if source.size <= SMALL_BYTES_MAX else 0
        if batch and (
            len(batch) >= BATCH_FILES_MAX
            or batch_bytes + source.size > BATCH_BYTES_MAX
            or small_bytes + small > BATCH_SMALL_BYTES_MAX
        ):
            yield batch
            batch, batch_bytes, small_bytes = [], 0, 0
        batch.append(source)
        batch_bytes += source.size
        small_bytes += small
    if batch:
        yield batch


def _sources(
    folder: str, prefix: str, store_path: str, left_out: deque[Outcome]
) -> Iterator[Source]:
    for found in walk(folder, leave_out=store_path):
        path = found.path
        if not isinstance(found, FoundFile):
            left_out.append(outcome_of_skipped(found))
            continue
        if "/.castore-" in path and DRAFT.fullmatch(os.path.basename(path)):
            why = "it is what an interrupted get left"
            left_out.append(Outcome(path, reason=why, fault="on purpose"))
            continue
        try:
            encode_name(prefix + found.inner)
        except InvalidName as error:
            left_out.append(Outcome(path, reason=str(error), fault="name"))
            continue
        yield Source(path, prefix + found.inner, found.size)


def outcome_of_skipped(skipped: Skipped) -> Outcome:
    fault: Fault = "on purpose" if skipped.on_purpose else "other"
    return Outcome(skipped.path, reason=skipped.reason, fault=fault)


def put_files(
    store: Objects, batch: list[Source], options: FileOptions, shared: Shared
) -> list[Outcome]:
    """Put these regular files in one commit, all but those that can't be read, or have a name that
    is taken."""
    ours: dict[str, ObjectInfo] = {}
    taken: set[str] = set()
    while True:
        files = [FilePut(each.path, each.name, shared.entry(each.size)) for each in batch]
        try:
            with store.transaction() as transaction:
                put = transaction.put_files(files, options)
                ours |= {each[0].name: each[0] for each in put if not isinstance(each, Exception)}
            break
        except NameExists as error:  # since it was looked for: the next look leaves out this alone
            if error.name in taken:
                raise
            taken.add(error.name)
            shared = shared.again()
    return [
        _outcome(file.path, _settled(store, each, ours))
        for file, each in zip(files, put, strict=True)
    ]


def _settled(store: Objects, put: Put, ours: Mapping[str, ObjectInfo]) -> Put:
    """On S3 a commit that failed may have published some: their names are taken by what is ours."""
    if isinstance(put, NameExists) and put.name in ours:
        mine = ours[put.name]
        with contextlib.suppress(NameNotFound, FormatError):
            there = store.info(put.name)
            if (there.etag, there.mtime_ns) == (mine.etag, mine.mtime_ns):
                return mine, False
    return put


def _outcome(path: str, put: Put) -> Outcome:
    if not isinstance(put, Exception):
        return Outcome(path, *put)
    if isinstance(put, OSError) and not isinstance(put, CastoreError):
        return Outcome(path, reason=reason(put), fault="other")
    return Outcome(path, reason=str(put), fault="other")


def _drained(outcomes: deque[Outcome]) -> Iterator[Outcome]:
    while outcomes:
        yield outcomes.popleft()
