"""What many small files cost in a local store, beside the programs it would replace; and what a
durable put of one does, beside SQLite.

    python bench/bench_small.py [--quick] [--json FILE] [--files 10000] [--bytes 10240] [--dir DIR]

First whole processes, with what Python takes to start: the files of a folder are put in one
transaction (by `puts_many`, and by a `puts` for each), imported, listed, read (by `gets_ranges`,
many at a time, and by a `gets` for each) and exported, put and got by fsspec, too; beside restic,
borg (at castore's compression) and `tar` through `zstd -1`. The import is repeated, as nothing has
changed since, and so is the export, over the same files and over files of other times. Their
contents are words, which compress to a half. Contenders take turns within each repetition; the
ratios of the processor's time, which other work on the machine changes least, are noted below each
row.

Then puts that are durable when they return, each by itself: of one thread, and of several at once,
which share what they wait for. SQLite commits the same bytes as a row with `synchronous=FULL`, to a
write-ahead log (one sync) and with a rollback journal (several). A castore put of what is not
inline syncs its pack, and LMDB its data and then its root: three waits.
"""

from __future__ import annotations

import argparse
import os
import random
import shlex
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from measure import (
    Bar,
    Row,
    Usage,
    castore_environment,
    machine_line,
    report,
    scratch,
    settle,
    show,
    spread,
)
from measure import castore_command as castore
from measure import run as run_process
from peers import Borg, Restic, present, versions

FOLDERS = 100
VERBS = [
    "put",
    "puts",
    "import",
    "import again",
    "fs.put",
    "list",
    "get",
    "gets",
    "export",
    "export again",
    "export over",
    "fs.get",
]
# Beside no peer: what these are fast enough for is not said, and more files that are deleted would
# make the exports of all slower.
ALONE = ("fs.put", "fs.get")
PUTS = ("put", "puts", "import", "fs.put")
OVER = ("export again", "export over")
WHAT = {
    "put": "put all in one transaction, by puts_many",
    "puts": "put all in one transaction, by a puts for each",
    "import": "import the folder",
    "import again": "import it again, unchanged",
    "fs.put": "put the folder by fsspec",
    "list": "list all, with sizes and times",
    "get": "read all by their names, by gets_ranges (the peers: restore all)",
    "gets": "read each by its name, by gets (the peers: restore all)",
    "export": "export all to files",
    "export again": "export all to files that are the same",
    "export over": "export all to files of other times",
    "fs.get": "get the folder by fsspec",
}
JUDGED_FILES_MIN = 5000  # with fewer, starting Python weighs as much as the work
BY_API = str(Path(__file__).with_name("small_verbs.py"))
PEER_BAR = 0.5  # of a peer's time
TAR_BAR = 2.0  # times that of tar and zstd
JUDGED_PUTS_MIN = 100
THREADS = 8
SQLITE = {"SQLite, write-ahead log": "wal", "SQLite, rollback journal": "delete"}


class Settings(NamedTuple):
    """Files and their bytes, repetitions, and durable puts of each contender in one."""

    files: int
    bytes: int
    repeats: int
    puts: int


FULL = Settings(10_000, 10_240, 5, 1000)
QUICK = Settings(10_000, 10_240, 2, 200)
TINY = Settings(200, 10_240, 1, 16)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="a few minutes")
    parser.add_argument("--tiny", action="store_true", help="only show that every row runs")
    parser.add_argument("--json", metavar="FILE", help="write every sample here")
    parser.add_argument("--files", type=int, metavar="N")
    parser.add_argument("--bytes", type=int, metavar="N", help="of each file")
    parser.add_argument("--repeats", type=int, metavar="N")
    parser.add_argument("--dir", metavar="DIR", help="where to work")
    parser.add_argument("--peers", metavar="NAME,...", help="of restic, borg, tar; '' for none")
    options = parser.parse_args(arguments)
    preset = TINY if options.tiny else QUICK if options.quick else FULL
    settings = Settings(
        options.files or preset.files,
        options.bytes or preset.bytes,
        options.repeats or preset.repeats,
        preset.puts,
    )
    chosen = ["restic", "borg", "tar"] if options.peers is None else options.peers.split(",")
    kinds = present([kind for kind in (Restic, Borg) if kind.name in chosen])
    castore_environment()
    print(machine_line())
    rows = []
    with scratch(options.dir) as directory:
        source = directory / "source"
        make_files(source, settings)
        with_tar = "tar" in chosen and all(map(shutil.which, ("tar", "zstd")))
        for row in (
            *whole_processes(directory, source, settings, [kind.name for kind in kinds], with_tar),
            *durable_puts(directory, settings),
        ):
            show(row, base="castore")
            rows.append(row)
    facts = {**settings._asdict(), "threads": THREADS, "peers": versions([Restic, Borg])}
    report("small", rows, facts, options.json)
    return 0


