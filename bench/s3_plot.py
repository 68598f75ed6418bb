"""The rows of bench_s3 as a picture: reads by size, and the series of releases."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from measure import Row
from s3_ranges import SIZES

RANGE_BYTES = {f"-{label}@": size for label, size in SIZES.items()}


def plot(path: Path, rows: Sequence[Row]) -> bool:
    """Write the picture; False, and a line, where matplotlib is not installed."""
    try:
        import matplotlib
    except ImportError:
        print("no plot: matplotlib is not installed (pip install 'castore[bench]')")
        return False
    matplotlib.use("Agg")
    from matplotlib import pyplot

    groups = _range_groups(rows)
    wholes = [row for row in rows if row.name.startswith(("get-", "staging"))]
    panels = [*groups, *(["whole"] if wholes else [])]
    if not panels:
        return False
    figure, axes = pyplot.subplots(
        1, len(panels), figsize=(6 * len(panels), 5), squeeze=False, layout="constrained"
    )
    for axis, panel in zip(axes[0], panels, strict=True):
        if panel == "whole":
            _bars(axis, wholes)
        else:
            _curves(axis, panel, groups[panel])
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return True


def _range_groups(rows: Sequence[Row]) -> dict[str, list[tuple[int, Row]]]:
    """The range rows with their sizes, by source and link."""
    groups: dict[str, list[tuple[int, Row]]] = {}
    for row in rows:
        for label, size in RANGE_BYTES.items():
            if row.name.startswith("range-") and label in row.name:
                groups.setdefault(row.name.replace(label, " at "), []).append((size, row))
    return groups


def _curves(axis: Any, title: str, rows: Sequence[tuple[int, Row]]) -> None:
    for contender in rows[0][1].samples:
        sizes = [size for size, row in rows if contender in row.samples]
        medians = [
            statistics.median(row.samples[contender]) for _, row in rows if contender in row.samples
        ]
        style = "--" if "castore" not in contender else "-"
        axis.plot(sizes, medians, style, marker="o", label=contender)
    axis.set(xscale="log", yscale="log", title=title.removeprefix("range-"))
    axis.set(xlabel="bytes read", ylabel="ms, median")
    axis.grid(alpha=0.3)
    axis.legend(fontsize="small")


def _bars(axis: Any, rows: Sequence[Row]) -> None:
    """Seconds, each contender's relative to boto3's."""
    contenders = list(dict.fromkeys(who for row in rows for who in row.samples))
    width = 0.8 / len(contenders)
    for i, contender in enumerate(contenders):
        places, heights = [], []
        for at, row in enumerate(rows):
            if contender in row.samples and "boto3" in row.samples:
                places.append(at + i * width)
                heights.append(statistics.median(row.ratio(contender, "boto3")))
        axis.bar(places, heights, width, label=contender)
    axis.set_xticks(
        [at + 0.4 - width / 2 for at in range(len(rows))],
        [row.name for row in rows],
        rotation=20,
        ha="right",
        fontsize="small",
    )
    axis.axhline(1, color="grey", linewidth=0.8)
    axis.set(title="whole objects", ylabel="seconds / boto3's seconds")
    axis.legend(fontsize="small")
