"""What the store keeps of a run, below `pipelines/<id>/run/`; archiving the pipeline takes it all.

    tree                      the tree as it was begun, and where, when and by what
    grown/<key>               the tree that a Lazy made, by the key of its Generate
    nodes/<key>               an Exec's state and last attempt
    logs/<key>/<attempt>      what an attempt printed
    workers/<key>/<attempt>   the worker of a cluster that has taken an attempt
    sessions/<number>         who runs it: the first runner, and one for each resume

A node's key is a hash of its path, which may be longer than a name can be.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import secrets
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, BinaryIO

from castore.errors import CastoreError, NameExists, NameNotFound
from conducto import context
from conducto.errors import RunError, RunNotFound
from conducto.nodes import Lazy, Node
from conducto.nodes.kinds import GENERATE
from conducto.nodes.serialization import dumps, loads
from conducto.run.states import Attempts, State, states_of

if TYPE_CHECKING:
    import castore

BEAT_S = 10.0  # how often a runner says that it lives
SILENT_S = 60.0  # after which one whose processes can't be seen from here is taken for dead
LOGS_AT_ONCE = 256
ID_LETTERS = "abcdefghjkmnpqrstuvwxyz23456789"


@dataclass(slots=True)
class Session:
    """A runner. Times are seconds since the epoch."""

    host: str
    pid: int
    began: float
    process: str  # the process's own mark, as its number may be used again
    beat: float
    ended: float | None = None
    namespace: str = ""  # in which the number is that of the process; "" is any

    @staticmethod
    def here(namespace: str = "") -> Session:
        now, pid, host = time.time(), os.getpid(), socket.gethostname()
        return Session(host, pid, now, process_mark(pid), now, namespace=namespace)

    @property
    def is_alive(self) -> bool:
        if self.ended is not None:
            return False
        # Containers that share the network of their machine have its name, too.
        if self.host != socket.gethostname() or self.namespace not in ("", pid_namespace()):
            return time.time() - self.beat < SILENT_S
        return process_mark(self.pid) == self.process

    def still_running(self, run_id: str) -> RunError:
        where = f"process {self.pid} on {self.host}"
        return RunError(f"pipeline {run_id} is still being run, by {where}")


@dataclass(slots=True)
class Run:
    """A run as the store has it."""

    id: str
    root: Node
    cwd: str
    argv: list[str]
    created: float
    execs: dict[str, Attempts]
    session: Session | None  # the last one
    sessions: int
    is_alive: bool  # whether somebody ran it when this was read

    @property
    def states(self) -> dict[Node, State]:
        return states_of(self.root, self.execs, is_alive=self.is_alive)

    @property
    def title(self) -> str:
        return self.root.title or " ".join(self.argv)


class Records:
    """The records of one run in a store."""

    def __init__(self, store: castore.Store, run_id: str) -> None:
        self.store = store
        self.id = context.pipeline_id(run_id)
        self.prefix = f"pipelines/{self.id}/run/"
        self.tree_key = self.prefix + "tree"

    def create(self, root: Node, argv: list[str]) -> None:
        document = {
            "tree": json.loads(dumps(root)),
            "cwd": os.getcwd(),
            "argv": argv,
            "created": time.time(),
        }
        self.store.puts(self.tree_key, _json(document), if_absent=True)

    def claim(self, number: int) -> Session:
        """Be the run's runner number `number`, from 1. Raises RunError if somebody else is;
        RunNotFound, with the number given back, if it was archived since it was loaded."""
        session = self._claim(number)
        # Who archives it claims a number, too, before the tree goes: either that was refused as
        # this one is taken, or this is seen here.
        if not self.store.exists(self.tree_key):
            self._give_back(number)
            raise RunNotFound(self.id)
        return session

    @contextmanager
    def retired(self) -> Iterator[int]:
        """While all that there is of it is deleted. Nobody begins to run it any more; it goes on as
        it was only if this is ended before its tree is gone, by a kill or an error. Gives how many
        names that took, less those that it put. Raises RunError while somebody runs it.

        The tree goes first: on S3 names go one after another, and what is resumed by a half of its
        states would run again what is done, and take for done what has lost its data.
        """
        try:
            session, number = self._last_session()
        except NameNotFound:
            raise RunError(f"pipeline {self.id} is being archived by somebody else") from None
        if session is not None and session.is_alive:
            raise session.still_running(self.id)
        if not number and not self.store.exists(self.tree_key):
            yield 0  # only data
            return
        self._claim(number + 1)
        try:
            deleted = 0
            with suppress(NameNotFound):  # of one that was archived in part
                self.store.delete(self.tree_key)
                deleted = 1
            yield deleted - 1
        except BaseException:
            self._give_back(number + 1)  # who repeats it is not to take us for a runner
            raise

    def _claim(self, number: int) -> Session:
        # A store on a disk is open in one namespace at a time: who reads this sees the process.
        session = Session.here("" if os.path.isabs(self.store.path) else pid_namespace())
        try:
            self.store.puts(self.session_key(number), _json(asdict(session)), if_absent=True)
        except NameExists:
            raise RunError(f"pipeline {self.id} is being run by somebody else") from None
        return session

    def _give_back(self, number: int) -> None:
        with suppress(CastoreError):
            self.store.delete(self.session_key(number))

    def check_last(self, number: int) -> None:
        """Raise RunError if the runner with this number no longer is the run's last one: where its
        process could not be seen, it was taken for dead while it was silent."""
        names = [*self.store.names(self.prefix + "sessions/")]
        # What was archived may have a session again, of a beat at that moment, but no tree.
        if names[-1:] != [self.session_key(number)] or not self.store.exists(self.tree_key):
            raise RunError(
                f"pipeline {self.id} was resumed or archived by somebody else, as this process was "
                "silent for a while: it ends here"
            )

    def take(self, node: str, attempt: int, worker: str) -> bool:
        """Be the worker that makes this attempt; False if another one is."""
        key = f"{self.prefix}workers/{key_of(node)}/{attempt}"
        try:
            self.store.puts(key, worker.encode(), if_absent=True)
        except NameExists:
            return False
        return True

    def taken_by(self, node: str, attempt: int) -> str:
        """The worker that took this attempt; "" if none did."""
        try:
            return self.store.gets(f"{self.prefix}workers/{key_of(node)}/{attempt}").decode()
        except NameNotFound:
            return ""

    def load(self) -> Run:
        """Raises RunNotFound, also if it is archived meanwhile.

        Sessions are read before states: who resumes it with states that another session has
        changed since then claims that session's number, and is refused. The tree, which is written
        first, and archived first, is read last: if it is there, nothing was archived before.
        """
        try:
            return self._load()
        except NameNotFound:  # only archiving it takes any of its names
            raise RunNotFound(self.id) from None

    def _load(self) -> Run:
        session, sessions = self._last_session()
        is_alive = session is not None and session.is_alive
        found = self._all("nodes/").values()
        execs = {each.node: each for each in (Attempts.from_dict(json.loads(d)) for d in found)}
        grown = self._all("grown/")
        document = json.loads(self.store.gets(self.tree_key))
        root = loads(json.dumps(document["tree"]))
        self._grow(root, execs, grown)
        if not is_alive:
            for each in execs.values():
                if each.state is State.RUNNING:
                    each.state, each.reason = State.KILLED, "its runner was killed"
        about = (document["cwd"], document["argv"], document["created"])
        return Run(self.id, root, *about, execs, session, sessions, is_alive)

    @property
    def is_running(self) -> bool:
        """Not if it is archived meanwhile. Raises RunError if that can't be told."""
        with suppress(NameNotFound):
            session, _ = self._last_session()
            return session is not None and session.is_alive
        return False

    def _last_session(self) -> tuple[Session | None, int]:
        """And how many there are. Raises RunError for one that is not as this version has it."""
        names = [*self.store.names(self.prefix + "sessions/")]
        if not names:
            return None, 0
        told = self.store.gets(names[-1])
        try:
            return Session(**json.loads(told)), len(names)
        except (TypeError, ValueError) as error:
            raise RunError(
                f"who runs pipeline {self.id} is recorded in a way that this version can't read: "
                f"{error}"
            ) from error

    def open_log(self, node: str, attempt: int) -> BinaryIO:
        """What the attempt printed, as far as it is kept by now."""
        try:
            return self.store.open(self.log_key(node, attempt))
        except NameNotFound:  # it has printed nothing
            return io.BytesIO()

    def log_ends(self, execs: Iterable[Attempts], bytes_max: int) -> dict[str, tuple[int, bytes]]:
        """The ends of the logs of these last attempts, by their nodes: how many bytes are before,
        and up to `bytes_max` bytes. A node that has printed nothing is left out.

        Many are read at once, as on S3 each would take several requests by itself.
        """
        sizes = {info.name: info.size for info in self.store.list(self.prefix + "logs/")}
        nodes = {self.log_key(each.node, each.attempt): each.node for each in execs}
        keys = sorted(nodes.keys() & sizes.keys())  # neighbours are read together
        found = {}
        for batch in (keys[at : at + LOGS_AT_ONCE] for at in range(0, len(keys), LOGS_AT_ONCE)):
            begins = [max(0, sizes[key] - bytes_max) for key in batch]
            answers = self.store.gets_ranges(
                [(k, (b, sizes[k]) if b else None) for k, b in zip(batch, begins, strict=True)]
            )
            for key, begin, answer in zip(batch, begins, answers, strict=True):
                if isinstance(answer, NameNotFound):  # archived meanwhile
                    continue
                if isinstance(answer, Exception):
                    raise answer
                cut = max(0, len(answer) - bytes_max)  # it may have grown meanwhile
                found[nodes[key]] = begin + cut, answer[cut:]
        return found

    def log_key(self, node: str, attempt: int) -> str:
        return f"{self.prefix}logs/{key_of(node)}/{attempt}"

    def node_key(self, node: str) -> str:
        return f"{self.prefix}nodes/{key_of(node)}"

    def grown_key(self, node: str) -> str:
        return f"{self.prefix}grown/{key_of(node)}"

    def session_key(self, number: int) -> str:
        return f"{self.prefix}sessions/{number:06}"

    def _all(self, folder: str) -> dict[str, bytes]:
        """What is in a folder of the records, by its names."""
        names = [*self.store.names(self.prefix + folder)]
        found = {}
        answers = self.store.gets_ranges([(name, None) for name in names])
        for name, answer in zip(names, answers, strict=True):
            if isinstance(answer, Exception):
                raise answer
            found[name] = answer
        return found

    def _grow(self, root: Node, execs: dict[str, Attempts], grown: dict[str, bytes]) -> None:
        """Put what Lazys made into its places. What grows may have Lazys in it."""
        stack = [root]
        while stack:
            node = stack.pop()
            if isinstance(node, Lazy):
                generate = str(node[GENERATE])
                key, attempts = self.grown_key(generate), execs.get(generate)
                if key in grown:
                    node.grow(loads(grown[key]))
                elif attempts is not None and attempts.state is State.DONE:
                    # On S3 a commit is name by name, and its writer may have been killed.
                    attempts.state, attempts.reason = State.KILLED, "its tree was not recorded"
            stack.extend(node.children.values())


