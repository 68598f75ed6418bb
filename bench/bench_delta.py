"""What deltas save of series of versions, and what they cost.

    python bench/bench_delta.py [--quick] [--json FILE] [--dir DIR] [--only ROW,...] [--peers ...]

Eight releases each of four packages, as plain tars: two as source packages, two as wheels with
machine code (corpora.py; `pip download` fetches them), and generated series (delta_series.py).
Rows: `stored-*` (delta_stored.py), `first-*` and `next-*` (delta_puts.py), `get-*` and `range-*`
(delta_reads.py). On S3 the row is `staging` of bench_s3.py; memory and growth with deltas are in
bench_memory.py and bench_growth.py, and coders for deltas are compared by bench_delta_coder.py.

`--quick` stores three releases of one package, and smaller generated series without the peers, and
judges no bar. `--tiny` only shows that every row runs, without any network.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import corpora
import delta_puts
import delta_reads
import delta_series
import delta_stored
from measure import CommandFailed, Row, castore_environment, machine_line, report, scratch, show
from peers import PEERS, Contender, present, versions

MIB = 1 << 20
GENERATED_BAR = None  # of a log that only grows, what came is all that any peer stores
INSTEAD = ("csv", "dump")  # what is put and read where there are no packages


@dataclass(frozen=True, slots=True)
class Settings:
    """How much is run: which releases, how many generated versions of how many bytes each,
    repetitions, ranges."""

    packages: tuple[str, ...]
    releases: int
    versions: int
    generated_bytes: int
    random_bytes: int
    repeats: int
    picks: int
    judged: bool


FULL = Settings(tuple(corpora.SERIES), 8, 5, 32 * MIB, 128 * MIB, 5, 400, judged=True)
QUICK = Settings(("django",), 3, 3, 4 * MIB, 16 * MIB, 2, 100, judged=False)
TINY = Settings((), 0, 2, MIB, 2 * MIB, 1, 20, judged=False)


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    settings = TINY if options.tiny else QUICK if options.quick else FULL
    castore_environment()
    wanted = options.peers
    kinds = present([kind for kind in PEERS if wanted is None or kind.name in wanted.split(",")])
    print(machine_line())
    rows: list[Row] = []
    failures = 0
    with scratch(options.dir) as folder:
        run = _Run(settings, kinds, folder, options.only)
        try:
            for row in run.rows():
                show(row, base=next(iter(row.samples), "castore"))
                rows.append(row)
        except CommandFailed as failed:
            # The rows that are done are not lost for one that failed; the exit code tells.
            print(f"\nbench_delta: {failed}", file=sys.stderr)
            failures = 1
    facts = {
        "releases": {name: [path.name for path in run.series[name]] for name in run.series},
        "generated_bytes": settings.generated_bytes,
        "repeats": settings.repeats,
        "peers": versions(PEERS),
    }
    report("delta", rows, facts, options.json)
    return failures


class _Run:
    """The rows of one run, as far as --only names them."""

    def __init__(
        self,
        settings: Settings,
        kinds: Sequence[type[Contender]],
        folder: Path,
        only: str | None,
    ) -> None:
        self.settings = settings
        self.kinds = kinds
        self.folder = folder
        self._only = tuple(prefix for prefix in (only or "").split(",") if prefix)
        self.series: dict[str, list[Path]] = {}

    def rows(self) -> Iterator[Row]:
        settings = self.settings
        for package in settings.packages:
            try:
                self.series[package] = corpora.series(package, settings.releases)
            except corpora.Unavailable as error:
                print(f"{package}: skipped: {error}")
        for name, paths in self.series.items():
            if self._wants(f"stored-{name}"):
                kind, _ = corpora.SERIES[name]
                bar = delta_stored.PEER_BARS[kind]
                yield self._stored(name, f"{kind}s", paths, self.kinds, bar)
        generated = dict(self._generated())
        for name, paths in generated.items():
            if self._wants(f"stored-{name}"):
                kinds = self.kinds if settings.judged else ()  # each start of theirs takes a second
                yield self._stored(name, "versions", paths, kinds, GENERATED_BAR)
        yield from self._rates(self.series or {name: generated[name] for name in INSTEAD})

    def _generated(self) -> Iterator[tuple[str, list[Path]]]:
        settings = self.settings
        for name, make in delta_series.MAKE.items():
            if not self._wants(f"stored-{name}") and (self.series or name not in INSTEAD):
                continue
            if missing := delta_series.missing(name):
                print(f"{name}: skipped: {missing} is not installed (pip install -e '.[bench]')")
            else:
                yield name, list(make(self.folder, settings.generated_bytes, settings.versions))

    def _stored(
        self,
        name: str,
        what: str,
        paths: list[Path],
        kinds: Sequence[type[Contender]],
        peer_bar: float | None,
    ) -> Row:
        return delta_stored.measured(
            name,
            what,
            paths,
            kinds,
            self.folder,
            peer_bar=peer_bar,
            judged=self.settings.judged,
        )

    def _rates(self, series: dict[str, list[Path]]) -> Iterator[Row]:
        settings, folder = self.settings, self.folder
        for one in delta_puts.unrelated(series, folder, settings.random_bytes):
            if self._wants(one.name):
                yield delta_puts.first(one, folder, settings.repeats, judged=settings.judged)
        for name, paths in series.items():
            yield from delta_puts.following(
                name, paths, folder, settings.repeats, self._wants, judged=settings.judged
            )
            yield from delta_reads.rows(
                name,
                paths,
                folder,
                settings.repeats,
                settings.picks,
                self._wants,
                judged=settings.judged,
            )

    def _wants(self, name: str) -> bool:
        return not self._only or name.startswith(self._only)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add: Callable[..., argparse.Action] = parser.add_argument
    add("--quick", action="store_true", help="small sizes, a minute or two")
    add("--tiny", action="store_true", help="only show that every row runs")
    add("--json", metavar="FILE", help="write every sample here, with the machine's facts")
    add("--dir", metavar="DIR", help="where to work: about 2 GB are used")
    add("--only", metavar="ROW,...", help="rows to run, by how they begin")
    add("--peers", metavar="NAME,...", help="which of restic, borg, casync to run; '' for none")
    return parser


if __name__ == "__main__":
    sys.exit(main())
