"""Plans of requests, against what any plan must hold."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from castore.stream.coalesce import coalesce

Range = tuple[int, int]


@st.composite
def frames(draw: st.DrawFn) -> list[Range]:
    """Frames of a pack, which do not overlap, some of them more than once, in any order."""
    found, at = [], 0
    for gap, size in draw(st.lists(st.tuples(st.integers(0, 300), st.integers(1, 300)))):
        found.append((at + gap, at + gap + size))
        at += gap + size
    again = draw(st.lists(st.sampled_from(found))) if found else []
    return draw(st.permutations(found + again))


any_ranges = st.lists(
    st.tuples(st.integers(0, 5000), st.integers(1, 900)).map(lambda r: (r[0], r[0] + r[1]))
)
gaps, limits = st.integers(0, 400), st.integers(1, 2000)


@given(st.one_of(frames(), any_ranges), gaps, limits)
def test_every_range_is_in_one_span(ranges: list[Range], gap: int, limit: int) -> None:
    spans = coalesce(ranges, gap_bytes=gap, span_bytes_max=limit)
    assert sorted(part for span in spans for part in span.parts) == list(range(len(ranges)))
    for span in spans:
        assert span.parts
        for part in span.parts:
            assert span.begin <= ranges[part][0]
            assert ranges[part][1] <= span.end
        # No larger than what it is made of, and than allowed, unless it is one long range.
        assert span.begin == min(ranges[part][0] for part in span.parts)
        assert span.end == max(ranges[part][1] for part in span.parts)
        longest = max(ranges[part][1] - ranges[part][0] for part in span.parts)
        assert span.end - span.begin <= max(limit, longest)


@given(st.one_of(frames(), any_ranges), gaps, limits)
def test_nothing_further_than_a_gap_is_fetched(ranges: list[Range], gap: int, limit: int) -> None:
    for span in coalesce(ranges, gap_bytes=gap, span_bytes_max=limit):
        covered = span.begin
        for begin, end in sorted(ranges[part] for part in span.parts):
            assert begin - covered <= gap
            covered = max(covered, end)


@given(frames(), gaps, limits)
def test_no_byte_is_fetched_twice(ranges: list[Range], gap: int, limit: int) -> None:
    spans = coalesce(ranges, gap_bytes=gap, span_bytes_max=limit)
    for one, other in pairwise(spans):
        assert one.end <= other.begin


@given(frames(), gaps)
def test_neighbours_share_a_span(ranges: list[Range], gap: int) -> None:
    """With room enough, two spans are further apart than a gap."""
    spans = coalesce(ranges, gap_bytes=gap, span_bytes_max=1 << 40)
    for one, other in pairwise(spans):
        assert other.begin - one.end > gap


def test_examples() -> None:
    def plan(*ranges: Range, gap: int = 10, limit: int = 100) -> list[tuple[int, int, list[int]]]:
        spans = coalesce(ranges, gap_bytes=gap, span_bytes_max=limit)
        return [(span.begin, span.end, span.parts) for span in spans]

    assert plan() == []
    assert plan((20, 30), (0, 10)) == [(0, 30, [1, 0])]
    assert plan((0, 10), (21, 30)) == [(0, 10, [0]), (21, 30, [1])]
    assert plan((0, 60), (60, 120)) == [(0, 60, [0]), (60, 120, [1])]
    assert plan((0, 500), (500, 510)) == [(0, 500, [0]), (500, 510, [1])]
    assert plan((5, 9), (5, 9), (0, 20)) == [(0, 20, [2, 0, 1])]
