"""Repairing batches of names: the root, and batches that can't be read.

What is lost is copied below `quarantine/` first. A root that is gone is made anew of what batches
say of themselves; they do not say what was deleted since.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial

from castore.check.bitflip import corrected
from castore.errors import FormatError, UnsupportedFormat
from castore.format.s3 import decode_manifest_head
from castore.format.s3_batches import (
    BatchHead,
    Root,
    RootEntry,
    decode_batch_head,
    decode_root,
    decode_tombstone,
    encode_root,
    is_tombstone,
)
from castore.s3.batch_root import SeenRoot, in_order
from castore.s3.batches import Batches
from castore.s3.check.batches import names_of
from castore.s3.client.bucket import (
    Bucket,
    KeyAbsent,
    Listed,
    PreconditionFailed,
    Reply,
)
from castore.s3.client.put_once import put_once
from castore.s3.keys import BATCHES, BATCHES_ROOT_KEY, NAMES, batch_key, batch_of
from castore.s3.namespace.listing import NUMBER_MAX
from castore.s3.namespace.writing import Namespace
from castore.s3.quarantine import keep_copy
from castore.stream.reports import Problem

HEAD_BYTES_MAX = 8 << 20
SINGLE_BYTES_MAX = 16 << 10  # of one whose every bit is tried

MADE_AGAIN = (
    "is made again from what batches say: what was deleted from them since may be there again"
)


class BatchRepair:
    """`done` says what was done, `lost` what could not be."""

    def __init__(self, bucket: Bucket, names: Namespace) -> None:
        """`names` are to be repaired, and nothing of them comes from a cache."""
        self.done: list[str] = []
        self.lost: list[Problem] = []
        self._bucket = bucket
        self._names = names

    def run(self) -> None:
        """Raises UnsupportedFormat for what a later castore wrote, and what a Bucket does."""
        batches = self._names.batches
        if batches is None:
            return
        self._repair_root(batches)
        gone = [
            entry
            for entry in batches.fresh().root.entries
            if not self._is_read(batches, entry) and not self._correct(batches, entry)
        ]
        if gone:
            self._give_up(batches, gone)

    # ------------------------------------------------------------ the root

    def _repair_root(self, batches: Batches) -> None:
        """Put over what was looked at and over nothing else: another repair may have been faster,
        and its root be in use."""
        while True:
            try:
                batches.fresh()
                return
            except UnsupportedFormat:
                raise
            except FormatError:
                pass
            try:
                there = self._bucket.get(BATCHES_ROOT_KEY)
            except KeyAbsent:
                there = None
            if there is not None:
                keep_copy(self._bucket, BATCHES_ROOT_KEY, there.body)
            right = None if there is None else corrected(there.body, decode_root)
            if right is not None:
                done = self._put_root(there, partial(_same, right), "had one bit flipped")
            else:
                anew = partial(_encoded, self._names.store_id, self._root_anew())
                done = self._put_root(there, anew, MADE_AGAIN)
            if done:
                return

    def _put_root(self, there: Reply | None, body: Callable[[bytes], bytes], what: str) -> bool:
        """False if another is there by now. Raises OutcomeUnknown."""
        try:
            put_once(
                self._bucket,
                BATCHES_ROOT_KEY,
                body,
                if_none_match=there is None,
                if_match=None if there is None else there.etag,
            )
        except PreconditionFailed:
            return False
        self.done.append(f"{BATCHES_ROOT_KEY} {what}")
        return True

    def _root_anew(self) -> Root:
        """Each batch has the number that it had, if none came between its writer's looking and its
        swap; and the next version is higher than any that a weak single was decided by."""
        listed = [e for e in self._bucket.list(BATCHES) if batch_of(e.key) is not None]
        entries: list[RootEntry] = []
        version = 0
        for entry in sorted(listed, key=lambda e: (e.modified, e.key)):
            try:
                head = decode_batch_head(self._head_of(entry.key))
            except (FormatError, KeyAbsent):
                continue  # it is garbage then, and left to a collection
            if head.store_id == self._names.store_id and head.names.rows:
                entries.append(_entry(entry, head))
                version = max(version, head.number)
        for single in self._bucket.list(NAMES):
            if single.size % 2:
                version = max(version, self._number_of(single))
        return Root(version + 1, bytes(16), (), in_order(entries))

    def _number_of(self, single: Listed) -> int:
        """Of a weak single; also if it has one bit flipped. -1 of one that can't be read: it is not
        put right either."""
        number = self._names.number_of(single.key.removeprefix(NAMES).encode(), single)
        if number != NUMBER_MAX:
            return number
        with suppress(KeyAbsent):
            raw = self._bucket.get(single.key, byte_range=(0, SINGLE_BYTES_MAX)).body
            if is_tombstone(single.size):
                right = corrected(raw, decode_tombstone)
                found = None if right is None else decode_tombstone(right)[1]
            else:
                right = corrected(raw, decode_manifest_head)
                found = None if right is None else decode_manifest_head(right).number
            return -1 if found is None else found
        return -1

    # ------------------------------------------------------------ batches

    def _is_read(self, batches: Batches, entry: RootEntry) -> bool:
        try:
            batches.index(entry)
        except UnsupportedFormat:
            raise
        except (FormatError, OSError):  # BatchGone is one
            return False
        return True

    def _correct(self, batches: Batches, entry: RootEntry) -> bool:
        key = batch_key(entry.batch_id)
        try:
            raw = self._bucket.get(key).body
        except KeyAbsent:
            return False
        right = corrected(raw[: entry.index_bytes], decode_batch_head)
        copy = keep_copy(self._bucket, key, raw)
        if right is None:
            self.done.append(f"{key} is copied to {copy}")
            return False
        # It has the bytes again that it had: who knows it knows nothing else.
        self._bucket.put(key, right + raw[entry.index_bytes :], idempotent=True)
        self.done.append(f"{key} had one bit flipped")
        return self._is_read(batches, entry)

    def _give_up(self, batches: Batches, gone: Sequence[RootEntry]) -> None:
        """Names that only these had are lost; others are found again. What a collection has removed
        meanwhile, nobody needs."""
        ids = {entry.batch_id for entry in gone}
        lost: list[RootEntry] = []

        def swap(seen: SeenRoot) -> Root | None:
            lost[:] = [e for e in seen.root.entries if e.batch_id in ids]
            left = tuple(e for e in seen.root.entries if e.batch_id not in ids)
            return seen.root._replace(entries=left) if lost else None

        batches.swap(swap)
        for entry in lost:
            first, last = entry.first.decode(), entry.last.decode()
            means = "lost, but for those put since"
            if entry.deletes:
                means = "what it hid is there again, but for what was changed since"
            self.done.append(
                f"{batch_key(entry.batch_id)} can't be read; {means}: its {names_of(entry)}, from "
                f"{first!r} to {last!r}"
            )
            self.lost.append(Problem("batches", "missing", self.done[-1]))

    def _head_of(self, key: str) -> bytes:
        return self._bucket.get(key, byte_range=(0, HEAD_BYTES_MAX)).body


def _same(raw: bytes, _: bytes) -> bytes:
    return raw


def _encoded(store_id: bytes, root: Root, nonce: bytes) -> bytes:
    return encode_root(store_id, root._replace(nonce=nonce))


def _entry(listed: Listed, head: BatchHead) -> RootEntry:
    batch_id = batch_of(listed.key)
    assert batch_id is not None
    rows, at = head.names.rows, int(listed.modified)
    numbers = head.number, listed.size, at, 0, head.bytes, len(rows)
    return RootEntry(batch_id, *numbers, rows[0].name, rows[-1].name)
