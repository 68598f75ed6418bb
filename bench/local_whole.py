"""The whole-process rows of bench_local: what a user waits for when they type a command."""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from measure import Bar, Row, castore_environment, cores, on_cores, same_bytes, settle
from measure import run as run_process
from peers import Castore, Command, Contender, Copy, PlainRead, Zstd

ROWS = [
    "put-new",
    "put-again",
    "get",
    "get-one-core",
    "put-new-random",
    "get-random",
    "cat-range",
]
_AGAIN_NOTE = (
    "every program reads the file again (restic --force, borg --files-cache=disabled); "
    "restic always encrypts, and derives its key for half a second"
)
LARGE_BYTES = 10**9  # what the bars call a large object


def run(
    wanted: Sequence[str],
    peers: Sequence[type[Contender]],
    real: Path,
    noise: Path,
    directory: Path,
    repeats: int,
) -> Iterator[Row]:
    """The wanted rows, one source after the other."""
    names = [name for name in ROWS if name in wanted]
    if names:
        Castore(directory / "primer").prime()
    if {"put-new", "put-again", "get", "get-one-core"}.intersection(names):
        yield from _real(names, peers, real, directory / "whole", repeats)
    if {"put-new-random", "get-random"}.intersection(names):
        yield from _random(names, peers, noise, directory / "whole", repeats)
    if "cat-range" in names:
        yield _cat_range(real, directory / "whole", repeats)


def _real(
    names: Sequence[str],
    peers: Sequence[type[Contender]],
    source: Path,
    directory: Path,
    repeats: int,
) -> Iterator[Row]:
    size = source.stat().st_size
    rows = {
        "put-new": Row("put-new", "put real.tar into an empty store", "s"),
        "put-again": Row("put-again", "put real.tar again: every byte is stored already", "s"),
        "get": Row("get", f"get real.tar back to a file, {cores()} cores", "s"),
        "get-one-core": Row("get-one-core", "get real.tar back to a file, one core", "s"),
    }
    synced = _gets_are_synced()
    stores: list[Contender] = [
        Castore(directory / "castore"),
        *(kind(directory / kind.name) for kind in peers),
    ]
    zstd = Zstd(directory / "zstd", sync_get=synced)
    copy = Copy(directory / "cp", sync_get=synced)
    reader = PlainRead(directory / "cat")
    verbs = _Verbs(source, directory / "out", rows)
    for repeat in range(repeats):
        for contender in (*stores, zstd, copy):
            contender.renew()
            verbs.time("put-new", contender, contender.put(source))
        if repeat == 0:
            # Before the second put adds to them.
            rows["put-new"].notes.append(_stored(size, (*stores, zstd)))
        if "put-again" in names:
            for contender in stores:
                verbs.time("put-again", contender, contender.put_again(source))
            verbs.time("put-again", reader, reader.put(source))
        if "get" in names:
            for contender in (*stores, zstd, copy):
                verbs.get("get", contender, check=repeat == 0)
        if "get-one-core" in names:
            with on_cores(1):
                for contender in (stores[0], zstd, copy):
                    verbs.get("get-one-core", contender, check=repeat == 0)
    shutil.rmtree(directory)
    rows["put-again"].notes.append(_AGAIN_NOTE)
    _judge_puts(rows)
    _judge_gets(rows, synced)
    yield from _wanted(rows, names, size)


def _random(
    names: Sequence[str],
    peers: Sequence[type[Contender]],
    source: Path,
    directory: Path,
    repeats: int,
) -> Iterator[Row]:
    rows = {
        "put-new-random": Row("put-new-random", "put random.bin into an empty store", "s"),
        "get-random": Row("get-random", "get random.bin back to a file", "s"),
    }
    synced = _gets_are_synced()
    contenders: list[Contender] = [
        Castore(directory / "castore"),
        *(kind(directory / kind.name) for kind in peers),
        Zstd(directory / "zstd", sync_get=synced),
        Copy(directory / "cp", sync_get=synced),
    ]
    verbs = _Verbs(source, directory / "out", rows)
    for repeat in range(repeats):
        for contender in contenders:
            contender.renew()
            verbs.time("put-new-random", contender, contender.put(source))
        if "get-random" in names:
            for contender in contenders:
                verbs.get("get-random", contender, check=repeat == 0)
    shutil.rmtree(directory)
    row = rows["put-new-random"]
    row.bar("≤ 1 × `zstd -1 -T2` + sync", row.ratio("castore", "zstd"), lambda ratio: ratio <= 1)
    yield from _wanted(rows, names, source.stat().st_size)


