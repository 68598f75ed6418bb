"""Whether what several saw of one name, and did to it, at overlapping times, could have been done
by them one after the other (Herlihy and Wing, 1990)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Value = bytes | None
# The states that it may leave, if it could have had that result in this state; else none.
Apply = Callable[[Value, Any], tuple[Value, ...]]


@dataclass
class Op:
    """One call, from `begin` to `end`, by a clock that all share; `result` None if it never
    returned, so that it may have had its effect at any time since, or none."""

    what: str
    apply: Apply
    begin: int
    end: int | None = None
    result: Any = None


def write(value: Value) -> Apply:
    """Also a deletion that does not say whether there was anything."""
    return lambda state, result: (value,)


def write_if_absent(value: bytes) -> Apply:
    def apply(state: Value, result: Any) -> tuple[Value, ...]:
        if result == "exists":
            return () if state is None else (state,)
        return (value,) if state is None else ()

    return apply


def append(more: bytes) -> Apply:
    def apply(state: Value, result: Any) -> tuple[Value, ...]:
        return (state,) if result == "changed" else ((state or b"") + more,)

    return apply


def delete(state: Value, result: Any) -> tuple[Value, ...]:
    """Of two that delete at once, both may have done it."""
    return () if state is not None and result == "absent" else (None,)


def delete_again(state: Value, result: Any) -> tuple[Value, ...]:
    """Perhaps."""
    return (state, None)


def read(state: Value, result: Any) -> tuple[Value, ...]:
    return (state,) if state == result else ()


def is_linearizable(ops: Sequence[Op], state: Value) -> bool:
    left = tuple(range(len(ops)))
    seen: set[tuple[tuple[int, ...], Value]] = set()

    def search(left: tuple[int, ...], state: Value) -> bool:
        if all(ops[i].end is None for i in left):
            return True
        if (left, state) in seen:
            return False
        seen.add((left, state))
        first_end = min(end for i in left if (end := ops[i].end) is not None)
        for i in left:
            if ops[i].begin < first_end:
                rest = tuple(j for j in left if j != i)
                if any(search(rest, after) for after in ops[i].apply(state, ops[i].result)):
                    return True
        return False

    return search(left, state)
