"""Which ranges to fetch together: pure planning, no I/O."""

from __future__ import annotations

from collections.abc import Sequence


class Span:
    """One request for `[begin, end)` that serves the ranges numbered in `parts`."""

    __slots__ = ("begin", "end", "parts")

    def __init__(self, begin: int, end: int, parts: list[int]) -> None:
        self.begin = begin
        self.end = end
        self.parts = parts


def coalesce(
    ranges: Sequence[tuple[int, int]], *, gap_bytes: int, span_bytes_max: int
) -> list[Span]:
    """The spans that cover all half-open ranges, in order of their begins.

    Neighbours at most `gap_bytes` apart share a span, up to `span_bytes_max`; a range that is
    longer than that by itself gets a span of its own.
    """
    spans: list[Span] = []
    for part in sorted(range(len(ranges)), key=ranges.__getitem__):
        begin, end = ranges[part]
        last = spans[-1] if spans else None
        if last is not None and (
            end <= last.end
            or (begin - last.end <= gap_bytes and end - last.begin <= span_bytes_max)
        ):
            last.end = max(last.end, end)
            last.parts.append(part)
        else:
            spans.append(Span(begin, end, [part]))
    return spans