class _Verbs:
    """Runs commands and files their cost under a row."""

    def __init__(self, source: Path, out: Path, rows: dict[str, Row]) -> None:
        self._source = source
        self._out = out
        self._rows = rows

    def time(self, row: str, contender: Contender, command: Command) -> None:
        settle()
        usage = run_process(command.argv, env=command.env, cwd=command.cwd)
        self._rows[row].add_usage(contender.name, usage)

    def get(self, row: str, contender: Contender, *, check: bool) -> None:
        shutil.rmtree(self._out, ignore_errors=True)
        self._out.mkdir(parents=True)
        command = contender.get(self._out, self._source)
        self.time(row, contender, command)
        if check and not same_bytes(command.output or self._out, self._source):
            raise AssertionError(f"{contender.name} gave back other bytes")


def _judge_puts(rows: dict[str, Row]) -> None:
    new, again = rows["put-new"], rows["put-again"]
    new.bar("≤ 1 × `zstd -1 -T2` + sync", new.ratio("castore", "zstd"), lambda ratio: ratio <= 1)
    for peer in ("restic", "borg", "casync"):
        if peer in again.samples:
            again.bar(f"≥ 10 × {peer}", again.ratio(peer, "castore"), lambda ratio: ratio >= 10)


def _judge_gets(rows: dict[str, Row], synced: bool) -> None:
    row, one_core = rows["get"], rows["get-one-core"]
    how = "`zstd -d` + sync" if synced else "`zstd -d`"
    for peer in ("restic", "borg"):
        if peer in row.samples:
            row.bar(f"≥ 2 × {peer}", row.ratio(peer, "castore"), lambda ratio: ratio >= 2)
    row.bar(f"faster than {how}", row.ratio("castore", "zstd"), lambda ratio: ratio < 1)
    one_core.bar(f"≤ 1.3 × {how}", one_core.ratio("castore", "zstd"), lambda ratio: ratio <= 1.3)


def _wanted(rows: dict[str, Row], names: Sequence[str], size: int) -> Iterator[Row]:
    for name, row in rows.items():
        row.bytes_per_run = size
        if size < LARGE_BYTES:
            # Below that, the time of a command is the time of starting Python.
            row.bars = [Bar(f"{bar.text}, at ≥ 1 GB", bar.measured, None) for bar in row.bars]
        if name in names:
            yield row


def _stored(size: int, contenders: Sequence[Contender]) -> str:
    parts = [f"{one.name} {one.stored_bytes() / size:.3f}" for one in contenders]
    return "bytes on disk / bytes in: " + ", ".join(parts)


def _cat_range(source: Path, directory: Path, repeats: int) -> Row:
    """4 KiB of a stored file by command: mostly the start of Python, and our imports."""
    row = Row("cat-range", "print 4 KiB of real.tar by command", "s")
    contender = Castore(directory / "castore")
    contender.renew()
    put = contender.put(source)
    run_process(put.argv, env=put.env)
    begin = source.stat().st_size // 2
    plain = "import sys; f = open(sys.argv[1], 'rb'); f.seek(int(sys.argv[2])); f.read(4096)"
    commands: dict[str, Sequence[str]] = {
        "castore": contender.cat(begin, begin + 4096).argv,
        "python open+seek+read": [sys.executable, "-c", plain, str(source), str(begin)],
    }
    for _ in range(max(repeats, 5)):
        for name, argv in commands.items():
            row.add_usage(name, run_process(argv, env=put.env))
    shutil.rmtree(directory)
    median = statistics.median(row.samples["castore"])
    row.notes.append(f"{median * 1e3:.0f} ms; restic, borg and casync print no range of a file")
    return row


def _gets_are_synced() -> bool:
    """Whether Store.get syncs the file it writes: then zstd and cp are made to sync theirs."""
    finished = subprocess.run(
        [sys.executable, "-c", _COUNT_SYNCS],
        env=castore_environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    return int(finished.stdout) > 0


_COUNT_SYNCS = """
import os, tempfile, castore
calls = []
def counted(sync):
    return lambda descriptor: (calls.append(descriptor), sync(descriptor))[1]
with tempfile.TemporaryDirectory() as folder:
    with castore.open(os.path.join(folder, "store")) as store:
        store.puts("name", bytes(1 << 20))
        os.fsync, os.fdatasync = counted(os.fsync), counted(os.fdatasync)
        store.get("name", os.path.join(folder, "file"))
print(len(calls))
"""
