"""What reading and writing through a mount costs, beside `castore cat` and `castore put`.

    python bench/bench_mount.py [--quick] [--json FILE] [--size 1G] [--repeats 5]

Whole processes: `castore cat NAME`, and `cat` of the same object through a mount that is begun
before the clock is, so that the kernel has none of its pages ("first"), then once more ("again");
and the same of `castore put` and `cp` into the mount. Bytes are those of real files, as one tar,
and random ones. Then `ls -l` and `grep -r` of many small files, in a folder and through a mount.
It skips, and says why, where nothing can be mounted.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from measure import (
    Row,
    castore_command,
    castore_environment,
    machine_line,
    parse_size,
    report,
    run,
    scratch,
    settle,
    show,
    warm,
)
from sources import write_random, write_real_tar

RATIO_BAR = 0.5
CAT, FIRST, AGAIN = "castore cat", "mount, first", "mount, again"
PUT, COPY = "castore put", "cp into the mount"
PLAIN, MOUNTED = "a folder", "a mount"
SMALL_BYTES = 100


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    env = castore_environment()
    from castore.mount import MountUnavailable, mounted

    tiny, quick = arguments.tiny, arguments.quick
    size = arguments.size or (1 << 20 if tiny else 256 << 20 if quick else 1 << 30)
    repeats = arguments.repeats or (1 if tiny else 3 if quick else 5)
    print(machine_line())
    rows = []
    with scratch(arguments.dir) as work:
        store, folder = work / "store", work / "mount"
        folder.mkdir()
        sources = {"real": work / "real", "random": work / "random"}
        write_real_tar(sources["real"], size)
        write_random(sources["random"], size, seed=1)
        castore = [*castore_command(), "-r", str(store)]
        for name, source in sources.items():
            run([*castore, "put", str(source), name], env=env)
        try:
            for name in sources:
                row = Row(f"read-{name}", f"{size >> 20} MiB to a pipe", "s", bytes_per_run=size)
                for _ in range(repeats):
                    settle()
                    row.add_usage(CAT, run([*castore, "cat", name], env=env))
                    with mounted(str(store), str(folder)):
                        for contender in (FIRST, AGAIN):
                            row.add_usage(contender, run(["cat", str(folder / name)]))
                row.bar(
                    f"first ≥ {RATIO_BAR} × the throughput of castore cat",
                    row.ratio(CAT, FIRST),
                    lambda ratio: ratio >= RATIO_BAR,
                )
                _done(row, CAT, rows)
            for name, source in sources.items():
                _done(_writes(work, name, source, repeats, size), PUT, rows)
            count = 20 if tiny else 1000 if quick else 5000
            for row in _small_files(work, count, repeats):
                _done(row, PLAIN, rows)
        except MountUnavailable as error:
            print(f"skipped: {error}")
    return report("mount", rows, {"size": size, "repeats": repeats}, arguments.json)


def _writes(work: Path, name: str, source: Path, repeats: int, size: int) -> Row:
    """New bytes each time: each into a store of its own."""
    import castore
    from castore.mount import mounted

    env = castore_environment()
    row = Row(f"write-{name}", f"{size >> 20} MiB, new bytes, durable", "s", bytes_per_run=size)
    for repeat in range(repeats):
        warm(source)
        with scratch(str(work)) as fresh:
            command = [*castore_command(), "-r", str(fresh / "put"), "put", str(source), name]
            castore.open(fresh / "put").close()
            castore.open(fresh / "copied").close()
            settle()
            row.add_usage(PUT, run(command, env=env))
            (fresh / "mount").mkdir()
            settle()
            with mounted(str(fresh / "copied"), str(fresh / "mount"), writable=True) as folder:
                row.add_usage(COPY, run(["cp", str(source), f"{folder}/{repeat}"]))
    return row


def _small_files(work: Path, count: int, repeats: int) -> list[Row]:
    import castore
    from castore.mount import mounted

    plain, folder = work / "plain", work / "small"
    commands = {"ls": ["ls", "-lR"], "grep": ["grep", "-r", "what is not there"]}
    rows = {name: Row(f"{name}-small", f"{count} files", "s") for name in commands}
    with castore.open(work / "smalls") as store, store.transaction() as transaction:
        for number in range(count):
            name = f"{number % 10}/{number}"
            (plain / name).parent.mkdir(parents=True, exist_ok=True)
            (plain / name).write_bytes(b"x" * SMALL_BYTES)
            transaction.puts(name, b"x" * SMALL_BYTES)
    folder.mkdir()
    for _ in range(repeats):
        for name, command in commands.items():
            for contender, at in ((PLAIN, plain), (MOUNTED, folder)):
                with mounted(str(work / "smalls"), str(folder)):
                    began = time.perf_counter()
                    subprocess.run([*command, str(at)], stdout=subprocess.DEVNULL)
                    rows[name].add(contender, time.perf_counter() - began)
    return [*rows.values()]


def _done(row: Row, base: str, rows: list[Row]) -> None:
    show(row, base=base)
    rows.append(row)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="256 MiB, three times")
    parser.add_argument("--tiny", action="store_true", help="only show that it runs")
    parser.add_argument("--size", type=parse_size, metavar="SIZE", help="bytes of each object")
    parser.add_argument("--repeats", type=int, metavar="N")
    parser.add_argument("--json", metavar="FILE", help="write every sample here")
    parser.add_argument("--dir", metavar="DIR", help="where to work")
    return parser


if __name__ == "__main__":
    sys.exit(main())
