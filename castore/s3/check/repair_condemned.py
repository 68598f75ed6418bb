"""The repair of what collectors announce: `gc/state`, and the list that it refers to.

A bit that is flipped is put right. A state that is beyond that, or gone while there are lists, is
made one whose list is lost.

Until a list that is lost is replaced, no writer knows what it may rely on: whoever would reuse
packs fails. What the list had is not known. But whatever of it a collector may yet remove (it is
slow, or asleep, or a request of it is late; nothing that is written now stops it) had no name when
it was looked at for the second time, and was condemned ever since, so that nobody came to rely on
it: it is among the packs that no name has now. Therefore the new list has all of those, and all as
carried: none of them is released because a writer pinned it in vain, before it read that it is
condemned.

What is carried is removed after the grace whoever pins it, so nobody may rely on it already. But a
writer may: on what it has uploaded, or pinned before, and no name has yet. Such a pin can't be told
from one in vain, so nothing is done while there are any: until these writers have ended, or their
pins are void. From then on nobody comes to rely on any of these packs, as the old list can't be
read and the new one has them.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable

from castore.check.bitflip import corrected
from castore.errors import CollectionRefused, FormatError, PreconditionsIgnored, StoreBusy
from castore.format.s3 import NONCE_BYTES
from castore.format.s3_gc import GcState, decode_condemned, decode_state, encode_state
from castore.model import Stages
from castore.s3.client.bucket import KeyAbsent, OutcomeUnknown, PreconditionFailed
from castore.s3.client.probe import probe
from castore.s3.client.put_once import put_over
from castore.s3.condemned import list_without_state
from castore.s3.creation import server_time
from castore.s3.gc.mark import PIN_S, S3Marker
from castore.s3.gc.memory import CollectorMemory
from castore.s3.gc.server import fit_server
from castore.s3.gc.state import CONDEMNED, CollectorState
from castore.s3.keys import CONDEMNED_LISTS, GC_STATE_KEY, condemned_key
from castore.s3.parts import Parts
from castore.s3.quarantine import keep_copy
from castore.stream.reports import Problem
from castore.wording import counted

VERSIONS_SKIPPED = 1 << 40  # more than all collections together ever raise it by


class CondemnedRepair:
    """`run` says what it did; `left` is what it had to leave as it is, and why."""

    def __init__(self, parts: Parts) -> None:
        self.left: list[Problem] = []
        self._parts = parts
        self._bucket = parts.bucket
        self._store_id = parts.config.store_id
        self._done: list[str] = []

    def run(self) -> list[str]:
        try:
            self._repair()
        except (StoreBusy, CollectionRefused, FormatError) as error:
            self._leave(str(error))
        return self._done

    def _repair(self) -> None:
        try:
            state = self._corrected(GC_STATE_KEY, decode_state)
        except KeyAbsent:
            if list_without_state(self._bucket) is None:
                return
            state = None
            self._done.append("gc/state is gone: it is made again")
        key = self._replace_state() if state is None else decode_state(state).condemned
        if key is None:
            return
        with contextlib.suppress(KeyAbsent):
            self._corrected(key, lambda raw: decode_condemned(raw, self._store_id))
        memory = CollectorMemory(self._parts.cache)
        moving = CollectorState(self._parts, memory, conditional=True)
        moving.read()
        if not moving.fault():
            return
        self._check_server()
        marker = S3Marker(self._parts, memory, Stages(None))
        now = server_time(self._bucket)
        condemned = condemn_anew(moving, marker, expired_before=now - PIN_S)
        if condemned is not None:
            self._done.append(
                f"{key} is lost: {counted(condemned, 'pack')}, all that no name has, condemned anew"
            )

    def _check_server(self) -> None:
        try:
            fit_server(self._bucket, alone=False)
        except PreconditionsIgnored as error:
            raise CollectionRefused(
                f"{error.says}: when no collector and no writer is at work, remove gc/state and "
                "all below gc/condemned/"
            ) from error

    def _replace_state(self) -> str:
        """A state that can't be read, or is gone, is as good as one whose list is lost: have it be
        that, with a version above all that there may have been. The key of that list."""
        self._check_server()
        try:
            etag = self._bucket.head(GC_STATE_KEY).etag
        except KeyAbsent:
            etag = None
        numbers = [entry.key.rpartition("/")[2] for entry in self._bucket.list(CONDEMNED_LISTS)]
        seen = CollectorMemory(self._parts.cache).state_version()
        version = max([seen, *(int(n) for n in numbers if n.isdecimal() and len(n) < 16)])
        key = condemned_key(version + VERSIONS_SKIPPED)
        state = GcState(
            version + VERSIONS_SKIPPED, CONDEMNED, secrets.token_bytes(NONCE_BYTES), key
        )
        self._write_over(GC_STATE_KEY, etag, encode_state(state))
        return key

    def _corrected(self, key: str, decode: Callable[[bytes], object]) -> bytes | None:
        """What is there, with the bit that is flipped put right; None if it does not decode. Raises
        KeyAbsent."""
        reply = self._bucket.get(key)
        try:
            decode(reply.body)
            return reply.body
        except FormatError:
            right = corrected(reply.body, decode)
            self._keep_copy(key, reply.body)
        if right is not None:
            self._write_over(key, reply.etag, right)
            self._done.append(f"{key} had one bit flipped")
        return right

    def _write_over(self, key: str, etag: str | None, raw: bytes) -> None:
        """Over the version that has this ETag; None: where there is nothing."""
        conditional = probe(self._bucket).if_match_put
        try:
            if etag is None:
                self._bucket.put(key, raw, if_none_match=True)
                done = True
            else:
                done = put_over(self._bucket, key, raw, etag, conditional=conditional)
        except PreconditionFailed:
            done = False
        except OutcomeUnknown as error:
            raise StoreBusy(f"whether {key} was written is not known: repeat the repair") from error
        if not done:
            raise StoreBusy(f"{key} changed meanwhile: repeat the repair")

    def _keep_copy(self, key: str, raw: bytes) -> None:
        self._done.append(f"{key} is copied to {keep_copy(self._bucket, key, raw)}")

    def _leave(self, why: str) -> None:
        what = (
            "gc/state and the list that it refers to were left as they are, and so is what would "
            f"have to be stored anew: {why}"
        )
        self.left.append(Problem("gc state", "warning", what))


def condemn_anew(state: CollectorState, marker: S3Marker, *, expired_before: float) -> int | None:
    """How many packs are condemned now, if the list was lost; None if it was not. Pins that were
    written before `expired_before`, in seconds by the server's clock, count no more.

    Raises StoreBusy while writers rely on packs that no name has yet, or when a collector was
    faster; ManifestUnreadable, StateWentBackwards, and what else a Bucket raises.
    """
    state.read()
    if not state.fault():
        return None
    unnamed = marker.packs()
    pins = marker.pins(expired_before)
    for page in marker.references():
        for _, referred in page.values():
            for pack_id in referred.packs:
                unnamed.pop(pack_id, None)
    held = sum(pins.protect(pack_id) for pack_id in unnamed)
    if held:
        packs, sessions = counted(held, "pack"), counted(len(pins.sessions), "session")
        raise StoreBusy(
            f"what no name has yet is held by the pins of writers, below pins/ ({packs}, "
            f"{sessions}): repeat it when those have ended; remove the pins of one that died, or "
            "wait until they are a week old"
        )
    if not state.fault():
        return None  # somebody has brought it back
    state.lead()
    if unnamed:
        state.condemn(unnamed.keys(), unnamed.keys())
        state.remove_lists()
    else:
        state.retire()
    return len(unnamed)