def make_files(folder: Path, settings: Settings) -> None:
    words = random.Random(1)
    known = ["".join(words.choices("abcdefghijklmnopqrstuvwxyz", k=7)) for _ in range(2000)]
    for number in range(settings.files):
        path = folder / f"{number % FOLDERS:03}" / f"{number:05}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        text = " ".join(words.choices(known, k=settings.bytes // 8 + 1))
        path.write_bytes(text.encode()[: settings.bytes])


# ---- whole processes ----------------------------------------------------------------------------


def whole_processes(
    directory: Path, source: Path, settings: Settings, peers: Sequence[str], with_tar: bool
) -> Iterator[Row]:
    rows = {verb: Row(verb, WHAT[verb], "s") for verb in VERBS}
    contenders: dict[str, Contender] = {"castore": castore_verb}
    contenders |= {name: PEER_VERBS[name] for name in peers}
    contenders |= {"tar | zstd": tar_verb} if with_tar else {}
    for _ in range(settings.repeats):
        for verb, row in rows.items():
            for name, contender in contenders.items():
                without = ("import again",) if name == "tar | zstd" else ()
                if name == "castore" or verb not in (*ALONE, *without):
                    row.add_usage(name, contender(verb, directory, source))
    assert_same(source, directory / "castore.out")
    for row in rows.values():
        row.bytes_per_run = settings.files * settings.bytes
        for name in (each for each in row.usage if each != "castore"):
            bar = TAR_BAR if name == "tar | zstd" else PEER_BAR
            ratios = row.ratio("castore", name)
            met = statistics.median(ratios) <= bar if settings.files >= JUDGED_FILES_MIN else None
            row.bars.append(Bar(f"≤ {bar} × {name}", spread(ratios), met))
            row.notes.append(f"processor's time: {_busy_ratio(row, name):.2f} × {name}")
        yield row


Contender = Callable[[str, Path, Path], Usage]


def castore_verb(verb: str, directory: Path, source: Path) -> Usage:
    store = directory / f"castore-{verb if verb in PUTS else 'import'}"
    if verb in PUTS:
        shutil.rmtree(store, ignore_errors=True)
    files = str(source)
    if verb == "export" or verb in OVER:
        files = _out(verb, directory / "castore.out")
    elif verb == "fs.get":
        files = tempfile.mkdtemp(dir=directory)
    command = [*castore(), "-r", str(store)]
    argv = [sys.executable, BY_API, verb, str(store), files]
    if verb in ("import", "import again"):
        argv = [*command, "import", files, "/"]
    elif verb == "list":
        argv = [*command, "ls", "-l"]
    elif verb == "export" or verb in OVER:
        argv = [*command, "export", "/", files]
    return _timed(argv, castore_environment())


def restic_verb(verb: str, directory: Path, source: Path) -> Usage:
    restic = Restic(directory / "restic")
    if verb in PUTS:
        restic.renew()
    if verb == "list":
        return _timed(["restic", "ls", "--quiet", "-l", "latest"], restic.env)
    if verb == "import again":
        again = ["restic", "backup", "--quiet", source.name]
        return _timed(again, restic.env, str(source.parent))
    command = restic.put(source)
    if verb not in PUTS:
        command = restic.get(Path(_out(verb, directory / "restic.out")), source)
    return _timed(command.argv, command.env, command.cwd)


def borg_verb(verb: str, directory: Path, source: Path) -> Usage:
    borg = Borg(directory / "borg")
    if verb in PUTS:
        borg.renew()
        argv = ["borg", "create", "--compression=zstd,1", "::put-1", source.name]
        return _timed(argv, borg.env, str(source.parent))
    if verb == "import again":
        argv = ["borg", "create", "--compression=zstd,1", "::put-2", source.name]
        return _timed(argv, borg.env, str(source.parent))
    if verb == "list":
        return _timed(["borg", "list", "::put-1"], borg.env)
    out = Path(_out(verb, directory / "borg.out"))
    out.mkdir(exist_ok=True)
    command = borg.get(out, source)
    return _timed(command.argv, command.env, command.cwd)


