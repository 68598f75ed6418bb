"""The options of a run, on the command lines of `python pipeline.py` and of `conducto run`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from conducto.arguments import UsageError

PARALLEL_MAX = 1000
PRINT_TREE = "CONDUCTO_PRINT_TREE"  # co.main then prints the tree for a Lazy, and not for people
RUN_OPTIONS_HELP = (
    "  --run, --local     run the tree, as processes of this machine; without it, it is printed",
    "  --cluster ADDRESS  run it on the workers of this scheduler of dask.distributed",
    "  -j N, --jobs N     so many commands at once; as many as there are CPUs, or workers' threads",
    "  --json             a line of JSON for each event, or the tree as JSON",
    "  --profile PROFILE  the profile, of whose store it is; else CONDUCTO_PROFILE",
)


@dataclass(slots=True)
class RunOptions:
    run: bool = False
    parallel: int = 0  # not said
    json: bool = False
    cluster: str | None = None  # the address of its scheduler
    local: bool = False  # not on a cluster, even if the pipeline's file names one
    profile: str | None = None

    @property
    def given(self) -> bool:
        """Whether there is one that only a tree can have."""
        return self.run or bool(self.parallel) or self.json or self.cluster is not None

    def choose_profile(self) -> None:
        """From now on it is that of this process and of all that it begins, nodes too."""
        if self.profile is not None:
            os.environ["CONDUCTO_PROFILE"] = self.profile


def take_run_options(argv: Sequence[str], own: Mapping[str, bool]) -> tuple[list[str], RunOptions]:
    """The words that are not options of the run, and those. Raises UsageError.

    `own` are the parameters of the function that is called, which come first; the value says
    whether one is a flag.
    """
    options, words = RunOptions(), []
    left = iter(argv)
    for word in left:
        name, equals, text = word.partition("=")
        bare = name.lstrip("-").replace("-", "_")
        if word == "--":
            words += [word, *left]
        elif bare in own or not name.startswith("-"):
            words.append(word)
            if name.startswith("--") and not equals and not own[bare]:
                words.extend(next(([each] for each in left), []))  # its value, whatever that is
        elif name in ("--run", "--local", "--json") and not equals:
            setattr(options, "json" if name == "--json" else "run", True)
            options.local = options.local or name == "--local"
        elif name == "--cluster":
            options.cluster = text if equals else next(left, "")
            if not options.cluster:
                raise UsageError("--cluster takes the address of a scheduler: tcp://HOST:8786")
        elif name == "--profile":
            options.profile = text if equals else next(left, "")
            if not options.profile:
                raise UsageError("--profile needs a value")
        elif name in ("-j", "--jobs"):
            options.parallel = _count(text if equals else next(left, ""))
        elif word.startswith("-j") and word[2:].isdecimal():
            options.parallel = _count(word[2:])
        elif name == "--cloud":
            raise UsageError("nothing here runs pipelines in a cloud: --run runs them as processes")
        else:
            words.append(word)
    if options.parallel and not options.run:
        raise UsageError("-j goes with --run")
    if options.cluster is not None and not options.run:
        raise UsageError("--cluster goes with --run")
    if options.cluster is not None and options.local:
        raise UsageError("--local runs the tree here, and --cluster elsewhere")
    return words, options


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= PARALLEL_MAX:
        raise UsageError(f"-j takes a number from 1 to {PARALLEL_MAX}, not {text!r}")
    return int(text)
