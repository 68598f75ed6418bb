"""Timing that every bench shares: whole processes, medians, paired ratios, tables, JSON.

How numbers are taken:

- A process is timed from its spawn to `os.wait4`, whose rusage gives its CPU time and peak memory
  (its own and that of the children it waited for).
- Contenders are interleaved: each repetition runs all of them once, in turn, so that a slow spell
  of the machine falls on all alike. A ratio is taken within a repetition; the median of those is
  shown.
- Nothing here drops the page cache. A source is read once before it is timed, and dirty pages are
  written out (`sync`) between runs, so that no contender pays for the writes of the one before.
"""

from __future__ import annotations

import atexit
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import IO, Any

BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Usage:
    """What one process cost: seconds, and bytes of peak resident memory.

    The kernel carries the spawning process's own peak into the child's, so a peak below
    `rss_floor_bytes()` is only known to be at most that.
    """

    wall_s: float
    user_s: float
    sys_s: float
    rss_bytes: int


class CommandFailed(RuntimeError):
    """A measured command ended with an error, so its time means nothing."""

    def __init__(self, argv: Sequence[str], status: int, message: str) -> None:
        super().__init__(f"{argv[0]} failed with status {status}: {message.strip()[-400:]}")
        self.status = status


@dataclass(slots=True)
class Bar:
    """One number to reach; `met` is None where this run is too small to tell."""

    text: str
    measured: str
    met: bool | None

    def line(self) -> str:
        verdict = {True: "met", False: "MISSED", None: "not judged"}[self.met]
        return f"    bar: {self.text}; measured {self.measured}: {verdict}"


@dataclass(slots=True)
class Row:
    """One comparison: per contender, a figure per repetition (index = repetition)."""

    name: str
    what: str
    unit: str
    samples: dict[str, list[float]] = field(default_factory=dict)
    usage: dict[str, list[Usage]] = field(default_factory=dict)
    bytes_per_run: int = 0
    bars: list[Bar] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, contender: str, figure: float) -> None:
        self.samples.setdefault(contender, []).append(figure)

    def add_usage(self, contender: str, usage: Usage) -> None:
        self.add(contender, usage.wall_s)
        self.usage.setdefault(contender, []).append(usage)

    def ratio(self, above: str, below: str) -> list[float]:
        """`above`/`below`, repetition by repetition; empty when either was not run."""
        return paired_ratios(self.samples.get(above, []), self.samples.get(below, []))

    def bar(self, text: str, ratios: Sequence[float], met: Callable[[float], bool]) -> None:
        """Judge the median of `ratios` against a bar."""
        if ratios:
            self.bars.append(Bar(text, spread(ratios), met(statistics.median(ratios))))
        else:
            self.bars.append(Bar(text, "nothing", None))


def run(
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: str | None = None,
    stdin: str | None = None,
    watch: Callable[[int], None] | None = None,
) -> Usage:
    """Run one command to its end and say what it cost. Raises CommandFailed with its last words.

    `watch` is called with the process id while it runs and must return once the process is gone.
    """
    with tempfile.TemporaryFile() as errors, open(stdin or os.devnull, "rb") as source:
        started = time.perf_counter()
        child = subprocess.Popen(
            argv, env=env, cwd=cwd, stdin=source, stdout=subprocess.DEVNULL, stderr=errors
        )
        if watch is not None:
            watch(child.pid)
        _, status, usage = os.wait4(child.pid, 0)
        wall_s = time.perf_counter() - started
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode != 0:
            raise CommandFailed(argv, child.returncode, _tail(errors))
    return Usage(wall_s, usage.ru_utime, usage.ru_stime, usage.ru_maxrss * 1024)


def castore_command() -> list[str]:
    """The installed console script if there is one beside this Python, else `python -m castore`."""
    script = Path(sys.executable).with_name("castore")
    return [str(script)] if script.exists() else [sys.executable, "-m", "castore"]


@cache
def castore_environment() -> dict[str, str]:
    """This environment, with the project's own tree importable even where it is not installed.

    Bytecode is cached in a directory of this run's, as pip's installation would have it: a command
    that compiled its modules on every start would not be what users run.
    """
    root = str(Path(__file__).resolve().parent.parent)
    if root not in sys.path:
        sys.path.append(root)
    bytecode = tempfile.mkdtemp(prefix="castore-bench-bytecode-")
    atexit.register(shutil.rmtree, bytecode, ignore_errors=True)
    known = os.environ.get("PYTHONPATH")
    environment = {
        **os.environ,
        "PYTHONPATH": f"{known}{os.pathsep}{root}" if known else root,
        "PYTHONPYCACHEPREFIX": bytecode,
    }
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    return environment


