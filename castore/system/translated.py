"""Errors within a block, raised as others."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import TypeAlias

Translation: TypeAlias = Callable[[BaseException], BaseException | None]


class Translated:
    """`with Translated(into):` raises an exception within it as what `into` makes of it, from it;
    where that is None, as it is.

    No generator of contextlib's: with Python 3.12 and 3.13 the exception that went into one, and
    does not come out of it, is in a cycle with the frames that it went through. So the files, locks
    and bytes that these hold stay until Python's collector of cycles comes by.
    """

    __slots__ = ("_into",)

    def __init__(self, into: Translation) -> None:
        self._into = into

    def __enter__(self) -> None:
        """Nothing is done before."""

    def __exit__(
        self,
        _: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        other = None if error is None else self._into(error)
        if other is None:
            return
        try:
            raise other from error
        finally:
            del other  # its traceback leads to this frame
