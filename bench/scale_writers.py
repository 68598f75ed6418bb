"""What many writers ask of one store on S3 who come, put and end at about the same time.

Each is a Store with a cache of its own, on one simulated server (`bill_s3`), in one process: all
are open before the first puts, and all have put before the first is closed. Each puts one object,
half of which is in the store already and half of which is new. They come three times: to a store
that one other has filled, with new caches; with the caches that they had, when each of the others
has told of what it put; and when they tell of what they had left to be told.
"""

from __future__ import annotations

import os
import random
import resource
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from bill_s3 import BilledS3, Tally

import castore
from castore.system import lmdb_env

READS = ("GET", "HEAD")
FREE = ("DELETE",)
URL = "s3://simulated/store"


class Round(NamedTuple):
    """Of all writers together, by (kind of request, area)."""

    writers: int
    asked: dict[tuple[str, str], Tally]
    rss_bytes: int  # by which the process grew, at most, since it had none of them

    @property
    def requests(self) -> int:
        return sum(tally.requests for (kind, _), tally in self.asked.items() if kind not in FREE)

    @property
    def moved(self) -> int:
        return sum(tally.size for tally in self.asked.values())

    @property
    def dollars(self) -> float:
        gets = sum(tally.requests for (kind, _), tally in self.asked.items() if kind in READS)
        return castore.Prices().requests(self.requests - gets, gets)


def rounds(writers: int, size: int, folder: Path) -> dict[str, Round]:
    """What each coming takes. `size`: of an object, in bytes."""
    server = BilledS3(folder / "bodies")
    (folder / "bodies").mkdir(parents=True)
    shared = random.Random(0).randbytes(size // 2)
    with server.serving(), _many_files(), _small_maps():
        with machine_of(server, folder, "filler"), castore.open(URL) as store:
            store.puts("known", shared)
        return {
            name: _come(server, folder, writers, number, shared)
            for number, name in enumerate(("new machines", "an hour later", "two hours later"))
        }


def _come(server: BilledS3, folder: Path, writers: int, number: int, shared: bytes) -> Round:
    before = _rss_bytes()
    peak = before
    with ExitStack() as open_stores:
        stores = []
        for i in range(writers):
            with machine_of(server, folder, f"writer {i}", who=f"round {number}"):
                stores.append(open_stores.enter_context(castore.open(URL, threads=1)))
        for i, store in enumerate(stores):
            new = random.Random(number * writers + i + 1).randbytes(len(shared))
            store.puts(f"{number}/{i}", shared + new)
        peak = _rss_bytes()
    asked: dict[tuple[str, str], Tally] = defaultdict(Tally)
    for (who, kind, area), tally in server.accounts.asked.items():
        if who == f"round {number}":
            asked[kind, area] = tally
    server.pass_time(3600)
    return Round(writers, dict(asked), peak - before)


@contextmanager
def machine_of(server: BilledS3, folder: Path, name: str, *, who: str = "") -> Iterator[None]:
    os.environ["CASTORE_CACHE_DIR"] = str(folder / "caches" / name)
    with server.asked_by(who):
        yield


@contextmanager
def _many_files() -> Iterator[None]:
    """A Store has several open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextmanager
def _small_maps() -> Iterator[None]:
    """Of caches: of a thousand of them the address space has no room for as much as each may take
    in a process of its own."""
    before = lmdb_env.MAP_BYTES
    lmdb_env.MAP_BYTES = lmdb_env.MAP_BYTES_LEAST  # type: ignore[misc]
    try:
        yield
    finally:
        lmdb_env.MAP_BYTES = before  # type: ignore[misc]


def _rss_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) << 10


def lines_of(found: Sequence[Round]) -> list[list[str]]:
    """A table: per kind of request, how many each writer makes, where there are so many of them."""
    kinds = sorted({key for each in found for key in each.asked})
    rows = [
        [
            f"{kind} {area}",
            *(f"{_tally(each, kind, area).requests / each.writers:.2f}" for each in found),
        ]
        for kind, area in kinds
    ]
    return [
        *rows,
        ["kB moved", *(f"{each.moved / each.writers / 1e3:.0f}" for each in found)],
        ["dollars a million", *(f"{each.dollars / each.writers * 1e6:.1f}" for each in found)],
        ["MiB resident", *(f"{each.rss_bytes / each.writers / (1 << 20):.1f}" for each in found)],
    ]


def _tally(found: Round, kind: str, area: str) -> Tally:
    return found.asked.get((kind, area), Tally())
