"""Which packs are worth rewriting, in a store of either kind."""

from __future__ import annotations

from castore.stream.repack_choice import PackFacts, choose

SMALL_BYTES, SMALL_PACKS_MAX, FRAMES_MAX = 1 << 20, 8, 1000


def facts(number: int, size: int, live: int, frames: int = 10) -> PackFacts:
    return PackFacts(bytes([number] * 16), number, size, live, frames)


def chosen(*packs: PackFacts, below: float = 0.5, most: int | None = None) -> list[int]:
    found = choose(
        packs,
        repack_below=below,
        bytes_max=most,
        small_bytes=SMALL_BYTES,
        small_packs_max=SMALL_PACKS_MAX,
        frames_max=FRAMES_MAX,
    )
    return [pack.created_ns for pack in found]


BIG = SMALL_BYTES * 4
FULL, HALF, SPARSE = facts(1, BIG, BIG - 400), facts(2, BIG, BIG // 2), facts(3, BIG, 9)
FEW = [facts(10 + n, 2000, 1500) for n in range(SMALL_PACKS_MAX)]


def test_sparse_ones() -> None:
    assert chosen(FULL, HALF) == []
    assert chosen(FULL, HALF, SPARSE) == [3]
    assert chosen(FULL, SPARSE, HALF, below=0.6) == [2, 3]


def test_no_more_than_is_asked_for_and_the_emptiest_first() -> None:
    assert chosen(FULL, SPARSE, HALF, below=0.6, most=100) == [3]
    sizes = {1: 40 << 20, 2: 10 << 20, 3: 60 << 20}
    packs = [facts(n, 100 << 20, live, 600) for n, live in sizes.items()]
    assert chosen(*packs) == [1, 2]
    assert chosen(*packs, most=20 << 20) == [2]


def test_small_ones_if_they_are_many() -> None:
    assert chosen(FULL, *FEW) == []
    assert chosen(FULL, *FEW, facts(99, 2000, 1500)) == [*range(10, 10 + len(FEW)), 99]
    assert chosen(SPARSE, *FEW) == [3, *range(10, 10 + len(FEW))]
    assert chosen(*FEW, facts(99, 2000, 1500), most=3500) == [10, 11]


def test_small_ones_that_sparse_ones_become_are_counted() -> None:
    """Frames that are moved in several goes may leave a small pack behind each."""
    sparse = facts(3, BIG, 9, frames=FRAMES_MAX)
    assert chosen(SPARSE, *FEW[2:]) == [3]
    assert chosen(sparse, *FEW[2:]) == [3]
    assert chosen(SPARSE, *FEW[1:]) == [3]
    assert chosen(sparse, *FEW[1:]) == [3, *range(11, 10 + len(FEW))]
    large = facts(3, 64 << 20, 16 << 20)
    assert chosen(large, *FEW[1:]) == [3, *range(11, 10 + len(FEW))]


def test_it_comes_to_an_end() -> None:
    tiny = [facts(50 + n, 2000, 1500, frames=FRAMES_MAX // 2) for n in range(20)]
    assert chosen(FULL, *tiny) == [], "no two of them are moved at a time"
    assert chosen(*FEW, facts(99, 2000, 1500), most=1500) == [], "one is not merged with itself"
    assert chosen(facts(1, 64 + 10 + 28 + 40, 10, frames=1)) == [], "tiny, but all of it alive"
    whole = [pack.live_size for pack in FEW]
    assert chosen(*(facts(n, size, 1500) for n, size in enumerate(whole)), below=1.0) == []
