"""What verbs of several names, files or folders leave out: named, counted, and told by the exit
code."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from castore.cli import exits
from castore.cli.output import LINES_MAX, complain, complain_json
from castore.errors import NameNotFound

if TYPE_CHECKING:
    from castore.transfer.outcomes import Outcome, TransferReport


class LeftOut:
    """A report that complains of what is left out as it comes."""

    def __init__(self, arguments: Namespace) -> None:
        from castore.transfer.outcomes import TransferReport

        self.report = TransferReport()
        self._json: bool = arguments.json
        self._lines_max = None if arguments.verbose or arguments.json else LINES_MAX

    def add(self, outcome: Outcome) -> None:
        self.report.add(outcome)
        if outcome.info is not None:
            return
        if self._json:
            complain_json({"left_out": {"what": outcome.what, "reason": outcome.reason}})
        elif self._lines_max is None or len(self.report.left_out) <= self._lines_max:
            complain(f"{outcome.what} is left out: {outcome.reason}")

    def finish(self) -> int:
        """The exit code."""
        if self._lines_max is not None:
            more = len(self.report.left_out) - self._lines_max
            if more > 0:
                complain(f"and {more:,} more left out: --verbose names all")
        return code_of(self.report)


def one_by_one(
    items: Sequence[str],
    work: Callable[[str], None],
    arguments: Namespace,
    *,
    names: Mapping[str, str] | None = None,
) -> int:
    """The exit code of `work` on each: one that is missing or damaged does not keep the others
    back. `names` are what items are called that are no names."""
    codes = []
    for item in items:
        try:
            work(item)
        except (exits.Failure, NameNotFound, *exits.DAMAGE) as error:
            if len(items) == 1:
                raise
            name = item if names is None else names[item]
            if arguments.json:
                complain_json({"left_out": {"what": name, "reason": str(error)}})
            else:
                complain(f"{name} is left out: {error}")
            codes.append(exits.code_of(error))
    return exits.worst(codes)


def code_of(report: TransferReport) -> int:
    if report.damaged:
        return exits.CORRUPT
    if report.missing:
        return exits.NOT_FOUND
    return exits.FAILURE if report.failures else exits.OK
