"""What a local store costs, beside the programs it would replace.

    python bench/bench_local.py [--quick] [--json FILE] [--size 1G] [--dir DIR] [--only ROW,...]

Whole processes (`castore put`, `restic backup`, ...) come first, then rows measured inside one
process. Contenders take turns within each repetition; a ratio is the median over repetitions,
with the lowest and the highest beside it. Each row prints the bar it is held to and whether this
run met it. What the peers are run with is in peers.py, what the bytes are in sources.py; both
sources are read once before they are timed, and nothing drops the page cache.

`--quick` runs in a minute or two. It does not judge the bars on whole processes, which are for
objects of 1 GB or more: below that, starting Python weighs as much as the work. `--tiny` only
shows that every row runs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import local_gets
import local_puts
import local_whole
from measure import (
    CommandFailed,
    Row,
    castore_command,
    castore_environment,
    cores,
    machine_line,
    parse_size,
    report,
    scratch,
    show,
    warm,
)
from peers import PEERS, Contender, present, versions
from sources import write_random, write_real_tar


@dataclass(frozen=True, slots=True)
class Settings:
    """How much is run: bytes per source, repetitions, and rounds of picks for the range rows."""

    size: int
    repeats: int
    rounds: int
    picks: int


FULL = Settings(size=1 << 30, repeats=5, rounds=15, picks=1000)
QUICK = Settings(size=64 << 20, repeats=3, rounds=7, picks=300)
TINY = Settings(size=4 << 20, repeats=1, rounds=2, picks=20)


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    known = [*local_whole.ROWS, *local_puts.ROWS, *local_gets.ROWS]
    if options.list:
        print("\n".join(known))
        return 0
    wanted = _wanted(known, options.only)
    settings = _settings(options)
    castore_environment()
    kinds = present([kind for kind in PEERS if _chosen(kind, options.peers)])
    print(machine_line())
    failures = 0
    with scratch(options.dir, keep=options.keep) as directory:
        real, noise = directory / "real.tar", directory / "random.bin"
        distinct = write_real_tar(real, settings.size)
        write_random(noise, settings.size, seed=1)
        print(
            f"real.tar: {settings.size:,} bytes, the first {distinct:,} unedited; "
            f"random.bin: {settings.size:,} bytes; {settings.repeats} repetitions"
        )
        rows: list[Row] = []
        try:
            _run(rows, wanted, settings, kinds, real, noise, directory)
        except CommandFailed as failed:
            # The rows that are done are not lost for one that failed; the exit code tells.
            print(f"\nbench_local: {failed}", file=sys.stderr)
            failures = 1
    facts = {
        **{name: getattr(settings, name) for name in ("size", "repeats", "rounds", "picks")},
        "unedited_tar_bytes": distinct,
        "peers": versions(PEERS),
        "command": "castore -r STORE put FILE NAME"
        if len(castore_command()) == 1
        else "python -m castore -r STORE put FILE NAME",
    }
    report("local", rows, facts, options.json)
    return failures


def _run(
    rows: list[Row],
    wanted: Sequence[str],
    settings: Settings,
    kinds: Sequence[type[Contender]],
    real: Path,
    noise: Path,
    directory: Path,
) -> None:
    """Print every wanted row as it is done and add it to `rows`.

    Whole processes come first: see Usage.rss_bytes.
    """

    def done(row: Row) -> None:
        base = "castore" if "castore" in row.samples else next(iter(row.samples), "castore")
        show(row, base=base)
        rows.append(row)

    warm(real)
    warm(noise)
    for row in local_whole.run(wanted, kinds, real, noise, directory, settings.repeats):
        done(row)
    for row in local_puts.run(wanted, real, directory, settings.repeats):
        done(row)
    span = min(settings.size, 256 << 20)
    for row in local_gets.run(
        wanted, real, noise, directory, span, settings.rounds, settings.picks
    ):
        done(row)


def _wanted(known: Sequence[str], only: str | None) -> list[str]:
    """The rows named in --only, in full or by how they begin; all of them without it."""
    if only is None:
        return list(known)
    prefixes = [prefix for prefix in only.split(",") if prefix]
    for prefix in prefixes:
        if not any(name.startswith(prefix) for name in known):
            sys.exit(f"bench_local: no row begins with {prefix!r}; --list names them all")
    return [name for name in known if name.startswith(tuple(prefixes))]


def _chosen(kind: type[Contender], peers: str | None) -> bool:
    return peers is None or kind.name in peers.split(",")


def _settings(options: argparse.Namespace) -> Settings:
    preset = TINY if options.tiny else QUICK if options.quick else FULL
    return Settings(
        size=parse_size(options.size) if options.size else preset.size,
        repeats=options.repeats or preset.repeats,
        rounds=preset.rounds,
        picks=preset.picks,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add: Callable[..., argparse.Action] = parser.add_argument
    add("--quick", action="store_true", help="small sizes, a minute or two")
    add("--tiny", action="store_true", help="only show that every row runs")
    add("--json", metavar="FILE", help="write every sample here, with the machine's facts")
    add("--size", metavar="BYTES", help="bytes per source: 64M, 1G (the default)")
    add("--repeats", type=int, metavar="N", help="repetitions of each comparison")
    add("--dir", metavar="DIR", help="where to work: about ten times --size is used at most")
    add("--only", metavar="ROW,...", help="rows to run, by name or by how it begins")
    add("--peers", metavar="NAME,...", help="which of restic, borg, casync to run; '' for none")
    add("--list", action="store_true", help="name the rows and stop")
    add("--keep", action="store_true", help="leave the files in place")
    parser.epilog = f"This process may use {cores()} cores."
    return parser


if __name__ == "__main__":
    sys.exit(main())
