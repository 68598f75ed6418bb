"""Anchors: the same from C and from Python, and the same wherever the bytes are."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from castore.stream.anchors import ANCHOR_BYTES, ReferenceAnchors, anchors_of


def anchors(data: bytes | bytearray | memoryview) -> dict[int, int]:
    found = anchors_of(data)
    assert len(found) == len(found.positions())
    return found.positions()


def reference(data: bytes) -> dict[int, int]:
    return ReferenceAnchors(data).positions()


@pytest.mark.parametrize("size", [0, 1, 8, 23, 24, 25, 87, 88, 89, 150, 151, 152, 5000, 100_000])
def test_anchors_are_those_of_the_reference(size):
    random_bytes = random.Random(size).randbytes(size)
    for data in (random_bytes, bytes(size), b"\xff" * size, (b"anchors " * size)[:size]):
        assert list(anchors(data).items()) == list(reference(data).items())


def test_more_anchors_than_are_found_at_a_time():
    """A pattern whose every period has an anchor: C finds them in several turns."""
    period = next(
        pattern for seed in range(1000) if anchors(pattern := random.Random(seed).randbytes(24) * 9)
    )
    data = b"".join(bytes([n % 256, n // 256]) + period for n in range(2000))
    assert len(anchors(data)) > 1000
    assert list(anchors(data).items()) == list(reference(data).items())


@settings(deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 700), st.integers(0, 700))
def test_anchors_go_with_the_bytes(seed, before, behind):
    made = random.Random(seed)
    data = made.randbytes(20_000)
    found = anchors(made.randbytes(before) + data + made.randbytes(behind))
    for anchor, position in anchors(data).items():
        assert found[anchor] == before + position


def test_about_one_place_in_512_is_an_anchor():
    data = random.Random(7).randbytes(1 << 20)
    found = anchors(data)
    assert 1800 < len(found) < 2300
    assert all(0 <= position <= len(data) - ANCHOR_BYTES for position in found.values())


@pytest.mark.parametrize("byte", range(0, 256, 15))
def test_a_run_of_one_byte_has_at_most_one(byte):
    assert len(anchors(bytes([byte]) * 100_000)) <= 1


def test_zeros_have_none():
    assert anchors(bytes(100_000)) == {}


def test_any_buffer_is_taken():
    data = random.Random(3).randbytes(50_000)
    assert anchors(memoryview(data)[100:]) == anchors(bytearray(data[100:]))
