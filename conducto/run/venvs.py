"""Virtual environments for `reqs_py`: one for each set of requirements, made once and kept.

They are in $CONDUCTO_CACHE_DIR, by default ~/.cache/conducto, and may be deleted while nothing
runs. What the environment of the pipeline itself has can be imported in them, too: conducto is
there without being asked for, and is not downloaded.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from conducto.nodes import Image
from conducto.run.executor import INTERRUPTED, Executor, Job, Outcome
from conducto.run.states import State

READY = "conducto-ready"
POLL_S = 0.1


def provide(
    image: Image, job: Job, executor: Executor, output: Callable[[bytes], None]
) -> tuple[str, Outcome | None]:
    """The folder of the environment that has the image's requirements, made if there is none.

    It is made with `job`'s variables and time limit; what that prints goes to `output`. The
    outcome is None, or how making it failed.
    """
    requirements = sorted({each.strip() for each in image.reqs_py if not _is_conducto(each)})
    folder = os.path.join(cache_folder(), "venvs", _key(image, requirements))
    os.makedirs(os.path.dirname(folder), mode=0o700, exist_ok=True)
    with _lock_file(folder + ".lock") as lock:
        failed = _locked(lock, job.timeout_s, executor)
        if failed is None and not os.path.exists(os.path.join(folder, READY)):
            wanted = ", ".join(requirements) or "no package"
            output(f"conducto: making {folder} for {wanted}\n".encode())
            command = _command(folder, requirements)
            made = executor.run(
                job.replaced(command=command, cwd=image.instantiation_directory), output
            )
            if made.state is State.DONE:
                _finish(folder, requirements)
            else:
                failed = made
    if failed is not None and failed.state is State.ERROR:
        failed = Outcome(failed.state, failed.exit_code, f"reqs_py: {failed.reason}")
    return folder, failed


def cache_folder() -> str:
    """Where conducto keeps what it can make again, on this machine."""
    given = os.environ.get("CONDUCTO_CACHE_DIR")
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join("~", ".cache")
    return os.path.abspath(os.path.expanduser(given or os.path.join(base, "conducto")))


def interpreter_key() -> str:
    return hashlib.blake2b(f"{sys.executable}\n{sys.version}".encode(), digest_size=8).hexdigest()


def _key(image: Image, requirements: list[str]) -> str:
    """Of what the requirements are; a file or folder among them counts with its time."""
    found: list[object] = [interpreter_key()]
    for requirement in requirements:
        path = os.path.join(image.instantiation_directory, requirement)
        stamp = os.stat(path).st_mtime_ns if os.path.exists(path) else None
        found.append([path if stamp else requirement, stamp])
    return hashlib.blake2b(json.dumps(found).encode(), digest_size=16).hexdigest()


def _is_conducto(requirement: str) -> bool:
    """The package that runs this; by that name, a registry has another one."""
    name = re.split(r"[^\w.-]", requirement.strip(), maxsplit=1)[0]
    return name.lower() in ("conducto", "castore")


def _command(folder: str, requirements: list[str]) -> str:
    """What makes the environment."""
    if os.path.exists(folder):
        shutil.rmtree(folder)  # what one that was killed left
    python = os.path.join(folder, "bin", "python")
    # Our own pip can install into it, which spares it a pip, if there is one here.
    pip = [sys.executable, "-m", "pip", "--python", python]
    own_pip = importlib.util.find_spec("pip") is not None
    bare = ["--without-pip"] if own_pip or not requirements else []
    steps = [shlex.join([sys.executable, "-m", "venv", *bare, folder])]
    if requirements:
        install = ["install", "--quiet", "--disable-pip-version-check", "--", *requirements]
        steps.append(shlex.join([*(pip if own_pip else [python, "-m", "pip"]), *install]))
    return " && ".join(steps)


def _finish(folder: str, requirements: list[str]) -> None:
    """From now on it is made."""
    _let_in_our_own(folder)
    with open(os.path.join(folder, READY), "w", encoding="utf-8") as file:
        file.write("\n".join(requirements))


def _let_in_our_own(folder: str) -> None:
    """Behind its own packages; with their .pth files, so that editable installs work."""
    packages = sysconfig.get_path("purelib", "venv", {"base": folder, "platbase": folder})
    ours = [
        path for path in sys.path if os.path.basename(path) in ("site-packages", "dist-packages")
    ]
    here = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    lines = [f"import site; site.addsitedir({path!r})" for path in ours]
    with open(os.path.join(packages, "zz_conducto.pth"), "w", encoding="utf-8") as file:
        file.write("\n".join([*lines, here]) + "\n")


@contextmanager
def _lock_file(path: str) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _locked(lock: int, timeout_s: float, executor: Executor) -> Outcome | None:
    """One makes it, and the others wait, as long as a command may take; the lock ends with its
    process. The outcome is None, or why it was not waited for any longer."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                reason = f"another process was still making it after {timeout_s:g} s"
                return Outcome(State.ERROR, reason=reason)
            if executor.wait(POLL_S):
                return Outcome(State.KILLED, reason=INTERRUPTED)
        else:
            return None