@contextmanager
def on_cores(count: int) -> Iterator[int]:
    """Bind this process and the children it starts to `count` cores; yields how many it got."""
    if not hasattr(os, "sched_setaffinity"):
        yield os.cpu_count() or 1
        return
    before = os.sched_getaffinity(0)
    # The last core: the first one serves more of the machine's interrupts.
    chosen = set(sorted(before)[-count:])
    os.sched_setaffinity(0, chosen)
    try:
        yield len(chosen)
    finally:
        os.sched_setaffinity(0, before)


def cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def settle() -> None:
    """Write out dirty pages, so that the next run does not pay for the last one's writes."""
    os.sync()


def warm(path: str | Path) -> None:
    """Read a file once, so that it is in the page cache as far as memory allows."""
    plain_read(path)


def plain_read(path: str | Path) -> int:
    """Read a file through one reused 1 MiB buffer; its size."""
    buffer = bytearray(BLOCK_BYTES)
    total = 0
    with open(path, "rb", buffering=0) as source:
        while count := source.readinto(buffer):
            total += count
    return total


def same_bytes(left: str | Path, right: str | Path) -> bool:
    """Compare two files byte by byte."""
    if os.path.getsize(left) != os.path.getsize(right):
        return False
    with open(left, "rb", buffering=0) as one, open(right, "rb", buffering=0) as other:
        while block := one.read(BLOCK_BYTES):
            if block != other.read(len(block)):
                return False
    return True


def paired_ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """above[i]/below[i] of each repetition that both ran."""
    return [a / b for a, b in zip(above, below, strict=False)]


def spread(values: Sequence[float], digits: int = 2) -> str:
    """`median (lowest–highest)`."""
    if not values:
        return "-"
    median = f"{statistics.median(values):.{digits}f}"
    if len(values) == 1:
        return median
    return f"{median} ({min(values):.{digits}f}–{max(values):.{digits}f})"


