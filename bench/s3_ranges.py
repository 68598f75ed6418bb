"""The byte-range rows of bench_s3: one object, ranges at random, one read at a time.

States of the same read by castore:

- `cold`: the name was never read on this machine; the connection is there.
- `warm`: its manifest is in the cache (LMDB), in a Store opened since; no frame is.
- `cached`: the range was read before, so its frames are in the disk cache; the name is still asked
  for. Nothing decoded is kept, in any of these states.
- `open file`: the same, through a file object that was opened before.

Against boto3's ranged `get_object` and s3fs's `cat_file`, on connections that they have used. A
repetition is one range, which all contenders read in turn; every read is compared with the source.
`first` rows make the client or open the store as well, with nothing in any cache.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from measure import Bar, Row
from s3_links import PLAIN, Client, Link, Traffic

SIZES = {"100B": 100, "4K": 4096, "64K": 65536, "1M": 1 << 20, "16M": 16 << 20}
FIRST_SIZES = ("100B", "1M")
WARM, CACHED, FILE, COLD = "castore warm", "castore cached", "castore open file", "castore cold"
PEERS = ("boto3", "s3fs")
# (round trip, MB/s) at which DESIGN's bars are set, and the bar on warm reads by size.
JUDGED_AT = (0.02, 100.0)
BARS = {"100B": 1.3, "1M": 1.15}
EMPTY = {"cache_bytes": 0, "disk_cache_bytes": 0}  # of what a Store keeps besides manifests


@dataclass(slots=True)
class Ranges:
    """What the rows of one source share."""

    source: Path  # also the object's name
    clients: Mapping[str, Client]
    caches: Path
    counts: Mapping[str, int]  # how many ranges of each size
    judged: bool  # whether they are enough to judge times
    traffic: dict[str, dict[str, Traffic]] = field(default_factory=dict)
    spent: int = 0  # copies that are no longer cold

    def fill(self, straight: Link) -> None:
        """Put the object, as itself for the peers and once per repetition for castore: a name is
        cold only once. The copies share their frames."""
        name = self.source.name
        peer = self.clients["boto3"]
        peer("open", label="fill", endpoint=straight.endpoint, bucket=PLAIN)
        peer("put", label="fill", path=str(self.source), name=name)
        peer("close", label="fill")
        castore = self.clients["castore"]
        cache = str(self.caches / f"fill-{name}")
        castore("open", label="fill", url=straight.store_url("ranges"), cache=cache)
        castore("put", label="fill", path=str(self.source), name=f"{name}/0000")
        # One more for `_open`.
        total = 1 + sum(self.counts.values()) + len(FIRST_SIZES) * self.counts["16M"]
        copies = [f"{name}/{i:04}" for i in range(1, total)]
        castore("copies", label="fill", source=f"{name}/0000", names=copies)
        castore("close", label="fill")

    def rows(self, wanted: Sequence[str], link: Link) -> Iterator[Row]:
        self.spent = 0
        self._open(link)
        for label in self.labels():
            row = self._row(f"range-{self.source.stem}-{label}@{link.name}", label)
            if row.name in wanted:
                yield self._ranges(row, label, link)
        for label in FIRST_SIZES:
            row = self._row(f"first-{self.source.stem}-{label}@{link.name}", label)
            if row.name in wanted and SIZES[label] <= self._size:
                yield self._first(row, label, link)
        self._close()

    def names(self, link: Link) -> list[str]:
        """Of all rows on the link."""
        stem = self.source.stem
        return [f"range-{stem}-{label}@{link.name}" for label in self.labels()] + [
            f"first-{stem}-{label}@{link.name}"
            for label in FIRST_SIZES
            if SIZES[label] <= self._size
        ]

    def labels(self) -> list[str]:
        return [label for label in SIZES if SIZES[label] <= self._size]

    # ------------------------------------------------------------ one row

    def _ranges(self, row: Row, label: str, link: Link) -> Row:
        draw = random.Random(row.name)
        castore = self.clients["castore"]
        covering = [0, 0]
        for _ in range(self.counts[label]):
            name = f"{self.source.name}/{self.spent:04}"
            self.spent += 1
            begin, end = self._pick(draw, label)
            right = self._right(begin, end)
            chosen = {"name": name, "begin": begin, "end": end}
            self._read(row, link, COLD, castore, right, "gets", label="cold", **chosen)
            # Another machine's cache learns the manifest; the Store that is timed is opened anew.
            castore("gets", label="learn", name=name, begin=0, end=1)
            self._read(row, link, WARM, castore, right, "gets", label="warm", **chosen)
            _, plan = castore("frame_bytes", label="learn", **chosen)
            covering = [covering[0] + plan[0], covering[1] + plan[1]]
            castore("gets", label="fill", **chosen)
            self._read(row, link, CACHED, castore, right, "gets", label="cached", **chosen)
            read = {"begin": begin, "end": end}
            # A file object reads ahead of small reads: the one before caches that, too.
            castore("open_file", label="fill", name=name)
            castore("read_file", **read)
            castore("close_file")
            castore("open_file", label="cached", name=name)
            self._read(row, link, FILE, castore, right, "read_file", **read)
            castore("close_file")
            for peer in PEERS:
                if peer in self.clients:
                    chosen["name"] = self.source.name
                    client = self.clients[peer]
                    self._read(row, link, peer, client, right, "gets", label="read", **chosen)
        self._judge(row, label, link, covering)
        return row

    def _first(self, row: Row, label: str, link: Link) -> Row:
        draw = random.Random(row.name)
        castore = self.clients["castore"]
        for _ in range(self.counts["16M"]):
            begin, end = self._pick(draw, label)
            right = self._right(begin, end)
            chosen = {"begin": begin, "end": end}
            ours = {
                "url": link.store_url("ranges"),
                "cache": str(self.caches / f"first-{row.name}-{self.spent}"),
                "name": f"{self.source.name}/{self.spent:04}",
            }
            self.spent += 1
            self._read(row, link, "castore", castore, right, "first", **chosen, **ours)
            castore("close", label="first")
            for peer in PEERS:
                if peer in self.clients:
                    client = self.clients[peer]
                    theirs = {
                        "endpoint": link.endpoint,
                        "bucket": PLAIN,
                        "name": self.source.name,
                    }
                    self._read(row, link, peer, client, right, "first", **chosen, **theirs)
                    client("close", label="first")
        self._note_traffic(row, link)
        return row

    def _read(
        self,
        row: Row,
        link: Link,
        contender: str,
        client: Client,
        right: list[int],
        verb: str,
        **arguments: Any,
    ) -> None:
        link.clear()
        seconds, gave = client(verb, **arguments)
        if gave != right:
            raise AssertionError(f"{row.name}: {contender} read other bytes than the source's")
        row.add(contender, seconds * 1e3)
        traffic = self.traffic.setdefault(row.name, {})
        traffic[contender] = traffic.get(contender, Traffic()) + link.clear()

    # ------------------------------------------------------------ what it shows

    def _judge(self, row: Row, label: str, link: Link, covering: Sequence[int]) -> None:
        self._note_traffic(row, link)
        judged = self.judged and (link.rtt_s, link.megabytes_s) == JUDGED_AT
        if label in BARS and link.counts:
            bar = BARS[label]
            row.bar(
                f"index warm ≤ {bar} × boto3's ranged GET",
                row.ratio(WARM, "boto3"),
                lambda ratio: ratio <= bar,
            )
            row.bars[-1].met = row.bars[-1].met if judged else None
        if not link.counts:
            return
        count = len(row.samples[WARM])
        warm, held = self.traffic[row.name][WARM], self.traffic[row.name][FILE]
        # The ranges of these sources are chunks in a row of a pack or two: there are no gaps.
        row.bars += [
            Bar(
                "bytes fetched ≤ the covering frames",
                f"{warm.received:,} of {covering[1]:,} in {covering[0]} chunks",
                warm.received <= covering[1],
            ),
            Bar("file open, cached: no request", f"{held.requests}", held.requests == 0),
        ]
        if label == "100B":
            row.bars.append(
                Bar(
                    "index warm: one conditional and one ranged GET",
                    f"{warm.requests} requests for {count} reads",
                    warm.requests == 2 * count,
                )
            )

    def _note_traffic(self, row: Row, link: Link) -> None:
        if not link.counts:
            return
        for contender, traffic in self.traffic[row.name].items():
            count = len(row.samples[contender])
            row.notes.append(
                f"{contender}: {traffic.requests / count:.2f} requests, "
                f"{traffic.received / count:,.0f} bytes received per read"
            )

    # ------------------------------------------------------------ parts of these

    def _open(self, link: Link) -> None:
        castore, url = self.clients["castore"], link.store_url("ranges")
        folder = self.caches / f"{self.source.stem}-{link.name}"
        for label, options in (
            ("cold", EMPTY),
            ("learn", EMPTY),
            ("warm", EMPTY),
            ("fill", {}),
            ("cached", {"cache_bytes": 0}),
        ):
            shared = {"learn": "warm", "fill": "cached"}.get(label, label)
            castore("open", label=label, url=url, cache=str(folder / shared), **options)
        # Connections are made, two at a time where two are needed. This name is cold no more.
        name = f"{self.source.name}/{self.spent:04}"
        self.spent += 1
        for label in ("learn", "cold", "warm", "fill", "cached"):
            for begin in (0, self._size // 2):
                castore("gets", label=label, name=name, begin=begin, end=begin + 1)
        for peer in PEERS:
            if peer in self.clients:
                client = self.clients[peer]
                client("open", label="read", endpoint=link.endpoint, bucket=PLAIN)
                client("gets", label="read", name=self.source.name, begin=0, end=1)

    def _close(self) -> None:
        for label in ("cold", "learn", "warm", "fill", "cached"):
            self.clients["castore"]("close", label=label)
        for peer in PEERS:
            if peer in self.clients:
                self.clients[peer]("close", label="read")

    def _row(self, name: str, label: str) -> Row:
        what = "a client made, and its first" if name.startswith("first") else "one"
        return Row(name, f"{what} read of {SIZES[label]:,} bytes of {self.source.name}", "ms")

    @property
    def _size(self) -> int:
        return self.source.stat().st_size

    def _pick(self, draw: random.Random, label: str) -> tuple[int, int]:
        begin = draw.randrange(self._size - SIZES[label] + 1)
        return begin, begin + SIZES[label]

    def _right(self, begin: int, end: int) -> list[int]:
        with open(self.source, "rb") as file:
            file.seek(begin)
            data = file.read(end - begin)
        return [len(data), zlib.crc32(data)]
