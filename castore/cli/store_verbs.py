"""The grammar of the verbs that look at and look after a store as a whole."""

from __future__ import annotations

from castore.cli.grammar import (
    Verbs,
    add_verb,
    add_verbose,
    dollars,
    percent,
    seconds,
    share,
    size_bytes,
)


def add_store_verbs(verbs: Verbs) -> None:
    for add in (_stats, _gc, _check, _backup, _restore, _index, _mount, _umount, _doctor, _demo):
        add(verbs)


def _stats(verbs: Verbs) -> None:
    add_verb(
        verbs,
        "stats",
        "ls:stats",
        ("",),
        "show how much the store holds, and what deduplication and compression save",
    )


def _gc(verbs: Verbs) -> None:
    verb = add_verb(
        verbs,
        "gc",
        "gc:gc",
        ("",),
        "collect garbage: free the space of what was removed and overwritten",
        """
Mark and sweep, while others read and write; it may be killed at any moment. It deletes packs that
no name leads to, repacks those of which little is in use, and merges small ones when they are many.
It also deletes this machine's caches of stores on S3 that nobody used for 30 days.

On S3 it is two-phase: one run marks packs as garbage ("condemns" them), a later run, after the
grace period, deletes them. Run it every day. Repacking costs requests there: it is done where it
saves more (by the list prices of AWS), and -n says what it would cost and save.

exit codes:
  0   done
  1   it refused to begin, or the server does not delete some packs: the message says why
  11  another collection is running
  13  it found damage, and left it as it is: run `castore check`
""",
    )
    verb.add_argument("-n", "--dry-run", action="store_true", help="say what would be collected")
    verb.add_argument(
        "--grace",
        type=seconds,
        default=23 * 3600.0,
        metavar="TIME",
        help="on S3, keep condemned packs for so long: 90s, 30m, 24h, 7d, 0 (default: 23h, so that "
        "each of daily runs deletes what the one before condemned); a local store needs none",
    )
    verb.add_argument(
        "--max-repack-bytes",
        type=size_bytes,
        metavar="SIZE",
        help="copy at most so much when repacking: 500M, 10G (default: no bound)",
    )
    verb.add_argument(
        "--repack-below",
        type=share,
        metavar="SHARE",
        help="repack all packs of which less than this is in use, such as 50%% or 0.5; 0: none "
        "(default: 50%%, and on S3 those that it pays to)",
    )
    verb.add_argument(
        "--max-cost",
        type=dollars,
        metavar="DOLLARS",
        help="on S3, spend at most so much on repacking in this run (default: no bound)",
    )
    verb.add_argument(
        "--horizon",
        type=seconds,
        default=90 * 86_400.0,
        metavar="TIME",
        help="on S3, for how long the store is likely to be kept: what repacking saves counts for "
        "so long (default: 90d)",
    )
    verb.add_argument(
        "--alone",
        action="store_true",
        help="say that nobody else writes: needed on S3 servers that ignore preconditions",
    )
    verb.add_argument(
        "--carry-undeletable",
        action="store_true",
        help="go on although the server does not delete some packs; they stay condemned",
    )
    verb.add_argument(
        "--accept-unclaimed",
        action="store_true",
        help="also collect chunks whose names were lost with an index",
    )


def _check(verbs: Verbs) -> None:
    verb = add_verb(
        verbs,
        "check",
        "check:check",
        ("[--read-data[=10%%]]", "--repair [--yes] [--packs-are-lost]"),
        "verify that the store is whole, and repair it",
        """
Without options it verifies the structure: every manifest is whole and leads to frames that are in
their packs, and the index agrees with the packs. --read-data also decodes the frames and compares
them with their ids. It prints what is wrong, and the names that can't be read because of it.

--repair reads all data, says what it would do, asks, and does it. A chunk with another intact copy
is read from that copy from now on. An object with lost bytes is moved below quarantine/, with all
its intact bytes. Nothing that may be of use is deleted. While more packs are missing than present,
as when packs/ is not mounted, it does nothing unless you say --packs-are-lost.

exit codes:
  0   whole; garbage for the next gc is only counted
  1   nothing is lost, but look at what it says
  11  the store is busy: repeat it later
  13  something is damaged
  14  something is missing, or a repair could not save it
""",
    )
    verb.add_argument(
        "--read-data",
        nargs="?",
        const=1.0,
        default=0.0,
        type=percent,
        metavar="PART",
        help="decode all frames, or a random part of them, such as 10%%",
    )
    add_verbose(verb)
    verb.add_argument("--repair", action="store_true", help="mend what can be mended")
    verb.add_argument("--yes", action="store_true", help="repair without asking")
    verb.add_argument(
        "--packs-are-lost", action="store_true", help="the missing packs will not come back"
    )


