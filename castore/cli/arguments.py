"""The command line's grammar. Building it imports nothing that a verb needs to run."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from castore import __version__
from castore.cli.exits import TABLE, UsageError
from castore.cli.output import columns

DESCRIPTION = """\
Store files once, compressed, under names; read any byte range of them back at full speed.
"""

EXAMPLES = (
    """\
a first walk:
  castore demo                                   see it work on files you already have
  export CASTORE_STORE=~/store                   or give -r ~/store before each verb
  castore put dump.sql dumps/monday.sql          the first put makes the store
  castore put -R project backups/today           a folder, file by file
  castore ls -l dumps/
  castore cat dumps/monday.sql --range 0:100     the first 100 bytes
  castore get dumps/monday.sql restored.sql
  castore stats                                  what deduplication and compression saved

`castore VERB --help` says more about a verb. With --json an error is a JSON line on stderr:
{"error": {"type": ..., "message": ..., "exit_code": ...}}.

exit codes:
"""
    + TABLE
)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line as a namespace; its `run` is 'module:function' of the verb."""
    parser, verbs = _build()
    arguments, unknown = parser.parse_known_args(argv)
    if unknown:
        verb = verbs.get(getattr(arguments, "verb", ""), parser)
        hint = _hint(unknown[0].partition("=")[0], verb.options())
        raise verb.wrong(f"unrecognized arguments: {' '.join(unknown)}{hint}")
    return arguments


def _hint(word: str, known: Iterable[str]) -> str:
    import difflib  # only when something went wrong

    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


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
    """A time such as 90s, 30m, 24h or 7d."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([smhd])", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time such as 90s, 30m, 24h or 7d")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86_400}[match[2]]


def size_bytes(text: str) -> int:
    """A size in bytes, or in powers of 1,024 of them with K, M, G or T."""
    match = re.fullmatch(r"([0-9]+)([KMGT]?)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 1000000, 500M or 10G")
    return int(match[1]) << 10 * " KMGT".index(match[2] or " ")


class _Formatter(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str, **options: Any) -> None:
        # argparse would load shutil, and with it the compression modules, to find the width.
        super().__init__(prog, width=columns(sys.stdout) - 2, **options)


class _Parser(argparse.ArgumentParser):
    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=_Formatter, allow_abbrev=False, **options)

    def options(self) -> list[str]:
        """Those that its help shows."""
        shown = (each for each in self._actions if each.help is not argparse.SUPPRESS)
        return [option for action in shown for option in action.option_strings]

    def error(self, message: str) -> NoReturn:
        no_verb = re.match(r"argument VERB: invalid choice: '(.*?)'", message)
        if no_verb is not None:
            known = [add.__name__.strip("_") for add in _VERBS]
            message = f"there is no verb {no_verb[1]!r}{_hint(no_verb[1], known)}"
        raise self.wrong(message)

    def wrong(self, message: str) -> UsageError:
        return UsageError(f"{message} (see {self.prog} --help)")


class _NotRecursive(argparse.Action):
    """-r after a verb: what `cp` calls recursive is -R here, as -r names the store."""

    def __call__(self, parser: Any, *_: object, **__: object) -> NoReturn:
        folder = "for a folder say -R; " if "-R" in parser.options() else ""
        raise parser.wrong(f"{folder}-r names the store and stands before the verb")


def _build() -> tuple[_Parser, dict[str, _Parser]]:
    parser = _Parser(prog="castore", description=DESCRIPTION, epilog=EXAMPLES)
    parser.add_argument(
        "-r",
        "--store",
        metavar="PATH",
        help="the store's folder, or s3://bucket/prefix (default: $CASTORE_STORE)",
    )
    parser.add_argument(
        "--json", action="store_true", help="print JSON, one document a line, sizes in bytes"
    )
    parser.add_argument("--version", action="version", version=f"castore {__version__}")
    verbs = parser.add_subparsers(metavar="VERB", title="verbs")
    for add_verb in _VERBS:
        add_verb(verbs)
    return parser, verbs.choices


def percent(text: str) -> float:
    """'10%' or '0.1' as a fraction."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)(%?)", text)
    fraction = float(match[1]) / (100 if match[2] else 1) if match else 0.0
    if not 0 < fraction <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a part of all, such as 10% or 0.1")
    return fraction


Verbs = Any  # argparse keeps the type of what add_subparsers returns to itself


