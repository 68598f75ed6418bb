"""The verbs that read objects' bytes."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice, takewhile
from typing import NamedTuple

from castore.errors import CastoreError, InvalidName, InvalidRange, NameNotFound, unraised
from castore.model import ObjectInfo, Progress, RangePlan, clamp_range, encode_name
from castore.store.handle import Handle
from castore.stream.chunkreader import Pinned
from castore.stream.etags import have_etag
from castore.stream.reader import Reader
from castore.stream.small import SMALL_BYTES_MAX
from castore.stream.smallreads import SmallRead
from castore.stream.sourcefile import has_content
from castore.system.fileio import Writable, descriptor_of, of_file, write_all, write_stream
from castore.system.open_folders import refuse_open_store_real_path
from castore.system.outfolder import replacing
from castore.system.translated import Translated
from castore.transaction import StrPath, object_info
from castore.urls import text_of

BATCHES_MIN = 64  # objects: with fewer a commit puts them one by one
TASK_BYTES = 2 << 20  # read by one thread
READ_BYTES = 64 << 10  # as much takes as long as what is the same for every object
OTHERS_MAX = 4  # names that are listed for each that is wanted


class ReadVerbs(Handle):
    """See `castore.Store`."""

    def gets(self, name: str, byte_range: Sequence[int] | None = None) -> bytes:
        """The object's bytes, or those of the half-open range `(begin, end)` of it.

        An end past the size is clamped, a begin at or past it gives b""; None and `[]` mean all.
        Reads only the chunks that cover the range.

        Raises NameNotFound, InvalidRange (before anything is read), ChunkCorrupt, PackMissing.

        >>> _ = store.puts("greeting", b"hello, world")
        >>> store.gets("greeting", (7, 12))
        b'world'
        >>> store.gets("greeting", (7, 1_000_000))
        b'world'
        >>> store.gets("no such name")
        Traceback (most recent call last):
        castore.errors.NameNotFound: [Errno 2] no object is named 'no such name'
        """
        self._check_open()
        return self._reader.ranges(encode_name(name), [byte_range])[0]

    def gets_many(self, name: str, byte_ranges: Sequence[Sequence[int] | None]) -> list[bytes]:
        """The bytes of each half-open range, all of the same version of the object.

        Ranges close to each other are fetched together. Raises as `gets` does.

        >>> _ = store.puts("greeting", b"hello, world")
        >>> store.gets_many("greeting", [(7, 12), (0, 5)])
        [b'world', b'hello']
        """
        self._check_open()
        return self._reader.ranges(encode_name(name), list(byte_ranges))

    def gets_ranges(
        self, wanted: Sequence[tuple[str, Sequence[int] | None]]
    ) -> list[bytes | Exception]:
        """The bytes of each `(name, half-open range)`, in order, several objects at once.

        Those of one object are of one version, and one plan. What can't be read has the exception
        that `gets_many` would raise for its object in place of its bytes.

        >>> _ = store.puts("greeting", b"hello, world")
        >>> store.gets_ranges([("greeting", (0, 5)), ("absent", None), ("greeting", (7, 12))])
        [b'hello', NameNotFound(2, "no object is named 'absent'"), b'world']
        """
        self._check_open()
        places: dict[str, list[int]] = {}
        for place, (name, _) in enumerate(wanted):
            places.setdefault(name, []).append(place)

        def read(name: str) -> Sequence[bytes | Exception]:
            try:
                return self.gets_many(name, [wanted[place][1] for place in places[name]])
            except NameNotFound as error:
                return [unraised(error)] * len(places[name])
            except Exception as error:
                return [error] * len(places[name])

        found: list[bytes | Exception] = [b""] * len(wanted)
        if len(places) > 1:
            for name, raw in self._small_of([*places]):
                try:
                    for at in places[name]:
                        byte_range = wanted[at][1]
                        found[at] = raw if byte_range is None else _part(raw, byte_range)
                except InvalidRange:  # `read` says so
                    continue
                del places[name]
        tasks = [[name] for name in places]
        if self.small_together > 1:  # nothing is waited for: threads would only wait for each other
            tasks = list(_tasks((name, [wanted[at][1] for at in places[name]]) for name in places))

        def read_all(names: Sequence[str]) -> list[Sequence[bytes | Exception]]:
            return [read(name) for name in names]

        parts = (
            map(read_all, tasks) if len(tasks) == 1 else self._workers.map_ahead(read_all, tasks)
        )
        for ats, each in zip(places.values(), chain.from_iterable(parts), strict=True):
            for at, part in zip(ats, each, strict=True):
                found[at] = part
        return found

    def _small_of(self, names: Sequence[str]) -> Iterator[tuple[str, bytes]]:
        """All bytes of the small ones, where many are read faster together. What can't be read so
        is left to `gets_many`, which tells why."""
        together = self._reader.small_together
        if together == 1:
            listed = self.infos_together(names).values()
            for info, raw in zip(
                listed, self._workers.map_ahead(self._at_hand, listed), strict=True
            ):
                if raw is not None:
                    yield info.name, raw
            return
        groups = [names[at : at + together] for at in range(0, len(names), together)]
        for group, read in zip(groups, self._workers.map_ahead(self._small, groups), strict=True):
            for name, each in zip(group, read, strict=True):
                if each is not None:
                    yield name, each[1]

    def _at_hand(self, listed: ObjectInfo) -> bytes | None:
        with contextlib.suppress(CastoreError):
            found = self._reader.at_hand(listed)
            return None if found is None else found[1]
        return None

    def _small(self, names: Sequence[str]) -> Sequence[SmallRead]:
        try:
            return self._reader.small_many([encode_name(name) for name in names], SMALL_BYTES_MAX)
        except CastoreError:
            return [None] * len(names)

    def get(
        self,
        name: str,
        file: StrPath | Writable,
        *,
        progress: Progress | None = None,
        listed: ObjectInfo | None = None,
    ) -> ObjectInfo:
        """Write the object to a path, or to a binary file object.

        A path is replaced atomically and gets the object's permission bits (but for setuid, setgid
        and sticky); a folder means a file in it with the last part of the name; a device, a pipe or
        an open descriptor (`/dev/stdout`) is written to. Nothing is synced to disk: as with `cp`,
        the system does that in its own time.

        `listed` is what `list` just showed of it: on S3 a small object is then read with others of
        the list, and may be what it was then.

        Raises NameNotFound, ChunkCorrupt, PackMissing, and what writing to the file raises;
        TypeError for what is neither a path nor a file object.

        >>> _ = store.put("dumps/monday.sql", "monday.sql")
        >>> store.get("dumps/monday.sql", "restored.sql").size
        20
        """
        self._check_open()
        if not isinstance(file, (str, os.PathLike)) and not hasattr(file, "write"):
            raise TypeError(
                f"file is a path or a binary file object, not {type(file).__name__}; "
                "gets returns bytes"
            )
        found = self._find(name, listed)
        if progress is not None:
            progress.set_size(found.info.size)
        if not isinstance(file, (str, os.PathLike)):
            found.to_stream(file, progress)
            return found.info
        path = text_of(file)
        if os.path.isdir(path):
            last = name.rsplit("/", 1)[-1]
            if not last:
                what = f"{name!r} ends with '/', and names no file in the folder"
                raise IsADirectoryError(errno.EISDIR, what, path)
            path = os.path.join(path, last)
        if not path or path.endswith(os.sep):
            raise FileNotFoundError(errno.ENOENT, "there is no such folder", path)
        descriptor = descriptor_of(path)
        if descriptor is not None:
            with _errors_of(path), open(os.dup(descriptor), "wb", buffering=0) as stream:
                found.to_stream(stream, progress)
            return found.info
        given, path = path, os.path.realpath(path)
        if os.path.islink(path):  # links that go round lead nowhere
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), given)
        refuse_open_store_real_path(path)
        if os.path.exists(path) and not os.path.isfile(path):
            with _errors_of(path), open(path, "wb", buffering=0) as stream:
                found.to_stream(stream, progress)
            return found.info
        folder = os.path.dirname(path)
        with _errors_of(path if os.path.isdir(folder) else folder), replacing(path) as draft:
            found.to_file(draft.fd, progress)
            draft.finish(found.info.mode)
        return found.info

    def get_into(
        self,
        name: str,
        fd: int,
        *,
        progress: Progress | None = None,
        listed: ObjectInfo | None = None,
    ) -> ObjectInfo:
        """Write the object to an empty regular file that is open at the descriptor `fd`.

        Its mode and time stay as they are. `listed` is as for `get`. Raises as `get` does.
        """
        self._check_open()
        found = self._find(name, listed)
        if progress is not None:
            progress.set_size(found.info.size)
        found.to_file(fd, progress)
        return found.info

    def _find(self, name: str, listed: ObjectInfo | None) -> _Found:
        key = encode_name(name)
        if listed is not None and listed.size <= SMALL_BYTES_MAX:
            small = self._reader.small(key, SMALL_BYTES_MAX, listed)
            if small is not None:
                return _Found(object_info(name, small[0]), self._reader, small[1])
        pinned = self._reader.pin(key)
        return _Found(object_info(name, pinned.record), self._reader, pinned)

    @property
    def small_together(self) -> int:
        """How many small objects `small_many` is best asked for at once: 1 where each waits for a
        server."""
        return self._reader.small_together

    def small_many(self, names: Sequence[str]) -> list[tuple[ObjectInfo, bytes] | None]:
        """What each name maps to, and its bytes, read together. None for what is not small, is not
        there, or can't be read like this: `get_into` tells why."""
        self._check_open()
        return [
            None if each is None else (object_info(name, each[0]), each[1])
            for name, each in zip(names, self._small(names), strict=True)
        ]

    def infos_together(self, names: Sequence[str]) -> dict[str, ObjectInfo]:
        """What a list shows of these objects, where it is worth one, for `get` to be told: many
        that are in batches on S3 take few requests then. Those that lie among many others may be
        left out."""
        catalog = self._check_open().catalog
        found: dict[str, ObjectInfo] = {}
        if len(names) < BATCHES_MIN or self.small_together > 1:
            return found
        left: dict[bytes, str] = {}
        for name in names:
            with contextlib.suppress(InvalidName):
                left[encode_name(name)] = name
        listed = chain.from_iterable(catalog.pages(_start([*left.values()])))
        with contextlib.suppress(CastoreError):  # what it does not show is asked for by itself
            for key, record in islice(listed, OTHERS_MAX * len(left)):
                if key in left:
                    name = left.pop(key)
                    found[name] = object_info(name, record)
                    if not left:
                        break
        return found

    def has_content(self, info: ObjectInfo, file: int | bytes) -> bool:
        """Whether a regular file, open at a descriptor, or these bytes are those of this version of
        an object.

        They are hashed, and the store is not read.
        """
        etag, inline = bytes.fromhex(info.etag), info.chunks == 0
        config, chunker = self._config, self._chunker
        if isinstance(file, bytes):
            same = len(file) == info.size
            return same and have_etag(file, etag, inline=inline, config=config, chunker=chunker)
        return has_content(file, info.size, etag, inline=inline, chunker=chunker, config=config)

    def explain_range(self, name: str, byte_range: Sequence[int] | None = None) -> RangePlan:
        """What `gets(name, byte_range)` would touch. Raises as `gets` does.

        >>> _ = store.puts("zeros", bytes(10_000_000))
        >>> store.explain_range("zeros", (0, 100)).chunks
        1
        """
        self._check_open()
        return self._reader.explain(encode_name(name), byte_range)


