"""The verbs on a store as a whole: counting, collecting, checking, folders in and out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from castore.model import Progress, StoreStats
from castore.store.names import NameVerbs
from castore.stream.prices import HORIZON_S, Prices
from castore.system.open_folders import refuse_open_store_paths
from castore.transaction import StrPath
from castore.urls import text_of

if TYPE_CHECKING:  # loaded by those who need it
    from castore.stream.reports import BackupReport, CheckReport, GcReport, RebuildReport
    from castore.transfer.outcomes import TransferReport


class WholeVerbs(NameVerbs):
    """See `castore.Store`."""

    def stats(self) -> StoreStats:
        """How many objects, chunks, packs and bytes there are.

        In a local store from counters that every commit keeps; on S3 by reading every manifest that
        is not cached.

        >>> _ = store.puts("a", bytes(100_000)), store.puts("b", bytes(100_000))
        >>> stats = store.stats()
        >>> stats.objects, stats.logical_bytes
        (2, 200000)

        """
        return self._check_open().stats()

    def gc(
        self,
        *,
        dry_run: bool = False,
        grace_s: float = 23 * 3600.0,
        repack_below: float | None = None,
        max_repack_bytes: int | None = None,
        max_cost: float | None = None,
        horizon_s: float = HORIZON_S,
        prices: Prices | None = None,
        alone: bool = False,
        carry_undeletable: bool = False,
        accept_unclaimed: bool = False,
        progress: Progress | None = None,
    ) -> GcReport:
        """Collect garbage: free the space of what no name leads to, while others read and write.

        It may be killed at any moment: the next one finishes.

        - `dry_run`: nothing is changed, and the report says what would be.
        - `grace_s`: on S3, for how many seconds what was condemned is kept, for readers: by default
          a bit less than a day, as of daily collections each is to remove what the one before
          condemned. A local store knows what its readers and writers rely on and needs none.
        - `repack_below`: packs of whose bytes less than this share (0 to 1) are in use are
          rewritten, and small ones merged when they are many; 0: none. By default 0.5 locally, and
          on S3 whatever pays: see below.
        - `max_repack_bytes`: the most that is copied for that, in bytes.
        - `max_cost`: on S3, the most that this may cost, in dollars, by `prices`.
        - `horizon_s`: on S3, for how many seconds the store is likely to be kept: by default 90
          days.
        - `prices`: on S3, a `castore.Prices`: what the server asks for.
        - `alone`: nobody else writes. For servers that ignore preconditions.
        - `carry_undeletable`: packs that the server does not remove stay condemned, and the
          collection goes on without them.
        - `accept_unclaimed`: collect also what lost its names (see below), once and for all.

        To rewrite packs on S3 costs requests, most of them to put the manifests anew that lead to
        them, and saves what their garbage costs to keep. By default those are rewritten of which
        the garbage has cost as much by now, and would again within the horizon. With a
        `repack_below` all below it are. The report says what it costs and saves.

        On S3 what is garbage is condemned by one collection and removed by one that comes after the
        grace; the report's `next_run_at` says when. A local store's collection refuses to begin
        where names are known to be lost, so that what no name leads to may be all that is left of
        them, as after the restore of an older backup.

        Raises UnclaimedData then; CostsNothing for a `max_cost` of a local store; StoreBusy while
        another collection runs; FormatError if something that a name leads to can't be read, before
        anything is taken; CollectionRefused where a server does not allow for a safe one;
        ReadOnlyStore; StoreFull, StoreIOError; ValueError for a number that is out of range.

        >>> _ = store.puts("zeros", bytes(1_000_000))
        >>> store.delete("zeros")
        >>> report = store.gc()
        >>> report.objects, report.chunks_removed > 0
        (0, True)

        """
        backend = self._check_open() if dry_run else self._check_writable()
        if repack_below is not None and not 0 <= repack_below <= 1:
            raise ValueError(f"repack_below is from 0 to 1, not {repack_below}")
        bounds = (grace_s, horizon_s, max_repack_bytes or 0, max_cost or 0)
        if not all(bound >= 0 for bound in bounds):  # nor what is no number
            raise ValueError(
                "grace_s, horizon_s, max_repack_bytes and max_cost must not be negative"
            )
        from castore.s3.cache.unused import collect_caches  # seldom needed
        from castore.stream.reports import GcOptions

        options = GcOptions(
            dry_run=dry_run,
            grace_s=grace_s,
            repack_below=repack_below,
            max_repack_bytes=max_repack_bytes,
            alone=alone,
            carry_undeletable=carry_undeletable,
            accept_unclaimed=accept_unclaimed,
            max_cost=max_cost,
            horizon_s=horizon_s,
            prices=Prices() if prices is None else prices,
        )
        report = backend.gc(options, progress=progress)
        # What stores on S3 left on this machine when they were gone is nobody else's to take.
        report.caches_removed, report.cache_bytes_freed = collect_caches(dry_run=dry_run)
        return report

    def check(
        self,
        read_data: bool | float = False,
        repair: bool | CheckReport = False,
        progress: Progress | None = None,
        *,
        packs_are_lost: bool = False,
    ) -> CheckReport:
        """Whether the store is whole, and with `repair`, its mending.

        Every extent's frame is in its pack; manifests and index agree with the packs and with each
        other. With `read_data`, all frames (or, for a number from 0 to 1, that share of them, at
        random) are decoded and compared with their ids. The report names the objects that can't be
        read in full.

        With `repair`, all data is read, and what is wrong is mended as far as it can be: nothing is
        removed that may be of use, but moved below `quarantine/`, objects under names there. The
        report is then that of another check, and names what is lost; its `repaired` says what was
        done. In place of True, `repair` may be the report of a check, just now, which is of use if
        all data was read: else that is done first. What is in missing packs is taken for lost. So
        while more are missing than are there, as where packs/ is not mounted, nothing is repaired,
        unless `packs_are_lost`.

        Raises RepairRefused then; UnsupportedFormat, and repairs nothing, where a later castore has
        written what this one does not know; IndexCorrupt where LMDB's pages are damaged;
        StoreLocked; ReadOnlyStore, StoreFull, StoreIOError (a repair); ValueError for a share that
        is none.

        >>> _ = store.puts("greeting", b"hello, world")
        >>> report = store.check(read_data=True)
        >>> report.clean, report.exit_code
        (True, 0)

        """
        backend = self._check_open()
        fraction = check_fraction(read_data)
        if repair is False:
            return backend.check(fraction=fraction, progress=progress)
        self._check_writable()  # before anything is looked at or mended
        # One that left out data would have the packs that it did not read taken for sound.
        found = None if repair is True or repair.read_frames < repair.frames else repair
        return backend.repair(
            self._session, found, packs_are_lost=packs_are_lost, progress=progress
        )

    def export_folder(
        self, prefix: str, folder: StrPath, *, progress: Progress | None = None
    ) -> TransferReport:
        """Write every object below `prefix` + "/" (all for "") to a plain file below the folder.

        It gets the object's permission bits and time. Files that are the same already, in size,
        mode, time and content, are left as they are. What can't be written is left out and named in
        the report: a name that can't be a path there or leads through a symlink, a damaged object,
        a folder without permission. Nothing is written outside the folder.

        Raises NameNotFound if there is nothing below; InvalidName for what no name begins with;
        OSError for a disk that is full or fails.

        >>> _ = store.puts("project/notes/monday", b"all well")
        >>> report = store.export_folder("project", "exported")
        >>> os.listdir("exported/notes")
        ['monday']

        """
        from castore.transfer.export import export_folder
        from castore.transfer.outcomes import report_of

        return report_of(
            export_folder(
                self,
                prefix,
                self._folder(folder),
                keep_time=True,
                skip_same=True,
                threads=self._workers.threads,
                progress=progress,
            )
        )

    def import_folder(
        self,
        folder: StrPath,
        prefix: str = "",
        *,
        checksum: bool = False,
        progress: Progress | None = None,
    ) -> TransferReport:
        """Put every regular file below the folder as `prefix` + "/" and its path in it.

        The objects get the files' permission bits and times. Published in batches, each whole or
        not at all (on S3, each file whole): to repeat it is to go on. What can't be read or named
        is left out and named in the report.

        A file is not read if it is in the state in which it was imported before: of the same size,
        mode, time, inode and ctime. With `checksum` all files are read.

        Raises FileNotFoundError, NotADirectoryError; InvalidName for a prefix that is no text;
        ReadOnlyStore, StoreFull.

        >>> report = store.import_folder("project", "projects/a")
        >>> list(store.names())
        ['projects/a/main.py', 'projects/a/notes/monday']

        """
        from castore.stream.fileputs import FileOptions
        from castore.transfer.imports import import_folder
        from castore.transfer.outcomes import report_of

        options = FileOptions(checksum=checksum)
        outcomes = import_folder(
            self,
            self._folder(folder),
            prefix,
            options,
            threads=self._workers.threads,
            progress=progress,
        )
        return report_of(outcomes)

    def _folder(self, folder: StrPath) -> str:
        self._check_open()
        path = text_of(folder)
        refuse_open_store_paths(path)
        return path

    def rebuild_index(self, progress: Progress | None = None) -> RebuildReport:
        """On S3, make this machine's cache and the hints for others anew, from packs and names.

        A local store must not be open for it: see `castore.rebuild_index`. Raises StoreLocked.

        """
        return self._check_open().rebuild_index(progress=progress)

    def backup(self, dest: StrPath, *, progress: Progress | None = None) -> BackupReport:
        """Write a consistent copy of a local store's index, where its names are, to a file.

        The store may be in use. Durable when this returns. `castore.restore` puts it back.

        Raises NotLocal on S3; IsADirectoryError, FileExistsError for what is no file (a device, a
        pipe); IndexCorrupt, StoreFull, StoreIOError: the file is as it was then.

        >>> _ = store.puts("greeting", b"hello, world")
        >>> store.backup("names.backup").names
        1

        """
        backend = self._check_open()
        path = text_of(dest)
        refuse_open_store_paths(path)
        return backend.back_up(path, progress=progress)


def check_fraction(read_data: bool | float) -> float:
    """How much of the data `read_data` means. Raises ValueError."""
    fraction = float(read_data)
    if not 0 <= fraction <= 1:
        raise ValueError(f"read_data is a bool, or a fraction from 0 to 1, not {read_data!r}")
    return fraction
