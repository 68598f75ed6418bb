"""Objects to plain files: several at a time, and what is the same already is left as it is."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, groupby
from typing import NamedTuple

from castore.errors import (
    CastoreError,
    ChunkCorrupt,
    FormatError,
    IndexCorrupt,
    NameNotFound,
    PackMissing,
)
from castore.model import ObjectInfo, Progress, as_prefix, sort_key
from castore.stream.fileputs import NO_MORE_FILES
from castore.stream.small import SMALL_BYTES_MAX
from castore.system.fileio import of_file
from castore.system.outfolder import (
    InTheWay,
    NewFile,
    OutFolder,
    replacing,
    status_in,
    write_small,
)
from castore.transfer.compare import Comparison, Entry, Listed
from castore.transfer.outcomes import Objects, Outcome, Shared, SmallObjects, ahead

NO_MORE_WRITES = NO_MORE_FILES | {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS}
GROUP_BYTES_MAX = 2 << 20
EXPORTS_MAX = 16  # at once; each waits for a server, or for the threads that decode


def export_folder(
    store: Objects,
    prefix: str,
    folder: str,
    *,
    keep_time: bool,
    skip_same: bool,
    past_damage: bool = False,
    threads: int,
    progress: Progress | None,
) -> Iterator[Outcome]:
    """Write every object below `prefix` + "/" (all for "") to a file below the folder, several at a
    time; `threads` are those that decode. With `keep_time` a file has its object's time; with
    `skip_same` those of the same size, mode, time and content are left as they are. With
    `past_damage` an object of which the index lacks something is left out, and the others go on.

    Raises IndexCorrupt without that; NameNotFound if there is nothing; OSError for a folder that
    can't be written to.
    """
    below = as_prefix(prefix)
    found = _objects(store, below)
    first = next(found, None)
    if first is None and below:
        raise NameNotFound(below)  # before there is a folder for nothing
    shared = Shared(progress)
    if progress is not None:
        shared.fix_size(_listed_bytes(store, below))
    out = OutFolder(folder)
    comparison = Comparison(store, below, out)
    export = _Export(store, below, out, comparison, keep_time, past_damage, shared)
    listed = chain([] if first is None else [first], found)
    entries = (
        comparison.compared(listed, shared.stop)
        if skip_same
        else (Entry(name, info, False) for name, info in listed)
    )
    try:
        groups = _groups(entries, store.small_together)
        for outcomes in ahead(export.group, groups, min(2 * threads, EXPORTS_MAX), shared.stop):
            yield from outcomes
    finally:
        entries.close()  # which may be at work in the folder
        out.close()


def _objects(store: Objects, below: str) -> Iterator[Listed]:
    """Names and what they map to; without it from where on a listing can't be read."""
    last = b""
    try:
        for info in store.list(below):
            yield info.name, info
            last = sort_key(info.name)
    except FormatError:  # one of them is damaged: the others come one by one
        for name in store.names(below):
            if sort_key(name) > last:
                yield name, None


def _listed_bytes(store: Objects, below: str) -> int:
    return sum(info.size for _, info in _objects(store, below) if info is not None)


def _groups(entries: Iterable[Entry], together: int) -> Iterator[list[Entry]]:
    """The entries in order, small ones up to so many at a time."""
    group: list[Entry] = []
    group_bytes = 0
    for entry in entries:
        info = entry.info
        small = info is not None and info.size <= SMALL_BYTES_MAX
        if group and (not small or len(group) == together or group_bytes >= GROUP_BYTES_MAX):
            yield group
            group, group_bytes = [], 0
        group.append(entry)
        group_bytes += info.size if info is not None and small else GROUP_BYTES_MAX
    if group:
        yield group


