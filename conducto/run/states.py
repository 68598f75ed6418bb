"""What a node's run has come to."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from conducto.nodes import Exec, Node


class State(StrEnum):
    PENDING = "pending"  # not begun
    RUNNING = "running"
    DONE = "done"
    ERROR = "error"  # it failed, or something below it did
    KILLED = "killed"  # the run was interrupted, or its runner was killed
    SKIPPED = "skipped"


ENDED = frozenset({State.DONE, State.ERROR, State.KILLED, State.SKIPPED})
GOOD = frozenset({State.DONE, State.SKIPPED})


@dataclass(slots=True)
class Attempts:
    """What is known of one Exec. Times are seconds since the epoch, of its last attempt."""

    node: str
    state: State = State.PENDING
    attempt: int = 0  # the first is 1
    began: float | None = None
    ended: float | None = None
    exit_code: int | None = None
    reason: str = ""  # why it is not done, for people

    @property
    def duration_s(self) -> float | None:
        return None if self.began is None or self.ended is None else self.ended - self.began

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_dict(document: dict[str, Any]) -> Attempts:
        return Attempts(**{**document, "state": State(document["state"])})


def states_of(
    root: Node, execs: dict[str, Attempts], *, is_alive: bool = True
) -> dict[Node, State]:
    """The state of every node, from those of its Execs. Without a runner that `is_alive` nothing
    is running."""
    found: dict[Node, State] = {}
    idle = set()  # groups without a command: whether they are done, those before them say
    nodes = [*root.stream()]
    for node in reversed(nodes):
        if any(above.skip for above in node.lineage()):
            found[node] = State.SKIPPED
        elif isinstance(node, Exec):
            known = execs.get(str(node))
            found[node] = known.state if known else State.PENDING
        else:
            below = {found[child] for child in node.children.values() if child not in idle}
            if below <= {State.SKIPPED}:
                idle.add(node)
            state = _group_state(node, below)
            found[node] = State.KILLED if state is State.RUNNING and not is_alive else state
    begun = {root: True}
    for node in nodes:
        if node in idle and not begun[node]:
            found[node] = State.PENDING
        goes_on = begun[node]
        for child in node.children.values():
            begun[child] = goes_on
            if node.is_ordered and goes_on:
                state = found[child]
                stops = state not in GOOD and getattr(node, "stop_on_error", False)
                goes_on = state in ENDED and not stops
    return found


def _group_state(node: Node, states: set[State]) -> State:
    if State.RUNNING in states:
        return State.RUNNING
    if State.KILLED in states:
        return State.KILLED
    if State.ERROR in states:
        is_over = not states - ENDED or getattr(node, "stop_on_error", False)
        if is_over:
            return State.DONE if node.suppress_errors else State.ERROR
        return State.RUNNING
    if states <= GOOD:
        return State.DONE
    return State.PENDING if states <= {State.PENDING, State.SKIPPED} else State.RUNNING
