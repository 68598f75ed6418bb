"""What people and programs see: JSON lines, tables, sizes in words, and the progress bar."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, TextIO

from castore.cli.exits import Failure
from castore.cli.streams import discard

if TYPE_CHECKING:
    from argparse import Namespace

    from castore.model import ObjectInfo  # --help has no need of it

LINES_MAX = 20  # of one kind, without --verbose
BAR_DELAY_S = 0.5  # a job that ends sooner shows no bar at all
BAR_INTERVAL_S = 0.1
BAR_WIDTH = 24


def print_json(document: dict[str, object]) -> None:
    """One document on one line of stdout."""
    stdout().write(json_line(document) + "\n")


def json_line(document: dict[str, object]) -> str:
    import json  # a verb without --json has no use for it

    return json.dumps(document)


def print_line(text: str) -> None:
    """One line on stdout; control characters are escaped where a terminal would obey them."""
    output = stdout()
    output.write((one_line(text) if output.isatty() else text) + "\n")


def stdout() -> TextIO:
    """Standard output; raises Failure where whoever started this closed it."""
    if sys.stdout is None:
        raise Failure("standard output is closed")
    return sys.stdout


def complain(message: str) -> None:
    """One line on stderr."""
    _say(f"castore: {one_line(message)}")


def complain_each(messages: Sequence[str], arguments: Namespace) -> None:
    """A line on stderr for each; beyond 20 only with --verbose."""
    shown = len(messages) if arguments.verbose else LINES_MAX
    for message in messages[:shown]:
        complain(message)
    if len(messages) > shown:
        complain(f"and {len(messages) - shown:,} more: --verbose names all")


def complain_json(document: dict[str, object]) -> None:
    """One document on one line of stderr."""
    _say(json_line(document))


def _say(line: str) -> None:
    """Where that can't be written, as on a full disk, what was asked for is done all the same, and
    the exit code says how it ended."""
    if sys.stderr is not None:
        try:
            print(line, file=sys.stderr, flush=True)
        except OSError:
            discard(sys.stderr)


def one_line(text: str) -> str:
    """`text` with control characters escaped, so that it stays one line and harmless."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def print_table(rows: Sequence[Sequence[str]], *, right: Iterable[int] = ()) -> None:
    """Rows in columns of equal width; the columns numbered in `right` are right-aligned."""
    aligned = set(right)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [
            cell.rjust(width) if at in aligned else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print_line("  ".join(cells).rstrip())


def human_size(size_bytes: float) -> str:
    """A size in bytes for people: '0 B', '1.5 KiB', '12.0 MiB'."""
    if size_bytes < 1024:
        return f"{size_bytes:.0f} B"
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        size_bytes /= 1024
        if size_bytes < 1023.95:
            return f"{size_bytes:.1f} {unit}"
    return f"{size_bytes / 1024:.1f} PiB"


def human_ratio(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}x"


def ratio_of(whole: float, part: float) -> float | None:
    """`whole / part`, and None where that says nothing."""
    return whole / part if part > 0 else None


def object_document(info: ObjectInfo) -> dict[str, object]:
    return {
        "name": info.name,
        "size": info.size,
        "mtime": info.mtime,
        "mode": f"{info.mode:04o}",
        "etag": info.etag,
        "chunks": info.chunks,
        "stored_bytes": info.stored_bytes,
        "deltas": info.deltas,
    }


def columns(stream: TextIO | None) -> int:
    """The width of the terminal that `stream` writes to, or 80."""
    if stream is None:
        return 80
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError):
        return 80


def open_progress(
    label: str, total_bytes: int | None = None
) -> AbstractContextManager[ProgressBar | None]:
    """A bar while the `with` block runs, or None where stderr is not a terminal."""
    if sys.stderr is None or not sys.stderr.isatty():
        return nullcontext()
    return ProgressBar(label, sys.stderr, total_bytes=total_bytes)


class ProgressBar:
    """Bytes done, rate and time left, on one line that is gone when the job is done.

    It is the `StagedProgress` that the methods of `Store` report to. With `total_bytes` given, it
    covers many files, and what each of them announces as its size is ignored.
    """

    def __init__(
        self,
        label: str,
        stream: TextIO,
        *,
        total_bytes: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._label = label
        self._stream = stream
        self._clock = clock
        self._total_is_fixed = False
        self._total_bytes = 0
        self._done_bytes = 0
        self._stage = ""
        self._began = clock()
        self._next_draw = self._began + BAR_DELAY_S
        self._drawn = False
        if total_bytes is not None:
            self.fix_size(total_bytes)

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._drawn:
            self._stream.write("\r\x1b[K")
            self._stream.flush()

    def fix_size(self, size: int) -> None:
        """The size of the whole job: later calls of `set_size` do not change it."""
        self._total_bytes = size
        self._total_is_fixed = True

    def set_size(self, size: int) -> None:
        if not self._total_is_fixed:
            self._total_bytes = size

    def begin_stage(self, what: str, size: int) -> None:
        """Begin anew, for another part of the job: '<label>: <what>'."""
        self._stage = f": {what}"
        self._total_bytes, self._done_bytes = size, 0
        self._began = self._clock()

    def relative_update(self, inc: int = 1) -> None:
        was_done = self._done_bytes >= self._total_bytes
        self._done_bytes += inc
        now = self._clock()
        ends = self._drawn and not was_done and self._done_bytes >= self._total_bytes
        if now < self._next_draw and not ends:  # a bar that was seen is seen to end
            return
        self._next_draw = now + BAR_INTERVAL_S
        self._draw(now - self._began)

    def _draw(self, elapsed_s: float) -> None:
        rate = self._done_bytes / max(elapsed_s, 1e-9)
        facts = f"{human_size(self._done_bytes)}  {human_size(rate)}/s"
        if self._total_bytes:
            done = min(1.0, self._done_bytes / self._total_bytes)
            bar = ("#" * int(done * BAR_WIDTH)).ljust(BAR_WIDTH, ".")
            left_s = max(0, self._total_bytes - self._done_bytes) / max(rate, 1e-9)
            facts = f"{done:4.0%} [{bar}] {facts}  {_minutes(left_s)} left"
        room = columns(self._stream) - len(facts) - 3
        label = one_line(self._label + self._stage)
        if len(label) > room:
            label = "…" + label[len(label) - room + 1 :] if room > 1 else ""
        self._stream.write(f"\r{label}  {facts}\x1b[K")
        self._stream.flush()
        self._drawn = True


def _minutes(seconds: float) -> str:
    minutes, seconds = divmod(round(min(seconds, 359_999)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
