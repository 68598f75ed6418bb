"""Numbers in words, as messages have them."""

from __future__ import annotations


def counted(number: int, one: str, many: str = "") -> str:
    """As "1 name", "2,000 names"; `many` where that is not `one` and an s: "2 batches"."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"
