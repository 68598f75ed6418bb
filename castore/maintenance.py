"""What is done to a store as a whole while nobody has it open, or while it can't be opened."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from castore.errors import NotLocal
from castore.model import Progress, Stages
from castore.store import check_fraction, open_store, refuse_strangers
from castore.system.workers import usable_cores
from castore.transaction import StrPath
from castore.urls import local_folder, text_of

if TYPE_CHECKING:
    from castore.stream.reports import CheckReport, CompactReport, RebuildReport


def restore(
    source: StrPath, store: StrPath, *, force: bool = False, progress: Progress | None = None
) -> RebuildReport:
    """Put the index of a backup (see `Store.backup`) into a local store.

    The store's index is lost or damaged, or with `force` it goes back to the backup; nobody uses
    it. What was there is kept beside it. Names that were put since the backup come from the
    journal, if that is there. The report's `lost` are the names that can't be read, as their packs
    are gone.

    Raises FormatError if `source` is no whole backup, NotAStore if it is another store's,
    IndexIntact if the store's index is whole, unless `force`; UnsupportedFormat if a later castore
    wrote its castore.json; NotLocal; StoreLocked while it is in use.

    >>> _ = store.puts("greeting", b"hello, world")
    >>> _ = store.backup("names.backup")
    >>> store.close()
    >>> shutil.rmtree("store/index")
    >>> report = castore.restore("names.backup", "store")
    >>> report.names, report.lost
    (1, [])
    """
    from castore.local.backup import restore as restore_local

    return restore_local(text_of(source), local_path(store), force=force, progress=progress)


def rebuild_index(
    store: StrPath, *, progress: Progress | None = None, **options: Any
) -> RebuildReport:
    """Make a store's index anew, without a backup.

    Locally its rows of chunks and packs come from the packs, and its names from all that can be
    read of the old index, and from the journal; the old index is kept. On S3 it is this machine's
    cache, and the hints for other machines. `options` are those of `castore.open`, but `create`
    and `read_only`.

    Raises StoreLocked while a local store is in use; IndexCorrupt if its names can't be read;
    UnsupportedFormat if one was put, or castore.json written, by a later castore; StoreFull,
    StoreIOError.
    """
    _check_options(store, options)
    if is_remote(store):
        with open_store(store, create=False, **options) as opened:
            return opened.rebuild_index(progress)
    from castore.local.rebuild import rebuild_local

    return rebuild_local(local_path(store), progress=progress)


def compact_index(store: StrPath) -> CompactReport:
    """Make the file of a local store's index as small as what is in it.

    It does not shrink by itself. Sizes in the report are in bytes. Raises StoreLocked while the
    store is in use; StoreNotFound, NotAStore; NotLocal; IndexCorrupt, StoreFull, StoreIOError:
    nothing was changed then.
    """
    from castore.local.backup import compact

    return compact(local_path(store))


def check_store(
    store: StrPath,
    *,
    read_data: bool | float = False,
    repair: bool = False,
    packs_are_lost: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> CheckReport:
    """As `Store.check`, of a store that need not be fit to be opened.

    A local store's index is looked at in a process of its own before this one opens it. With
    `repair`, a castore.json that is lost is made again first. `options` are those of
    `castore.open`, but `create` and `read_only`. Raises as `Store.check`; ConfigLost where that
    castore.json can't be made.

    >>> _ = store.puts("greeting", b"hello, world")
    >>> castore.check_store("store").clean
    True
    """
    _check_options(store, options)
    fraction = 0 if repair else check_fraction(read_data)  # a repair looks for itself
    stages = Stages(progress)
    repaired = repair_config(store, **options) if repair else ""
    if not is_remote(store):
        from castore.local.check.run import check_local

        report = check_local(
            local_path(store), fraction=fraction, threads=usable_cores(), progress=stages
        )
        if not repair:
            return report
    with open_store(store, create=False, read_only=not repair, **options) as opened:
        report = opened.check(read_data, repair, stages, packs_are_lost=packs_are_lost)
    if repaired:
        report.repaired.insert(0, repaired)
    return report


def repair_config(store: StrPath, **options: Any) -> str:
    """Make the castore.json of a store again, if it is lost or damaged; what was done.

    From what its packs and manifests say of it, or the journal or the index of a local store. ""
    for nothing. `options` are as in `check_store`. Raises ConfigLost if they do not say, or
    contradict each other; StoreLocked while a local store that lost it is in use.
    """
    _check_options(store, options)
    if not is_remote(store):
        from castore.local.config_repair import repair_config as repair_local_config

        return repair_local_config(local_path(store))
    from castore.s3.client.settings import parse_settings, settings_among
    from castore.s3.store import repair_remote_config

    return repair_remote_config(parse_settings(text_of(store), **settings_among(options)))


def _check_options(store: StrPath, options: Mapping[str, Any]) -> None:
    """As `castore.open` would, where it is not asked. Raises TypeError for what is none of its
    options, or is not the caller's to say, and ValueError for one of S3's that a local store is
    given."""
    unknown = sorted(options.keys() - (open_store.__kwdefaults__ or {}).keys())
    if unknown:
        raise TypeError(f"castore.open has no option {', '.join(unknown)}")
    decided = sorted(options.keys() & {"create", "read_only"})
    if decided:
        raise TypeError(f"a store that must exist is opened as it has to be: no {decided[0]} here")
    if options and not is_remote(store):
        from castore.s3.client.settings import settings_among

        refuse_strangers(text_of(store), settings_among(options))


def is_remote(store: StrPath) -> bool:
    """Raises ValueError for what names no store."""
    return local_folder(text_of(store)) is None


def local_path(store: StrPath) -> str:
    """Raises NotLocal for a store on S3: there the names are in S3."""
    path = local_folder(text_of(store))
    if path is None:
        raise NotLocal(
            f"{text_of(store)} is on S3, where the bucket itself has the names: this is for the "
            "index of a local store"
        )
    return os.path.realpath(path)
