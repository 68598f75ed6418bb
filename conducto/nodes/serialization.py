"""Trees as JSON: what the store keeps of a pipeline, and what a command prints for a Lazy.

    {"conducto": 1, "type": "Serial", "options": {...}, "children": {"name": {"type": ...}, ...}}

`type` is Exec (with `command`), Serial (with `stop_on_error`), Parallel or Lazy. `options` are
those that say something, by their names in `co.Node`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from conducto.nodes.image import Image
from conducto.nodes.kinds import EXECUTE, GENERATE, Exec, Lazy, Parallel, Serial
from conducto.nodes.node import Node, TreeError, open_nodes

VERSION = 1
DEPTH_MAX = 200  # of a tree that is read: deeper ones are refused, and not recursed into
KINDS: dict[str, type[Node]] = {"Exec": Exec, "Serial": Serial, "Parallel": Parallel, "Lazy": Lazy}
OPTIONS = (
    "env",
    "skip",
    "cpu",
    "gpu",
    "mem",
    "requires_docker",
    "docker_run_args",
    "suppress_errors",
    "max_time",
    "max_concurrent",
    "retries",
    "container_reuse_context",
    "doc",
    "title",
    "tags",
)

PLAIN = Node()  # of which nothing is said


def dumps(root: Node) -> str:
    """The tree as one line of JSON. Commands of functions become text, as seen from here."""
    return json.dumps({"conducto": VERSION, **_document(root, 0)})


def loads(text: str | bytes) -> Node:
    """The tree that a line of JSON holds. TreeError for what is none."""
    try:
        document = json.loads(text)
    except ValueError as error:
        raise TreeError(f"a tree is JSON: {error}") from error
    if not isinstance(document, dict) or document.get("conducto") != VERSION:
        raise TreeError(f'a tree is a JSON object with "conducto": {VERSION}')
    token = open_nodes.set(())  # no `with` around this has to do with these nodes
    try:
        return _node(document, 0)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise TreeError(f"the tree is malformed: {error}") from error
    finally:
        open_nodes.reset(token)


def _document(node: Node, depth: int) -> dict[str, Any]:
    if depth > DEPTH_MAX:
        raise TreeError(f"the tree is deeper than {DEPTH_MAX}: {node}")
    # One that is 0 says something: it is not that of the nodes above.
    options = {
        option: getattr(node, option)
        for option in OPTIONS
        if getattr(node, option) != getattr(PLAIN, option)
    }
    document: dict[str, Any] = {"type": type(node).__name__}
    if isinstance(node, Exec):
        document["command"] = node.command
    if isinstance(node, Serial) and not node.stop_on_error:
        document["stop_on_error"] = False
    if node.own_image is not None:
        document["image"] = node.own_image.to_dict()
    if options:
        document["options"] = options
    if node.children:
        below = node.children.items()
        document["children"] = {name: _document(child, depth + 1) for name, child in below}
    return document


def _node(document: Mapping[str, Any], depth: int) -> Node:
    if depth > DEPTH_MAX:
        raise TreeError(f"the tree is deeper than {DEPTH_MAX}")
    kind = KINDS[document["type"]]
    children = {name: _node(each, depth + 1) for name, each in document.get("children", {}).items()}
    node: Node
    if kind is Exec:
        node = Exec("")
        node.command = document["command"]  # as it is: it was unindented before
    elif kind is Lazy:
        generate = children.pop(GENERATE)
        if not isinstance(generate, Exec):
            raise TreeError("a Lazy's Generate is a command")
        node = Lazy("")
        node.children.clear()
        node[GENERATE] = generate
        node[EXECUTE] = children.pop(EXECUTE)
    else:
        node = kind()
    if isinstance(node, Serial):
        node.stop_on_error = bool(document.get("stop_on_error", True))
    options = document.get("options", {})
    if options.keys() - set(OPTIONS):
        raise TreeError(f"unknown option {min(options.keys() - set(OPTIONS))!r}")
    node.set(**options)
    if "image" in document:
        node.image = Image(**document["image"])
    for name, child in children.items():
        node[name] = child
    return node
