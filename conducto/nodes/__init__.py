"""Nodes: a pipeline as a tree, as pure data. Nothing here runs, prints or stores anything."""

from __future__ import annotations

from conducto.nodes.image import ContainerReuseContext, Image, SameContainer, relpath
from conducto.nodes.kinds import Exec, Lazy, Parallel, Serial, lazy_py, lazy_shell
from conducto.nodes.node import Node, TreeError

__all__ = [
    "ContainerReuseContext",
    "Exec",
    "Image",
    "Lazy",
    "Node",
    "Parallel",
    "SameContainer",
    "Serial",
    "TreeError",
    "lazy_py",
    "lazy_shell",
    "relpath",
]
