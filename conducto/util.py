"""`co.util`: what pipelines use beside nodes."""

from __future__ import annotations

import ast
import inspect
import os
import sys
import textwrap
import tokenize
from collections.abc import Callable
from typing import Any

from conducto.arguments import FALSE
from conducto.shared.log import unindent


def env_bool(key: str) -> bool:
    """Whether the environment's variable `key` says yes: it is set, and not to "", 0, false, no,
    off, none, or their like.

        def build(force: bool = co.env_bool("FORCE")) -> co.Serial: ...
    """
    return os.environ.get(key, "").strip().lower() not in FALSE | {"0.0"}


def magic_doc(
    doc_only: bool = False, *, func: Callable[..., Any] | None = None, comment: bool = False
) -> str:
    """Markdown for a node's `doc`: the docstring of the function that calls this, and its code.

    Without a docstring it is that of the function's module. `doc_only` leaves out the code. `func`
    is another function, such as the one that a node runs. With `comment` it is, instead of both,
    the last block of comments above the call, or above `func`; "" if there is none.

        def build() -> co.Serial:
            "Compile all, then test it."
            return co.Serial(doc=co.util.magic_doc())
    """
    if func is None:
        frame = sys._getframe(1)
        code, variables, line = frame.f_code, frame.f_globals, frame.f_lineno
    else:
        function = inspect.unwrap(func)
        code, variables = function.__code__, function.__globals__
        line = code.co_firstlineno
    if comment:
        return _comment_above(line, inspect.findsource(code)[0])
    source = inspect.getsource(code)
    parsed = _parsed(source)
    doc = None
    if isinstance(parsed, ast.FunctionDef | ast.AsyncFunctionDef):
        doc = ast.get_docstring(parsed)
    if doc is not None:
        source = _without_docstring(source, parsed)
    else:
        doc = unindent(variables.get("__doc__") or "")
    if doc_only:
        return doc
    return f"{doc}\n\n```python\n{textwrap.dedent(source).strip()}\n```".strip()


def _comment_above(line: int, source: list[str]) -> str:
    """What the last comments say that have lines of their own before `line`, which counts from 1.
    What text has in it is no comment."""
    comments = {
        token.start[0]: token.string[1:]
        for token in tokenize.generate_tokens(iter(source).__next__)
        if token.type == tokenize.COMMENT and token.line.lstrip().startswith("#")
    }
    first = last = max((at for at in comments if at < line), default=0)
    while first - 1 in comments:
        first -= 1
    lines = [comments[at] for at in range(first, last + 1) if at in comments]
    return textwrap.dedent("\n".join(lines)).strip("\n")


def _parsed(source: str) -> ast.stmt:
    """The first statement. Of a method, text within may be indented less than its code, so that all
    of it can't be dedented."""
    if not source[:1].isspace():
        return ast.parse(source).body[0]
    [block] = ast.parse("if True:\n" + source).body
    assert isinstance(block, ast.If)
    return ast.increment_lineno(block.body[0], -1)


def _without_docstring(source: str, function: ast.stmt) -> str:
    assert isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
    docstring = function.body[0]
    assert docstring.end_lineno is not None
    lines = source.splitlines()
    if docstring.lineno == function.lineno or len(function.body) == 1:
        return source  # all on one line, or nothing else to show
    return "\n".join([*lines[: docstring.lineno - 1], *lines[docstring.end_lineno :]])
