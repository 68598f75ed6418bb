"""`co.Image`: what a node wants around it.

Nothing here starts containers. Of an image, `reqs_py`, `shell` and the folder of `copy_dir` or
`copy_repo` are acted on; the rest is kept, so that pipelines that say it can be read and run.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep

CONTAINER_FIELDS = (  # what only a container could give
    "image",
    "dockerfile",
    "docker_build_args",
    "context",
    "copy_url",
    "copy_branch",
    "reqs_npm",
    "reqs_packages",
    "reqs_docker",
)


class SameContainer:
    """Values of `same_container`, the older name of `container_reuse_context`."""

    INHERIT = "inherit"
    NEW = "new"
    ESCAPE = "escape"


class ContainerReuseContext:
    """Values of `container_reuse_context`: kept, and not acted on, as there are no containers."""

    GLOBAL = "global"
    NEW = "new"


class Image:
    """The surroundings of a node and of all below it.

    `image` or `dockerfile`, `docker_build_args` and `context` say which container it is made for.
    `copy_dir` is a folder, relative to the file that makes the Image: nodes run in it. `copy_repo`
    is the root of that file's Git repository instead. With `docker_auto_workdir=False` nodes run
    where the pipeline was begun. `reqs_py` are requirements for pip: nodes run in a virtual
    environment that has them. `shell` is the path of the shell for commands; AUTO is bash where
    there is one, else sh.
    """

    AUTO = "__auto__"

    def __init__(
        self,
        image: str | None = None,
        *,
        dockerfile: str | None = None,
        docker_build_args: Mapping[str, str] | None = None,
        context: str | None = None,
        copy_repo: bool = False,
        copy_dir: str | None = None,
        copy_url: str | None = None,
        copy_branch: str | None = None,
        docker_auto_workdir: bool = True,
        reqs_py: Sequence[str] | None = None,
        reqs_npm: Sequence[str] | None = None,
        reqs_packages: Sequence[str] | None = None,
        reqs_docker: bool = False,
        path_map: Mapping[str, str] | None = None,
        shell: str = AUTO,
        name: str | None = None,
        instantiation_directory: str | None = None,
    ) -> None:
        if isinstance(reqs_py, str):
            raise TypeError(f"reqs_py is a list of requirements, not the text {reqs_py!r}")
        if not all(isinstance(each, str) for each in reqs_py or ()):
            raise TypeError(f"requirements are text, not {reqs_py!r}")
        self.image = image
        self.dockerfile = dockerfile
        self.docker_build_args = dict(docker_build_args or {})
        self.context = context
        self.copy_repo = bool(copy_repo)
        self.copy_dir = None if copy_dir is None else os.fspath(copy_dir)
        self.copy_url = copy_url
        self.copy_branch = copy_branch
        self.docker_auto_workdir = docker_auto_workdir
        self.reqs_py = list(reqs_py or ())
        self.reqs_npm = list(reqs_npm or ())
        self.reqs_packages = list(reqs_packages or ())
        self.reqs_docker = reqs_docker
        self.path_map = {str(outside): inside for outside, inside in (path_map or {}).items()}
        self.shell = os.fspath(shell)
        self.name = name
        self.instantiation_directory = os.fspath(instantiation_directory or caller_folder())

    def to_dict(self) -> dict[str, Any]:
        """What `Image(**fields)` makes again; fields that say nothing are left out."""
        plain = vars(Image(instantiation_directory=self.instantiation_directory))
        return {
            field: value
            for field, value in vars(self).items()
            if field == "instantiation_directory" or value != plain[field]
        }

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Image) and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]  # its fields may be changed

    def __repr__(self) -> str:
        fields = self.to_dict()
        del fields["instantiation_directory"]
        return f"Image({', '.join(f'{field}={value!r}' for field, value in fields.items())})"

    @property
    def folder(self) -> str | None:
        """Where its nodes run, as an absolute path; None is where the pipeline was begun."""
        if not self.docker_auto_workdir:
            return None
        if self.copy_dir is not None:
            return os.path.normpath(os.path.join(self.instantiation_directory, self.copy_dir))
        return _repository(self.instantiation_directory) if self.copy_repo else None

    def asks_for_containers(self) -> list[str]:
        """The fields that it sets and that only a container could give."""
        return [field for field in CONTAINER_FIELDS if getattr(self, field)]


def relpath(path: str | os.PathLike[str]) -> str:
    """The whole path of what is at `path`, which is relative to the file that calls this: what a
    command, or a node's function, finds it by in whatever folder it runs. A link is followed.

        co.Exec(f"sort {co.relpath('words.txt')}")
    """
    return os.path.realpath(os.path.join(caller_folder(), path))


def caller_folder() -> str:
    """The folder of the nearest file on the stack that is not this package's."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(PACKAGE):
        frame = frame.f_back
    # The code's own name for it may be relative to where the process was begun.
    path = frame.f_globals.get("__file__") or frame.f_code.co_filename
    return os.path.dirname(os.path.abspath(path)) if os.path.exists(path) else os.getcwd()


def _repository(folder: str) -> str:
    while not os.path.exists(os.path.join(folder, ".git")):
        above = os.path.dirname(folder)
        if above == folder:
            raise ValueError("copy_repo: the file that makes the Image is in no Git repository")
        folder = above
    return folder
