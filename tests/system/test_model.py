"""The values that pass between layers, and what long jobs report to."""

from __future__ import annotations

from typing import Any

import pytest

from castore.errors import InvalidRange
from castore.model import (
    Location,
    ObjectInfo,
    Stages,
    StoredChunk,
    StoreStats,
    as_prefix,
    can_begin_a_name,
    clamp_range,
    decode_name,
    sort_key,
)
from castore.testing.contents import Told


def test_a_bar_that_knows_no_stages_is_told_of_one_job_that_grows() -> None:
    told = Told()
    stages = Stages(told)
    stages.end()
    assert told.size is None
    stages.begin_stage("packs", 10)
    stages.relative_update(4)
    assert (told.size, told.steps) == (10, [4])
    stages.begin_stage("index", 5)  # and what the first turned out to have less is made up for
    assert (told.size, told.steps) == (15, [4, 6])
    stages.relative_update(7)  # more than there was to be
    stages.relative_update(1)
    assert (told.size, told.steps) == (15, [4, 6, 5])
    stages.begin_stage("garbage", 0)  # of a size that is not known
    stages.relative_update(3)
    assert (told.size, told.steps) == (15, [4, 6, 5, 3])
    stages.end()
    assert (told.size, told.steps) == (18, [4, 6, 5, 3])
    stages.begin_stage("names", 2)
    stages.end()
    assert (told.size, told.steps) == (20, [4, 6, 5, 3, 2])


def test_a_bar_that_knows_stages_is_told_of_each() -> None:
    told: list[tuple[str, Any]] = []

    class Bar:
        def begin_stage(self, what: str, size: int) -> None:
            told.append((what, size))

        def set_size(self, size: int) -> None:
            told.append(("size", size))

        def relative_update(self, inc: int = 1) -> None:
            told.append(("done", inc))

    stages = Stages(Bar())
    stages.begin_stage("packs", 10)
    stages.relative_update(4)
    stages.begin_stage("index", 0)
    stages.relative_update(3)
    stages.begin_stage("names", 2)
    stages.end()
    assert told == [
        *(("packs", 10), ("size", 10), ("done", 4), ("done", 6)),
        *(("index", 0), ("done", 3)),
        *(("names", 2), ("size", 2), ("done", 2)),
    ]


def test_a_job_of_which_nobody_wants_to_know_tells_nobody() -> None:
    stages = Stages(None)
    stages.begin_stage("packs", 10)
    stages.relative_update(4)
    stages.begin_stage("index", 0)
    stages.end()


def test_what_deltas_save_is_what_they_would_take_as_the_other_chunks_do() -> None:
    def stats(unique: int, stored: int, raw: int, delta_stored: int) -> StoreStats:
        return StoreStats(1, 4, 1, unique, unique, stored, stored, 0, 0, 1, raw, delta_stored, 1)

    assert stats(1000, 350, 400, 50).delta_saved_bytes == 400 * 300 // 600 - 50
    assert stats(1000, 1000, 100, 900).delta_saved_bytes == 0, "they cost more"
    assert stats(400, 50, 400, 50).delta_saved_bytes == 0, "there are no others"
    assert stats(1000, 350, 400, 50).frames_per_chunk == 1.25
    assert StoreStats(0, 0, 0, 0, 0, 0, 0, 0).frames_per_chunk == 1


@pytest.mark.parametrize(
    ("prefix", "can"),
    [
        (b"", True),
        (b"a//", True),
        (b"x" * 480, True),
        (b"x" * 481, False),
        (b"/", False),
        (b"a\0", False),
        (b"..", True),  # as of "..a"
        (b"a/.", True),
        (b"../", False),
        (b"a/./b", False),
        (b"a/../", False),
    ],
)
def test_what_a_name_can_begin_with(prefix: bytes, can: bool) -> None:
    assert can_begin_a_name(prefix) is can


def test_a_folder_s_prefix_ends_with_one_slash() -> None:
    for folder in ("a", "a/", "a//"):
        assert as_prefix(folder) == "a/"
    for top in ("", "/", "//"):
        assert as_prefix(top) == ""


@pytest.mark.parametrize("wrong", [b"ab", bytearray(b"ab"), memoryview(b"ab"), "ab"])
def test_bytes_are_no_range(wrong: Any) -> None:
    """Though two of them are two integers."""
    with pytest.raises(InvalidRange, match=r"a byte range (is|takes)"):
        clamp_range(wrong, 1000)


def test_a_range_past_the_end_is_an_empty_one_at_the_end() -> None:
    assert clamp_range((20, 30), 10) == (10, 10)
    assert clamp_range((10, 10), 10) == (10, 10)
    assert clamp_range((9, 30), 10) == (9, 10)


def test_a_damaged_name_is_sorted_by_its_bytes() -> None:
    for raw in (b"a\xff", "é".encode()):
        assert sort_key(decode_name(raw)) == raw


def test_a_delta_needs_the_packs_of_its_bases_too() -> None:
    base = StoredChunk(b"base", 100, Location(b"one pack", 64, 100))
    assert Location(b"another", 64, 50, (base,)).packs == {b"one pack", b"another"}


def test_a_time_in_seconds_has_a_fraction() -> None:
    assert ObjectInfo("a", 0, 1_500_000_000, 0o644, "", 0, 0).mtime == 1.5
