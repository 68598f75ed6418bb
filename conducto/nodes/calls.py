"""A function and its arguments as a command line, and back."""

from __future__ import annotations

import inspect
import os
import shlex
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from conducto.arguments import UsageError
from conducto.nodes.values import ComesBackOther, NotOnCommandLine, from_text, is_flag, to_text

Function = Callable[..., Any]

# Whether the program that runs, __main__, is in co.main: then `python FILE FUNCTION` comes there.
in_main: ContextVar[bool] = ContextVar("in_main", default=False)


@dataclass(frozen=True, slots=True)
class Call:
    """A function of a file, with the words of its arguments."""

    file: str
    function: str
    words: tuple[str, ...]
    is_main: bool  # the file ends in co.main, which takes the words; else `conducto` does

    @staticmethod
    def bind(
        function: Function, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple[Call, dict[str, Any]]:
        """The call, and the keywords that are not the function's. Raises TypeError."""
        name = getattr(function, "__qualname__", "")
        if not name.isidentifier() or not hasattr(function, "__code__"):
            raise TypeError(
                f"a node runs a function that its file has by name, not {name or function!r}"
            )
        parameters = Call.arguments_of(function, kwargs)
        own = {k: v for k, v in kwargs.items() if k in parameters}
        try:
            bound = inspect.signature(function).bind(*args, **own)
        except TypeError as error:
            raise TypeError(f"{name}: {error}") from None
        words = tuple(_words(function, bound.arguments))
        module = sys.modules.get(function.__module__)
        file = os.path.abspath(getattr(module, "__file__", None) or function.__code__.co_filename)
        if not os.path.isfile(file):  # it was typed in, or is in a notebook
            raise TypeError(f"a node runs a function of a file, and {name} is in none: {file!r}")
        # What `python -m` runs is in a package, and can't be run by its path.
        is_script = function.__module__ == "__main__" and not getattr(module, "__package__", None)
        is_main = is_script and in_main.get()
        return Call(file, name, words, is_main), {k: v for k, v in kwargs.items() if k not in own}

    @staticmethod
    def arguments_of(function: Function, kwargs: Mapping[str, Any]) -> set[str]:
        """Which of the keywords are the function's."""
        return inspect.signature(function).parameters.keys() & kwargs.keys()

    def command(self, folder: str | None) -> str:
        """For a shell in this folder (None: the current one); a file that is not below it is named
        by its whole path."""
        relative = os.path.relpath(self.file, folder or os.getcwd())
        outside = relative.startswith(os.pardir)
        program = ["python"] if self.is_main else ["python", "-m", "conducto"]
        path = self.file if outside else relative
        return shlex.join([*program, path, self.function, *self.words])


def _words(function: Function, arguments: Mapping[str, Any]) -> list[str]:
    hints, parameters = hints_of(function), inspect.signature(function).parameters
    words = []
    for name, value in arguments.items():
        if value is None and parameters[name].default is None:
            continue
        try:
            text = to_text(value, hints[name])
        except NotOnCommandLine as error:
            guessed = parameters[name].annotation is inspect.Parameter.empty
            remedy = ", so annotate it" if guessed and isinstance(error, ComesBackOther) else ""
            raise TypeError(f"{function.__name__}: argument {name}: {error}{remedy}") from None
        if is_flag(hints[name]) and not _is_other(name, value, hints):
            words.append(f"--{name}" if value else f"--no-{name}")
        else:
            words.append(f"--{name}={text}")
    return words


def _is_other(name: str, value: Any, hints: Mapping[str, Any]) -> bool:
    """Whether the flag alone says something else: what shows the help, or another parameter."""
    return name == "help" if value else f"no_{name}" in hints


def parse_call(function: Function, argv: Sequence[str]) -> dict[str, Any]:
    """The arguments that a command line gives to the function, by name. Raises UsageError.

    Each is by position, `--name value` or `--name=value`, `_` and `-` alike; a bool is `--name` or
    `--no-name`.
    """
    hints = hints_of(function)
    given: dict[str, str | bool] = {}
    free: list[str] = []
    words = iter(argv)
    for word in words:
        if word == "--":
            free.extend(words)
        elif not word.startswith("--"):
            free.append(word)
        else:
            option, equals, text = word[2:].partition("=")
            name, value = _named(option.replace("-", "_"), hints, text if equals else None)
            if value is None:
                value = next(words, None)
            if value is None:
                raise UsageError(f"--{option} needs a value")
            given[name] = value
    open_names = [name for name in hints if name not in given]
    if len(free) > len(open_names):
        raise UsageError(f"unexpected argument {free[len(open_names)]!r}")
    given.update(zip(open_names, free, strict=False))
    _require(function, given)
    return {name: _value(name, value, hints[name]) for name, value in given.items()}


def _named(name: str, hints: Mapping[str, Any], text: str | None) -> tuple[str, str | bool | None]:
    """Which parameter an option is of, and its value; None if that is the next word."""
    if name not in hints:
        positive = name.removeprefix("no_")
        if positive != name and positive in hints and is_flag(hints[positive]) and text is None:
            return positive, False
        raise UsageError(f"unknown option --{name}")
    if text is None and is_flag(hints[name]):
        return name, True
    return name, text


def _value(name: str, value: str | bool, hint: Any) -> Any:
    if isinstance(value, bool):
        return value
    try:
        return from_text(value, hint)
    except (ValueError, TypeError, KeyError, ArithmeticError) as error:
        raise UsageError(f"--{name} can't be {value!r}: {error}") from error


def _require(function: Function, given: Mapping[str, Any]) -> None:
    parameters = inspect.signature(function).parameters.values()
    missing = [p.name for p in parameters if p.default is p.empty and p.name not in given]
    if missing:
        raise UsageError(f"{function.__name__}: {' and '.join(missing)} missing")


def hints_of(function: Function) -> dict[str, Any]:
    """What each parameter is: its annotation, else its default's type, else text.

    An annotation that names what is not there when the program runs, as what is imported for type
    checkers alone, counts for none. TypeError for parameters that no command line can give, such as
    *args.
    """
    hints = annotations_of(function)
    found = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise TypeError(f"{function.__name__}: a command line can't give {parameter}")
        guess = str if parameter.default in (parameter.empty, None) else type(parameter.default)
        found[name] = hints.get(name, guess)
    return found


# What evaluating an annotation raises that names what is not there, or is no type at all.
_NOT_THERE = (NameError, AttributeError, TypeError, SyntaxError)


def annotations_of(function: Function) -> dict[str, Any]:
    """Those that can be evaluated, by parameter; that of what it returns is "return"."""
    with suppress(*_NOT_THERE):
        return typing.get_type_hints(function)
    names = inspect.unwrap(function).__globals__
    found: dict[str, Any] = {}
    for name, annotation in function.__annotations__.items():
        with suppress(*_NOT_THERE):
            found |= typing.get_type_hints(
                SimpleNamespace(__annotations__={name: annotation}), names
            )
    return found
