"""The grammar of the commands' arguments, as existing scripts write them.

Every parameter is positional, or `--name value`, or `--name=value`, before or after the others;
`_` and `-` in names are alike. What has no name is for the parameters that are not given by name,
in their order. A flag is `--flag`, `--no-flag`, or `--flag=true`. A later option
replaces an earlier one. After `--`, everything is positional.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict

TRUE = frozenset({"1", "true", "t", "yes", "y", "on"})
FALSE = frozenset({"0", "false", "f", "no", "n", "off", "none", ""})

Value = str | bool | list[int]


class UsageError(Exception):
    """The command line does not fit the command. The message is one line."""


class HelpWanted(Exception):
    """The command line asks for help."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """`positional` parameters are taken in order from what has no name."""

    name: str
    help: str
    kind: Literal["text", "flag", "range"] = "text"
    required: bool = True
    positional: bool = True

    def usage(self) -> str:
        if self.positional and self.required:
            return self.name.upper()
        if self.positional and self.kind == "text":
            return f"[{self.name.upper()}]"
        return self.option() if self.required else f"[{self.option()}]"

    def option(self) -> str:
        value = {"text": f" {self.name.upper()}", "range": "=BEGIN,END", "flag": ""}[self.kind]
        return f"--{self.name}{value}" + (f" | --no-{self.name}" if self.kind == "flag" else "")


class Where(TypedDict):
    """In which store, as functions take it; None where the environment says."""

    local: bool | None
    profile: str | None


WHERE = (
    Parameter("local", "on this machine, or in the cloud", "flag", False, False),
    Parameter("profile", "the profile; else CONDUCTO_PROFILE", "text", False, False),
)


def where(given: Mapping[str, Value]) -> Where:
    """What was given of `WHERE`."""
    local, profile = given.get("local"), given.get("profile")
    assert isinstance(local, bool | None)
    assert isinstance(profile, str | None)
    return {"local": local, "profile": profile}


def parse(parameters: Sequence[Parameter], argv: Sequence[str]) -> dict[str, Value]:
    """The values given, by parameter name; raises UsageError or HelpWanted."""
    named = {parameter.name: parameter for parameter in parameters}
    free: list[str] = []
    given: dict[str, Value] = {}
    arguments = iter(argv)
    for argument in arguments:
        if argument == "--":
            free.extend(arguments)
        elif argument in ("-h", "--help"):
            raise HelpWanted
        elif not argument.startswith("--"):
            free.append(argument)
        else:
            option, equals, text = argument.partition("=")
            name = option[2:].replace("-", "_")
            parameter = named.get(name)
            negated = named.get(name.removeprefix("no_"))
            if parameter is None and negated is not None and negated.kind == "flag":
                if equals:
                    raise UsageError(f"{option} takes no value")
                given[negated.name] = False
            elif parameter is None:
                raise UsageError(f"unknown option {option}")
            elif equals:
                given[name] = _value(parameter, text)
            elif parameter.kind == "flag":
                given[name] = True
            else:
                try:
                    given[name] = _value(parameter, next(arguments))
                except StopIteration:
                    raise UsageError(f"{option} needs a value") from None
    _take_positional(parameters, free, given)
    missing = [p.name for p in parameters if p.required and p.name not in given]
    if missing:
        raise UsageError(f"{' and '.join(missing)} missing")
    return given


def _take_positional(
    parameters: Sequence[Parameter], free: Sequence[str], given: dict[str, Value]
) -> None:
    slots = [p for p in parameters if p.positional and p.name not in given]
    if len(free) > len(slots):
        raise UsageError(f"unexpected argument {free[len(slots)]!r}")
    for parameter, text in zip(slots, free, strict=False):
        given[parameter.name] = _value(parameter, text)


def _value(parameter: Parameter, text: str) -> Value:
    if parameter.kind == "text":
        return text
    if parameter.kind == "flag":
        if text.lower() in TRUE:
            return True
        if text.lower() in FALSE:
            return False
        raise UsageError(f"--{parameter.name} is true or false, not {text!r}")
    parts = text.split(",")
    if not all(re.fullmatch(r"\s*-?[0-9]{1,19}\s*", part) for part in parts):
        raise UsageError(f"--{parameter.name} is BEGIN,END (two integers), not {text!r}")
    return [int(part) for part in parts]
