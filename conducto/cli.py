"""The commands `conducto-data-pipeline` and `conducto-data-user`, and their older names
`conducto-temp-data` and `conducto-perm-data`.

Scripts parse them: one line of JSON on stdout (nothing for None), the object's raw bytes from
`gets`, one line on stderr when something is wrong. Exit codes: 0 ok (also for `false`), 1 failure,
2 usage, 130 interrupted, 141 nobody reads the output any more.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO, TextIO, cast

import castore
from castore import __version__
from castore.errors import CastoreError, describe_os_error, describe_shortage
from conducto import data
from conducto.arguments import WHERE, HelpWanted, Parameter, UsageError, parse, where

OURS = (os.path.dirname(castore.__file__) + os.sep, os.path.dirname(__file__) + os.sep)
EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
EXIT_OUTPUT_CLOSED = 141

Scope = type[data.pipeline] | type[data.user]
Run = Callable[..., Any]  # (scope, **values) -> what to print as JSON, or None

COMMON = (
    Parameter("id", "the pipeline; else CONDUCTO_PIPELINE_ID", "text", False, False),
    *WHERE,
)


@dataclass(frozen=True, slots=True)
class Command:
    """A subcommand: with which parameters it calls what; by default the method of its name.

    `common` are those that say of which pipeline and in which store.
    """

    help: str
    parameters: tuple[Parameter, ...]
    run: Run | None = None
    common: tuple[Parameter, ...] = COMMON


class OutputClosed(Exception):
    """What reads our stdout has gone away."""


def data_pipeline() -> int:
    """The console script `conducto-data-pipeline`."""
    return main("data-pipeline", sys.argv[1:])


def data_user() -> int:
    """The console script `conducto-data-user`."""
    return main("data-user", sys.argv[1:])


def temp_data() -> int:
    """The console script `conducto-temp-data`."""
    return main("temp-data", sys.argv[1:])


def perm_data() -> int:
    """The console script `conducto-perm-data`."""
    return main("perm-data", sys.argv[1:])


def main(which: str, argv: Sequence[str]) -> int:
    """Run one of the four commands, called `conducto-<which>`; its exit code."""
    program = f"conducto-{which}"
    return guarded(program, lambda: _run(program, SCOPES[which], argv))


def guarded(program: str, run: Callable[[], int]) -> int:
    """What `run` returns, or the exit code for its error, which gets its one line."""
    try:
        try:
            with _plain_warnings(program):
                return run()
        finally:
            flush()
    except UsageError as error:
        return _fail(program, f"{error} (see {program} --help)", EXIT_USAGE)
    except OutputClosed:
        return EXIT_OUTPUT_CLOSED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except (OSError, ValueError, RuntimeError) as error:
        return _fail(program, _describe(error), EXIT_FAILURE)
    except Exception as error:  # scripts read one line, whatever happens
        said = describe_shortage(error) or f"{type(error).__name__}: {error}"
        return _fail(program, said, EXIT_FAILURE)
    finally:
        _settle_stdout()


@contextmanager
def _plain_warnings(program: str) -> Iterator[None]:
    """Our own warnings as one line each, like everything else that is told on stderr. Those of a
    pipeline's program are shown as Python does: they say where in it they are from."""
    others = warnings.showwarning

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if file is None and filename.startswith(OURS):
            complain(f"{program}: warning: {' '.join(str(message).split())}")
        else:
            others(message, category, filename, lineno, file, line)

    warnings.showwarning = show
    try:
        yield
    finally:
        if warnings.showwarning is show:  # and not what the program has set since
            warnings.showwarning = others


def _settle_stdout() -> None:
    """What can't be written was told, or has no reader. Python would try once more at exit, and
    some versions of it then have an exit code of their own (120)."""
    try:
        flush()
    except (OutputClosed, OSError):
        _discard(sys.stdout)


