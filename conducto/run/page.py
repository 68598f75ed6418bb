"""A run as one HTML page that needs nothing else: a chart of timings, the tree, logs and plots."""

from __future__ import annotations

import base64
import re
import time
from collections.abc import Iterator
from html import escape

from conducto.nb import FOLDER
from conducto.nodes import Exec, Node
from conducto.run.display import WORDS, counts, duration, in_words, text_of
from conducto.run.records import Records, Run
from conducto.run.states import GOOD, Attempts, State

LOG_BYTES_MAX = 64 << 10  # of each; `conducto logs` has all
COLORS = {
    State.PENDING: "#b8b8b8",
    State.RUNNING: "#3b78d8",
    State.DONE: "#3a9d5d",
    State.ERROR: "#d03b3b",
    State.KILLED: "#d68a1d",
    State.SKIPPED: "#b8b8b8",
}
STYLE = """
body{font:14px/1.5 system-ui,sans-serif;margin:2em auto;max-width:76em;padding:0 1em;color:#222}
h1{font-size:1.4em}h2{font-size:1.1em;margin-top:2em}
pre{background:#f5f5f5;padding:.7em;overflow:auto;max-height:30em;white-space:pre-wrap}
details{margin-left:1.2em}summary{cursor:pointer}.leaf{margin-left:2.2em}
.state{color:#fff;border-radius:3px;padding:0 .4em;font-size:.85em}.dim{color:#777}
svg{width:100%;height:auto;background:#fafafa}svg text{font:11px system-ui,sans-serif}
@media(prefers-color-scheme:dark){body{background:#181818;color:#ddd}pre,svg{background:#222}
svg text{fill:#ddd}}
"""
ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\^_])")
WIDTH, NAMES, ROW = 1000, 260, 18  # of the chart


def page(records: Records, run: Run) -> str:
    """The whole page. Logs are cut to their last 64 KiB."""
    return "".join(_parts(records, run))


def _parts(records: Records, run: Run) -> Iterator[str]:
    states = run.states
    created = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(run.created))
    found = in_words(counts(run.root, run.execs))
    yield '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<title>{escape(run.title or run.id)}</title><style>{STYLE}</style></head><body>\n"
    yield f"<h1>{escape(run.title or run.id)} {_badge(states[run.root])}</h1>\n"
    yield f'<p class="dim">pipeline {run.id}, begun {created} in {escape(run.cwd)}: {found}</p>\n'
    timed = [each for each in run.execs.values() if each.began is not None]
    if timed:
        yield "<h2>Timings</h2>\n"
        yield _chart(sorted(timed, key=lambda each: (each.began or 0.0, each.node)))
    yield "<h2>Nodes</h2>\n"
    yield from _tree(run, states, _Printed(records, run))
    yield "</body></html>\n"


def _chart(timed: list[Attempts]) -> str:
    """A bar for the last attempt of each command, in the order in which they began."""
    begin = min(each.began or 0.0 for each in timed)
    end = max((each.ended or each.began or 0.0) for each in timed)
    scale = (WIDTH - NAMES - 10) / max(end - begin, 0.001)
    height = ROW * (len(timed) + 2)
    rows = [f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="timings">']
    for tick in range(5):
        x = NAMES + (WIDTH - NAMES - 10) * tick / 4
        rows.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{height - ROW}" stroke="#ddd"/>')
        anchor = "start" if tick == 0 else "end" if tick == 4 else "middle"
        label = duration((end - begin) * tick / 4)
        rows.append(f'<text x="{x:.1f}" y="{height - 4}" text-anchor="{anchor}">{label}</text>')
    for number, each in enumerate(timed):
        began = each.began or begin
        x, y = NAMES + (began - begin) * scale, ROW * number + 4
        width = max(1.5, ((each.ended or end) - began) * scale)
        name = each.node if len(each.node) <= 40 else "…" + each.node[-39:]
        took = duration((each.ended or end) - began)
        rows.append(
            f"<g><title>{escape(each.node)}: {WORDS[each.state]}, {took}</title>"
            f'<text x="{NAMES - 6}" y="{y + 11}" text-anchor="end">{escape(name)}</text>'
            f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{ROW - 6}" rx="2" '
            f'fill="{COLORS[each.state]}"/></g>'
        )
    return "\n".join([*rows, "</svg>\n"])


class _Printed:
    """What the commands of a run left, looked for at once and not for each of them."""

    def __init__(self, records: Records, run: Run) -> None:
        self.logs = records.log_ends(run.execs.values(), LOG_BYTES_MAX)
        self._store = records.store
        self._folder = f"pipelines/{run.id}/data/{FOLDER}/"
        self._plots: dict[str, list[str]] = {}  # their names, by what is before the last "/"
        for name in records.store.names(self._folder):
            self._plots.setdefault(name.rpartition("/")[0], []).append(name)

    def plots(self, node: str) -> Iterator[bytes]:
        for name in self._plots.get(self._folder + (node.strip("/") or "node"), ()):
            yield self._store.gets(name)


def _tree(run: Run, states: dict[Node, State], printed: _Printed) -> Iterator[str]:
    """Nested; nodes whose children went well are closed."""
    stack: list[Node | str] = [run.root]
    while stack:
        node = stack.pop()
        if isinstance(node, str):
            yield node
            continue
        head = f"{escape(node.name)} {_badge(states[node])}"
        doc = f"<pre>{escape(node.doc)}</pre>\n" if node.doc else ""
        if isinstance(node, Exec):
            yield f"<details><summary>{head}{_times(run.execs.get(str(node)))}</summary>{doc}"
            yield from _command(run, node, printed)
            yield "</details>\n"
        else:
            opened = "" if states[node] in GOOD and node is not run.root else " open"
            kind = f'<span class="dim">{type(node).__name__}</span>'
            yield f"<details{opened}><summary>{head} {kind}</summary>{doc}\n"
            stack.append("</details>\n")
            stack.extend(reversed(node.children.values()))


def _command(run: Run, node: Exec, printed: _Printed) -> Iterator[str]:
    attempts = run.execs.get(str(node))
    yield f"<pre>{escape(node.command)}</pre>\n"
    if attempts is None:
        return
    if attempts.reason:
        yield f"<p>{escape(attempts.reason)}</p>\n"
    before, log = printed.logs.pop(attempts.node, (0, b""))
    if text := ESCAPES.sub("", text_of(log)):
        cut = f"… {before:,} B before\n" if before else ""
        yield f"<pre>{escape(cut + text)}</pre>\n"
    for plot in printed.plots(attempts.node):
        yield f'<img alt="plot" src="data:image/png;base64,{base64.b64encode(plot).decode()}">\n'


def _badge(state: State) -> str:
    return f'<span class="state" style="background:{COLORS[state]}">{WORDS[state]}</span>'


def _times(attempts: Attempts | None) -> str:
    if attempts is None or attempts.duration_s is None:
        return ""
    number = f", attempt {attempts.attempt}" if attempts.attempt > 1 else ""
    return f' <span class="dim">{duration(attempts.duration_s)}{number}</span>'
