"""Every state that the steps of a model lead to, in whatever order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable
from typing import TypeVar

State = TypeVar("State", bound=Hashable)


def explore_all(
    first: State,
    steps: Callable[[State], Iterable[tuple[str, State]]],
    wrong: Callable[[State], str],
    *,
    states_max: int,
) -> tuple[int, list[str]]:
    """(states visited, the steps to the first one that is `wrong`, which says why). Raises
    AssertionError if there are more than `states_max`."""
    came: dict[State, tuple[State, str] | None] = {first: None}
    queue = deque([first])
    while queue:
        state = queue.popleft()
        for label, following in steps(state):
            if following in came:
                continue
            came[following] = state, label
            if problem := wrong(following):
                return len(came), [*_path(came, following), problem]
            queue.append(following)
        assert len(came) <= states_max, f"more than {states_max} states"
    return len(came), []


def _path(came: dict[State, tuple[State, str] | None], state: State) -> list[str]:
    labels = []
    while (before := came[state]) is not None:
        state, label = before
        labels.append(label)
    return labels[::-1]
