"""Whether what was answered can have happened one after the other: registers, checked as they run
(Herlihy and Wing, 1990).

A History has what a name may hold by now, given all answers so far. An operation takes effect at
one moment between its invocation and its answer; one that is never answered does so at any later
time, or never. Where no order of effects explains an answer, nothing is possible any more.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

Id = Hashable
Value = str | bytes | None
# What an operation may come to where there is this value: (the answer, the value after it), each.
Effects = Callable[[Id, Value], Iterable[tuple[object, Value]]]


class Operation(NamedTuple):
    """`write`, `create` (if absent), `replace` (`seen`), `delete`, `remove` (`seen`), `erase` (what
    there may be), or `read`."""

    verb: str
    value: Value = None
    seen: Value = None


class Possible(NamedTuple):
    value: Value
    done: frozenset[tuple[Id, object]] = (
        frozenset()
    )  # with their answers, which are yet to be given


class History(NamedTuple):
    possible: frozenset[Possible]
    pending: frozenset[Id] = frozenset()


def begin(value: Value) -> History:
    return History(frozenset([Possible(value)]))


def invoke(history: History, operation: Id) -> History:
    return history._replace(pending=history.pending | {operation})


def answer(history: History, effects: Effects, answered: Id, result: object) -> History:
    """The history once `answered` was: whatever is pending may have taken effect before it, in any
    order. `possible` is empty if `result` can't be explained."""
    found: set[Possible] = set()
    met = set(history.possible)
    left = list(met)
    while left:
        now = left.pop()
        done = dict(now.done)
        if answered in done:
            if done[answered] == result:
                found.add(now._replace(done=now.done - {(answered, result)}))
            continue
        for operation in history.pending - done.keys():
            for came, value in effects(operation, now.value):
                following = Possible(value, now.done | {(operation, came)})
                if following not in met:
                    met.add(following)
                    left.append(following)
    return History(frozenset(found), history.pending - {answered})


def effects_of(operations: Mapping[Id, Operation]) -> Effects:
    return lambda operation, value: [take_effect(operations[operation], value)]


def take_effect(operation: Operation, value: Value) -> tuple[object, Value]:
    """(the answer, the value after it)."""
    verb = operation.verb
    if verb == "read":
        return value, value
    if verb in ("write", "erase"):
        return "ok", operation.value
    if verb == "create":
        return ("exists", value) if value is not None else ("ok", operation.value)
    if verb == "delete":
        return ("absent", None) if value is None else ("ok", None)
    if verb in ("replace", "remove"):
        return ("ok", operation.value) if value == operation.seen else ("changed", value)
    raise ValueError(verb)


@dataclass
class Call:
    """One that was made, from `began` to `ended` by a clock that all share. `effects` are what it
    may come to where there is a value."""

    what: str
    effects: Callable[[Value], Iterable[tuple[object, Value]]]
    began: int
    ended: int | None = None
    result: object = None


def are_explained(calls: Sequence[Call], value: Value) -> bool:
    """Whether what came of all calls can have happened one after the other, from this value on."""
    events = [(call.began, i, False) for i, call in enumerate(calls)]
    events += [(call.ended, i, True) for i, call in enumerate(calls) if call.ended is not None]
    history = begin(value)

    def effects(call: Id, there: Value) -> Iterable[tuple[object, Value]]:
        assert isinstance(call, int)
        return calls[call].effects(there)

    for _, i, has_ended in sorted(events, key=lambda event: event[0]):
        if has_ended:
            history = answer(history, effects, i, calls[i].result)
        else:
            history = invoke(history, i)
    return bool(history.possible)
