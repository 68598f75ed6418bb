"""Checking a local store: its index in one snapshot, against its packs.

It all runs in a process of its own, as LMDB may die of damaged pages, and as a snapshot that stays
open for minutes has no place in a process that serves readers. The packs are read after the
snapshot is taken, so what it names is there by then; a collector may take packs away meanwhile, and
says so by `gc_seq`: then what looked wrong is looked at again.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Collection

from castore.errors import FormatError, IndexChanged, StoreLocked
from castore.local.check.journal import check_journal
from castore.local.check.scan import LocalCheck
from castore.local.folder import check_index_in_place, find_config, no_store, read_config, share
from castore.local.index_walk import check_pages
from castore.model import Progress, Stages
from castore.stream.reports import CheckReport, Problem
from castore.system import isolated
from castore.system.fileio import typed_errors
from castore.system.isolated import Report
from castore.system.lmdb_env import open_index
from castore.system.lmdb_errors import damaged
from castore.system.lmdb_files import is_in_use
from castore.system.workers import Workers

LOOKS = 3  # at a store whose packs collectors move meanwhile
TOTALS = ("names", "packs", "frames", "read_frames", "read_bytes", "garbage", "garbage_bytes")


def check_local(
    root: str,
    *,
    fraction: float,
    sound: Collection[bytes] = (),
    threads: int,
    progress: Progress | None,
    read_only: bool = False,
) -> CheckReport:
    """Check the store in the folder; `fraction` of its frames is decoded, but for those of packs
    whose data is known to be `sound`. With `read_only` nothing of it is touched, unless others
    write meanwhile. Raises IndexCorrupt, if LMDB's own pages are damaged; StoreLocked, if
    collectors leave it no time; IndexChanged, if writers leave none to who may not lock it."""
    for _ in range(LOOKS):
        try:
            return _check_once(root, fraction, sound, threads, progress, read_only=read_only)
        except IndexChanged:
            read_only = False
    return _check_once(root, fraction, sound, threads, progress, read_only=False)


def _check_once(
    root: str,
    fraction: float,
    sound: Collection[bytes],
    threads: int,
    progress: Progress | None,
    *,
    read_only: bool,
) -> CheckReport:
    report, stages = CheckReport(), Stages(progress)
    index_path = os.path.join(root, "index")
    with typed_errors(root):
        if find_config(root) is None:
            raise no_store(root)
        check_index_in_place(root)
    for document in isolated.run(
        "castore.local.check.run:check_in_process",
        index_path,
        root=root,
        fraction=fraction,
        sound=[pack_id.hex() for pack_id in sound],
        threads=threads,
        read_only=read_only,
    ):
        if "problem" in document:
            report.problems.append(Problem.of(document["problem"]))
        elif "totals" in document:
            for name, value in document["totals"].items():
                setattr(report, name, value)
        elif "stage" in document:
            stages.begin_stage(document["stage"], document["size"])
        elif "done" in document:
            stages.relative_update(document["done"])
    stages.end()
    return report


def check_in_process(
    report: Report, root: str, fraction: float, sound: list[str], threads: int, read_only: bool
) -> None:
    """What the child of `check_local` does."""
    config = read_config(root)
    assert config is not None  # the parent has looked
    known = {bytes.fromhex(pack) for pack in sound}
    path = os.path.join(root, "index")
    lock_free = read_only and not is_in_use(path)
    in_use = None if lock_free else share(root)
    with (
        in_use or contextlib.nullcontext(),
        contextlib.closing(open_index(path, create=False, lock_free=lock_free)) as index,
        contextlib.closing(Workers(threads)) as workers,
    ):
        check_pages(index)
        for look in range(1, LOOKS + 1):
            stages = Stages(_Told(report))
            check = LocalCheck(root, config, index, fraction=fraction, sound=known, stages=stages)
            try:
                check.run(workers)
            except FormatError as error:  # of a key: those have no checksums
                raise damaged(index.path, str(error)) from error
            if not len(check.findings) or check.undisturbed():
                break
            if look == LOOKS:
                raise StoreLocked(
                    errno.EAGAIN, f"collectors keep moving packs of {root}: repeat it later"
                )
        check_journal(root, index, check.findings)
        found = check.report()
        for problem in found.problems:
            report({"problem": problem.document()})
        report({"totals": {name: getattr(found, name) for name in TOTALS}})


class _Told:
    """The progress of a child, as its parent is told of it."""

    def __init__(self, report: Report) -> None:
        self._report = report

    def begin_stage(self, what: str, size: int) -> None:
        self._report({"stage": what, "size": size})

    def set_size(self, size: int) -> None:
        """It came with the stage."""

    def relative_update(self, inc: int = 1) -> None:
        self._report({"done": inc})
