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
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from conducto.nodes import Image
from conducto.run.executor import Executor, Job, Outcome
from conducto.run.states import State

READY = "conducto-ready"


def provide(
    image: Image, job: Job, executor: Executor, output: Callable[[bytes], None]
) -> tuple[str, Outcome | None]:
    """The folder of the environment that has the image's requirements, made if there is none.

    It is made with `job`'s variables and time limit; what that prints goes to `output`. The
    outcome is None, or how making it failed.
    """
    requirements = sorted({each.strip() for each in image.reqs_py if not _is_conducto(each)})
    folder = os.path.join(cache_folder(), "venvs", _key(image, requirements))
    with _locked(folder + ".lock"):
        if os.path.exists(os.path.join(folder, READY)):
            return folder, None
        output(
            f"conducto: making {folder} for {', '.join(requirements) or 'no package'}\n".encode()
        )
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
        made = executor.run(
            job.replaced(command=" && ".join(steps), cwd=image.instantiation_directory), output
        )
        if made.state is not State.DONE:
            if made.state is State.ERROR:
                made = Outcome(made.state, made.exit_code, f"reqs_py: {made.reason}")
            return folder, made
        _let_in_our_own(folder)
        with open(os.path.join(folder, READY), "w", encoding="utf-8") as file:
            file.write("\n".join(requirements))
    return folder, None


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
def _locked(path: str) -> Iterator[None]:
    """One makes it, and the others wait; the lock ends with its process."""
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
