"""`co.util`: what pipelines use beside nodes."""

from __future__ import annotations

import ast
import inspect
import sys
import textwrap

from conducto.shared.log import unindent


def magic_doc(doc_only: bool = False) -> str:
    """Markdown for a node's `doc`: the docstring of the function that calls this, and its code.

    Without a docstring it is that of the function's module. `doc_only` leaves out the code.

        def build() -> co.Serial:
            "Compile all, then test it."
            return co.Serial(doc=co.util.magic_doc())
    """
    frame = sys._getframe(1)
    source = textwrap.dedent(inspect.getsource(frame.f_code))
    function = ast.parse(source).body[0]
    doc = None
    if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
        doc = ast.get_docstring(function)
    if doc is not None:
        source = _without_docstring(source, function)
    else:
        doc = unindent(frame.f_globals.get("__doc__") or "")
    if doc_only:
        return doc
    return f"{doc}\n\n```python\n{source.strip()}\n```".strip()


def _without_docstring(source: str, function: ast.stmt) -> str:
    assert isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
    docstring = function.body[0]
    assert docstring.end_lineno is not None
    lines = source.splitlines()
    if docstring.lineno == function.lineno or len(function.body) == 1:
        return source  # all on one line, or nothing else to show
    return "\n".join([*lines[: docstring.lineno - 1], *lines[docstring.end_lineno :]])
