"""demo: what `castore.demo` measures, as one small table."""

from __future__ import annotations

import sys
import textwrap
from argparse import Namespace
from dataclasses import asdict

from castore import demo as castore_demo
from castore.cli import exits
from castore.cli.output import (
    human_ratio,
    human_size,
    print_json,
    print_line,
    print_table,
    ratio_of,
)
from castore.demo import DemoReport, PutResult, ReadResult
from castore.wording import counted

LINE_WIDTH = 90


def demo(arguments: Namespace) -> int:
    try:
        report = castore_demo.run(arguments.path, _show_step)
    finally:
        _show_step("")
    if arguments.json:
        print_json(
            {
                **asdict(report),
                "dedup_ratio": ratio_of(report.bytes_in, report.unique_bytes),
                "compression_ratio": ratio_of(report.unique_bytes, report.stored_bytes),
                "total_ratio": ratio_of(report.bytes_in, report.stored_bytes),
            }
        )
    else:
        _print_report(report)
    return exits.OK


def _print_report(report: DemoReport) -> None:
    note = f" ({report.note})" if report.note else ""
    files = counted(report.files, "file")
    _print_paragraph(f"Yesterday: {files} of {report.label}, as one tar{note}.")
    _print_paragraph(
        f"Today: {report.edited_files:,} of them edited by a line, {report.removed_files:,} "
        f"removed, {report.added_files:,} new; packed again."
    )
    print_line("")
    print_table(
        [
            ("PUT", "bytes in", "new bytes", "stored", "rate", "plain copy"),
            _put_row("yesterday's tar", report.yesterday),
            _put_row("today's tar", report.today),
            _put_row("today's once more", report.again),
        ],
        right=range(1, 6),
    )
    print_line("")
    whole = report.whole
    print_table(
        [
            ("READ BACK", "touches", "of the tar", "in chunks", "takes", "plain file"),
            _read_row("4 KiB of today's tar", report.ranges, whole.size),
            _read_row(
                f"a file in it, {human_size(report.members.size)}", report.members, whole.size
            ),
            (
                *_read_row("all of it", whole, whole.size)[:4],
                _rate(whole.size, whole.duration_s),
                _rate(whole.size, whole.plain_duration_s),
            ),
        ],
        right=range(1, 6),
    )
    dedup = human_ratio(ratio_of(report.bytes_in, report.unique_bytes))
    compression = human_ratio(ratio_of(report.unique_bytes, report.stored_bytes))
    together = human_ratio(ratio_of(report.bytes_in, report.stored_bytes))
    known = 1 - report.today.new_bytes / max(1, report.today.bytes_in)
    print_line("")
    _print_paragraph(
        f"Both versions, {human_size(report.bytes_in)}, are stored in "
        f"{human_size(report.stored_bytes)}: deduplication {dedup}, compression {compression}, "
        f"together {together}."
    )
    today = report.today
    differ = (
        "is stored as its difference" if today.new_deltas == 1 else "are stored as their difference"
    )
    _print_paragraph(
        "What happened: castore cut both tars where their content says, and stored each piece "
        f"once; {known:.0%} of today's was known. Of its {counted(today.new_chunks, 'new piece')} "
        f"{today.new_deltas:,} {differ} from one of yesterday's. Reading a "
        "part decompresses the pieces it is in, and those that they differ from."
    )
    _print_paragraph(
        f"Checked: three whole tars ({human_size(report.checked_bytes)}), "
        f"{counted(report.ranges.count, 'range')}, {counted(report.members.count, 'file')}; "
        "every byte is right."
    )
    _print_paragraph(
        "(All from the page cache. A put and its plain copy end with an fsync, reads have none. "
        f"Rates are {f'medians of {report.rounds}' if report.rounds > 1 else 'of one round'}.)"
    )
    print_line("")
    print_line("Next, with files of yours:")
    print_line("  castore demo FOLDER")
    print_line("  castore -r ~/my-store put -R FOLDER monday && castore -r ~/my-store stats")


def _print_paragraph(text: str) -> None:
    for line in textwrap.wrap(text, LINE_WIDTH, break_long_words=False, break_on_hyphens=False):
        print_line(line)


def _put_row(label: str, result: PutResult) -> tuple[str, ...]:
    return (
        label,
        human_size(result.bytes_in),
        human_size(result.new_bytes),
        human_size(result.stored_bytes),
        _rate(result.bytes_in, result.duration_s),
        _rate(result.bytes_in, result.plain_duration_s),
    )


def _read_row(label: str, result: ReadResult, tar_bytes: int) -> tuple[str, ...]:
    return (
        label,
        human_size(result.frame_bytes),
        f"{result.frame_bytes / tar_bytes:.2%}",
        f"{result.chunks:,.1f}",
        _micros(result.duration_s),
        _micros(result.plain_duration_s),
    )


def _rate(size_bytes: int, duration_s: float) -> str:
    return f"{human_size(size_bytes / max(duration_s, 1e-9))}/s"


def _micros(duration_s: float) -> str:
    return f"{duration_s * 1e6:.0f} µs" if duration_s < 1e-3 else f"{duration_s * 1e3:.1f} ms"


def _show_step(text: str) -> None:
    """What is going on, on a terminal only, and gone when the next step begins."""
    if sys.stderr is not None and sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{text}{'...' if text else ''}")
        sys.stderr.flush()
