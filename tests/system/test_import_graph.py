"""No import goes up, and none goes round; `python tests/system/test_import_graph.py` counts them.

The linter holds the same of the layers; this needs no linter, looks into functions as well, and
knows no exceptions.
"""

from __future__ import annotations

import ast
import sys
import tomllib
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1] / "support"))

from places import ROOT

Graph = dict[str, set[str]]


def modules() -> dict[str, Path]:
    found = {}
    for package in ("castore", "conducto"):
        for path in (ROOT / package).rglob("*.py"):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


def imported(path: Path, known: dict[str, Path]) -> set[str]:
    """The modules of ours that a module imports, anywhere but for the type checker alone."""
    tree = ast.parse(path.read_text())
    unseen = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If)
        and isinstance(node.test, ast.Name)
        and node.test.id == "TYPE_CHECKING"
        for each in node.body
        for inner in ast.walk(each)
    }
    found = set()
    for node in ast.walk(tree):
        if id(node) in unseen:
            continue
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in known else node.module)
    return found & known.keys()


@cache
def graph() -> Graph:
    """Of all modules. To be read only."""
    known = modules()
    return {name: imported(path, known) - {name} for name, path in known.items()}


def room(module: str) -> str:
    """What the layers are made of: a package or a module right in castore; conducto as a whole."""
    return ".".join(module.split(".")[:2]) if module.startswith("castore") else "conducto"


def rooms(graph: Graph) -> Graph:
    found: Graph = {room(module): set() for module in graph}
    for module, others in graph.items():
        found[room(module)] |= {room(other) for other in others} - {room(module)}
    return found


def floors(graph: Graph) -> int:
    """How many there are on the longest way down. Raises CycleError if there is no down."""
    height: dict[str, int] = {}
    for module in TopologicalSorter(graph).static_order():
        height[module] = 1 + max((height[other] for other in graph[module]), default=0)
    return max(height.values())


def settings() -> dict[str, Any]:
    """Of the tools, in pyproject.toml."""
    tools: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    return tools


def layers() -> dict[str, int]:
    """On which floor the linter's contract has each room, counted from the top."""
    contracts = settings()["importlinter"]["contracts"]
    [contract] = [each for each in contracts if each["type"] == "layers"]
    return {
        each: floor
        for floor, line in enumerate(contract["layers"])
        for each in line.replace(" ", "").split("|")
    }


def test_every_package_is_installed() -> None:
    """Also where it is not installed editable, as it is for the tests."""
    packages = {name for name, path in modules().items() if path.name == "__init__.py"}
    assert set(settings()["setuptools"]["packages"]) == packages


def test_every_import_goes_down() -> None:
    floor = layers()
    found = rooms(graph())
    lazy = {"castore"}  # the package itself gives out what is below, when it is asked for
    assert found.keys() - lazy <= floor.keys()
    up = {
        (each, other)
        for each, others in found.items()
        for other in others
        if each not in lazy and other not in lazy and floor[other] <= floor[each]
    }
    assert up == set()


def test_no_import_goes_round() -> None:
    whole = dict(graph())
    for module in ("castore", "castore.__main__"):  # who imports these means what they give out
        whole.pop(module)
    try:
        assert floors({name: others & whole.keys() for name, others in whole.items()}) <= 23
    except CycleError as error:
        raise AssertionError(" -> ".join(error.args[1])) from None


def test_there_are_few_floors_and_few_arrows() -> None:
    found = rooms(graph())
    found.pop("castore")
    found = {name: others & found.keys() for name, others in found.items()}
    assert floors(found) <= 14
    assert sum(map(len, found.values())) <= 110


if __name__ == "__main__":
    whole, between = graph(), rooms(graph())
    print(f"{len(whole)} modules, {sum(map(len, whole.values()))} imports")
    print(f"{len(between)} rooms, {sum(map(len, between.values()))} arrows, ", end="")
    print(f"{floors(between)} floors")