def _verb(
    verbs: Verbs, name: str, run: str, usage: str, help_: str, more: str = "", *, json: bool = True
) -> _Parser:
    verb: _Parser = verbs.add_parser(
        name,
        usage=f"castore [-r PATH] {name} {'[--json] ' if json else ''}{usage}".rstrip(),
        help=help_,
        description=f"{help_[:1].upper()}{help_[1:]}.\n{more}",
    )
    # Also after the verb, where hands put them; SUPPRESS keeps what was given before it.
    verb.add_argument(
        "--json",
        action="store_true",
        default=argparse.SUPPRESS,
        help="print JSON" if json else argparse.SUPPRESS,
    )
    verb.add_argument(
        "--store",
        metavar="PATH",
        default=argparse.SUPPRESS,
        help="the store's folder, or s3://bucket/prefix",
    )
    verb.add_argument("-r", action=_NotRecursive, nargs="?", help=argparse.SUPPRESS)
    verb.set_defaults(run=f"castore.cli.{run}", verb=name)
    return verb


def _names_all(verb: _Parser) -> None:
    verb.add_argument("-v", "--verbose", action="store_true", help="name all, not 20 at most")


def _put(verbs: Verbs) -> None:
    verb = _verb(
        verbs,
        "put",
        "putting:put",
        "[--if-absent] FILE [NAME] | FILE... PREFIX/ | -R FOLDER [PREFIX] | - NAME",
        "store files; the first put makes the store",
        """
  put FILE             under the file's own name
  put FILE NAME        under NAME; a NAME that ends with '/' is a prefix
  put FILE... PREFIX/  each under PREFIX/ and the file's own name ('/' alone: no prefix)
  put -R FOLDER PREFIX every regular file below FOLDER, as PREFIX/ and its path in it
                       (no PREFIX: the folder's own name); symlinks to files are followed;
                       published in batches of up to 500 files or 256 MiB, each whole or not at all
                       (on S3, each file whole)
  put - NAME           standard input

-R goes on when a file can't be put: it is left out and named, and the exit code is 1.
""",
    )
    verb.add_argument("-R", "--recursive", action="store_true", help="put a folder")
    _names_all(verb)
    verb.add_argument(
        "--if-absent", action="store_true", help="fail where the name exists, instead of replacing"
    )
    verb.add_argument("paths", nargs="+", metavar="FILE", help="files, then the name or prefix")


def _get(verbs: Verbs) -> None:
    verb = _verb(
        verbs,
        "get",
        "getting:get",
        "NAME [FILE|FOLDER|-] | NAME... FOLDER | -R PREFIX FOLDER",
        "write objects to files",
        """
  get NAME             to a file of the name's last part, here
  get NAME FILE        to FILE, which is replaced in one step
  get NAME... FOLDER   into an existing folder, under each name's last part
  get -R PREFIX FOLDER every object below PREFIX/ ('/': all), as FOLDER/ and the rest of its name
  get NAME -           to standard output

What can't be written of several is left out and named. The exit code is then 1; 13 for damaged
objects, 14 for missing ones.
""",
    )
    verb.add_argument("-R", "--recursive", action="store_true", help="get all below a prefix")
    _names_all(verb)
    verb.add_argument("names", nargs="+", metavar="NAME", help="names, then where to write them")


def _cat(verbs: Verbs) -> None:
    verb = _verb(
        verbs,
        "cat",
        "getting:cat",
        "[--range BEGIN:END] NAME...",
        "print objects, or a byte range of one",
        "The range is in bytes: from BEGIN up to, but without, END. Either may be left out.\n",
        json=False,
    )
    verb.add_argument("--range", type=byte_range, metavar="BEGIN:END", help="only these bytes")
    verb.add_argument("names", nargs="+", metavar="NAME")


def _ls(verbs: Verbs) -> None:
    verb = _verb(
        verbs,
        "ls",
        "listing:ls",
        "[-l] [PREFIX]",
        "list the names that start with PREFIX",
        "'logs/' lists what is below logs/, 'logs' also logs.txt.\n",
    )
    verb.add_argument("-l", "--long", action="store_true", help="with mode, size and time")
    verb.add_argument("prefix", nargs="?", default="", metavar="PREFIX")


def _stat(verbs: Verbs) -> None:
    verb = _verb(
        verbs,
        "stat",
        "listing:stat",
        "NAME...",
        "show size, mode, time, etag and chunks of an object",
    )
    verb.add_argument("names", nargs="+", metavar="NAME")


def _rm(verbs: Verbs) -> None:
    verb = _verb(
        verbs,
        "rm",
        "naming:rm",
        "NAME... | -R PREFIX...",
        "remove names",
        """
All of them, or none if one is missing. -R removes PREFIX and what is below PREFIX/, never PREFIX2.
On S3 they go one after another.
""",
    )
    verb.add_argument("-R", "--recursive", action="store_true", help="and all below them")
    verb.add_argument("names", nargs="+", metavar="NAME")


def _cp(verbs: Verbs) -> None:
    _two_names(verbs, "cp", "copy an object, or all below a prefix; no bytes move")


