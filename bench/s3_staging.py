"""The staging row of bench_s3: successive releases of one package, each put under its own name.

Each release is a job of its own, as a daily one is: open the store (or make the client), put the
tar, close. castore keeps its cache from job to job, or has none each time (`new machine`): it then
learns from the store's hints what others have stored, but makes no deltas, as it has nothing that
they could differ from. As before deltas it keeps its cache, makes none, and compresses at level 1,
as that was then. The stores are there before, as the peers' bucket is: the server ignores
preconditions, and to make a store on such a one takes seconds, once, in which another proposal may
land. Against boto3's `upload_file` and
s3fs's `put_file`. A figure is the sum of a series' jobs. Everything put is read back and compared.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from measure import Bar, Row, same_bytes, settle
from s3_links import PLAIN, STORES, Client, Link, Traffic

PEERS = ("boto3", "s3fs")
NEW_MACHINE = "castore, new machine"
WITHOUT = "castore, as before deltas"
AS_BEFORE = {"delta": False, "compression_level": 1}
JUDGED_AT = (0.02, 50.0)  # DESIGN's round trip and MB/s
SHARE_BARS = {"castore": 0.04, NEW_MACHINE: 0.15}  # of the bytes that plain S3 sends
TIME_BARS = {"castore": 1 / 5, NEW_MACHINE: 1 / 3}  # of boto3's time
DELTAS_BAR = 1 / 3  # of what is sent without


def rows(
    wanted: Sequence[str],
    releases: Sequence[Path],
    clients: Mapping[str, Client],
    link: Link,
    straight: Link,
    folder: Path,
    served: Path,
    repeats: int,
    traffic: dict[str, dict[str, Traffic]],
    *,
    judged: bool,
) -> Iterator[Row]:
    row = Row(name(link), f"put {len(releases)} releases, one after the other", "s")
    if row.name not in wanted:
        return
    row.bytes_per_run = sum(release.stat().st_size for release in releases)
    sent: dict[str, list[Traffic]] = {}
    for repeat in range(repeats):
        totals: dict[str, float] = {}
        sent = {}
        used = f"{link.endpoint.rpartition(':')[2]}-{repeat}"
        prefixes = {
            "castore": f"kept-{used}",
            NEW_MACHINE: f"new-{used}",
            WITHOUT: f"without-{used}",
        }
        for prefix in prefixes.values():
            where = {
                "url": straight.store_url(prefix),
                "cache": str(folder / f"cache-make-{prefix}"),
            }
            clients["castore"]("open", label="make", **where)
            clients["castore"]("close", label="make")
        for i, release in enumerate(releases):
            for contender in (*prefixes, *(peer for peer in PEERS if peer in clients)):
                settle()
                link.clear()
                if contender in prefixes:
                    cache = folder / f"cache-{prefixes[contender]}"
                    cache /= str(i) if contender == NEW_MACHINE else "kept"
                    where = {"url": link.store_url(prefixes[contender]), "cache": str(cache)}
                    where |= AS_BEFORE if contender == WITHOUT else {}
                else:
                    where = {"endpoint": link.endpoint, "bucket": PLAIN}
                client = clients[contender.partition(",")[0]]
                key = release.name
                if contender not in prefixes:
                    key = f"{used}/{contender}/{release.name}"
                seconds, _ = client("stage", path=str(release), name=key, **where)
                totals[contender] = totals.get(contender, 0.0) + seconds
                sent.setdefault(contender, []).append(link.clear())
        for contender, total in totals.items():
            row.add(contender, total)
        if repeat == 0:
            _check(releases, clients["castore"], straight, list(prefixes.values()), folder)
        # Under other names next time: the server remembers folders.
        for doomed in (*(Path(STORES, prefix) for prefix in prefixes.values()), Path(PLAIN, used)):
            shutil.rmtree(served / doomed)
    _judge(row, sent, releases, link, judged=judged)
    traffic[row.name] = {who: sum(parts, Traffic()) for who, parts in sent.items()}
    yield row


def name(link: Link) -> str:
    return f"staging@{link.name}"


def _check(
    releases: Sequence[Path],
    castore: Client,
    straight: Link,
    prefixes: Sequence[str],
    folder: Path,
) -> None:
    target = folder / "read-back"
    for prefix in prefixes:
        cache = str(folder / f"cache-check-{prefix}")
        castore(
            "open", label="check", url=straight.store_url(prefix), cache=cache, disk_cache_bytes=0
        )
        for release in releases:
            castore("get", label="check", name=release.name, path=str(target))
            if not same_bytes(target, release):
                raise AssertionError(f"{release.name} was read back with other bytes")
        castore("close", label="check")
    target.unlink()


def _judge(
    row: Row,
    sent: Mapping[str, Sequence[Traffic]],
    releases: Sequence[Path],
    link: Link,
    *,
    judged: bool,
) -> None:
    row.notes.append(
        "MB of each release: "
        + " ".join(f"{release.stat().st_size / 1e6:.1f}" for release in releases)
    )
    if not link.counts:
        return
    for contender, parts in sent.items():
        total = sum(parts, Traffic())
        row.notes.append(
            f"{contender}: {total.requests} requests, {total.sent:,} bytes sent, "
            f"{total.received:,} received; MB sent by release: "
            + " ".join(f"{part.sent / 1e6:.1f}" for part in parts)
        )
    judged = judged and (link.rtt_s, link.megabytes_s) == JUDGED_AT
    total = {who: sum(part.sent for part in parts) for who, parts in sent.items()}
    for contender, share_bar in SHARE_BARS.items():
        share, time_bar = total[contender] / total["boto3"], TIME_BARS[contender]
        row.bars.append(
            Bar(
                f"{contender}: bytes sent ≤ {share_bar:.0%} of plain S3's",
                f"{share:.1%}",
                share <= share_bar if judged else None,
            )
        )
        row.bar(
            f"{contender}: time ≤ {time_bar:.2f} of boto3's upload_file",
            row.ratio(contender, "boto3"),
            lambda ratio, most=time_bar: ratio <= most,  # type: ignore[misc]
        )
        row.bars[-1].met = row.bars[-1].met if judged else None
    share = total["castore"] / total[WITHOUT]
    row.bars.append(
        Bar(
            f"bytes sent ≤ {DELTAS_BAR:.2f} of those before deltas",
            f"{share:.2f}",
            share <= DELTAS_BAR if judged else None,
        )
    )
