"""The command `conducto`: what concerns pipelines as a whole.

As the others, it prints one line of JSON, and one line on stderr with exit code 1 for an error.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence

from castore import __version__
from conducto import data
from conducto.arguments import HelpWanted, Parameter, UsageError, parse
from conducto.cli import guarded, write_text
from conducto.takeover import TakenOver, take_over

PROGRAM = "conducto"
HELP = """\
usage: conducto archive PIPELINE_ID
       conducto archive --older-than AGE [--dry-run]
       conducto take-over

archive deletes all names of a pipeline and prints how many there were. Locally that is one step. In
the cloud they go one after another: repeat one that was interrupted. What belongs to the user
stays. The space comes back with the store's next `castore gc`.

take-over puts what an earlier Conducto kept as plain files into the store, and prints how many
names it put. It reads the profile's data/ and pipelines/*/data/. It skips names that the store
has already. The files stay, and can be removed by hand.

  --older-than AGE     archive every pipeline that wrote nothing for so long: 45m, 12h, 7d, 2w;
                       print how many names each had, by its id
  --dry-run            with --older-than: only print them
  --local/--no-local   the store on this machine, or in the cloud
  --profile PROFILE    the profile; else CONDUCTO_PROFILE
"""
COMMON = (
    Parameter("local", "the store on this machine, or in the cloud", "flag", False, False),
    Parameter("profile", "the profile", "text", False, False),
)
PARAMETERS = (
    Parameter("pipeline_id", "the pipeline", required=False),
    Parameter("older_than", "all that went quiet so long ago", required=False, positional=False),
    Parameter("dry_run", "only print them", "flag", False, False),
    *COMMON,
)
UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (default: the process's own); its exit code."""
    return guarded(PROGRAM, lambda: _run(sys.argv[1:] if argv is None else argv))


def age(text: str) -> float:
    """'7d' and the like in seconds. Raises UsageError."""
    match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)([smhdw])", text)
    if match is None:
        raise UsageError(f"an age is a number and s, m, h, d or w, such as 7d; not {text!r}")
    return float(match[1]) * UNIT_S[match[2]]


def _run(argv: Sequence[str]) -> int:
    if not argv:
        raise UsageError("no command given: archive or take-over")
    verb, *rest = argv
    if verb in ("-h", "--help"):
        write_text(HELP)
        return 0
    if verb == "--version":
        write_text(f"{PROGRAM} {__version__}\n")
        return 0
    verb = verb.replace("_", "-")
    if verb not in ("archive", "take-over"):
        raise UsageError(f"{verb!r} is not one of the commands archive, take-over")
    try:
        given = parse(PARAMETERS if verb == "archive" else COMMON, rest)
    except HelpWanted:
        write_text(HELP)
        return 0
    if verb == "archive":
        write_text(json.dumps(_archive(given)) + "\n")
        return 0
    taken = _take_over(given)
    write_text(json.dumps(taken) + "\n")
    return 1 if taken["left_out"] else 0


def _take_over(given: dict[str, str | bool | list[int]]) -> TakenOver:

    local, profile = given.get("local"), given.get("profile")
    assert isinstance(profile, str | None)
    return take_over(local=None if local is None else bool(local), profile=profile)


def _archive(given: dict[str, str | bool | list[int]]) -> int | dict[str, int]:
    local, profile = given.get("local"), given.get("profile")
    assert isinstance(local, bool | None)
    assert isinstance(profile, str | None)
    pipeline_id, older_than = given.get("pipeline_id"), given.get("older_than")
    # Not from the environment: a node that meant another pipeline would lose its own.
    if (pipeline_id is None) == (older_than is None):
        raise UsageError("archive takes a PIPELINE_ID, or --older-than AGE")
    dry_run = bool(given.get("dry_run", False))
    if older_than is not None:
        return data.archive_quiet(
            age(str(older_than)), dry_run=dry_run, local=local, profile=profile
        )
    if dry_run:
        raise UsageError("--dry-run goes with --older-than")
    return data.archive(str(pipeline_id), local=local, profile=profile)
