"""Text as programs write it in their source."""

from __future__ import annotations

import inspect


def unindent(string: str) -> str:
    """The text without the margin that all its lines share, and without blank lines around it.

    The first line has no part in the margin: in a docstring it begins after the quotes.

    >>> conducto.shared.log.unindent('''
    ...     if true; then
    ...       echo yes
    ...     fi
    ... ''')
    'if true; then\\n  echo yes\\nfi'
    """
    return inspect.cleandoc(string)
