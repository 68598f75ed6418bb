"""Time that nobody sets."""

from __future__ import annotations

import time


def boot_clock() -> float:
    """Seconds that also pass while the machine sleeps, from some moment on."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()
