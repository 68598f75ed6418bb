"""The command line's grammar. Building it imports nothing that a verb needs to run."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from castore import __version__
from castore.cli.exits import TABLE
from castore.cli.grammar import Parser, hint
from castore.cli.object_verbs import add_object_verbs
from castore.cli.store_verbs import add_store_verbs

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

for cron, every day:
  castore gc                                     free the space of what was removed
  castore backup /backup/names                   then copy the folder packs/; local stores only
  castore check                                  now and then with --read-data

`castore VERB --help` explains a verb. Results go to stdout; errors, warnings and notes go to
stderr, a line each, and so does a progress bar if stderr is a terminal. With --json an error is a
JSON line, {"error": {"type": ..., "message": ..., "exit_code": ...}}, and so is what is left out;
warnings, and notes such as "castore: created store at ...", stay text.

exit codes:
"""
    + TABLE
)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line as a namespace; its `run` is 'module:function' of the verb.

    Raises UsageError, with a hint at what was meant.
    """
    parser = _build()
    arguments, unknown = parser.parse_known_args(argv)
    if unknown:
        verb = parser.verbs.get(getattr(arguments, "verb", ""), parser)
        meant = hint(unknown[0].partition("=")[0], verb.options())
        raise verb.wrong(f"unrecognized arguments: {' '.join(unknown)}{meant}")
    return arguments


def _build() -> Parser:
    parser = Parser(prog="castore", description=DESCRIPTION, epilog=EXAMPLES)
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
    add_object_verbs(verbs)
    add_store_verbs(verbs)
    parser.verbs = verbs.choices
    return parser