def _mv(verbs: Verbs) -> None:
    _two_names(verbs, "mv", "rename an object, or all below a prefix")


def _two_names(verbs: Verbs, name: str, help_: str) -> None:
    verb = _verb(
        verbs,
        name,
        f"naming:{name}",
        "[--if-absent] NAME TARGET | -R PREFIX TARGET",
        help_,
        """
-R takes all below PREFIX/ to TARGET/ and the rest of their names: in one step, or on S3 one after
another.
""",
    )
    verb.add_argument("-R", "--recursive", action="store_true", help="all below a prefix")
    verb.add_argument("--if-absent", action="store_true", help="fail where TARGET exists")
    verb.add_argument("source", metavar="NAME")
    verb.add_argument("target", metavar="TARGET", help="a name, or a prefix that ends with '/'")


def _du(verbs: Verbs) -> None:
    verb = _verb(
        verbs,
        "du",
        "listing:du",
        "[PREFIX]",
        "add up the sizes below a prefix",
        """
One line for each next part of the names, then the total. STORED counts an object's chunks whole,
also those that it shares with others; `castore stats` counts each chunk once.
""",
    )
    verb.add_argument("prefix", nargs="?", default="", metavar="PREFIX")


def _stats(verbs: Verbs) -> None:
    _verb(
        verbs,
        "stats",
        "listing:stats",
        "",
        "show how much the store holds, and what deduplication and compression save",
    )


def _gc(verbs: Verbs) -> None:
    verb = _verb(
        verbs,
        "gc",
        "collecting:gc",
        "[-n] [--grace TIME] [--max-repack-bytes SIZE] [--alone] [--carry-undeletable] "
        "[--accept-unclaimed]",
        "give back the space of what was removed and overwritten",
        """
Others may read and write meanwhile, and it may be killed at any moment. It removes packs that no
name leads to, rewrites packs of which less than half is in use, and merges small ones when they are
many. It also removes this machine's caches of stores on S3 that nobody used for 30 days. Exit code
11: another gc is running; 13: it met damage, and left it as it is.

On S3 it has two phases: one run marks packs as garbage ("condemned"), a later run, after the grace
period, deletes them. Run it every day.
""",
    )
    verb.add_argument(
        "-n", "--dry-run", action="store_true", help="only say what would be collected"
    )
    verb.add_argument(
        "--grace",
        type=seconds,
        default=86_400.0,
        metavar="TIME",
        help="on S3, how long to keep what was condemned: 90s, 30m, 24h, 7d (default: 24h); "
        "a local store needs none",
    )
    verb.add_argument(
        "--max-repack-bytes",
        type=size_bytes,
        metavar="SIZE",
        help="copy at most so much to make packs denser: 500M, 10G (default: no bound)",
    )
    verb.add_argument(
        "--alone",
        action="store_true",
        help="nobody else writes to the store: collect also where the server ignores preconditions",
    )
    verb.add_argument(
        "--carry-undeletable",
        action="store_true",
        help="go on although the server does not remove some packs; they stay condemned",
    )
    verb.add_argument(
        "--accept-unclaimed",
        action="store_true",
        help="collect also what is left of names that were lost with an index",
    )


def _doctor(verbs: Verbs) -> None:
    verb = _verb(
        verbs,
        "doctor",
        "doctor:doctor",
        "[PATH|URL]",
        "diagnose a store's server, or its folder's disk",
        """
On S3: what the server honours (preconditions, ranges, listings), rights, clocks and the cache; it
writes scratch keys below probe/ and removes them. A folder: whether LMDB opens the index, the file
system, the space, the C extension. Exit code 1 if something has to be changed, 0 else.
Without PATH or URL: the store that -r or $CASTORE_STORE names.
""",
    )
    verb.add_argument("place", nargs="?", metavar="PATH|URL", help="a folder or s3://bucket/prefix")


def _demo(verbs: Verbs) -> None:
    verb = _verb(
        verbs,
        "demo",
        "demo:demo",
        "[PATH]",
        "show it at work on real files",
        """
It stages them twice in a temporary store, with real edits between, reads byte ranges and single
files back, checks every byte, and prints what it took and saved.
Without PATH: this Python's own standard library.
""",
    )
    verb.add_argument("path", nargs="?", metavar="PATH", help="a folder or a file of yours")


def _export(verbs: Verbs) -> None:
    verb = _verb(
        verbs,
        "export",
        "transferring:export",
        "[--verbose] PREFIX FOLDER",
        "write all objects below a prefix to plain files",
        """
Every object below PREFIX/ ('/': all), as FOLDER/ and the rest of its name, with its mode and time.
Files that are the same already (size, mode, time and content) are left as they are: repeat an
interrupted one. What can't be written is left out and named, and the exit code is 1.
""",
    )
    _names_all(verb)
    verb.add_argument("prefix", metavar="PREFIX")
    verb.add_argument("folder", metavar="FOLDER")