def table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Plain text columns: the first to the left, the others to the right."""
    cells = [list(headers), *(list(row) for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(headers))]
    lines = []
    for line in cells:
        first, rest = line[0].ljust(widths[0]), zip(line[1:], widths[1:], strict=True)
        lines.append("  ".join([first, *(cell.rjust(width) for cell, width in rest)]).rstrip())
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def show(row: Row, *, base: str, out: IO[str] | None = None) -> None:
    """Print one row: a line per contender, its ratio to `base`, the notes and the bars."""
    out = out or sys.stdout
    print(f"\n{row.name}: {row.what}", file=out)
    digits = 3 if row.unit == "s" else 2
    headers = ["", f"{row.unit}: median (min–max)", f"/ {base}"]
    if row.bytes_per_run:
        headers.append("MB/s")
    if row.usage:
        headers += ["user s", "sys s", "peak MB"]
    lines = []
    for contender, samples in row.samples.items():
        line = [contender, spread(samples, digits), spread(row.ratio(contender, base))]
        if row.bytes_per_run:
            line.append(f"{row.bytes_per_run / statistics.median(samples) / 1e6:.0f}")
        if row.usage:
            line += _usage_cells(row.usage.get(contender, []))
        lines.append(line)
    if lines:
        print(table(headers, lines), file=out)
    for note in row.notes:
        print(f"    {note}", file=out)
    for bar in row.bars:
        print(bar.line(), file=out)
    out.flush()


def row_document(row: Row) -> dict[str, Any]:
    """A row as JSON: every sample, with medians beside them."""
    contenders: dict[str, Any] = {}
    for contender, samples in row.samples.items():
        figures: dict[str, Any] = {
            "median": statistics.median(samples),
            "min": min(samples),
            "max": max(samples),
            "samples": samples,
        }
        if usage := row.usage.get(contender):
            figures["wall_s"] = [one.wall_s for one in usage]
            figures["user_s"] = [one.user_s for one in usage]
            figures["sys_s"] = [one.sys_s for one in usage]
            figures["rss_bytes"] = [one.rss_bytes for one in usage]
        contenders[contender] = figures
    return {
        "name": row.name,
        "what": row.what,
        "unit": row.unit,
        "bytes_per_run": row.bytes_per_run,
        "contenders": contenders,
        "bars": [{"bar": b.text, "measured": b.measured, "met": b.met} for b in row.bars],
        "notes": row.notes,
    }


def report(
    bench: str, rows: Sequence[Row], settings: Mapping[str, Any], json_path: str | None
) -> int:
    """Print which bars were met, write the JSON; the number of bars missed."""
    bars = [(row.name, bar) for row in rows for bar in row.bars]
    missed = [(name, bar) for name, bar in bars if bar.met is False]
    judged = sum(bar.met is not None for _, bar in bars)
    print(f"\n{judged - len(missed)} of {judged} judged bars met, {len(bars) - judged} not judged")
    for name, bar in missed:
        print(f"  {name}\n{bar.line()}")
    if json_path:
        document = {
            "bench": bench,
            "machine": machine_facts(),
            "settings": dict(settings),
            "rss_floor_bytes": rss_floor_bytes(),
            "rows": [row_document(row) for row in rows],
        }
        write_json(json_path, document)
    return len(missed)


def write_json(path: str, document: Mapping[str, Any]) -> None:
    """Write a document whole or not at all; `-` is stdout."""
    text = json.dumps(document, indent=1, sort_keys=False) + "\n"
    if path == "-":
        sys.stdout.write(text)
        return
    directory = os.path.dirname(os.path.abspath(path))
    os.makedirs(directory, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=directory)
    with os.fdopen(descriptor, "w") as target:
        target.write(text)
    os.chmod(temporary, 0o644)
    os.replace(temporary, path)


def machine_facts() -> dict[str, Any]:
    """What a reader needs to place the numbers: no host name, no path."""
    return {
        "cpu": _field("/proc/cpuinfo", "model name") or platform.processor(),
        "cores": cores(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in ("lmdb", "xxhash", "zstandard")},
    }


def machine_line() -> str:
    """The machine's facts in one line, for the head of a table."""
    facts = machine_facts()
    memory = f"{facts['memory_bytes'] / 1e9:.0f} GB"
    return f"{facts['cpu']}, {facts['cores']} cores, {memory}, {facts['kernel']}"


def rss_floor_bytes() -> int:
    """This process's own peak: what a child's peak can't be told apart from."""
    return status_bytes(os.getpid(), "VmHWM") or 0


def status_bytes(pid: int, field_name: str) -> int | None:
    """One memory field of /proc/PID/status in bytes; None when the process is gone."""
    value = _field(f"/proc/{pid}/status", field_name)
    return int(value.split()[0]) * 1024 if value else None


@contextmanager
def scratch(parent: str | None, *, keep: bool = False) -> Iterator[Path]:
    """A directory of our own, gone at the end, also when we are told to stop."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    directory = Path(tempfile.mkdtemp(prefix="castore-bench-", dir=parent))
    try:
        yield directory
    finally:
        if not keep:
            shutil.rmtree(directory, ignore_errors=True)


def parse_size(text: str) -> int:
    """`64M`, `1G`, `8GiB`, `1000` as bytes; the letters are powers of 1024."""
    number = text.strip().upper().removesuffix("B").removesuffix("I")
    scale = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}.get(number[-1:], 1)
    return int(float(number[:-1] if scale > 1 else number) * scale)


def _usage_cells(usage: Sequence[Usage]) -> list[str]:
    if not usage:
        return ["-", "-", "-"]
    peak = max(one.rss_bytes for one in usage)
    floor = rss_floor_bytes()
    return [
        f"{statistics.median(one.user_s for one in usage):.2f}",
        f"{statistics.median(one.sys_s for one in usage):.2f}",
        f"{peak / 1e6:.0f}" if peak > floor else f"≤{floor / 1e6:.0f}",
    ]


def _field(path: str, name: str) -> str | None:
    try:
        with open(path) as lines:
            for line in lines:
                key, _, value = line.partition(":")
                if key.strip() == name:
                    return value.strip()
    except OSError:
        return None
    return None


def _version(package: str) -> str | None:
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _tail(errors: IO[bytes]) -> str:
    errors.seek(0)
    return errors.read().decode(errors="replace")
