"""`conducto run`, `show` and `logs`, and a function of a file by `conducto FILE.py FUNCTION`."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import runpy
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from types import ModuleType

from castore import Store
from conducto import context
from conducto.arguments import Parameter, UsageError, Value, parse, where
from conducto.cli import complain, write_bytes, write_text
from conducto.errors import RunError
from conducto.nodes import Exec, Node
from conducto.nodes.pretty import lines
from conducto.run import main
from conducto.run.display import WORDS, counts, duration
from conducto.run.launch import resume
from conducto.run.options import take_run_options
from conducto.run.records import Records, Run, all_runs
from conducto.run.states import State

SHOW = (
    Parameter("id", "the pipeline", required=False),
    Parameter("html", "write a page to this file", required=False, positional=False),
    Parameter("json", "as JSON", "flag", False, False),
)
LOGS = (
    Parameter("id", "the pipeline"),
    Parameter("node", "the node's path"),
    Parameter("attempt", "its number, from 1; else the last", required=False, positional=False),
)
TITLE_MAX = 60
NODES_TOLD = 10  # in an error
PIECE_BYTES = 1 << 20


def run(words: Sequence[str]) -> int:
    """`run FILE ...` or `run --resume ID`; the exit code. Raises UsageError, RunError."""
    if words and not words[0].startswith("-"):
        return _run_file(words[0], [*words[1:]])
    rest, options = take_run_options(["--run", *words], {"resume": False})
    given = parse((Parameter("resume", "the pipeline", required=False, positional=False),), rest)
    if "resume" not in given:
        raise UsageError("run takes a FILE, or --resume ID")
    options.choose_profile()
    return resume(str(given["resume"]), options)


def _run_file(path: str, words: list[str]) -> int:
    """As `python FILE ... --run` does."""
    if not os.path.isfile(path):
        raise UsageError(f"there is no file {path!r} to run")
    sys.argv = [path, *_with_run(words)]
    sys.path.insert(0, os.path.dirname(os.path.abspath(path)))
    main.called.clear()
    with main.own_traceback():
        runpy.run_path(os.path.abspath(path), run_name="__main__")
    if not main.called:
        raise RunError(f"{path} runs no pipeline: it does not come to co.main()")
    return 0


def _with_run(words: list[str]) -> list[str]:
    """Right behind the function: at the end it would be the value of an option that has none, and
    behind a `--` an argument."""
    at = 1 if words and not words[0].startswith("-") else 0
    if words[at : at + 1] in (["-h"], ["--help"]):
        return words
    return [*words[:at], "--run", *words[at:]]


def call(path: str, words: list[str]) -> int:
    """A function of a file that need not come to co.main; the exit code."""
    if not os.path.isfile(path):
        raise UsageError(f"there is no file {path!r}")
    with main.own_traceback():
        module = _module(os.path.abspath(path))
    return main.dispatch(os.path.basename(path), vars(module), None, words, {}, is_main=False)


def _module(path: str) -> ModuleType:
    """The file as a module, in its package if it is in one."""
    folder, names = os.path.dirname(path), [os.path.basename(path).removesuffix(".py")]
    while os.path.exists(os.path.join(folder, "__init__.py")):
        names.insert(0, os.path.basename(folder))
        folder = os.path.dirname(folder)
    sys.path.insert(0, folder)
    if len(names) > 1:
        return importlib.import_module(".".join(names))
    [name] = names
    if name in sys.modules or name in sys.stdlib_module_names:
        name = f"_{name}"  # others mean that one
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None  # `command` takes for a file what ends in .py
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def show_all(given: dict[str, Value]) -> int:
    """Print a line for each run; 1 if one can't be shown. Where there is no store nothing was run:
    0, and it is said."""
    if given.get("html"):
        raise UsageError("--html is of one pipeline: give its ID")
    store = context.find_store(**where(given))
    if store is None:
        url = context.store_url(**where(given))
        complain(f"conducto: nothing was run yet: there is no store at {url}")
        return 0
    left_out: dict[str, str] = {}
    for each in sorted(all_runs(store, left_out), key=lambda run: run.created):
        write_text(_listed(each, as_json=bool(given.get("json"))))
    for run_id, reason in left_out.items():
        complain(f"conducto: pipeline {run_id!r} can't be shown: {reason}")
    return 1 if left_out else 0


def show(store: Store, given: dict[str, Value]) -> int:
    """Print the run with the id; 1 if it has failed. Raises RunNotFound."""
    records = Records(store, str(given["id"]))
    found = records.load()
    states = found.states
    if "html" in given:
        _write_page(str(given["html"]), records, found)
    elif given.get("json"):
        write_text(json.dumps(_document(found)) + "\n")
    else:
        for line in lines(found.root, lambda node: _labeled(node, states[node], found)):
            write_text(line + "\n")
    return 1 if states[found.root] in (State.ERROR, State.KILLED) else 0


def logs(store: Store, given: dict[str, Value]) -> int:
    """Print what a command printed. Raises RunNotFound, RunError."""
    records = Records(store, str(given["id"]))
    found = records.load()
    try:
        node = found.root[f"/{given['node']}"]
    except KeyError:
        raise RunError(
            f"the pipeline {found.id} has no node {given['node']!r}: conducto show {found.id} "
            "lists them"
        ) from None
    if not isinstance(node, Exec):
        below = [each for each in node.stream() if isinstance(each, Exec)]
        told = ", ".join(map(str, below[:NODES_TOLD])) or "none"
        if len(below) > NODES_TOLD:
            told += f" and {len(below) - NODES_TOLD} more: conducto show {found.id} lists them"
        raise RunError(f"{node} is no command; those below it: {told}")
    attempts = found.execs.get(str(node))
    last = attempts.attempt if attempts else 0
    number = str(given.get("attempt", last))
    if not number.isdecimal() or not 1 <= int(number) <= last:
        raise RunError(f"{node} has no attempt {number}; attempts begun: {last}")
    with records.open_log(str(node), int(number)) as file:
        while piece := file.read(PIECE_BYTES):
            write_bytes(piece)
    return 0


def _write_page(path: str, records: Records, run: Run) -> None:
    """The file is the old one or the new one, whole."""
    from conducto.run.page import page

    text = page(records, run).encode("utf-8", "surrogateescape")
    if os.path.exists(path) and not os.path.isfile(path):  # a terminal, a pipe
        with open(path, "wb") as file:
            file.write(text)
        return
    path = os.path.realpath(path)  # of a link, what it leads to
    os.stat(os.path.dirname(path))  # its own name is to be in the error, and not a draft's
    draft = f"{path}.{os.getpid()}.draft"
    try:
        with open(draft, "xb") as file:
            file.write(text)
        os.replace(draft, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(draft)
        raise


def _labeled(node: Node, state: State, run: Run) -> str:
    text = f"{node.name}  {WORDS[state]}"
    attempts = run.execs.get(str(node))
    if attempts is not None and attempts.duration_s is not None:
        text += f" after {duration(attempts.duration_s)}"
    if attempts is not None and attempts.reason:
        text += f": {attempts.reason}"
    return text


def _listed(run: Run, *, as_json: bool) -> str:
    state = run.states[run.root]
    if as_json:
        document = {"id": run.id, "state": state, "created": run.created, "title": run.title}
        document |= {"tags": run.root.tags, "nodes": counts(run.root, run.execs)}
        return json.dumps(document) + "\n"
    created = time.strftime("%Y-%m-%d %H:%M", time.localtime(run.created))
    # A query on the command line, say, may have several lines.
    title = " ".join(run.title.split())[:TITLE_MAX]
    title = " ".join([title, *(f"[{' '.join(tag.split())}]" for tag in run.root.tags)])
    return f"{run.id}  {created}  {WORDS[state]:<9}  {title}\n"


def _document(run: Run) -> dict[str, object]:
    states = run.states
    nodes = []
    for node, state in sorted(states.items(), key=lambda item: str(item[0])):
        known = run.execs.get(str(node))
        nodes.append(
            {"type": type(node).__name__, **(known.to_dict() if known else {"node": str(node)})}
            | {"state": state}
        )
    return {
        "id": run.id,
        "state": states[run.root],
        "created": run.created,
        "cwd": run.cwd,
        "argv": run.argv,
        "nodes": nodes,
    }