def _describe(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror and not isinstance(error, CastoreError):
        return describe_os_error(error)
    return describe_shortage(error) or str(error) or type(error).__name__


def _run(program: str, scope: Scope, argv: Sequence[str]) -> int:
    commands = _commands(scope)
    if not argv:
        raise UsageError(f"no command given: one of {', '.join(commands)}")
    first, *rest = argv
    if first in ("-h", "--help"):
        write_text(_help(program, scope, commands))
        return 0
    if first == "--version":
        write_text(f"{program} {__version__}\n")
        return 0
    name = first.replace("_", "-")
    if name not in commands:
        raise UsageError(f"{first!r} is not one of the commands {', '.join(commands)}")
    command = commands[name]
    try:
        given = parse((*command.parameters, *command.common), rest)
    except HelpWanted:
        write_text(_command_help(f"{program} {name}", command))
        return 0
    except UsageError as error:
        return _fail(program, f"{name}: {error} (see {program} {name} --help)", EXIT_USAGE)
    values: dict[str, Any] = given
    bound = scope.bound(pipeline_id=values.get("id"), **where(given))
    run = partial(command.run, bound) if command.run else getattr(bound, name.replace("-", "_"))
    own = {parameter.name for parameter in command.parameters}
    result = run(**{name: value for name, value in values.items() if name in own})
    if result is not None:
        write_text(json.dumps(result) + "\n")
    return 0


def _gets(scope: Scope, name: str, byte_range: list[int] | None = None) -> None:
    if byte_range is not None:
        write_bytes(scope.gets(name, byte_range=byte_range))
    else:
        scope.get(name, cast(BinaryIO, _Stdout()))


def _puts(scope: Scope, name: str) -> None:
    if sys.stdin is None:
        raise OSError("stdin is closed")
    scope.put(name, sys.stdin.buffer)


def _archive(scope: Scope) -> int:
    assert scope._pipeline_id is not None  # it is required
    return data.archive(scope._pipeline_id, local=scope._local, profile=scope._profile)


_NAME = Parameter("name", "the object's name")
_CACHE = (Parameter("name", "the cache's name"), Parameter("checksum", "the version's checksum"))
_RECURSIVE = Parameter("recursive", "also all below NAME/", kind="flag", required=False)
_RANGE = Parameter("byte_range", "only the bytes [BEGIN, END)", kind="range", required=False)
_PATH_ONLY = Parameter(
    "path_only", "the path (default), or with --no-path_only the whole URL", "flag", False
)

COMMANDS: dict[str, Command] = {
    "delete": Command(
        "Delete an object, or with --recursive all below a name.",
        (_NAME, _RECURSIVE),
    ),
    "exists": Command(
        "Print true if there is an object with this name or below it, else false.",
        (_NAME,),
    ),
    "get": Command(
        "Write an object to a file, or into a folder.",
        (_NAME, Parameter("file", "the file or folder to write to")),
    ),
    "gets": Command("Write an object, or a range of it, to stdout.", (_NAME, _RANGE), _gets),
    "list": Command(
        "Print the names that start with a prefix, as a JSON list.",
        (Parameter("prefix", "what the names start with; all without it", required=False),),
    ),
    "put": Command(
        "Store a file, with its mode bits.",
        (
            _NAME,
            Parameter("file", "the file to store"),
            Parameter("skip_cleanup", "keep older versions in a versioned bucket", "flag", False),
        ),
    ),
    "puts": Command("Store what comes on stdin.", (_NAME,), _puts),
    "size": Command("Print an object's size in bytes.", (_NAME,)),
    "url": Command(
        "Print where the app shows an object.",
        (_NAME, _PATH_ONLY),
    ),
    "cache-exists": Command(
        "Print true if there is a cache with this name and checksum, else false.",
        _CACHE,
    ),
    "clear-cache": Command(
        "Delete the cache with this checksum, or all of this name.",
        (_CACHE[0], Parameter("checksum", "only this version", required=False)),
    ),
    "save-cache": Command(
        "Keep a copy of a folder.",
        (*_CACHE, Parameter("save_dir", "the folder to keep")),
    ),
    "restore-cache": Command(
        "Put a kept folder back, inside another.",
        (*_CACHE, Parameter("restore_dir", "the folder to restore into")),
    ),
}
# Not from the environment: a node that meant another pipeline would lose its own.
_ID = Parameter("id", "the pipeline, which CONDUCTO_PIPELINE_ID does not name", "text", True, False)
ARCHIVE = Command(
    "Delete all that the pipeline --id ID has, which must be given; print how many names.",
    (),
    _archive,
    (_ID, *WHERE),
)

SCOPES: dict[str, Scope] = {
    "data-pipeline": data.pipeline,
    "temp-data": data.pipeline,
    "data-user": data.user,
    "perm-data": data.user,
}


def _commands(scope: Scope) -> dict[str, Command]:
    return {**COMMANDS, "archive": ARCHIVE} if scope is data.pipeline else COMMANDS


def _help(program: str, scope: Scope, commands: dict[str, Command]) -> str:
    lines = [
        f"usage: {program} COMMAND [ARGUMENTS]",
        "",
        " ".join((scope.__doc__ or "").split()),
        "",
        "commands:",
    ]
    for name, command in commands.items():
        words = [name, *(parameter.usage() for parameter in command.parameters)]
        lines += [f"  {' '.join(words)}", f"      {command.help}"]
    lines += [
        "",
        "Every parameter can be given by position, as --name VALUE or as --name=VALUE; _ and - in",
        "names are alike. Each command also takes:",
        *_options(COMMON),
        "",
        f"{program} COMMAND --help shows one command, --version the version.",
    ]
    return "\n".join(lines) + "\n"


def _command_help(program: str, command: Command) -> str:
    parameters = (*command.parameters, *command.common)
    usage = " ".join(parameter.usage() for parameter in parameters)
    return (
        "\n".join([f"usage: {program} {usage}", "", command.help, "", *_options(parameters)]) + "\n"
    )


def _options(parameters: Sequence[Parameter]) -> list[str]:
    return [f"  {parameter.option():<34} {parameter.help}" for parameter in parameters]


class _Stdout:
    """Where `get` writes to: stdout, telling a reader that went away from other failures."""

    def write(self, piece: bytes | bytearray | memoryview) -> int:
        write_bytes(piece)
        return len(piece)


def write_bytes(piece: bytes | bytearray | memoryview) -> None:
    if sys.stdout is None:
        raise OSError("stdout is closed")
    left = memoryview(piece)
    try:
        while left:  # with PYTHONUNBUFFERED a write may take only a part
            left = left[sys.stdout.buffer.write(left) :]
    except BrokenPipeError:
        raise OutputClosed from None


def write_text(text: str) -> None:
    write_bytes(text.encode("utf-8", "surrogateescape"))


def flush() -> None:
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        raise OutputClosed from None


def complain(line: str) -> None:
    """A line on stderr. Where that can't be written, or is closed, it goes nowhere: the exit code
    says how it ended."""
    if sys.stderr is not None:
        try:
            print(line, file=sys.stderr, flush=True)
        except OSError:
            _discard(sys.stderr)


def _discard(stream: TextIO) -> None:
    """Nothing of what is written to it is wanted any more, nor what it still has."""
    with suppress(OSError, ValueError):  # one that is no file has nothing to flush either
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _fail(program: str, message: str, code: int) -> int:
    complain(f"{program}: {' '.join(message.split())}")
    return code


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in SCOPES:
        sys.exit(_fail("conducto.cli", f"say which command: {', '.join(SCOPES)}", EXIT_USAGE))
    sys.exit(main(sys.argv[1], sys.argv[2:]))
