"""What many small files cost on S3: requests, bytes and dollars of each verb, beside plain S3.

    python bench/bench_many.py [--quick] [--files 20000] [--size 10kB] [--json FILE]

The real code on a simulated server that keeps accounts (`bill_s3`), at AWS's list prices; each verb
by a machine of its own, with an empty cache, but for those that say so. What plain S3 takes for the
same is worked out: a PUT or a GET for each file, a LIST and a deletion of a thousand.

    import        a folder of so many files
    ls -l         all of them
    ls -l again   with the cache that the machine has by then
    export        to an empty folder
    gc, check     of a store with nothing but these
    rm -R         all of them
"""

from __future__ import annotations

import argparse
import random
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

from bill_s3 import BilledS3, Tally
from measure import Bar, Row, machine_line, parse_size, report, scratch, table
from scale_writers import URL, Round, machine_of

import castore

SHARE_BAR = 0.1  # of plain S3's dollars, for what is a request a file there
PAGE = 1000


def make_files(folder: Path, files: int, size: int) -> None:
    choose = random.Random(1)
    for i in range(files):
        path = folder / f"{i % 100:02}" / f"{i}.bin"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(choose.randbytes(size))


def plain(verb: str, files: int) -> float:
    """Dollars."""
    pages = -(-files // PAGE)
    puts, gets = {
        "import": (files, 0),
        "ls -l": (pages, 0),
        "ls -l again": (pages, 0),
        "export": (pages, files),
        "rm -R": (pages, 0),
    }.get(verb, (0, 0))
    return castore.Prices().requests(puts, gets)


def measure(folder: Path, files: int, size: int) -> dict[str, Round]:
    source = folder / "files"
    make_files(source, files, size)
    server = BilledS3(folder / "bodies")
    (folder / "bodies").mkdir()
    found: dict[str, Round] = {}

    def run(verb: str, machine: str, work: Callable[[castore.Store], object]) -> None:
        with machine_of(server, folder, machine, who=verb), castore.open(URL) as store:
            work(store)
        asked: dict[tuple[str, str], Tally] = defaultdict(Tally)
        for (who, kind, area), tally in server.accounts.asked.items():
            if who == verb:
                asked[kind, area] = tally
        found[verb] = Round(1, dict(asked), 0)
        server.pass_time(3600)

    def whole(store: castore.Store) -> None:
        report = store.check(read_data=True)
        assert not report.problems, report.problems
        assert report.names == files

    with server.serving():
        with machine_of(server, folder, "maker", who="make"), castore.open(URL) as store:
            store.puts("made", b"")
            store.delete("made")
        run("import", "imports", lambda store: store.import_folder(source, "data"))
        run("ls -l", "lists", lambda store: sum(info.size for info in store.list("data/")))
        run("ls -l again", "lists", lambda store: sum(info.size for info in store.list("data/")))
        run("export", "exports", lambda store: store.export_folder("data", folder / "out"))
        run("gc", "collects", lambda store: store.gc())
        run("check", "checks", whole)
        run("rm -R", "removes", lambda store: store.delete_prefix("data"))
    return found


def judge(verb: str, each: Round, files: int) -> Row:
    row = Row(verb, f"dollars of a million files like {files:,}", "$")
    row.add("castore", each.dollars / files * 1e6)
    beside = plain(verb, files)
    if beside:
        row.add("plain S3", beside / files * 1e6)
    if verb in ("import", "export"):
        share = each.dollars / beside
        text = f"≤ {SHARE_BAR} of plain S3's"
        row.bars.append(Bar(text, f"{share:.3f}", share <= SHARE_BAR))
    return row


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="see the module's docstring")
    parser.add_argument("--quick", action="store_true", help="smaller, with no bars judged")
    parser.add_argument("--tiny", action="store_true", help="only show that it runs")
    parser.add_argument("--files", type=int, help="how many")
    parser.add_argument("--size", type=parse_size, default=10_000, help="of each")
    parser.add_argument("--dir", help="where its files are for as long as it runs")
    parser.add_argument("--json", help="write all figures to this file")
    options = parser.parse_args(argv)
    files = options.files or (200 if options.tiny else 4000 if options.quick else 20_000)
    print(machine_line())
    with scratch(options.dir) as folder:
        found = measure(Path(folder), files, options.size)
    rows = [judge(verb, each, files) for verb, each in found.items()]
    for row in rows if options.tiny or options.quick else ():
        for bar in row.bars:
            bar.met = None
    lines = []
    for verb, each in found.items():
        by_kind: dict[str, int] = defaultdict(int)
        for (kind, _), tally in each.asked.items():
            by_kind[kind] += tally.requests
        beside = plain(verb, files) / files * 1e6
        lines.append(
            [
                verb,
                ", ".join(f"{count:,} {kind}" for kind, count in sorted(by_kind.items())),
                f"{each.moved / 1e6:.1f}",
                f"{each.dollars / files * 1e6:.3f}",
                f"{beside:.3f}" if beside else "",
            ]
        )
    print(table(["verb", "requests", "MB", "$ a million files", "plain S3"], lines))
    settings = {"files": files, "size": options.size}
    missed = report("many", rows, settings, options.json)
    return 1 if missed and not (options.tiny or options.quick) else 0


if __name__ == "__main__":
    sys.exit(main())
