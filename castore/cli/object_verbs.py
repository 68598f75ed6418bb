"""The grammar of the verbs that read and write objects by their names."""

from __future__ import annotations

from castore.cli.grammar import Verbs, add_verb, add_verbose, byte_range


def add_object_verbs(verbs: Verbs) -> None:
    for add in (_put, _get, _cat, _ls, _stat, _rm, _cp, _mv, _du, _export, _import):
        add(verbs)


def _put(verbs: Verbs) -> None:
    verb = add_verb(
        verbs,
        "put",
        "put:put",
        ("FILE [NAME]", "FILE... PREFIX/", "-R FOLDER [PREFIX]", "- NAME"),
        "store files; the first put makes the store",
        """
  put FILE               under the file's own name
  put FILE NAME          under NAME; a NAME that ends with '/' is a prefix
  put FILE... PREFIX/    each under PREFIX/ and its own name ('/' alone: no prefix)
  put -R FOLDER PREFIX   every regular file below FOLDER, under PREFIX/ and its path in FOLDER
  put -R FOLDER          the same, under the folder's own name
  put - NAME             standard input

Chunks that are new may be stored as their difference from those of an older object: the one that
the name has until then, one that is named alike, or the one that --like names.

With -R, symlinks to files are followed. Files are published in batches of up to 2,000 files or
256 MiB: each batch whole or not at all (on S3, each file whole). A file that can't be put is left
out and named; the others are put, and the exit code is 1.
""",
    )
    verb.add_argument("-R", "--recursive", action="store_true", help="put a folder")
    add_verbose(verb)
    verb.add_argument(
        "--if-absent", action="store_true", help="fail where the name exists, do not replace"
    )
    verb.add_argument(
        "--like",
        metavar="NAME",
        help="the object that the file resembles, as an older version does",
    )
    verb.add_argument("paths", nargs="+", metavar="FILE", help="files, then the name or prefix")


def _get(verbs: Verbs) -> None:
    verb = add_verb(
        verbs,
        "get",
        "get:get",
        ("NAME [FILE|FOLDER|-]", "NAME... FOLDER", "-R PREFIX FOLDER"),
        "write objects to files",
        """
  get NAME               to a file of the name's last part, in the current folder
  get NAME FILE          to FILE, which is replaced in one step
  get NAME... FOLDER     into an existing folder, each under its name's last part
  get -R PREFIX FOLDER   every object below PREFIX/ ('/': all), as FOLDER/ and the rest of its name
  get NAME -             to standard output

Of several objects, one that can't be written is left out and named; the others are written. The
exit code is then 13 for damaged objects, 14 for missing ones, else 1.
""",
    )
    verb.add_argument("-R", "--recursive", action="store_true", help="get all below a prefix")
    add_verbose(verb)
    verb.add_argument("names", nargs="+", metavar="NAME", help="names, then where to write them")


def _cat(verbs: Verbs) -> None:
    verb = add_verb(
        verbs, "cat", "get:cat", ("NAME...",), "print objects, or a byte range of one", json=False
    )
    verb.add_argument(
        "--range",
        type=byte_range,
        metavar="BEGIN:END",
        help="only the bytes from BEGIN up to, not including, END; either may be left out",
    )
    verb.add_argument("names", nargs="+", metavar="NAME")


def _ls(verbs: Verbs) -> None:
    verb = add_verb(
        verbs,
        "ls",
        "ls:ls",
        ("[PREFIX]",),
        "list the names that start with PREFIX",
        "'logs/' lists what is below logs/; 'logs' lists logs.txt, too; '/' lists all.\n",
    )
    verb.add_argument("-l", "--long", action="store_true", help="with mode, size and time")
    verb.add_argument("prefix", nargs="?", default="", metavar="PREFIX", help="default: all names")


def _stat(verbs: Verbs) -> None:
    verb = add_verb(
        verbs,
        "stat",
        "ls:stat",
        ("NAME...",),
        "show size, mode, time, etag and chunks of an object",
    )
    verb.add_argument("names", nargs="+", metavar="NAME")


def _rm(verbs: Verbs) -> None:
    verb = add_verb(
        verbs,
        "rm",
        "names:rm",
        ("NAME...", "-R PREFIX..."),
        "remove names",
        """
All of them, or none if one is missing; on S3 one after another. -R removes PREFIX and all names
below PREFIX/, never PREFIX2. The space comes back with the next `castore gc`.
""",
    )
    verb.add_argument("-R", "--recursive", action="store_true", help="also all below them")
    verb.add_argument("names", nargs="+", metavar="NAME")


def _cp(verbs: Verbs) -> None:
    _two_names(verbs, "cp", "copy an object, or all below a prefix; no bytes move")


def _mv(verbs: Verbs) -> None:
    _two_names(verbs, "mv", "rename an object, or all below a prefix; no bytes move")


def _two_names(verbs: Verbs, name: str, summary: str) -> None:
    verb = add_verb(
        verbs,
        name,
        f"names:{name}",
        ("NAME TARGET", "-R PREFIX TARGET"),
        summary,
        """
-R takes every name below PREFIX/ to TARGET/ and the rest of that name: all in one step, or on S3
one after another.
""",
    )
    verb.add_argument("-R", "--recursive", action="store_true", help="all below a prefix")
    verb.add_argument("--if-absent", action="store_true", help="fail where TARGET exists")
    verb.add_argument("source", metavar="NAME")
    verb.add_argument("target", metavar="TARGET", help="a name, or a prefix that ends with '/'")


def _du(verbs: Verbs) -> None:
    verb = add_verb(
        verbs,
        "du",
        "ls:du",
        ("[PREFIX]",),
        "add up the sizes below a prefix",
        """
One line for each next part of the names, then the total. STORED counts all chunks of an object,
also those that it shares with others; `castore stats` counts each chunk once.
""",
    )
    verb.add_argument("prefix", nargs="?", default="", metavar="PREFIX", help="default: all names")


def _export(verbs: Verbs) -> None:
    verb = add_verb(
        verbs,
        "export",
        "transfer:export",
        ("PREFIX FOLDER",),
        "write all objects below a prefix to plain files",
        """
Each object below PREFIX/ becomes FOLDER/ and the rest of its name, with its mode and time. A file
that is the same already (size, mode, time and content) is left as it is, so repeat an export that
was interrupted. What can't be written is left out and named, and the exit code is 1.
""",
    )
    add_verbose(verb)
    verb.add_argument("prefix", metavar="PREFIX", help="'/': all names")
    verb.add_argument("folder", metavar="FOLDER", help="made if there is none")


def _import(verbs: Verbs) -> None:
    verb = add_verb(
        verbs,
        "import",
        "transfer:import_",
        ("FOLDER PREFIX",),
        "put all files of a folder below a prefix",
        """
Each regular file below FOLDER is put as PREFIX/ and its path in FOLDER, with its mode and time. A
file that was imported before is read again only if its size, mode, time, inode or ctime changed,
so repeat an import that was interrupted. The first import makes the store. What can't be put is
left out and named, and the exit code is 1.
""",
    )
    verb.add_argument(
        "--checksum", action="store_true", help="read all files, also those that look unchanged"
    )
    add_verbose(verb)
    verb.add_argument("folder", metavar="FOLDER")
    verb.add_argument("prefix", metavar="PREFIX", help="'/': no prefix")
