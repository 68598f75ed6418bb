"""The table of anchors: C's ranks as its reference does."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from castore.stream.anchor_table import RANKED_MAX, ReferenceTable
from castore.stream.anchors import ReferenceAnchors

_native = pytest.importorskip("castore._native", reason="the C extension isn't built")

SHARES = (1 / 32, 1 / 4, 1 / 10)
SLOTS = 12
PIECE = 4096  # with some 8 anchors
PIECES = [random.Random(i).randbytes(PIECE) for i in range(30)]

some_pieces = st.lists(st.integers(0, len(PIECES) - 1), max_size=20).map(
    lambda which: b"".join(PIECES[i] for i in which)
)
steps = st.lists(
    st.tuples(
        st.sampled_from(["put", "forget", "rank"]),
        st.integers(0, SLOTS - 1),
        some_pieces,
    ),
    max_size=40,
)


@settings(deadline=None, max_examples=150)
@given(steps, st.sampled_from([SHARES, (0.0, 0.0, 0.0), (0.3, 0.5, 0.9)]))
def test_c_ranks_as_the_reference_does(steps, shares):
    c, reference = _native.AnchorTable(SLOTS), ReferenceTable(SLOTS)
    for what, slot, raw in steps:
        if what == "put":
            c.put(slot, _native.Anchors(raw))
            reference.put(slot, ReferenceAnchors(raw))
        elif what == "forget":
            c.forget(slot)
            reference.forget(slot)
        else:
            sought, likewise = _native.Anchors(raw), ReferenceAnchors(raw)
            ranked, _ = found = c.rank(sought, *shares)
            assert found == reference.rank(likewise, *shares)
            slots = [at for at, _ in ranked]
            assert c.runs(sought, slots) == reference.runs(likewise, slots)


def test_many_bases_with_many_anchors():
    """More than the table has room for at first; what two have is owned by the later."""
    made = random.Random(3)
    raws = [made.randbytes(40_000) + PIECES[i % 30] * 3 for i in range(300)]
    c, reference = _native.AnchorTable(300), ReferenceTable(300)
    for table, anchors in ((c, _native.Anchors), (reference, ReferenceAnchors)):
        for slot, raw in enumerate(raws):
            table.put(slot, anchors(raw))
        for slot in range(0, 300, 3):
            table.forget(slot)
    for slot, raw in enumerate(raws):
        ranked, shift = c.rank(_native.Anchors(raw), *SHARES)
        assert (ranked, shift) == reference.rank(ReferenceAnchors(raw), *SHARES)
        if slot % 3:
            assert ranked[0] == (slot, 1.0)
            assert shift == 0
    assert any(len(reference._bases[slot]) > 64 for slot in range(300))


def test_the_first_says_how_much_further_on_it_has_what_is_sought():
    for table, anchors in (
        (_native.AnchorTable(2), _native.Anchors),
        (ReferenceTable(2), ReferenceAnchors),
    ):
        table.put(0, anchors(b"".join(PIECES[:6])))
        table.put(1, anchors(b"".join(PIECES[8:])))
        ranked, shift = table.rank(anchors(b"".join(PIECES[2:9])), *SHARES)
        assert [slot for slot, _ in ranked] == [0, 1]
        assert shift == 2 * PIECE
        assert len(ranked) <= RANKED_MAX


@pytest.mark.parametrize("slots", [0, -1, 1 << 17])
def test_a_table_has_a_bounded_number_of_slots(slots):
    with pytest.raises(ValueError, match="slots"):
        _native.AnchorTable(slots)


@pytest.mark.parametrize("slot", [-1, 3, 1 << 40])
def test_there_is_no_slot_beyond_them(slot):
    table = _native.AnchorTable(3)
    with pytest.raises(IndexError):
        table.put(slot, _native.Anchors(PIECES[0]))
    with pytest.raises(IndexError):
        table.forget(slot)


def test_an_empty_table_ranks_nothing():
    table = _native.AnchorTable(3)
    assert table.rank(_native.Anchors(b""), *SHARES) == ([], 0)
    some = _native.Anchors(PIECES[0] * 3)
    assert len(some) > 0
    assert table.rank(some, *SHARES) == ([], 0)
    table.put(0, _native.Anchors(b""))
    assert table.rank(some, *SHARES) == ([], 0)


def test_a_table_takes_anchors_only():
    table = _native.AnchorTable(3)
    for each in (PIECES[0], None, {}):
        with pytest.raises(TypeError):
            table.put(0, each)
        with pytest.raises(TypeError):
            table.rank(each, *SHARES)
        with pytest.raises(TypeError):
            table.runs(each, [0])


def test_anchors_may_go_once_they_were_put():
    table, raw = _native.AnchorTable(3), b"".join(PIECES)
    table.put(1, _native.Anchors(raw))
    gone = [_native.Anchors(PIECES[i]) for i in range(30)]
    del gone
    assert table.rank(_native.Anchors(raw), *SHARES) == ([(1, 1.0)], 0)
