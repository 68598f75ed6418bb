"""What is remembered of objects that were read lately, while other threads have it forgotten."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from castore.format.index import Record, encode_record
from castore.local import hot
from castore.local.hot import HotObjects
from castore.system.lmdb_env import open_index

RAW = encode_record(Record(1, 0, 0o600, bytes(16), 1, inline=b"1"))
HELD = 4


def before_step(step: int, action: Callable[[], object], call: Callable[[], object]) -> bool:
    """Make the call, and do the action before its step of that number, as a thread to which Python
    switches there; False if it has fewer."""
    left = [step]

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code is not HotObjects.of.__code__:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            left[0] -= 1
            if left[0] == -1:
                action()
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return left[0] < 0


@pytest.mark.parametrize("what", ["one", "all"])
def test_what_is_forgotten_at_any_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setattr(hot, "HOT_OBJECTS_MAX", HELD)
    index = open_index(str(tmp_path / "index"))
    steps = 0
    while True:
        objects = HotObjects(index)
        for i in range(HELD):
            objects.of(b"%d" % i, RAW)

        def forget(objects: HotObjects = objects) -> None:
            if what == "one":
                objects.forget(b"2")
            else:
                objects.forget_all()

        def read(objects: HotObjects = objects) -> None:
            assert objects.of(b"new", RAW).record.inline == b"1"

        if not before_step(steps, forget, read):
            break
        assert len(objects._hot) <= HELD
        steps += 1
    assert steps > 20
    index.close()
