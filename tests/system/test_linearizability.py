"""The check of histories that models use, beside one that tries every order."""

from __future__ import annotations

import itertools
import random

from linearizability import Operation, Value, answer, begin, effects_of, invoke, take_effect

OPERATIONS = {
    "a": Operation("write", "a"),
    "b": Operation("create", "b"),
    "c": Operation("replace", "c", "a"),
    "d": Operation("delete"),
    "e": Operation("remove", None, "b"),
    "r": Operation("read"),
    "s": Operation("read"),
}


def explained(invoked: dict[str, int], answers: dict[str, tuple[int, object]]) -> bool:
    """Whether some order of the operations gives these answers; those without may be left out."""
    open_ones = [name for name in invoked if name not in answers]
    for count in range(len(open_ones) + 1):
        for more in itertools.combinations(open_ones, count):
            for order in itertools.permutations([*answers, *more]):
                if in_time(order, invoked, answers) and as_answered(order, answers):
                    return True
    return False


def in_time(
    order: tuple[str, ...], invoked: dict[str, int], answers: dict[str, tuple[int, object]]
) -> bool:
    """Whether nothing comes after what was invoked when it had been answered."""
    return not any(
        later in answers and answers[later][0] < invoked[earlier]
        for earlier, later in itertools.combinations(order, 2)
    )


def as_answered(order: tuple[str, ...], answers: dict[str, tuple[int, object]]) -> bool:
    value: Value = None
    for name in order:
        result, value = take_effect(OPERATIONS[name], value)
        if name in answers and answers[name][1] != result:
            return False
    return True


def test_it_agrees_with_trying_every_order() -> None:
    drawn = random.Random(1)
    right = wrong = 0
    for _ in range(400):
        history = begin(None)
        invoked: dict[str, int] = {}
        answers: dict[str, tuple[int, object]] = {}
        for time in range(9):
            open_ones = [name for name in invoked if name not in answers]
            left = [name for name in OPERATIONS if name not in invoked]
            if left and len(invoked) < 5 and (not open_ones or drawn.random() < 0.5):
                name = drawn.choice(left)
                invoked[name] = time
                history = invoke(history, name)
            elif open_ones:
                name = drawn.choice(open_ones)
                results = {take_effect(OPERATIONS[name], v)[0] for v in (None, "a", "b", "c")}
                result = drawn.choice(sorted(results, key=repr))
                answers[name] = time, result
                history = answer(history, effects_of(OPERATIONS), name, result)
            assert bool(history.possible) == explained(invoked, answers), (invoked, answers)
            if not history.possible:
                wrong += 1
                break
        else:
            right += 1
    assert min(right, wrong) > 50
