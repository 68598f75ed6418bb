"""What the programs put whose writes are lost."""

from __future__ import annotations

import random


def value(blocks: list[int]) -> bytes:
    return b"%d" % len(blocks) + b"".join(
        random.Random(block).randbytes(40_000) if block % 3 else b"%d " % block * 9000
        for block in blocks
    )