class _Export(NamedTuple):
    """One export: see `export_folder`."""

    store: Objects
    below: str
    out: OutFolder
    comparison: Comparison
    keep_time: bool
    past_damage: bool
    shared: Shared

    def group(self, entries: Sequence[Entry]) -> list[Outcome]:
        """What becomes of each."""
        written = self._together(entries) if len(entries) > 1 else {}
        outcomes = []
        for name, info, is_same in entries:
            outcome = Outcome(name, info, same=True) if is_same else written.get(name)
            if outcome is None:
                outcome = self._one(name, info, compare=is_same is None)
            elif info is not None:
                self.shared.advance(info.size)
            outcomes.append(outcome)
        return outcomes

    def _together(self, entries: Sequence[Entry]) -> dict[str, Outcome]:
        """What was written of these in one go: small files that were not there yet, or are known to
        be others. Whatever is not as it is with most is left to who takes them one by one, and says
        why."""
        written: dict[str, Outcome] = {}
        left = [entry for entry in entries if not entry.is_same]
        for (_, is_same), run in groupby(left, lambda e: (e.name.rpartition("/")[0], e.is_same)):
            self.shared.check()
            written |= self._small([entry.name for entry in run], replace=is_same is False)
        return written

    def _small(self, names: Sequence[str], *, replace: bool) -> dict[str, Outcome]:
        """Those of these small objects, all of one folder, that are files by now; unless they are
        to `replace` what is there, those that were not there before."""
        below = len(self.below)
        try:
            parts = [self.out.claim(name[below:]) for name in names]
            with self.out.opened(parts[0][:-1]) as folder:
                wanted = [(name, path[-1]) for name, path in zip(names, parts, strict=True)]
                written = small_files(
                    self.store, folder, wanted, keep_time=self.keep_time, replace=replace
                )
        except (InTheWay, OSError):
            return {}
        done = zip(names, written, strict=True)
        return {name: Outcome(name, info) for name, info in done if info is not None}

    def _one(self, name: str, info: ObjectInfo | None, *, compare: bool) -> Outcome:
        with self.shared.entry(info.size if info else 0) as counted:
            try:
                return self._written(name, info, counted, compare=compare)
            except IndexCorrupt as error:
                if not self.past_damage:
                    raise
                return Outcome(name, reason=f"it is damaged: {error}", fault="damaged")

    def _written(
        self, name: str, listed: ObjectInfo | None, progress: Progress, *, compare: bool
    ) -> Outcome:
        inner = name[len(self.below) :]
        try:
            if listed and not listed.size and inner.endswith("/"):
                with self.out.opened(self.out.claim(inner[:-1])):  # which is made
                    return Outcome(name, reason="it only marks a folder", fault="on purpose")
            *folders, leaf = self.out.claim(inner)
            with self.out.opened(folders) as folder:
                status = status_in(folder, leaf)
                if status is not None and stat.S_ISDIR(status.st_mode):
                    raise InTheWay(f"{os.path.join(self.out.path, inner)} is a folder")
                if compare and listed and self.comparison.is_same(listed, status, folder, leaf):
                    return Outcome(name, listed, same=True)
                # One version of it, which may be a newer one than was listed; a symlink in the
                # file's place is replaced, and not followed.
                with replacing(leaf, folder=folder) as draft:
                    info = self.store.get_into(name, draft.fd, progress=progress, listed=listed)
                    draft.finish(info.mode, info.mtime_ns if self.keep_time else None)
            return Outcome(name, info)
        except InTheWay as error:
            return Outcome(name, reason=str(error), fault="other")
        except NameNotFound:
            return Outcome(name, reason="it was deleted meanwhile", fault="other")
        except PackMissing as error:
            return Outcome(name, reason=str(error), fault="missing")
        except (ChunkCorrupt, FormatError) as error:
            return Outcome(name, reason=f"it is damaged: {error}", fault="damaged")
        except OSError as error:
            if isinstance(error, CastoreError):
                raise
            path = os.path.join(self.out.path, inner)
            if isinstance(error, IsADirectoryError):  # of a name that was written at the same time
                return Outcome(name, reason=f"{path} is a folder", fault="other")
            if error.errno in NO_MORE_WRITES:
                raise of_file(error, path) from error  # and not of the draft
            return Outcome(name, reason=f"{path}: {error.strerror}", fault="other")


def small_files(
    store: SmallObjects,
    folder: int,
    wanted: Sequence[tuple[str, str]],
    *,
    keep_time: bool,
    replace: bool = False,
) -> list[ObjectInfo | None]:
    """Write small objects, (name, leaf) each, to files in the open folder that are not there yet,
    or else `replace` what is there: what each is that is in its place. The others are for who
    writes them one by one, and says why: all of them where the first file is there and stays, as
    most likely all are. Raises OSError."""
    if not replace and status_in(folder, wanted[0][1]) is not None:
        return [None] * len(wanted)
    reads = store.small_many([name for name, _ in wanted])
    files = [
        NewFile(leaf, read[1], read[0].mode, read[0].mtime_ns if keep_time else None)
        for (_, leaf), read in zip(wanted, reads, strict=True)
        if read is not None
    ]
    in_place = iter(write_small(folder, files, replace=replace))
    return [None if read is None or not next(in_place) else read[0] for read in reads]
