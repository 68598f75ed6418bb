"""What all rows of bench_fs run in."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from measure import Row
from s3_links import PLAIN, Client, Link

LOCAL = "local file"  # the same verbs on plain files


class ProcessorTime:
    """What each contender of a row takes of the processor: on a busy machine that tells more than
    the time that passes."""

    def __init__(self) -> None:
        self._seconds: dict[str, list[float]] = {}

    @contextmanager
    def of(self, contender: str) -> Iterator[None]:
        began = time.process_time()
        yield
        self._seconds.setdefault(contender, []).append(time.process_time() - began)

    def note(self, row: Row) -> None:
        for contender, seconds in self._seconds.items():
            taken = statistics.median(seconds) * 1e3
            row.notes.append(f"{contender}: {taken:.1f} ms of processor time")


@dataclass(frozen=True, slots=True)
class Setting:
    """One run: a folder to work in, a server, and the contenders' processes."""

    folder: Path
    straight: Link  # to fill by
    link: Link  # to measure on
    clients: Mapping[str, Client]  # of s3_client.py: castore, boto3
    systems: Mapping[str, Client]  # of fs_client.py: castore, and the peers that are installed
    bytes: int  # of a large object
    repeats: int
    judged: bool  # False: too few repetitions, of too little, for bars on times

    @property
    def peers(self) -> list[str]:
        return [kind for kind in self.systems if kind not in ("castore", LOCAL)]

    def where(self, kind: str, link: Link, prefix: str, cache: str) -> dict[str, str]:
        """What fs_client.py opens: for castore a store of this prefix, and a cache of this name."""
        if kind == LOCAL:
            return {"root": str(self.folder)}
        if kind != "castore":
            return {"endpoint": link.endpoint, "bucket": PLAIN}
        folder = self.folder / "caches" / prefix / cache
        return {"url": link.store_url(prefix), "cache": str(folder)}
