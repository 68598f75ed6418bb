"""Errors within a block, raised as others: and what failed is let go of with them."""

from __future__ import annotations

import ast
import gc
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest

import castore
from castore.errors import StoreIOError
from castore.system.fileio import typed_errors
from castore.system.translated import Translated


def of_lookups(error: BaseException) -> ValueError | None:
    return ValueError(f"no {error}") if isinstance(error, KeyError) else None


def test_an_error_is_raised_as_what_it_is_translated_into() -> None:
    lookup = KeyError("a")
    with pytest.raises(ValueError, match="no 'a'") as raised, Translated(of_lookups):
        raise lookup
    assert raised.value.__cause__ is lookup


@pytest.mark.parametrize("error", [TypeError("b"), KeyboardInterrupt()])
def test_an_error_that_is_none_of_those_goes_on_as_it_is(error: BaseException) -> None:
    with pytest.raises(type(error)) as raised, Translated(of_lookups):
        raise error
    assert raised.value is error
    assert error.__cause__ is None


def test_where_nothing_is_raised_nothing_is_translated() -> None:
    asked: list[BaseException] = []
    with Translated(asked.append):
        done = True
    assert done
    assert asked == []


class Held:
    """What a frame that failed held: a file, a lock, bytes."""


def test_with_the_error_goes_what_failed() -> None:
    held: list[weakref.ref[Held]] = []

    def fail() -> None:
        mine = Held()
        held.append(weakref.ref(mine))
        raise OSError(5, "Input/output error", "pack")

    def work() -> None:
        with typed_errors("store"):
            fail()

    def try_it() -> str:
        try:
            work()
        except StoreIOError as error:
            assert held[0]() is not None
            return str(error)
        return ""

    gc.disable()
    try:
        assert "pack" in try_it()
        assert held[0]() is None
    finally:
        gc.enable()


def generators_that_translate(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and any(
            "contextmanager" in ast.unparse(decorator) for decorator in node.decorator_list
        ):
            around = [
                handler
                for each in ast.walk(node)
                if isinstance(each, ast.Try) and any(map(has_yield, each.body))
                for handler in each.handlers
            ]
            raised = [each for one in around for each in ast.walk(one)]
            if any(isinstance(each, ast.Raise) and each.exc is not None for each in raised):
                yield node.name


def has_yield(statement: ast.stmt) -> bool:
    return any(isinstance(each, ast.Yield) for each in ast.walk(statement))


# Of a command, which ends; and around imports.
SHORT_LIVED = {"naming_folders", "places_refused", "expected_there", "needs_installed"}


def test_no_generator_of_castores_translates() -> None:
    """See Translated: what failed would be kept with Python 3.12 and 3.13."""
    package = Path(castore.__file__).parent
    found = {
        name
        for path in package.rglob("*.py")
        for name in generators_that_translate(path.read_text("utf-8"))
    }
    assert found == SHORT_LIVED
