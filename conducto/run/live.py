"""A run as a tree on a terminal, drawn while it changes; by rich, the extra `castore[tree]`."""

from __future__ import annotations

import time

from rich.console import Console
from rich.live import Live
from rich.text import Text

from conducto.nodes import Node
from conducto.nodes.pretty import lines
from conducto.run.display import Display, begun, counts, duration, in_words, last_lines, say, told
from conducto.run.states import Attempts, State, states_of

STYLES = {
    State.PENDING: ("·", "dim"),
    State.RUNNING: ("▶", "bold blue"),
    State.DONE: ("✓", "green"),
    State.ERROR: ("✗", "bold red"),
    State.KILLED: ("✗", "yellow"),
    State.SKIPPED: ("-", "dim"),
}
REDRAW_S = 0.25
LINES_KEPT = 3  # of the terminal: for what we say and the prompt


class LiveTree(Display):
    """The tree with states and times. One that is higher than the terminal shows what runs and
    what failed, and how many there are of the rest."""

    def __init__(self, run_id: str, root: Node, execs: dict[str, Attempts]) -> None:
        super().__init__(run_id, root, execs)
        self._drawn = 0.0
        self._console = Console()
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        say(begun(run_id, execs))
        self._live.start()

    def changed(self, attempts: Attempts, tail: bytes) -> None:
        if attempts.state in (State.ERROR, State.KILLED):
            self._console.print(Text((told(attempts) + last_lines(tail)).rstrip()))

    def refresh(self) -> None:
        now = time.monotonic()
        if now - self._drawn >= REDRAW_S:
            self._drawn = now
            height = max(5, self._console.height - LINES_KEPT)
            self._live.update(draw(self._root, self._execs, height), refresh=True)

    def close(self) -> None:
        self._live.stop()

    def ended(self, state: State) -> None:
        self._console.print(draw(self._root, self._execs, self._console.height))
        super().ended(state)


def draw(root: Node, execs: dict[str, Attempts], height: int) -> Text:
    """The tree in at most `height` lines."""
    states = states_of(root, execs)
    now = time.time()
    nodes = [*root.stream()]
    drawn = [*lines(root, lambda node: f"\0{node.name}")]
    rows = [
        _row(line, states[node], execs.get(str(node)), now)
        for line, node in zip(drawn, nodes, strict=True)
    ]
    if len(rows) > height:
        shown = (State.RUNNING, State.ERROR, State.KILLED)
        rows = [row for row, node in zip(rows, nodes, strict=True) if states[node] in shown]
        rest = Text(f"… of all commands: {in_words(counts(root, execs))}", style="dim")
        rows = [*rows[: height - 1], rest]
    # A line that were folded would make it higher.
    return Text("\n", no_wrap=True, overflow="ellipsis").join(rows)


def _row(line: str, state: State, attempts: Attempts | None, now: float) -> Text:
    before, _, name = line.partition("\0")
    mark, style = STYLES[state]
    row = Text()
    row.append(before, style="dim")
    row.append(f"{mark} {name}", style=style)
    if attempts is not None and attempts.began is not None:
        end = now if attempts.ended is None else attempts.ended
        row.append(f"  {duration(end - attempts.began)}", style="dim")
    if attempts is not None and attempts.reason:
        row.append(f"  {attempts.reason}", style=style)
    return row
