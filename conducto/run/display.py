"""A run as plain lines, or as lines of JSON."""

from __future__ import annotations

import json
import time
from collections import Counter

from conducto.cli import flush, write_text
from conducto.nodes import Exec, Node
from conducto.run.states import Attempts, State, states_of

TAIL_LINES = 10
WORDS = {
    State.PENDING: "not begun",
    State.RUNNING: "running",
    State.DONE: "done",
    State.ERROR: "failed",
    State.KILLED: "killed",
    State.SKIPPED: "skipped",
}


class Display:
    """What people see of a run, from when it is made on. Used by the runner's own thread only."""

    def __init__(self, run_id: str, root: Node, execs: dict[str, Attempts]) -> None:
        self._run_id = run_id
        self._root = root
        self._execs = execs
        self._began = time.monotonic()

    def changed(self, attempts: Attempts, tail: bytes) -> None:
        """An attempt began or ended; `tail` is the end of what it printed, if it failed."""
        raise NotImplementedError

    def refresh(self) -> None:
        """Called every tenth of a second, and after each change."""

    def close(self) -> None:
        """Nothing more is drawn."""

    def ended(self, state: State) -> None:
        """The last word, after `close`; not said if something of our own failed."""
        say(summary(self._run_id, state, time.monotonic() - self._began, self._root, self._execs))


class PlainLines(Display):
    """A line when a command begins and ends; the last lines of one that fails."""

    def __init__(self, run_id: str, root: Node, execs: dict[str, Attempts]) -> None:
        super().__init__(run_id, root, execs)
        say(begun(run_id, execs))

    def changed(self, attempts: Attempts, tail: bytes) -> None:
        say(told(attempts) + last_lines(tail))


class JsonLines(Display):
    """Each event as a document: "run", "node" and "end"."""

    def __init__(self, run_id: str, root: Node, execs: dict[str, Attempts]) -> None:
        super().__init__(run_id, root, execs)
        self._say("run")

    def changed(self, attempts: Attempts, tail: bytes) -> None:
        document = {**attempts.to_dict(), **({"tail": text_of(tail)} if tail else {})}
        self._say("node", **document)

    def ended(self, state: State) -> None:
        self._say("end", state=state, nodes=counts(self._root, self._execs))

    def _say(self, event: str, **fields: object) -> None:
        say(json.dumps({"event": event, "id": self._run_id, **fields}) + "\n")


def say(text: str) -> None:
    write_text(text)
    flush()


def begun(run_id: str, execs: dict[str, Attempts]) -> str:
    """The first line."""
    if not execs:
        return f"pipeline {run_id} begins\n"
    done = sum(each.state is State.DONE for each in execs.values())
    return f"pipeline {run_id} goes on: {done} done before\n"


def told(attempts: Attempts) -> str:
    """An attempt that began or ended, as a line."""
    number = f" (attempt {attempts.attempt})" if attempts.attempt > 1 else ""
    if attempts.state is State.RUNNING:
        return f"{attempts.node} begins{number}\n"
    after = "" if attempts.duration_s is None else f" after {duration(attempts.duration_s)}"
    why = f": {attempts.reason}" if attempts.reason else ""
    return f"{attempts.node} {WORDS[attempts.state]}{number}{after}{why}\n"


def last_lines(tail: bytes) -> str:
    """The end of a log, set off from what we say ourselves."""
    lines = text_of(tail).rstrip("\n").splitlines()[-TAIL_LINES:]
    return "".join(f"  | {line}\n" for line in lines)


def text_of(log: bytes) -> str:
    """A log is what it is; what is no UTF-8 in it is shown as U+FFFD."""
    return log.decode("utf-8", "replace")


def summary(
    run_id: str, state: State, duration_s: float, root: Node, execs: dict[str, Attempts]
) -> str:
    found = in_words(counts(root, execs))
    text = f"pipeline {run_id} {WORDS[state]} after {duration(duration_s)}: {found}\n"
    if state in (State.ERROR, State.KILLED):
        text += f"what failed can be read by: conducto logs {run_id} NODE\n"
        text += f"to go on with what is not done: conducto run --resume {run_id}\n"
    return text


def counts(root: Node, execs: dict[str, Attempts]) -> dict[str, int]:
    """How many commands are in which state."""
    states = states_of(root, execs)
    found = Counter(states[node] for node in states if isinstance(node, Exec))
    return {str(state): found[state] for state in State if found[state]}


def in_words(counted: dict[str, int]) -> str:
    return ", ".join(f"{number} {WORDS[State(state)]}" for state, number in counted.items())


def duration(seconds: float) -> str:
    """As people say it: "0.24 s", "12 s", "3 min 5 s", "2 h 3 min"."""
    if seconds < 10:
        return f"{seconds:.2f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
