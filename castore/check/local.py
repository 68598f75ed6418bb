"""Checking a local store: its index in one snapshot, against its packs.

It all runs in a process of its own, as LMDB may die of damaged pages, and as a snapshot that stays
open for minutes has no place in a process that serves readers. The packs are read after the
snapshot is taken, so what it names is there by then; a collector may take packs away meanwhile, and
says so by `gc_seq`: then what looked wrong is looked at again.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Collection

from castore import isolated
from castore.check.look import LocalCheck
from castore.check.report import CheckReport, Problem
from castore.errors import (
    FormatError,
    StoreLocked,
    StoreNotFound,
)
from castore.folder import CONFIG, check_index_in_place, read_config, share
from castore.index import damaged, open_index
from castore.index_walk import check_pages
from castore.isolated import Report
from castore.model import Progress
from castore.workers import Workers

LOOKS = 3  # at a store whose packs collectors move meanwhile


def check_local(
    root: str,
    *,
    fraction: float,
    sound: Collection[bytes] = (),
    threads: int,
    progress: Progress | None,
) -> CheckReport:
    """Check the store in the folder; `fraction` of its frames is decoded, but for those of packs
    whose data is known to be `sound`. Raises IndexCorrupt, if
    LMDB's own pages are damaged; StoreLocked, if collectors leave it no time."""
    report = CheckReport()
    index_path = os.path.join(root, "index")
    if read_config(root) is None:
        if not os.path.isdir(os.path.join(root, "packs")):
            raise StoreNotFound(errno.ENOENT, f"there is no store at {root}")
        raise FormatError(f"{os.path.join(root, CONFIG)} is gone: restore it (castore restore)")
    check_index_in_place(root)
    for document in isolated.run(
        "castore.check.local:check_in_process",
        index_path,
        root=root,
        fraction=fraction,
        sound=[pack_id.hex() for pack_id in sound],
        threads=threads,
    ):
        if "problem" in document:
            report.problems.append(Problem.of(document["problem"]))
        elif "totals" in document:
            for name, value in document["totals"].items():
                setattr(report, name, value)
        elif progress is not None and "size" in document:
            progress.set_size(document["size"])
        elif progress is not None and "done" in document:
            progress.relative_update(document["done"])
    return report


def check_in_process(
    report: Report, root: str, fraction: float, sound: list[str], threads: int
) -> None:
    """What the child of `check_local` does."""
    config = read_config(root)
    assert config is not None  # the parent has looked
    in_use = share(root)
    index = open_index(os.path.join(root, "index"), create=False)
    workers = Workers(threads)
    try:
        check_pages(index)
        for look in range(1, LOOKS + 1):
            check = LocalCheck(root, config, index, workers, fraction, report)
            check.sound = {bytes.fromhex(pack) for pack in sound}
            try:
                check.run()
            except FormatError as error:  # of a key: those have no checksums
                raise damaged(index.path, str(error)) from error
            if not len(check.findings) or check.undisturbed():
                break
            if look == LOOKS:
                raise StoreLocked(
                    errno.EAGAIN, f"collectors keep moving packs of {root}: repeat it later"
                )
        for problem in check.findings.problems():
            report({"problem": problem.document()})
        report({"totals": check.totals})
    finally:
        workers.close()
        index.close()
        if in_use >= 0:
            os.close(in_use)
