"""Where things are in the project's folder."""

from __future__ import annotations

from pathlib import Path

SUPPORT = Path(__file__).resolve().parent
TESTS = SUPPORT.parent
ROOT = TESTS.parent
BENCH = ROOT / "bench"
GOLDEN = TESTS / "golden"
