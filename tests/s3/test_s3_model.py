"""The S3 protocol as implemented, in every order of its steps; and what each guard is there for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
from s3_model import A, B, Rules, Scenario, Version, explore

PUT = (("put", 0, A),)
TWO_PUTS = (("put", 0, A), ("put", 1, A | B))
OWN = (("put", 0, 0),)
COPY = (("copy", 0, 2),)
RENAME = (("rename", 0, 2),)
DELTA = (("delta", 0, A),)
FOR_A = (None, None, Version("z", A, "z0"))
FOR_B = (None, None, Version("z", B, "z0"))
BOTH = (Version("b", B, "b0"), None, Version("z", A | B, "z0"))
WITH_BASES = (None, None, Version("z", A | B, "z0", A))

PLAIN = Scenario((PUT,), deletes=(2,))
SESSION = Scenario((TWO_PUTS,), deletes=(2,))
LEADERS = Scenario((PUT,), collectors=2, deletes=(2,))
COPIES = Scenario((COPY,), deletes=(2,))
RENAMES = Scenario((RENAME,), collectors=2)
REPLACED = Scenario((RENAME, (("put", 2, 0),)))
AGES = Scenario((PUT,), deletes=(2,), ages=True)
AGED = Scenario((OWN,), ages=True)
LATE = Scenario((OWN, OWN), late=True, names=(None,))
REPACKS = Scenario((), repacks=True, late=True, ages=True)
REWRITES = Scenario(((("put", 2, B),),), repacks=True)
STUCK = Scenario((PUT,), deletes=(1,), stuck=A, names=(None, Version("z", A | B, "z0")))
MENDED = Scenario((PUT,), deletes=(2,), loses=True)
HELD = Scenario((OWN,), loses=True, trying=B, names=FOR_A)
DELTAS = Scenario((DELTA,), deletes=(2,))
COPIED_BASES = Scenario((COPY,), deletes=(2,), names=WITH_BASES)
REPACKED_BASES = Scenario((DELTA,), repacks=True, names=WITH_BASES)

SAFE = {
    "one put": PLAIN,
    "two puts of a session": SESSION,
    "two collectors": LEADERS,
    "a copy": COPIES,
    "a rename, two collectors": RENAMES,
    "a rename of a name that is put": REPLACED,
    "pins that age": AGES,
    "requests that land late": LATE,
    "a collector that repacks": REPACKS,
    "repacking beside a put": REWRITES,
    "packs that can't be removed": STUCK,
    "a list that is lost": MENDED,
    "a put with bases": DELTAS,
    "a copy of what has bases": COPIED_BASES,
    "repacking bases beside a put with bases": REPACKED_BASES,
    "a list that is lost beside a writer": HELD,
}
LONG = {
    "two puts, two collectors": replace(SESSION, collectors=2),
    "a copy, two collectors": replace(COPIES, collectors=2),
    "two puts and a rename": Scenario((TWO_PUTS, (("rename", 1, 2),))),
    "a rename there and another back": Scenario((RENAME, (("rename", 2, 0),)), collectors=1),
    "a put, late, that ages": Scenario((PUT,), deletes=(2,), ages=True, late=True),
    "two puts and repacking": Scenario((TWO_PUTS,), repacks=True, deletes=(2,)),
    "a put and late repacking": Scenario((PUT,), repacks=True, deletes=(2,), late=True),
    "a rename and repacking": Scenario((RENAME,), repacks=True, late=True),
    "a put, stuck, two collectors": replace(STUCK, collectors=2),
    "late requests and pins that age": replace(LATE, ages=True),
    "a put with bases and one that reuses": Scenario((DELTA, (("put", 1, A),)), deletes=(2,)),
    "a put with bases, late, that ages": replace(DELTAS, ages=True, late=True),
    "a put with bases, two collectors": replace(DELTAS, collectors=2),
    "a copy of what has bases, repacked": replace(COPIED_BASES, repacks=True),
}

# Without the guard, that scenario loses data; no scenario shows them all.
GUARDS = {
    "pin": PLAIN,
    "state_after_pin": PLAIN,
    "read_state": SESSION,
    "head": PLAIN,
    "head_after_state": PLAIN,
    "copies_rely": COPIES,
    "bases_rely": DELTAS,
    "copies_rely_on_bases": COPIED_BASES,
    "heads_have_bases": DELTAS,
    "check_age": AGED,
    "stale_refused": AGED,
    "keep_pins": LATE,
    "own_packs": Scenario((OWN,)),
    "packs_first": Scenario((OWN,), deletes=(2,)),
    "pins_first": PLAIN,
    "second_look": PLAIN,
    "swap": LEADERS,
    "finish_sweep": LEADERS,
    "await_deletes": LEADERS,
    "carry": STUCK,
    "carry_known": replace(STUCK, collectors=2),
    "repack_pinned": Scenario((), repacks=True),
    "rewrite_if_match": REWRITES,
    "delete_if_match": REPLACED,
    "condemn_anew": MENDED,
    "await_writers": HELD,
}


def some_are_long(cases: Iterable[str], long: set[str]) -> list[Any]:
    return [pytest.param(case, marks=pytest.mark.long if case in long else ()) for case in cases]


# What takes longer than a second.
LONG_SAFE = {
    "two collectors",
    "requests that land late",
    "a list that is lost",
    "a list that is lost beside a writer",
}
LONG_GUARDS = {"swap", "finish_sweep", "await_deletes", "keep_pins", "await_writers", "carry_known"}


@pytest.mark.parametrize("name", some_are_long(SAFE, LONG_SAFE))
def test_no_order_of_steps_loses_anything(name: str) -> None:
    visited, path = explore(SAFE[name], Rules(), states_max=200_000)
    assert path == []
    assert visited > 50


@pytest.mark.long
@pytest.mark.parametrize("scenario", LONG.values(), ids=LONG)
def test_no_order_of_more_steps_does(scenario: Scenario) -> None:
    visited, path = explore(scenario, Rules(), states_max=6_000_000)
    assert path == []
    assert visited > 1000


@pytest.mark.parametrize("guard", some_are_long(GUARDS, LONG_GUARDS))
def test_each_guard_is_needed(guard: str) -> None:
    scenario = GUARDS[guard]
    _, path = explore(scenario, replace(Rules(), **{guard: False}), states_max=400_000)
    assert path != []
    if scenario not in (*SAFE.values(), *LONG.values()):
        assert explore(scenario, Rules(), states_max=200_000)[1] == []


def test_every_guard_has_its_scenario() -> None:
    assert set(GUARDS) == set(Rules.__dataclass_fields__)
