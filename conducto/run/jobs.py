"""From a node to a job: its environment, its folder, its shell, and the packages it wants."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace

from conducto import context
from conducto.mount import VARIABLE as DATA_DIR
from conducto.mount import DataFolder
from conducto.nodes import Exec, Image, Lazy, TreeError
from conducto.nodes.kinds import GENERATE
from conducto.run import venvs
from conducto.run.executor import Executor, Job, Outcome
from conducto.run.guard import VARIABLE
from conducto.run.options import PRINT_TREE
from conducto.run.states import State
from conducto.secrets import Masker, NodeSecrets

PLACES = ("CONDUCTO_BASE_DIR", "CONDUCTO_CONFIG", "CONDUCTO_CACHE_DIR")
RESOURCES = ("cpu", "gpu", "mem")  # what a node may ask for; mem in GB


@dataclass(frozen=True, slots=True)
class Task:
    """A node's command as it is on every machine: without what it gets of the one it runs on, and
    without secrets."""

    node: str
    command: str
    image: Image
    env: Mapping[str, str]  # the nodes' own
    timeout_s: float
    is_generate: bool
    resources: Mapping[str, float]

    @staticmethod
    def of(node: Exec) -> Task:
        asked = {name: node.inherited(name) for name in RESOURCES}
        return Task(
            node=str(node),
            command=node.command,
            image=node.image or Image(),
            env=node.environment(),
            timeout_s=node.max_time_s(),
            is_generate=isinstance(node.parent, Lazy) and node.name == GENERATE,
            resources={name: float(value) for name, value in asked.items() if value},
        )


class Jobs:
    """What the nodes of one run have in common on one machine."""

    def __init__(
        self, pipeline_id: str, cookie: str, cwd: str, secrets: NodeSecrets, data: DataFolder
    ) -> None:
        """`cookie` marks its processes, for whoever has to end them."""
        self._data = data
        self._cwd = cwd
        self._secrets = secrets
        self._masker = secrets.masker()
        self._bin = _python_folder()
        self._own_bin = os.path.dirname(sys.executable)
        self._base = {
            "PYTHONUNBUFFERED": "1",  # so that a log has what was printed before a crash
            **os.environ,
            **secrets.environment,
        }
        if not context.is_local():  # else each would ask STS, to find the run's store
            self._base["CONDUCTO_IDENTITY_ID"] = context.identity()
        for name in PLACES:  # from the node's folder, the same words lead to another store
            if path := os.environ.get(name):
                self._base[name] = path if path.startswith("~") else os.path.abspath(path)
        self._base.pop(DATA_DIR, None)  # nor of another pipeline
        self._base.pop(PRINT_TREE, None)  # this may itself be what a Lazy runs
        self._ours = {"CONDUCTO_PIPELINE_ID": pipeline_id, VARIABLE: cookie}

    def masker(self) -> Masker:
        """What hides the values of secrets in what one attempt prints."""
        return self._masker.another()

    def refuse_secrets(self, tree: bytes) -> None:
        """Raise TreeError for a tree with a secret in it."""
        refuse_secrets(self._secrets, tree)

    def run(self, task: Task, executor: Executor, output: Callable[[bytes], None]) -> Outcome:
        """Run the command, in the environment of its requirements, which is made if need be."""
        image = task.image
        env = {**self._base, **task.env, **self._ours, "CONDUCTO_NODE": task.node}
        if task.is_generate:
            env[PRINT_TREE] = "1"
        job = Job(
            node=task.node,
            command=task.command,
            shell=_shell(image),
            env=self._with_path(env, self._bin),
            cwd=image.folder or self._cwd,
            timeout_s=task.timeout_s,
        )
        if image.reqs_py:
            folder, failed = venvs.provide(image, job, executor, output)
            if failed is not None:
                return failed
            env["VIRTUAL_ENV"] = folder
            job = job.replaced(env=self._with_path(env, os.path.join(folder, "bin")))
        if not os.path.isdir(job.cwd):
            return Outcome(State.ERROR, reason=f"there is no folder {job.cwd!r} to run in")
        outcome = None
        try:
            with self._data.of_node(task.command) as data:
                if data is not None:
                    job = job.replaced(env={**job.env, DATA_DIR: data.folder})
                outcome = executor.run(job, output)
                if data is not None:
                    data.is_whole = not outcome.is_cut_short
        except (OSError, ValueError) as error:
            if outcome is None:
                raise
            lost = f"what it changed in its data was not kept: {error}"
            reason = f"{outcome.reason}; {lost}" if outcome.reason else lost
            return replace(outcome, state=State.ERROR, reason=reason)
        return outcome

    def _with_path(self, env: Mapping[str, str], folder: str) -> dict[str, str]:
        """`python` is found in the folder first. Behind all others is where this interpreter's own
        commands are, such as conducto's."""
        path = (folder, env.get("PATH", os.defpath), self._own_bin)
        return {**env, "PATH": os.pathsep.join(filter(None, path))}


def refuse_secrets(secrets: NodeSecrets, tree: bytes) -> None:
    """Raise TreeError for a tree with the value of a secret in it: the store would keep it, others
    would see it among the processes, and with a mask in its place it would not work."""
    names = secrets.found_in(b"\n".join((tree, *_texts(tree))))
    if names:
        raise TreeError(
            f"its tree has the value of a secret in it ({', '.join(names)}), and was not kept: let "
            "commands read the variable, or, if it is no secret, put it with --no-mask"
        )


def _texts(tree: bytes) -> list[bytes]:
    """All that it says, without the quotes that JSON puts around those of a shell."""
    found: list[bytes] = []

    def look(value: object) -> None:
        if isinstance(value, str):
            found.append(value.encode("utf-8", "surrogatepass"))
        elif isinstance(value, dict):
            look([*value, *value.values()])
        elif isinstance(value, list):
            for each in value:
                look(each)

    with suppress(ValueError):  # it is no tree: whoever reads it says so
        look(json.loads(tree))
    return found


def _shell(image: Image) -> str:
    if image.shell != Image.AUTO:
        return image.shell
    return next(path for path in ("/bin/bash", "/bin/sh") if os.path.exists(path))


def _python_folder() -> str:
    """Where `python` is this interpreter, and nothing is that would come before other programs of
    the same name: the folder of a virtual environment, or one with just the links."""
    if sys.prefix != sys.base_prefix:
        return os.path.dirname(sys.executable)
    folder = os.path.join(venvs.cache_folder(), "python", venvs.interpreter_key())
    os.makedirs(folder, mode=0o700, exist_ok=True)
    for name in ("python", "python3"):
        if not os.path.exists(os.path.join(folder, name)):
            with tempfile.TemporaryDirectory(dir=folder) as made:
                os.symlink(sys.executable, os.path.join(made, name))
                os.replace(os.path.join(made, name), os.path.join(folder, name))
    return folder
