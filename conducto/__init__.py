"""Pipelines and their data: `import conducto as co`.

A pipeline is a tree of nodes: `co.Exec`, `co.Serial`, `co.Parallel`, `co.Lazy`; `co.main` prints
and runs the trees of a file. `co.data.pipeline` belongs to one pipeline and goes when that is
archived; `co.data.user` belongs to the user and stays. Both keep their objects in one castore store
per user, so the same bytes are stored once whichever pipeline they came from.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from conducto import data
from conducto.data import pipeline as temp_data
from conducto.data import user as perm_data
from conducto.errors import ContextError

if TYPE_CHECKING:
    from conducto import api, nb, secrets, shared, util
    from conducto.nodes import (
        ContainerReuseContext,
        Exec,
        Image,
        Lazy,
        Node,
        Parallel,
        SameContainer,
        Serial,
        TreeError,
        lazy_py,
        lazy_shell,
        relpath,
    )
    from conducto.run.main import main
    from conducto.util import env_bool

__all__ = [
    "ContainerReuseContext",
    "ContextError",
    "Exec",
    "Image",
    "Lazy",
    "Node",
    "Parallel",
    "SameContainer",
    "Serial",
    "TreeError",
    "api",
    "data",
    "env_bool",
    "lazy_py",
    "lazy_shell",
    "main",
    "nb",
    "perm_data",
    "relpath",
    "secrets",
    "shared",
    "temp_data",
    "util",
]

# Who only wants data does not wait for these.
_NODES = (
    "ContainerReuseContext Exec Image Lazy Node Parallel SameContainer Serial TreeError lazy_py "
    "lazy_shell relpath"
)
_HOMES = {
    **dict.fromkeys(_NODES.split(), "conducto.nodes"),
    "env_bool": "conducto.util",
    "main": "conducto.run.main",
}
_MODULES = ("api", "nb", "secrets", "shared", "util")


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"conducto.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
