"""Which packs it pays to rewrite on S3, and what is said of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from cli_runs import Result
from gc_stores import DAY, URL, World, collect, noise

import castore
from castore.errors import CostsNothing
from castore.s3.gc import survey
from castore.s3.gc.worth import Bargain, Referrers
from castore.s3.session import MOVED_GAP_BYTES
from castore.stream.prices import HORIZON_S, Prices
from castore.stream.repack_choice import PackFacts

MB = 10**6
PACK = 16 << 20
MONTH = 30 * DAY


def pack(number: int, live_share: float, size: int = PACK) -> PackFacts:
    live = int(size * live_share)
    return PackFacts(number.to_bytes(16, "big"), 0, size, live, live // 65_536)


def bargain(
    packs: list[PackFacts],
    manifests: list[list[int]],
    *,
    kept_s: float = HORIZON_S,
    prices: Prices | None = None,
    horizon_s: float = HORIZON_S,
    edges_max: int = 0,
) -> Bargain:
    """`manifests` have the packs with these numbers; `kept_s` is for how long all garbage was."""
    referrers = Referrers(edges_max)
    for number, each in enumerate(manifests):
        hashed = number * 0x9E3779B97F4A7C15 % (1 << 64)
        referrers.add(hashed, [i.to_bytes(16, "big") for i in each])
    rents = {p.pack_id: (p.size - p.live_size) * kept_s for p in packs}
    ages = dict.fromkeys(rents, kept_s)
    return Bargain(referrers, prices or Prices(), horizon_s, PACK, rents=rents, ages_s=ages)


def numbers(packs: list[PackFacts]) -> list[int]:
    return [int.from_bytes(pack.pack_id, "big") for pack in packs]


def test_a_pack_that_many_share_is_left_and_one_of_few_is_not() -> None:
    packs = [pack(1, 0.3), pack(2, 0.3)]
    names = [[1]] * 1000 + [[2]] * 10  # a thousand manifests cost $.0054, what is saved is $.0008
    assert numbers(bargain(packs, names).worthwhile(packs)) == [2]


def test_what_manifests_cost_is_borne_together() -> None:
    packs = [pack(i, 0.3) for i in range(20)]
    names = [list(range(20))] * 1000
    assert numbers(bargain(packs, names).worthwhile(packs)) == list(range(20))
    assert bargain(packs, names).worthwhile(packs[:3]) == []


def test_one_bears_more_where_another_has_others_to_bear() -> None:
    """Each can bear 148 manifests. In equal parts the first would have 114 and half of 148."""
    packs = [pack(1, 0.3), pack(2, 0.3)]
    names = [[1]] * 114 + [[1, 2]] * 148
    assert numbers(bargain(packs, names).worthwhile(packs)) == [1, 2]
    assert numbers(bargain(packs, [*names, *[[1]] * 60]).worthwhile(packs)) == [2]


def test_nothing_pays_at_once_and_all_does_in_time() -> None:
    packs = [pack(1, 0.3)]
    names = [[1]] * 40
    days = [day for day in range(90) if bargain(packs, names, kept_s=day * DAY).worthwhile(packs)]
    assert days == list(range(days[0], 90))
    assert 10 < days[0] < 40  # $.00022 for 40 manifests, $.000009 a day
    assert bargain(packs, names, horizon_s=5 * DAY).worthwhile(packs) == []


def test_prices_decide() -> None:
    packs = [pack(1, 0.3)]
    names = [[1]] * 1000
    free = Prices(put_million=0, get_million=0)
    assert numbers(bargain(packs, names, prices=free).worthwhile(packs)) == [1]
    assert bargain(packs, names[:10], prices=Prices(gb_moved=0.09)).worthwhile(packs) == []
    with pytest.raises(ValueError, match="negative"):
        Prices(gb_month=-1)


def test_what_is_nearly_all_alive_is_left_whatever_is_free() -> None:
    packs = [pack(1, 0.95)]
    assert bargain(packs, [[1]], prices=Prices(0, 0)).worthwhile(packs) == []


def test_small_ones_are_merged_for_the_looks_that_saves() -> None:
    small = [pack(i, 1.0, 200_000) for i in range(50)]
    assert len(bargain(small, [[i] for i in range(50)]).worthwhile(small)) == 50
    shared = [[i] for i in range(50)] * 20
    assert bargain(small, shared).worthwhile(small) == []


def test_a_sample_of_manifests_stands_for_all() -> None:
    packs = [pack(i, 0.3) for i in range(40)]
    names = [[i % 20, 20 + i % 20] for i in range(20_000)]
    whole = bargain(packs, names).estimate(packs)
    sampled = bargain(packs, names, edges_max=4000).estimate(packs)
    assert whole.manifests == 20_000
    assert abs(sampled.manifests - 20_000) < 3000
    assert sampled.cost == pytest.approx(whole.cost, rel=0.15)


def test_an_estimate_counts_what_is_done() -> None:
    packs = [pack(1, 0.5), pack(2, 0.5)]
    found = bargain(packs, [[1, 2, 3], [2], [3]]).estimate(packs)
    assert found.manifests == 2
    # For each of two manifests a GET and a PUT, three packs that these have are looked for, and
    # what is alive is read and goes into one pack.
    reads = 2 * (PACK // MOVED_GAP_BYTES + 1)
    assert found.requests == 2 + 2 + 3 + reads + 1
    assert found.bytes_freed == sum(p.size - p.live_size for p in packs)
    assert found.saves == pytest.approx(found.bytes_freed / 1e9 * 3 * 0.023)


def test_no_more_than_it_may_cost() -> None:
    packs = [pack(i, 0.3 + i / 100) for i in range(40)]
    names = [[i] for i in range(40) for _ in range(10 + i)]
    whole = bargain(packs, names)
    cost = whole.estimate(packs).cost
    some = whole.within(packs, cost / 3)
    assert 0 < len(some) < 40
    assert cost / 6 < whole.estimate(some).cost <= cost / 3
    assert numbers(some) == list(range(len(some)))  # those that save most for it
    assert whole.within(packs, cost) == packs
    assert whole.within(packs, 0) == []


def test_of_packs_that_are_alike_as_many_as_may_cost_so_much() -> None:
    packs = [pack(i, 0.3) for i in range(40)]
    whole = bargain(packs, [[i] for i in range(40) for _ in range(10)])
    cost = whole.estimate(packs).cost
    for count in (1, 7, 39):
        bound = cost * (count + 0.5) / 40
        assert len(whole.within(packs, bound)) == count
        assert whole.estimate(whole.within(packs, bound)).cost <= bound


@pytest.mark.parametrize("edges_max", [0, 4])
def test_a_bound_where_no_manifest_costs_anything_or_is_in_the_sample(edges_max: int) -> None:
    packs = [pack(i, 0.3) for i in range(12)]
    moved = Prices(put_million=0, get_million=0, gb_moved=0.09)
    prices = Prices() if edges_max else moved
    whole = bargain(packs, [[i] for i in range(12)], prices=prices, edges_max=edges_max)
    cost = whole.estimate(packs).cost
    some = whole.within(packs, cost / 2)
    assert some
    assert whole.estimate(some).cost <= cost / 2
    assert whole.within(packs, 0) == []


# ---------------------------------------------------------------- stores


def mostly_dead(world: World) -> castore.Store:
    store = world.open()
    with store.transaction() as transaction:
        for name in "abc":
            transaction.puts(name, noise(70_000, ord(name)))
    store.copy("a", "copy")
    store.delete("b")
    store.delete("c")
    store._backend._end_session()
    return store


def test_a_collection_leaves_what_does_not_pay(world: World) -> None:
    store = mostly_dead(world)
    world.pass_time(90 * DAY)
    report = store.gc(grace_s=0)
    assert (report.packs_rewritten, report.repack_requests) == (0, 0)
    assert 130_000 < report.bytes_left < 150_000
    cheap = castore.Prices(gb_month=0.023e6)
    report = store.gc(grace_s=0, prices=cheap)
    assert (report.packs_rewritten, report.packs_removed, report.bytes_left) == (1, 1, 0)
    assert report.repack_manifests == 2
    assert report.repack_saves > report.repack_cost > 0
    assert store.gets("copy") == noise(70_000, ord("a"))
    assert store.gc(grace_s=0, prices=cheap).found_nothing


@pytest.mark.plain("footers that name bases are longer")
def test_a_dry_run_says_what_a_run_would_cost(world: World) -> None:
    store = mostly_dead(world)
    foretold = collect(store, repack_below=0.5, dry_run=True)
    report = collect(store, repack_below=0.5)
    for each in ("manifests", "requests", "cost", "bytes_freed", "saves"):
        assert getattr(foretold, f"repack_{each}") == getattr(report, f"repack_{each}") > 0
    assert abs(report.bytes_freed - report.bytes_rewritten - report.repack_bytes_freed) < 1000


def test_garbage_is_remembered_from_run_to_run(world: World) -> None:
    """On a machine that has looked before nothing is guessed: rent is due from then on."""
    prices = castore.Prices(gb_month=0.023e3)  # 140 kB cost as much as 140 MB
    store = world.open()
    with store.transaction() as transaction:
        for name in "abc":
            transaction.puts(name, noise(70_000, ord(name)))
    store._backend._end_session()
    world.pass_time(200 * DAY)
    assert store.gc(grace_s=0, prices=prices).bytes_left == 0
    store.delete("b")
    store.delete("c")
    store._backend._end_session()
    assert store.gc(grace_s=0, prices=prices).packs_rewritten == 0  # though the pack is old
    days = 0
    while not store.gc(grace_s=0, prices=prices).packs_rewritten:
        world.pass_time(DAY / 8)
        days += 1 / 8
        assert days < 30
    # One manifest and one pack of 70 kB: some $.0000062, and a day's rent is $.0001.
    assert days == 1 / 8
    assert store.gets("a") == noise(70_000, ord("a"))


def test_where_nothing_is_remembered_the_pack_s_age_tells(world: World) -> None:
    prices = castore.Prices(gb_month=0.023e3)
    mostly_dead(world).close()
    assert world.open("a machine").gc(grace_s=0, prices=prices).packs_rewritten == 0
    world.pass_time(DAY)
    assert world.open("another").gc(grace_s=0, prices=prices, dry_run=True).packs_rewritten == 1


def test_a_bound_in_dollars(world: World) -> None:
    store = mostly_dead(world)
    assert collect(store, repack_below=0.5, max_cost=0.00001).packs_rewritten == 0
    assert collect(store, repack_below=0.5, max_cost=1.0).packs_rewritten == 1


def test_small_packs_are_left_where_merging_does_not_pay(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(survey, "SMALL_PACKS_MAX", 5)
    store = world.open()
    for i in range(8):
        store.puts(f"n{i}", noise(70_000, i))
    store._backend._end_session()
    assert store.gc(grace_s=0, horizon_s=DAY).found_nothing
    world.pass_time(90 * DAY)
    assert store.gc(grace_s=0).packs_rewritten == 8


def test_locally_it_costs_no_dollars(tmp_path: Path) -> None:
    with castore.open(tmp_path / "store") as store:
        store.puts("a", b"a")
        with pytest.raises(CostsNothing, match="max-repack-bytes"):
            store.gc(max_cost=1.0)
        assert store.gc().found_nothing


def test_the_command_line(bare: Callable[..., Result], tmp_path: Path) -> None:
    store = tmp_path / "store"
    assert bare("-r", store, "put", "-", "seed", stdin=b"seed").code == 0
    refused = bare("-r", store, "gc", "--max-cost", "1")
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "--max-repack-bytes" in refused.err
    for wrong in (
        ["--repack-below", "2"],
        ["--max-cost", "much"],
        ["--repack-below", "-1"],
        ["--grace", "99999999999d"],  # no calendar says when that is over
        ["--horizon", "9" * 400 + "d"],
    ):
        refused = bare("-r", store, "gc", *wrong)
        assert (refused.code, refused.err.count("\n")) == (2, 1), refused.err
    assert bare("-r", store, "gc", "--repack-below", "0.9", "--horizon", "30d").code == 0


@pytest.mark.plain("sizes")
def test_the_command_line_says_what_it_costs(
    world: World, bare: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    mostly_dead(world).close()
    monkeypatch.setenv("CASTORE_CACHE_DIR", str(world.cache_of("command")))
    left = bare("-r", URL, "gc", "--grace", "1h", "-n")
    assert "KiB of garbage stay in packs" in left.text
    foretold = bare("-r", URL, "gc", "--repack-below", "50%", "-n")
    assert "repacking would cost $0.0000, for " in foretold.text
    assert "(2 manifests put anew), and free 139.2 KiB" in foretold.text
    refused = bare("-r", URL, "gc", "--repack-below", "50%", "--max-cost", "0.00001", "-n")
    assert "repacking" not in refused.text
    done = bare("-r", URL, "--json", "gc", "--repack-below", "0.5", "--grace", "0s")
    [report] = done.documents
    assert (report["packs_rewritten"], report["repack_manifests"]) == (1, 2)
    assert 0 < report["repack_cost"] < 0.001
