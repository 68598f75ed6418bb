"""The data of a pipeline and of its user as plain folders, `pipeline/` and `user/`.

Where there is FUSE they are a mount (see `castore.mount`), else copies: what the store has is
pulled before a node, and what the node changed is pushed after it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress

import castore
from castore.errors import NameNotFound
from castore.mount import MountUnavailable, mount, mounted, unmount
from castore.system.locks import Lock
from conducto import context, data
from conducto.arguments import WHERE, Parameter, UsageError, parse, where
from conducto.cli import complain
from conducto.errors import ContextError
from conducto.run import guard

VARIABLE = "CONDUCTO_DATA_DIR"
PLAIN = "/conducto/data"  # where programs look that do not know the variable
TEMPORARY = "conducto-data-"  # what names of folders begin with
PARAMETERS = (
    Parameter("scope", "pipeline or user", required=False),
    Parameter("folder", "where to mount", required=False),
    Parameter("id", "the pipeline", required=False, positional=False),
    Parameter("read_only", "nothing may be written", "flag", False, False),
    *WHERE,
)

State = tuple[int, int, int, int]
States = dict[str, tuple[str, State]]  # of files: their paths, and states, by their names


def prefixes(scope: str | None = None, *, pipeline_id: str | None = None) -> dict[str, str]:
    """What begins the names in each folder: of one scope (the key ""), or of both, each in a folder
    of its name; of the user alone where the pipeline is not known.

    Raises ContextError where the pipeline is asked for and not known.
    """
    found = {"user": data.user.prefix()}
    if scope != "user":
        try:
            found["pipeline"] = data.pipeline.bound(pipeline_id=pipeline_id).prefix()
        except ContextError:
            if scope == "pipeline" or pipeline_id is not None:
                raise
    return found if scope is None else {"": found[scope]}


class NodeData:
    """What a node finds at `folder`; unless `is_whole`, what it changed there is not pushed."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.is_whole = True


class DataFolder:
    """What the nodes of one run find at $CONDUCTO_DATA_DIR: see `data_folder`.

    For several threads at once. Nothing is mounted before the first node.
    """

    def __init__(self, pipeline_id: str) -> None:
        self._prefixes = prefixes(pipeline_id=pipeline_id)
        self._lock = Lock()
        self._folder: str | None = None
        self._was_tried = False
        self._why_not = ""
        self._ends = ExitStack()

    @contextmanager
    def of_node(self, command: str) -> Iterator[NodeData | None]:
        """The folder for a node, for as long as it runs. None where nothing can be mounted and its
        command does not name the variable, as then nothing is copied for it.

        Without FUSE what the block changed is pushed at its end, and not if it raises.
        """
        folder = self._mounted()
        if folder is not None:
            yield NodeData(folder)
        elif VARIABLE not in command and PLAIN not in command:
            yield None
        else:
            self._say_why_not()
            with _pulled(context.open_store(), self._prefixes) as copied:
                yield copied

    def close(self) -> None:
        """Unmount it. What was closed is published."""
        with self._lock:
            self._was_tried, self._folder = True, None
        self._ends.close()

    def _mounted(self) -> str | None:
        with self._lock:
            if not self._was_tried:
                self._was_tried = True
                try:
                    self._folder = self._mount()
                except MountUnavailable as error:
                    self._why_not = str(error)
            return self._folder

    def _say_why_not(self) -> None:
        """Once, and only if it makes a difference to a node."""
        with self._lock:
            why_not, self._why_not = self._why_not, ""
        if why_not:
            complain(
                f"conducto: nothing can be mounted here ({why_not}): for nodes whose command names "
                f"{VARIABLE} the data is pulled before, and pushed after"
            )

    def _mount(self) -> str:
        url = context.store_url()
        context.open_store()  # made, if there is none
        with ExitStack() as ends:
            at = ends.enter_context(tempfile.TemporaryDirectory(prefix=TEMPORARY))
            # If this run is a node of another one: the mount ends with this one, not with that.
            env = {name: value for name, value in os.environ.items() if name != guard.VARIABLE}
            folder = ends.enter_context(
                mounted(
                    url,
                    at,
                    prefixes=self._prefixes,
                    writable=True,
                    env=env,
                    remove=[PLAIN, at],  # even if this process is killed
                )
            )
            self._ends = ends.pop_all()
        _link(folder)
        return folder


