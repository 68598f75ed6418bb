"""Repeating a request: exponential backoff with full jitter, bounded in number and in time.

The SDK's own retries are off everywhere: they know nothing of bodies cut midway, and repeat writes
whose outcome is unknown.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from castore.s3.client.faults import Fault, OutcomeUnknown
from castore.system.clock import boot_clock

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Backoff:
    """How often a request is tried, and how long is waited between, with jitter."""

    attempts: int = 6
    first_s: float = 0.1  # the most to wait after the first failure; doubled with each
    throttled_first_s: float = 0.5
    longest_s: float = 8.0
    total_s: float = 180.0  # no attempt begins later than this after the first

    def wait_s(self, failures: int, fault: Fault) -> float:
        """How long to wait after the n-th failure (from 1)."""
        first_s = self.throttled_first_s if fault.throttled else self.first_s
        ceiling_s = min(self.longest_s, first_s * 2 ** (failures - 1))
        return max(random.uniform(0, ceiling_s), fault.wait_s)


BACKOFF = Backoff()


class Retrier:
    """The attempts at one request: `wait` after each that failed. By `clock` it is decided whether
    it is too late for another: with `boot_clock` also after the machine has slept."""

    def __init__(self, backoff: Backoff, clock: Callable[[], float] = time.monotonic) -> None:
        self._backoff = backoff
        self._clock = clock
        self._began = clock()
        self._failures = 0

    def wait(self, fault: Fault) -> bool:
        """False, at once, if there should not be another attempt."""
        self._failures += 1
        if not fault.repeat or self._failures >= self._backoff.attempts:
            return False
        wait_s = self._backoff.wait_s(self._failures, fault)
        if self._is_late(wait_s):
            return False
        time.sleep(wait_s)
        return not self._is_late(0)

    def _is_late(self, wait_s: float) -> bool:
        return self._clock() + wait_s - self._began > self._backoff.total_s


def retry(
    attempt: Callable[[], T], backoff: Backoff, clock: Callable[[], float] = time.monotonic
) -> T:
    """Repeat what may be applied any number of times. Raises the last Fault's error."""
    retrier = Retrier(backoff, clock)
    while True:
        try:
            return attempt()
        except Fault as fault:
            if not retrier.wait(fault):
                raise fault.error from fault.__cause__


def retry_once(key: str, attempt: Callable[[], T], backoff: Backoff) -> T:
    """Repeat while it is certain that nothing was applied, and what it was decided by is not old:
    the machine may sleep meanwhile. Raises OutcomeUnknown when it is not certain."""

    def once() -> T:
        try:
            return attempt()
        except Fault as fault:
            if fault.unknown:
                raise OutcomeUnknown(key) from fault.error
            raise

    return retry(once, backoff, boot_clock)
