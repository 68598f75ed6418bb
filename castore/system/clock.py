"""Time that nobody sets."""

from __future__ import annotations

import sys
import time


def boot_clock() -> float:
    """Seconds that also pass while the machine sleeps, from some moment on."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    if sys.platform == "darwin":  # where time.monotonic stops meanwhile, and this does not
        return time.clock_gettime(time.CLOCK_MONOTONIC)
    return time.monotonic()