@contextmanager
def data_folder(pipeline_id: str) -> Iterator[DataFolder]:
    """The data of a pipeline and of its user as folders, for the nodes of a run, until the block
    ends: `with folder.of_node(command) as data:` for each of them.

    Where the user may write to `/conducto`, and nothing is at `/conducto/data`, that leads there,
    too. Raises InvalidContext, ContextError; what opening the store raises, at the first node.
    """
    with closing(DataFolder(pipeline_id)) as folder:
        yield folder


def run_mount(words: Sequence[str]) -> int:
    """`conducto mount [pipeline|user] FOLDER`.

    Raises UsageError, ContextError, MountUnavailable."""
    given = parse(PARAMETERS, words)
    scope, folder = given.get("scope"), given.get("folder")
    if folder is None:
        scope, folder = None, scope
    if folder is None or scope not in (None, "pipeline", "user"):
        raise UsageError("mount takes [pipeline|user] FOLDER")
    pipeline_id = given.get("id")
    assert isinstance(scope, str | None)
    assert isinstance(pipeline_id, str | None)
    writable = not given.get("read_only", False)
    context.open_store(**where(given), create=writable)
    mount(
        context.store_url(**where(given)),
        str(folder),
        prefixes=prefixes(scope, pipeline_id=pipeline_id),
        writable=writable,
        quiet=sys.stderr is None or not sys.stderr.isatty(),
    )
    return 0


def run_umount(words: Sequence[str]) -> int:
    """`conducto umount FOLDER`. Raises UsageError, OSError."""
    given = parse((Parameter("folder", "where it is mounted"),), words)
    unmount(str(given["folder"]))
    return 0


# ---------------------------------------------------------------- parts of these


def _link(folder: str) -> None:
    """Let `PLAIN` lead to the mount, where the user may make that and no other run has it."""
    above = os.path.dirname(PLAIN)
    if not os.access(above, os.W_OK):
        return
    # Another run has it, or the link that is left is another user's.
    with _locked(above), suppress(FileExistsError, PermissionError):
        if os.path.islink(PLAIN) and _is_left(os.readlink(PLAIN)):
            os.unlink(PLAIN)
        os.symlink(folder, PLAIN)


def _is_left(folder: str) -> bool:
    """Whether a mount was there that has gone without its link, as at a power cut."""
    if not os.path.basename(folder).startswith(TEMPORARY):
        return False  # it is none of ours
    try:
        os.stat(folder)
    except FileNotFoundError:
        return True
    except OSError as error:
        return error.errno == errno.ENOTCONN  # of who served it, only the mount is left
    return False


@contextmanager
def _locked(folder: str) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _pulled(store: castore.Store, prefixes: dict[str, str]) -> Iterator[NodeData]:
    """A copy of what is below the prefixes; what is changed in it is pushed, in one commit."""
    with tempfile.TemporaryDirectory(prefix=TEMPORARY) as folder:
        for scope, prefix in prefixes.items():
            os.mkdir(os.path.join(folder, scope))
            with suppress(NameNotFound):
                store.export_folder(prefix, os.path.join(folder, scope))
        before = _states(folder, prefixes)
        copied = NodeData(folder)
        yield copied
        if not copied.is_whole:
            return
        after = _states(folder, prefixes)
        while True:
            try:
                _push(store, before, after)
                return
            except NameNotFound:  # another deleted one of them just now: it need not be
                continue


def _push(store: castore.Store, before: States, after: States) -> None:
    with store.transaction() as transaction:
        for name, (path, state) in after.items():
            if name not in before or before[name][1] != state:
                transaction.put(name, path, mtime_ns=state[1])
        for name in before.keys() - after.keys():
            if store.exists(name):
                transaction.delete(name)


def _states(folder: str, prefixes: dict[str, str]) -> States:
    """The path of each file, and what tells whether it was changed, by its name in the store.

    Raises OSError for a folder that can't be read: what is in it was not deleted.
    """

    def unreadable(error: OSError) -> None:
        raise error

    found = {}
    for scope, prefix in prefixes.items():
        top = os.path.join(folder, scope)
        for inner, _, files in os.walk(top, onerror=unreadable):
            for file in files:
                path = os.path.join(inner, file)
                if not os.path.isfile(path):  # a pipe, or a link to nothing
                    continue
                status = os.stat(path)
                name = prefix + os.path.relpath(path, top)
                found[name] = (
                    path,
                    (status.st_size, status.st_mtime_ns, status.st_ino, status.st_ctime_ns),
                )
    return found
