"""What a machine remembers of names and packs that are gone.

Who deletes a name forgets it, and who looks for one that another machine has deleted. But of most
that others delete nobody here hears again: of last month's dumps, of packs that a collector
removed. So each time that what is remembered has doubled, it is asked what of it is still there:
then as many requests are made, once, as it takes to list it. What is forgotten by mistake, as it
came meanwhile, costs time or space, and no data.
"""

from __future__ import annotations

import contextlib

from castore.errors import CastoreError
from castore.s3.keys import listed_packs
from castore.s3.parts import Parts
from castore.system.workers import Workers

LOOK_BYTES_MIN = 64 << 20  # less is nobody's trouble
NAMES_AT_ONCE = 10_000


def forget_outdated(parts: Parts, requests: Workers) -> None:
    """Forget what is gone, if much is remembered, and twice as much as when it was looked at last.
    Where the server does not tell, that waits until it has doubled again."""
    cache = parts.cache
    size = cache.remembered_bytes()
    if size < max(LOOK_BYTES_MIN, 2 * cache.looked_at_bytes()):
        return
    cache.note_looked(size)  # others of this machine that end now need not look, too
    with contextlib.suppress(CastoreError):
        _forget_packs(parts)
        _forget_names(parts, requests)
        cache.note_looked(cache.remembered_bytes())


def _forget_packs(parts: Parts) -> None:
    known = parts.cache.known_packs()  # before: what comes in between is not taken for gone
    parts.cache.drop_packs(known - listed_packs(parts.bucket).keys())


def _forget_names(parts: Parts, requests: Workers) -> None:
    after = b""
    while names := parts.cache.names_behind(after, NAMES_AT_ONCE):
        there = parts.names.etags(names, requests)
        parts.catalog.forget(*(name for name in names if name not in there))
        after = names[-1]