def tar_verb(verb: str, directory: Path, source: Path) -> Usage:
    packed = shlex.quote(str(directory / "tar.zst"))
    out = Path(_out(verb, directory / "tar.out"))
    out.mkdir(exist_ok=True)
    unpack = f"zstd -dcq {packed} | tar "
    pack = f"tar c -C {shlex.quote(str(source))} . | zstd -q -1 > {packed}"
    scripts = {
        **dict.fromkeys(PUTS, pack),
        "list": unpack + "tv",
        "get": unpack + "xO",
        "gets": unpack + "xO",
        **dict.fromkeys(["export", *OVER], unpack + f"x -C {shlex.quote(str(out))}"),
    }
    return _timed(["sh", "-c", scripts[verb]], dict(os.environ))


PEER_VERBS = {"restic": restic_verb, "borg": borg_verb}


def assert_same(source: Path, out: Path) -> None:
    subprocess.run(["diff", "-r", str(source), str(out)], check=True, capture_output=True)


def _timed(argv: Sequence[str], env: dict[str, str], cwd: str | None = None) -> Usage:
    settle()
    return run_process(argv, env=env, cwd=cwd)


def _out(verb: str, path: Path) -> str:
    """Where files are written to: over those of the last export, or to a folder that is new."""
    if verb not in OVER:
        return _fresh(path)
    if verb == "export over":
        for file in path.rglob("*.txt"):
            os.utime(file)
    return str(path)


def _fresh(path: Path) -> str:
    shutil.rmtree(path, ignore_errors=True)
    return str(path)


def _busy_ratio(row: Row, name: str) -> float:
    busy = {
        who: statistics.median(each.user_s + each.sys_s for each in row.usage[who])
        for who in ("castore", name)
    }
    return busy["castore"] / busy[name]


# ---- durable puts -------------------------------------------------------------------------------


def durable_puts(directory: Path, settings: Settings) -> Iterator[Row]:
    """Microseconds for each, by the wall."""
    rows = {
        size: Row(f"durable-{size}", f"durable puts of {size:,} bytes, each by itself", "us")
        for size in (1024, settings.bytes)
    }
    together = f"castore, {THREADS} threads"
    for size, row in rows.items():
        values = [os.urandom(size) for _ in range(settings.puts)]
        for _ in range(settings.repeats):
            row.add("castore", _castore_puts(directory / "durable", values, 1))
            row.add(together, _castore_puts(directory / "durable", values, THREADS))
            for name, mode in SQLITE.items():
                row.add(name, _sqlite_puts(directory / "durable", values, mode))
        for name in SQLITE:
            for who in ("castore", together):
                ratios = row.ratio(who, name)
                met = statistics.median(ratios) <= 1 if settings.puts >= JUDGED_PUTS_MIN else None
                row.bars.append(Bar(f"{who}: ≤ 1 × {name}", spread(ratios), met))
        yield row


def _castore_puts(folder: Path, values: Sequence[bytes], threads: int) -> float:
    from castore import open as open_store

    settle()
    with open_store(folder) as store:
        store.puts("first", b"")

        def put(first: int) -> None:
            for number in range(first, len(values), threads):
                store.puts(f"key/{number}", values[number])

        began = time.perf_counter()
        workers = [threading.Thread(target=put, args=(first,)) for first in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        took = time.perf_counter() - began
        assert store.stats().objects == len(values) + 1
    shutil.rmtree(folder)
    return took / len(values) * 1e6


def _sqlite_puts(folder: Path, values: Sequence[bytes], mode: str) -> float:
    settle()
    folder.mkdir()
    connection = sqlite3.connect(folder / "file", isolation_level=None)
    connection.execute(f"pragma journal_mode={mode}")
    connection.execute("pragma synchronous=full")
    connection.execute("create table objects (name text primary key, value blob)")
    began = time.perf_counter()
    for number, value in enumerate(values):
        connection.execute("insert into objects values (?, ?)", (f"key/{number}", value))
    took = time.perf_counter() - began
    connection.close()
    shutil.rmtree(folder)
    return took / len(values) * 1e6


if __name__ == "__main__":
    sys.exit(main())
