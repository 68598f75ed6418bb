"""Guards of collectors and writers on S3, taken out of the code: some meeting loses data.

Those of time (a session's day, a pin's week) and the order of pins and names need longer histories
than these; test_s3_model.py has them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import pytest
from gc_races import SIZE, Machine, broken, collects, late, losses, meetings, repacks, reuse
from gc_stores import World, noise

from castore.format.s3 import session_of
from castore.s3.client.probe import ServerFeatures
from castore.s3.client.put_once import put_once
from castore.s3.gc import collect as s3
from castore.s3.gc import state as s3_state
from castore.s3.gc.mark import Pins, S3Marker
from castore.s3.lease import WriterLease

Make = Callable[[], World]
Patch = Callable[[pytest.MonkeyPatch], None]


@pytest.fixture(autouse=True)
def probed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "castore.s3.gc.server.probe", lambda bucket: ServerFeatures(True, True, True, True, True)
    )


def meet(left: Any, right: Any) -> Callable[[Make], Iterator[list[str]]]:
    def run(make: Make) -> Iterator[list[str]]:
        for world, one, two, _ in meetings(make, left, right):
            yield losses(world, one, two)

    return run


def no_pins(patch: pytest.MonkeyPatch) -> None:
    """They are there, and list nothing."""
    pin = WriterLease._pin
    patch.setattr(WriterLease, "_pin", lambda session, packs: pin(session, ()))


def no_plans(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(WriterLease, "_condemned", lambda session, packs: set())


def no_looking(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("castore.s3.lease.absent_packs", lambda *_: set())


def plans_before_pins(patch: pytest.MonkeyPatch) -> None:
    pin, condemned = WriterLease._pin, WriterLease._condemned
    read: dict[int, set[bytes]] = {}

    def reads_first(session: WriterLease, packs: Any) -> None:
        read[id(session)] = condemned(session, packs)
        pin(session, packs)

    patch.setattr(WriterLease, "_pin", reads_first)
    patch.setattr(WriterLease, "_condemned", lambda session, packs: read[id(session)])


def own_packs_forgotten(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Pins, "protect", lambda pins, pack_id: pack_id in pins.packs)


def pins_forgotten(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Pins, "protect", lambda pins, pack_id: session_of(pack_id) in pins.sessions)


def packs_last(patch: pytest.MonkeyPatch) -> None:
    packs = S3Marker.packs

    def garbage(
        marker: S3Marker, before: dict[bytes, int], *, expired_before: float
    ) -> dict[bytes, int]:
        pins = marker.pins(expired_before)
        referred = set().union(*marker.references())
        return {
            i: size
            for i, size in packs(marker).items()
            if not pins.protect(i) and i not in referred
        }

    patch.setattr(S3Marker, "garbage", garbage)


def one_look(patch: pytest.MonkeyPatch) -> None:
    phase = s3._Collection._second_phase

    def removes(collection: Any) -> None:
        with pytest.MonkeyPatch.context() as blind:
            blind.setattr(S3Marker, "garbage", lambda marker, packs, expired_before: packs)
            phase(collection)

    patch.setattr(s3._Collection, "_second_phase", removes)


def overwrites_anything(patch: pytest.MonkeyPatch) -> None:
    def put(bucket: Any, key: str, make_body: Any, **conditions: Any) -> Any:
        return put_once(bucket, key, make_body)

    patch.setattr("castore.s3.namespace.writing.put_once", put)


def retires_first(patch: pytest.MonkeyPatch) -> None:
    """Before the packs are removed."""
    remove = s3._Collection._remove

    def eager(collection: Any, doomed: dict[bytes, int]) -> None:
        collection._state.retire()
        with pytest.MonkeyPatch.context() as done:
            done.setattr(s3_state.CollectorState, "retire", lambda state: None)
            remove(collection, doomed)

    patch.setattr(s3._Collection, "_remove", eager)


def pins_dropped(patch: pytest.MonkeyPatch) -> None:
    """Also while an attempt may land."""
    patch.setattr(
        WriterLease, "any_unknown", property(lambda s: False, lambda s, v: None), raising=False
    )


def overwrite_moved(machine: Machine) -> None:
    """What a collector moves, whose manifest it puts anew."""
    machine.puts("half", noise(SIZE, 5))
    machine.store.close()


def lose(make: Make) -> Iterator[list[str]]:
    for world, _ in late(make, reuse):
        yield broken(world)


GUARDS: dict[str, tuple[Patch, Callable[[Make], Iterator[list[str]]]]] = {
    "pins": (no_pins, meet(reuse, collects)),
    "plans are read": (no_plans, meet(reuse, collects)),
    "packs are looked for": (no_looking, meet(reuse, collects)),
    "pins before plans": (plans_before_pins, meet(reuse, collects)),
    "own packs": (own_packs_forgotten, meet(reuse, collects)),
    "pinned packs": (pins_forgotten, meet(reuse, collects)),
    "packs first": (packs_last, meet(reuse, collects)),
    "a second look": (one_look, meet(reuse, collects)),
    "rewritten if it matches": (overwrites_anything, meet(overwrite_moved, repacks)),
    "retired last": (retires_first, meet(reuse, collects)),
    "pins kept for what may land": (pins_dropped, lose),
}


@pytest.mark.long
@pytest.mark.damages_store("by what the guard keeps from happening")
@pytest.mark.parametrize("guard", GUARDS)
def test_without_the_guard_something_is_lost(
    guard: str, make_world: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    patch, scenario = GUARDS[guard]
    assert not any(islice(scenario(make_world), 3))  # it is the guard that makes the difference
    patch(monkeypatch)
    assert any(scenario(make_world)), "the scenario does not show what the guard is for"
