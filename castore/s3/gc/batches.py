"""Collecting batches of names: what is hidden in them, what says that names are deleted, and
batches that nobody needs (docs/design/0022-batches.md says in which order, and why).

Every step is one request that fails if what it was decided by has changed; what was left to do is
left to the next collection.
"""

from __future__ import annotations

import secrets
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain

from castore.errors import FormatError, ManifestUnreadable
from castore.format.s3_batches import (
    BATCH_ID_BYTES,
    Drop,
    Root,
    RootEntry,
    ToBatch,
    encode_batch,
    is_tombstone,
    to_delete,
)
from castore.s3.batch_root import NAMED_S, SeenRoot, in_order
from castore.s3.batches import Batches, Found
from castore.s3.client.bucket import Listed
from castore.s3.client.delete_version import delete_version
from castore.s3.etags import is_batched
from castore.s3.keys import BATCHES, NAMES, batch_of, name_key, name_of
from castore.s3.namespace.look import etag_in_batch
from castore.s3.namespace.writing import BATCH_BYTES_MAX, BATCH_NAMES_MAX
from castore.s3.parts import Parts
from castore.system.clock import boot_clock
from castore.system.workers import results_of

FORGET_S = 3600.0  # longer than any read takes, from its first request to its last
ORPHAN_S = 2 * NAMED_S  # longer than from a batch's PUT to the swap that names it
HIDDEN_S = 86_400.0  # longer than who looks at all names by one root, read before the singles
# Between a root and what is deleted by it of what does not count. With how late a request may land,
# and a read that saw it just before (READ_S), that is less than FORGET_S: what hides it stays so
# long.
SOON_S = 600.0
PAGE_NAMES = 1000
SMALL_BYTES = 1 << 20
SMALL_MAX = 15  # as many small batches are left alone


@dataclass
class _Names:
    """What one look at all names shows: of each batch how many of its names count; tombstones, with
    their ETags; and weak singles that do not count, with their numbers, too."""

    counting: Counter[bytes] = field(default_factory=Counter)
    tombstones: list[tuple[bytes, str]] = field(default_factory=list)
    hidden: list[tuple[bytes, str, int]] = field(default_factory=list)


