"""What the grammar of every verb is made of: a parser, the options all verbs have, and values."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable
from typing import Any, NoReturn

from castore.cli.exits import UsageError
from castore.cli.output import columns

SECONDS_MAX = 36_500 * 86_400.0  # when it is that long from now, a calendar can still say

Verbs = Any  # argparse keeps the type of what add_subparsers returns to itself


class Parser(argparse.ArgumentParser):
    """One that raises UsageError, and says what was meant instead."""

    verbs: dict[str, Parser]

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=_Formatter, allow_abbrev=False, **options)
        self.verbs = {}

    def options(self) -> list[str]:
        """Those that its help shows."""
        shown = (each for each in self._actions if each.help is not argparse.SUPPRESS)
        return [option for action in shown for option in action.option_strings]

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        # Up to 3.12, argparse takes each '--' that it meets for the one that ends the options, and
        # is left with an empty list where one alone is the argument, or an option's value.
        if arg_strings == ["--"] and (action.nargs is None or action.option_strings):
            value = self._get_value(action, "--")
            self._check_value(action, value)
            return value
        return super()._get_values(action, arg_strings)

    def error(self, message: str) -> NoReturn:
        no_verb = re.match(r"argument VERB: invalid choice: '(.*?)'", message)
        if no_verb is not None:
            message = f"there is no verb {no_verb[1]!r}{hint(no_verb[1], self.verbs)}"
        raise self.wrong(message)

    def wrong(self, message: str) -> UsageError:
        return UsageError(f"{message} (see {self.prog} --help)")


def hint(word: str, known: Iterable[str]) -> str:
    """'; did you mean ...?', or '' where nothing known is like `word`."""
    import difflib  # only when something went wrong

    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def add_verb(
    verbs: Verbs,
    name: str,
    run: str,
    usages: tuple[str, ...],
    summary: str,
    details: str = "",
    *,
    json: bool = True,
) -> Parser:
    """A verb that `run` ('module:function' below castore.cli) does, with what all verbs take.

    `usages` are its forms, without the options; `json` is whether it has anything to print as JSON.
    """
    forms = (f"castore [-r PATH] {name} [OPTIONS] {usage}".rstrip() for usage in usages)
    verb: Parser = verbs.add_parser(
        name,
        usage="\n       ".join(forms),
        help=summary,
        description=f"{summary[:1].upper()}{summary[1:]}.\n{details}",
    )
    # Also after the verb, where hands put them; SUPPRESS keeps what was given before it.
    verb.add_argument(
        "--json",
        action="store_true",
        default=argparse.SUPPRESS,
        help="print JSON, one document a line" if json else argparse.SUPPRESS,
    )
    verb.add_argument(
        "--store",
        metavar="PATH",
        default=argparse.SUPPRESS,
        help="the store, as with -r before the verb",
    )
    verb.add_argument("-r", action=_NotRecursive, nargs="?", help=argparse.SUPPRESS)
    verb.set_defaults(run=f"castore.cli.{run}", verb=name)
    return verb


def add_verbose(verb: Parser) -> None:
    verb.add_argument(
        "-v", "--verbose", action="store_true", help="list all problems, not only the first 20"
    )


def byte_range(text: str) -> tuple[int, int | None]:
    """BEGIN:END, half-open; an empty BEGIN is 0, an empty END the size (None)."""
    match = re.fullmatch(r"([0-9]*):([0-9]*)", text)
    if match is None:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not BEGIN:END, in bytes, such as 0:100, 100: or :100"
        )
    begin = int(match[1] or 0)
    end = int(match[2]) if match[2] else None
    if end is not None and begin > end:
        raise argparse.ArgumentTypeError(f"{text!r} is reversed: BEGIN must not exceed END")
    return begin, end


def seconds(text: str) -> float:
    """A time such as 90s, 30m, 24h or 7d; 0 is one, too."""
    if _is_zero(text):
        return 0.0
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([smhd])", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time such as 90s, 30m, 24h or 7d")
    found = float(match[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86_400}[match[2]]
    if found > SECONDS_MAX:
        raise argparse.ArgumentTypeError(f"{text!r} is longer than a hundred years (36500d)")
    return found


def size_bytes(text: str) -> int:
    """A size in bytes, or in powers of 1,024 of them with K, M, G or T."""
    match = re.fullmatch(r"([0-9]+)([KMGT]?)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 1000000, 500M or 10G")
    return int(match[1]) << 10 * " KMGT".index(match[2] or " ")


def percent(text: str) -> float:
    """'10%' or '0.1' as a fraction."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)(%?)", text)
    fraction = float(match[1]) / (100 if match[2] else 1) if match else 0.0
    if not 0 < fraction <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a part of all, such as 10% or 0.1")
    return fraction


def share(text: str) -> float:
    """'50%' or '0.5' as a fraction; 0 is one, too."""
    return 0.0 if _is_zero(text.removesuffix("%")) else percent(text)


def dollars(text: str) -> float:
    match = re.fullmatch(r"\$?([0-9]+(?:\.[0-9]+)?)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a sum of dollars such as 5 or 0.50")
    return float(match[1])


def _is_zero(text: str) -> bool:
    """Whether it is nothing, of which it does not matter in what unit."""
    return re.fullmatch(r"0+(?:\.0+)?", text) is not None


class _Formatter(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str, **options: Any) -> None:
        # argparse would load shutil, and with it the compression modules, to find the width.
        super().__init__(prog, width=columns(sys.stdout) - 2, **options)


class _NotRecursive(argparse.Action):
    """-r after a verb: what `cp` calls recursive is -R here, as -r names the store."""

    def __call__(self, parser: Any, *_: object, **__: object) -> NoReturn:
        folder = "for a folder say -R; " if "-R" in parser.options() else ""
        raise parser.wrong(f"{folder}-r names the store and stands before the verb")
