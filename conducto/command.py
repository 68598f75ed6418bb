"""The command `conducto`: what concerns pipelines as a whole.

`archive` and `take-over` print one line of JSON. An error is one line on stderr, with exit code 1.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence

from castore import __version__
from conducto import context, data
from conducto.arguments import WHERE, HelpWanted, Parameter, UsageError, Value, parse, where
from conducto.cli import guarded, write_text
from conducto.takeover import take_over

PROGRAM = "conducto"
HELP = """\
usage: conducto run FILE [FUNCTION] [ARGUMENTS] [--cluster ADDRESS] [-j N] [--json]
       conducto run --resume ID [--cluster ADDRESS] [-j N] [--json]
       conducto show [ID] [--json | --html FILE]
       conducto logs ID NODE [--attempt N]
       conducto FILE.py FUNCTION [ARGUMENTS]
       conducto mount [pipeline|user] FOLDER [--id ID] [--read-only]
       conducto umount FOLDER
       conducto archive PIPELINE_ID
       conducto archive --older-than AGE [--dry-run]
       conducto take-over
       conducto secrets set|list|delete [--org] [KEY]

run runs the tree that a function of the file returns, as `python FILE ... --run` does. With
--resume it runs again what had not succeeded. It exits with 0 if all went well, 1 if not, 130 if it
was interrupted.

show prints a pipeline's tree with states and times, or writes it as a page; without an ID it lists
all that were run. Its exit code is 1 if the pipeline has failed. logs prints what a command of it
printed.

mount shows the data of the pipeline, of the user, or of both, as a folder; a file that is written
there is published when it is closed. umount ends that. It needs castore[mount] and libfuse 3.

archive deletes all names of a pipeline and prints how many there were. From the first one on a run
of it can't be resumed. Locally the others go in one step, in the cloud one after another: repeat
one that was interrupted. What belongs to the user stays. A pipeline that is being run is left. The
space comes back with the store's next `castore gc`.

take-over puts what an earlier Conducto kept as plain files into the store, and prints how many
names it put. It reads the profile's data/ and pipelines/*/data/. It follows no symbolic link, and
skips names that the store has already. The files stay, and can be removed by hand.

secrets are variables of every node's environment that no log shows: conducto secrets --help.

  --cluster ADDRESS    run it on the workers of this scheduler of dask.distributed
  -j N, --jobs N       so many commands at once; as many as there are CPUs, or workers' threads
  --older-than AGE     archive every pipeline that wrote nothing for so long: 45m, 12h, 7d, 2w;
                       print how many names each had, by its id; a file that was put into a mount
                       with its own time, as by cp -p, is as old as that
  --dry-run            with --older-than: only print them
  --local/--no-local   the store on this machine, or in the cloud; run --local: not on a cluster
  --profile PROFILE    the profile; else CONDUCTO_PROFILE
"""
VERBS = ("run", "show", "logs", "archive", "take-over", "secrets", "mount", "umount")
PARAMETERS = (
    Parameter("pipeline_id", "the pipeline", required=False),
    Parameter("older_than", "all that went quiet so long ago", required=False, positional=False),
    Parameter("dry_run", "only print them", "flag", False, False),
    *WHERE,
)
UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (default: the process's own); its exit code."""
    return guarded(PROGRAM, lambda: _run(sys.argv[1:] if argv is None else argv))


def age(text: str) -> float:
    """'7d' and the like in seconds; '0' is an age, too. Raises UsageError."""
    if text == "0":
        return 0.0
    match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)([smhdw])", text)
    if match is None:
        raise UsageError(f"an age is a number and s, m, h, d or w, such as 7d; not {text!r}")
    return float(match[1]) * UNIT_S[match[2]]


def _run(argv: Sequence[str]) -> int:
    if not argv:
        raise UsageError(f"no command given: {', '.join(VERBS)}")
    verb, *rest = argv
    if verb in ("-h", "--help"):
        write_text(HELP)
        return 0
    if verb == "--version":
        write_text(f"{PROGRAM} {__version__}\n")
        return 0
    if verb.endswith(".py"):
        from conducto.run import verbs  # takes longer to load than an archive takes

        return verbs.call(verb, rest)
    verb = verb.replace("_", "-")
    if verb not in VERBS:
        raise UsageError(f"{verb!r} is not one of the commands {', '.join(VERBS)}")
    try:
        return _run_verb(verb, rest)
    except HelpWanted:
        write_text(HELP)
        return 0


def _run_verb(verb: str, words: list[str]) -> int:
    if verb in ("run", "show", "logs"):
        from conducto.run import verbs

        if verb == "run":
            return verbs.run(words)
        given = parse((*(verbs.SHOW if verb == "show" else verbs.LOGS), *WHERE), words)
        if verb == "show" and "id" not in given:
            return verbs.show_all(given)
        store = context.open_store(**where(given), create=False)
        return (verbs.show if verb == "show" else verbs.logs)(store, given)
    if verb == "secrets":
        from conducto.secrets import command

        return command.run(words)
    if verb in ("mount", "umount"):
        from conducto import mount

        return mount.run_mount(words) if verb == "mount" else mount.run_umount(words)
    if verb == "archive":
        write_text(json.dumps(_archive(parse(PARAMETERS, words))) + "\n")
        return 0
    taken = take_over(**where(parse(WHERE, words)))
    write_text(json.dumps(taken) + "\n")
    return 1 if taken["left_out"] else 0


def _archive(given: dict[str, Value]) -> int | dict[str, int]:
    pipeline_id, older_than = given.get("pipeline_id"), given.get("older_than")
    # Not from the environment: a node that meant another pipeline would lose its own.
    if (pipeline_id is None) == (older_than is None):
        raise UsageError("archive takes a PIPELINE_ID, or --older-than AGE")
    dry_run = bool(given.get("dry_run", False))
    if older_than is not None:
        return data.archive_quiet(age(str(older_than)), dry_run=dry_run, **where(given))
    if dry_run:
        raise UsageError("--dry-run goes with --older-than")
    return data.archive(str(pipeline_id), **where(given))