def _import(verbs: Verbs) -> None:
    verb = _verb(
        verbs,
        "import",
        "transferring:import_",
        "[--checksum] [--verbose] FOLDER PREFIX",
        "put all files of a folder below a prefix",
        """
Every regular file below FOLDER, as PREFIX/ ('/': nothing) and its path in it, with its mode and
time. Files that were imported before and are unchanged (size, mode, time, inode and ctime) are not
read: repeat an interrupted one. The first put makes the store. What can't be put is left out and
named, and the exit code is 1.
""",
    )
    verb.add_argument(
        "--checksum", action="store_true", help="read all files, also those that look unchanged"
    )
    _names_all(verb)
    verb.add_argument("folder", metavar="FOLDER")
    verb.add_argument("prefix", metavar="PREFIX")


def _check(verbs: Verbs) -> None:
    verb = _verb(
        verbs,
        "check",
        "checking:check",
        "[--read-data[=10%%]] [--verbose] [--repair [--yes] [--packs-are-lost]]",
        "verify that the store is whole",
        """
Structure: that every object's manifest is whole, and leads to frames that are in their packs; that
the index agrees with the packs. --read-data also decodes every frame (or a part of them, at random)
and compares it with its id. Prints what is wrong, and the names that can't be read because of it.

--repair reads all data, says what it would do, asks, and does it: what has another copy is read
from there from now on; what has none is moved below quarantine/, with all its intact bytes; nothing
is removed that may be of use. --yes does not ask. While more packs are missing than are there, as
where a folder is not mounted, it does nothing, unless you say --packs-are-lost.

Exit codes: 0 whole (garbage, which a gc will take, is only counted), 1 nothing is lost, but look at
it, 13 something is damaged, 14 something is missing, 11 the store is in use in a way that does not
allow it.
""",
    )
    verb.add_argument(
        "--read-data",
        nargs="?",
        const=1.0,
        default=0.0,
        type=percent,
        metavar="PART",
        help="decode all frames, or a part of them",
    )
    verb.add_argument("-v", "--verbose", action="store_true", help="list all, not some of a kind")
    verb.add_argument("--repair", action="store_true", help="mend what can be mended")
    verb.add_argument("--yes", action="store_true", help="repair without asking")
    verb.add_argument(
        "--packs-are-lost", action="store_true", help="what is missing will not come back"
    )


def _backup(verbs: Verbs) -> None:
    verb = _verb(
        verbs,
        "backup",
        "backups:backup",
        "FILE",
        "write a copy of a local store's index to a file",
        """
The names of a local store are in its index, and in the journal beside it. The copy is consistent,
whoever uses the store meanwhile, and durable. Afterwards copy the folder packs/ too, with any tool.
""",
    )
    verb.add_argument("file", metavar="FILE", help="the backup to write; replaced in one step")


def _restore(verbs: Verbs) -> None:
    verb = _verb(
        verbs,
        "restore",
        "backups:restore",
        "[--force] FILE",
        "put a backup of the index back into a local store",
        """
Into the store that -r names, whose index is lost or damaged, while nobody uses it. What was there
is kept beside it. Names that were put since the backup come from the journal, if that is there.
Names whose packs are gone are listed; exit code 14 if there are any. With --force an index that is
whole is replaced, too, to go back to the names of the backup; what was put since is then kept by
every gc until one is told to --accept-unclaimed.
""",
    )
    verb.add_argument(
        "--force",
        action="store_true",
        help="also in place of an index that is whole: go back to the backup",
    )
    _names_all(verb)
    verb.add_argument("file", metavar="FILE", help="the backup")


def _index(verbs: Verbs) -> None:
    verb = _verb(
        verbs,
        "index",
        "backups:index",
        "rebuild|compact",
        "make the index anew from the packs",
        """
  index rebuild        a local store: the rows of chunks and packs, from the packs' footers; names
                       are kept, and those that the index lost come from the journal, castore.json
                       as well. On S3: this machine's cache, and the hints for other machines.
  index compact        a local store: make the file of the index as small as what is in it.
A local store must not be in use. What was there is kept beside it.
""",
    )
    _names_all(verb)
    verb.add_argument("action", choices=["rebuild", "compact"], metavar="rebuild|compact")


_VERBS = (
    _put,
    _get,
    _cat,
    _ls,
    _stat,
    _rm,
    _cp,
    _mv,
    _du,
    _stats,
    _gc,
    _export,
    _import,
    _check,
    _backup,
    _restore,
    _index,
    _doctor,
    _demo,
)
