"""The `castore` command.

`main` knows the exit codes and how an error looks. `arguments` is the grammar, with that of each
verb in `object_verbs` and `store_verbs`. What the verbs do is in the other modules, one for each
group, which are imported when one of them runs, so that `castore --help` is quick.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from gc import freeze, set_threshold  # by name: `gc` is a module of this package, too
from importlib import import_module

GARBAGE_OBJECTS = 20_000  # made since, before Python looks for cycles among the newest


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (default: the process's own) and return its exit code."""
    if argv is None:
        from castore.cli.streams import take_over_streams

        take_over_streams()
        set_threshold(GARBAGE_OBJECTS)
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_DFL:  # `nohup` ignores the second
                signal.signal(number, _exit_on_signal)
    try:
        try:
            with _plain_warnings():
                code = _run(argv)
        except SystemExit as exit_:
            if exit_.code:  # a signal
                raise
            code = 0  # --help, --version
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except SystemExit as exit_:  # a signal
        return exit_.code if isinstance(exit_.code, int) else 0
    except BaseException as error:
        if argv is None and isinstance(error, KeyboardInterrupt):
            # All is unwound: a second one ends the process at once, and prints no traceback.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        return _report(error, as_json="--json" in (sys.argv[1:] if argv is None else argv))


def _run(argv: Sequence[str] | None) -> int:
    from castore.cli import arguments as grammar
    from castore.cli.exits import UsageError

    arguments = grammar.parse(argv)
    if "run" not in arguments:
        raise UsageError("which verb? put, get, cat, ls, stat, rm, ... (see castore --help)")
    module_name, _, function_name = arguments.run.partition(":")
    verb: Callable[[object], int] = getattr(import_module(module_name), function_name)
    if argv is None:
        freeze()  # modules are no garbage: to look through them took a twentieth of a put
    return verb(arguments)


def _report(error: BaseException, *, as_json: bool) -> int:
    from castore.cli import exits
    from castore.cli.output import complain, complain_json
    from castore.cli.streams import discard

    if isinstance(error, BrokenPipeError):  # the reader has what it wanted
        if sys.stdout is not None:
            discard(sys.stdout)
        return exits.BROKEN_PIPE
    if os.environ.get("CASTORE_DEBUG", "0") not in ("", "0"):
        import traceback

        traceback.print_exception(error)
    code, message = exits.describe(error)
    if as_json:
        complain_json(
            {"error": {"type": type(error).__name__, "message": message, "exit_code": code}}
        )
    else:
        complain(message)
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        discard(sys.stdout)
    return code


def _exit_on_signal(number: int, _: object) -> None:
    # Unwinds like Ctrl-C, so that temporary files go and nothing is half-published.
    raise SystemExit(128 + number)


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Warnings as one line each, like everything else on stderr."""
    import warnings

    def show(message: Warning | str, *_: object, **__: object) -> None:
        from castore.cli.output import complain

        complain(f"warning: {message}")

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield
