"""What a signal handler raises, at a chosen place.

Python runs handlers as a function is entered, and behind a call of C's. Those are where a profiler
is asked, too, so that an exception can be raised there without waiting for chance."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any, TypeAlias

Place: TypeAlias = tuple[CodeType, int, str]
Step: TypeAlias = tuple[Place, int]  # and how often it was come by before


class Soft(Exception):
    """What the handler raises."""


def steps_of(verb: Callable[[], Any]) -> list[Step]:
    """Where `verb` can be interrupted: each place at its first and its last time."""
    times: dict[Place, int] = {}

    def note(frame: FrameType, event: str, _: object) -> None:
        if event in ("call", "c_return"):
            place = frame.f_code, frame.f_lasti, event
            times[place] = times.get(place, -1) + 1

    sys.setprofile(note)
    try:
        verb()
    finally:
        sys.setprofile(None)
    return [(place, time) for place, last in times.items() for time in sorted({0, last})]


def strike(verb: Callable[[], Any], step: Step) -> BaseException | None:
    """Interrupt `verb` at this step; what came of it, with its traceback, as a notebook keeps the
    last."""
    (code, at, which), left = step

    def note(frame: FrameType, event: str, called: object) -> None:
        nonlocal left
        if frame.f_code is code and frame.f_lasti == at and event == which:
            left -= 1
            if left < 0:
                sys.setprofile(None)
                del called  # a method of what would be kept: a handler is not told of it
                raise Soft

    sys.setprofile(note)
    try:
        verb()
    except BaseException as error:
        return error
    finally:
        sys.setprofile(None)
    return None  # it did not come by, or it was raised where Python only reports it
