"""The kinds of nodes: one command; several, one after another or at once; a tree made later."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from conducto.nodes.calls import Call, annotations_of
from conducto.nodes.node import Node, Options
from conducto.shared.log import unindent

if TYPE_CHECKING:
    from typing import Unpack

GENERATE, EXECUTE = "Generate", "Execute"


class Exec(Node):
    """One command, a process of its own.

    `Exec("make test", name="test")` runs a shell's command; keywords are the node's options.
    `Exec(function, *args, **kwargs)` runs a Python function of a file, by a command line that its
    annotations type: `python file.py function --k=v`. Its keywords are the function's arguments;
    those that it does not have are the node's options. Its docstring is the node's `doc`.

    TypeError for arguments that do not fit the function, or that would come back from the command
    line as something else.
    """

    is_group = False

    def __init__(self, command: str | Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        self._command = ""
        self.call: Call | None = None
        if callable(command):
            self.call, kwargs = Call.bind(command, args, kwargs)
            if command.__doc__:
                kwargs.setdefault("doc", unindent(command.__doc__))
        elif not isinstance(command, str):
            raise TypeError(f"a command is text or a function, not {command!r}")
        elif args:
            raise TypeError(f"a shell's command takes no arguments: {args!r}")
        else:
            self._command = _script(command)
        super().__init__(**kwargs)

    def brief(self) -> str:
        return f"Exec {self.call.function if self.call else self._command}"

    def label(self) -> str:
        return f"{self.name}   {self.command.strip()}".replace("\n", "\\n")

    @property
    def command(self) -> str:
        """What the shell runs. A function's file is named relative to where the node runs."""
        if self.call is None:
            return self._command
        return self.call.command(self.image.folder if self.image else None)

    @command.setter
    def command(self, command: str) -> None:
        if not isinstance(command, str):
            raise TypeError(f"a command that is set is text, not {command!r}")
        self.call, self._command = None, command


class Parallel(Node):
    """Nodes that run at the same time. It fails when all have ended and one has failed."""


class Serial(Node):
    """Nodes that run one after another.

    With `stop_on_error` it fails with the first that fails, and those after it stay pending.
    Without, all run, and it fails at the end.
    """

    is_ordered = True

    def __init__(self, *, stop_on_error: bool = True, **options: Unpack[Options]) -> None:
        super().__init__(**options)
        self.stop_on_error = stop_on_error


class Lazy(Serial):
    """A tree that is made when it is its turn: a Serial of two nodes, "Generate" and "Execute".

    Generate runs a function that returns a tree, or a command that prints one as co.main does;
    Execute then is that tree. Until then it is empty, and of the kind `node_type`. Arguments are as
    for Exec; options that the function does not have are the Lazy's own.
    """

    def __init__(
        self,
        command: str | Callable[..., Any],
        *args: Any,
        node_type: type[Node] = Parallel,
        **kwargs: Any,
    ) -> None:
        given = kwargs
        if callable(command):
            call_arguments = Call.arguments_of(command, kwargs)
            given = {k: v for k, v in kwargs.items() if k not in call_arguments}
            kwargs = {k: v for k, v in kwargs.items() if k in call_arguments}
        else:
            kwargs = {}
        generate = Exec(command, *args, **kwargs)
        given.setdefault("doc", generate.doc)
        super().__init__(**given)
        self[GENERATE] = generate
        self[EXECUTE] = node_type()

    def grow(self, tree: Node) -> None:
        """Let Execute be this tree."""
        placeholder = self.children.pop(EXECUTE)
        placeholder.parent = None
        self[EXECUTE] = tree


def lazy_py(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Lazy | Exec:
    """A Lazy of a function that is annotated to return a node, and of any other an Exec, as the
    former Conducto had it. Arguments are as for these."""
    returns = annotations_of(function).get("return")
    is_tree = isinstance(returns, type) and issubclass(returns, Node)
    return Lazy(function, *args, **kwargs) if is_tree else Exec(function, *args, **kwargs)


def lazy_shell(
    command: str,
    node_type: type[Node] = Parallel,
    env: Mapping[str, str] | None = None,
    **options: Any,
) -> Lazy:
    """A Lazy of a command that prints a tree, as the former Conducto had it."""
    return Lazy(command, node_type=node_type, **options, env=env or {})


def _script(command: str) -> str:
    """As written, without the indentation that it has from standing in a program."""
    first = command.lstrip(" \t")[:1]
    return unindent(command) if first == "\n" else command.strip()