def _part(raw: bytes, byte_range: Sequence[int]) -> bytes:
    begin, end = clamp_range(byte_range, len(raw))
    return raw[begin:end]


def _tasks(wanted: Iterable[tuple[str, Sequence[Sequence[int] | None]]]) -> Iterator[list[str]]:
    """The names, in their order, in groups of which about as many bytes are wanted as are worth a
    thread."""
    group: list[str] = []
    group_bytes = 0
    for name, byte_ranges in wanted:
        group.append(name)
        group_bytes += READ_BYTES + sum(map(_most_bytes, byte_ranges))
        if group_bytes >= TASK_BYTES:
            yield group
            group, group_bytes = [], 0
    if group:
        yield group


def _most_bytes(byte_range: Sequence[int] | None) -> int:
    """That a half-open range can have; of what is none, as much as of a whole object."""
    try:
        begin, end = byte_range or (0, TASK_BYTES)
        return max(0, min(end - begin, TASK_BYTES))
    except (TypeError, ValueError):
        return TASK_BYTES


def _start(names: Sequence[str]) -> bytes:
    """What all of them begin with."""
    first, last = min(names, default=""), max(names, default="")
    same = takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
    return "".join(each for each, _ in same).encode()


class _Found(NamedTuple):
    """An object that is to be written somewhere: one version of it, or its bytes."""

    info: ObjectInfo
    reader: Reader
    content: Pinned | bytes

    def to_stream(self, file: Writable, progress: Progress | None) -> None:
        if isinstance(self.content, Pinned):
            self.reader.copy_to_stream(self.content, file, progress)
            return
        write_stream(file, self.content)
        if progress is not None:
            progress.relative_update(len(self.content))

    def to_file(self, fd: int, progress: Progress | None) -> None:
        if isinstance(self.content, Pinned):
            self.reader.copy_to_file(self.content, fd, progress)
            return
        write_all(fd, [self.content], 0)
        if progress is not None:
            progress.relative_update(len(self.content))


def _errors_of(path: str) -> Translated:
    """What goes wrong with a file is said of it: a descriptor has no name, and a draft's says
    nothing. What the store itself can't do is a CastoreError."""

    def of_it(error: BaseException) -> OSError | None:
        if not isinstance(error, OSError) or isinstance(error, CastoreError):
            return None
        return of_file(error, path)

    return Translated(of_it)
