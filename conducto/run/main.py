"""`co.main`: a file's functions as commands, and its trees printed or run.

python pipeline.py                          the default tree, printed
python pipeline.py build --target=all       the tree of `build`, printed
python pipeline.py build --target=all --run the same, run
python pipeline.py count --begin=0          a function that returns no tree is just called
"""

from __future__ import annotations

import inspect
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from conducto.arguments import UsageError
from conducto.cli import guarded, write_text
from conducto.nodes import Image, Node
from conducto.nodes.calls import hints_of, in_main, parse_call
from conducto.nodes.image import PACKAGE
from conducto.nodes.serialization import dumps
from conducto.nodes.values import is_flag
from conducto.run.options import PRINT_TREE, RUN_OPTIONS_HELP, RunOptions, take_run_options

Function = Callable[..., Any]


def main(
    variables: Mapping[str, Any] | None = None,
    default: Function | None = None,
    argv: Sequence[str] | None = None,
    *,
    env: Mapping[str, str] | None = None,
    cpu: float | None = None,
    gpu: int | None = None,
    mem: float | None = None,
    requires_docker: bool | None = None,
    image: Image | str | None = None,
    filename: str | None = None,
    cluster: str | None = None,
    printer: Callable[[Any], object] | None = None,
) -> Any:
    """Run the process's command line: a function of the caller's file, and its arguments.

    A function that returns a node has its tree printed, or with `--run` or `--local` run; what
    another returns is printed, but for None, by `printer` if there is one. `default` is the one
    without a name on the command line. `variables` are the functions by their names, and `argv` the
    words, if they are not the caller's own. `image` and the other options are for the tree's root,
    where it does not say. `cluster` is the address of a scheduler of dask.distributed, on whose
    workers `--run` runs the tree; `--local` runs it here, and `--cluster ADDRESS` on another.

    Exits the process with its exit code, unless that is 0; then returns what the function did, or
    None where it only printed its help.
    """
    frame = sys._getframe(1)
    variables = frame.f_globals if variables is None else variables
    program = os.path.basename(filename or frame.f_code.co_filename)
    words = [*(sys.argv[1:] if argv is None else argv)]
    options = {
        "env": env,
        "cpu": cpu,
        "gpu": gpu,
        "mem": mem,
        "requires_docker": requires_docker,
        "image": image,
    }
    called.append(program)
    returned: list[Any] = []

    def run() -> int:
        return dispatch(
            program,
            variables,
            default,
            words,
            options,
            cluster,
            printer=printer,
            returned=returned,
        )

    code = guarded(program, run)
    if code:
        sys.exit(code)
    return returned[0] if returned else None


called: list[str] = []  # the programs that came to co.main, for `conducto run`


def dispatch(
    program: str,
    variables: Mapping[str, Any],
    default: Function | None,
    argv: list[str],
    options: Mapping[str, Any],
    cluster: str | None = None,
    *,
    is_main: bool = True,
    printer: Callable[[Any], object] | None = None,
    returned: list[Any] | None = None,
) -> int:
    """The exit code; `returned` gets what the function returns. Raises UsageError; what the
    function raises ends the process."""
    functions = functions_of(variables)
    if argv[:1] in (["-h"], ["--help"]):
        write_text(usage(program, functions, default))
        return 0
    function, words = _chosen(variables, functions, default, argv)
    if words[:1] in (["-h"], ["--help"]):
        write_text(usage(program, {function.__name__: function}, default))
        return 0
    own = {name: is_flag(hint) for name, hint in hints_of(function).items()}
    words, run_options = take_run_options(words, own)
    if run_options.run and not run_options.local and run_options.cluster is None:
        run_options.cluster = cluster
    arguments = parse_call(function, words)
    run_options.choose_profile()
    token = in_main.set(is_main)
    try:
        with own_traceback():
            result = function(**arguments)
            if inspect.iscoroutine(result):
                import asyncio  # most functions do not need what takes so long to load

                result = asyncio.run(result)
        if returned is not None:
            returned.append(result)
        if isinstance(result, Node):
            _set_defaults(result, options)
            return _show_or_run(result, run_options, [program, function.__name__, *words])
    finally:
        in_main.reset(token)
    if run_options.given:
        raise UsageError(f"{function.__name__} returned no tree that could be run")
    if result is not None and printer is not None:
        with own_traceback():
            printer(result)
    elif result is not None:
        write_text(_printed(result))
    return 0


def _chosen(
    variables: Mapping[str, Any],
    functions: Mapping[str, Function],
    default: Function | None,
    argv: list[str],
) -> tuple[Function, list[str]]:
    """The function that the command line names, and the other words.

    It may be one that is not among the `functions` that people are told of: a node may be of any.
    """
    if argv and not argv[0].startswith("-"):
        if not inspect.isfunction(named := variables.get(argv[0])):
            raise UsageError(f"{argv[0]!r} is not one of the functions {', '.join(functions)}")
        return named, argv[1:]
    if default is None:
        raise UsageError(f"which function? one of {', '.join(functions)}")
    return default, argv


@contextmanager
def own_traceback() -> Iterator[None]:
    """What the caller's own code raises is shown as Python does, and ends the process with 1: a
    node's log is to say where it failed."""
    try:
        yield
    except Exception as error:
        frames = error.__traceback__
        while frames is not None and frames.tb_frame.f_code.co_filename.startswith(PACKAGE):
            frames = frames.tb_next
        sys.excepthook(type(error), error.with_traceback(frames), frames)
        raise SystemExit(1) from None


def functions_of(variables: Mapping[str, Any]) -> dict[str, Function]:
    """Those that people are told of: `__all__`, or all that do not begin with "_"."""
    names = variables.get("__all__", variables)
    return {
        name: variables[name]
        for name in names
        if not name.startswith("_") and inspect.isfunction(variables.get(name))
    }


def usage(program: str, functions: Mapping[str, Function], default: Function | None) -> str:
    lines = [
        f"usage: {program} [FUNCTION] [ARGUMENTS] [--run] [--cluster ADDRESS] [-j N] [--json]",
        "",
        "functions:",
    ]
    for name, function in functions.items():
        mark = " (the default)" if function is default else ""
        lines.append(f"  {name}{inspect.signature(function)}{mark}")
        said = inspect.getdoc(function) or ""
        # Of one function all that it says, of many the first line.
        lines += [
            f"      {line}".rstrip()
            for line in said.splitlines()[: 1 if len(functions) > 1 else None]
        ]
    return "\n".join([*lines, "", *RUN_OPTIONS_HELP]) + "\n"


def _set_defaults(root: Node, options: Mapping[str, Any]) -> None:
    for option, value in options.items():
        if option == "env":
            root.set(env={**(value or {}), **root.env})
        elif value is not None and getattr(root, option) is None:
            root.set(**{option: value})


def _show_or_run(root: Node, options: RunOptions, argv: list[str]) -> int:
    if os.environ.get(PRINT_TREE):
        if options.run:
            raise UsageError("a Lazy's command prints a tree, and does not run it")
        write_text("\n" + dumps(root) + "\n")  # whatever was printed before is no part of it
        return 0
    if not options.run:
        write_text((dumps(root) if options.json else root.pretty()) + "\n")
        return 0
    from conducto.run.launch import launch

    return launch(root, argv, options)


def _printed(result: Any) -> str:
    if isinstance(result, str):
        return result + "\n"
    if isinstance(result, bytes):
        return result.decode("utf-8", "surrogateescape")
    try:
        return json.dumps(result) + "\n"
    except (TypeError, ValueError):
        from pprint import pformat

        return pformat(result) + "\n"
