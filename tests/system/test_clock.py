"""The clock that also counts while the machine sleeps."""

from __future__ import annotations

import sys
import time

import pytest

from castore.system.clock import boot_clock


def test_it_goes_on() -> None:
    before = boot_clock()
    time.sleep(0.01)
    assert 0.01 <= boot_clock() - before < 60


@pytest.mark.parametrize(("platform", "expected"), [("darwin", 2.0), ("other", 1.0)])
def test_where_there_is_no_clock_of_the_boot(
    monkeypatch: pytest.MonkeyPatch, platform: str, expected: float
) -> None:
    """macOS has one by another name, and time.monotonic is not it: a lease would be thought to be
    young by who has slept."""
    monkeypatch.delattr(time, "CLOCK_BOOTTIME", raising=False)
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(time, "monotonic", lambda: 1.0)
    clocks = {time.CLOCK_MONOTONIC: 2.0}
    monkeypatch.setattr(time, "clock_gettime", clocks.__getitem__)
    assert boot_clock() == expected
