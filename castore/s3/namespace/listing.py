"""All names, in order: singles as the server lists them, merged with what batches have."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import TypeVar

from castore.errors import FormatError
from castore.format.config import StoreConfig
from castore.format.index import Record
from castore.format.s3_batches import is_tombstone
from castore.s3.batch_root import SeenRoot
from castore.s3.batches import BatchGone, Found
from castore.s3.cache.store import StoreCache
from castore.s3.client.bucket import Bucket, KeyAbsent, Listed
from castore.s3.etags import WEAK, is_batched
from castore.s3.keys import NAMES, name_key, name_of
from castore.s3.namespace.look import ATTEMPTS, READ_S, Look, busy, etag_in_batch
from castore.s3.presence import PAGE_KEYS, heads_of, singles_of
from castore.s3.told import undamaged
from castore.system.clock import boot_clock
from castore.system.workers import Future, Workers, map_at_once

READING_MAX = 32  # weak singles at once
WAITING_MAX = 4096  # names that were listed, behind one that is read
PASSED_MIN = 16  # folders that one list tells of: fewer are looked into at once
NUMBERS_MAX = 1 << 14
NUMBER_MAX = (1 << 64) - 1  # taken for that of what is damaged

K = TypeVar("K")


class Listing(Look):
    """See the module."""

    def __init__(self, bucket: Bucket, config: StoreConfig, cache: StoreCache) -> None:
        super().__init__(bucket, config, cache)
        self._numbers: dict[str, int] = {}  # of weak singles, by their ETags
        # Of their own: who lists may be a thread of others, which are all to get on.
        self._reading = Workers(bucket.settings.max_concurrency)

    def close(self) -> None:
        self._reading.close()
        super().close()

    def listed(
        self, prefix: bytes = b"", start_after: bytes = b"", *, by: SeenRoot | None = None
    ) -> Iterator[Listed]:
        """The manifests of all names that begin with the prefix and sort behind `start_after`, in
        order, and keys that are no names. Of what is in a batch it is not told when it was put. By
        what the root says now, unless it is told to go `by` another: where it takes long, what the
        root says is asked for again, and then the singles from there on."""
        while True:
            began = boot_clock()
            key = NAMES + start_after.decode() if start_after else ""
            singles = self.bucket.list(NAMES + prefix.decode(), start_after=key)
            pairs = self.merged(singles, prefix, start_after, by=by, lazily=by is None)
            try:
                for single, counts in pairs:
                    if by is None and self._is_late(began):
                        break
                    entry = counts or single
                    assert entry is not None
                    start_after = _name_at(entry)
                    if counts is not None:
                        yield counts
                else:
                    if by is not None or not self._is_late(began):
                        return
            except BatchGone as gone:
                if by is not None:
                    raise
                self._forget(gone)

    def merged(
        self,
        singles: Iterator[Listed],
        prefix: bytes = b"",
        start_after: bytes = b"",
        *,
        by: SeenRoot | None = None,
        lazily: bool = False,
    ) -> Iterator[tuple[Listed | None, Listed | None]]:
        """(the single, what counts) of all such names, either None if there is none; `singles` is
        what is listed of them. `by` what this root says, or what the root says now. `lazily` as
        `Batches.all_below`, for who begins anew where a batch is gone."""
        if self.batches is None:
            for single in singles:
                yield single, single
            return
        seen = by or self.batches.fresh()
        rows = _Rows(self.batches.all_below(seen.root, prefix, start_after, lazily=lazily))

        def pairs() -> Iterator[tuple[Listed | None, Listed | Future[Listed | None] | None]]:
            for single in singles:
                name = name_of(single)
                if name is None:
                    yield single, single
                    continue
                for each in rows.before(name):
                    yield None, each
                yield single, self._begin_shown(seen, name, single, rows.of(name))
            for each in rows.left():
                yield None, each

        yield from _in_order(pairs())

    def level(self, prefix: bytes) -> Iterator[Sequence[Listed | str]]:
        """What begins with the prefix, a page at a time: manifests, and in place of all that go on
        behind the next `/` the key of that folder. Each page is in no order."""
        start_after = b""
        while True:
            began = boot_clock()
            for page in self._level_behind(prefix, start_after):
                if self._is_late(began):
                    break
                yield page
                start_after = max([start_after, *map(_name_at, page)])
            else:
                if not self._is_late(began):
                    return

    def etags(self, names: Collection[bytes], requests: Workers) -> dict[bytes, str]:
        """Of those that map to something, as far as a list shows singles."""
        seen = self._seen_for(names)  # before: what comes in between is not to be missed
        return self._etags(seen, names, singles_of(self.bucket, requests, names))

    def heads(self, names: Collection[bytes], requests: Workers) -> dict[bytes, str]:
        """The same, each asked for by itself, many at once. What a batch took over between the root
        and the single is not taken for gone: what seems so is asked again while the root changes.
        Raises StoreBusy."""
        found: dict[bytes, str] = {}
        left, seen = [*names], self._seen_for(names)
        for _ in range(ATTEMPTS):
            found |= self._etags(seen, left, heads_of(self.bucket, requests, left))
            left = [name for name in left if name not in found]
            newer = self._seen_for(left)
            if seen is None or newer is None or newer.root.version == seen.root.version:
                return found
            seen = newer
        raise busy(left[0])

    def told(self, versions: Sequence[tuple[bytes, str]]) -> dict[bytes, Record]:
        """What a list shows of those of the (name, ETag) that were just seen in batches."""
        found: dict[bytes, Record] = {}
        seen = None if self.batches is None else self.batches.seen
        if seen is not None:
            for name, etag in versions:
                if is_batched(etag):
                    in_batch = self._in_batch(name, etag, seen)
                    if in_batch is not None and in_batch.row is not None:
                        found[name] = in_batch.row.record
        return found

    # ------------------------------------------------------------ below

    def _is_late(self, began: float) -> bool:
        """Whether what the root said then may be too old to go on by: what said that a name was
        deleted is forgotten with the batch that had it."""
        return self.batches is not None and boot_clock() - began > READ_S

    def _seen_for(self, names: Collection[bytes]) -> SeenRoot | None:
        return self.batches.fresh() if self.batches is not None and names else None

    def _etags(
        self,
        seen: SeenRoot | None,
        names: Collection[bytes],
        singles: Mapping[bytes, Listed],
    ) -> dict[bytes, str]:
        if self.batches is None or seen is None:
            return {name: single.etag for name, single in singles.items()}

        def begin(name: bytes) -> Listed | Future[Listed | None] | None:
            assert self.batches is not None
            in_batch = self.batches.find(seen.root, name)
            single = singles.get(name)
            if single is not None:
                return self._begin_shown(seen, name, single, in_batch)
            return listed(in_batch) if in_batch is not None and in_batch.there else None

        found = _in_order((name, begin(name)) for name in names)
        return {name: counts.etag for name, counts in found if counts is not None}

    def _level_behind(self, prefix: bytes, start_after: bytes) -> Iterator[Sequence[Listed | str]]:
        key = NAMES + start_after.decode() if start_after else ""
        if self.batches is None:
            yield from self.bucket.level(NAMES + prefix.decode(), start_after=key)
            return
        seen = self.batches.fresh()
        pages = self.bucket.level(NAMES + prefix.decode(), start_after=key)
        for page in self._merged_level(seen, prefix, start_after, pages):
            # A folder that was shown has names behind its own.
            yield [each for each in page if _name_at(each) > start_after]

    def _merged_level(
        self,
        seen: SeenRoot,
        prefix: bytes,
        start_after: bytes,
        pages: Iterator[Sequence[Listed | str]],
    ) -> Iterator[list[Listed | str]]:
        assert self.batches is not None
        left: dict[bytes, Found | None] = {}  # in batches, in order: names, and folders
        for found in self.batches.all_below(seen.root, prefix, start_after, lazily=True):
            name = _name(found)
            folder, slash, _ = name[len(prefix) :].partition(b"/")
            if not slash:
                left[name] = found
            elif found.there is not None:
                left[prefix + folder + b"/"] = None

        def take(upto: bytes | None) -> Iterator[Listed | str]:
            for name in [each for each in left if upto is None or each <= upto]:
                found = left.pop(name)
                if found is None:
                    yield name_key(name)
                elif found.there is not None:
                    yield listed(found)

        for page in pages:
            folders = [each for each in page if isinstance(each, str)]
            shown: list[Listed | str | None] = [*self._having(seen, prefix, folders)]
            singles: list[tuple[None, Listed | Future[Listed | None] | None]] = []
            last = b""
            for each in page:
                name = _name_at(each)
                last = max(last, name)
                in_batch = left.pop(name, None)
                if isinstance(each, str):
                    continue
                if name_of(each) is None:
                    shown.append(each)
                else:
                    singles.append((None, self._begin_shown(seen, name, each, in_batch)))
            shown += [counts for _, counts in _in_order(singles)]
            shown += take(last)
            yield [each for each in shown if each is not None]
        yield list(take(None))

    def _having(self, seen: SeenRoot, prefix: bytes, folders: Iterable[str]) -> list[str]:
        """Those of the listed folders in which there is anything but tombstones. By lists that go
        from one to the next, while these tell of several each; then by a look into each."""
        left = sorted(folders)
        if not seen.root.version:
            return left  # there was no batch, so there is no tombstone
        below, having = NAMES + prefix.decode(), []
        doubtful: list[str] = []
        while len(left) > 1:
            last, strong = "", set()
            for entry in islice(self.bucket.list(below, start_after=left[0]), PAGE_KEYS):
                last = entry.key
                folder, slash, _ = last[len(below) :].partition("/")
                if slash and not entry.size % 2 and not is_tombstone(entry.size):
                    strong.add(f"{below}{folder}/")
            passed = [folder for folder in left if folder <= last]
            having += [folder for folder in passed if folder in strong]
            doubtful += [folder for folder in passed if folder not in strong]
            left = left[len(passed) :]
            if len(passed) < PASSED_MIN:
                break
        doubtful += left

        def any_there(folder: str) -> bool:
            return next(self.listed(_name_at(folder), by=seen), None) is not None

        threads = min(len(doubtful), self._reading.threads)
        found = map_at_once(any_there, doubtful, threads=threads)
        return having + [
            folder for folder, is_there in zip(doubtful, found, strict=True) if is_there
        ]

    def _begin_shown(
        self, seen: SeenRoot, name: bytes, entry: Listed, found: Found | None
    ) -> Listed | Future[Listed | None] | None:
        """What counts, of a single that is listed and what batches say of its name; or who tells
        when the single was read."""
        there = None if is_tombstone(entry.size) else entry
        if not entry.size % 2:
            return there
        hides = max(seen.root.dropped(name), -1 if found is None else found.number)
        if hides >= 0:
            tell = partial(self._shown, name, entry, found, hides)
            return tell() if entry.etag in self._numbers else self._reading.submit(tell)
        return None if there is None else there._replace(etag=WEAK + entry.etag)

    def _shown(self, name: bytes, entry: Listed, found: Found | None, hides: int) -> Listed | None:
        """What counts of a weak single and what has the number `hides`."""
        number = self.number_of(name, entry)
        if number < 0:
            return self._as_it_is(name, entry)
        if number < hides:
            return None if found is None or found.there is None else listed(found)
        return None if is_tombstone(entry.size) else entry._replace(etag=WEAK + entry.etag)

    def _as_it_is(self, name: bytes, entry: Listed) -> Listed | None:
        """What counts now of a name whose weak single went, or was put over, since it was listed:
        whether that counted can't be told any more."""
        now = self.now(name)
        if now.etag is None:
            return None
        if is_batched(now.etag):
            assert now.found is not None
            return listed(now.found)
        assert now.single is not None
        return entry._replace(size=now.single.reply.size, etag=now.etag)

    def number_of(self, name: bytes, entry: Listed) -> int:
        """Of a weak single that is listed; -1 if it is gone, or another by now. NUMBER_MAX of one
        that is damaged."""
        number = self._numbers.get(entry.etag)
        if number is None:
            try:
                single = undamaged(lambda: self._single(name, 0, None))
            except KeyAbsent:
                return -1
            except FormatError:  # a tombstone that is damaged still is one
                return NUMBER_MAX
            if single is None or single.number is None or single.etag != WEAK + entry.etag:
                return -1
            number = single.number
            if len(self._numbers) >= NUMBERS_MAX:
                # In one step, as no iterator of a dict is that other threads put to.
                for old in list(self._numbers)[: NUMBERS_MAX // 4]:
                    self._numbers.pop(old, None)
            self._numbers[entry.etag] = number
        return number


def _in_order(
    pairs: Iterable[tuple[K, Listed | Future[Listed | None] | None]],
) -> Iterator[tuple[K, Listed | None]]:
    """With what comes of each; the more are asked for, the more are read ahead."""
    waiting: deque[tuple[K, Listed | Future[Listed | None] | None]] = deque()
    reading, reading_max = 0, 1

    def first() -> tuple[K, Listed | None]:
        nonlocal reading, reading_max
        key, counts = waiting.popleft()
        if not isinstance(counts, Future):
            return key, counts
        reading, reading_max = reading - 1, min(2 * reading_max, READING_MAX)
        return key, counts.result()

    try:
        for pair in pairs:
            waiting.append(pair)
            reading += isinstance(pair[1], Future)
            while waiting and (
                not isinstance(waiting[0][1], Future)
                or reading >= reading_max
                or len(waiting) >= WAITING_MAX
            ):
                yield first()
        while waiting:
            yield first()
    finally:
        for _, counts in waiting:
            if isinstance(counts, Future):
                counts.cancel()


class _Rows:
    """What batches have, in order, taken from the front."""

    def __init__(self, rows: Iterator[Found]) -> None:
        self._rows = rows
        self._next = next(rows, None)

    def before(self, name: bytes) -> Iterator[Listed]:
        """What sorts before the name."""
        while self._next is not None and _name(self._next) < name:
            if self._next.there is not None:
                yield listed(self._next)
            self._next = next(self._rows, None)

    def of(self, name: bytes) -> Found | None:
        """What is next, if it has this name."""
        found = self._next
        if found is None or _name(found) != name:
            return None
        self._next = next(self._rows, None)
        return found

    def left(self) -> Iterator[Listed]:
        while self._next is not None:
            if self._next.there is not None:
                yield listed(self._next)
            self._next = next(self._rows, None)


def listed(found: Found) -> Listed:
    assert found.row is not None
    return Listed(name_key(found.row.name), found.row.length, etag_in_batch(found), 0.0)


def _name_at(entry: Listed | str) -> bytes:
    """Also of a key that is no name's."""
    key = entry if isinstance(entry, str) else entry.key
    return key.removeprefix(NAMES).encode()


def _name(found: Found) -> bytes:
    assert found.row is not None
    return found.row.name
