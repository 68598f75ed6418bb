"""What a store on S3 costs a month, in dollars: a terabyte a day of which 90 % is yesterday's.

    python bench/bench_bill.py [--quick] [--json FILE] [--scale 1000] [--only NAME]

Each day all files are put again (as `castore put -R` does), a tenth of each file's bytes being new:
in one run, or in ten runs spread over it. Thirty days are kept, those before are deleted, and the
store is collected with `gc()` as it comes. The bytes do not compress. The server is simulated
(`bill_s3`), and so is the time; all else is the real code. 126 days come and go, and the last 72
are billed, when garbage comes and goes evenly: as 30 days of them, by AWS's list prices of S3
Standard in us-east-1 (requests from the same region: transfer is free, and so are deletions).

The scale: a thousandth of the files, each as large as it would be, so that chunks, packs and names
of a file are as many as they would be, and all counts that grow with the files are a thousandth.
These are multiplied; what is done once a collection (probing the server, `gc/state`) or once an
opening is not. LISTs are counted by the keys that they show, a thousand to a request, and hints and
listings, of which each object tells of so many packs or names, by their bytes. Both counts are
printed: as measured, and at full size.

What this does not show: at full size more frames are moved in one collection than it is kept in
memory where they went, so that some manifests are put twice; and which manifests share packs is
told by a sample of them.

Beside it is what plain S3 costs for the same days kept: a PUT for each file, and all of the bytes.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from measure import Bar, Row, castore_environment, machine_line, report, scratch, table

DAY_S = 86_400.0
MB, TB = 10**6, 10**12
PUT_DOLLARS, GET_DOLLARS = 5e-6, 0.4e-6  # a request; a LIST is as much as a PUT
GB_MONTH_DOLLARS = 0.023
FILES_PER_FOLDER = 1000
PER_RUN = ("gc", "probe", "castore.json", "")  # areas of which a collection asks a few times
OBJECT_BYTES = {"hints": 2 << 20, "listings": 500_000}  # as large as they come at full size


@dataclass(frozen=True)
class Case:
    """A variant, scaled: `files` of `file_bytes` a day, `kept` days of `days`."""

    name: str
    file_bytes: int
    runs: int  # of new bytes in each file
    bar: float  # dollars a month
    files: int = 0
    kept: int = 30
    days: int = 126
    billed: int = 72  # whole turns of what is rewritten from time to time, about

    @property
    def scale(self) -> float:
        return TB / (self.files * self.file_bytes)


CASES = (
    Case("10 MB, one run", 10 * MB, 1, 250),
    Case("10 MB, ten runs", 10 * MB, 10, 250),
    Case("100 MB, one run", 100 * MB, 1, 150),
    Case("100 MB, ten runs", 100 * MB, 10, 150),
)


class Line(NamedTuple):
    """Of a bill: requests, or bytes kept, as measured and at full size, and what they cost a
    month."""

    what: str
    measured: float
    full: float
    dollars: float


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    castore_environment()
    print(machine_line())
    rows = [
        _measure(case, options) for case in CASES if not options.only or options.only in case.name
    ]
    settings = {"scale": options.scale, "tiny": options.tiny}
    missed = report("bill", rows, settings, options.json)
    return 1 if missed and not options.tiny else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--scale", type=int, default=1000, help="what part of a terabyte (1000)")
    parser.add_argument("--only", metavar="NAME", help="variants whose names have this in them")
    parser.add_argument("--quick", action="store_true", help="a fourth of that")
    parser.add_argument("--tiny", action="store_true", help="only see that it runs")
    parser.add_argument("--json", metavar="FILE", help="write what was measured (- for stdout)")
    parser.add_argument(
        "--dir", metavar="DIR", help="where to work (default: the temporary folder)"
    )
    return parser


def _measure(case: Case, options: argparse.Namespace) -> Row:
    scale = options.scale * (10 if options.tiny else 4 if options.quick else 1)
    case = replace(case, files=max(round(TB / case.file_bytes / scale), 2))
    if options.tiny:
        case = replace(case, file_bytes=case.file_bytes // 20, kept=3, days=7, billed=3)
    began = time.perf_counter()
    with scratch(options.dir) as folder:
        month = _Month(case, folder)
        lines = month.bill()
    total = sum(line.dollars for line in lines)
    plain = _plain(case)
    row = Row(
        case.name, f"{case.files} files a day for 1 TB of them: x {case.scale:.0f}", "$ a month"
    )
    row.add("castore", total)
    row.add("plain S3", plain)
    row.notes = month.notes
    met = None if options.tiny else total <= case.bar
    row.bars = [Bar(f"castore at most ${case.bar:.0f} a month", f"${total:.2f}", met)]
    _show(row, lines, plain, time.perf_counter() - began)
    return row


def _plain(case: Case) -> float:
    puts = TB / case.file_bytes * 30 * PUT_DOLLARS
    return puts + case.kept * TB / 1e9 * GB_MONTH_DOLLARS


def _show(row: Row, lines: list[Line], plain: float, seconds: float) -> None:
    print(f"\n{row.name}: {row.what} ({seconds:.0f} s)")
    shown = [
        (line.what, f"{line.measured:,.0f}", f"{line.full:,.0f}", f"{line.dollars:.2f}")
        for line in sorted(lines, key=lambda line: -line.dollars)
        if line.dollars >= 0.05
    ]
    rest = sum(line.dollars for line in lines if line.dollars < 0.05)
    shown.append(("all else", "", "", f"{rest:.2f}"))
    shown.append(("castore", "", "", f"{sum(line.dollars for line in lines):.2f}"))
    shown.append(("plain S3", "", "", f"{plain:.2f}"))
    print(table(("a month of", "measured", "at full size", "$"), shown))
    for note in row.notes:
        print(f"    {note}")
    for bar in row.bars:
        print(bar.line())
    sys.stdout.flush()


class _Month:
    """The days of one case; `bill` lives them."""

    def __init__(self, case: Case, folder: Path) -> None:
        from bill_s3 import BilledS3

        self.notes: list[str] = []
        self._case = case
        self._folder = folder
        self._sources = folder / "sources"
        for part in ("sources", "objects", "writer", "collector"):
            (folder / part).mkdir()
        self._random = random.Random(case.name)
        self._server = BilledS3(folder / "objects")
        self._facts = {"rewritten": 0, "freed": 0, "rewrites": 0}

    def bill(self) -> list[Line]:
        case, server = self._case, self._server
        for i in range(case.files):
            path = self._sources / f"{i // FILES_PER_FOLDER:03}" / f"{i:06}.bin"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(self._random.randbytes(case.file_bytes))
        with server.serving():
            for day in range(case.days):
                if day == case.days - case.billed:
                    server.accounts = type(server.accounts)()
                    self._facts = dict.fromkeys(self._facts, 0)
                self._day(day)
        packs, pack_bytes = server.count("packs")
        names, _ = server.count("names")
        facts = self._facts
        self.notes += [
            f"at the end {names:,} names and {packs:,} packs of {pack_bytes / 1e9:.2f} GB "
            f"(x {case.scale:.0f}: {pack_bytes * case.scale / 1e12:.2f} TB)",
            f"in {case.billed} days {facts['rewrites']} collections rewrote "
            f"{facts['rewritten'] / 1e6:.0f} MB; {facts['freed'] / 1e6:.0f} MB were freed",
        ]
        return self._lines()

    def _day(self, day: int) -> None:
        import castore

        server, url = self._server, "s3://simulated/store"
        if day:
            for path in sorted(self._sources.rglob("*.bin")):
                self._change(path)
        with self._machine("writer"), castore.open(url) as store:
            store.import_folder(self._sources, f"{day:04}")
            if day >= self._case.kept:
                store.delete_prefix(f"{day - self._case.kept:04}/")
        server.pass_time(DAY_S / 2)
        with self._machine("collector"), castore.open(url) as store:
            collected = store.gc()
        self._facts["rewritten"] += collected.bytes_rewritten
        self._facts["freed"] += collected.bytes_freed
        self._facts["rewrites"] += collected.packs_rewritten > 0
        server.pass_time(DAY_S / 2 + 60)

    def _machine(self, who: str) -> Any:
        os.environ["CASTORE_CACHE_DIR"] = str(self._folder / who)
        return self._server.asked_by(who)

    def _change(self, path: Path) -> None:
        """A tenth of the bytes is new."""
        size = self._case.file_bytes // 10 // self._case.runs
        with open(path, "r+b") as file:
            for i in range(self._case.runs):
                # Each of the runs in a part of its own: none is over another.
                part = self._case.file_bytes // self._case.runs
                file.seek(i * part + self._random.randrange(part - size))
                file.write(self._random.randbytes(size))

    # ------------------------------------------------------------ the accounts

    def _lines(self) -> list[Line]:
        case, accounts = self._case, self._server.accounts
        months = case.billed / 30
        lines = []
        for (who, kind, area), tally in sorted(accounts.asked.items()):
            if kind == "DELETE":
                continue
            full = self._requests(who, area, kind, tally)
            price = GET_DOLLARS if kind in ("GET", "HEAD") else PUT_DOLLARS
            what = f"{who}: {kind} {area or 'bucket'}"
            lines.append(Line(what, tally.requests, full / months, full / months * price))
        for area, byte_days in sorted(accounts.byte_days.items()):
            gigabytes = byte_days / case.billed / 1e9
            full = gigabytes * case.scale
            lines.append(Line(f"GB of {area}", gigabytes, full, full * GB_MONTH_DOLLARS))
        return lines

    def _requests(self, who: str, area: str, kind: str, tally: Any) -> float:
        """At full size."""
        case = self._case
        if kind == "LIST":
            return float(tally.requests + tally.keys / 1000 * case.scale)
        if area in OBJECT_BYTES:
            return float(max(tally.requests, tally.size * case.scale / OBJECT_BYTES[area]))
        if area in ("probe", "castore.json", "") or (who == "collector" and area in PER_RUN):
            return float(tally.requests)
        return float(tally.requests * case.scale)


if __name__ == "__main__":
    sys.exit(main())