def all_runs(store: castore.Store, left_out: dict[str, str]) -> Iterator[Run]:
    """All pipelines that were run, but for those that are archived meanwhile. `left_out` gets, by
    their ids, why others can't be read: a later version recorded them, say."""
    for entry in store.scandir("pipelines", details=False):
        run_id = entry.name.split("/")[1]
        try:
            with suppress(RunNotFound):
                yield Records(store, run_id).load()
        except (KeyError, RunError, TypeError, ValueError) as error:
            left_out[run_id] = str(error)


def new_id() -> str:
    return "".join(secrets.choice(ID_LETTERS) for _ in range(8))


def key_of(node: str) -> str:
    return hashlib.blake2b(os.fsencode(node), digest_size=12).hexdigest()


def process_mark(pid: int) -> str:
    """What is different in two processes with the same number; "" where there is no such process,
    or one that has ended and that nobody has waited for.

    Without /proc it only says that there is one.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        if os.path.isdir("/proc/self"):
            return ""
    else:
        # A zombie stays for good where a container's first process waits for no others.
        return "" if fields[0] in (b"Z", b"X") else fields[19].decode()  # when it began
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:
        return "exists"  # somebody else's
    return "exists"


def pid_namespace() -> str:
    """What is different in two containers of one machine, where processes have other numbers; ""
    where there is no such thing."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _json(document: object) -> bytes:
    return json.dumps(document).encode()
