"""What all nodes are: a name, a place in a tree, options, and children."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar
from weakref import ReferenceType, ref

from conducto.nodes.image import Image, SameContainer
from conducto.nodes.pretty import lines

if TYPE_CHECKING:
    from typing import Unpack

Self = TypeVar("Self", bound="Node")
UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
MAX_TIME_DEFAULT = "4h"


class TreeError(ValueError):
    """A node can't be put there."""


class Options(TypedDict, total=False):
    """What every node takes by keyword; see `Node`."""

    env: Mapping[str, str] | None
    skip: bool
    name: str | None
    cpu: float | None
    gpu: int | None
    mem: float | None
    requires_docker: bool | None
    docker_run_args: list[str] | str | None
    suppress_errors: bool
    max_time: float | str | None
    max_concurrent: int | None
    retries: int | None
    container_reuse_context: str | None
    same_container: str | None
    image: Image | str | None
    doc: str | None
    title: str | None
    tags: Iterable[str] | str | None


class Node:
    """A node of a pipeline. Each option may be given when it is made, or set later.

    For it and all below it, unless they say otherwise: `env`, variables that are merged over those
    of its parents; `max_time`, how long one attempt of a command may take, in seconds or as "90s",
    "5m", "4h", "1d" (default: 4h); `retries`, how often a command that failed is run again
    (default: 0); `image`, an Image or the name of one.

    `skip` passes over it and all below it. `suppress_errors` makes it end well whatever fails
    below it. `max_concurrent` bounds how many of the commands below it run at once. `doc` is
    Markdown about it, `title` and `tags` are for lists of runs.

    `name` is for a node that is made within a `with` of its parent: it attaches itself there.
    Otherwise the parent's `tree["name"] = node` does.

    `cpu`, `gpu` and `mem` (in GB) are what its commands need of a cluster's worker; on this
    machine they are not acted on. `requires_docker`, `docker_run_args`, `container_reuse_context`
    and `same_container` are kept, and never acted on: nothing here starts containers.
    """

    is_group = True  # whether nodes may be below it
    is_ordered = False  # whether they run one after another
    __iter__ = None  # so that a loop over a node is an error, and not a call of __getitem__(0)

    def __init__(self, **options: Unpack[Options]) -> None:
        self.parent: Node | None = None
        self.children: dict[str, Node] = {}
        self._name = "/"
        self._image: Image | None = None
        self._tags: list[str] = []
        self.env: dict[str, str] = {}
        self.skip = False
        self.cpu: float | None = None
        self.gpu: int | None = None
        self.mem: float | None = None
        self.requires_docker: bool | None = None
        self.docker_run_args: list[str] | str | None = None
        self.suppress_errors = False
        self.max_time: float | str | None = None
        self.max_concurrent: int | None = None
        self.retries: int | None = None
        self.container_reuse_context: str | None = None
        self.doc: str | None = None
        self.title: str | None = None
        self.set(**options)
        self._made: list[tuple[ReferenceType[Node], str]] = []  # within a `with` of it
        if open_nodes.get():
            open_nodes.get()[-1]._made.append((ref(self), self.brief()))

    def set(self, **options: Unpack[Options]) -> None:
        """Set several options at once. TypeError for one that there is not."""
        unknown = options.keys() - Options.__annotations__.keys()
        if unknown:
            raise TypeError(f"{type(self).__name__} has no option {sorted(unknown)[0]!r}")
        given: dict[str, Any] = {k: v for k, v in options.items() if v is not None}
        name = given.pop("name", None)
        same = given.pop("same_container", SameContainer.INHERIT)
        if same != SameContainer.INHERIT:
            if "container_reuse_context" in given:
                raise ValueError("same_container is an older name of container_reuse_context")
            given["container_reuse_context"] = same
        for option, value in given.items():
            setattr(self, option, value)
        if name is not None:
            self._attach(name)

    def __setattr__(self, option: str, value: Any) -> None:
        if value is not None and option in CHECKS:
            value = CHECKS[option](value)
        super().__setattr__(option, value)

    def _attach(self, name: str) -> None:
        if not open_nodes.get():
            raise ValueError(f"name={name!r} is for a node made within a `with` of its parent")
        if "/" in name:
            raise ValueError(f"a name has no '/': {name!r}")
        open_nodes.get()[-1][name] = self

    @property
    def name(self) -> str:
        """Its name among its siblings; "/" for a tree's root."""
        return self._name

    @property
    def image(self) -> Image | None:
        """The image that it runs in: its own, or that of the nearest node above that has one."""
        return next((node._image for node in self.lineage() if node._image is not None), None)

    @image.setter
    def image(self, image: Image | str | None) -> None:
        if not isinstance(image, Image | str | None):
            raise TypeError(f"an image is an Image or the name of one, not {image!r}")
        self._image = Image(image) if isinstance(image, str) else image

    @property
    def own_image(self) -> Image | None:
        return self._image

    @property
    def tags(self) -> list[str]:
        return self._tags

    @tags.setter
    def tags(self, tags: Iterable[str] | str | None) -> None:
        listed = [tags] if isinstance(tags, str) else list(tags or ())
        if not all(isinstance(tag, str) for tag in listed):
            raise TypeError(f"tags are text, not {tags!r}")
        self._tags = listed

    def lineage(self) -> Iterator[Node]:
        """It, its parent, and so on up to the root."""
        node: Node | None = self
        while node is not None:
            yield node
            node = node.parent

    @property
    def root(self) -> Node:
        return [*self.lineage()][-1]

    def inherited(self, option: str) -> Any:
        """The option's value here, or at the nearest node above that has one; None if none has."""
        values = (getattr(node, option) for node in self.lineage())
        return next((value for value in values if value is not None), None)

    def environment(self) -> dict[str, str]:
        """Its variables, over those of the nodes above it."""
        merged: dict[str, str] = {}
        for node in [*self.lineage()][::-1]:
            merged.update(node.env)
        return merged

    def max_time_s(self) -> float:
        """How long one attempt of its command may take, in seconds."""
        limit = self.inherited("max_time")
        return seconds(MAX_TIME_DEFAULT if limit is None else limit)

    def stream(self) -> Iterator[Node]:
        """It and all below it, each before its children, in their order."""
        stack = [self]
        while stack:
            node = stack.pop()
            yield node
            stack.extend(reversed(node.children.values()))

    def brief(self) -> str:
        """What an error says of it while it is in no tree."""
        return type(self).__name__

    def label(self) -> str:
        """What a tree that is printed says of it."""
        return self.name

    def pretty(self) -> str:
        """The tree as lines for people."""
        return "\n".join(lines(self))

    def __str__(self) -> str:
        """Its path from the root, such as "/build/test"; "/" for the root itself."""
        names = [node.name for node in self.lineage()][-2::-1]
        return "/" + "/".join(names)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self}>"

    def __enter__(self: Self) -> Self:
        open_nodes.set((*open_nodes.get(), self))
        return self

    def __exit__(self, raised: type[BaseException] | None, *_: object) -> None:
        if open_nodes.get()[-1:] != (self,):
            raise TreeError(f"the innermost `with` is not that of {self!r}")
        open_nodes.set(open_nodes.get()[:-1])
        lost = [brief for made, brief in self._made if made() is None]
        self._made.clear()
        if lost and raised is None:
            # Nobody can put it anywhere any more, and it would never run.
            raise TreeError(f"a node without a name was put nowhere in {self!r}: {lost[0]}")

    def __setitem__(self, path: str, node: Node) -> None:
        """Put a node there: `tree["a/b"] = node` below the node "a", which is there already.

        TreeError where there is one, or if `node` is in a tree, or this tree is in it.
        """
        if not isinstance(node, Node):
            raise TypeError(f"{path!r} is to be a node, not {node!r}")
        above, _, name = path.rpartition("/")
        parent = self[above] if above or path.startswith("/") else self
        if not name:
            raise ValueError(f"a node's name is not empty: {path!r}")
        if name in (".", "..") or any(letter < " " for letter in name):
            raise ValueError(f"{name!r} can't be a node's name")
        try:
            os.fsencode(name)  # it is in the environment of a process
        except UnicodeEncodeError:
            raise ValueError(f"{name!r} can't be a node's name") from None
        if not parent.is_group:
            raise TreeError(f"{parent!r} is a command, and has no nodes below it")
        if name in parent.children:
            raise TreeError(f"there is a node {name!r} in {parent!r} already")
        if node.parent is not None:
            raise TreeError(f"{node!r} is in a tree already")
        if parent.root is node:
            raise TreeError(f"{node!r} can't be below itself")
        parent.children[name] = node
        node.parent = parent
        node._name = name

    def __getitem__(self, path: str) -> Node:
        """The node at a path below this one, or below the root if it begins with "/"."""
        if not isinstance(path, str):
            raise TypeError(f"a node's path is text, not {path!r}")
        node = self.root if path.startswith("/") else self
        for name in filter(None, path.split("/")):
            if name not in node.children:
                raise KeyError(f"there is no node {name!r} in {node!r}")
            node = node.children[name]
        return node

    def __contains__(self, path: str) -> bool:
        try:
            self[path]
        except KeyError:
            return False
        return True


