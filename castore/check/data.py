"""Decoding frames and comparing them with their ids: in threads, a few MiB at a time."""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, TypeAlias

from castore.check.packs import PackReading, Read, frame_fault, frame_fault_at, frames_of
from castore.format.pack import PackEntry
from castore.system.workers import Workers

TASK_BYTES = 4 << 20


Offsets: TypeAlias = dict[bytes, "array[int]"]  # of frames, by pack id


class DataRead(NamedTuple):
    """How much was decoded, and compared with its ids: frames, and their bytes as stored. Of the
    `deltas` among them, by pack and offset, only whether they are as they were written."""

    frames: int
    bytes: int
    deltas: Offsets


class _Job(NamedTuple):
    """Frames of a pack that are near each other, to be read at once and decoded."""

    pack: PackReading
    read: Read
    task: list[PackEntry]


def check_data(
    packs: Iterable[tuple[PackReading, Read]],
    workers: Workers,
    seed: int,
    *,
    fraction: float,
    advance: Callable[[int], None],
) -> DataRead:
    """Decode this fraction of the frames, at random, and note those that are not their chunks' as
    bad. Of each pack at least one, so that a store's wrong seed is found. `advance` is told of
    bytes: of the frames that were decoded or, with a fraction of 0, of the packs that were looked
    at; of deltas, who decodes these tells it. Memory: a task's bytes per thread, and 4 bytes for
    each delta."""
    choose = random.Random()
    read_frames = read_bytes = 0
    deltas: Offsets = {}

    def decode(job: _Job) -> tuple[_Job, list[tuple[int, str]]]:
        return job, _faults(job.read, job.task, seed)

    def jobs() -> Iterator[_Job]:
        for pack, read in packs:
            for task in _tasks(_chosen(pack, fraction, choose)):
                yield _Job(pack, read, task)
            if fraction == 0:
                advance(pack.size)

    for job, faults in workers.map_ahead(decode, jobs()):
        job.pack.bad.update(faults)
        size = sum(entry.stored_bytes for entry in job.task)
        read_frames, read_bytes = read_frames + len(job.task), read_bytes + size
        left = [entry for entry in job.task if entry.bases]
        if left:
            offsets = deltas.setdefault(job.pack.pack_id, array("I"))
            offsets.extend(entry.offset for entry in left)
        if fraction > 0:
            advance(size - sum(entry.stored_bytes for entry in left))
    return DataRead(read_frames, read_bytes, deltas)


def _chosen(pack: PackReading, fraction: float, choose: random.Random) -> Iterator[PackEntry]:
    always = choose.randrange(len(pack.frames)) if len(pack.frames) else 0
    for i, entry in enumerate(pack.frames):
        wanted = fraction >= 1 or i == always or choose.random() < fraction
        if wanted and entry.offset not in pack.bad:
            yield entry


def _tasks(entries: Iterable[PackEntry]) -> Iterator[list[PackEntry]]:
    """Entries near each other, to be read at once."""
    task: list[PackEntry] = []
    for entry in entries:
        if task and entry.offset + entry.stored_bytes - task[0].offset > TASK_BYTES:
            yield task
            task = []
        task.append(entry)
    if task:
        yield task


def _faults(read: Read, task: list[PackEntry], seed: int) -> list[tuple[int, str]]:
    begin, end = task[0].offset, task[-1].offset + task[-1].stored_bytes
    block = memoryview(read(begin, end))
    if len(block) == end - begin:
        task = [
            entry
            for entry in task
            if frame_fault(block[entry.offset - begin : _end(entry) - begin], entry, seed)
        ]
    # Again, as what is damaged may only have been so on its way; and an unreadable part is not to
    # take its neighbours with it.
    frames = frames_of(read, task)
    faults = [frame_fault(frame, entry, seed) for frame, entry in zip(frames, task, strict=True)]
    if len(block) < end - begin:
        faults = [
            fault and frame_fault_at(read, entry, seed)
            for fault, entry in zip(faults, task, strict=True)
        ]
    return [(entry.offset, fault) for entry, fault in zip(task, faults, strict=True) if fault]


def _end(entry: PackEntry) -> int:
    return entry.offset + entry.stored_bytes
