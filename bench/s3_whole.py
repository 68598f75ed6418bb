"""The rows of bench_s3 on a whole object: get to a file, with nothing in any cache.

Against boto3's `download_file` and s3fs's `get_file`, all on connections that were used before.
castore runs as it comes, which keeps the frames it fetched, and without its disk cache. Every file
is compared with the source.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from measure import Bar, Row, same_bytes, settle
from s3_links import PLAIN, Client, Link, Traffic

PEERS = ("boto3", "s3fs")
WAYS = {"castore": {}, "castore, no disk cache": {"disk_cache_bytes": 0}}
SLACK = 1.1  # of being ahead by the ratio of the bytes: requests cost the same round trips


def rows(
    wanted: Sequence[str],
    source: Path,
    clients: Mapping[str, Client],
    link: Link,
    straight: Link,
    folder: Path,
    repeats: int,
    traffic: dict[str, dict[str, Traffic]],
    *,
    judged: bool,
) -> Iterator[Row]:
    row = Row(name(source, link), f"get of {source.name} to a file", "s")
    if row.name not in wanted:
        return
    row.bytes_per_run = source.stat().st_size
    _fill(source, clients, straight, folder)
    seen = traffic.setdefault(row.name, {})
    target = folder / "got"

    def run(contender: str, client: Client, label: str, key: str) -> None:
        target.unlink(missing_ok=True)
        settle()
        link.clear()
        seconds, _ = client("get", label=label, name=key, path=str(target))
        seen[contender] = link.clear()
        if not same_bytes(target, source):
            raise AssertionError(f"{row.name}: {contender} wrote other bytes than the source's")
        row.add(contender, seconds)

    castore = clients["castore"]
    for repeat in range(repeats):
        for i, (way, options) in enumerate(WAYS.items()):
            cache = str(folder / f"cache-{row.name}-{repeat}-{i}")
            castore("open", label="get", url=link.store_url("whole"), cache=cache, **options)
            run(way, castore, "get", source.name)
            castore("close", label="get")
        for peer in PEERS:
            if peer in clients:
                clients[peer]("open", label="get", endpoint=link.endpoint, bucket=PLAIN)
                clients[peer]("connect", label="get")
                run(peer, clients[peer], "get", source.name)
                clients[peer]("close", label="get")
    target.unlink()
    _judge(row, seen, link, compressible=source.stem == "real")
    if not judged or not link.counts:
        # Straight, both are bound by the processors that they share with the server.
        row.bars = [Bar(bar.text, bar.measured, None) for bar in row.bars]
    yield row


def name(source: Path, link: Link) -> str:
    return f"get-{source.stem}@{link.name}"


def _fill(source: Path, clients: Mapping[str, Client], straight: Link, folder: Path) -> None:
    clients["boto3"]("open", label="fill", endpoint=straight.endpoint, bucket=PLAIN)
    clients["boto3"]("put", label="fill", path=str(source), name=source.name)
    clients["boto3"]("close", label="fill")
    cache = str(folder / "cache-fill-whole")
    clients["castore"]("open", label="fill", url=straight.store_url("whole"), cache=cache)
    clients["castore"]("put", label="fill", path=str(source), name=source.name)
    clients["castore"]("close", label="fill")


def _judge(row: Row, seen: Mapping[str, Traffic], link: Link, *, compressible: bool) -> None:
    ratios = row.ratio("castore", "boto3")
    if link.counts:
        for contender, passed in seen.items():
            row.notes.append(
                f"{contender}: {passed.requests} requests, {passed.received:,} bytes received"
            )
    if compressible and link.counts:
        share = seen["castore"].received / seen["boto3"].received
        row.bar(
            f"ahead by the ratio of the bytes ({share:.2f} × boto3's; {SLACK - 1:.0%} allowed)",
            ratios,
            lambda ratio: ratio <= share * SLACK,
        )
    else:
        row.bar("no slower than boto3's download_file", ratios, lambda ratio: round(ratio, 2) <= 1)