def _backup(verbs: Verbs) -> None:
    verb = add_verb(
        verbs,
        "backup",
        "backups:backup",
        ("FILE",),
        "write a copy of a local store's index to a file",
        """
The names are in the index. The copy is consistent, whoever uses the store meanwhile. Afterwards
copy the folder packs/ as well, with any tool. `castore restore` puts a backup back.
""",
    )
    verb.add_argument("file", metavar="FILE", help="the backup to write; replaced in one step")


def _restore(verbs: Verbs) -> None:
    verb = add_verb(
        verbs,
        "restore",
        "backups:restore",
        ("FILE",),
        "put a backup of the index back into a local store",
        """
The store is the folder that -r names. Its index is lost or damaged, its packs/ are there, and
nobody uses it. The old index is kept beside the new one. Names that were put since the backup come
from the journal, if that is there. Names that need missing packs are listed (exit code 14).

With --force it replaces an index that is whole: the store goes back to the names of the backup. The
data that was put since has no names then. Every gc keeps it, until you give one --accept-unclaimed.
""",
    )
    verb.add_argument(
        "--force", action="store_true", help="go back to the backup from an index that is whole"
    )
    add_verbose(verb)
    verb.add_argument("file", metavar="FILE", help="the backup")


def _index(verbs: Verbs) -> None:
    verb = add_verb(
        verbs,
        "index",
        "backups:index",
        ("rebuild", "compact"),
        "rebuild the index from packs and journal, or compact its file",
        """
  index rebuild   Makes the index of a local store anew, and castore.json if it is lost. Rows of
                  chunks and packs come from the packs. Names come from the journal, and from the
                  pages of the old index that can be read; lost ones are listed (exit code 14).
                  The old index is kept beside the new one.
                  On S3 it renews this machine's cache, and the hints for other machines.
  index compact   Makes the index file of a local store as small as what is in it.

A local store must not be in use meanwhile.
""",
    )
    add_verbose(verb)
    verb.add_argument("action", choices=["rebuild", "compact"], metavar="rebuild|compact")


def _mount(verbs: Verbs) -> None:
    verb = add_verb(
        verbs,
        "mount",
        "mount:mount",
        ("[STORE] FOLDER",),
        "show a store as a folder (Linux; needs castore[mount] and libfuse 3)",
        """
Names are paths. Each file is one version of an object, to its end; nothing can be changed but with
--writable. Then a file is published when it is closed, and not if its writer is killed. There are
no links, and a folder with nothing in it is gone with the mount.

`castore umount FOLDER` ends it.
""",
        json=False,
    )
    verb.add_argument("-w", "--writable", action="store_true", help="let files be written, too")
    verb.add_argument(
        "--prefix", default="", metavar="PREFIX", help="show only what is below PREFIX/"
    )
    verb.add_argument(
        "-f", "--foreground", action="store_true", help="serve it in this process, until it ends"
    )
    verb.add_argument(
        "places", nargs="+", metavar="FOLDER", help="the store, if not by -r, and the folder"
    )


def _umount(verbs: Verbs) -> None:
    verb = add_verb(
        verbs,
        "umount",
        "mount:umount",
        ("FOLDER",),
        "end a mount; what was closed is published when it returns",
        json=False,
    )
    verb.add_argument(
        "-l", "--lazy", action="store_true", help="also while files in it are open, after a second"
    )
    verb.add_argument("folder", metavar="FOLDER")


def _doctor(verbs: Verbs) -> None:
    verb = add_verb(
        verbs,
        "doctor",
        "doctor:doctor",
        ("[PATH|URL]",),
        "diagnose a store's server, or its folder's disk",
        """
On S3: what the server honours (preconditions, ranges, listings), your rights, the clocks and the
cache. It writes scratch keys below probe/ and removes them. For a folder: whether LMDB opens the
index, the file system, the free space, the C extension.

The exit code is 1 if something has to be changed, else 0.
""",
    )
    verb.add_argument(
        "place",
        nargs="?",
        metavar="PATH|URL",
        help="a folder or s3://bucket/prefix (default: the store of -r or $CASTORE_STORE)",
    )


def _demo(verbs: Verbs) -> None:
    verb = add_verb(
        verbs,
        "demo",
        "demo:demo",
        ("[PATH]",),
        "show it at work on real files",
        """
It stages the files twice in a temporary store, with real edits between. It reads byte ranges and
single files back, checks every byte, and prints what that took and saved.
""",
    )
    verb.add_argument(
        "path",
        nargs="?",
        metavar="PATH",
        help="a folder or file of yours (default: this Python's standard library)",
    )
