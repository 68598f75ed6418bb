"""The table of anchors: C's ranks as its reference does."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from castore.stream.anchor_table import RANKED_MAX, ReferenceTable

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
        st.sampled_from(["put", "put sought", "forget", "rank"]),
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
            c.put(slot, raw)
            reference.put(slot, raw)
        elif what == "put sought":
            c.put_sought(slot)
            reference.put_sought(slot)
        elif what == "forget":
            c.forget(slot)
            reference.forget(slot)
        else:
            assert c.seek(raw) == reference.seek(raw)
            ranked, _ = found = c.rank(*shares)
            assert found == reference.rank(*shares)
            assert c.runs([at for at, _ in ranked]) == reference.runs([at for at, _ in ranked])


def test_many_bases_with_many_anchors():
    """More than the table has room for at first; what two have is owned by the later."""
    made = random.Random(3)
    raws = [made.randbytes(40_000) + PIECES[i % 30] * 3 for i in range(300)]
    c, reference = _native.AnchorTable(300), ReferenceTable(300)
    for table in (c, reference):
        for slot, raw in enumerate(raws):
            table.put(slot, raw)
        for slot in range(0, 300, 3):
            table.forget(slot)
    for slot, raw in enumerate(raws):
        assert c.seek(raw) == reference.seek(raw)
        ranked, shift = c.rank(*SHARES)
        assert (ranked, shift) == reference.rank(*SHARES)
        if slot % 3:
            assert ranked[0] == (slot, 1.0)
            assert shift == 0
    assert any(len(reference._bases[slot]) > 64 for slot in range(300))


def test_the_first_says_how_much_further_on_it_has_what_is_sought():
    for table in (_native.AnchorTable(2), ReferenceTable(2)):
        table.put(0, b"".join(PIECES[:6]))
        table.put(1, b"".join(PIECES[8:]))
        table.seek(b"".join(PIECES[2:9]))
        ranked, shift = table.rank(*SHARES)
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
        table.put(slot, PIECES[0])
    with pytest.raises(IndexError):
        table.forget(slot)


def test_an_empty_table_ranks_nothing():
    table = _native.AnchorTable(3)
    assert table.rank(*SHARES) == ([], 0)
    assert table.seek(PIECES[0] * 3) > 0
    assert table.rank(*SHARES) == ([], 0)
    table.put(0, b"")
    assert table.rank(*SHARES) == ([], 0)
