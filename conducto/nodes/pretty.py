"""A tree as lines for people, as the former Conducto printed it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from conducto.nodes.node import Node


def lines(root: Node, label: Callable[[Node], str] | None = None) -> Iterator[str]:
    """A line for each node: what `label` says of it, by default its name and its command.

        /
        ├─0 build   make
        └─1 test
          ├─ fast   make test
          └─ slow   make test-all

    Children of a Serial are numbered; those of a Parallel have no order.
    """
    label = label or (lambda node: node.label())
    yield label(root)
    # Each on the stack: a node, what stands before its line, and before the lines of its children.
    stack = _children(root, "")
    while stack:
        node, before, below = stack.pop()
        yield before + label(node)
        stack.extend(_children(node, below))


def _children(node: Node, before: str) -> list[tuple[Node, str, str]]:
    """The last first."""
    found = []
    digits = len(str(len(node.children) - 1))
    for number, child in enumerate(node.children.values()):
        is_last = number == len(node.children) - 1
        index = str(number).zfill(digits) if node.is_ordered else ""
        found.append(
            (
                child,
                f"{before}{'└' if is_last else '├'}─{index} ",
                before + ("  " if is_last else "│ "),
            )
        )
    return found[::-1]
