"""A rebuild of what a machine knows of a store on S3, beside others that use the store."""

from __future__ import annotations

import itertools
from collections.abc import Callable

from gc_races import Machine
from gc_stores import World, noise

import castore


def test_what_is_put_meanwhile_is_not_lost(make_world: Callable[[], World]) -> None:
    """Packs are listed before names: a name may lead to a pack that came after that."""
    for j in itertools.count():
        world = make_world()
        one = Machine(world, "one")
        one.store.puts("before", noise(70_000, 1))
        one.begin()
        reports: list[castore.RebuildReport] = []

        def rebuild(machine: Machine, reports: list[castore.RebuildReport] = reports) -> None:
            reports.append(machine.store.rebuild_index())

        stopped = one.start(rebuild, stop_at=j)
        with world.open("other") as other:
            other.puts("meanwhile", noise(70_000, 2))
        one.finish()
        assert one.error is None
        assert [report.lost for report in reports] == [[]], j
        world.close()
        if not stopped:
            assert j > 2
            break
