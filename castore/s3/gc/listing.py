"""LISTs of all that there is of one kind, several at once.

Each page of a listing is asked for with the last key of the one before, so that one listing goes as
fast as its round trips do: of millions of names it would take most of a collection's time. So keys
are listed from several places on at the same time. No order among them matters: each is looked at
once, after all that is to be listed before names.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, islice, pairwise

from castore.s3.client.bucket import Bucket, Listed
from castore.s3.keys import NAMES, PACKS, pack_of
from castore.system.workers import Workers

PAGE_KEYS = 1000
AHEAD = 8  # parts that are listed before they are asked for; each is in memory
_DIGITS = "0123456789abcdef"


def list_packs(bucket: Bucket, requests: Workers) -> Iterator[tuple[bytes, Listed]]:
    """All packs. Their ids are random, so that their first digits part them evenly; one page of
    them takes one request."""
    first = list(islice(bucket.list(PACKS), PAGE_KEYS))
    rest: Iterator[Listed] = iter(())
    if len(first) == PAGE_KEYS:
        last = first[-1].key
        prefixes = [PACKS + digit for digit in _DIGITS if PACKS + digit >= last[: len(PACKS) + 1]]

        def part(prefix: str) -> list[Listed]:
            return list(bucket.list(prefix, start_after=last))

        rest = chain.from_iterable(requests.map_ahead(part, prefixes))
    for entry in chain(first, rest):
        pack_id = pack_of(entry.key)
        if pack_id is not None:
            yield pack_id, entry


def list_names(bucket: Bucket, requests: Workers, starts: Sequence[bytes]) -> Iterator[Listed]:
    """What is below `names/`, in order, listed from the names `starts` on, in order, and from the
    beginning."""
    if not starts:
        yield from bucket.list(NAMES)
        return
    keys = [NAMES + name.decode() for name in starts]

    def part(bounds: tuple[str, str]) -> list[Listed]:
        """The keys behind the first, up to the second."""
        begin, end = bounds
        limit = end.encode()
        found = []
        for entry in bucket.list(NAMES, start_after=begin):
            if end and entry.key.encode() > limit:
                break
            found.append(entry)
        return found

    yield from chain.from_iterable(requests.map_ahead(part, pairwise(["", *keys, ""]), ahead=AHEAD))
