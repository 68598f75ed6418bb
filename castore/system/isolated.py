"""Work that may kill a process, done in one of its own.

LMDB trusts its pages: a damaged one can end the process that looks at it (SIGBUS, SIGSEGV, a failed
assertion), and no error handler sees that coming. So whoever looks at an index that may be damaged
does it in a child, and tells of the child's death as what it is, an IndexCorrupt.

A child is a fresh interpreter, not a fork: the parent's environments, locks and threads are not
there to be minded.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Collection, Generator, Iterator
from importlib import import_module
from typing import Any, BinaryIO, TypeAlias

from castore import errors
from castore.errors import CastoreError, IndexCorrupt, StoreIOError, describe_os_error
from castore.system.fileio import take_standard_descriptors, typed_error
from castore.system.translated import Translated

Report: TypeAlias = Callable[[dict[str, Any]], None]

# The standard library comes before everything else, and castore from where the parent has it.
_PROGRAM = (
    "import json, sys, typing; root, path = json.loads(sys.argv[1]); "
    "sys.path.insert(0, root); import castore; "
    "sys.path[:] = dict.fromkeys([*sys.path[1:], *path]); "
    "from castore.system.isolated import _main; "
    "_main(sys.argv[2], sys.stdin.buffer.read().decode(), int(sys.argv[3]))"
)
# Signals by which LMDB's pages, and not the user, end a process.
_BY_DAMAGE = (signal.SIGBUS, signal.SIGSEGV, signal.SIGABRT, signal.SIGILL, signal.SIGFPE)
_LATER = "restore it (castore restore), or take what is left of it (castore index rebuild)"


def run(
    task: str, index_path: str, *, fds: Collection[int] = (), **arguments: Any
) -> Iterator[dict[str, Any]]:
    """What `task`, "module:function", reports when a child calls it with a Report and these
    arguments (of JSON's types); `fds` are open there by the same numbers.

    Raises the CastoreError that it raised; IndexCorrupt if it died of a damaged page of the index
    at `index_path`; StoreIOError if it ended in any other way, or could not begin.
    """
    take_standard_descriptors()  # the child has others there
    with _beginning(index_path):
        reading, writing = os.pipe()
    try:
        with contextlib.ExitStack() as files:
            with _beginning(index_path):
                # Not pipes: nobody reads complaints before the end, and arguments may be larger
                # than one. They are larger than a command line, too, where they name thousands of
                # packs.
                told = files.enter_context(_scratch_file())
                complaints = files.enter_context(_scratch_file())
                told.write(json.dumps(arguments).encode())
                told.seek(0)
                child = subprocess.Popen(
                    [
                        sys.executable,
                        "-P",
                        "-c",
                        _PROGRAM,
                        json.dumps([_root(), _search_path()]),
                        task,
                        str(writing),
                    ],
                    stdin=told,
                    stdout=subprocess.DEVNULL,
                    stderr=complaints,
                    env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
                    pass_fds=(writing, *fds),
                )
            os.close(writing)
            writing = -1
            try:
                ended = yield from _reports(reading)
            except BaseException:
                child.kill()
                raise
            finally:
                status = child.wait()
            if not ended:
                complaints.seek(0)
                said = complaints.read(4096).decode(errors="replace").strip().splitlines()
                raise _died(status, index_path, said[-1] if said else "")
    finally:
        os.close(reading)
        if writing >= 0:
            os.close(writing)


def _beginning(index_path: str) -> Translated:
    """Who may have no more descriptors or processes is told so of what it was to look at."""

    def told(error: BaseException) -> Exception | None:
        of_python = isinstance(error, (FileNotFoundError, PermissionError))
        return None if of_python else typed_error(error, index_path)

    return Translated(told)


def _scratch_file() -> BinaryIO:
    """A file without a name, in memory where the system can: no folder need be writable."""
    if hasattr(os, "memfd_create"):
        return open(os.memfd_create("castore"), "w+b")
    from tempfile import TemporaryFile

    return TemporaryFile()


def _reports(reading: int) -> Generator[dict[str, Any], None, bool]:
    """The child's reports; True if it came to its end."""
    with open(reading, encoding="utf-8", closefd=False) as lines:
        for line in lines:
            if not line.endswith("\n"):
                return False  # it died in the middle
            document = json.loads(line)
            if "raised" in document:
                raise _raised(document)
            if "ended" in document:
                return True
            yield document
    return False


def _died(status: int, index_path: str, said: str) -> CastoreError:
    if -status in _BY_DAMAGE:
        return IndexCorrupt(
            f"the index {index_path} is damaged: LMDB died of it "
            f"({signal.Signals(-status).name}{': ' + said if said else ''}): {_LATER}"
        )
    how = f"by {signal.Signals(-status).name}" if status < 0 else f"with status {status}"
    return StoreIOError(f"the process that looked at {index_path} ended {how} ({said})")


def _raised(document: dict[str, Any]) -> CastoreError:
    kind = getattr(errors, document["raised"], None)
    message: str = document["message"]
    if kind in (
        errors.ConfigLost,
        errors.FormatError,
        errors.IndexChanged,
        errors.IndexCorrupt,
        errors.NotAStore,
        errors.StoreFull,
    ):
        return kind(message)  # type: ignore[no-any-return]
    if document["errno"] in (errno.EACCES, errno.EPERM):
        return errors.PermissionDenied(document["path"])
    if kind in (errors.StoreLocked, errors.StoreNotFound, errors.ReadOnlyStore):
        return kind(document["errno"], message)  # type: ignore[no-any-return]
    return StoreIOError(message, document["errno"])


def _root() -> str:
    """The folder that castore is in."""
    return os.path.abspath(os.path.join(__file__, "..", "..", ".."))


def _search_path() -> list[str]:
    """Where this process finds modules, but for the current folder: a program that is given no
    script has that first, and so has an empty entry of PYTHONPATH. Whoever may write there must
    not be able to have their `random.py` run by a check. Unless castore itself comes from there."""
    try:
        here = os.path.realpath(os.curdir)
    except FileNotFoundError:  # it was removed
        here = ""
    if here == os.path.realpath(_root()):
        here = ""
    return [path for path in sys.path if os.path.isabs(path) and os.path.realpath(path) != here]


def _main(task: str, arguments: str, writing: int) -> None:
    with open(writing, "w", encoding="utf-8") as lines:

        def report(document: dict[str, Any]) -> None:
            lines.write(json.dumps(document) + "\n")
            lines.flush()

        module, _, function = task.partition(":")
        try:
            getattr(import_module(module), function)(report, **json.loads(arguments))
        except (CastoreError, OSError) as error:
            path = getattr(error, "filename", None) or ""
            code = getattr(error, "errno", None) or errno.EIO
            message = str(error) if isinstance(error, CastoreError) else describe_os_error(error)
            kind = type(error).__name__
            report({"raised": kind, "message": message, "errno": code, "path": str(path)})
        except MemoryError:
            message = "there is not enough memory for it: raise ulimit -v"
            report({"raised": "StoreIOError", "message": message, "errno": errno.ENOMEM})
        else:
            report({"ended": True})