class BatchCollector:
    """Of one collection. `now` is the server's time when it began, in seconds: what was an hour ago
    then, is. What it does itself has the time of the swap that does it. `batches_rewritten`,
    `batches_removed`, `tombstones_removed` and `manifests_removed`, of singles that do not count,
    say what it did; of a `dry_run`, what it would have done: it changes a root in memory alone."""

    def __init__(self, parts: Parts, now: float, *, dry_run: bool = False) -> None:
        self.batches_rewritten = self.batches_removed = self.tombstones_removed = 0
        self.manifests_removed = 0
        self._parts = parts
        self._bucket = parts.bucket
        self._now = now
        self._dry_run = dry_run
        self._planned: Root | None = None  # by a dry run

    def run(self, *, any_tombstones: bool) -> None:
        """Raises ManifestUnreadable, and what a Bucket and `Batches.swap` do."""
        batches = self._parts.names.batches
        if batches is None:
            return
        root = batches.fresh().root
        self._planned = root if self._dry_run else None
        if root.entries or root.drops or any_tombstones:
            names = self._look(batches, root)
            self._compact(batches, root, names)
            self._forget(batches, names)
            self._delete_hidden(batches, names)
            self._delete_tombstones(batches, names)
        self._remove(batches)

    def _look(self, batches: Batches, root: Root) -> _Names:
        found = _Names()
        for single, counts in self._parts.names.merged(self._bucket.list(NAMES)):
            entry = counts or single
            assert entry is not None
            name = name_of(entry)
            if name is None:
                continue
            in_batch = _in_batch(batches, root, name, counts)
            if in_batch is not None and in_batch.entry is not None:
                found.counting[in_batch.entry.batch_id] += 1
            if single is not None and is_tombstone(single.size):
                found.tombstones.append((name, single.etag))
            elif single is not None and _is_hidden(single, counts):
                number = self._parts.names.number_of(name, single)
                found.hidden.append((name, single.etag, number))
        return found

    # ------------------------------------------------------------ batches that are mostly hidden

    def _compact(self, batches: Batches, root: Root, names: _Names) -> None:
        """Write what counts in them anew; each name keeps its number, so nothing changes. Young
        ones are left alone: who deletes a single may have read a root without them."""
        live = [e for e in root.entries if not e.retired and e.at < self._now - FORGET_S]
        # One with as many names as it may have would be written anew as it is, each time again.
        small = [e for e in live if e.size < SMALL_BYTES and e.names < BATCH_NAMES_MAX]
        chosen = {
            e.batch_id for e in live if not e.deletes and 2 * names.counting[e.batch_id] < e.names
        }
        if len(small) > SMALL_MAX:
            chosen |= {entry.batch_id for entry in small}
        deleting = self._deleting(batches, root, names, [e for e in live if e.deletes], chosen)
        if not chosen:
            return
        self.batches_rewritten = len(chosen)
        began = boot_clock()
        # What it hides is hidden since they were named.
        at = max(entry.at for entry in live if entry.batch_id in chosen)
        if self._planned is not None:  # they count as what would be in their place
            self._planned = root._replace(
                entries=tuple(
                    e._replace(at=at) if e.batch_id in chosen else e for e in root.entries
                )
            )
            return
        groups = self._groups(batches, root, chosen)
        written = [self._write(batches, group, at) for group in chain(groups, deleting)]

        def swap(seen: SeenRoot) -> Root | None:
            there = {e.batch_id for e in seen.root.entries if not e.retired}
            if not chosen <= there:
                return None  # another collector was here
            entries = [
                e._replace(retired=batches.now()) if e.batch_id in chosen else e
                for e in seen.root.entries
            ]
            return seen.root._replace(entries=in_order([*entries, *written]))

        batches.swap(swap, began=began)

    def _deleting(
        self,
        batches: Batches,
        root: Root,
        names: _Names,
        entries: Sequence[RootEntry],
        chosen: set[bytes],
    ) -> list[list[ToBatch]]:
        """Of entries that say that names are deleted: those by which little is, or that are small
        and many, are `chosen`, too. What these say that is still needed, in order: as an entry that
        puts names, and is not chosen, has the name, or a weak single that is there, which would
        count without it."""
        hidden = {name: number for name, _, number in names.hidden}
        puts = [e for e in root.entries if not e.deletes and e.batch_id not in chosen]
        staying = root._replace(entries=tuple(puts))
        needed: dict[bytes, int] = {}
        for entry in entries:
            kept = {}
            for row in batches.index(entry).rows:
                number = row.number or entry.number
                if hidden.get(row.name, number) < number or any(
                    found.number < number for found in batches.live(staying, row.name)
                ):
                    kept[row.name] = number
            if 2 * len(kept) < entry.names:
                chosen.add(entry.batch_id)
            if entry.batch_id in chosen:
                needed |= {name: max(number, needed.get(name, 0)) for name, number in kept.items()}
        rows = [to_delete(*each) for each in sorted(needed.items())]
        return [rows[i : i + BATCH_NAMES_MAX] for i in range(0, len(rows), BATCH_NAMES_MAX)]

    def _groups(self, batches: Batches, root: Root, chosen: set[bytes]) -> Iterator[list[ToBatch]]:
        """What counts in these, in order, as much at a time as one batch may have."""
        group: list[ToBatch] = []
        size = 0
        for _, counts in self._parts.names.merged(self._bucket.list(NAMES)):
            name = None if counts is None else name_of(counts)
            if counts is None or name is None:
                continue
            found = _in_batch(batches, root, name, counts)
            if found is None or found.entry is None or found.entry.batch_id not in chosen:
                continue
            try:
                # What is written anew is what will be taken for right.
                manifest = batches.manifest(found)
            except FormatError as error:
                raise ManifestUnreadable(name.decode(), str(error)) from error
            if group and (len(group) >= BATCH_NAMES_MAX or size + counts.size > BATCH_BYTES_MAX):
                yield group
                group, size = [], 0
            group.append(_to_batch(found, manifest))
            size += counts.size
        if group:
            yield group

    def _write(self, batches: Batches, group: Sequence[ToBatch], at: int) -> RootEntry:
        batch_id = secrets.token_bytes(BATCH_ID_BYTES)
        number = max(each.number for each in group)
        raw, index_bytes = encode_batch(self._parts.config.store_id, group, number)
        batches.put(batch_id, raw, index_bytes)
        first, last = group[0].name, group[-1].name
        return RootEntry(batch_id, number, len(raw), at, 0, index_bytes, len(group), first, last)

    # ------------------------------------------------------------ what nobody needs any more

    def _forget(self, batches: Batches, names: _Names) -> None:
        """Entries that were retired an hour ago, and drops of what no entry has. A drop that hides
        weak singles stays for an hour from now on, and then they are deleted: it is forgotten by a
        collection that sees none, and nobody has read one then who has not begun anew."""
        before = self._now - FORGET_S
        now = self._root(batches)
        old = now._replace(drops=tuple(drop for drop in now.drops if drop.at < before))
        doomed = [(name, etag) for name, etag, number in names.hidden if number < old.dropped(name)]
        dropped = sorted(name for name, _ in doomed)
        names.hidden = [each for each in names.hidden if each[2] >= old.dropped(each[0])]

        def hides(drop: Drop) -> bool:
            at = bisect_left(dropped, drop.prefix)
            return at < len(dropped) and dropped[at].startswith(drop.prefix)

        def swap(seen: SeenRoot) -> Root | None:
            root = seen.root
            entries = tuple(e for e in root.entries if not e.retired or e.retired > before)
            kept = root._replace(entries=entries)
            drops = []
            for drop in root.drops:
                needed = any(
                    (row.number or entry.number) < drop.number
                    for entry in kept.having_below(drop.prefix)
                    for row in batches.index(entry).below(drop.prefix)
                )
                if hides(drop):
                    drops.append(drop._replace(at=batches.now()))
                elif needed or drop.at >= before:
                    drops.append(drop)
            after = kept._replace(drops=tuple(drops))
            same = (len(after.entries), after.drops) == (len(root.entries), root.drops)
            return None if same else after

        began = boot_clock()
        if self._planned is None:
            batches.swap(swap)
        else:
            self._planned = swap(SeenRoot(self._planned, "")) or self._planned
        self._delete_soon(doomed, began)

    def _delete_hidden(self, batches: Batches, names: _Names) -> None:
        """Weak singles that a batch hides: once it was named so long ago that nobody reads, lists
        or decides by an older root any more. Of what is dropped, `_forget` sees to it."""
        before = self._now - HIDDEN_S
        for i in range(0, len(names.hidden), PAGE_NAMES):
            page = names.hidden[i : i + PAGE_NAMES]
            began = boot_clock()
            found = self._in_batches(batches, [name for name, _, _ in page])  # after it was seen
            doomed = [
                (name, etag)
                for name, etag, number in page
                if (hiding := found.get(name)) is not None
                and hiding.entry is not None
                and hiding.entry.at < before
                and number < hiding.number
            ]
            self._delete_soon(doomed, began)

    def _delete_soon(self, versions: Sequence[tuple[bytes, str]], began: float) -> None:
        """Singles that do not count, by a root that was read or put after `began`, by `boot_clock`.
        What is late is left to the next collection."""

        def delete(name: bytes, etag: str) -> bool:
            if boot_clock() - began > SOON_S:
                return False
            return delete_version(self._bucket, name_key(name), etag)

        if self._dry_run:
            self.manifests_removed += len(versions)
            return
        submit = self._parts.requests.submit
        self.manifests_removed += sum(results_of([submit(delete, *each) for each in versions]))

    def _delete_tombstones(self, batches: Batches, names: _Names) -> None:
        seen = [name for name, _ in names.tombstones]
        covered = self._covered(batches, seen)  # by a root that is read after they were seen
        doomed = [each for each in names.tombstones if each[0] not in covered]
        if self._dry_run:
            self.tombstones_removed = len(doomed)
            return
        deleting = [
            self._parts.requests.submit(delete_version, self._bucket, name_key(name), etag)
            for name, etag in doomed
        ]
        self.tombstones_removed = sum(results_of(deleting))

    def _remove(self, batches: Batches) -> None:
        """Batches that the root does not tell of: of entries that were forgotten, and of writers
        that died."""
        listed = list(self._bucket.list(BATCHES))
        told = {entry.batch_id for entry in self._root(batches).entries}
        doomed = [
            entry.key
            for entry in listed
            if (batch_id := batch_of(entry.key)) is not None
            and batch_id not in told
            and entry.modified < self._now - ORPHAN_S
        ]
        if self._dry_run:
            self.batches_removed = len(doomed)
        elif doomed:
            left = self._bucket.delete_many(doomed)
            self.batches_removed = len(doomed) - len(left)
            self._parts.cache.forget_blobs(doomed)

    # ------------------------------------------------------------ the root, or what it would be

    def _root(self, batches: Batches) -> Root:
        return batches.fresh().root if self._planned is None else self._planned

    def _in_batches(self, batches: Batches, names: Sequence[bytes]) -> dict[bytes, Found]:
        """As `Namespace.in_batches`."""
        if self._planned is None:
            return self._parts.names.in_batches(names)
        found = ((name, batches.find(self._planned, name)) for name in names)
        return {name: each for name, each in found if each is not None}

    def _covered(self, batches: Batches, names: Sequence[bytes]) -> set[bytes]:
        """As `Namespace.covered`."""
        if self._planned is None:
            return self._parts.names.covered(names)
        return {name for name in names if batches.covers(self._planned, name)}


def _is_hidden(single: Listed, counts: Listed | None) -> bool:
    """Whether the weak single does not count."""
    return bool(single.size % 2) and (counts is None or is_batched(counts.etag))


def _in_batch(batches: Batches, root: Root, name: bytes, counts: Listed | None) -> Found | None:
    """Where it is that counts, if it is in a batch of this root."""
    if counts is None or not is_batched(counts.etag):
        return None
    found = batches.find(root, name)
    return found if found is not None and etag_in_batch(found) == counts.etag else None


def _to_batch(found: Found, manifest: bytes) -> ToBatch:
    assert found.row is not None
    return ToBatch(found.row.name, manifest, found.row.record, found.number)
