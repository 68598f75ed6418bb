"""Many objects to files, and files to objects: several at a time, and small ones many at a time."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import groupby
from typing import Any

from fsspec.callbacks import DEFAULT_CALLBACK
from fsspec.implementations.local import LocalFileSystem
from fsspec.spec import AbstractFileSystem

from castore.errors import CastoreError
from castore.fs.names import NameVerbs
from castore.fs.places import Place, as_given, local_places
from castore.model import ObjectInfo, Progress
from castore.stream.fileputs import FileOptions, FilePut
from castore.system.open_folders import open_store_of
from castore.system.statuses import lstat_all
from castore.system.workers import map_at_once
from castore.transfer.export import small_files


class TransferVerbs(NameVerbs):
    """See `castore.fs.CastoreFileSystem`."""

    def get(
        self,
        rpath: Any,
        lpath: Any,
        recursive: bool = False,
        callback: Any = DEFAULT_CALLBACK,
        maxdepth: int | None = None,
        **kwargs: Any,
    ) -> None:
        """As fsspec's; several objects at once.

        Each file is written whole or not at all. The first that fails is raised, and what has not
        begun by then is left. What `callback.branched` gives is told of its file on another thread.
        """
        places = self._places(rpath, LocalFileSystem(), lpath, recursive, maxdepth)
        for target in _folders_among([place.target for place in places]):
            # At once, so that an object that has its name is refused whoever comes first.
            os.makedirs(target, exist_ok=True)
        callback.set_size(len(places))
        listed = self.store.infos_together([place.source for place in places])

        def fetch(place: Place) -> None:
            options = {**kwargs, "listed": listed.get(place.source)}
            with callback.branched(place.source, place.target) as child:
                self.get_file(place.source, place.target, callback=child, **options)

        # Of two that go to one file, the last is to stay.
        alone = len(places) < 2 or not _are_distinct(places)
        threads = 0 if alone else 2 * self.store.threads
        if not alone and not kwargs:
            places = self._get_small(places, callback, threads)
        for _ in callback.wrap(map_at_once(fetch, places, threads=threads)):
            pass

    def _get_small(self, places: list[Place], callback: Any, threads: int) -> list[Place]:
        """Get small objects to files, many at a time; what is left."""
        together = self.store.small_together
        if together == 1 or not all(isinstance(each.target, (str, os.PathLike)) for each in places):
            return places
        groups = list(_groups(places, together))
        left: list[Place] = []
        for group, infos in zip(
            groups, map_at_once(self._write_small, groups, threads=threads), strict=True
        ):
            for place, info in zip(group, infos, strict=True):
                if info is None:
                    left.append(place)
                    continue
                with callback.branched(place.source, place.target) as child:
                    child.set_size(info.size)
                    child.relative_update(info.size)
                callback.relative_update()
        return left

    def put(
        self,
        lpath: Any,
        rpath: Any,
        recursive: bool = False,
        callback: Any = DEFAULT_CALLBACK,
        maxdepth: int | None = None,
        **kwargs: Any,
    ) -> None:
        """As fsspec's, in one commit."""
        lpath, rpath = as_given(lpath, rpath)
        places = None
        if isinstance(rpath, str):
            places = local_places(lpath, self, rpath, recursive, maxdepth)
        if places is None:
            plan = _Plan(self)
            AbstractFileSystem.put(plan, lpath, rpath, recursive, maxdepth=maxdepth, **kwargs)
            places = plan.places
        callback.set_size(len(places))
        together = _are_distinct(places) and kwargs.keys() <= {"mode"}
        regular: list[Place] = []
        with self._together():
            for place in places:
                # To open a pipe in a folder would be to wait for whoever writes to it.
                is_file = os.path.isfile(place.source)
                if together and (is_file or (recursive and not os.path.isdir(place.source))):
                    regular.append(place)
                    continue
                with callback.branched(place.source, place.target) as child:
                    self.put_file(place.source, place.target, callback=child, **kwargs)
                callback.relative_update()
            if regular:
                self._put_files(regular, callback, if_absent=kwargs.get("mode") == "create")

    def _put_files(self, places: Sequence[Place], callback: Any, *, if_absent: bool) -> None:
        files = [
            FilePut(
                os.fspath(each.source), self._strip_protocol(each.target), _entry(callback, each)
            )
            for each in places
        ]
        options = FileOptions(keep_time=False, skip_same=False, if_absent=if_absent)
        with self._changes(create=True) as changes:
            for put in changes.put_files(files, options):
                if isinstance(put, Exception):
                    raise put

    def _write_small(self, group: Sequence[Place]) -> Sequence[ObjectInfo | None]:
        """The small objects of the group that are files by now, each in its place; None for what is
        left to be got by itself."""
        folder = os.path.dirname(group[0].target)
        infos: list[ObjectInfo | None] = [None] * len(group)
        if open_store_of(folder) is not None:
            return infos
        with suppress(CastoreError, OSError):  # who writes them one by one says why
            os.makedirs(folder, exist_ok=True)
            fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                ats = _replaceable([place.target for place in group])
                wanted = [(group[at].source, os.path.basename(group[at].target)) for at in ats]
                written = small_files(self.store, fd, wanted, keep_time=False, replace=True)
                for at, info in zip(ats, written, strict=True):
                    infos[at] = info
            finally:
                os.close(fd)
        return infos


def _replaceable(paths: Sequence[str]) -> list[int]:
    """Which of these are regular files, or nothing yet. Whatever else there is, a link or a pipe,
    is written through or to."""
    return [
        at
        for at, status in enumerate(lstat_all(paths))
        if isinstance(status, FileNotFoundError)
        or (not isinstance(status, OSError) and stat.S_ISREG(status.st_mode))
    ]


class _Plan:
    """What fsspec's `put` asks a file system for, which puts nothing: where each file goes."""

    def __init__(self, fs: AbstractFileSystem) -> None:
        self.isdir = fs.isdir
        self._strip_protocol = fs._strip_protocol
        self.places: list[Place] = []

    def put_file(self, lpath: str, rpath: str, **kwargs: Any) -> None:
        self.places.append(Place(lpath, rpath))


@contextmanager
def _entry(callback: Any, place: Place) -> Iterator[Progress]:
    with callback.branched(place.source, place.target) as child:
        yield child
    callback.relative_update()


def _are_distinct(places: Sequence[Place]) -> bool:
    return len({str(place.target) for place in places}) == len(places)


def _folders_among(targets: Sequence[Any]) -> list[str]:
    """Those that others of them are in; of paths only."""
    paths = {os.fspath(each) for each in targets if isinstance(each, (str, os.PathLike))}
    folders: set[str] = set()
    for path in paths:
        folder = os.path.dirname(path)
        while folder not in folders and folder != os.path.dirname(folder):
            folders.add(folder)
            folder = os.path.dirname(folder)
    return sorted(paths & folders)


def _groups(places: Sequence[Place], together: int) -> Iterator[Sequence[Place]]:
    """In their order, so many of one target folder at most."""
    for _, run in groupby(places, lambda place: os.path.dirname(place.target)):
        group = list(run)
        for at in range(0, len(group), together):
            yield group[at : at + together]
