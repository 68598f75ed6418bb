"""One attempt of a command, where it runs: it is run, masked, its output kept, its tree caught."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from conducto.nodes import TreeError
from conducto.run.executor import Executor, Outcome
from conducto.run.jobs import Jobs, Task
from conducto.run.printed import Tail, TreeCatcher
from conducto.run.states import State


@dataclass(frozen=True, slots=True)
class Attempted:
    """How it ended. What it has of the output is masked, and the tree has no secret in it."""

    outcome: Outcome
    tail: bytes = b""  # the end of what it printed
    tree: bytes | None = None  # what a Generate that went well made
    is_lost: bool = False  # where it ran is gone, and the command is not to blame


def attempt(task: Task, jobs: Jobs, executor: Executor, keep: Callable[[bytes], None]) -> Attempted:
    """Run it to its end; what it prints goes to `keep`, masked."""
    tail, masker = Tail(), jobs.masker()
    catcher = TreeCatcher() if task.is_generate else None

    def show(piece: bytes) -> None:
        if piece:
            tail.feed(piece)
            keep(piece)

    def printed(piece: bytes) -> None:
        if catcher is not None:
            catcher.feed(piece)
        show(masker.feed(piece))

    try:
        outcome = jobs.run(task, executor, printed)
    except (OSError, ValueError) as error:  # of its folder, its image, its environment
        outcome = Outcome(State.ERROR, reason=f"can't be run: {error}")
    show(masker.flush(is_cut=outcome.is_cut_short))
    tree = None
    if catcher is not None and outcome.state is State.DONE:
        try:
            tree = catcher.tree()
            jobs.refuse_secrets(tree)
        except TreeError as error:
            outcome, tree = replace(outcome, state=State.ERROR, reason=str(error)), None
    return Attempted(outcome, tail.text, tree)
