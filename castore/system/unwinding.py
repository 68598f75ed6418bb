"""Whether a file is closed because something was raised while it was being written.

`close` is not told: the `with` of a text layer, of what `fsspec.open` returns or of pandas' handles
calls it alike after success and after failure. But Python knows which exception is being handled,
and it was not being handled when the file was opened.
"""

from __future__ import annotations

import opcode
import sys
from types import TracebackType

_WITH_RAISED = opcode.opmap.get("WITH_EXCEPT_START", -1)

# An exception, how far it had got, and the `with` that it was leaving then.
_Seen = tuple[BaseException, TracebackType | None, int | None]


class Unwinding:
    """Made when a file is opened: what is being handled then is no failure of the file's."""

    __slots__ = ("_before",)

    def __init__(self) -> None:
        self._before: list[_Seen] = []
        error = sys.exception()
        while error is not None and all(error is not seen[0] for seen in self._before):
            self._before.append(_seen(error))
            error = error.__context__

    def raised(self) -> BaseException | None:
        """What is being handled now, if it was raised (or raised again) since."""
        error = sys.exception()
        if error is None:
            return None
        now = _seen(error)
        if any(all(a is b for a, b in zip(now, seen, strict=True)) for seen in self._before):
            return None
        return error


def leaves_with(error: BaseException) -> bool:
    """Whether the exception, which is being handled, is on its way out of a `with` block: then it
    goes on, and whoever catches it knows that the block failed. An `except` or a `finally` may end
    it, or have nothing to do with the file that is closed there."""
    return _seen(error)[2] is not None


def _seen(error: BaseException) -> _Seen:
    trace = error.__traceback__
    if trace is None:
        return error, None, None
    frame = trace.tb_frame  # of who handles it
    leaving = frame.f_lasti >= 0 and frame.f_code.co_code[frame.f_lasti] == _WITH_RAISED
    return error, trace, frame.f_lasti if leaving else None
