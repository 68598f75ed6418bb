"""When a request is tried again, on a clock that stands still but for what is slept."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence

import pytest

from castore.errors import RemoteError
from castore.s3.client import retries
from castore.s3.client.faults import Fault, OutcomeUnknown
from castore.s3.client.retries import Backoff, Retrier, retry, retry_once

BACKOFF = Backoff(attempts=7, first_s=1, throttled_first_s=2, longest_s=10, total_s=1000)
ERROR = RemoteError("no")
AGAIN = Fault(ERROR, repeat=True)


class Clock:
    def __init__(self) -> None:
        self.now = 5000.0
        self.slept: list[float] = []
        self.late_s = 0.0  # it wakes so much later

    def __call__(self) -> float:
        return self.now

    def sleep(self, wait_s: float) -> None:
        self.slept.append(wait_s)
        self.now += wait_s + self.late_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Of the waits that jitter may choose from, the longest is chosen."""
    clock = Clock()
    monkeypatch.setattr(time, "sleep", clock.sleep)
    monkeypatch.setattr(retries, "boot_clock", clock)
    monkeypatch.setattr(random, "uniform", lambda least, most: most)
    return clock


def waits(clock: Clock, fault: Fault, backoff: Backoff = BACKOFF) -> list[float]:
    retrier = Retrier(backoff, clock)
    while retrier.wait(fault):
        """It fails again."""
    return clock.slept


@pytest.mark.parametrize(("throttled", "first"), [(False, [1, 2, 4, 8]), (True, [2, 4, 8, 10])])
def test_waits_double_up_to_the_longest(throttled: bool, first: list[float], clock: Clock) -> None:
    assert waits(clock, Fault(ERROR, repeat=True, throttled=throttled)) == [*first, 10, 10]


def test_jitter_begins_at_nothing(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random, "uniform", lambda least, most: least)
    assert waits(clock, AGAIN) == [0] * 6


def test_as_long_as_the_server_asks(clock: Clock) -> None:
    assert waits(clock, Fault(ERROR, repeat=True, wait_s=5)) == [5, 5, 5, 8, 10, 10]
    clock.slept.clear()
    assert waits(clock, Fault(ERROR, repeat=True, wait_s=60)) == [60] * 6


def test_what_is_final_is_not_waited_for(clock: Clock) -> None:
    assert waits(clock, Fault(ERROR, repeat=False)) == []


@pytest.mark.parametrize(("total_s", "expected"), [(2.9, [1]), (3, [1, 2]), (6.9, [1, 2])])
def test_no_attempt_begins_too_late(total_s: float, expected: list[float], clock: Clock) -> None:
    """Nor is the wait for one begun."""
    assert waits(clock, AGAIN, Backoff(first_s=1, total_s=total_s)) == expected


def test_a_wait_that_the_machine_slept_in_is_the_last(clock: Clock) -> None:
    clock.late_s = 1000
    assert waits(clock, AGAIN) == [1]


def in_turn(outcomes: Sequence[Exception | int]) -> Callable[[], int]:
    left = list(outcomes)

    def attempt() -> int:
        outcome = left.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    return attempt


def test_the_last_error_is_told(clock: Clock) -> None:
    first, last = Fault(RemoteError("first"), repeat=True), Fault(ERROR, repeat=False)
    last.__cause__ = cause = OSError("why")
    assert retry(in_turn([first, first, 3]), BACKOFF, clock) == 3
    with pytest.raises(RemoteError) as caught:
        retry(in_turn([first, last, 3]), BACKOFF, clock)
    assert caught.value is ERROR
    assert caught.value.__cause__ is cause
    assert len(clock.slept) == 3
    with pytest.raises(KeyError):  # what is no fault is not repeated
        retry(in_turn([KeyError(), 3]), BACKOFF, clock)


def test_what_may_have_been_applied_is_not_repeated(clock: Clock) -> None:
    unknown = Fault(ERROR, repeat=True, unknown=True)
    assert retry_once("k", in_turn([AGAIN, AGAIN, 3]), BACKOFF) == 3
    clock.slept.clear()
    with pytest.raises(OutcomeUnknown) as caught:
        retry_once("k", in_turn([AGAIN, unknown, 3]), BACKOFF)
    assert (caught.value.key, caught.value.__cause__) == ("k", ERROR)
    assert clock.slept == [1]
    with pytest.raises(RemoteError, match="no"):
        retry_once("k", in_turn([AGAIN] * 7), BACKOFF)
    clock.late_s = 1000
    with pytest.raises(RemoteError, match="no"):
        retry_once("k", in_turn([AGAIN, 3]), BACKOFF)