open_nodes: ContextVar[tuple[Node, ...]] = ContextVar("open_nodes", default=())


def seconds(time: float | str) -> float:
    """A time in seconds, of a number or of "90s", "5m", "4h", "1d". ValueError for another."""
    if isinstance(time, int | float):
        value = float(time)
    else:
        match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([smhd])", time)
        if match is None:
            raise ValueError(f"a time is a number of seconds, or such as '5m', not {time!r}")
        value = float(match[1]) * UNIT_S[match[2]]
    if not 0 < value < float("inf"):
        raise ValueError(f"a time is more than nothing, not {time!r}")
    return value


def _environment(env: Mapping[str, Any]) -> dict[str, str]:
    for variable, value in env.items():
        if not isinstance(variable, str) or not isinstance(value, str):
            raise TypeError(f"a variable and its value are text, not {variable!r}: {value!r}")
        if not variable or "=" in variable or "\0" in variable + value:
            raise ValueError(f"{variable!r} can't be a variable with this value")
    return dict(env)


def _max_time(time: float | str) -> float | str:
    seconds(time)
    return time


def _at_least(least: int, option: str) -> Callable[[int], int]:
    def check(number: int) -> int:
        if not isinstance(number, int) or number < least:
            raise ValueError(f"{option} is a number from {least} on, not {number!r}")
        return number

    return check


def _amount(option: str) -> Callable[[float | str], float | str]:
    def check(amount: float | str) -> float | str:
        try:
            fits = isinstance(amount, int | float | str) and 0 <= float(amount) < float("inf")
        except ValueError:
            fits = False
        if not fits:
            raise ValueError(f"{option} is a number from 0 on, not {amount!r}")
        return amount

    return check


# What makes a value of an option one that a node can have; raises TypeError or ValueError.
CHECKS: dict[str, Callable[[Any], Any]] = {
    "cpu": _amount("cpu"),
    "doc": str,
    "env": _environment,
    "gpu": _amount("gpu"),
    "mem": _amount("mem"),
    "title": str,
    "max_time": _max_time,
    "max_concurrent": _at_least(1, "max_concurrent"),
    "retries": _at_least(0, "retries"),
}
